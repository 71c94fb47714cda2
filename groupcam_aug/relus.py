"""ReLUs as they are called, as modules or as functions: which calls are ones, and which layers go into nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from groupcam_aug.restore import hooked

__all__ = ["ReLUBehind", "is_clamp_at_zero", "is_rectified", "is_relu"]

_RELUS = {F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
_CLAMPS = {torch.clamp, torch.clamp_, torch.clamp_min, torch.clamp_min_, Tensor.clamp, Tensor.clamp_, Tensor.clamp_min} | {
    Tensor.clamp_min_,
    torch.clip,
    torch.clip_,
    Tensor.clip,
    Tensor.clip_,
}


def is_relu(function: Any) -> bool:
    """Whether a function that torch calls is a ReLU, in place or not."""
    return function in _RELUS


def is_clamp_at_zero(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call is a clamp that is a ReLU: everything below 0 becomes 0, nothing else changes."""
    if function not in _CLAMPS:
        return False
    low, high = [*args[1:], None, None][:2]
    low, high = kwargs.get("min", low), kwargs.get("max", high)
    return high is None and isinstance(low, int | float) and low == 0


def is_rectified(model: nn.Module, forward: Callable[[Tensor], Tensor], image: Tensor, name: str) -> bool:
    """Whether the network applies a ReLU to the output of layer `name` and uses that output for nothing else.

    Torchvision's DenseNet does so by a function behind its last normalisation, which no layer's name stands for.

    Args:
        model: the bare network, in eval mode.
        forward: images -> logits through `model`.
        image: (1, C, H, W).
        name: the layer, which fires once.
    """
    readers = _Readers()

    def watch(_module: nn.Module, _args: Any, output: Any) -> None:
        readers.output = output

    with torch.no_grad(), hooked([(model.get_submodule(name)._forward_hooks, watch)]), readers:
        forward(image)
    first, *others = readers.calls or [(None, False)]
    function, in_place = first
    return is_relu(function) and (in_place or not others)


class _Readers(TorchFunctionMode):
    """Inside, which functions are called on `output`, and whether they return it: (function, in place) in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.output: Any = None
        self.calls: list[tuple[Any, bool]] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # Tensors among lists too (torch.cat). What tells shape or device gives no tensor.
        given = [one for value in (*args, *kwargs.values()) for one in (value if isinstance(value, list | tuple) else [value])]
        if self.output is not None and isinstance(result, Tensor) and any(value is self.output for value in given):
            self.calls.append((func, result is self.output))
        return result


class ReLUBehind(TorchFunctionMode):
    """Inside, the result of the ReLU that is called on `output` is passed through `replace`, and the network goes on with that.

    So the ReLU's result can be observed as a layer's is. Where the ReLU works in place, the result is written there, too.

    Args:
        replace: rectified tensor -> the tensor that the network goes on with, of the same values.
    """

    def __init__(self, replace: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.replace, self.output = replace, None

    output: Any  # the tensor to wait for; None before there is one, and once its ReLU has been met

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.output is None or not is_relu(func) or (args[0] if args else kwargs["input"]) is not self.output:
            return result
        in_place, self.output = result is self.output, None
        if not in_place:
            return self.replace(result)
        return result.copy_(self.replace(result.clone()))  # whoever holds the tensor itself goes on with the same
