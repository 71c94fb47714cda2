import dataclasses
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from cifar_like import make_folder
from torch import nn

from groupcam_aug import GroupCAM
from groupcam_aug.recipes.networks import CIFARResNet
from groupcam_aug.recipes.trial import backgrounds, finetune, scenes, shortcut
from groupcam_aug.recipes.trial.arms import read_arm
from groupcam_aug.recipes.trial.cifar import CLASSES, cifar10
from groupcam_aug.recipes.trial.regimes import Data, alignment, digest_of, prepare
from groupcam_aug.recipes.trial.run import Trial, run_trial
from groupcam_aug.recipes.trial.scenery import draw_scenes
from groupcam_aug.recipes.trial.stock import Stock
from groupcam_aug.recipes.trial.training import Machine, Schedule, Split, digest, seeded

CPU = Machine()


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    return Stock(tmp_path_factory.mktemp("starts"), make_folder(tmp_path_factory.mktemp("data")))


def test_cifar_is_read_from_both_sources(stock, tmp_path, monkeypatch):
    import pickle

    import torchvision

    train, test = cifar10(stock, 3)
    assert train.images.shape == (30, 3, 32, 32) and train.labels.tolist() == [label for label in range(10) for _ in range(3)]
    means = test.images.float().mean(dim=(1, 2, 3)).view(10, 3).mean(dim=1)
    assert (means.diff() > 0).all()  # brighter from class to class, as drawn
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels, labels = train.images.flatten(1).numpy()[::-1], train.labels.tolist()[::-1]
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": labels}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CLASSES)}))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    again, _ = cifar10(Stock(tmp_path / "starts", tmp_path), 3)
    assert torch.equal(again.labels, train.labels)
    assert {digest(image) for image in again.images} <= {digest(image) for image in train.images}


def test_what_is_prepared_is_the_same_from_files_and_from_scratch(stock, tmp_path):
    regime = dataclasses.replace(backgrounds.regimes("smoke")["rho0.95"], train=32, test=6, epochs=1, warmup=0)
    own = Stock(tmp_path)
    first = prepare(regime, 0, ("teacher", "few"), own, CPU)
    second = prepare(regime, 0, ("teacher", "few"), own, CPU)
    third = prepare(regime, 0, ("few", "teacher"), Stock(tmp_path / "else"), CPU)
    assert first.digests == second.digests == third.digests
    assert len(set(first.digests.values())) == 4  # data, start and both sources differ
    other = prepare(regime, 1, (), own, CPU)
    assert other.digests["data"] != first.digests["data"] and other.digests["start"] != first.digests["start"]
    assert len(list(tmp_path.glob("*-data.pt"))) == 2


@pytest.mark.parametrize("photos", [False, True])
def test_backgrounds_agree_as_often_as_rho_and_objects_stay(stock, photos):
    name = "photos0.8" if photos else "rho0.8"
    regime = dataclasses.replace(backgrounds.regimes("smoke")[name], train=150, test=18)
    data = regime.make_data(3, stock)
    kept, swapped, bare = (data.tests[split] for split in ("kept", "swapped", "object_free"))
    assert torch.equal(kept.labels, swapped.labels) and torch.equal(kept.masks, swapped.masks) and not bare.masks.any()
    inside = (F.avg_pool2d(kept.masks[:, None].float(), 3, 1, 1) == 1).expand(-1, 3, -1, -1)
    assert torch.equal(kept.images[inside], swapped.images[inside]) and inside.any()
    assert (kept.images != swapped.images)[~kept.masks[:, None].expand(-1, 3, -1, -1)].float().mean() > 0.8
    again = regime.make_data(3, stock)
    assert digest(*data.train) == digest(*again.train)
    assert digest(*data.tests["kept"]) != digest(*regime._draw("kept", 18, 0.8, 4, stock))
    if photos:
        # Photographs of class c are about 25 c bright, so the ground tells its class.
        ground = torch.where(data.train.masks[:, None], torch.nan, data.train.images.float()).nanmean(dim=(1, 2, 3))
        agree = ((ground / 25).round().clamp(0, 5).long() == data.train.labels).float().mean()
        assert agree == pytest.approx(0.8, abs=0.1)


