"""The numbers of the monitor, from maps made by hand."""

import math

import pytest
import torch
from monitoring import Plain, textures
from torch.nn import functional as F

from groupcam_aug import GradCAM
from groupcam_aug.callbacks.monitoring.map_stats import UNKNOWN, Reading, alive, map_statistics, pack, read_maps, unpack


def reading(maps, right, chosen=None):
    maps = torch.tensor(maps, dtype=torch.float16).view(len(maps), 2, 2)
    right = torch.tensor(right)
    chosen = torch.zeros(len(maps), dtype=torch.long) if chosen is None else torch.tensor(chosen)
    return Reading(maps, maps, chosen, right, torch.zeros(len(maps)))


UP, DOWN, DEAD = [0.25, 0.5, 0.75, 1.0], [1.0, 0.75, 0.5, 0.25], [0.0, 0, 0, 0]


def test_numbers_by_hand():
    before = reading([UP, UP, DEAD, DEAD], [True, True, True, False], [0, 1, 2, 3])
    now = reading([UP, DOWN, UP, DEAD], [True, False, True, True], [0, 1, 0, 3])
    seen = map_statistics(before, now, grid=14, min_alive=0.5, warm=True)
    assert seen["change"] == pytest.approx((0 + 1 + 1) / 3), "same, reversed, came to life; dead both times does not count"
    assert seen["spearman"] == pytest.approx((1 - 1) / 2) and seen["alive"] == 0.75 and seen["counted"] == 3
    assert seen["mass_shift"] == pytest.approx((0 + 0.4 + 1) / 3, abs=1e-4)
    assert seen["change_correct"] == pytest.approx(0.5) and seen["counted_correct"] == 2, "right both times"
    assert seen["correct"] == 0.75, "right now"
    assert seen["spearman_correct"] == 1 and seen["alive_correct"] == 1 and seen["flip_rate"] == 0.25
    assert seen["noise"] == 0 and seen["floor"] == pytest.approx(-1), "UP beside DOWN beside UP"


@pytest.mark.parametrize(
    ("before", "now", "warm", "expected"),
    [
        ([UP, UP], [UP, UP], False, {"change": 1, "change_correct": 1, "spearman": 1, "alive": 1}),  # before warm-up
        ([UP, UP, UP], [UP, DEAD, DEAD], True, {"change": 1, "change_correct": 1, "spearman": 1}),  # too few alive to trust
        ([UP, UP], [UP, DEAD], True, {"change": 0.5, "alive": 0.5}),  # just enough
        ([DEAD, DEAD], [DEAD, DEAD], True, {"change": 1, "spearman": 0, "mass_shift": 1, "noise": 1, "counted": 0}),
        (None, [UP, UP], False, {"change": 1, "spearman": 0, "mass_shift": 1, "noise": 0, "alive": 1}),
    ],
)
def test_change_that_is_not_trusted_is_one(before, now, warm, expected):
    ones = [True] * len(now)
    seen = map_statistics(before and reading(before, ones), reading(now, ones), grid=14, min_alive=0.5, warm=warm)
    assert seen.keys() == UNKNOWN.keys() and all(math.isfinite(value) for value in seen.values())
    assert {name: seen[name] for name in expected} == pytest.approx(expected)


def test_noise_is_of_the_mirrored_maps_and_of_those_classified_as_labelled():
    maps = torch.tensor([UP, UP, UP]).view(3, 2, 2).half()
    mirrored = torch.tensor([UP, DOWN, DEAD]).view(3, 2, 2).half()
    now = Reading(maps, mirrored, torch.zeros(3, dtype=torch.long), torch.tensor([False, True, True]), torch.zeros(3))
    seen = map_statistics(None, now, grid=14, min_alive=0.5, warm=False)
    assert seen["noise"] == pytest.approx((0 + 1) / 2), "without a map of the mirror image nothing is said"
    assert seen["noise_correct"] == 1 and seen["alive_correct"] == 1


def test_the_floor_is_of_maps_of_different_images():
    def floor(*maps):
        return map_statistics(None, reading([*maps], [True] * len(maps)), grid=14, min_alive=0.5, warm=False)["floor"]

    assert floor(UP, UP, UP) == pytest.approx(1) and floor(UP, DOWN) == pytest.approx(-1)
    assert floor(UP, DEAD, DEAD) == 0


def test_a_reading_survives_its_packing_scaled_and_rounded():
    maps = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0)) * 7
    maps[1] = 0
    maps[2, 0, 0] = float("nan")
    before = Reading(
        maps, maps.flip(-1), torch.tensor([3, 0, 1]), torch.tensor([True, False, True]), torch.rand(3), torch.rand(3)
    )
    after = unpack(pack(before), (4, 5))
    assert torch.equal(after.maps[0], (maps[0] / maps[0].max()).half()) and after.maps.dtype == torch.float16
    assert torch.equal(after.mirrored[0], after.maps[0].flip(-1)) and not after.maps[1:].any(), "no number, no map"
    assert after.chosen.tolist() == [3, 0, 1] and after.right.tolist() == [True, False, True]
    assert torch.equal(after.score, before.score) and torch.equal(after.confidence, before.confidence)
    assert alive(after, 14) == [True, False, False]


def test_a_reading_of_a_network():
    torch.manual_seed(0)
    (images, labels), network = textures(4), Plain().eval()
    cam = GradCAM(network, "act")
    with torch.no_grad():
        logits = network(images)
    seen = read_maps(cam, images, labels, "softmax", 8)
    assert torch.equal(seen.maps, F.adaptive_avg_pool2d(cam.raw(images, labels), 8))
    assert torch.equal(seen.mirrored, F.adaptive_avg_pool2d(cam.raw(images.flip(-1), labels), 8).flip(-1))
    assert torch.equal(seen.chosen, logits.argmax(1)) and torch.equal(seen.right, logits.argmax(1) == labels)
    assert torch.allclose(seen.score, logits.softmax(1)[torch.arange(4), labels])
    assert torch.allclose(seen.confidence, logits.softmax(1).amax(1))
    soft = F.one_hot(labels, 4).float() * 0.9 + 0.025
    assert torch.equal(read_maps(cam, images, soft, "softmax", 8).right, seen.right)
    with torch.no_grad():
        single = Plain(classes=1).eval()
        chosen, sure = (single(images)[:, 0] > 0).long(), single(images)[:, 0].abs().sigmoid()
    binary = read_maps(GradCAM(single, "act"), images, (labels > 1).float(), "sigmoid", 8)
    assert torch.allclose(binary.confidence, sure)
    assert torch.equal(binary.chosen, chosen) and torch.equal(binary.right, chosen.bool() == (labels > 1))
