"""The place of masks inside the last stage: the layer whose output enters the last block."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from groupcam_aug.borrow import as_found
from groupcam_aug.grid import guess_grid
from groupcam_aug.layer_trace import Event, doubtful, has_weights, influential, show_grids, token_counts, trace, usable
from groupcam_aug.restore import hooked
from groupcam_aug.spatial_check import probe_image

__all__ = ["find_stage"]


def find_stage(
    model: nn.Module,
    layer: str,
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    stated: tuple[int, ...] | None = None,
) -> str:
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
        stated: the grid of token outputs, as for `layers.find_layer`.

    Raises:
        ValueError: nothing in front of the block returns a grid.
    """
    probe, size = probe_image(images), (images.shape[-2], images.shape[-1])
    with trace(model, size) as events, as_found(model, images.device):
        forward(probe)
    unclear = doubtful(events, size)
    grids = show_grids(model, forward, probe, unclear, stated, token_counts(events)) if unclear else {}
    places = {e.name: e for e in usable([event._replace(grid=grids.get(event.name, (event.grid,))[0]) for event in events])}
    ahead = [event.name for event in events[: next((i for i, event in enumerate(events) if event.name == layer), 0)]]
    structural = _in_front(model, layer)
    if structural in places and structural in ahead:
        return structural
    for event in events:  # a grid of another aspect ratio than the images, in the place that the structure speaks for
        vague = structural not in grids and guess_grid(event.output, size, strict=False) is not None
        if event.name == structural and vague and ahead.count(structural) == len(event.output) == 1:
            return event.name
    begin = _block_begins(model, ahead, layer)
    reaching = influential(model, forward, probe, [places[name] for name in ahead[:begin] if name in places])
    names = [name for name in ahead[:begin] if name in reaching]
    late = names[:-9:-1]
    for name in late:
        if _carries_all(model, forward, probe, places[name]):
            return name
    if late:
        return min(late, key=lambda name: name.count("."))  # the largest, and of these the last: least leads around it
    raise ValueError(
        f"layer {layer!r} has no block in front of it that returns one grid for each image, so mask_at='stage' has no place; "
        "name a layer instead, or use mask_at='target' or 'input'"
    )


def _in_front(model: nn.Module, layer: str) -> str | None:
    """The module in front of the last block, by the order in which modules are written down; None if there is none."""
    at, including = layer, True
    while at:
        ahead = _siblings_until(model, at, including=including)
        while ahead and not has_weights(model.get_submodule(ahead[-1])):
            ahead.pop()
        if not ahead:
            at, including = at.rpartition(".")[0], False
            continue
        block = model.get_submodule(ahead[-1])
        if isinstance(block, nn.ModuleList):
            return None  # walked through by the network, in an order of its choice
        if isinstance(block, nn.Sequential):
            inside = [name for name, child in block.named_children() if has_weights(child)]
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
    weighted = [name for name in [*fired, layer] if has_weights(model.get_submodule(name), recurse=False)]
    path = weighted[-1].split(".") if weighted else []
    for depth in range(1, len(path) + 1):
        block = ".".join(path[:depth])
        module = model.get_submodule(block)
        walked = isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)
        if not layer.startswith(f"{block}.") and (not walked or depth == len(path)):
            return next((i for i, name in enumerate(fired) if name == block or name.startswith(f"{block}.")), len(fired))
    return 0


def _carries_all(model: nn.Module, forward: Callable[[Tensor], Tensor], probe: Tensor, event: Event) -> bool:
    """Whether nothing leads around a module: with its output given, an image of NaN does not reach the logits."""
    with hooked([(event.module._forward_hooks, lambda *_: event.output.clone())]):
        return bool(forward(torch.full_like(probe, torch.nan)).isfinite().all())


def _siblings_until(model: nn.Module, name: str, *, including: bool) -> list[str]:
    """Full names of the modules of `name`'s parent, in order, up to `name`."""
    if not name:
        return []
    parent, _, child = name.rpartition(".")
    names = [sibling for sibling, _ in model.get_submodule(parent).named_children()]
    return [f"{parent}.{sibling}".lstrip(".") for sibling in names[: names.index(child) + including]]
