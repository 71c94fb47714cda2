"""What the torchmetrics classes share: states that are sums in float64, and the mean of the values that count.

Every state is a sum under a name of its own, so a value does not depend on how images are dealt out to batches and ranks, and
`MetricCollection` fuses nothing that differs. (It compares metrics after the first update: pass it `compute_groups=False` for
two of the same class.) Maps that order or point to nothing are counted in a state that ends in `undefined`. A network is
passed to `update` and never stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["MeanOfCounted", "SummedMetric", "mean", "total"]

_NO_FLOAT64 = {"mps"}  # devices that have no float64


class SummedMetric(Metric):
    """A metric whose states are sums in float64, with one scalar in [0, 1] unless a class says otherwise."""

    full_state_update = False
    is_differentiable = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def _add_sums(self, *names: str, shape: tuple[int, ...] = ()) -> None:
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
            states, defaults = ({name: value.float() for name, value in sums.items()} for sums in (states, defaults))
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


class MeanOfCounted(SummedMetric):
    """Mean of one value an image; its states are `prefix`_sum, _count, _undefined (they score 0) and _skipped (not counted)."""

    prefix: str

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._add_sums(*(f"{self.prefix}_{name}" for name in ("sum", "count", "undefined", "skipped")))

    def _take(self, value: Tensor, counted: Tensor, undefined: Tensor) -> None:
        """Add a batch, each (N,): values, and bool whether an image counts and whether its map is undefined."""
        parts = {"sum": total(value * counted), "count": counted.sum(), "undefined": undefined.sum(), "skipped": (~counted).sum()}
        self._add(**{f"{self.prefix}_{name}": part for name, part in parts.items()})

    def compute(self) -> Tensor:
        """Scalar float32."""
        return mean(getattr(self, f"{self.prefix}_sum"), getattr(self, f"{self.prefix}_count"))


def total(values: Tensor, **dim: int) -> Tensor:
    """The sum, in float64 where the device has it."""
    return values.sum(dtype=torch.float32 if values.device.type in _NO_FLOAT64 else torch.float64, **dim)


def mean(total: Tensor, count: Tensor) -> Tensor:
    """`total / count` in float32; 0 where nothing was counted."""
    return (total / count.clamp(min=1)).float()
