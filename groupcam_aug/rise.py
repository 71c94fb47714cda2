"""RISE (Petsiuk et al. 2018): the mean of random masks, each weighted by the probability of the class that it leaves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from groupcam_aug.arguments import check_number, check_seed, check_whole
from groupcam_aug.cam import Output
from groupcam_aug.map_ops import enlarge
from groupcam_aug.scoring import Scorer, Substrate, make_substrate
from groupcam_aug.targets import Activation, Targets

__all__ = ["rise"]


def rise(
    model: nn.Module,
    images: Tensor,
    targets: Targets = None,
    *,
    masks: int = 4000,
    cells: int = 7,
    keep: float = 0.5,
    fill: Substrate = "zeros",
    seed: int = 0,
    activation: Activation = "softmax",
    chunk: int | None = None,
    output: Output = None,
    preprocess: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Maps by random masks, one pass for each; all images have the same masks, whatever the batch and the chunk.

    A mask is a grid of cells, each kept with probability `keep`, enlarged bilinearly by one cell too much and cut out at random.

    Args:
        model: a classifier; given back as found.
        images: (N, C, H, W), as the network takes them.
        targets: as for `insertion_deletion`.
        masks: how many. Default: 4,000, the paper's for VGG16 (8,000 for ResNet-50).
        cells: along a side. Default: 7.
        keep: probability of a cell, in (0, 1). Default: .5.
        fill: what shows where the mask hides. Default: "zeros", mean grey of normalised images.
        seed: of the masks.
        activation: what turns logits into p.
        chunk: most images per pass; see `GroupCAM`.
        output: where the logits are in what the network returns.
        preprocess: applied to images before the network sees them.

    Returns:
        (N, H, W) mean of p times mask over `keep`, as in the authors' code: 0 to 1 / `keep`, on the images' device.

    Raises:
        ValueError: numbers out of range.
    """
    check_whole("masks", masks, 1)
    check_whole("cells", cells, 1)
    check_number("keep", keep, 0, 1, above=True)
    check_seed(seed)
    scorer = Scorer(model, images, targets, activation, chunk, output, preprocess)
    height, width = scorer.images.shape[-2:]
    step = -(-height // cells), -(-width // cells)
    generator = torch.Generator().manual_seed(seed)
    grids = (torch.rand(masks, 1, cells, cells, generator=generator) < keep).to(scorer.dtype)
    corners = torch.stack([torch.randint(side, (masks,), generator=generator) for side in step], dim=1)
    total = torch.zeros(len(scorer.images), height, width, dtype=scorer.dtype, device=scorer.images.device)
    if len(total):
        with scorer.borrowed():
            base = make_substrate(scorer.images, fill).to(scorer.dtype)
            for part in scorer.parts(masks):
                large = enlarge(grids[part].to(total.device), ((cells + 1) * step[0], (cells + 1) * step[1]))[:, 0]
                cut = [m[y : y + height, x : x + width] for m, (y, x) in zip(large, corners[part].tolist(), strict=True)]
                shown = torch.stack(cut)
                for i, image in enumerate(scorer.images):
                    mixed = torch.lerp(base[i], image.to(scorer.dtype), shown[:, None]).to(scorer.images.dtype)
                    which = torch.full((len(shown),), i, device=total.device)
                    total[i] += torch.einsum("n,nhw->hw", scorer.scores_of(which, mixed).to(total.dtype), shown)
    return total / (masks * keep)
