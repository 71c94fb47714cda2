"""Scaling masks as if they were enlarged: equal to enlarging first, at every ratio of grid and image."""

import math

import pytest
import torch

from groupcam_aug.map_ops import enlarge, minmax, percentile, scale_as_enlarged


@pytest.mark.parametrize("size", [(7, 9), (8, 8), (14, 27), (21, 10), (29, 31), (224, 200)])
@pytest.mark.parametrize("grid", [(7, 7), (2, 5), (1, 4), (3, 8)])
def test_scaling_first_equals_enlarging_first(size, grid):
    masks = torch.randn(3, 4, *grid, generator=torch.Generator().manual_seed(grid[0]), dtype=torch.float64)
    masks[0, 1] = 2.1  # enlarging it first would leave the last bit to be scaled up to a map
    scaled, usable = scale_as_enlarged(masks, size)
    alive = torch.ones(3, 4, dtype=torch.bool)
    alive[0, 1] = False
    assert usable.tolist() == alive.tolist() and (scaled[0, 1] == 0).all()
    torch.testing.assert_close(enlarge(scaled, size)[alive], minmax(enlarge(masks, size))[alive], rtol=0, atol=1e-12)


def test_the_extremes_are_those_of_pixels_and_not_of_cells():
    """At twice the size no pixel sits on an inner cell's centre: a single peak is met three quarters of the way, twice."""
    peak = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    peak[..., 1, 1] = 1.0
    assert enlarge(peak, (6, 6)).amax() == 0.5625
    assert enlarge(scale_as_enlarged(peak, (6, 6))[0], (6, 6)).amax() == 1
    assert scale_as_enlarged(peak, (6, 6))[0].amax() == pytest.approx(1 / 0.5625)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_mask_touched_by_infinity_is_dead_and_alone(bad):
    masks = torch.rand(2, 2, 4, 4)
    masks[1, 0, 2, 2] = bad
    scaled, usable = scale_as_enlarged(masks, (16, 16))
    assert usable.tolist() == [[True, True], [False, True]]
    assert torch.isfinite(scaled).all() and (scaled[1, 0] == 0).all()


def test_minmax_and_percentile_by_hand():
    maps = torch.tensor([[[1.0, 3.0], [2.0, 5.0]], [[4.0, 4.0], [4.0, 4.0]]])
    assert minmax(maps).tolist() == [[[0, 0.5], [0.25, 1]], [[0, 0], [0, 0]]]
    assert percentile(torch.tensor([3.0, 1.0, 2.0]), 75).tolist() == [2.5]


def test_percentile_equals_numpy():
    """P7: numpy's linear interpolation between order statistics."""
    values = torch.tensor([[0.0, 0, 0, 1, 1, 1, 1, 1, 1, 2]], dtype=torch.float64)
    assert percentile(values, 70).item() == 1.0
    assert percentile(values, 25).item() == pytest.approx(0.25)
    assert percentile(values, 0).item() == 0 and percentile(values, 100).item() == 2
    import numpy as np

    random = torch.randn(3, 4, 49, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for theta in (0, 10, 33.3, 70, 99, 100):
        torch.testing.assert_close(percentile(random, theta)[..., 0], torch.from_numpy(np.percentile(random, theta, axis=2)))


def test_percentile_of_more_than_16_million_values():
    assert percentile(torch.zeros(1, 17_000_000), 70).item() == 0


def test_minmax_edge_cases():
    maps = torch.stack([torch.full((2, 2), 3.0), torch.tensor([[0, math.nan], [1, 2]]), torch.tensor([[0, math.inf], [1, 2]])])
    assert (minmax(maps) == 0).all()
    torch.testing.assert_close(minmax(torch.tensor([[-1.0, 0], [1, 3]])), torch.tensor([[0, 0.25], [0.5, 1]]))
