"""Further inputs of a network beside the images, one row for each image: a question, a caption so far, a row of numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_flatten_with_path, tree_map_only

__all__ = ["Extra", "Extras", "read_extra"]

Extras = Tensor | Sequence[Any] | Mapping[str, Any] | None


def read_extra(extra: Extras, images: Tensor) -> Extra:
    """Check the further inputs of a batch.

    Args:
        extra: a tensor (the one further positional argument), a tuple or list of positional ones, or a dict of keyword ones.
            Each is a tensor with one row per image on the images' device, or a tuple, list or dict of such tensors; numbers,
            flags and None are handed on as they are. None: no further inputs.
        images: (N, C, H, W).

    Raises:
        TypeError: something else among them.
        ValueError: another number of rows than images, or another device.
    """
    if extra is None:
        return Extra((), {}, len(images))
    if not isinstance(extra, Tensor | tuple | list | dict):
        raise TypeError(
            f"extra must be a tensor, a tuple or list (positional arguments) or a dict (keyword arguments), got "
            f"{type(extra).__name__}" + ("; make it a dict: dict(extra)" if isinstance(extra, Mapping) else "")
        )
    if isinstance(extra, dict) and not all(isinstance(name, str) for name in extra):
        raise TypeError(f"the keys of extra are the names of arguments, got {list(extra)}")
    for path, leaf in tree_flatten_with_path(extra)[0]:
        place = "extra" + "".join(str(step) for step in path)
        if leaf is None or isinstance(leaf, bool | int | float):
            continue
        if not isinstance(leaf, Tensor):
            text = " (texts have no rows to cut: give their tokens as a tensor)" if isinstance(leaf, str | bytes) else ""
            raise TypeError(
                f"{place} is a {type(leaf).__name__}{text}: give tensors with one row per image, or tuples, lists or dicts of "
                "them; what is the same for all images and no number belongs into the network, or into output= and preprocess="
            )
        if not leaf.ndim or len(leaf) != len(images):
            raise ValueError(
                f"{place} has the shape {tuple(leaf.shape)} for {len(images)} images: give one row per image, with the rows "
                "first; repeat what all images share (tensor.expand(len(images), ...))"
            )
        if leaf.device != images.device:
            raise ValueError(f"{place} is on {leaf.device}, the images are on {images.device}: bring it there with .to()")
    plain = tree_map_only(Tensor, Tensor.detach, extra)
    if isinstance(plain, dict):
        return Extra((), plain, len(images))
    return Extra((plain,) if isinstance(plain, Tensor) else tuple(plain), {}, len(images))


class Extra:
    """Further arguments of a network for `count` images, cut and repeated with them. False if there are none.

    Args:
        args: positional arguments behind the images.
        kwargs: keyword arguments.
        count: images, and rows of each tensor in there.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], count: int) -> None:
        self.args, self.kwargs, self.count = args, kwargs, count

    def __bool__(self) -> bool:
        return bool(self.args or self.kwargs)

    def __getitem__(self, rows: slice | Tensor) -> Extra:
        """The arguments for some of the images: a slice, or an (n,) int64 tensor of their indices."""
        if not self:
            return self
        if isinstance(rows, slice):
            return self._each(lambda tensor: tensor[rows], len(range(*rows.indices(self.count))))
        return self._each(lambda tensor: tensor.index_select(0, rows.to(tensor.device, non_blocking=True)), len(rows))

    def fitting(self, count: int) -> Extra:
        """The arguments for `count` rows: these images, or whole copies of them one after the other.

        Raises:
            ValueError: rows that are neither.
        """
        if not self or count == self.count:
            return self
        if not self.count or count % self.count:
            raise ValueError(f"{count} rows are no whole copies of {self.count} images, so their further inputs are not known")
        return self._each(lambda tensor: tensor.repeat(count // self.count, *[1] * (tensor.ndim - 1)), count)

    def of_first(self, count: int) -> Extra:
        """The arguments for `count` altered copies of the first image."""
        return self._each(lambda tensor: tensor[:1].repeat(count, *[1] * (tensor.ndim - 1)), count) if self else self

    def usable(self) -> Extra:
        """Outside inference mode, so that autograd may save them."""
        return self._each(lambda tensor: tensor.clone() if tensor.is_inference() else tensor, self.count) if self else self

    @property
    def kind(self) -> str:
        """How they are nested: a network may take another way where other arguments are given."""
        return str(tree_flatten((self.args, self.kwargs))[1]) if self else ""

    def given(self) -> Extras:
        """In the form in which they were given; None if there are none."""
        return (self.kwargs or self.args) if self else None

    def _each(self, change: Callable[[Tensor], Tensor], count: int) -> Extra:
        args, kwargs = tree_map_only(Tensor, change, (self.args, self.kwargs))
        return Extra(args, kwargs, count)


NOTHING = Extra((), {}, 0)
