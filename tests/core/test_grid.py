"""Recognising the grid in a layer's output, reading it, mixing in it."""

import pytest
import torch

from groupcam_aug.grid import Grid, read_grid


@pytest.mark.parametrize(
    "shape, size, expected",
    [
        ((2, 8, 7, 7), (224, 224), Grid("channels first", 7, 7)),
        ((2, 7, 7, 8), (224, 224), Grid("channels last", 7, 7)),
        ((2, 7, 14, 96), (224, 448), Grid("channels last", 7, 14)),
        ((2, 96, 7, 14), (224, 448), Grid("channels first", 7, 14)),
        ((2, 197, 96), (224, 224), Grid("tokens", 14, 14, 1)),
        ((2, 198, 96), (224, 224), Grid("tokens", 14, 14, 2)),
        ((2, 49, 96), (224, 224), Grid("tokens", 7, 7, 0)),
        ((2, 1 + 7 * 14, 96), (112, 224), Grid("tokens", 7, 14, 1)),
        ((2, 261, 96), (224, 224), Grid("tokens", 16, 16, 5)),
        ((2, 8, 8, 8), (64, 64), Grid("channels first", 8, 8)),
    ],
)
def test_read_grid(shape, size, expected):
    assert read_grid(torch.zeros(shape), size, "layer") == expected


@pytest.mark.parametrize("shape", [(2, 10), (2, 300, 96), (2, 3, 4, 5, 6), (2, 8, 1, 1), (2, 8, 500, 500)])
def test_read_grid_refuses(shape):
    with pytest.raises(ValueError, match="layer 'blocks' has"):
        read_grid(torch.zeros(shape), (224, 224), "blocks")


@pytest.mark.parametrize("shape", [(2, 6, 3, 5), (2, 3, 5, 6), (2, 17, 6)])
def test_reading_and_mixing_agree_in_every_layout(shape):
    """P24: a round trip, and a mix that is position by position the same in each layout; prefix tokens are kept."""
    size = (96, 160)
    a, b = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).unbind(0)
    grid = read_grid(a, size, "x")
    assert (grid.height, grid.width, grid.prefix) == (3, 5, 2 if len(shape) == 3 else 0)
    mask = torch.rand(2, 1, 3, 5)
    mixed = grid.mix(a, b, mask)
    assert mixed.shape == a.shape
    torch.testing.assert_close(grid.read(mixed), grid.read(a) * mask + grid.read(b) * (1 - mask))
    if grid.prefix:
        assert torch.equal(mixed[:, :2], a[:, :2])
