"""How alike two sets of saliency maps are: rank correlation, change between two moments, noise, and what chance gives."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from groupcam_aug.arguments import check_whole
from groupcam_aug.metrics.summed_metric import MeanOfCounted

__all__ = ["Change", "MapChange", "Noise", "map_change", "map_floor", "map_noise", "spearman"]

_FLAT = 1e-6  # a map whose values differ by less than this share of its maximum is constant: its ranks are rounding


class Change(NamedTuple):
    """What `map_change` gives, each of shape (N,) on the maps' device, floats in float32."""

    change: Tensor  # 0 (same order of cells) to 1 (unrelated, opposite, or only one map alive); 0 where neither is alive
    spearman: Tensor  # -1 to 1; 0 where not both are alive
    mass_shift: Tensor  # 0 to 1, the share of the mass that moved; 1 where only one map is alive, 0 where neither is
    alive_before: Tensor  # bool
    alive_after: Tensor  # bool

    @property
    def counted(self) -> Tensor:
        """(N,) bool: pairs that belong into a mean of `change` and `mass_shift`."""
        return self.alive_before | self.alive_after

    @property
    def both(self) -> Tensor:
        """(N,) bool: pairs that belong into a mean of `spearman`."""
        return self.alive_before & self.alive_after


class Noise(NamedTuple):
    """What `map_noise` gives, each of shape (N,) on the maps' device."""

    noise: Tensor  # float32, 0 (none) to 1 (as chance would have it, or worse); 0 where not counted
    counted: Tensor  # bool: maps that belong into a mean of `noise`


def map_change(before: Tensor, after: Tensor, *, grid: int = 14) -> Change:
    """How much each image's map changed: 1 - Spearman's rho on a small grid, clipped to [0, 1].

    Both maps are average-pooled to one grid of at most `grid` x `grid` cells, since at full size interpolation dominates. A map
    is alive if it is finite, has something positive and is not constant. Where exactly one of the two is alive the change is
    1; where neither is, there is nothing to compare and the pair is not `counted`.

    Args:
        before: (N, h, w), not negative, unscaled or scaled: only the order of the values counts.
        after: (N, h', w'), the same images at another moment.
        grid: most cells along a side. Default: 14.

    Returns:
        `Change`.

    Raises:
        ValueError: other shapes, unequal numbers of maps, negative values (looked for on the CPU only), grid < 1.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} maps before and {len(after)} after: give the same images in the same order")
    (first, alive_before), (second, alive_after) = _pooled(before, after, grid)
    both, one = alive_before & alive_after, alive_before ^ alive_after
    rho = torch.where(both, spearman(first, second), 0.0)
    shift = (_share(first) - _share(second)).abs().sum(dim=(1, 2)) / 2
    change = torch.where(both, (1 - rho).clamp(0, 1), one.to(rho.dtype))
    shift = torch.where(both, shift, one.to(shift.dtype))
    return Change(change.float(), rho.float(), shift.float(), alive_before, alive_after)


def map_noise(maps: Tensor, flipped_back: Tensor | None = None, *, masks: Tensor | None = None, grid: int = 14) -> Noise:
    """How much of each map is noise, in one of two forms.

    Flip-noise (no labels needed): 1 - Spearman's rho, clipped to [0, 1], of the map of the image and the map of the mirrored
    image, mirrored back. Counted where both are alive (see `map_change`); a mean over no map at all is 1 by convention.

    Ground-truth form: the mass outside the object over the share of the image outside it, at most 1 (= chance). A map without
    mass or with non-finite values is 1; an empty mask, or one that covers everything, is not counted.

    Args:
        maps: (N, h, w), not negative.
        flipped_back: (N, h, w), `map_of(images.flip(-1)).flip(-1)`.
        masks: (N, H, W) bool, True on the object; at least as large as the maps, to whose grid they are averaged.
        grid: of flip-noise, as in `map_change`. Default: 14.

    Returns:
        `Noise`.

    Raises:
        ValueError: both or neither of `flipped_back` and `masks`; shapes that do not fit; negative values.
    """
    if flipped_back is not None and masks is None:
        change = map_change(maps, flipped_back, grid=grid)
        return Noise(torch.where(change.both, change.change, 0.0), change.both)
    if masks is None or flipped_back is not None:
        raise ValueError("give either flipped_back= (flip-noise) or masks= (ground-truth form), and not both")
    _check_maps("maps", maps)
    if masks.ndim != 3 or len(masks) != len(maps) or masks.shape[1] < maps.shape[1] or masks.shape[2] < maps.shape[2]:
        raise ValueError(
            f"masks must be ({len(maps)}, H, W) and at least as large as the maps, {tuple(maps.shape)}; got {tuple(masks.shape)}"
        )
    inside = F.adaptive_avg_pool2d((masks > 0).to(_wide(maps))[:, None], (maps.shape[1], maps.shape[2]))[:, 0]
    usable = maps.isfinite().all(dim=(1, 2))
    values = torch.where(usable[:, None, None], maps, torch.zeros_like(maps)).to(inside.dtype)
    total, outside = values.sum(dim=(1, 2)), 1 - inside.mean(dim=(1, 2))
    counted = (masks > 0).any(dim=(1, 2)) & ~(masks > 0).all(dim=(1, 2))
    counted = counted & (outside > 0)
    share = (values * (1 - inside)).sum(dim=(1, 2)) / torch.where(total > 0, total, torch.ones_like(total))
    noise = torch.where(total > 0, (share / torch.where(counted, outside, torch.ones_like(outside))).clamp(max=1), 1.0)
    return Noise(torch.where(counted, noise, 0.0).float(), counted)


def map_floor(maps: Tensor, *, grid: int = 14) -> Tensor:
    """What two maps of different images have in common: the mean Spearman's rho of each alive map with the next alive one.

    Args:
        maps: (N, h, w), not negative.
        grid: as in `map_change`. Default: 14.

    Returns:
        Scalar in [-1, 1], float32, on the maps' device; 0 if fewer than two maps are alive.
    """
    pooled, alive = _pooled(maps, maps, grid)[0]
    order = (
        alive.logical_not().to(torch.int8).argsort(stable=True)
    )  # the alive ones first, in their order: no wait for the device
    pooled, alive = pooled[order], alive[order]
    pairs = (alive[:-1] & alive[1:]).to(pooled.dtype)
    rho = spearman(pooled[:-1], pooled[1:]) * pairs
    return (rho.sum() / pairs.sum().clamp(min=1)).float()


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation of each pair of rows, ties sharing their mean rank (as `scipy.stats.spearmanr`).

    torchmetrics' function sums ranks in int32, which overflows once 65,536 equal values meet (a mostly empty map of 288 pixels);
    here the ranks are float64 (float32 on MPS).

    Args:
        first: (N, ...), any size; dimensions behind the first are flattened.
        second: the same shape.

    Returns:
        (N,) in [-1, 1], float64 (float32 on MPS); 0 where a row is constant or holds NaN or infinity.
    """
    if first.shape != second.shape or first.ndim < 2:
        raise ValueError(f"both need one shape (N, ...), got {tuple(first.shape)} and {tuple(second.shape)}")
    first, second = first.flatten(1), second.flatten(1)
    finite = first.isfinite().all(dim=1) & second.isfinite().all(dim=1)
    a, b = _centred_ranks(first), _centred_ranks(second)
    scale = (a.square().sum(dim=1) * b.square().sum(dim=1)).sqrt()
    usable = finite & (scale > 0)
    rho = (a * b).sum(dim=1) / torch.where(usable, scale, torch.ones_like(scale))
    return torch.where(usable, rho.clamp(-1, 1), torch.zeros_like(rho))


