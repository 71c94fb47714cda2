"""Layers: find, name and check the one a map is taken from, and the one where masks inside the last stage are applied."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from groupcam_aug.borrow import as_found
from groupcam_aug.grid import Grid, guess_grid, is_doubtful
from groupcam_aug.restore import hooked
from groupcam_aug.spatial_check import changed_images, moved, probe_image, spatial_hits, tokens_shown

__all__ = ["find_layer", "find_stage", "get_layer", "patches_matter", "show_grid", "spatial_layers"]


def get_layer(model: nn.Module, name: str) -> nn.Module:
    """The sub-module called `name`, as in `model.named_modules()`.

    Raises:
        TypeError: `name` is no string.
        ValueError: no such module; the message lists the nearest names.
    """
    if isinstance(name, nn.Module):
        known = [path for path, module in model.named_modules() if module is name]
        raise TypeError(
            f"layer must be a module name, got a {type(name).__name__} itself: "
            + (f"write layer={known[0]!r}" if known else f"and it is no part of {type(model).__name__}")
        )
    if not isinstance(name, str):
        raise TypeError(f"layer must be a module name or None, got {type(name).__name__}")
    names = [path for path, _ in model.named_modules() if path]
    if name not in names:
        close = get_close_matches(name, names, n=5, cutoff=0.4) or [child for child, _ in model.named_children()]
        raise ValueError(f"{type(model).__name__} has no layer {name!r}; did you mean one of {close}?")
    return model.get_submodule(name)


def find_layer(
    model: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor, stated: tuple[int, ...] | None = None
) -> str:
    """Name of the last layer before the final pooling or classifier that has a spatial grid.

    The forward pass of one synthetic image is watched. A candidate returns a grid of more than one position, is no pooling,
    dropout or identity, shrinks its input by at most two (so a stage, not a whole backbone), and is not itself the classifier
    (as many channels as classes and no parameters behind it). The last to finish wins: `layer4` of a ResNet, `features.35`
    of VGG19, `features.12` of SqueezeNet 1.1. Tokens must be shown to be patches of the image (see `spatial_check`). Where class
    or register tokens stand beside the patches, the patches must also influence the logits: in a ViT that is the first
    normalisation of the last block. A warning says so where later layers with weights are passed over because they show no grid.

    Args:
        model: the bare network, already in eval mode (see `borrow.as_found`).
        forward: images -> logits through `model`.
        images: (N, C, H, W); only shape, dtype and device matter.
        stated: (rows, columns) or (rows, columns, tokens in front) of the patches, for token outputs; they are not checked then.

    Raises:
        ValueError: no layer qualifies.
    """
    size = (images.shape[-2], images.shape[-1])
    probe = probe_image(images)
    with _trace(model, size) as events, as_found(model, images.device):
        logits = forward(probe)
    picked = _candidates(events, logits)
    hidden: list[_Event] = []
    begin = next((i for i, event in enumerate(events) if picked and event is picked[-1]), 0)
    if any(is_doubtful(event.output, size) for event in events[begin:]):
        doubtful = [event for event in events if is_doubtful(event.output, size)]
        grids = _show(model, forward, probe, doubtful, stated)
        events = [event._replace(grid=grids.get(event.name, (event.grid,))[0]) for event in events]
        picked = _candidates(events, logits)
        shown = [i for i, event in enumerate(events) if event.grid is not None]
        hidden = [
            event
            for event in events[shown[-1] + 1 if shown else 0 :]
            if grids.get(event.name) == (None, True) and _has_weights(event.module) and not isinstance(event.module, nn.Linear)
        ]
    extra = picked and picked[-1].grid is not None and picked[-1].grid.extra(picked[-1].output)
    if extra:
        influential = _influential(model, forward, probe, picked)
        picked = [event for event in picked if event.name in influential]
    if not picked:
        raise ValueError(
            f"{type(model).__name__} has no layer with spatial activations before its classifier for images of {size[0]} x "
            f"{size[1]}: a map needs an output (N, K, h, w), (N, h, w, K) or (N, tokens, K) with more than one position. "
            "Name one with layer=, or use larger images"
            + (f". {_first(hidden)} shows no grid of the image; if it has one, state it with grid=" if hidden else "")
        )
    if hidden:
        warnings.warn(
            f"{type(model).__name__}: maps are taken from layer {picked[-1].name!r}, and not behind it, for {_first(hidden)} shows no "
            "grid of the image: changed patches do not move positions of their own. Name a layer with layer=, and state its grid "
            "with grid=(rows, columns, tokens in front) if it has one",
            stacklevel=2,
        )
    return picked[-1].name


def show_grid(
    model: nn.Module,
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    name: str,
    stated: tuple[int, ...] | None = None,
) -> Grid:
    """The grid in the output of layer `name`, where the shape alone does not say it (see `grid.is_doubtful`).

    Small patches of one synthetic image are changed, and each must move its own position of the output.

    Args:
        model, forward, images, stated: as for `find_layer`.
        name: the layer.

    Raises:
        ValueError: no grid is shown, or the stated one does not fit.
    """
    probe, size = probe_image(images), (images.shape[-2], images.shape[-1])
    with _trace(model, size, [name]) as events, as_found(model, images.device):
        forward(probe)
    grid = _show(model, forward, probe, events, stated).get(name, (None, False))[0]
    if grid is None:
        raise ValueError(
            f"layer {name!r} has no grid that could be shown: its output for one image of {size[0]} x {size[1]} has the shape "
            f"{tuple(events[0].output.shape) if events else '?'}, and changed patches of the image do not move positions of their "
            "own (latents, prompts, channels, or patches in another order). Choose another layer; or, if these are tokens of "
            "patches row by row, state grid=(rows, columns) or grid=(rows, columns, tokens in front)"
        )
    return grid


def patches_matter(model: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor, name: str, grid: Grid) -> bool:
    """Whether the positions in the output of layer `name` influence what the classifier reads."""
    probe = probe_image(images)
    with _trace(model, (images.shape[-2], images.shape[-1]), [name]) as events, as_found(model, images.device):
        forward(probe)
    return bool(_influential(model, forward, probe, [event._replace(grid=grid) for event in events]))


def spatial_layers(model: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor) -> list[str]:
    """Names of all layers that `find_layer` would consider, in the order in which they finish; for error messages."""
    with _trace(model, (images.shape[-2], images.shape[-1])) as events:
        logits = forward(probe_image(images))
    return [event.name for event in _candidates(events, logits)]


def find_stage(model: nn.Module, layer: str, forward: Callable[[Tensor], Tensor], images: Tensor) -> str:
    """The layer whose output enters the last block of the last stage, for `mask_at="stage"` and target layer `layer`.

    From the target backwards: the last module with convolution or linear weights is the last block (looked for inside a
    Sequential), and the module in front of it is the answer: `layer4.1` for `layer4` of a ResNet-50, `features.11` for
    `features.12` of SqueezeNet 1.1, `features.33` for `features.35` of VGG19, `blocks.9` for `blocks.11.norm1` of a ViT.
    Where that one does not return one grid for each image (a ModuleList that the network walks through, a module that returns
    a tuple), the last one that does so before the block begins is taken, if there is one that nothing leads around.

    Args:
        model: the bare network, already in eval mode (see `borrow.as_found`).
        layer: name of the target layer.
        forward: images -> logits through `model`.
        images: (N, C, H, W); only shape, dtype and device matter.

    Raises:
        ValueError: nothing in front of the block returns a grid.
    """
    probe = probe_image(images)
    with _trace(model, (images.shape[-2], images.shape[-1])) as events:
        forward(probe)
    usable = {event.name: event for event in _usable(events)}
    structural = _in_front(model, layer)
    ahead = [event.name for event in events[: next((i for i, event in enumerate(events) if event.name == layer), 0)]]
    if structural in usable and structural in ahead:
        return structural
    begin = _block_begins(model, ahead, layer)
    influential = _influential(model, forward, probe, [usable[name] for name in ahead[:begin] if name in usable])
    names = [name for name in ahead[:begin] if name in influential]
    for name in reversed(names[-16:]):
        if _carries_all(model, forward, probe, usable[name]):
            return name
    if names:
        return names[-1]
    raise ValueError(
        f"layer {layer!r} has no block in front of it that returns one grid for each image, so mask_at='stage' has no place; "
        "name a layer instead, or use mask_at='target' or 'input'"
    )


def _in_front(model: nn.Module, layer: str) -> str | None:
    """The module in front of the last block, by the order in which modules are written down; None if there is none."""
    at, including = layer, True
    while at:
        ahead = _siblings_until(model, at, including=including)
        while ahead and not _has_weights(model.get_submodule(ahead[-1])):
            ahead.pop()
        if not ahead:
            at, including = at.rpartition(".")[0], False
            continue
        block = model.get_submodule(ahead[-1])
        if isinstance(block, nn.ModuleList):
            return None  # walked through by the network, in an order of its choice
        if isinstance(block, nn.Sequential):
            inside = [name for name, child in block.named_children() if _has_weights(child)]
            at, including = f"{ahead[-1]}.{inside[-1]}", True
            continue
        at = ahead[-1]
        while at and len(ahead) < 2:  # its parent's first: what enters the parent enters the block
            at = at.rpartition(".")[0]
            ahead = [*_siblings_until(model, at, including=False), at]
        if at:
            return ahead[-2]
    return None


def _block_begins(model: nn.Module, fired: list[str], layer: str) -> int:
    """Where in `fired`, the modules before the target in the order of finishing, the last block begins.

    The block is the largest module with a forward around the last weights that is no Sequential and not around the target.
    """
    weighted = [name for name in [*fired, layer] if _has_weights(model.get_submodule(name), recurse=False)]
    path = weighted[-1].split(".") if weighted else []
    for depth in range(1, len(path) + 1):
        block = ".".join(path[:depth])
        module = model.get_submodule(block)
        walked = isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)
        if not layer.startswith(f"{block}.") and (not walked or depth == len(path)):
            return next((i for i, name in enumerate(fired) if name == block or name.startswith(f"{block}.")), len(fired))
    return 0


def _carries_all(model: nn.Module, forward: Callable[[Tensor], Tensor], probe: Tensor, event: _Event) -> bool:
    """Whether nothing leads around a module: with its output given, an image of NaN does not reach the logits."""
    handle = event.module.register_forward_hook(lambda *_: event.output.clone())
    try:
        return bool(forward(torch.full_like(probe, torch.nan)).isfinite().all())
    finally:
        handle.remove()


class _Event(NamedTuple):
    """One module's return during a traced forward pass."""

    name: str
    module: nn.Module
    inputs: tuple[Any, ...]
    output: Tensor
    grid: Grid | None


