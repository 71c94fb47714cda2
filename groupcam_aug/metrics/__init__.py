"""Measures of saliency maps: plain functions (from the modules they live in), and torchmetrics classes on top of them.

Every state is a sum under a name of its own, so a value does not depend on how images are dealt out to batches and ranks, and
`MetricCollection` fuses nothing that differs. (It compares metrics after the first update: pass it `compute_groups=False` for
two of the same class.) Maps that order or point to nothing are counted in a state that ends in `undefined`. A network is
passed to `update` and never stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from groupcam_aug.metrics.insertion_deletion import (
    AUTHORS_STEPS,
    Curves,
    Drop,
    average_drop,
    deletion_auc,
    insertion_auc,
    insertion_deletion,
    one_curve,
)
from groupcam_aug.metrics.localisation import (
    Located,
    box_masks,
    boxes_from_maps,
    energy_pointing_game,
    localisation_error,
    mask_iou,
    pointing_game,
)
from groupcam_aug.metrics.stability import Change, Noise, map_change, map_floor, map_noise, spearman
from groupcam_aug.targets import Targets

__all__ = [
    "Change",
    "Curves",
    "DeletionAUC",
    "Drop",
    "EnergyPointingGame",
    "InsertionAUC",
    "InsertionDeletion",
    "LocalisationError",
    "Located",
    "MapChange",
    "MaskIoU",
    "Noise",
    "PointingGame",
    "average_drop",
    "box_masks",
    "boxes_from_maps",
    "deletion_auc",
    "energy_pointing_game",
    "insertion_auc",
    "insertion_deletion",
    "localisation_error",
    "map_change",
    "map_floor",
    "map_noise",
    "mask_iou",
    "pointing_game",
    "spearman",
]
__doctest_skip__ = ["*.plot"]

_NO_FLOAT64 = {"mps"}  # devices that have no float64


class _Sums(Metric):
    """A metric whose states are sums in float64, with one scalar in [0, 1] unless a class says otherwise."""

    full_state_update = False
    is_differentiable = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def _sum(self, *names: str, shape: tuple[int, ...] = ()) -> None:
        for name in names:
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def _add(self, **values: Tensor) -> None:
        for name, value in values.items():
            state = getattr(self, name)
            setattr(self, name, state + value.detach().to(device=state.device, dtype=state.dtype))

    def _apply(self, fn: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Any:
        """Go to another device, but to no other precision: counts in bfloat16 would stop growing at 256."""
        narrow = fn(torch.empty(0)).device.type in _NO_FLOAT64
        states = {name: getattr(self, name) for name in self._defaults}
        defaults: dict[str, Any] = dict(self._defaults)
        if narrow:  # before the move, which would fail
            states, defaults = ({name: value.float() for name, value in each.items()} for each in (states, defaults))
            for name in states:
                setattr(self, name, states[name])
            self._defaults.update(defaults)
        super()._apply(fn, *args, **kwargs)
        for name in states:
            device = getattr(self, name).device
            dtype = torch.float32 if device.type in _NO_FLOAT64 else torch.float64
            setattr(self, name, states[name].to(device).to(dtype))
            self._defaults[name] = defaults[name].to(device).to(dtype)
        return self

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Figure and axes of one value, or of a list of values over time (default: `compute()`); needs matplotlib."""
        return self._plot(val, ax)


