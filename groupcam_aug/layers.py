"""Layers: find, name and check the one a map is taken from."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from groupcam_aug.borrow import as_found
from groupcam_aug.grid import Grid, is_attention
from groupcam_aug.layer_trace import Event, doubtful, has_weights, influential, show_grids, token_counts, trace, usable
from groupcam_aug.memory import is_out_of_memory
from groupcam_aug.restore import hooked
from groupcam_aug.spatial_check import probe_image

__all__ = ["find_layer", "finer_layer", "is_read", "layer_name", "patches_matter", "show_grid", "spatial_layers", "tokens_in"]


def layer_name(model: nn.Module, layer: str | nn.Module) -> str:
    """The name of a layer, as in `model.named_modules()`.

    Args:
        model: the bare network.
        layer: that name, or the module itself.

    Raises:
        TypeError: neither a name nor a module.
        ValueError: no such module; for a name the message lists the nearest ones.
    """
    if isinstance(layer, nn.Module):
        for name, module in model.named_modules():
            if module is layer and name:
                return name
        raise ValueError(f"layer: the {type(layer).__name__} given is no part of {type(model).__name__}")
    if not isinstance(layer, str):
        raise TypeError(f"layer must be a module or its name, or None, got {type(layer).__name__}")
    names = [path for path, _ in model.named_modules() if path]
    if layer not in names:
        close = get_close_matches(layer, names, n=5, cutoff=0.4) or [child for child, _ in model.named_children()]
        raise ValueError(f"{type(model).__name__} has no layer {layer!r}; did you mean one of {close}?")
    return layer


def find_layer(
    model: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor, stated: tuple[int, ...] | None = None
) -> str:
    """Name of the last layer before the final pooling or classifier that has a spatial grid.

    The forward pass of one synthetic image is watched. A candidate returns a grid of more than one position, is no pooling,
    dropout or identity, shrinks its input by at most two (so a stage, not a whole backbone), and is not itself the classifier
    (as many channels as classes and no parameters behind it). The last to finish wins: `layer4` of a ResNet, `features.35`
    of VGG19, `features.12` of SqueezeNet 1.1. Tokens must be shown to be patches of the image (see `spatial_check`). Where
    class or register tokens stand beside the patches, the patches must also influence the logits: in a ViT that is the first
    normalisation of the last block. A warning says so where later layers with weights are passed over: they show no grid.

    Args:
        model: the bare network, already in eval mode (see `borrow.as_found`).
        forward: images -> logits through `model`.
        images: (N, C, H, W); only shape, dtype and device matter.
        stated: (rows, columns) or (rows, columns, tokens in front) of the patches in token outputs, which are not checked then.

    Raises:
        ValueError: no layer qualifies.
    """
    size = (images.shape[-2], images.shape[-1])
    probe = probe_image(images)
    with trace(model, size) as events, as_found(model, images.device):
        logits = forward(probe)
    picked = _candidates(events, logits)
    hidden: list[Event] = []
    begin = next((i for i, event in enumerate(events) if picked and event is picked[-1]), 0)
    # A network that returns NaN shows nothing, neither for nor against a grid.
    unclear = doubtful(events, size)
    late = {id(event) for event in events[begin:]}
    if any(id(event) in late for event in unclear) and bool(logits.isfinite().all()):
        grids = show_grids(model, forward, probe, unclear, stated, token_counts(events))
        events = [event._replace(grid=grids.get(event.name, (event.grid,))[0]) for event in events]
        picked = _candidates(events, logits)
        shown = [i for i, event in enumerate(events) if event.grid is not None]
        hidden = [
            event
            for event in events[shown[-1] + 1 if shown else 0 :]
            if grids.get(event.name) == (None, True) and has_weights(event.module) and not isinstance(event.module, nn.Linear)
        ]
    extra = picked and picked[-1].grid is not None and picked[-1].grid.extra(picked[-1].output)
    if extra:
        reaching = influential(model, forward, probe, picked)
        picked = [event for event in picked if event.name in reaching]
    if not picked:
        raise ValueError(
            f"{type(model).__name__} has no layer with spatial activations before its classifier for images of {size[0]} x "
            f"{size[1]}: a map needs an output (N, K, h, w), (N, h, w, K) or (N, tokens, K) with more than one position. "
            "Name one with layer=, or use larger images"
            + (f". {_first(hidden)} shows no grid of the image; if it has one, state it with grid=" if hidden else "")
        )
    if hidden:
        warnings.warn(
            f"{type(model).__name__}: maps are taken from layer {picked[-1].name!r}, not behind it, for {_first(hidden)} shows "
            "no grid of the image: changed patches do not move positions of their own. Name a layer with layer=, and state its "
            "grid with grid=(rows, columns, tokens in front) if it has one",
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
        model: as for `find_layer`, like the next two.
        forward: images -> logits.
        images: (N, C, H, W).
        name: the layer.
        stated: its grid, taken as it is if it fits.

    Raises:
        ValueError: no grid is shown, or the stated one does not fit.
    """
    probe, size = probe_image(images), (images.shape[-2], images.shape[-1])
    with trace(model, size) as events, as_found(model, images.device):
        forward(probe)
    tokens, events = token_counts(events), [event for event in events if event.name == name]
    shape = tuple(events[0].output.shape) if events else ()
    if not all(event.output.isfinite().all() for event in events):
        raise ValueError(f"layer {name!r} returns NaN or infinite values for any image: look at the network's weights")
    grid = show_grids(model, forward, probe, events, stated, tokens).get(name, (None, False))[0]
    if grid is None:
        raise ValueError(
            f"layer {name!r} has no grid that could be shown: its output for one image of {size[0]} x {size[1]} has the shape "
            f"{shape}, and changed patches of the image do not move positions of their own (latents, prompts, channels, "
            "attention weights, or patches in another order). Choose another layer; or, if these are tokens of patches row by "
            "row, state grid=(rows, columns) or grid=(rows, columns, tokens in front)"
        )
    return grid


