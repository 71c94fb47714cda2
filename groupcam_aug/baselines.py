"""Maps that know nothing of the network, beside which every measure of maps must be read."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["centred_blob", "random_cells"]


def centred_blob(maps: Tensor) -> Tensor:
    """A Gaussian in the middle, a quarter of each side wide: what knowing only that objects are centred is worth."""
    height, width = maps.shape[-2:]
    rows, columns = (torch.linspace(-2, 2, side, device=maps.device, dtype=maps.dtype) for side in (height, width))
    return (-(rows[:, None] ** 2 + columns**2) / 2).exp().expand_as(maps)


def random_cells(maps: Tensor, seed: int = 0) -> Tensor:
    """Noise on a 7 x 7 grid, enlarged as a map is: as coarse as maps are, and without meaning."""
    cells = torch.rand(len(maps), 1, 7, 7, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(cells, maps.shape[-2:], mode="bilinear", align_corners=False)[:, 0].to(maps)
