"""Arithmetic of maps and masks: scaling to [0, 1], percentiles, and scaling as if enlarged, without enlarging."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["enlarge", "minmax", "percentile", "scale_as_enlarged"]


def minmax(maps: Tensor) -> Tensor:
    """Each map of (..., H, W) rescaled to [0, 1] by itself; a constant map, or one with NaN or infinity, becomes zeros."""
    low, high = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    return _rescale(maps, low, high)[0]


def enlarge(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """(N, G, u, v) -> (N, G, H, W), bilinearly, `align_corners=False`."""
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def scale_as_enlarged(masks: Tensor, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Masks on their own grid, scaled so that `enlarge` makes of them what `minmax(enlarge(masks))` is.

    Bilinear enlargement is linear and keeps constants, so scaling may come first once the extremes of the enlarged mask are
    known. Between four neighbouring cells it is monotone along rows and columns: the extremes are at the pixels next to the
    cells' centres, at most (2 u) (2 v) of the H W pixels. No full-size mask has to be made, or read again.

    Args:
        masks: (N, G, u, v).
        size: (H, W), at least (u, v).

    Returns:
        (N, G, u, v), which may leave [0, 1] at centres that no pixel meets, and (N, G) bool: whether the mask is usable, that
        is, neither constant nor touched by NaN or infinity; others are zeros.
    """
    rows = _turning_points(masks.shape[-2], size[-2], masks.dtype, masks.device)
    columns = _turning_points(masks.shape[-1], size[-1], masks.dtype, masks.device)
    step = max(1, size[-2] * size[-1] // (len(rows[0]) * len(columns[0])))  # at a time no more than a full-size mask holds
    extremes = []
    for part in masks.split(step, dim=1):
        met = torch.lerp(part.index_select(-2, rows[0]), part.index_select(-2, rows[1]), rows[2][:, None])
        met = torch.lerp(met.index_select(-1, columns[0]), met.index_select(-1, columns[1]), columns[2])
        extremes.append(torch.stack([met.amin(dim=(-2, -1)), met.amax(dim=(-2, -1))]))
    low, high = torch.cat(extremes, dim=2)[..., None, None].unbind()
    scaled, usable = _rescale(masks, low, high)
    return scaled, usable[..., 0, 0]


def percentile(values: Tensor, theta: float) -> Tensor:
    """The theta-percentile over the last dimension, kept, with linear interpolation as `numpy.percentile`.

    Not `torch.quantile`, which refuses more than 16 million elements.
    """
    ordered = values.sort(dim=-1).values
    position = theta / 100 * (values.shape[-1] - 1)
    below = int(position)
    above = min(below + 1, values.shape[-1] - 1)
    return torch.lerp(ordered[..., below : below + 1], ordered[..., above : above + 1], position - below)


def _rescale(maps: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    spread = high - low
    usable = (spread > 0) & torch.isfinite(spread)
    scaled = (maps - low) / torch.where(usable, spread, torch.ones_like(spread))
    return torch.where(usable, scaled, torch.zeros_like(scaled)), usable


@lru_cache(maxsize=64)
def _turning_points(cells: int, pixels: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Along one axis: the first and the last pixel between each two cells, as (left cell, right cell, weight of the right)."""
    with torch.inference_mode(False), torch.no_grad():  # the cache outlives the caller's modes
        position = ((torch.arange(pixels, dtype=torch.float64) + 0.5) * (cells / pixels) - 0.5).clamp(min=0)
        left = position.long().clamp(max=cells - 1)
        edge = left[1:] != left[:-1]
        chosen = torch.cat([torch.tensor([True]), edge]) | torch.cat([edge, torch.tensor([True])])
        left, weight = left[chosen], (position - left)[chosen]
        return left.to(device), (left + 1).clamp(max=cells - 1).to(device), weight.to(device=device, dtype=dtype)
