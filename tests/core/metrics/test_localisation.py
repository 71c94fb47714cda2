"""Pointing game, energy, IoU, boxes: hand-computed cases, and scipy's labelling."""

import numpy
import pytest
import torch
from scipy import ndimage

from groupcam_aug.metrics.localisation import (
    _largest_part,
    box_masks,
    boxes_from_maps,
    energy_pointing_game,
    localisation_error,
    mask_iou,
    pointing_game,
)


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


@pytest.mark.parametrize("density", [0.2, 0.45, 0.6, 0.75])
def test_largest_part_equals_scipy(density):
    masks = torch.rand(8, 31, 23, generator=torch.Generator().manual_seed(int(100 * density))) < density
    for mask, found in zip(masks, _largest_part(masks), strict=True):
        labels, _ = ndimage.label(mask.numpy())
        sizes = numpy.bincount(labels.ravel())
        sizes[0] = 0
        numpy.testing.assert_array_equal(found.numpy(), labels == sizes.argmax())


def test_largest_part_of_a_spiral_is_the_spiral():
    spiral = torch.zeros(41, 41, dtype=torch.bool)
    row, column, step = 0, 0, (0, 1)
    spiral[0, 0] = True
    for _ in range(3000):
        ahead = row + step[0], column + step[1]
        further = ahead[0] + step[0], ahead[1] + step[1]
        blocked = not (0 <= ahead[0] < 41 and 0 <= ahead[1] < 41)
        blocked = blocked or (0 <= further[0] < 41 and 0 <= further[1] < 41 and bool(spiral[further]))
        if blocked:
            step = step[1], -step[0]
            continue
        row, column = ahead
        spiral[row, column] = True
    assert spiral.sum() > 600
    assert torch.equal(_largest_part(spiral[None])[0], spiral)


def test_boxes_from_maps_by_hand():
    maps = torch.zeros(5, 6, 8)
    maps[0, 1:3, 2:7] = 1  # 10 pixels, against 3 others and one that touches by a corner only
    maps[0, 5, :3] = 0.5
    maps[0, 3, 7] = 1
    maps[1, 2, 3] = 1
    maps[1, 2, 4], maps[1, 3, 3] = 0.15, 0.149  # the threshold itself belongs to the part
    maps[2, 0, 1], maps[2, 5, 5] = 1, 1  # equally large: the first in raster order
    maps[4] = float("nan")
    assert boxes_from_maps(maps).tolist() == [[2, 1, 7, 3], [3, 2, 5, 3], [1, 0, 2, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert boxes_from_maps(torch.ones(1, 6, 8)).tolist() == [[0, 0, 8, 6]]
    assert boxes_from_maps(maps[:0]).shape == (0, 4)
    with pytest.raises(ValueError, match="threshold"):
        boxes_from_maps(maps, threshold=0)


def test_box_masks():
    masks = box_masks([torch.tensor([[1.0, 0.0, 3.0, 2.0], [4.0, 3.0, 5.0, 4.0]]), torch.zeros(0, 4)], (4, 5))
    expected = torch.zeros(2, 4, 5, dtype=torch.bool)
    expected[0, :2, 1:3] = True
    expected[0, 3, 4] = True
    assert torch.equal(masks, expected)
    maps = torch.zeros(1, 9, 9)
    maps[0, 2:5, 3:8] = 1
    assert torch.equal(box_masks(list(boxes_from_maps(maps)), (9, 9)), maps.bool()), "boxes and masks share one convention"


def test_localisation_error():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 0, 0], [0, 0, 10, 10]])
    truth = [
        torch.tensor([[50.0, 50, 60, 60], [0, 0, 10, 20]]),  # IoU with the second: .5, a hit
        torch.tensor([[0.0, 0, 10, 20.1]]),
        torch.tensor([[0.0, 0, 10, 10]]),
        torch.zeros(0, 4),
    ]
    seen = localisation_error(boxes, truth)
    assert seen.value.tolist() == [0, 1, 1, 0]
    assert seen.counted.tolist() == [True, True, True, False] and seen.undefined.tolist() == [False, False, True, False]
    assert localisation_error(boxes, truth, iou=0.4).value.tolist() == [0, 0, 1, 0]
    assert localisation_error(boxes, truth, correct=torch.tensor([False, True, True, True])).value.tolist() == [1, 1, 1, 0]
    with pytest.raises(ValueError, match="3 sets"):
        localisation_error(boxes, truth[:3])


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda m: pointing_game(m, m[:, :2]), "one shape"),
        (lambda m: pointing_game(m, m, tolerance=-1), "negative"),
        (lambda m: pointing_game(m, m, tolerance=1, relative_tolerance=0.1), "not both"),
        (lambda m: energy_pointing_game(m - 1, m), "negative"),
        (lambda m: mask_iou(m, m[:1]), "one shape"),
    ],
)
def test_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call(torch.cat([at((1, 1)), at((2, 2))]))
