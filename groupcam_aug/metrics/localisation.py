"""Does a map lie on the object? Pointing game, energy inside, mask IoU, boxes from maps and the localisation error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from groupcam_aug.augment import keep_mask

__all__ = [
    "Located",
    "box_masks",
    "boxes_from_maps",
    "energy_pointing_game",
    "localisation_error",
    "mask_iou",
    "pointing_game",
]


class Located(NamedTuple):
    """Values of one batch, each of shape (N,); a mean is taken over `counted`."""

    value: Tensor  # float32; an undefined map scores 0, so that it lowers the mean instead of leaving it
    counted: Tensor  # bool: the image has something to be found
    undefined: Tensor  # bool: counted, but its map is constant, empty or not finite (see each function)


def pointing_game(maps: Tensor, masks: Tensor, *, tolerance: float = 0.0, relative_tolerance: float | None = None) -> Located:
    """Does the maximum of each map lie on the object, or within a tolerance of it (Zhang et al. 2018)?

    The point is the first maximum in raster order. It is a hit if any pixel of the mask is at a distance <= tolerance, so that
    0 means inside. (TorchRay compares strictly, with 15 pixels on images of some 500.) A constant or non-finite map points
    nowhere: a miss, and `undefined`. An empty mask is not counted. No network is needed.

    Args:
        maps: (N, H, W), any range, of the size of the masks: resize maps to the original images first.
        masks: (N, H, W) bool (or numbers, where > 0 is the object); see `box_masks` for boxes.
        tolerance: in pixels of the map. Default: 0.
        relative_tolerance: instead of it, as a share of the shorter side (15 pixels of 224 are .067).

    Raises:
        ValueError: shapes that do not fit, a negative tolerance, or both kinds of it.
    """
    _check(maps, masks)
    if relative_tolerance is not None and tolerance:
        raise ValueError(f"give tolerance={tolerance} or relative_tolerance={relative_tolerance}, not both")
    reach = tolerance if relative_tolerance is None else relative_tolerance * min(maps.shape[1:])
    if not reach >= 0:
        raise ValueError(f"the tolerance must not be negative, got {reach}")
    inside, usable = masks > 0, _finite(maps) & (maps.amax(dim=(1, 2)) > maps.amin(dim=(1, 2)))
    peak = maps.flatten(1).amax(dim=1, keepdim=True)
    point = (maps.flatten(1) == peak).to(torch.uint8).argmax(dim=1)  # of equal values argmax itself promises no order
    rows = torch.arange(maps.shape[1], device=maps.device)[:, None] - (point // maps.shape[2])[:, None, None]
    columns = torch.arange(maps.shape[2], device=maps.device) - (point % maps.shape[2])[:, None, None]
    # Squared distances are integers: the largest one allowed is exact where a squared tolerance such as 2 ** 0.5 is not.
    near = rows.square() + columns.square() <= math.floor(min(reach * reach, 2.0**62) * (1 + 1e-12) + 1e-12)
    hit = usable & (inside & near).flatten(1).any(dim=1)
    counted = inside.flatten(1).any(dim=1)
    return Located((hit & counted).float(), counted, counted & ~usable)


def energy_pointing_game(maps: Tensor, masks: Tensor, *, above_chance: bool = False) -> Located:
    """Share of each map's mass that lies on the object (Wang et al. 2020), 0 to 1.

    A map spread evenly scores the object's share of the image. A map without mass, or not finite, scores 0 and is `undefined`;
    an empty mask is not counted.

    Args:
        maps: (N, H, W), not negative.
        masks: (N, H, W) bool, the same size.
        above_chance: (share - area) / (1 - area) instead: 0 at chance, 1 if all is inside, negative below chance (an undefined
            map scores chance, 0). A mask that covers everything is then not counted.

    Raises:
        ValueError: shapes that do not fit, or negative maps (looked for on the CPU only).
    """
    _check(maps, masks)
    if maps.device.type == "cpu" and bool((maps < 0).any()):
        raise ValueError(f"maps must not be negative, the smallest value is {maps.min().item():.4g}")
    inside, finite = masks > 0, _finite(maps)
    clean = torch.where(finite[:, None, None], maps, torch.zeros_like(maps)).float()
    total = clean.sum(dim=(1, 2))
    usable, counted = total > 0, inside.flatten(1).any(dim=1)
    value = (clean * inside).sum(dim=(1, 2)) / torch.where(usable, total, torch.ones_like(total))
    if above_chance:
        area = inside.float().mean(dim=(1, 2))
        counted = counted & ~inside.flatten(1).all(dim=1)
        value = (value - area) / torch.where(counted, 1 - area, torch.ones_like(area))
    return Located(torch.where(usable & counted, value, 0.0), counted, counted & ~usable)


def mask_iou(first: Tensor, second: Tensor, *, threshold: float | str = "mean") -> Located:
    """Intersection over union of two masks of each image, 0 to 1.

    Args:
        first: (N, H, W), bool, or a floating-point map that is turned into a mask by `augment.keep_mask`.
        second: the same shape, either kind.
        threshold: for maps: "mean" (S >= its own mean), a number in [0, 1], or "q0.6". Default: "mean".

    Returns:
        `Located`. An empty, constant or non-finite map counts as an empty mask and scores 0, `undefined`; where both masks are
        empty nothing is counted.

    Raises:
        ValueError: shapes that do not fit.
    """
    _check(first, second)
    usable = torch.ones(len(first), dtype=torch.bool, device=first.device)
    masks = []
    for one in (first, second):
        if one.is_floating_point():
            alive = _finite(one) & (one.amax(dim=(1, 2)) > 0) & (one.amax(dim=(1, 2)) > one.amin(dim=(1, 2)))
            usable = usable & alive
            clean = torch.where(alive[:, None, None], one, torch.zeros_like(one))
            one = keep_mask(clean, threshold) & alive[:, None, None]  # which keeps all of an image without a map
        masks.append(one > 0)
    both, either = (masks[0] & masks[1]).sum(dim=(1, 2)), (masks[0] | masks[1]).sum(dim=(1, 2))
    counted = either > 0
    return Located(torch.where(usable, both / either.clamp(min=1), 0.0), counted, counted & ~usable)


def box_masks(boxes: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """(N, H, W) bool: pixels whose centre lies in any of an image's boxes.

    Args:
        boxes: for each image (k, 4), k >= 0: x0, y0, x1, y1 in pixels, ends exclusive (COCO: x, y, x + w, y + h).
        size: (H, W).
    """
    height, width = size
    masks = []
    for own in boxes:
        corners = own.reshape(-1, 4).double()[:, :, None]
        columns, rows = (torch.arange(side, device=own.device) + 0.5 for side in (width, height))
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
    _check(maps, maps)
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be a share of the maximum in (0, 1], got {threshold}")
    peak = maps.amax(dim=(1, 2), keepdim=True)
    usable = _finite(maps) & (peak[:, 0, 0] > 0)
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
    if boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) != len(truth):
        raise ValueError(f"need one box (4) and one set of true boxes an image, got {tuple(boxes.shape)} and {len(truth)} sets")
    found = [
        box_iou(box[None].double(), own.reshape(-1, 4).to(box.device).double()) for box, own in zip(boxes, truth, strict=True)
    ]
    best = [overlap.amax() if overlap.numel() else overlap.new_zeros(()) for overlap in found]
    hit = torch.stack(best) >= iou if best else boxes.new_zeros(0, dtype=torch.bool)
    if correct is not None:
        hit = hit & correct.to(hit.device)
    counted = torch.tensor([own.numel() > 0 for own in truth], dtype=torch.bool, device=boxes.device)
    missing = (boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])
    return Located((~hit & counted).float(), counted, counted & missing)


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


def _finite(maps: Tensor) -> Tensor:
    return maps.isfinite().all(dim=2).all(dim=1)


def _check(maps: Tensor, masks: Tensor) -> None:
    if maps.ndim != 3 or masks.shape != maps.shape or 0 in maps.shape[1:]:
        raise ValueError(
            f"need maps and masks of one shape (N, H, W), got {tuple(maps.shape)} and {tuple(masks.shape)}; resize the maps "
            "first (torch.nn.functional.interpolate)"
        )
