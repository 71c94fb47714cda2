"""Fidelity of the cheaper presets: by hand where it can be."""

import math

import pytest
import torch
from models import PooledNet, assert_same, snapshot
from torch import nn

from groupcam_aug import GroupCAM, measure_fidelity
from groupcam_aug.augment import keep_mask


@pytest.fixture
def net():
    torch.manual_seed(1)
    return PooledNet(channels=16).eval()


@pytest.fixture
def pictures():
    return torch.randn(10, 3, 24, 20, generator=torch.Generator().manual_seed(3))


def test_rows_by_hand(net, pictures):
    def halves(images, targets):
        maps = torch.zeros(len(images), 24, 20)
        maps[:, :12] = 1.0
        return maps

    def none(images, targets):
        return torch.zeros(len(images), 24, 20)

    before = snapshot(net)
    labels = torch.arange(10) % 5
    found = measure_fidelity(
        net, pictures, labels, groups=4, modes={"again": "input", "half": halves, "none": none, "cheap": "target"}, batch_size=4
    )
    assert_same(before, snapshot(net))
    exact = GroupCAM.for_training(net, groups=4)(pictures, labels)
    alive = exact.amax(dim=(1, 2)) > 0
    keep, upper = keep_mask(exact)[alive], torch.zeros(24, 20, dtype=torch.bool)
    upper[:12] = True
    iou = (keep & upper).sum(dim=(1, 2)) / (keep | upper).sum(dim=(1, 2))
    assert 2 <= alive.sum() < 10, "some without a map"
    assert [row.mode for row in found.rows] == ["paper", "again", "half", "none", "cheap"]
    assert found["paper"].iou == found["again"].iou == 1 and found["again"].spearman == pytest.approx(1)
    assert found["half"].iou == pytest.approx(float(iou.mean()))
    assert found["half"].iou_error == pytest.approx(float(iou.std() / len(iou) ** 0.5))
    assert found["none"].no_map == 1 and math.isnan(found["none"].iou) and found["half"].no_map == 0
    assert found["paper"].no_map == pytest.approx(1 - float(alive.float().mean()))
    assert found["paper"].cost == pytest.approx(6, abs=0.2) and found["half"].cost == 0
    assert 2 <= found["cheap"].cost < 2.5 and found["cheap"].time > 0
    assert found.images == 10 and found.layer == "relu2"
    assert "| half |" in str(found) and "noise floor" in str(found)
    with pytest.raises(KeyError, match="no mode 'best'"):
        found["best"]


def test_the_floor_is_the_exact_mask_with_its_channels_in_another_order(net, pictures):
    found = measure_fidelity(net, pictures, groups=4, modes=(), regroupings=2, seed=7, repeats=0)
    generator = torch.Generator().manual_seed(7)
    exact = GroupCAM.for_training(net, groups=4)
    reference = exact(pictures)
    ious = []
    for _ in range(2):
        exact.channels = torch.randperm(16, generator=generator)
        maps = exact(pictures)
        both = (maps.amax(dim=(1, 2)) > 0) & (reference.amax(dim=(1, 2)) > 0)
        a, b = keep_mask(maps)[both], keep_mask(reference)[both]
        ious.append((a & b).sum(dim=(1, 2)) / (a | b).sum(dim=(1, 2)))
    assert found.floor == pytest.approx(float(torch.cat(ious).mean())) and 0 < found.floor < 1
    assert both.sum() > 2, "and each image that has maps has both regroupings' below"
    own = torch.stack(ious).mean(dim=0)
    assert found.floor_error == pytest.approx(float(own.std() / len(own) ** 0.5)), "an image counts once, however often regrouped"
    assert math.isnan(found["paper"].time)


def test_one_group_has_no_grouping_to_be_noisy(net, pictures):
    assert measure_fidelity(net, pictures, groups=1, modes=(), repeats=0).floor == 1


@pytest.mark.parametrize("missing, recommended", [(1, "near"), (40, "paper")])
def test_two_hundredths_below_the_floor_are_within_it(net, pictures, missing, recommended):
    exact = GroupCAM.for_training(net, groups=1)
    maps = {image.sum().item(): found for image, found in zip(pictures, exact(pictures), strict=True)}

    def near(images, targets):  # pixels that are kept are lost
        found = torch.stack([maps[image.sum().item()] for image in images]).flatten(1)
        for row in found:
            row[keep_mask(row.view(1, 24, 20)).flatten().nonzero()[:missing, 0]] *= 0
        return found.view(-1, 24, 20)

    measured = measure_fidelity(net, pictures, groups=1, modes={"near": near}, repeats=0)
    assert measured.floor == 1 and measured["near"].iou < 1 and measured.recommended == recommended


def test_recommends_the_cheapest_within_the_floor(net, pictures):
    exact = GroupCAM.for_training(net, groups=4)
    found = measure_fidelity(
        net, pictures, groups=4, modes={"same, twice": lambda x, y: (exact(x, y), exact(x, y))[1]}, repeats=0
    )
    assert found.recommended == "paper", "as good, but dearer"
    close = GroupCAM.for_training(net, groups=4)

    def free(images, targets):
        return table[images.sum().item()]

    table = {part.sum().item(): close(part) for part in pictures.split(5)}
    found = measure_fidelity(
        net, pictures, groups=4, modes={"free": free, "off": lambda x, y: 1 - free(x, y)}, batch_size=5, repeats=0
    )
    assert found.recommended == "free" and found["off"].iou < found.floor

    def few(images, targets):
        return free(images, targets) * (torch.arange(len(images)) == 0)[:, None, None]

    found = measure_fidelity(net, pictures, groups=4, modes={"few": few}, batch_size=5, repeats=0)
    assert found["few"].iou == 1 and found["few"].no_map > 0.5 and found.recommended == "paper", "most images have no map"