class MapChange(MeanOfCounted):
    """Mean change of maps between two moments, see `map_change`: 0 to 1, lower is steadier, 1 if no pair could be compared.

    Pairs of which neither map is alive are left out of the mean and counted in the state `change_undefined`.

    Args:
        grid: most cells along a side of the grid on which maps are compared. Default: 14.
        kwargs: of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from groupcam_aug.metrics import MapChange
        >>> metric = MapChange()
        >>> before = torch.arange(16.0).view(1, 4, 4)
        >>> metric.update(before, before.flip(1))
        >>> metric.update(before, before)
        >>> metric.compute()
        tensor(0.5000)
    """

    prefix = "change"
    higher_is_better = False
    change_count: Tensor

    def __init__(self, grid: int = 14, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_whole("grid", grid, 1)
        self.grid = grid

    def update(self, before: Tensor, after: Tensor) -> None:
        """Add the pairs of a batch: (N, h, w) maps of the same images, not negative."""
        change = map_change(before, after, grid=self.grid)
        self._take(change.change, change.counted, ~change.counted)

    def compute(self) -> Tensor:
        """Scalar float32."""
        change = super().compute()
        return torch.where(self.change_count > 0, change, torch.ones_like(change))


def _centred_ranks(rows: Tensor) -> Tensor:
    """Ranks of each row's values less their mean; equal values share the mean of their ranks."""
    rows = rows.detach().contiguous()
    ordered = rows.sort(dim=1).values
    below = torch.searchsorted(ordered, rows, right=False)
    upto = torch.searchsorted(ordered, rows, right=True)
    # Ranks are (below + 1 + upto) / 2, and their mean is (n + 1) / 2 whatever the ties: centred without rounding.
    return (below + upto - rows.shape[1]).to(_wide(rows)) / 2


def _pooled(before: Tensor, after: Tensor, grid: int) -> list[tuple[Tensor, Tensor]]:
    """Both on one grid of at most grid x grid cells, dead maps as zeros, and which are alive."""
    check_whole("grid", grid, 1)
    _check_maps("before", before)
    _check_maps("after", after)
    height, width = (min(grid, before.shape[i], after.shape[i]) for i in (1, 2))
    result = []
    for maps in (before, after):
        maps = maps.detach()
        finite = maps.isfinite().all(dim=(1, 2))
        clean = torch.where(finite[:, None, None], maps, torch.zeros_like(maps)).to(_wide(maps))
        pooled = F.adaptive_avg_pool2d(clean[:, None], (height, width))[:, 0]
        high, low = pooled.amax(dim=(1, 2)), pooled.amin(dim=(1, 2))
        alive = finite & (high > 0) & (high - low > _FLAT * high)
        result.append((torch.where(alive[:, None, None], pooled, torch.zeros_like(pooled)), alive))
    return result


def _check_maps(name: str, maps: Tensor) -> None:
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise ValueError(f"{name}: maps must have the shape (N, h, w), got {tuple(maps.shape)}")
    if not maps.is_floating_point():
        raise TypeError(f"{name}: maps must be floating point, got {maps.dtype}")
    if maps.device.type == "cpu" and bool((maps < 0).any()):
        raise ValueError(f"{name}: maps must not be negative, the smallest value is {maps.min().item():.4g}")


def _share(maps: Tensor) -> Tensor:
    """Maps (N, h, w) scaled to a mass of 1; zeros stay zeros."""
    mass = maps.sum(dim=(1, 2), keepdim=True)
    return maps / torch.where(mass > 0, mass, torch.ones_like(mass))


def _wide(maps: Tensor) -> torch.dtype:
    return torch.float32 if maps.device.type == "mps" else torch.float64
