"""RISE (Petsiuk et al. 2018): the mean of random masks, each weighted by the probability of the class that it leaves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groupcam_aug.borrow import as_found
from groupcam_aug.map_ops import minmax
from groupcam_aug.recipes.evaluation.map_method import Maps, Method, Setup


def rise(
    network: nn.Module, images: Tensor, classes: Tensor, *, masks: int = 4000, cells: int = 7, keep: float = 0.5, chunk: int = 64
) -> Tensor:
    """Maps (n, H, W) in [0, 1]; `masks` passes an image, the same masks for all images.

    A mask is a grid of cells, each kept with probability `keep`, enlarged bilinearly by one cell too much and cut out at random.
    What is hidden becomes 0 in the images as given: mean grey of normalised ones.
    """
    height, width = images.shape[-2:]
    step = -(-height // cells), -(-width // cells)
    generator, total = torch.Generator().manual_seed(0), torch.zeros_like(images[:, 0])
    with as_found(network, images.device):
        for start in range(0, masks, chunk):
            count = min(chunk, masks - start)
            grid = (torch.rand(count, 1, cells, cells, generator=generator) < keep).float()
            large = F.interpolate(grid, ((cells + 1) * step[0], (cells + 1) * step[1]), mode="bilinear", align_corners=False)
            corners = [torch.randint(side, (count,), generator=generator).tolist() for side in step]
            drawn = torch.stack([m[0, y : y + height, x : x + width] for m, y, x in zip(large, *corners, strict=True)]).to(images)
            for image, label, own in zip(images, classes, total, strict=True):
                own += torch.einsum("n,nhw->hw", network(image * drawn[:, None]).softmax(dim=1)[:, label], drawn)
    return minmax(total)


def method(masks: int) -> Method:
    """RISE as a row of `groupcam-aug evaluate`'s table."""

    def make(setup: Setup) -> Maps:
        def maps(images: Tensor, classes: Tensor, _seeds: Sequence[int]) -> Tensor:
            return rise(setup.network, images, classes, masks=masks)

        return maps

    return Method(f"rise:{masks}", "RISE", "peer", f"{masks} masks of 7 x 7 cells", make)
