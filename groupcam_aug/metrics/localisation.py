"""Does a map lie on the object? Pointing game, energy inside and mask IoU; for boxes see `metrics.boxes`."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from groupcam_aug.arguments import check_flag, check_number, check_whole
from groupcam_aug.augment import keep_mask, read_threshold
from groupcam_aug.metrics.summed_metric import MeanOfCounted, SummedMetric, mean

__all__ = [
    "EnergyPointingGame",
    "Located",
    "MaskIoU",
    "PointingGame",
    "check_sizes",
    "energy_pointing_game",
    "finite",
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
        masks: (N, H, W) bool (or numbers, where > 0 is the object); see `boxes.box_masks` for boxes.
        tolerance: in pixels of the map. Default: 0.
        relative_tolerance: instead of it, as a share of the shorter side (15 pixels of 224 are .067).

    Raises:
        ValueError: shapes that do not fit, a negative tolerance, or both kinds of it.
    """
    check_sizes(maps, masks)
    _check_tolerance(tolerance, relative_tolerance)
    reach = tolerance if relative_tolerance is None else relative_tolerance * min(maps.shape[1:])
    inside, usable = masks > 0, finite(maps) & (maps.amax(dim=(1, 2)) > maps.amin(dim=(1, 2)))
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
    check_sizes(maps, masks)
    check_flag("above_chance", above_chance)
    if maps.device.type == "cpu" and bool((maps < 0).any()):
        raise ValueError(f"maps must not be negative, the smallest value is {maps.min().item():.4g}")
    inside = masks > 0
    clean = torch.where(finite(maps)[:, None, None], maps, torch.zeros_like(maps)).float()
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
    check_sizes(first, second)
    read_threshold(threshold)
    usable = torch.ones(len(first), dtype=torch.bool, device=first.device)
    masks = []
    for one in (first, second):
        if one.is_floating_point():
            alive = finite(one) & (one.amax(dim=(1, 2)) > 0) & (one.amax(dim=(1, 2)) > one.amin(dim=(1, 2)))
            usable = usable & alive
            clean = torch.where(alive[:, None, None], one, torch.zeros_like(one))
            one = keep_mask(clean, threshold) & alive[:, None, None]  # which keeps all of an image without a map
        masks.append(one > 0)
    both, either = (masks[0] & masks[1]).sum(dim=(1, 2)), (masks[0] | masks[1]).sum(dim=(1, 2))
    counted = either > 0
    return Located(torch.where(usable, both / either.clamp(min=1), 0.0), counted, counted & ~usable)


