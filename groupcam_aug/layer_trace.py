"""What happens in one forward pass of one image: which modules fire, what they return, and what of it matters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from groupcam_aug.borrow import as_found
from groupcam_aug.grid import Grid, guess_grid, is_attention, is_doubtful
from groupcam_aug.restore import hooked
from groupcam_aug.spatial_check import changed_images, is_shown_on_both_sides, moved, spatial_hits, tokens_shown

__all__ = ["Event", "doubtful", "has_weights", "influential", "show_grids", "token_counts", "trace", "usable"]


class Event(NamedTuple):
    """One module's return during a traced forward pass."""

    name: str
    module: nn.Module
    inputs: tuple[Any, ...]
    output: Tensor
    grid: Grid | None


@contextmanager
def trace(model: nn.Module, size: tuple[int, int], names: Sequence[str] | None = None) -> Iterator[list[Event]]:
    """The tensor output for one image of every sub-module, or of `names`, in the order in which the modules finish."""
    events: list[Event] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                grid = guess_grid(output, size, strict=True) if output.ndim and len(output) == 1 else None
                events.append(Event(name, module, inputs, output, grid))

        return hook

    watched = [name for name, _ in model.named_modules() if name] if names is None else names
    with hooked((model.get_submodule(name)._forward_hooks, watch(name)) for name in watched):
        yield events


def usable(events: list[Event]) -> list[Event]:
    """Modules that fire once and return one grid of more than one position."""
    calls = Counter(event.name for event in events)
    return [e for e in events if calls[e.name] == 1 and e.grid is not None and e.grid.height * e.grid.width > 1]


def token_counts(events: list[Event]) -> set[int]:
    """How many tokens there are in the outputs (1, T, K)."""
    return {event.output.shape[1] for event in events if event.output.ndim == 3 and event.output.shape[1] > 1}


def doubtful(events: list[Event], size: tuple[int, int]) -> list[Event]:
    """Those whose shape alone does not say where the grid is: tokens, either of two readings, attention weights.

    Args:
        events: of all modules.
        size: of the image, (height, width).
    """
    tokens = token_counts(events)
    return [event for event in events if is_doubtful(event.output, size) or is_attention(event.output, tokens)]


def show_grids(
    model: nn.Module,
    forward: Callable[[Tensor], Tensor],
    probe: Tensor,
    events: list[Event],
    stated: tuple[int, ...] | None,
    tokens: set[int],
) -> dict[str, tuple[Grid | None, bool]]:
    """The grids of outputs whose shape alone does not say it (see `doubtful`), of modules that fire once.

    Args:
        model: the bare network, in eval mode.
        forward: images -> logits through `model`.
        probe: see `probe_image`.
        events: of a pass of the probe.
        stated: (rows, columns) or (rows, columns, tokens in front) of token outputs, taken as it is; or None.
        tokens: see `token_counts`.

    Returns:
        By name: the grid, None if none is shown; and whether changes of the image move the output at all.
    """
    size = (probe.shape[-2], probe.shape[-1])
    calls = Counter(event.name for event in events)
    before = {event.name: event.output for event in events if calls[event.name] == 1 and len(event.output) == 1}
    shown: dict[str, tuple[Grid | None, bool]] = {}
    if stated is not None:
        fitting = {name: _as_stated(output, stated) for name, output in before.items()}
        shown = {name: (grid, False) for name, grid in fitting.items() if grid is not None or before[name].ndim == 3}
        before = {name: output for name, output in before.items() if name not in shown}
    distances: dict[str, list[list[Tensor]]] = {name: [] for name in before}
    images = list(changed_images(probe)) if before else []
    for changed in images:
        with trace(model, size, list(before)) as again, as_found(model, probe.device):
            forward(changed)
        for event in again:
            if event.output.shape == before[event.name].shape:
                channels = (1, 3) if event.output.ndim == 4 else (2,)
                distances[event.name].append([moved(before[event.name], event.output, axis) for axis in channels])
    for event in events:
        passes = distances.get(event.name, [])
        if not passes or len(passes) < len(images):
            continue  # it does not fire in each pass, or returns another shape
        moves = [torch.stack(one) for one in zip(*passes, strict=True)]
        if event.output.ndim == 4:
            first, last = tuple(event.output.shape[2:]), tuple(event.output.shape[1:3])
            readings = Grid("channels first", *first), Grid("channels last", *last)
            hits = [spatial_hits(move, reading) for move, reading in zip(moves, readings, strict=True)]
            better = int(hits[1] > hits[0])
            unlikely = is_attention(event.output, tokens) and not is_shown_on_both_sides(moves[better], readings[better])
            shown[event.name] = (None if unlikely else readings[better], True)
        else:
            guess = guess_grid(event.output, size, strict=True)
            shown[event.name] = (tokens_shown(moves[0], size, guess), bool((moves[0] > 0).any()))
    return shown


def influential(model: nn.Module, forward: Callable[[Tensor], Tensor], probe: Tensor, events: list[Event]) -> set[str]:
    """Names of those among `events`, modules that fire once, whose positions influence what the classifier reads."""
    grids = {event.name: event.grid for event in events if event.grid is not None}
    with torch.enable_grad(), trace(model, (probe.shape[-2], probe.shape[-1])) as again:
        image = probe.clone().requires_grad_()
        logits = forward(image)
        # Not the logits themselves: a freshly made head of zeros would hide every influence on them. A ramp, since the plain
        # sum of a normalised layer is constant.
        around = {name[:i] for name in grids for i, letter in enumerate(name) if letter == "."}
        read = _read_by_classifier(again, logits, image, around)
        value = (read * torch.linspace(-1, 1, read.numel(), device=read.device).view_as(read)).sum()
        if not value.requires_grad:  # the network detaches its classifier: nothing can be told
            return set(grids)
        reached = [event for event in again if event.name in grids and event.output.requires_grad]
        slopes = torch.autograd.grad(value, [event.output for event in reached], allow_unused=True) if reached else ()
    return {
        event.name
        for event, slope in zip(reached, slopes, strict=True)
        if slope is not None and bool((grids[event.name].read(slope) != 0).any())
    }


def has_weights(module: nn.Module, *, recurse: bool = True) -> bool:
    """Whether a module has convolution or linear weights, itself or (`recurse`) in a sub-module."""
    return any(parameter.ndim > 1 for parameter in module.parameters(recurse))


def _as_stated(output: Tensor, stated: tuple[int, ...]) -> Grid | None:
    rows, columns = stated[:2]
    if output.ndim == 4:
        if tuple(output.shape[2:]) == (rows, columns):
            return Grid("channels first", rows, columns)
        return Grid("channels last", rows, columns) if tuple(output.shape[1:3]) == (rows, columns) else None
    prefix = stated[2] if len(stated) > 2 else output.shape[1] - rows * columns
    return Grid("tokens", rows, columns, prefix) if 0 <= prefix <= output.shape[1] - rows * columns else None


def _read_by_classifier(events: list[Event], logits: Tensor, image: Tensor, around: set[str]) -> Tensor:
    """What enters the last module with parameters that sees the image and is not around the layers, or the logits."""
    for event in reversed(events):
        for value in event.inputs if event.module._parameters and event.name not in around else ():
            if isinstance(value, Tensor) and value.requires_grad:
                (slope,) = torch.autograd.grad(value.sum(), image, retain_graph=True, allow_unused=True)
                if slope is not None:  # else texts of classes, prompts
                    return value.float()
    return logits.float()