def test_the_teacher_sees_the_same_objects_before_other_backgrounds(stock):
    for name in ("rho0.95", "photos0.95"):
        regime = backgrounds.regimes("smoke")[name]
        biased, clean = regime._draw("train", 60, 0.95, 0, stock), regime._draw("train", 60, 1 / 6, 0, stock)
        assert torch.equal(biased.masks, clean.masks) and torch.equal(biased.labels, clean.labels)
        assert 0.5 < (biased.images != clean.images).flatten(1).any(dim=1).float().mean() <= 1


class Says(nn.Module):
    """Predicts the class that the first pixel says."""

    def forward(self, x):
        said = ((x[:, 0, 0, 0] * 0.25 + 0.5) * 255).round().long().clamp(0, 9)
        return F.one_hot(said, 10).float()


def said(predictions, labels, **more):
    images = torch.zeros(len(labels), 3, 4, 4, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor(predictions, dtype=torch.uint8)
    return Split(images, torch.tensor(labels), torch.zeros(len(labels), 4, 4, dtype=torch.bool), **more)


def test_metrics_of_backgrounds_by_hand(monkeypatch):
    monkeypatch.setattr(shortcut, "alignment", lambda *_: {"alignment": 2.0, "no_map": 0.25})
    labels = [0, 1, 2, 3, 4, 5, 0, 1]
    tests = {
        "kept": said([0, 1, 2, 3, 4, 5, 0, 0], labels),  # 7 of 8
        "swapped": said([0, 1, 2, 3, 5, 5, 1, 0], labels),  # 5 of 8; class 4 never, class 1 half
        "object_free": said([0, 0, 0, 0, 0, 0, 0, 0], labels),
    }
    got = backgrounds.regimes("smoke")["rho0.5"].measure(Says(), Data(tests["kept"], tests), CPU, 0)
    assert (got["kept"], got["swapped"], got["object_free"]) == (7 / 8, 5 / 8, 2 / 8)
    assert got["gap"] == 2 / 8 and got["worst"] == 0.0 and got["alignment"] == 2.0


def test_what_the_sources_are_trained_on(stock, monkeypatch):
    regime = dataclasses.replace(backgrounds.regimes("smoke")["rho0.95"], train=36, test=6, epochs=1, warmup=0, batch=12)
    regime = dataclasses.replace(regime, clean_images=12)
    data, trained = regime.make_data(0, stock), []
    monkeypatch.setattr(shortcut, "fit", lambda _, split, schedule, *__: trained.append((digest(split.images), schedule.lr)))
    monkeypatch.setattr(shortcut, "kept_network", lambda _, __, network, train, ___: train(network))
    clean, little = (regime.draw_clean(*what, 0, stock) for what in (("train", 36), ("val", 12)))
    assert len({digest(split.images) for split in (data.train, clean, little)}) == 3
    assert torch.equal(clean.masks, data.train.masks), "the very objects, before other backgrounds"
    regime.make_source("teacher", 0, stock, CPU, data)
    assert trained == [(digest(clean.images), regime.lr)]
    trained.clear()
    regime.make_source("few", 0, stock, CPU, data)
    assert trained == [(digest(data.train.images), regime.lr), (digest(little.images), regime.lr / 5)]


def test_a_source_is_measured_as_it_is(stock, tmp_path):
    regime = dataclasses.replace(backgrounds.regimes("smoke")["rho0.95"], train=36, test=12, epochs=1, warmup=0, batch=12)
    start = prepare(regime, 0, ("teacher",), Stock(tmp_path), CPU)
    for name, network in (("frozen,source=teacher", start.sources["teacher"]), ("none", None)):
        got = run_trial(Trial(regime, read_arm(name), 0, CPU), start)["metrics"]
        assert (got == regime.measure(start.sources["teacher"], start.data, CPU, 0)) == (network is not None)


def test_maps_are_measured_with_and_without_weights(monkeypatch):
    monkeypatch.setattr(shortcut, "alignment", lambda *given: {"alignment": given[-1], "no_map": 0.0})
    split = Split(*(torch.zeros(4, 1) for _ in range(3)))
    got = backgrounds.regimes("smoke")["rho0.5"].measure_maps(None, split, CPU)
    assert (got["alignment"], got["alignment_weights"]) == ("none", "gradient")


def test_alignment_of_a_hand_made_map(monkeypatch):
    from models import EchoNet

    # Class 0 sums the first channel, which is bright on the left half only; its map lies there.
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    images[:, 0, :, :4] = 255
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :, :4] = True  # all energy inside, half of the image: 2
    masks[1, :, 4:] = True  # none inside
    split, schedule = Split(images, torch.zeros(2, dtype=torch.int64), masks), Schedule(epochs=1, batch=1, lr=1.0, mean=(0, 0, 0))
    one_group = type("OneGroup", (), {"for_training": functools.partial(GroupCAM.for_training, groups=1)})
    monkeypatch.setattr("groupcam_aug.recipes.trial.regimes.GroupCAM", one_group)
    first, got = (alignment(EchoNet(3), split.part(slice(count)), schedule, CPU) for count in (1, 2))
    assert first == {"alignment": pytest.approx(2.0), "no_map": 0.0}
    assert got["alignment"] == pytest.approx(1.0)