def patches_matter(model: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor, name: str, grid: Grid) -> bool:
    """Whether the positions in the output of layer `name` influence what the classifier reads."""
    probe = probe_image(images)
    with trace(model, (images.shape[-2], images.shape[-1]), [name]) as events, as_found(model, images.device):
        forward(probe)
    return bool(influential(model, forward, probe, [event._replace(grid=grid) for event in events]))


def is_read(model: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor, name: str) -> bool:
    """Whether anything that leads to the logits reads layer `name`: NaN in the place of its output reaches them.

    Other than a gradient, NaN passes weights of zero, as of a branch or a head that is not trained yet.
    """

    def broken(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        return torch.full_like(output, torch.nan) if isinstance(output, Tensor) and output.is_floating_point() else None

    try:
        with hooked([(model.get_submodule(name)._forward_hooks, broken)]):
            return not forward(probe_image(images)).isfinite().all()
    except Exception as error:  # of any class: a network that looks at its activations, or takes no single image, is no fault
        if is_out_of_memory(error):
            raise
        return True


def spatial_layers(model: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor) -> list[str]:
    """Names of all layers that `find_layer` would consider, in the order in which they finish; for error messages."""
    return [event.name for event in _by_shape(model, forward, images)]


def finer_layer(
    model: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor, side: int
) -> tuple[str, tuple[int, int]] | None:
    """The last layer whose grid has at least `side` rows and columns, with its grid; None if there is none."""
    grids = [(event.name, (event.grid.height, event.grid.width)) for event in _by_shape(model, forward, images) if event.grid]
    return next((found for found in reversed(grids) if min(found[1]) >= side), None)


def tokens_in(model: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor) -> set[int]:
    """How many tokens the outputs (N, T, K) of the network's modules have, for images of this shape."""
    with trace(model, (images.shape[-2], images.shape[-1])) as events, torch.no_grad():
        forward(probe_image(images))
    return token_counts(events)


def _by_shape(model: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor) -> list[Event]:
    """Candidates as far as their shapes tell."""
    with trace(model, (images.shape[-2], images.shape[-1])) as events, torch.no_grad():
        logits = forward(probe_image(images))
    tokens = token_counts(events)
    return [event for event in _candidates(events, logits) if not is_attention(event.output, tokens)]


_NOT_A_LAYER = ("Pool", "Dropout", "DropPath", "DropBlock", "StochasticDepth")


def _first(events: list[Event]) -> str:
    return f"layer {events[0].name!r}, of shape {tuple(events[0].output.shape)},"


def _candidates(events: list[Event], logits: Tensor) -> list[Event]:
    names = {event.name for event in usable(events)}
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
            or event.name not in names
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


def _shrinks(event: Event, grid: Grid) -> bool:
    """Whether a container shrinks its input by more than two: more than one stage."""
    entering = next((value for value in event.inputs if isinstance(value, Tensor)), None)
    if entering is None or entering.ndim != 4 or next(event.module.children(), None) is None:
        return False
    return entering.shape[2] > 2 * max(grid.height, grid.width) + 1  # a height, or in channels last a width
