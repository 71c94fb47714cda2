"""Boxes: hand-computed cases, and scipy's labelling."""

import numpy
import pytest
import torch
from scipy import ndimage

from groupcam_aug import metrics
from groupcam_aug.metrics.boxes import _largest_part, box_masks, boxes_from_maps, localisation_error


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


def test_metric_is_the_mean_of_the_function():
    maps = torch.zeros(3, 6, 8)
    maps[0, 1:3, 2:7] = 1
    maps[0, 4, 0] = 0.3  # a part of its own at the threshold below, a bridge to nothing
    maps[1, 0, :4] = 1
    truth = [torch.tensor([[2.0, 1, 7, 4]]), torch.tensor([[0.0, 0, 8, 1]]), torch.zeros(0, 4)]
    for iou, expected in ((0.6, 0.5), (0.4, 0.0), (0.7, 1.0)):
        metric = metrics.LocalisationError(threshold=0.2, iou=iou)
        metric.update(maps, truth)
        error = localisation_error(boxes_from_maps(maps, threshold=0.2), truth, iou=iou)
        assert metric.compute() == expected == error.value.sum() / 2 and metric.localisation_skipped == 1
    wrong = metrics.LocalisationError(iou=0.4)
    wrong.update(maps, truth, torch.tensor([True, False, True]))
    assert wrong.compute() == 0.5
