"""Rank correlation, change, noise and floor of maps: against scipy, and by hand."""

import numpy
import pytest
import torch
from scipy import stats

from groupcam_aug.metrics.stability import MapChange, map_change, map_floor, map_noise, spearman


def rising(*shape):
    return torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)


@pytest.mark.parametrize("kind", ["random", "ties", "mostly zero", "integers", "bfloat16"])
def test_spearman_equals_scipy(kind):
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 5, 14, 14, generator=generator)
    second = first + second
    if kind == "ties":
        first, second = (first * 4).floor(), (second * 3).round()
    elif kind == "mostly zero":
        first, second = first * (first > 0.9), second * (second > 1.5)
    elif kind == "integers":
        first, second = (first * 9).long(), (second * 9).long()
    elif kind == "bfloat16":
        first, second = first.bfloat16(), second.bfloat16()
    expected = [stats.spearmanr(a.double().flatten(), b.double().flatten()).statistic for a, b in zip(first, second, strict=True)]
    numpy.testing.assert_allclose(spearman(first, second), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("zeros", [0.95, 0.97])
def test_spearman_of_large_mostly_empty_maps(zeros):
    """Tie groups of more than 65 535 pixels, where rank sums in int32 overflow."""
    maps = torch.rand(2, 300, 300, generator=torch.Generator().manual_seed(1))
    first = maps[0] * (maps[0] > zeros)
    second = (maps[0] * 0.7 + maps[1] * 0.3) * (maps[0] > zeros - 0.01)
    expected = stats.spearmanr(first.flatten(), second.flatten()).statistic
    assert 0.5 < expected < 1
    numpy.testing.assert_allclose(spearman(first[None], second[None]).item(), expected, rtol=0, atol=1e-12)


def test_spearman_without_an_order():
    good, bad = rising(1, 4, 4), [torch.zeros(1, 4, 4), torch.full((1, 4, 4), 3.0), rising(1, 4, 4)]
    bad[2][0, 0, 0] = float("nan")
    for one in bad:
        assert spearman(good, one).item() == spearman(one, good).item() == 0
    with pytest.raises(ValueError, match="one shape"):
        spearman(good, good[:, :2])


def test_change_by_hand():
    up = rising(4, 4)
    half = up.clone()
    half[0, 0], half[3, 3] = 16, 1  # two cells change places: rho = 1 - 6 * 2 * 15^2 / (16 * 255)
    dead, flat, broken = torch.zeros(4, 4), torch.full((4, 4), 0.3), torch.full((4, 4), float("inf"))
    before = torch.stack([up, up, up, up, dead, flat, broken, dead])
    after = torch.stack([3 * up**2, up.flip(0, 1), half, dead, up, up, up, flat])
    seen = map_change(before, after)
    rho = 1 - 6 * 2 * 225 / (16 * 255)
    torch.testing.assert_close(seen.change, torch.tensor([0, 1, 1 - rho, 1, 1, 1, 1, 0]))
    torch.testing.assert_close(seen.spearman, torch.tensor([1, -1, rho, 0, 0, 0, 0, 0]))
    assert seen.alive_before.tolist() == [True] * 4 + [False] * 4
    assert seen.alive_after.tolist() == [True] * 3 + [False] + [True] * 3 + [False]
    assert seen.counted.tolist() == [True] * 7 + [False] and seen.both.tolist() == [True] * 3 + [False] * 5
    torch.testing.assert_close(seen.mass_shift[2:], torch.tensor([15 / 136, 1, 1, 1, 1, 0]))
    assert all(not values.isnan().any() for values in seen)


def test_change_is_seen_on_the_small_grid():
    """What differs inside a cell only is no change; maps of unequal size meet on one grid."""
    maps = torch.rand(3, 28, 28, generator=torch.Generator().manual_seed(0)) + 0.1
    shuffled = maps.view(3, 14, 2, 14, 2).flip(2, 4).reshape(3, 28, 28)
    assert map_change(maps, shuffled).change.max() < 1e-6
    assert map_change(maps, shuffled, grid=28).change.min() > 0.1
    coarse = torch.nn.functional.avg_pool2d(maps, 4)
    assert map_change(maps, coarse).change.max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_constant_maps_are_dead_at_any_value_and_size(dtype):
    """Rounding while pooling must not make up an order of the cells."""
    values = torch.rand(50, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    for size in (7, 13, 56, 61):
        maps = values.expand(50, size, size)
        assert not map_change(maps, maps).alive_after.any(), size


def test_flip_noise():
    maps = torch.stack([rising(4, 4), rising(4, 4), rising(4, 4), torch.zeros(4, 4)])
    back = torch.stack([rising(4, 4), rising(4, 4).flip(0, 1), torch.zeros(4, 4), torch.zeros(4, 4)])
    noise, counted = map_noise(maps, back)
    assert noise.tolist() == [0, 1, 0, 0] and counted.tolist() == [True, True, False, False]


def test_noise_against_masks():
    """Mass outside over area outside, at most 1."""
    masks = torch.zeros(6, 4, 4, dtype=torch.bool)
    masks[:5, :, :1] = True
    masks[4] = True
    maps = torch.zeros(6, 4, 4)
    maps[0, :, 0] = 2  # everything inside
    maps[1] = 0.1  # even: chance
    maps[2, 0, 3] = 1  # everything outside: clipped
    maps[4:] = 1  # masks that cover everything, or nothing
    noise, counted = map_noise(maps, masks=masks)
    torch.testing.assert_close(noise, torch.tensor([0, 1, 1, 1, 0, 0.0]))
    assert counted.tolist() == [True] * 4 + [False] * 2
    half = torch.tensor([[[3.0, 1.0], [3.0, 1.0]]])  # on its own coarser grid: half of cell 0 is the object
    torch.testing.assert_close(map_noise(half, masks=masks[:1]).noise, torch.tensor([(0.375 + 0.25) / 0.75]))
    broken = torch.full((1, 4, 4), float("nan"))
    assert map_noise(broken, masks=masks[:1]).noise.item() == 1


def test_floor_is_the_mean_over_neighbouring_alive_maps():
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(5, 14, 14, generator=generator)
    maps[1], maps[3] = 0, float("nan")
    rho = [stats.spearmanr(maps[i].flatten(), maps[j].flatten()).statistic for i, j in ((0, 2), (2, 4))]
    assert abs(map_floor(maps).item() - sum(rho) / 2) < 1e-6
    for few in (maps[:0], maps[:1], maps[:2]):
        assert map_floor(few).item() == 0


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda m: map_change(m, m[:1]), "2 maps before and 1 after"),
        (lambda m: map_change(m[0], m[0]), r"shape \(N, h, w\)"),
        (lambda m: map_change(-m, m), "must not be negative"),
        (lambda m: map_change(m, m, grid=0), "grid"),
        (lambda m: map_noise(m), "either"),
        (lambda m: map_noise(m, m, masks=m > 0), "not both"),
        (lambda m: map_noise(m, masks=m[:, :2] > 0), "at least as large"),
    ],
)
def test_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call(rising(2, 4, 4))
    with pytest.raises(TypeError, match="floating point"):
        map_change(rising(2, 4, 4).long(), rising(2, 4, 4))


def test_empty_batches():
    none = torch.zeros(0, 7, 7)
    assert all(len(values) == 0 for values in map_change(none, none))
    assert map_noise(none, none).noise.shape == map_noise(none, masks=none).noise.shape == (0,)


def test_metric_is_the_mean_of_the_function():
    generator = torch.Generator().manual_seed(0)
    before, after = torch.rand(5, 9, 9, generator=generator), torch.rand(5, 9, 9, generator=generator)
    before[1], after[1], after[3] = 0, 0, 0
    for grid in (14, 3):
        metric = MapChange(grid)
        metric.update(before, after)
        change = map_change(before, after, grid=grid)
        assert metric.change_undefined == 1 and change.counted.sum() == 4 and change.change[3] == 1
        torch.testing.assert_close(metric.compute(), change.change.sum() / 4)