class _Curve(_Sums):
    """The common part of the curve metrics: areas and mean curves over the images whose maps are defined."""

    ways: tuple[Literal["insertion", "deletion"], ...]
    prefix = ""

    def __init__(self, steps: int = 28, *, author_compatible: bool = False, **options: Any) -> None:
        own = {name: options.pop(name) for name in _CURVE_OPTIONS if name in options}
        super().__init__(**options)
        self.options = {"steps": steps, "author_compatible": author_compatible, **own}
        self.steps = AUTHORS_STEPS if author_compatible else steps
        self._sum(f"{self._name}_count", f"{self._name}_undefined")
        for way in self.ways:
            self._sum(f"{self.prefix}{way}_area")
            self._sum(f"{self.prefix}{way}_curve", shape=(self.steps + 1,))

    @property
    def _name(self) -> str:
        return self.prefix.strip("_") or self.ways[0]

    def update(self, model: nn.Module, images: Tensor, maps: Tensor, targets: Targets = None) -> None:
        """Score a batch.

        Args:
            model: any classifier; borrowed for this call, given back as found, not kept.
            images: (N, C, H, W) as the network takes them.
            maps: (N, H, W).
            targets: as for `GroupCAM`; None = each image's top-1 class.
        """
        if len(self.ways) == 2:
            seen = insertion_deletion(model, images, maps, targets, **self.options)
            found = {"insertion": (seen.insertion, seen.insertion_auc), "deletion": (seen.deletion, seen.deletion_auc)}
        else:
            found = {way: one_curve(way, model, images, maps, targets, **self.options) for way in self.ways}
        undefined = torch.stack([area.isnan() for _, area in found.values()]).any(dim=0)
        self._add(**{f"{self._name}_count": (~undefined).sum(), f"{self._name}_undefined": undefined.sum()})
        for way, (curve, area) in found.items():
            defined = torch.where(undefined[:, None], torch.zeros_like(curve), curve)
            area = torch.where(undefined, torch.zeros_like(area), area)
            self._add(**{f"{self.prefix}{way}_area": _total(area), f"{self.prefix}{way}_curve": _total(defined, dim=0)})

    def _area(self, way: str) -> Tensor:
        return _mean(getattr(self, f"{self.prefix}{way}_area"), getattr(self, f"{self._name}_count"))

    def curves(self) -> dict[str, Tensor]:
        """Mean curves, (n + 1,) each, and "fractions", the nominal share of pixels swapped. A collective: every rank calls it."""
        shares = torch.linspace(0, 1, self.steps + 1)
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync):
            count = getattr(self, f"{self._name}_count")
            shares = (shares**2 if self.options.get("spacing") == "quadratic" else shares).to(count.device)
            return {"fractions": shares} | {way: _mean(getattr(self, f"{self.prefix}{way}_curve"), count) for way in self.ways}

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Figure and axes of the mean curves, or of values over time if `val` is given; needs matplotlib."""
        if val is not None:
            return self._plot(val, ax)
        try:
            from matplotlib import pyplot
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("plot() needs matplotlib: pip install 'groupcam-aug[plot]'") from error
        figure, ax = (ax.get_figure(), ax) if ax is not None else pyplot.subplots()
        found = {name: values.cpu().numpy() for name, values in self.curves().items()}
        for way in self.ways:
            (line,) = ax.plot(found["fractions"], found[way], label=f"{way} {float(self._area(way)):.3f}")
            ax.fill_between(found["fractions"], found[way], alpha=0.2, color=line.get_color())
        ax.set(xlabel="share of pixels swapped", ylabel="probability of the class", xlim=(0, 1), ylim=(0, 1))
        ax.legend()
        return figure, ax


class InsertionAUC(_Curve):
    """Mean area under the insertion curve, see `insertion_deletion`: 0 to 1, higher is better, 0 if nothing was scored.

    Undefined maps (constant, not finite) are left out of the mean and counted in the state `insertion_undefined`.

    Args:
        steps: intervals of the curve. Default: 28.
        author_compatible: the authors' protocol, 112 steps. Default: False.
        options: `substrate`, `spacing`, `activation`, `chunk`, `output`, `preprocess` as there; others go to `Metric`.

    Example:
        >>> import torch
        >>> from groupcam_aug.metrics import InsertionAUC
        >>> first_pixel = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2, bias=False))
        >>> _ = first_pixel[1].weight.data.copy_(torch.tensor([[9.0, 0, 0, 0], [0, 0, 0, 0]]))
        >>> metric = InsertionAUC(steps=4, substrate="zeros")
        >>> metric.update(first_pixel, torch.ones(1, 1, 2, 2), torch.tensor([[[4.0, 3], [2, 1]]]), torch.tensor([0]))
        >>> metric.compute()
        tensor(0.9374)
    """

    ways = ("insertion",)
    higher_is_better = True

    def compute(self) -> Tensor:
        """Scalar float32."""
        return self._area("insertion")


class DeletionAUC(_Curve):
    """Mean area under the deletion curve, see `insertion_deletion`: 0 to 1, lower is better, 0 if nothing was scored.

    Arguments and undefined maps (`deletion_undefined`) as for `InsertionAUC`.

    Example:
        >>> import torch
        >>> from groupcam_aug.metrics import DeletionAUC
        >>> first_pixel = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2, bias=False))
        >>> _ = first_pixel[1].weight.data.copy_(torch.tensor([[9.0, 0, 0, 0], [0, 0, 0, 0]]))
        >>> metric = DeletionAUC(steps=4, substrate="zeros")
        >>> metric.update(first_pixel, torch.ones(1, 1, 2, 2), torch.tensor([[[4.0, 3], [2, 1]]]), torch.tensor([0]))
        >>> metric.compute()
        tensor(0.5625)
    """

    ways = ("deletion",)
    higher_is_better = False

    def compute(self) -> Tensor:
        """Scalar float32."""
        return self._area("deletion")


class InsertionDeletion(_Curve):
    """Both areas and their difference, {"insertion", "deletion", "overall"}, in one pass over the points they share.

    Arguments as for `InsertionAUC`; undefined maps are counted in `overall_undefined`. Insertion and overall (-1 to 1): higher is
    better; deletion: lower is better, so that the metric as a whole has no direction.

    Example:
        >>> import torch
        >>> from groupcam_aug.metrics import InsertionDeletion
        >>> first_pixel = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2, bias=False))
        >>> _ = first_pixel[1].weight.data.copy_(torch.tensor([[9.0, 0, 0, 0], [0, 0, 0, 0]]))
        >>> metric = InsertionDeletion(steps=4, substrate="zeros")
        >>> metric.update(first_pixel, torch.ones(1, 1, 2, 2), torch.tensor([[[4.0, 3], [2, 1]]]), torch.tensor([0]))
        >>> metric.compute()["overall"]
        tensor(0.3749)
    """

    ways = ("insertion", "deletion")
    prefix = "overall_"
    higher_is_better = None
    plot_lower_bound = -1.0

    def compute(self) -> dict[str, Tensor]:
        """Three scalars, float32."""
        insertion, deletion = self._area("insertion"), self._area("deletion")
        return {"insertion": insertion, "deletion": deletion, "overall": insertion - deletion}


class PointingGame(_Sums):
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
        if average not in ("micro", "macro") or (average == "macro") != (num_classes is not None):
            raise ValueError(f"average is 'micro', or 'macro' with num_classes=; got {average!r} with num_classes={num_classes}")
        self.tolerance, self.relative_tolerance, self.average = tolerance, relative_tolerance, average
        self._sum("pointing_hits", "pointing_trials", shape=(num_classes or 1,))
        self._sum("pointing_undefined", "pointing_skipped")

    def update(self, maps: Tensor, masks: Tensor, classes: Tensor | None = None) -> None:
        """Add a batch: (N, H, W) maps, (N, H, W) masks of the object, (N,) int64 classes for "macro"."""
        seen = pointing_game(maps, masks, tolerance=self.tolerance, relative_tolerance=self.relative_tolerance)
        if self.average == "macro" and (classes is None or classes.shape != seen.value.shape):
            raise ValueError(f"average='macro' needs the classes of the {len(maps)} images, shape ({len(maps)},)")
        at = torch.zeros_like(seen.counted, dtype=torch.long)
        at = at if self.average == "micro" or classes is None else classes.to(at)
        empty = torch.zeros_like(self.pointing_hits, dtype=torch.float32, device=maps.device)
        self._add(
            pointing_hits=empty.index_add(0, at, seen.value),
            pointing_trials=empty.index_add(0, at, seen.counted.float()),
            pointing_undefined=seen.undefined.sum(),
            pointing_skipped=(~seen.counted).sum(),
        )

    def compute(self) -> Tensor:
        """Scalar float32."""
        accuracy, seen = self.pointing_hits / self.pointing_trials.clamp(min=1), self.pointing_trials > 0
        return _mean(accuracy.sum(), seen.sum())


class _Mean(_Sums):
    """Mean of the values of a `Located`; `prefix`_sum, _count, _undefined (they score 0) and _skipped are its states."""

    prefix: str

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._sum(*(f"{self.prefix}_{name}" for name in ("sum", "count", "undefined", "skipped")))

    def _take(self, seen: Located) -> None:
        parts = {
            "sum": _total(seen.value * seen.counted),
            "count": seen.counted.sum(),
            "undefined": seen.undefined.sum(),
            "skipped": (~seen.counted).sum(),
        }
        self._add(**{f"{self.prefix}_{name}": value for name, value in parts.items()})

    def compute(self) -> Tensor:
        """Scalar float32."""
        return _mean(getattr(self, f"{self.prefix}_sum"), getattr(self, f"{self.prefix}_count"))


class EnergyPointingGame(_Mean):
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
        self.above_chance = above_chance

    def update(self, maps: Tensor, masks: Tensor) -> None:
        """Add a batch: (N, H, W) maps, not negative, and (N, H, W) masks of the object."""
        self._take(energy_pointing_game(maps, masks, above_chance=self.above_chance))


class MaskIoU(_Mean):
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
        self.threshold = threshold

    def update(self, first: Tensor, second: Tensor) -> None:
        """Add a batch: (N, H, W) twice, bool masks or maps."""
        self._take(mask_iou(first, second, threshold=self.threshold))


class LocalisationError(_Mean):
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
        self.threshold, self.iou = threshold, iou

    def update(self, maps: Tensor, truth: Sequence[Tensor], correct: Tensor | None = None) -> None:
        """Add a batch: (N, H, W) maps, for each image its true boxes (k, 4), and whether its class was predicted right."""
        self._take(localisation_error(boxes_from_maps(maps, threshold=self.threshold), truth, iou=self.iou, correct=correct))


class MapChange(_Mean):
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
        self.grid = grid

    def update(self, before: Tensor, after: Tensor) -> None:
        """Add the pairs of a batch: (N, h, w) maps of the same images, not negative."""
        seen = map_change(before, after, grid=self.grid)
        self._take(Located(seen.change, seen.counted, ~seen.counted))

    def compute(self) -> Tensor:
        """Scalar float32."""
        mean = super().compute()
        return torch.where(self.change_count > 0, mean, torch.ones_like(mean))


def _total(values: Tensor, **dim: int) -> Tensor:
    """Their sum, in float64 where there is one."""
    return values.sum(dtype=torch.float32 if values.device.type in _NO_FLOAT64 else torch.float64, **dim)


_CURVE_OPTIONS = ("substrate", "spacing", "activation", "chunk", "output", "preprocess")


def _mean(total: Tensor, count: Tensor) -> Tensor:
    """float32; 0 of nothing."""
    return (total / count.clamp(min=1)).float()
