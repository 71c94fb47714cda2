"""Pointing game, energy, IoU: hand-computed cases."""

import pytest
import torch

from groupcam_aug import metrics
from groupcam_aug.metrics.localisation import energy_pointing_game, mask_iou, pointing_game


def at(*points, size=9, value=1.0):
    """A map (1, size, size) with `value` at the (row, column) points."""
    one = torch.zeros(1, size, size)
    for row, column in points:
        one[0, row, column] = value
    return one


def hit(maps, masks, **options):
    return bool(pointing_game(maps, masks, **options).value)


def test_pointing_inside_and_outside():
    assert hit(at((4, 4)), at((4, 4)).bool())
    assert not hit(at((4, 4)), at((4, 5)).bool())


@pytest.mark.parametrize(("row", "column", "distance"), [(4, 7, 3), (7, 8, 5), (5, 5, 2**0.5), (6, 7, 13**0.5), (5, 7, 10**0.5)])
def test_pointing_tolerance_includes_its_edge(row, column, distance):
    mask = at((row, column)).bool()
    assert hit(at((4, 4)), mask, tolerance=distance)
    assert not hit(at((4, 4)), mask, tolerance=distance - 1e-6)
    assert hit(at((4, 4)), mask, relative_tolerance=(distance + 1e-9) / 9)
    # TorchRay compares strictly; off the boundary the two agree.
    assert hit(at((4, 4)), mask, tolerance=distance + 0.01) == (distance**2 < (distance + 0.01) ** 2)


def test_pointing_takes_the_first_maximum_in_raster_order():
    two = at((2, 6), (6, 2))
    assert hit(two, at((2, 6)).bool()) and not hit(two, at((6, 2)).bool())
    large = torch.zeros(1, 300, 300)
    large[0, 100:, 7:] = 1  # ties by the ten thousand
    mask = torch.zeros(1, 300, 300)
    mask[0, 100, 7] = 1
    assert hit(large, mask)


def test_pointing_of_undefined_maps_and_empty_masks():
    """A flat map is no free hit; an empty mask is no trial."""
    maps = torch.cat(
        [torch.zeros(1, 9, 9), torch.full((1, 9, 9), 2.0), at((4, 4)) * float("nan"), at((4, 4)), torch.ones(1, 9, 9)]
    )
    masks = torch.ones(5, 9, 9, dtype=torch.bool)
    masks[3:] = False
    seen = pointing_game(maps, masks, tolerance=20)
    assert seen.value.tolist() == [0] * 5
    assert seen.counted.tolist() == [True] * 3 + [False] * 2
    assert seen.undefined.tolist() == [True] * 3 + [False] * 2, "what is not counted is not undefined either"
    assert hit(-at((4, 4)), at((0, 0)).bool()), "any range: the maximum of a negative map"


def test_energy_by_hand():
    maps = torch.tensor([[[3.0, 1.0]], [[1.0, 1.0]], [[0.0, 0.0]], [[float("inf"), 1.0]], [[3.0, 1.0]], [[3.0, 1.0]]])
    masks = torch.tensor([[[1, 0]], [[1, 0]], [[1, 0]], [[1, 0]], [[0, 0]], [[1, 1]]])
    seen = energy_pointing_game(maps, masks)
    assert seen.value.tolist() == [0.75, 0.5, 0, 0, 0, 1]
    assert seen.counted.tolist() == [True] * 4 + [False, True]
    assert seen.undefined.tolist() == [False, False, True, True, False, False]
    corrected = energy_pointing_game(maps, masks, above_chance=True)
    assert corrected.value.tolist() == [0.5, 0, 0, 0, 0, 0]
    assert corrected.counted.tolist() == [True] * 4 + [False] * 2, "a mask of everything has nothing above chance"


