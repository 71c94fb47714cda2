"""Running only what follows a layer: the network again from another output of that layer on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from groupcam_aug.borrow import capture
from groupcam_aug.memory import is_out_of_memory
from groupcam_aug.restore import hooked, replaced
from groupcam_aug.threads import by_this_thread

__all__ = ["Tail", "TailKind", "structure"]

_log = logging.getLogger(__name__)

TailKind = Literal["recorded", "alone", "pooled"]


def structure(model: nn.Module) -> list[Any]:
    """What a network is built of, its modules and their settings that are words or flags: compare it to see an exchange."""
    return [(module, [v for v in vars(module).values() if isinstance(v, str | bool)]) for module in model.modules()]


class Tail:
    """The part of `model` behind its layer `name`.

    One full forward pass is recorded: the outputs of the modules beside the path from the root to the layer that finish
    before it. A replay calls the model with those modules, and the layer itself, answering from the record, so that real
    work begins behind the layer. No graph is traced and no module is rebuilt; functional operations in front of the layer
    run again (correct, at their cost).

    How a replay is made depends on what `check` finds, its `kind`:

    - "recorded": something leads around the layer, so replays carry the record of the same images.
    - "alone": nothing does. The record is replaced by blanks, which take no memory and fit any number of images.
    - "pooled": moreover, the tail sees only the mean over positions (global average pooling, then anything), so that
      averages (N, K, 1, 1) may be given instead of grids.

    Args:
        model: the bare network, in eval mode.
        name: the layer, as in `model.named_modules()`.
        forward: images -> logits through `model`.
        kind: as `check` found it in an earlier call, or None.
        nested: blank the tensors in tuples as well, as what a recurrent layer makes of a question. Default: only bare tensors;
            what a backbone hands on in tuples beside the path (tables of positions) is the same for any image.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        forward: Callable[[Tensor], Tensor],
        kind: TailKind | None = None,
        nested: bool = False,
    ) -> None:
        self.name, self.forward, self.nested = name, forward, nested
        self.kind: TailKind = kind or "recorded"
        self.layer = model.get_submodule(name)
        path = name.split(".")
        parents = [model.get_submodule(".".join(path[:depth])) for depth in range(len(path))]
        on_path = {id(module) for module in [*parents, self.layer]}
        self.beside = {id(child): child for parent in parents for child in parent.children() if id(child) not in on_path}
        self.record: dict[int, list[Any]] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the one forward pass made inside."""
        self.record = {}
        done: list[bool] = []

        mine = by_this_thread()

        def remember(module: nn.Module, args: Any, output: Any) -> None:
            if not done and mine():
                # Without its graph, which a network that switches gradients on by itself makes in any case.
                kept = tree_map_only(Tensor, Tensor.detach, output) if self.kind == "recorded" else self._blanks(output, 0.0)
                self.record.setdefault(id(module), []).append(kept)

        def finish(*_: Any) -> None:
            if mine():
                done.append(True)

        with hooked(
            [*((module._forward_hooks, remember) for module in self.beside.values()), (self.layer._forward_hooks, finish)]
        ):
            yield

    def run(self, images: Tensor, output: Tensor) -> Tensor:
        """Logits of the network if the layer had returned `output`, for the images of the recorded pass.

        Args:
            images: those of the recorded pass, (N, C, H, W).
            output: like the layer's; of any multiple of N rows unless the kind is "recorded", averages too if "pooled".

        Raises:
            RuntimeError: the layer did not answer exactly once, so the result would not depend on `output` as asked.
        """
        if self.kind == "recorded":
            return self._replay(images, output, self.record)
        return self._blanked(images, output, 0.0)

    def check(self, images: Tensor, output: Tensor, logits: Tensor, other: Tensor, *, grid: bool) -> TailKind:
        """Replay the recorded pass itself, which must give the logits it gave, and find the kind of this tail.

        Args:
            images: (N, C, H, W), of the recorded pass.
            output: what the layer returned.
            logits: what the network returned.
            other: another output of the layer, such as that of blurred images.
            grid: whether the outputs are (N, K, h, w).

        Raises:
            RuntimeError: the logits differ, so the network cannot be split here.
        """
        self.kind = "recorded"
        again = self.run(images, output)
        tolerance = 1e-2 if logits.dtype in (torch.float16, torch.bfloat16) else 1e-3
        scale = logits.float().abs().amax() + 1e-6
        if bool((again.float() - logits.float()).abs().amax() > tolerance * scale):
            raise RuntimeError(
                f"the network cannot be run from layer {self.name!r} on: replaying its own output changes the logits by up to "
                f"{float((again.float() - logits.float()).abs().amax()):.3g}"
            )
        both = torch.cat([output, other])
        expected = torch.cat([again, self.run(images, other)]).float()
        if not self._agrees("blanks", expected, lambda: self._blanked(images, both, float("nan"))):
            return self.kind
        self.kind = "alone"
        # Logits that are all equal, as of a head that starts at zero, would agree with anything.
        if grid and bool((again != expected[len(again) :]).any()):
            means = both.float().mean((2, 3), keepdim=True).to(both.dtype)
            if self._agrees("averages", expected, lambda: self.run(images, means)):
                self.kind = "pooled"
        return self.kind

    def still_pooled(self, images: Tensor, output: Tensor, logits: Tensor) -> bool:
        """Whether averages still give the logits of the recorded pass: a pooling with parameters may start as a mean.

        Arguments as for `check`. This waits for the device.
        """
        logits, again = logits.float(), self.run(images, output.float().mean((2, 3), keepdim=True).to(output.dtype)).float()
        tolerance = 5e-2 if output.dtype in (torch.float16, torch.bfloat16) else 1e-3
        return bool((again - logits).abs().amax() <= tolerance * (logits.abs().amax() + 1e-6))

    def _agrees(self, inputs: str, expected: Tensor, replay: Callable[[], Tensor]) -> bool:
        """Whether a shorter way gives the expected logits, measured by what tells the images and the others apart.

        If not, the longer way is taken, which costs more: the reason is logged at level DEBUG.
        """
        half = len(expected) // 2
        spread = (expected[:half] - expected[half:]).abs().amax()
        try:
            logits = replay()
        except Exception as error:  # of any class, those of other libraries too: a shortcut on trial must not stop a run
            if is_out_of_memory(error):
                raise  # no word on the network: smaller passes are next
            _log.debug("layer %r: what follows it does not run on %s: %r", self.name, inputs, error)
            return False
        tolerance = 5e-2 if logits.dtype in (torch.float16, torch.bfloat16) else 1e-3
        logits = logits.float()
        agrees = logits.shape == expected.shape and bool((logits - expected).abs().amax() <= tolerance * spread)
        if not agrees:
            _log.debug("layer %r: what follows it gives other logits on %s", self.name, inputs)
        return agrees

    def _blanked(self, images: Tensor, output: Tensor, value: float) -> Tensor:
        rows, count = len(output), len(images)
        record = {
            key: [self._blanks(one, value, lambda tensor: len(tensor) * rows // count) for one in outputs]
            for key, outputs in self.record.items()
        }
        return self._replay(_blank(images, rows, value), output, record)

    def _blanks(self, output: Any, value: float, rows: Callable[[Tensor], int] = len) -> Any:
        """What a module returned, its tensors blank, of `rows` rows in place of each one's."""

        def blank(tensor: Tensor) -> Any:
            return _blank(tensor, rows(tensor) if tensor.ndim else 0, value)

        if self.nested:
            return tree_map_only(Tensor, blank, output)
        return blank(output) if isinstance(output, Tensor) else output

    def _replay(self, images: Tensor, output: Tensor, record: dict[int, list[Any]]) -> Tensor:
        with ExitStack() as stack, capture(self.layer, self.name) as captured:
            stack.enter_context(_answering(self.layer, [output]))
            for key, outputs in record.items():
                stack.enter_context(_answering(self.beside[key], outputs))
            logits = self.forward(images)
            captured.one()
        return logits


def _blank(like: Any, rows: int, value: float) -> Any:
    """One number that looks like `rows` rows of a tensor."""
    if not isinstance(like, Tensor) or not like.ndim:
        return like
    return like.new_full((), value if like.is_floating_point() else 0).expand(rows, *like.shape[1:])


@contextmanager
def _answering(module: nn.Module, outputs: list[Any]) -> Iterator[None]:
    """Let `module` return `outputs` for its first calls, then work as ever."""
    forward, answers, mine = module.forward, iter(outputs), by_this_thread()
    rest = object()

    def answer(*args: Any, **kwargs: Any) -> Any:
        value = next(answers, rest) if mine() else rest
        return forward(*args, **kwargs) if value is rest else value

    with replaced(module, forward=answer):
        yield
