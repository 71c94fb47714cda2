"""Running only what follows a layer: the network again from another output of that layer on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from groupcam_aug.borrow import capture

__all__ = ["Tail"]


class Tail:
    """The part of `model` behind its layer `name`.

    One full forward pass is recorded: the outputs of the modules beside the path from the root to the layer that finish
    before it. A replay calls the model with those modules, and the layer itself, answering from the record, so that real
    work begins behind the layer. No graph is traced and no module is rebuilt; functional operations in front of the layer
    run again (correct, at their cost). What skips around the layer carries the recorded images.

    Args:
        model: the bare network, in eval mode.
        name: the layer, as in `model.named_modules()`.
        forward: images -> logits through `model`.
    """

    def __init__(self, model: nn.Module, name: str, forward: Callable[[Tensor], Tensor]) -> None:
        self.name, self.forward = name, forward
        self.layer = model.get_submodule(name)
        path = name.split(".")
        parents = [model.get_submodule(".".join(path[:depth])) for depth in range(len(path))]
        on_path = {id(module) for module in [*parents, self.layer]}
        self.beside = {id(child): child for parent in parents for child in parent.children() if id(child) not in on_path}
        self.record: dict[int, list[Any]] = {}
        self.images: Tensor | None = None

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the one forward pass made inside."""
        self.record = {}
        done: list[bool] = []

        def remember(module: nn.Module, args: Any, output: Any) -> None:
            if not done:
                self.record.setdefault(id(module), []).append(output)

        with ExitStack() as stack:
            for module in self.beside.values():
                stack.callback(module.register_forward_hook(remember).remove)
            stack.callback(self.layer.register_forward_hook(lambda *_: done.append(True)).remove)
            yield

    def run(self, images: Tensor, output: Tensor) -> Tensor:
        """Logits of the network if the layer had returned `output`, for the images of the recorded pass.

        Raises:
            RuntimeError: the layer did not answer exactly once, so the result would not depend on `output` as asked.
        """
        with ExitStack() as stack, capture(self.layer, self.name) as seen:
            stack.enter_context(_answering(self.layer, [output]))
            for key, outputs in self.record.items():
                stack.enter_context(_answering(self.beside[key], outputs))
            logits = self.forward(images)
            seen.one()
        return logits

    def check(self, images: Tensor, output: Tensor, logits: Tensor) -> None:
        """Replay the recorded pass itself: it must give the logits it gave.

        Raises:
            RuntimeError: it does not, so the network cannot be split here.
        """
        again = self.run(images, output)
        tolerance = 1e-2 if logits.dtype in (torch.float16, torch.bfloat16) else 1e-3
        scale = logits.float().abs().amax() + 1e-6
        if bool((again.float() - logits.float()).abs().amax() > tolerance * scale):
            raise RuntimeError(
                f"the network cannot be run from layer {self.name!r} on: replaying its own output changes the logits by up to "
                f"{float((again.float() - logits.float()).abs().amax()):.3g}. Mask at another layer, or at the input"
            )


@contextmanager
def _answering(module: nn.Module, outputs: list[Any]) -> Iterator[None]:
    """Let `module` return `outputs` for its first calls, then work as ever."""
    own = module.__dict__.get("forward")
    forward, answers = module.forward, iter(outputs)
    rest = object()

    def answer(*args: Any, **kwargs: Any) -> Any:
        value = next(answers, rest)
        return forward(*args, **kwargs) if value is rest else value

    object.__setattr__(module, "forward", answer)
    try:
        yield
    finally:
        if own is None:
            object.__delattr__(module, "forward")
        else:
            object.__setattr__(module, "forward", own)