def test_mask_iou_by_hand():
    first = torch.tensor([[[1, 1, 0]], [[1, 0, 0]], [[0, 0, 0]], [[0, 0, 0]]]).bool()
    second = torch.tensor([[[0, 1, 1]], [[1, 0, 0]], [[0, 0, 0]], [[0, 1, 0]]]).bool()
    seen = mask_iou(first, second)
    torch.testing.assert_close(seen.value, torch.tensor([1 / 3, 1, 0, 0]))
    assert seen.counted.tolist() == [True, True, False, True] and not seen.undefined.any()
    maps = torch.tensor([[[1.0, 0.9, 0.0]], [[0.4, 0.0, 0.0]], [[0.0, 0.0, 0.0]], [[0.5, 0.5, 0.5]]])
    seen = mask_iou(maps, torch.ones(4, 1, 3, dtype=torch.bool))
    torch.testing.assert_close(seen.value, torch.tensor([2 / 3, 1 / 3, 0, 0]))
    assert seen.undefined.tolist() == [False, False, True, True], "keep_mask keeps all of an empty map; that is no overlap"
    assert mask_iou(maps[:1], second[:1], threshold=0.95).value.item() == 0


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda m: pointing_game(m, m[:, :2]), "one shape"),
        (lambda m: pointing_game(m, m, tolerance=-1), "tolerance must be a number of at least 0, got -1"),
        (lambda m: pointing_game(m, m, tolerance=1, relative_tolerance=0.1), "not both"),
        (lambda m: energy_pointing_game(m - 1, m), "negative"),
        (lambda m: mask_iou(m, m[:1]), "one shape"),
    ],
)
def test_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call(torch.cat([at((1, 1)), at((2, 2))]))


def test_macro_is_over_the_classes_seen():
    """Class 0: 2 of 2, class 1: 0 of 1, class 2: only an empty mask, class 3: never."""
    maps = torch.eye(4)[:, None, :].expand(4, 4, 4).contiguous()
    masks = torch.zeros(4, 4, 4, dtype=torch.bool)
    masks[0, :, 0] = masks[1, :, 1] = masks[2, :, 3] = True
    classes = torch.tensor([0, 0, 1, 2])
    macro, micro = metrics.PointingGame(average="macro", num_classes=4), metrics.PointingGame()
    macro.update(maps, masks, classes)
    micro.update(maps, masks)
    assert macro.compute() == 0.5 and abs(micro.compute().item() - 2 / 3) < 1e-6
    with pytest.raises(ValueError, match="classes"):
        macro.update(maps, masks)
    for options in ({"average": "macro"}, {"average": "weighted"}, {"num_classes": 3}):
        with pytest.raises(ValueError, match="num_classes"):
            metrics.PointingGame(**options)


def test_metrics_are_means_of_the_functions():
    generator = torch.Generator().manual_seed(0)
    maps, masks = torch.rand(7, 9, 9, generator=generator), torch.rand(7, 9, 9, generator=generator) > 0.9
    maps[2], masks[4] = 0, False
    pointing, energy, iou = metrics.PointingGame(tolerance=1), metrics.EnergyPointingGame(), metrics.MaskIoU("q0.9")
    above = metrics.EnergyPointingGame(above_chance=True)
    for metric in (pointing, energy, above, iou):
        metric.update(maps, masks)
    expected = pointing_game(maps, masks, tolerance=1)
    assert 0 < expected.value.sum() < 6 == expected.counted.sum() == pointing.pointing_trials
    assert pointing.pointing_undefined == energy.energy_undefined == 1 == pointing.pointing_skipped == energy.energy_skipped
    torch.testing.assert_close(pointing.compute(), expected.value.sum() / 6)
    torch.testing.assert_close(energy.compute(), energy_pointing_game(maps, masks).value.sum() / 6)
    torch.testing.assert_close(above.compute(), energy_pointing_game(maps, masks, above_chance=True).value.sum() / 6)
    overlap = mask_iou(maps, masks, threshold="q0.9")
    torch.testing.assert_close(iou.compute(), overlap.value.sum() / overlap.counted.sum())


@pytest.mark.parametrize("measure", [pointing_game, energy_pointing_game, mask_iou])
def test_arrays_are_refused_with_the_way_out(measure):
    maps = torch.rand(2, 4, 4)
    with pytest.raises(TypeError, match=r"masks must be a tensor \(N, H, W\), got ndarray; use torch\.from_numpy"):
        measure(maps, (maps > 0.5).numpy())
    with pytest.raises(TypeError, match="maps must be a tensor"):
        measure(maps.numpy(), maps > 0.5)