@contextmanager
def _trace(model: nn.Module, size: tuple[int, int], names: Sequence[str] | None = None) -> Iterator[list[_Event]]:
    """The tensor output for one image of every sub-module, or of `names`, in the order in which the modules finish."""
    events: list[_Event] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                grid = guess_grid(output, size, strict=True) if output.ndim and len(output) == 1 else None
                events.append(_Event(name, module, inputs, output, grid))

        return hook

    watched = [name for name, _ in model.named_modules() if name] if names is None else names
    with hooked((model.get_submodule(name)._forward_hooks, watch(name)) for name in watched):
        yield events


_NOT_A_LAYER = ("Pool", "Dropout", "DropPath", "DropBlock", "StochasticDepth")


def _show(
    model: nn.Module,
    forward: Callable[[Tensor], Tensor],
    probe: Tensor,
    events: list[_Event],
    stated: tuple[int, ...] | None,
) -> dict[str, tuple[Grid | None, bool]]:
    """For each of `events`, doubtful ones of modules that fire once: the grid that is shown or stated, and whether it moves."""
    size = (probe.shape[-2], probe.shape[-1])
    calls = Counter(event.name for event in events)
    before = {event.name: event.output for event in events if calls[event.name] == 1 and len(event.output) == 1}
    if stated is not None:
        found = {name: _as_stated(output, stated) for name, output in before.items() if output.ndim == 3}
        return {name: (grid, True) for name, grid in found.items()}
    distances: dict[str, list[list[Tensor]]] = {name: [] for name in before}
    for changed in changed_images(probe):
        with _trace(model, size, list(before)) as again, as_found(model, probe.device):
            forward(changed)
        for event in again:
            if event.output.shape == before[event.name].shape:
                channels = (1, 3) if event.output.ndim == 4 else (2,)
                distances[event.name].append([moved(before[event.name], event.output, axis) for axis in channels])
    shown: dict[str, tuple[Grid | None, bool]] = {}
    for event in events:
        passes = distances.get(event.name, [])
        if len(passes) < 2:
            continue
        moves = [torch.stack(one) for one in zip(*passes, strict=True)]
        if event.output.ndim == 4:
            first, last = tuple(event.output.shape[2:]), tuple(event.output.shape[1:3])
            readings = Grid("channels first", *first), Grid("channels last", *last)
            hits = [spatial_hits(move, reading) for move, reading in zip(moves, readings, strict=True)]
            shown[event.name] = (readings[hits[1] > hits[0]], True)
        else:
            guess = guess_grid(event.output, size, strict=True)
            shown[event.name] = (tokens_shown(moves[0], size, guess), bool((moves[0] > 0).any()))
    return shown