def test_few_images_are_as_many_of_each_class_and_drawn_by_the_seed(stock):
    regime = finetune.regimes("smoke")["resnet20-50"]
    data = regime.make_data(0, stock)
    assert data.train.labels.bincount().tolist() == [4] * 10 and data.tests["test"].labels.bincount().tolist() == [2] * 10
    other = regime.make_data(1, stock)
    assert digest(data.train.images) != digest(other.train.images)
    assert digest(data.tests["test"].images) == digest(other.tests["test"].images)
    with pytest.raises(ValueError, match="per_class=50, but class airplane has only 8 images"):
        dataclasses.replace(regime, per_class=50).make_data(0, stock)


def test_pretrained_starts_are_the_same_for_all_seeds_and_fresh_ones_are_not(stock):
    table = finetune.regimes("smoke")
    pretrained, fresh = table["resnet20-50"], table["scratch-50"]
    assert digest_of(pretrained.make_network(0, stock)) == digest_of(pretrained.make_network(1, stock))
    assert digest_of(fresh.make_network(0, stock)) == digest_of(fresh.make_network(0, stock))
    assert digest_of(fresh.make_network(0, stock)) != digest_of(fresh.make_network(1, stock))
    assert pretrained.pretrained and not fresh.pretrained and table["resnet56-50"].sources == ()
    data = pretrained.make_data(0, stock)
    assert len(list(pretrained.make_source("teacher", 0, stock, CPU, data).layer3)) == 9


def test_bare_regimes_are_those_from_scratch_without_crops_and_flips():
    for size in ("smoke", "cpu", "full"):
        table = finetune.regimes(size)
        for amount in ("20", "50", "500", "full"):
            bare, fresh = table[f"bare-{amount}"], table[f"scratch-{amount}"]
            assert (bare.pad, bare.flip, fresh.pad, fresh.flip) == (0, False, 4, True)
            assert dataclasses.replace(bare, name=fresh.name, pad=4, flip=True) == fresh


def test_a_network_of_ones_own(tmp_path):
    regime = finetune.regimes("smoke")["own-50"]
    weights = tmp_path / "mine.pt"
    network = CIFARResNet(8, 10, 4)
    torch.save(network.state_dict(), weights)
    with pytest.raises(ValueError, match="belong to the regimes own-20"):
        finetune.with_own(regime, None, None)
    with pytest.raises(ValueError, match="got scratch-50"):
        finetune.with_own(finetune.regimes("smoke")["scratch-50"], "resnet18", str(weights))
    own = finetune.with_own(regime, "torchvision/resnet18", str(weights))
    with pytest.raises(ValueError, match="does not fit ResNet"):
        own.make_network(0, Stock(tmp_path))


def test_metrics_of_finetune_by_hand(stock):
    regime = dataclasses.replace(finetune.regimes("smoke")["resnet20-50"], mean=(0.5,) * 3, std=(0.25,) * 3)
    test = said([0, 1, 2, 9], [0, 1, 2, 3])
    got = regime.measure(Says(), Data(said([5, 5], [5, 4]), {"test": test}), CPU, 0)
    assert got["top1"] == 0.75 and got["fit"] == 0.5
    sure = math.e / (math.e + 9)  # softmax of the one-hot logits
    assert got["nll"] == pytest.approx(-(3 * math.log(sure) + math.log(sure / math.e)) / 4)
    assert got["ece"] == pytest.approx(0.75 - sure)
    assert 0 <= got["robust"] <= 1 and 0 <= got["robust_blur"] <= 1


