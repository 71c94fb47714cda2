"""Layers: find, name and check the one a map is taken from, and the one where masks inside the last stage are applied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from groupcam_aug.grid import Grid, guess_grid

__all__ = ["find_layer", "find_stage", "get_layer", "spatial_layers"]


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


def find_layer(model: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor) -> str:
    """Name of the last layer before the final pooling or classifier that has a spatial grid.

    The forward pass of one synthetic image is watched. A candidate returns a grid of more than one position, is no pooling,
    dropout or identity, shrinks its input by at most two (so a stage, not a whole backbone), and is not itself the classifier
    (as many channels as classes and no parameters behind it). The last to finish wins: `layer4` of a ResNet, `features.35`
    of VGG19, `features.12` of SqueezeNet 1.1. Where class or register tokens stand in front of the patches, the patches must
    also influence the logits: in a ViT that is the first normalisation of the last block.

    Args:
        model: the bare network, already in eval mode (see `borrow.as_found`).
        forward: images -> logits through `model`.
        images: (N, C, H, W); only shape, dtype and device matter.

    Raises:
        ValueError: no layer qualifies.
    """
    size = (images.shape[-2], images.shape[-1])
    probe = _probe(images)
    with _trace(model, size) as events:
        logits = forward(probe)
    picked = _candidates(events, logits)
    if picked and picked[-1].grid is not None and picked[-1].grid.prefix:
        with torch.enable_grad(), _trace(model, size) as events:
            logits = forward(probe.requires_grad_())
            picked = [event for event in _candidates(events, logits) if event.output.requires_grad]
            # Not the logits themselves: a freshly made head of zeros would hide every influence on them. A ramp, since the
            # plain sum of a normalised layer is constant.
            read = _read_by_classifier(events, logits)
            value = (read * torch.linspace(-1, 1, read.numel(), device=read.device).view_as(read)).sum()
            slopes = torch.autograd.grad(value, [event.output for event in picked], allow_unused=True) if picked else ()
        picked = [event for event, slope in zip(picked, slopes, strict=True) if _patches_matter(event, slope)]
    if not picked:
        raise ValueError(
            f"{type(model).__name__} has no layer with spatial activations before its classifier for images of {size[0]} x "
            f"{size[1]}: a map needs an output (N, K, h, w), (N, h, w, K) or (N, tokens, K) with more than one position. "
            "Name one with layer=, or use larger images"
        )
    return picked[-1].name


def spatial_layers(model: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor) -> list[str]:
    """Names of all layers that `find_layer` would consider, in the order in which they finish; for error messages."""
    with _trace(model, (images.shape[-2], images.shape[-1])) as events:
        logits = forward(_probe(images))
    return [event.name for event in _candidates(events, logits)]


def find_stage(model: nn.Module, layer: str) -> str:
    """The layer whose output enters the last block of the last stage, for `mask_at="stage"` and target layer `layer`.

    From the target backwards: the last module with convolution or linear weights is the last block (looked for inside a
    Sequential), and the module in front of it is the answer: `layer4.1` for `layer4` of a ResNet-50, `features.11` for
    `features.12` of SqueezeNet 1.1, `features.33` for `features.35` of VGG19, `blocks.9` for `blocks.11.norm1` of a ViT.

    Raises:
        ValueError: the block has nothing in front of it.
    """
    at, including = layer, True
    while at:
        ahead = _siblings_until(model, at, including=including)
        while ahead and not _has_weights(model.get_submodule(ahead[-1])):
            ahead.pop()
        if not ahead:
            at, including = at.rpartition(".")[0], False
            continue
        block = model.get_submodule(ahead[-1])
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
    raise ValueError(f"layer {layer!r} has no block in front of it, so mask_at='stage' has no place; name a layer instead")


class _Event(NamedTuple):
    """One module's return during a traced forward pass."""

    name: str
    module: nn.Module
    inputs: tuple[Any, ...]
    output: Tensor
    grid: Grid | None


@contextmanager
def _trace(model: nn.Module, size: tuple[int, int]) -> Iterator[list[_Event]]:
    """Every sub-module's tensor output, in the order in which the modules finish."""
    events: list[_Event] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                events.append(_Event(name, module, inputs, output, guess_grid(output, size, strict=True)))

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        yield events
    finally:
        for handle in handles:
            handle.remove()


_NOT_A_LAYER = ("Pool", "Dropout", "DropPath", "DropBlock", "StochasticDepth")


def _probe(images: Tensor) -> Tensor:
    """A ramp in the shape of one image: what is found must not depend on a black or damaged one."""
    return torch.linspace(-2, 2, images[:1].numel(), dtype=images.dtype, device=images.device).view(1, *images.shape[1:])


def _candidates(events: list[_Event], logits: Tensor) -> list[_Event]:
    calls: dict[str, int] = {}
    for event in events:
        calls[event.name] = calls.get(event.name, 0) + 1
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
            or grid.height * grid.width < 2
            or calls[event.name] > 1
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


def _patches_matter(event: _Event, slope: Tensor | None) -> bool:
    return slope is not None and event.grid is not None and bool((event.grid.read(slope) != 0).any())


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


def _has_weights(module: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in module.parameters())
