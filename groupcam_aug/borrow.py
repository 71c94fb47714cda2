"""Borrowing a network: evaluation mode for a moment, then everything exactly as it was found.

`as_found` borrows the whole network, `capture` the output of one of its layers. Both are context managers that leave
nothing behind, whether the body ends or raises.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from groupcam_aug.relus import ReLUBehind
from groupcam_aug.restore import hooked, mode_stacks, restoring, undo
from groupcam_aug.threads import by_this_thread, first_layer, is_watching, one_thread, warn_of_other_threads

__all__ = ["Capture", "as_found", "capture", "compiled_code", "half_precision", "plain_arithmetic", "unwrap"]


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
    """Borrow `model` in evaluation mode; give it back exactly as it was, exception, Ctrl-C or not.

    Inside: every module is in eval mode, gradients are off, `torch.compile`d parts run eagerly, and an enclosing autocast
    region goes on with its weight cache off (a cached no-grad cast would starve the caller's own backward pass of gradients).
    Copies stand in for the buffers, so whatever writes there in eval mode (quantisation observers, hand-written statistics)
    leaves the network's own alone, and what an unfinished backward pass saved of them.
    Afterwards: each module's own `training` flag, its buffers, the random-number state of the CPU and of `device`, grad mode
    and autocast are as before. Parameters and `.grad` are never written.

    Threads that borrow the same network wait for each other; one that trains it meanwhile is warned. The random numbers are
    those of the whole process: what other threads draw in between is drawn again.

    Args:
        model: the bare network (see `unwrap`).
        device: where it runs; the generator of an accelerator is kept as well. Default: CPU only.

    Yields:
        `model` itself.
    """
    steps: list[Callable[[], object]] = []  # each before its change, see `restore`
    grad = torch.is_grad_enabled()
    inference = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
    with one_thread(model), restoring(partial(undo, steps)), inference:
        _keep_random_numbers(steps, device)  # last to be undone: it fails on a device that is broken
        steps.append(mode_stacks())
        steps.append(partial(torch.set_grad_enabled, grad))
        torch.set_grad_enabled(False)
        if "torch._dynamo" in sys.modules:  # not imported = nothing compiled in this process, and the import takes seconds
            steps.append(partial(_eager.leave, ticket := object()))
            _eager.join(ticket)
        steps.append(partial(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled()))
        torch.set_autocast_cache_enabled(False)
        modules = list(model.modules())
        modes = [(module, module.training) for module in modules]
        in_training = [(module, False) for module, training in modes if training]
        steps.append(partial(_set_modes, modes))
        _set_modes(in_training)
        buffers = _buffers_of(modules)
        steps.append(partial(_set_buffers, buffers))
        _set_buffers(_copied(buffers))
        with hooked([(first_layer(model)._forward_pre_hooks, warn_of_other_threads(model))] if in_training else []):
            yield model


@contextmanager
def compiled_code(model: nn.Module) -> Iterator[None]:
    """Inside `as_found`: `torch.compile`d code runs as such, not eagerly, in this block.

    The hook that notices other threads is out of the way: it is another one in each `as_found`, and would be compiled anew.
    """
    table = first_layer(model)._forward_pre_hooks
    watching = {key: hook for key, hook in table.items() if is_watching(hook)}

    def restore() -> None:
        table.update(watching)
        _eager.resume()

    with restoring(restore):
        for key in watching:
            del table[key]
        _eager.pause()
        yield


class Capture:
    """What `capture` gives: `output`, the layer's last output, and `calls`, how often the layer ran in this thread.

    `elsewhere` names another thread that ran the layer meanwhile; its passes are let through untouched.
    """

    def __init__(self, name: str) -> None:
        self.name, self.calls, self.output, self.elsewhere = name, 0, None, ""
        self.relu: ReLUBehind | None = None  # whose result is meant

    output: Any

    def one(self) -> Tensor:
        """The output, of a layer that must have run exactly once and returned a tensor.

        Raises:
            RuntimeError: the layer did not run, ran several times, or returned something else.
        """
        if self.calls == 0:
            raise RuntimeError(self.silence())
        if self.calls > 1:
            raise RuntimeError(
                f"layer {self.name!r} fired {self.calls} times in one forward pass (a shared module): its map would be "
                "ambiguous. Choose a layer that is used once, for instance its parent"
            )
        if self.relu is not None and self.relu.output is not None:
            raise RuntimeError(f"the network applied a ReLU to the output of layer {self.name!r} before, and now does not")
        if not isinstance(self.output, Tensor):
            raise RuntimeError(f"layer {self.name!r} returned {type(self.output).__name__}, not a tensor; choose another layer")
        return self.output

    def silence(self) -> str:
        """Why there is no output, of a layer that did not run."""
        if self.elsewhere:
            return f"layer {self.name!r} ran in thread {self.elsewhere!r} only: a map needs a forward pass within one thread"
        return f"layer {self.name!r} never fired during the forward pass: nothing calls it in eval mode"


@contextmanager
def capture(
    layer: nn.Module, name: str = "", *, replace: Callable[[Tensor], Tensor] | None = None, rectified: bool = False
) -> Iterator[Capture]:
    """Observe one layer for the length of a `with` block.

    The network goes on with a copy of the layer's output, so that an in-place operation behind the layer cannot overwrite
    what was captured.

    Args:
        layer: a sub-module of a network.
        name: how to call it in errors.
        replace: maps the output (a tensor) to what is kept as `.output`; the network goes on with a copy of the result.
            Default: keep the output itself.
        rectified: observe the result of the ReLU that the network applies to the output (see `relus.is_rectified`) in place of
            the output.

    Yields:
        A `Capture`, filled when the layer runs.
    """
    captured = Capture(name or type(layer).__name__)
    mine = by_this_thread()

    def keep(output: Tensor) -> Tensor:
        captured.output = output if replace is None else replace(output)
        return captured.output.clone()

    captured.relu = ReLUBehind(keep) if rectified else None

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        if not mine():  # another thread's pass is none of ours
            captured.elsewhere = threading.current_thread().name
            return None
        captured.calls += 1
        captured.output = output
        if not isinstance(output, Tensor):
            return None
        if captured.relu is None:
            return keep(output)
        captured.relu.output = output.clone()
        return captured.relu.output

    with hooked([(layer._forward_hooks, hook)]), captured.relu or nullcontext():
        yield captured


def plain_arithmetic(device: torch.device) -> Any:
    """A context without autocast on `device`: saliency arithmetic stays in the precision it is written in."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


@contextmanager
def half_precision(device: torch.device) -> Iterator[None]:
    """Autocast to bfloat16 on `device`; weights are cast once, not once a pass as where a training's graph is in reach."""
    kind = device.type
    steps: list[Callable[[], object]] = []
    with restoring(partial(undo, steps)):
        steps.append(torch.clear_autocast_cache)  # of casts without a graph, and of those from before a change of weights
        steps.append(partial(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled()))
        steps.append(partial(torch.set_autocast_enabled, kind, torch.is_autocast_enabled(kind)))
        steps.append(partial(torch.set_autocast_dtype, kind, torch.get_autocast_dtype(kind)))
        torch.clear_autocast_cache()
        torch.set_autocast_cache_enabled(True)
        torch.set_autocast_dtype(kind, torch.bfloat16)
        torch.set_autocast_enabled(kind, True)
        yield


def _set_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    # Assignment rather than .eval()/.train(): no override of the user's runs, and frozen modules stay frozen. Past
    # nn.Module.__setattr__, which costs a millisecond per pass over a ResNet-50; a ScriptModule keeps its flag elsewhere.
    for module, training in modes:
        if isinstance(module, torch.jit.ScriptModule):
            module.training = training
        else:
            object.__setattr__(module, "training", training)


_Buffer = tuple[Any, str, Tensor]  # a module's table, a name, the tensor


def _buffers_of(modules: list[nn.Module]) -> list[_Buffer]:
    return [
        (module._buffers, name, buffer)
        for module in modules
        if module._buffers
        for name, buffer in module._buffers.items()
        if buffer is not None and not is_lazy(buffer)
    ]


def _set_buffers(buffers: list[_Buffer]) -> None:
    for table, name, buffer in buffers:
        table[name] = buffer


def _copied(buffers: list[_Buffer]) -> list[_Buffer]:
    """Copies in the same places; a tensor that is in several stays one."""
    originals = {id(buffer): buffer for *_, buffer in buffers}
    copies: dict[int, Tensor] = {}
    alike: dict[Any, list[int]] = {}
    for key, buffer in originals.items():
        if isinstance(buffer, Tensor) and type(buffer) is Tensor and buffer.layout == torch.strided and not buffer.is_quantized:
            copies[key] = torch.empty_like(buffer)
            alike.setdefault((buffer.device, buffer.dtype), []).append(key)
        else:
            copies[key] = buffer.clone()
    for keys in alike.values():  # a ResNet-50 has 159: on an accelerator two launches, not 159
        torch._foreach_copy_([copies[key] for key in keys], [originals[key] for key in keys])
    return [(table, name, copies[id(buffer)]) for table, name, buffer in buffers]


def _keep_random_numbers(steps: list[Callable[[], object]], device: torch.device | None) -> None:
    if device is not None and device.type not in ("cpu", "meta"):
        source = torch.get_device_module(device)
        index = () if device.type == "mps" else (source.current_device() if device.index is None else device.index,)
        steps.append(partial(source.set_rng_state, source.get_rng_state(*index), *index))
    steps.append(partial(torch.set_rng_state, torch.get_rng_state()))


class _Eager:
    """`torch.compile`d code runs eagerly while anybody holds a ticket; the setting is the whole process's."""

    def __init__(self) -> None:
        self.tickets: set[object] = set()
        self.before: Any = None  # the setting to go back to
        self.guard = threading.Lock()

    def join(self, ticket: object) -> None:
        from torch._dynamo import eval_frame

        with self.guard:
            self.tickets.add(ticket)
            # `torch.compiler.set_stance` sets first and tells the former setting after: an interrupt in between would lose it.
            if self.before is None:
                self.before = eval_frame._stance
            eval_frame._set_stance(eval_frame.DynamoStance("force_eager"))

    def pause(self) -> None:
        """Compiled code runs as such, until `resume`."""
        from torch._dynamo import eval_frame

        with self.guard:
            if self.before is not None:
                eval_frame._set_stance(self.before)

    def resume(self) -> None:
        from torch._dynamo import eval_frame

        with self.guard:
            if self.before is not None:
                eval_frame._set_stance(eval_frame.DynamoStance("force_eager"))

    def leave(self, ticket: object) -> None:
        from torch._dynamo import eval_frame

        with self.guard:
            self.tickets.discard(ticket)
            if not self.tickets and self.before is not None:
                eval_frame._set_stance(self.before)
                self.before = None


_eager = _Eager()