def _as_stated(output: Tensor, stated: tuple[int, ...]) -> Grid | None:
    rows, columns = stated[:2]
    prefix = stated[2] if len(stated) > 2 else output.shape[1] - rows * columns
    return Grid("tokens", rows, columns, prefix) if 0 <= prefix <= output.shape[1] - rows * columns else None


def _first(events: list[_Event]) -> str:
    return f"layer {events[0].name!r}, of shape {tuple(events[0].output.shape)},"


def _usable(events: list[_Event]) -> list[_Event]:
    """Modules that fire once and return one grid of more than one position."""
    calls = Counter(event.name for event in events)
    return [e for e in events if calls[e.name] == 1 and e.grid is not None and e.grid.height * e.grid.width > 1]


def _candidates(events: list[_Event], logits: Tensor) -> list[_Event]:
    usable = {event.name for event in _usable(events)}
    last_weights = max((i for i, event in enumerate(events) if event.module._parameters), default=-1)
    pooled: list[Tensor] = []
    candidates = []
    for i, event in enumerate(events):
        kind = type(event.module).__name__
        if "Pool" in kind:
            pooled.append(event.output)  # a container that ends in it returns the same tensor
        if any(word in kind for word in _NOT_A_LAYER):
            continue
        grid = event.grid
        if (
            grid is None
            or event.name not in usable
            or isinstance(event.module, nn.Identity)
            or (grid.layout == "tokens" and isinstance(event.module, nn.Linear))
            or any(event.output is tensor for tensor in pooled)
            or _shrinks(event, grid)
        ):
            continue
        if i >= last_weights and grid.read(event.output).shape[1] == logits.shape[-1]:
            continue  # a convolution as the classifier, and what follows it
        candidates.append(event)
    return candidates


