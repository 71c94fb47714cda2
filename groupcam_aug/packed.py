"""Several outputs of a network as one tensor, for what cuts, joins and compares rows; callable targets get them as they were."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

__all__ = ["Packing", "pack"]

_CHOOSE = "choose them with output= (a key, an index, an attribute, or a callable on the output)"


def pack(output: Any, count: int, name: str) -> tuple[Tensor, Packing]:
    """The tensors in a tuple, list or dict, of `count` rows each, side by side.

    Args:
        output: what a network returned.
        count: images, and rows of each tensor.
        name: of the network, for messages.

    Returns:
        (count, numbers) in the widest floating-point type among them, and the way back.

    Raises:
        TypeError: no tensor in floating point among them, or something that is no tensor.
        ValueError: a tensor with another number of rows.
    """
    leaves, tree = tree_flatten(output)
    if not all(isinstance(leaf, Tensor) for leaf in leaves) or not any(leaf.is_floating_point() for leaf in leaves):
        kinds = [str(leaf.dtype) if isinstance(leaf, Tensor) else type(leaf).__name__ for leaf in leaves]
        raise TypeError(
            f"{name} returns a {type(output).__name__} of {', '.join(kinds) or 'nothing'}: a target callable is given tensors "
            f"with one row per image; {_CHOOSE}"
        )
    shapes = [tuple(leaf.shape) for leaf in leaves]
    if any(not shape or shape[0] != count for shape in shapes):
        raise ValueError(
            f"{name} returns tensors of the shapes {shapes} for {count} images: a target callable is given tensors with one "
            f"row per image; {_CHOOSE}"
        )
    wide = next(leaf.dtype for leaf in leaves if leaf.is_floating_point())
    for leaf in leaves:
        wide = torch.promote_types(wide, leaf.dtype) if leaf.is_floating_point() else wide
    packed = torch.cat([leaf.flatten(1).to(wide) if leaf.ndim > 1 else leaf[:, None].to(wide) for leaf in leaves], dim=1)
    whole = [None if leaf.is_floating_point() else leaf.dtype for leaf in leaves]
    return packed, Packing(tree, [shape[1:] for shape in shapes], whole)


class Packing:
    """The way back from `pack`.

    Args:
        tree: how the tensors were nested.
        shapes: of a row of each.
        whole: the dtype of those that are not in floating point, else None.
    """

    def __init__(self, tree: TreeSpec, shapes: list[tuple[int, ...]], whole: list[torch.dtype | None]) -> None:
        self.tree, self.shapes, self.whole = tree, shapes, whole

    def unpack(self, packed: Tensor) -> Any:
        """The outputs of any number of rows as the network returns them, floating point in the dtype of `packed`."""
        parts = packed.split([torch.Size(shape).numel() for shape in self.shapes], dim=1)
        leaves = [
            part.reshape(len(packed), *shape).to(whole or part.dtype)
            for part, shape, whole in zip(parts, self.shapes, self.whole, strict=True)
        ]
        return tree_unflatten(leaves, self.tree)
