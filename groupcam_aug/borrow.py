"""Borrowing a network: evaluation mode for a moment, then everything exactly as it was found.

`as_found` borrows the whole network, `capture` the output of one of its layers. Both are context managers that leave
nothing behind, whether the body ends or raises.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["Capture", "as_found", "capture", "plain_arithmetic", "unwrap"]


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside `torch.compile(model)`, DistributedDataParallel or DataParallel, else `model` itself.

    A saliency pass must not go through a wrapper: DDP's forward broadcasts buffers (a collective, so ranks could no longer
    differ in what they map), and a compiled graph does not run hooks added after compilation.

    Raises:
        TypeError: for anything that is not a `torch.nn.Module`, and for TorchScript, whose calls run no Python hooks.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif type(model).__name__ == "_FabricModule":
            model = model.module  # type: ignore[assignment]
        elif "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]  # type: ignore[assignment]
        else:
            break
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"{model.original_name if hasattr(model, 'original_name') else type(model).__name__} is a ScriptModule: TorchScript "
            "runs no Python hooks, so no layer can be observed. Pass the original nn.Module"
        )
    return model


@contextmanager
def as_found(model: nn.Module, device: torch.device | None = None) -> Iterator[nn.Module]:
    """Borrow `model` in evaluation mode; give it back exactly as it was, exception or not.

    Inside: every module is in eval mode, gradients are off, `torch.compile`d parts run eagerly, and an enclosing autocast
    region goes on with its weight cache off (a cached no-grad cast would starve the caller's own backward pass of gradients).
    Afterwards: each module's own `training` flag, buffers that a forward pass changed in eval mode (quantisation observers,
    hand-written statistics), the random-number state of the CPU and of `device`, grad mode and autocast are as before.
    Parameters and `.grad` are never written.

    Args:
        model: the bare network (see `unwrap`).
        device: where it runs; the generator of an accelerator is kept as well. Default: CPU only.

    Yields:
        `model` itself.
    """
    with ExitStack() as stack:
        stack.callback(_restore_modes, _switch_to_eval(model))
        stack.callback(_restore_buffers, _loose_buffers(model))
        stack.enter_context(_forked_rng(device))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        kind = "cpu" if device is None else device.type
        if torch.is_autocast_enabled(kind):
            stack.enter_context(torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), cache_enabled=False))
        if "torch._dynamo" in sys.modules:  # not imported = nothing compiled in this process, and the import takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield model


class Capture:
    """What `capture` gives: `output`, the layer's last output, and `calls`, how often the layer ran."""

    def __init__(self, name: str) -> None:
        self.name, self.calls, self.output = name, 0, None

    output: Any

    def one(self) -> Tensor:
        """The output, of a layer that must have run exactly once and returned a tensor.

        Raises:
            RuntimeError: the layer did not run, ran several times, or returned something else.
        """
        if self.calls == 0:
            raise RuntimeError(f"layer {self.name!r} never fired during the forward pass: nothing calls it in eval mode")
        if self.calls > 1:
            raise RuntimeError(
                f"layer {self.name!r} fired {self.calls} times in one forward pass (a shared module): its map would be "
                "ambiguous. Choose a layer that is used once, for instance its parent"
            )
        if not isinstance(self.output, Tensor):
            raise RuntimeError(f"layer {self.name!r} returned {type(self.output).__name__}, not a tensor; choose another layer")
        return self.output


@contextmanager
def capture(layer: nn.Module, name: str = "", *, replace: Callable[[Tensor], Tensor] | None = None) -> Iterator[Capture]:
    """Observe one layer for the length of a `with` block.

    The network goes on with a copy of the layer's output, so that an in-place operation behind the layer cannot overwrite
    what was captured.

    Args:
        layer: a sub-module of a network.
        name: how to call it in errors.
        replace: maps the output (a tensor) to what is kept as `.output`; the network goes on with a copy of the result.
            Default: keep the output itself.

    Yields:
        A `Capture`, filled when the layer runs.
    """
    captured = Capture(name or type(layer).__name__)

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        captured.calls += 1
        captured.output = output
        if not isinstance(output, Tensor):
            return None
        if replace is not None:
            captured.output = replace(output)
        return captured.output.clone()

    handle = layer.register_forward_hook(hook)
    try:
        yield captured
    finally:
        handle.remove()


def plain_arithmetic(device: torch.device) -> Any:
    """A context without autocast on `device`: saliency arithmetic stays in the precision it is written in."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _switch_to_eval(model: nn.Module) -> list[nn.Module]:
    training = [module for module in model.modules() if module.training]
    _set_training(training, False)
    return training


def _restore_modes(training: list[nn.Module]) -> None:
    _set_training(training, True)


def _set_training(modules: list[nn.Module], flag: bool) -> None:
    # Assignment rather than .eval()/.train(): no override of the user's runs, and frozen modules stay frozen. Past
    # nn.Module.__setattr__, which costs a millisecond per pass over a ResNet-50; a ScriptModule keeps its flag elsewhere.
    for module in modules:
        if isinstance(module, torch.jit.ScriptModule):
            module.training = flag
        else:
            object.__setattr__(module, "training", flag)


_Buffer = tuple[nn.Module, str, Tensor, int, Tensor]


def _loose_buffers(model: nn.Module) -> list[_Buffer]:
    """Buffers that some module might write in eval mode, with a copy. BatchNorm's own cannot change there."""
    return [
        (module, name, buffer, -1 if buffer.is_inference() else buffer._version, buffer.clone())
        for module in model.modules()
        if not isinstance(module, _BatchNorm)
        for name, buffer in module._buffers.items()
        if buffer is not None and type(buffer) is Tensor
    ]


def _restore_buffers(buffers: list[_Buffer]) -> None:
    for module, name, buffer, version, copy in buffers:
        if version < 0 or buffer._version != version:
            with torch.no_grad():
                buffer.copy_(copy)
        if module._buffers.get(name) is not buffer:
            module._buffers[name] = buffer


def _forked_rng(device: torch.device | None) -> Any:
    if device is None or device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    if device.type == "mps":
        return _forked_mps_rng()
    index = torch.get_device_module(device).current_device() if device.index is None else device.index
    return torch.random.fork_rng(devices=[index], device_type=device.type)


@contextmanager
def _forked_mps_rng() -> Iterator[None]:
    state = torch.mps.get_rng_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.mps.set_rng_state(state)
