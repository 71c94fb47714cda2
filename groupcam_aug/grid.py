"""The grid of positions in a layer's output: channels first, channels last, or tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Grid", "guess_grid", "is_attention", "is_doubtful", "may_be_attention", "read_grid"]


def read_grid(output: Tensor, size: tuple[int, int], name: str) -> Grid:
    """Recognise the grid in the output of layer `name` for images of `size` (height, width).

    A 4-D output is channels first unless only the channels-last reading has the images' aspect ratio. In a 3-D output
    (N, T, K) the grid is the largest h x w <= T with square patches, and the tokens in front of it are the prefix.

    Raises:
        ValueError: no grid, or one of a single position; the message names the layer and the shape.
    """
    grid = guess_grid(output, size, strict=False)
    if grid is None:
        raise ValueError(
            f"layer {name!r} has no spatial grid: its output has the shape {tuple(output.shape)} for images of {size[0]} x "
            f"{size[1]}. A map needs (N, K, h, w), (N, h, w, K) or (N, tokens, K); choose an earlier layer"
        )
    if grid.height * grid.width < 2:
        raise ValueError(
            f"layer {name!r} has a grid of 1 x 1 for images of {size[0]} x {size[1]}: a map needs more than one position. "
            "Choose an earlier layer or larger images"
        )
    return grid


def guess_grid(output: Tensor, size: tuple[int, int], *, strict: bool) -> Grid | None:
    """The grid in an output for images of `size`, or None; `strict`: only one that has the images' aspect ratio."""
    if output.ndim == 4:
        first, last = tuple(output.shape[2:]), tuple(output.shape[1:3])
        for fits in (_same_stride, _same_aspect):  # an exact channels-last reading beats a vague channels-first one
            if fits(first, size):
                return Grid("channels first", *first)
            if fits(last, size):
                return Grid("channels last", *last)
        if not strict and first[0] <= size[0] and first[1] <= size[1]:
            return Grid("channels first", *first)
    if output.ndim == 3:
        tokens, (height, width) = output.shape[1], size
        for prefix in range(min(tokens, 17)):
            rows = round(((tokens - prefix) * height / width) ** 0.5)
            if rows < 1 or (tokens - prefix) % rows:
                continue
            columns = (tokens - prefix) // rows
            square = height % rows == 0 and width % columns == 0 and height * columns == width * rows
            if square and rows * columns > 1:
                return Grid("tokens", rows, columns, prefix)
    return None


def is_doubtful(output: Tensor, size: tuple[int, int]) -> bool:
    """Whether the shape alone does not say where the grid is: several tokens, or (N, a, b, c) that may be read either way."""
    if output.ndim == 3:
        return output.shape[1] > 1
    if output.ndim != 4:
        return False
    first, last = tuple(output.shape[2:]), tuple(output.shape[1:3])
    exact = _same_stride(first, size) or _same_stride(last, size)
    fits = _same_stride if exact else _same_aspect
    return fits(first, size) and fits(last, size)


def may_be_attention(output: Tensor) -> bool:
    """Whether an output has the shape of attention weights, (N, heads, T, T) or (N, T, T, heads)."""
    return output.ndim == 4 and (output.shape[2] == output.shape[3] > 1 or output.shape[1] == output.shape[2] > 1)


def is_attention(output: Tensor, tokens: set[int]) -> bool:
    """Whether an output is likely to hold what tokens are to tokens, not a grid of the image.

    That is, it has a row and a column for each token of the network, or rows of a softmax.

    Args:
        output: of a layer.
        tokens: the numbers of tokens T of the network's outputs (N, T, K).
    """
    if not may_be_attention(output):
        return False
    heads_first = output.shape[2] == output.shape[3]
    if (output.shape[2] if heads_first else output.shape[1]) in tokens:
        return True
    rows = output.detach()[:1].float()
    return heads_first and bool((rows >= 0).all() and ((rows.sum(dim=3) - 1).abs() < 1e-2).all())


@dataclass(frozen=True)
class Grid:
    """How positions are laid out in a layer's output: (N, K, h, w), (N, h, w, K), or tokens (N, prefix + h w + others, K)."""

    layout: Literal["channels first", "channels last", "tokens"]
    height: int
    width: int
    prefix: int = 0  # class, distillation and register tokens in front of the patch tokens

    def read(self, output: Tensor) -> Tensor:
        """The output as (N, K, h, w), a view where possible, without the tokens beside the patches."""
        if self.layout == "channels first":
            return output
        if self.layout == "channels last":
            return output.permute(0, 3, 1, 2)
        return output[:, self.prefix : self._end].transpose(1, 2).unflatten(2, (self.height, self.width))

    def extra(self, output: Tensor) -> bool:
        """Whether there are tokens beside the patches."""
        return self.layout == "tokens" and output.shape[1] > self.height * self.width

    @property
    def _end(self) -> int:
        return self.prefix + self.height * self.width

    def mix(self, kept: Tensor, base: Tensor, mask: Tensor) -> Tensor:
        """`kept * mask + base * (1 - mask)` position by position, in the layer's layout; other tokens are `kept`'s.

        Args:
            kept: a layer output.
            base: another of the same shape.
            mask: (N, 1, h, w) in [0, 1].
        """
        mask = mask.to(kept.dtype)
        if self.layout == "channels first":
            return torch.lerp(base, kept, mask)
        if self.layout == "channels last":
            return torch.lerp(base, kept, mask.permute(0, 2, 3, 1))
        tokens = mask.flatten(2).transpose(1, 2)
        mixed = torch.lerp(base[:, self.prefix : self._end], kept[:, self.prefix : self._end], tokens)
        return torch.cat([kept[:, : self.prefix], mixed, kept[:, self._end :]], dim=1)


def _same_stride(grid: tuple[int, ...], size: tuple[int, int]) -> bool:
    return grid[0] <= size[0] and size[0] * grid[1] == size[1] * grid[0]


def _same_aspect(grid: tuple[int, ...], size: tuple[int, int]) -> bool:
    """Whether one stride, padding aside, explains both sides of the grid."""
    if grid[0] > size[0] or grid[1] > size[1]:
        return False
    low = [side / (cells + 1) for side, cells in zip(size, grid, strict=True)]
    high = [side / max(cells - 1, 0.5) for side, cells in zip(size, grid, strict=True)]
    return max(low) < min(high)