def test_scenes_agree_as_often_as_rho_and_test_objects_stay(stock):
    regime = dataclasses.replace(scenes.regimes("smoke")["texture"], train=400, test=80, kinds=4)
    data = regime.make_data(0, stock)
    assert (data.train.groups == data.train.labels).float().mean() == pytest.approx(0.95, abs=0.03)
    same, rand = data.tests["same"], data.tests["rand"]
    assert torch.equal(same.groups, same.labels) and torch.equal(same.masks, rand.masks)
    assert (rand.groups == rand.labels).float().mean() == pytest.approx(1 / 4, abs=0.12)
    inside = (F.avg_pool2d(same.masks[:, None].float(), 7, 1, 3) == 1).expand(-1, 3, -1, -1)
    assert torch.equal(same.images[inside], rand.images[inside]) and inside.any()
    area = same.masks.float().mean(dim=(1, 2))
    assert 0.1 < area.min() and area.max() < 0.4


def test_a_blur_takes_away_textures_and_leaves_colours():
    """Nearest mean colour of the ground: what remains of a scene when it is blurred."""
    families = torch.arange(400) % 4

    def readable(kind):
        images, masks = draw_scenes(torch.zeros(400, 3, 32, 32), families, 4, 48, kind, seeded(0))
        ground = torch.where(masks[:, None], torch.nan, images.float()).nanmean(dim=(2, 3))
        ground = ground / ground.norm(dim=1, keepdim=True)
        centres = torch.stack([ground[:200][families[:200] == k].mean(dim=0) for k in range(4)])
        return (torch.cdist(ground[200:], centres).argmin(dim=1) == families[200:]).float().mean()

    assert readable("colour") > 0.8
    assert readable("texture") < 0.45


def test_metrics_of_scenes_by_hand(monkeypatch):
    monkeypatch.setattr(shortcut, "alignment", lambda *_: {"alignment": 2.0, "no_map": 0.25})
    labels = [0, 1, 2, 3, 0, 1, 2, 3]
    same = said([0, 1, 2, 3, 0, 1, 2, 0], labels, groups=torch.tensor(labels))  # 7 of 8
    families = [0, 0, 0, 0, 1, 1, 1, 1]  # 2 aligned, 6 conflicting
    rand = said([0, 0, 2, 3, 0, 1, 1, 1], labels, groups=torch.tensor(families))  # right: 0, 2, 3, 4, 5; conflicting: 2, 3, 4
    regime = dataclasses.replace(scenes.regimes("smoke")["texture"], kinds=4)
    got = regime.measure(Says(), Data(same, {"same": same, "rand": rand}), CPU, 0)
    assert (got["same"], got["rand"], got["gap"]) == (7 / 8, 5 / 8, 2 / 8)
    assert got["id"] == pytest.approx(0.95 * 7 / 8 + 0.05 * 3 / 6)
    assert got["worst"] == 0.0  # class 1 against a foreign scene: one sample, wrong


def test_full_size_networks_give_an_8_x_8_map():
    network = scenes.FourStages(10, 4).eval()
    seen = []
    network.layer4.register_forward_hook(lambda *args: seen.append(args[2].shape))
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 10) and seen[0] == (2, 32, 8, 8)


@pytest.mark.parametrize("study", [backgrounds, finetune, scenes])
def test_every_size_names_the_same_regimes_and_plans_what_there_is(study):
    from groupcam_aug.recipes.trial.arms import read_arm
    from groupcam_aug.recipes.trial.run import Trial, check_trial

    tables = {size: study.regimes(size) for size in ("smoke", "cpu", "full")}
    assert len({tuple(table) for table in tables.values()}) == 1
    for size, table in tables.items():
        for name, regime in table.items():
            assert regime.name == name and regime.size == size
            names = {metric.name for metric in regime.metrics}
            assert {regime.primary, regime.clean, regime.second} <= names
        for plan in study.plans(size):
            for regime in plan.regimes:
                for arm in plan.arms:
                    check_trial(Trial(table[regime], read_arm(arm), 0, CPU))
