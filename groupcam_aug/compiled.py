"""Scoring passes through `torch.compile`: few static shapes, and eager passes where a network cannot be compiled."""

from __future__ import annotations

import time
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from groupcam_aug.borrow import compiled_code
from groupcam_aug.memory import is_out_of_memory
from groupcam_aug.outputs import warn_once

__all__ = ["CompiledForward", "rows_of_a_pass"]

BACKEND = "inductor"  # torch.compile's own default
_FIXED = 64  # images per pass up to which their number is taken as it is; larger ones follow the batch, and are rounded


class CompiledForward:
    """A network's forward in eval mode without gradients, compiled at its first call.

    Weights are inputs of the compiled code, so training steps do not compile again. Where compiling fails, or the compiled code
    does, passes are eager from then on, with one warning. Under a counter of operations they are eager as well. A copy or a
    pickle of it starts anew.

    Args:
        network: the bare network, borrowed for each call (see `borrow.as_found`).
        forward: images, and further inputs of the network -> what it returns.
    """

    def __init__(self, network: nn.Module, forward: Callable[..., Any]) -> None:
        self.network, self.forward = network, forward
        self.graphs = 0  # compiled so far
        self.seconds = 0.0  # of the calls that compiled them
        self.refusal = ""  # why passes are eager
        self._call: Callable[..., Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.network, self.forward)

    def __call__(self, images: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the network returns for (N, C, H, W) images and its further inputs; compiles where their shapes are new."""
        if self.refusal or _get_current_dispatch_mode() is not None:
            return self.forward(images, *args, **kwargs)
        graphs, began = self.graphs, time.perf_counter()
        try:
            self._call = self._call or torch.compile(_code_of_its_own(self.forward), dynamic=False, backend=self._compile)
            with compiled_code(self.network):
                result = self._call(images, *args, **kwargs)
        except Exception as error:  # of any class: of the compiler, a C++ compiler that is missing, the network itself
            if is_out_of_memory(error):
                raise
            result = self.forward(images, *args, **kwargs)  # an error of the network comes again here
            self._refuse(f"{type(error).__name__}: {' '.join(str(error).split()):.200}")
        if self.graphs > graphs:
            self.seconds += time.perf_counter() - began
        if not self.graphs and not self.refusal:
            self._refuse("it found nothing to compile")
        return result

    def _compile(self, graph: Any, inputs: Any) -> Any:
        from torch._dynamo import lookup_backend  # seconds of import, for those who compile

        compiled = lookup_backend(BACKEND)(graph, inputs)
        self.graphs += 1
        return compiled

    def _refuse(self, reason: str) -> None:
        self.refusal = reason
        warn_once(
            self.network,
            "compile",
            f"compile=True has no effect: {type(self.network).__name__} runs eagerly, for torch.compile failed ({reason})",
        )

    def summary(self) -> str:
        """What compiling took, for people."""
        if self.refusal:
            return "scoring passes are eager, for compiling failed"
        return f"scoring passes compiled in {self.seconds:.0f} s, {self.graphs} graph{'' if self.graphs == 1 else 's'}"


def _code_of_its_own(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward`, in code that no other function has: torch.compile gives up on code, whoever runs it, after a few graphs."""

    def call(images: Tensor, *args: Any, **kwargs: Any) -> Any:
        return forward(images, *args, **kwargs)

    return types.FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)


def rows_of_a_pass(most: int, images: int) -> int:
    """How many images each pass takes, of `images` in all and at most `most`: few different numbers in a run, each of them
    a shape to compile, and less than twice as many rows as images.
    """
    rows = most if most <= _FIXED else 1 << (most.bit_length() - 1)
    while rows // 2 >= images:
        rows //= 2
    return rows
