"""What a network's outputs tell about it, looked at once: probabilities already, rows that mix, no numbers at all."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from groupcam_aug.spatial_check import probe_image

__all__ = [
    "ends_in_probabilities",
    "mixes_rows",
    "no_numbers",
    "not_numbers",
    "sum_to_one",
    "warn_once",
    "why_not_finite",
]

_mixes: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_warned: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()
_aten = torch.ops.aten
_SQUASHING = {_aten.sigmoid.default, _aten.sigmoid_.default, _aten.hardsigmoid.default, _aten._softmax.default}


def ends_in_probabilities(forward: Callable[[Tensor], Tensor], images: Tensor) -> bool:
    """Whether the outputs are probabilities already: rows that sum to 1, or what a sigmoid or softmax returned.

    Values in [0, 1] alone do not say so: logits of few classes, or of a fresh head, may lie there as well.

    Args:
        forward: images -> (N, classes) outputs; called once, with a synthetic image.
        images: (N, C, H, W), at least one; only shape, dtype and device matter.
    """
    with _Squashed() as squashed:
        outputs = forward(probe_image(images))
    if outputs.ndim != 2:  # of a single image the network dropped the rows
        return False
    if sum_to_one(outputs):
        return True
    outputs = outputs.float()
    # One column more than the outputs: of two classes some return the second alone.
    most = len(outputs) * (outputs.shape[-1] + 1)
    values = [value.flatten().float() for value in squashed.outputs if value.numel() <= most]
    return bool(torch.isin(outputs, torch.cat([*values, outputs.new_zeros(0)])).all())


def sum_to_one(outputs: Tensor) -> bool:
    """Whether (N, classes) outputs are not negative and each row has a sum of 1. Waits for the device."""
    tolerance = 1e-2 if outputs.dtype in (torch.float16, torch.bfloat16) else 1e-3
    wide = outputs.float()
    return outputs.shape[-1] > 1 and bool(((wide >= 0).all(dim=1) & ((wide.sum(dim=1) - 1).abs() < tolerance)).all())


def mixes_rows(network: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor) -> bool:
    """Whether an image's logits depend on the others of its batch; found once in a network's life, with a warning.

    A synthetic image runs alone and beside another. A network that draws random numbers differs from itself as well, and
    is not said to mix. One that tells the two images not apart (a head that starts at zero), or returns NaN, is looked at again
    the next time. One that cannot run a single image is warned of, and not judged.

    Args:
        network: in eval mode.
        forward: images -> logits through it.
        images: (N, C, H, W), at least one.
    """
    if network in _mixes:
        return _mixes[network]
    name, image = type(network).__name__, probe_image(images)
    try:
        alone, both = forward(image), forward(torch.cat([image, image.flip(1, 2, 3).square()]))
        beside, other = both[:1], both[1:]
        if not alone.isfinite().all() or not _differ(alone, other, 1e-6):
            return False
        # Rounding differs with the size of a batch, but not from pass to pass.
        half = 2 if alone.dtype in (torch.float16, torch.bfloat16) else 1
        _mixes[network] = _differ(alone, beside, 2e-2 * half) and not _differ(alone, forward(image), 2e-3 * half)
    except torch.OutOfMemoryError:
        return False  # no word on the network, which is looked at the next time
    except (RuntimeError, ValueError) as error:
        _mixes[network] = False
        warnings.warn(
            f"{name} does not run on one image and on two ({error}), so it could not be looked whether an image's map depends on "
            "the other images of its batch",
            stacklevel=2,
        )
        return False
    if _mixes[network]:
        warnings.warn(
            f"in {name} the images of a batch influence each other in eval mode (a BatchNorm without running statistics?): they "
            "are run one by one, which takes longer",
            stacklevel=2,
        )
    return _mixes[network]


def why_not_finite(network: nn.Module) -> str:
    """Why a network's outputs are no numbers, for a message: which of its parameters or buffers is none, else overflow."""
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            return (
                f"{name!r} of {type(network).__name__} holds NaN or infinity (a training that diverged, or a damaged file): it "
                "is the network, not the images"
            )
    return f"the parameters of {type(network).__name__} are finite, but its activations overflow or turn into NaN; try float32"


def not_numbers(logits: Tensor) -> Tensor:
    """(N,) bool: the rows of (N, ...) logits that give no probabilities; -inf for some classes is fine."""
    return ~logits.detach().float().reshape(len(logits), -1).softmax(dim=1).isfinite().all(dim=1)


def no_numbers(network: nn.Module, bad: int, images: int) -> str:
    """What to tell of a network whose outputs are `not_numbers` for ``bad`` (at least 1) of the images."""
    return f"the network returns no finite numbers for {bad} of {images} images: {why_not_finite(network)}"


def warn_once(network: nn.Module, kind: str, message: str) -> None:
    """Warn of one kind of thing once in the life of a network, however many objects look at it."""
    said = _warned.setdefault(network, set())
    if kind not in said:
        said.add(kind)
        warnings.warn(message, stacklevel=2)


class _Squashed(TorchDispatchMode):
    """Keeps the outputs of every sigmoid and softmax called inside, by whatever name."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _SQUASHING:
            self.outputs.append(result)
        return result


def _differ(first: Tensor, second: Tensor, tolerance: float) -> bool:
    first, second = first.float(), second.float()
    scale = torch.maximum(first.abs().amax(), second.abs().amax())
    return bool((first - second).abs().amax() > tolerance * scale)  # NaN compares with nothing: no word on rows