class PointingGame(SummedMetric):
    """Share of maps whose maximum lies on the object, see `pointing_game`: 0 to 1, higher is better, 0 if nothing was counted.

    States: `pointing_hits` and `pointing_trials` (by class with "macro"), `pointing_undefined` (constant or non-finite maps,
    which are misses), `pointing_skipped` (empty masks, which are no trials).

    Args:
        tolerance: in pixels; a distance of exactly this is a hit. Default: 0, the maximum itself must lie inside.
        relative_tolerance: instead of it, as a share of the shorter side.
        average: "micro" over images, or "macro" over the classes seen, as the paper reports it. Default: "micro".
        num_classes: for "macro".
        kwargs: of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from groupcam_aug.metrics import PointingGame
        >>> maps = torch.tensor([[[0.0, 1], [0, 0]], [[0, 0], [0, 1]]])
        >>> metric = PointingGame()
        >>> metric.update(maps, torch.tensor([[[0, 1], [0, 0]], [[1, 0], [0, 0]]]))
        >>> metric.compute()
        tensor(0.5000)
    """

    higher_is_better = True
    pointing_hits: Tensor
    pointing_trials: Tensor

    def __init__(
        self,
        tolerance: float = 0.0,
        relative_tolerance: float | None = None,
        *,
        average: Literal["micro", "macro"] = "micro",
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _check_tolerance(tolerance, relative_tolerance)
        check_whole("num_classes", num_classes, 1, optional=True)
        if average not in ("micro", "macro") or (average == "macro") != (num_classes is not None):
            raise ValueError(f"average is 'micro', or 'macro' with num_classes=; got {average!r} with num_classes={num_classes}")
        self.tolerance, self.relative_tolerance, self.average = tolerance, relative_tolerance, average
        self._add_sums("pointing_hits", "pointing_trials", shape=(num_classes or 1,))
        self._add_sums("pointing_undefined", "pointing_skipped")

    def update(self, maps: Tensor, masks: Tensor, classes: Tensor | None = None) -> None:
        """Add a batch: (N, H, W) maps, (N, H, W) masks of the object, (N,) int64 classes for "macro"."""
        hits = pointing_game(maps, masks, tolerance=self.tolerance, relative_tolerance=self.relative_tolerance)
        if self.average == "macro" and (classes is None or classes.shape != hits.value.shape):
            raise ValueError(f"average='macro' needs the classes of the {len(maps)} images, shape ({len(maps)},)")
        at = torch.zeros_like(hits.counted, dtype=torch.long)
        at = at if self.average == "micro" or classes is None else classes.to(at)
        empty = torch.zeros_like(self.pointing_hits, dtype=torch.float32, device=maps.device)
        self._add(
            pointing_hits=empty.index_add(0, at, hits.value),
            pointing_trials=empty.index_add(0, at, hits.counted.float()),
            pointing_undefined=hits.undefined.sum(),
            pointing_skipped=(~hits.counted).sum(),
        )

    def compute(self) -> Tensor:
        """Scalar float32."""
        accuracy = self.pointing_hits / self.pointing_trials.clamp(min=1)
        return mean(accuracy.sum(), (self.pointing_trials > 0).sum())


class EnergyPointingGame(MeanOfCounted):
    """Mean share of the maps' mass that lies on the object, see `energy_pointing_game`: higher is better, 0 of nothing.

    Args:
        above_chance: corrected for the object's area, so that 0 is chance. Default: False.
        kwargs: of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from groupcam_aug.metrics import EnergyPointingGame
        >>> metric = EnergyPointingGame()
        >>> metric.update(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[True, False]]]))
        >>> metric.compute()
        tensor(0.7500)
    """

    prefix = "energy"
    higher_is_better = True

    def __init__(self, above_chance: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_flag("above_chance", above_chance)
        self.above_chance = above_chance

    def update(self, maps: Tensor, masks: Tensor) -> None:
        """Add a batch: (N, H, W) maps, not negative, and (N, H, W) masks of the object."""
        self._take(*energy_pointing_game(maps, masks, above_chance=self.above_chance))


class MaskIoU(MeanOfCounted):
    """Mean intersection over union of two masks of each image, see `mask_iou`: 0 to 1, higher is better, 0 of nothing.

    Args:
        threshold: that turns maps into masks: "mean", a number in [0, 1], or "q0.6". Default: "mean".
        kwargs: of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from groupcam_aug.metrics import MaskIoU
        >>> metric = MaskIoU()
        >>> metric.update(torch.tensor([[[1.0, 0.9, 0.0]]]), torch.tensor([[[True, False, False]]]))
        >>> metric.compute()
        tensor(0.5000)
    """

    prefix = "iou"
    higher_is_better = True

    def __init__(self, threshold: float | str = "mean", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        read_threshold(threshold)
        self.threshold = threshold

    def update(self, first: Tensor, second: Tensor) -> None:
        """Add a batch: (N, H, W) twice, bool masks or maps."""
        self._take(*mask_iou(first, second, threshold=self.threshold))


def _check_tolerance(tolerance: float, relative_tolerance: float | None) -> None:
    check_number("tolerance", tolerance)
    check_number("relative_tolerance", relative_tolerance, optional=True)
    if relative_tolerance is not None and tolerance:
        raise ValueError(f"give tolerance={tolerance} or relative_tolerance={relative_tolerance}, not both")


def finite(maps: Tensor) -> Tensor:
    """(N,) bool: whether a map (N, H, W) is free of NaN and infinity."""
    return maps.isfinite().all(dim=2).all(dim=1)


def check_sizes(maps: Tensor, masks: Tensor) -> None:
    """Raise an error unless both are tensors of one shape (N, H, W) with at least one pixel."""
    for what, given in (("maps", maps), ("masks", masks)):
        if not isinstance(given, Tensor):
            raise TypeError(f"{what} must be a tensor (N, H, W), got {type(given).__name__}; use torch.from_numpy for arrays")
    if maps.ndim != 3 or masks.shape != maps.shape or 0 in maps.shape[1:]:
        raise ValueError(
            f"need maps and masks of one shape (N, H, W), got {tuple(maps.shape)} and {tuple(masks.shape)}; resize the maps "
            "first (torch.nn.functional.interpolate)"
        )