def test_modes_by_preset(net, pictures):
    """Presets are names of scoring modes: the same maps, the same figures."""
    measured = measure_fidelity(net, pictures, layer="relu2", groups=4, repeats=0)
    assert [row.mode for row in measured.rows] == ["paper", "balanced", "target", "fast"]
    assert measured.recommended in ("paper", "balanced", "target", "fast") and "| fast |" in str(measured)
    again = measure_fidelity(
        net, pictures, layer="relu2", groups=4, modes=("stage", "target", "target, zero", "balanced", "input"), repeats=0
    )
    assert [row[:6] for row in again.rows] == [row[:6] for row in measured.rows]
    assert again["stage"] is again["balanced"] and again["target, zero"] is again["fast"] and again["input"].iou == 1
    for name, options in {"balanced": {"mask_at": "stage"}, "fast": {"mask_at": "target", "baseline": "zero"}}.items():
        by_hand = measure_fidelity(
            net,
            pictures,
            layer="relu2",
            groups=4,
            modes={"own": GroupCAM.for_training(net, "relu2", groups=4, **options)},
            repeats=0,
        )
        assert by_hand["own"][1:6] == measured[name][1:6], name
    assert len({row.iou for row in measured.rows}) == 4, "and they differ"
    with pytest.raises(ValueError, match="called 'paper'"):
        measure_fidelity(net, pictures, modes={"paper": "target"})


def test_importance_weights_reach_every_mode(net, pictures):
    labels = torch.arange(10) % 5
    measured = measure_fidelity(net, pictures, labels, layer="relu2", groups=4, modes=["fast"], weights="gradient", repeats=0)
    fast, paper = (
        GroupCAM.for_training(net, "relu2", groups=4, weights="gradient", **options)
        for options in ({"mask_at": "target", "baseline": "zero"}, {})
    )
    by_hand = measure_fidelity(
        net, pictures, labels, layer="relu2", groups=4, modes={"f": fast, "p": paper}, repeats=0, weights="gradient"
    )
    assert by_hand["f"][1:6] == measured["fast"][1:6] and by_hand["p"].iou == 1
    assert "importance weights: gradient" in str(measured)


def test_threshold_and_options_reach_masks_and_maps(net, pictures):
    labels = torch.arange(10) % 5
    options = {"activation": "sigmoid", "preprocess": lambda x: x * 2}
    exact = GroupCAM.for_training(net, "relu2", groups=4, **options)(pictures, labels)
    fast = GroupCAM.for_training(net, "relu2", groups=4, mask_at="target", baseline="zero", **options)(pictures, labels)
    both = (exact.amax(dim=(1, 2)) > 0) & (fast.amax(dim=(1, 2)) > 0)
    a, b = keep_mask(exact, "q0.8")[both], keep_mask(fast, "q0.8")[both]
    iou = (a & b).sum(dim=(1, 2)) / (a | b).sum(dim=(1, 2))
    assert both.sum() > 2 and 0 < iou.mean() < 1
    measured = measure_fidelity(
        net, pictures, labels, layer="relu2", groups=4, modes=["fast"], threshold="q0.8", repeats=0, **options
    )
    assert measured["fast"].iou == pytest.approx(float(iou.mean()))


def test_a_mode_without_a_place_is_unavailable_and_the_others_are_measured(pictures):
    class Front(PooledNet):
        """Nothing in front of the last block returns a grid."""

        def forward(self, x):
            return self.fc(self.relu2(self.conv2(self.relu1(self.bn1(self.conv1(x))))).mean(dim=(2, 3)))

    torch.manual_seed(1)
    net = Front(channels=16).eval()
    unused = nn.Conv2d(3, 3, 1)
    net.add_module("unused", unused)
    found = measure_fidelity(
        net, pictures, layer="bn1", groups=4, modes=("balanced", "unused", "target"), batch_size=4, repeats=0
    )
    assert [row.mode for row in found.rows] == ["paper", "balanced", "unused", "target"]
    assert "mask_at='stage' has no place" in found["balanced"].unavailable and math.isnan(found["balanced"].iou)
    assert "'unused' never fired" in found["unused"].unavailable and not found["target"].unavailable
    alone = measure_fidelity(net, pictures, layer="bn1", groups=4, modes=["target"], batch_size=4, repeats=0)
    assert found["target"][1:6] == alone["target"][1:6] and found.recommended == alone.recommended
    assert "| balanced | unavailable |" in str(found) and "\nbalanced is unavailable: layer 'bn1'" in str(found)

    def broken(images, targets):
        raise ValueError("of the caller")

    with pytest.raises(ValueError, match="of the caller"):
        measure_fidelity(net, pictures, layer="bn1", groups=4, modes={"mine": broken}, repeats=0)
    with pytest.raises(ValueError, match="no layer 'best'"):
        measure_fidelity(net, pictures, layer="bn1", groups=4, modes=["best"], repeats=0)


@pytest.mark.parametrize("options", [{"regroupings": 0}, {"batch_size": 0}, {"repeats": -1}])
def test_refuses(net, pictures, options):
    with pytest.raises(ValueError, match="at least one"):
        measure_fidelity(net, pictures, **options)
    with pytest.raises(ValueError, match="0 images"):
        measure_fidelity(net, pictures[:0])


def test_waiting_for_a_device(monkeypatch):
    from groupcam_aug.fidelity import wait_for

    waited = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append("mps"))
    wait_for(torch.device("cpu"))
    wait_for(torch.device("mps"))
    assert waited == ["mps"]
