"""RISE against a plain loop; the same maps whatever the batch and the chunk."""

import pytest
import torch
from models import PooledNet, assert_same, snapshot
from torch.nn import functional as F

from groupcam_aug.rise import rise


@pytest.fixture
def net():
    torch.manual_seed(1)
    return PooledNet().eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 24, 20, generator=torch.Generator().manual_seed(2))


def test_maps_are_those_of_a_plain_loop(net, images):
    """As the paper says it: image times mask, and the masks added up by the probability that is left."""
    generator = torch.Generator().manual_seed(3)
    grids = (torch.rand(30, 1, 5, 5, generator=generator) < 0.3).float()
    ys, xs = (torch.randint(side, (30,), generator=generator).tolist() for side in (5, 4))
    expected = torch.zeros(2, 24, 20)
    with torch.no_grad():
        for grid, y, x in zip(grids, ys, xs, strict=True):
            mask = F.interpolate(grid[None], (30, 24), mode="bilinear", align_corners=False)[0, 0, y : y + 24, x : x + 20]
            for i, label in enumerate((4, 0)):
                expected[i] += net((images[i] * mask)[None]).softmax(dim=1)[0, label] * mask
    found = rise(net, images, [4, 0], masks=30, cells=5, keep=0.3, seed=3, chunk=7)
    torch.testing.assert_close(found, expected / (30 * 0.3), atol=1e-5, rtol=1e-4)


def test_the_network_the_batch_and_the_chunk_make_no_difference(net, images):
    net.train()
    before = snapshot(net)
    whole = rise(net, images, [0, 1], masks=40)
    assert_same(before, snapshot(net))
    single = torch.cat([rise(net, images[i : i + 1], i, masks=40, chunk=3) for i in range(2)])
    torch.testing.assert_close(whole, single, atol=1e-5, rtol=1e-4)
    for changed in ({"seed": 1}, {"activation": "sigmoid"}, {"fill": "blur"}, {"keep": 0.7}, {"cells": 4}):
        assert not torch.allclose(whole, rise(net, images, [0, 1], masks=40, **changed), atol=1e-4), changed
    assert rise(net, images[:0], 1, masks=2).shape == (0, 24, 20)


@pytest.mark.parametrize("options", [{"masks": 0}, {"cells": 0}, {"keep": 0.0}])
def test_numbers_out_of_range_are_refused(net, images, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        rise(net, images, 1, **options)