def _read_by_classifier(events: list[_Event], logits: Tensor) -> Tensor:
    """What enters the last module with parameters, or the logits."""
    inputs = next((event.inputs for event in reversed(events) if event.module._parameters), ())
    return next((value for value in inputs if isinstance(value, Tensor) and value.requires_grad), logits).float()


def _influential(model: nn.Module, forward: Callable[[Tensor], Tensor], probe: Tensor, events: list[_Event]) -> set[str]:
    """Names of those among `events`, modules that fire once, whose positions influence what the classifier reads."""
    grids = {event.name: event.grid for event in events}
    with torch.enable_grad(), _trace(model, (probe.shape[-2], probe.shape[-1])) as again:
        logits = forward(probe.clone().requires_grad_())
        # Not the logits themselves: a freshly made head of zeros would hide every influence on them. A ramp, since the plain
        # sum of a normalised layer is constant.
        read = _read_by_classifier(again, logits)
        value = (read * torch.linspace(-1, 1, read.numel(), device=read.device).view_as(read)).sum()
        reached = [event for event in again if event.name in grids and event.output.requires_grad]
        slopes = torch.autograd.grad(value, [event.output for event in reached], allow_unused=True) if reached else ()
    return {
        event.name
        for event, slope in zip(reached, slopes, strict=True)
        if slope is not None and bool((grids[event.name].read(slope) != 0).any())
    }


def _shrinks(event: _Event, grid: Grid) -> bool:
    """Whether a container shrinks its input by more than two: more than one stage."""
    entering = next((value for value in event.inputs if isinstance(value, Tensor)), None)
    if entering is None or entering.ndim != 4 or next(event.module.children(), None) is None:
        return False
    return entering.shape[2] > 2 * max(grid.height, grid.width) + 1  # a height, or in channels last a width


def _siblings_until(model: nn.Module, name: str, *, including: bool) -> list[str]:
    """Full names of the modules of `name`'s parent, in order, up to `name`."""
    if not name:
        return []
    parent, _, child = name.rpartition(".")
    names = [sibling for sibling, _ in model.get_submodule(parent).named_children()]
    return [f"{parent}.{sibling}".lstrip(".") for sibling in names[: names.index(child) + including]]


def _has_weights(module: nn.Module, *, recurse: bool = True) -> bool:
    return any(parameter.ndim > 1 for parameter in module.parameters(recurse))
