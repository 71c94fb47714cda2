"""The spatial check: whether positions of a layer's output are places in the image, by changing small patches of an image."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from groupcam_aug.grid import Grid

__all__ = ["changed_images", "is_shown_on_both_sides", "moved", "probe_image", "spatial_hits", "tokens_shown"]

# Where patches are changed, as shares of height and width: spread out, and no two in one row or column.
_PLACES = [(0.09, 0.62), (0.21, 0.15), (0.34, 0.84), (0.46, 0.40), (0.59, 0.09), (0.71, 0.71), (0.84, 0.34), (0.97, 0.97)]
_ENOUGH = 6  # of these that must show themselves


def probe_image(images: Tensor) -> Tensor:
    """A ramp in the shape of one image: what is found must not depend on a black or damaged one."""
    return torch.linspace(-2, 2, images[:1].numel(), dtype=images.dtype, device=images.device).view(1, *images.shape[1:])


def changed_images(probe: Tensor) -> Iterator[Tensor]:
    """The probe (1, C, H, W) with one small patch of noise, for each of the places."""
    for top, bottom, left, right in _patches((probe.shape[-2], probe.shape[-1])):
        shape, generator = (probe.shape[1], bottom - top, right - left), torch.Generator().manual_seed(0)
        changed = probe.clone()
        changed[0, :, top:bottom, left:right] = 2 * torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(
            probe
        )
        yield changed


def moved(before: Tensor, after: Tensor, channels: int) -> Tensor:
    """How far each position of an output for one image moved, (positions,) on the CPU; `channels` is no position."""
    return (after.float() - before.float()).abs().sum(channels)[0].flatten().cpu()


def spatial_hits(distances: Tensor, grid: Grid) -> int:
    """How many changed patches, of 8, move the surroundings of their own position more than those of the other places.

    More: beyond what the position moves at any change, and any position at this change.

    Args:
        distances: (places, positions), see `moved`.
        grid: a reading of these positions.
    """
    # In float64: neither the default dtype nor autocast of half-precision training reaches it.
    distances = distances[:, grid.prefix : grid.prefix + grid.height * grid.width].double()
    if not distances.isfinite().all() or not (distances > 0).any(dim=1).all():
        return 0
    levels = distances.clamp(min=1e-6 * float(distances.max())).log()
    levels = levels - levels.mean(dim=0) - levels.mean(dim=1, keepdim=True)
    own = distances.new_tensor(_PLACES) * distances.new_tensor([grid.height, grid.width])
    rows, columns = (torch.arange(side, dtype=own.dtype, device=own.device) for side in (grid.height, grid.width))
    hits = 0
    for centre in (0.5, 0.0):  # of a position: patches side by side, or convolutions centred on the border
        at = torch.cartesian_prod(rows, columns) + centre
        near = torch.exp(-torch.cdist(own, at).square() / 2)  # (places, positions), a position wide
        shares = levels @ (near / near.sum(dim=1, keepdim=True)).T
        others = shares.masked_fill(torch.eye(len(shares), dtype=torch.bool, device=shares.device), -torch.inf).amax(dim=1)
        hits = max(hits, int((shares.diagonal() > others + 1e-3).sum()))  # 0.1 %: latents that all move alike differ by rounding
    return hits


def is_shown_on_both_sides(distances: Tensor, grid: Grid) -> bool:
    """Whether changed patches are found again by row alone and by column alone.

    In attention weights a changed patch moves the row and the column of its token, which lies where the patch does on one side
    of the image only.

    Args:
        distances: (places, height x width), see `moved`.
        grid: its height and width.
    """
    moves = distances.unflatten(1, (grid.height, grid.width))
    rows, columns = Grid("tokens", grid.height, 1), Grid("tokens", 1, grid.width)
    return min(spatial_hits(moves.sum(dim=2), rows), spatial_hits(moves.sum(dim=1), columns)) >= _ENOUGH


def tokens_shown(distances: Tensor, size: tuple[int, int], guess: Grid | None) -> Grid | None:
    """The grid of patches among tokens, wherever it begins, if changed patches of the image show one.

    Args:
        distances: (places, tokens), see `moved`.
        size: of the images, (height, width).
        guess: the grid that the number of tokens speaks for.
    """
    usable = distances.isfinite().all(dim=1) & (distances > 0).any(dim=1)
    peaks = torch.where(usable, distances.nan_to_num().argmax(dim=1), -(10**6))
    sides, cells = _strides(size)
    prefix = (peaks - cells[:, :, 0]).mode(dim=1).values
    hits = (cells == (peaks - prefix[:, None])[..., None]).any(dim=2).sum(dim=1)
    different = len(peaks.unique())  # in a small grid some places share a token, but then all must hit
    enough = hits >= (_ENOUGH if different >= _ENOUGH else len(_PLACES) if different >= 4 else torch.inf)
    enough &= (prefix >= 0) & (prefix + sides.prod(dim=1) <= distances.shape[1])
    if guess is not None:
        hits = hits + 2 * ((sides == sides.new_tensor([guess.height, guess.width])).all(dim=1) & (prefix == guess.prefix))
    if enough.any():
        best = int(torch.where(enough, hits, -1).argmax())  # the first of the best: those that leave nothing over
        return Grid("tokens", int(sides[best, 0]), int(sides[best, 1]), int(prefix[best]))
    if guess is not None and not guess.prefix and spatial_hits(distances, guess) >= _ENOUGH:
        return guess  # of a wide view, which moves a neighbour as far
    return None


@lru_cache(maxsize=16)
def _strides(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Ways to cut an image into square patches, those that leave nothing over first.

    Returns:
        (ways, 2) rows and columns, and (ways, places, 5) the positions that each place overlaps, that of its centre first.
    """
    exact = [stride for stride in range(1, min(size) + 1) if size[0] % stride == 0 and size[1] % stride == 0]
    ways = [(stride, 0) for stride in exact]
    # What is left over is cut off, or padded to a whole patch.
    ways += [(stride, padding) for stride in range(2, min(size)) if stride not in exact for padding in (0, stride - 1)]
    patches = torch.tensor(_patches(size), device="cpu")
    top, bottom, left, right = patches.T
    ends = [((top + bottom) // 2, (left + right) // 2), *((y, x) for y in (top, bottom - 1) for x in (left, right - 1))]
    sides, cells = [], []
    for stride, padding in ways:
        rows, columns = ((side + padding) // stride for side in size)
        for shift in (0, stride // 2):  # patches side by side, or convolutions centred on the border
            at = [
                ((y + shift) // stride).clamp(max=rows - 1) * columns + ((x + shift) // stride).clamp(max=columns - 1)
                for y, x in ends
            ]
            if rows * columns > 1:
                sides.append(patches.new_tensor([rows, columns]))
                cells.append(torch.stack(at, dim=1))
    return torch.stack(sides), torch.stack(cells)


def _patches(size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Top, bottom, left and right of the changed patches, in pixels."""
    side = max(1, round(min(size) / 14))
    corners = [(round(y * (size[0] - side)), round(x * (size[1] - side))) for y, x in _PLACES]
    return [(top, top + side, left, left + side) for top, left in corners]
