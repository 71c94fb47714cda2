"""Boxes: masks from them, boxes around maps, and the error of localising objects by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from groupcam_aug.arguments import check_number
from groupcam_aug.metrics.localisation import Located, check_sizes, finite
from groupcam_aug.metrics.summed_metric import MeanOfCounted

__all__ = ["LocalisationError", "box_masks", "boxes_from_maps", "localisation_error"]


def box_masks(boxes: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """(N, H, W) bool: pixels whose centre lies in any of an image's boxes.

    Args:
        boxes: for each image (k, 4), k >= 0: x0, y0, x1, y1 in pixels, ends exclusive (COCO: x, y, x + w, y + h).
        size: (H, W).
    """
    height, width = size
    masks = []
    for corners in boxes:
        columns, rows = (torch.arange(side, device=corners.device) + 0.5 for side in (width, height))
        corners = corners.reshape(-1, 4).double()[:, :, None]
        across = (columns >= corners[:, 0]) & (columns <= corners[:, 2])
        down = (rows >= corners[:, 1]) & (rows <= corners[:, 3])
        masks.append((down[:, :, None] & across[:, None, :]).any(dim=0))
    return torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.bool)


def boxes_from_maps(maps: Tensor, *, threshold: float = 0.15) -> Tensor:
    """The box around the largest connected part of each map (Grad-CAM, Selvaraju et al. 2019, section 4.1).

    Pixels at or above `threshold` times the map's maximum fall into 4-connected parts; of equally large ones the first in raster
    order is taken. Waits for the device a few times, and is meant for evaluation.

    Args:
        maps: (N, H, W), not negative.
        threshold: share of the maximum, in (0, 1]. Default: .15.

    Returns:
        (N, 4) float32 on the maps' device: x0, y0, x1, y1 in pixels, ends exclusive; zeros for a map without anything positive
        or with non-finite values.

    Raises:
        ValueError: another shape or threshold.
    """
    check_sizes(maps, maps)
    check_number("threshold", threshold, 0, 1, above=True)
    peak = maps.amax(dim=(1, 2), keepdim=True)
    usable = finite(maps) & (peak[:, 0, 0] > 0)
    part = _largest_part((maps >= threshold * peak) & usable[:, None, None])
    sides = []
    for dim, side in ((1, maps.shape[2]), (2, maps.shape[1])):
        line = part.any(dim=dim).to(torch.uint8)
        sides.append((line.argmax(dim=1), side - line.flip(1).argmax(dim=1)))
    (x0, x1), (y0, y1) = sides
    return torch.stack([x0, y0, x1, y1], dim=1).float() * usable[:, None]


def localisation_error(boxes: Tensor, truth: Sequence[Tensor], *, iou: float = 0.5, correct: Tensor | None = None) -> Located:
    """Weakly supervised localisation as in ILSVRC: 1 where the box overlaps none of the image's true boxes by `iou` or more.

    Args:
        boxes: (N, 4), one box an image, as `boxes_from_maps` gives them.
        truth: for each image (k, 4), the true boxes of its class; an image with k = 0 is not counted.
        iou: least intersection over union of a hit. Default: .5.
        correct: (N,) bool, whether the class was predicted right; a wrong class is an error whatever the box.

    Returns:
        `Located`, `value` 1 = error. A missing box (zeros) is an error and `undefined`.

    Raises:
        ValueError: numbers of boxes that do not fit.
    """
    check_number("iou", iou, 0, 1)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) != len(truth):
        raise ValueError(f"need one box (4) and one set of true boxes an image, got {tuple(boxes.shape)} and {len(truth)} sets")
    pairs = [(box[None].double(), true.reshape(-1, 4).to(box.device).double()) for box, true in zip(boxes, truth, strict=True)]
    overlaps = [box_iou(box, true) for box, true in pairs]
    best = [overlap.amax() if overlap.numel() else overlap.new_zeros(()) for overlap in overlaps]
    hit = torch.stack(best) >= iou if best else boxes.new_zeros(0, dtype=torch.bool)
    if correct is not None:
        hit = hit & correct.to(hit.device)
    counted = torch.tensor([true.numel() > 0 for true in truth], dtype=torch.bool, device=boxes.device)
    missing = (boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])
    return Located((~hit & counted).float(), counted, counted & missing)


class LocalisationError(MeanOfCounted):
    """Share of images whose box overlaps no true box, see `localisation_error`: 0 to 1, lower is better, 0 of nothing.

    Args:
        threshold: share of the map's maximum at which the box is cut. Default: .15.
        iou: least intersection over union of a hit. Default: .5.
        kwargs: of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from groupcam_aug.metrics import LocalisationError
        >>> metric = LocalisationError()
        >>> metric.update(torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]), [torch.tensor([[1.0, 0.0, 2.0, 2.0]])])
        >>> metric.compute()
        tensor(0.)
    """

    prefix = "localisation"
    higher_is_better = False

    def __init__(self, threshold: float = 0.15, iou: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_number("threshold", threshold, 0, 1, above=True)
        check_number("iou", iou, 0, 1)
        self.threshold, self.iou = threshold, iou

    def update(self, maps: Tensor, truth: Sequence[Tensor], correct: Tensor | None = None) -> None:
        """Add a batch: (N, H, W) maps, for each image its true boxes (k, 4), and whether its class was predicted right."""
        self._take(*localisation_error(boxes_from_maps(maps, threshold=self.threshold), truth, iou=self.iou, correct=correct))


def _largest_part(masks: Tensor) -> Tensor:
    """(N, H, W) bool: of each mask its largest 4-connected part."""
    count, pixels = len(masks), masks[0].numel() if len(masks) else 0
    if not pixels:
        return masks
    # Union-find on whole tensors: roots hook onto smaller neighbouring roots, then every pixel looks up its root again.
    index = torch.arange(masks.numel(), device=masks.device).view(masks.shape)
    right, down = masks[:, :, 1:] & masks[:, :, :-1], masks[:, 1:] & masks[:, :-1]
    first = torch.cat([index[:, :, :-1][right], index[:, :-1][down]])
    second = torch.cat([index[:, :, 1:][right], index[:, 1:][down]])
    root = index.flatten().clone()
    while True:
        a, b = root[first], root[second]
        if torch.equal(a, b):
            break
        root.scatter_reduce_(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
        while not torch.equal(root[root], root):
            root = root[root]
    sizes = torch.bincount(root[masks.flatten()], minlength=masks.numel()).view(count, pixels)
    largest = (sizes == sizes.amax(dim=1, keepdim=True)).to(torch.uint8).argmax(dim=1)
    chosen = largest + pixels * torch.arange(count, device=masks.device)
    return (root.view(count, pixels) == chosen[:, None]).view(masks.shape) & masks
