"""The network of explain, evaluate and fidelity: which classes it has, and how they are named."""

import argparse

import numpy as np
import pytest
import timm
import torch
from torch import nn

from groupcam_aug.recipes import model_loading
from groupcam_aug.recipes.model_loading import LoadedModel, load_model, read_images
from groupcam_aug.recipes.parsers import add_network


def named(*names):
    return LoadedModel(nn.Identity(), lambda picture: torch.zeros(3, 8, 8), (0, 0, 0), (1, 1, 1), names, "")


def test_a_class_is_found_by_name_before_number():
    digits = named("1", "10", "2", "3")
    assert [digits.class_index(name) for name in ("1", "10", "2", "3", "0")] == [0, 1, 2, 3, 0]
    mixed = named("Ant", "bee", "BEE")
    assert [mixed.class_index(name) for name in ("ant", "bee", "BEE", "2")] == [0, 1, 2, 2]
    with pytest.raises(ValueError, match="outside the 4 classes"):
        digits.class_index("12")
    for name in ("\u00b2", "--1", "-\u00b2"):  # a superscript is a digit, but no number
        with pytest.raises(ValueError, match="no class .*give a number from 0 to 3"):
            digits.class_index(name)
    with pytest.raises(ValueError, match="target -1 is outside the 4 classes"):
        digits.class_index("-1")


def test_a_class_that_is_not_known_is_answered_with_those_that_are():
    def told(name, *names):
        with pytest.raises(ValueError) as error:
            named(*names).class_index(name)
        return str(error.value)

    assert told("dog", "ant", "bee") == "no class 'dog'; the classes: ant, bee; or give a number from 0 to 1"
    assert told("aunt", "ant", "bee").startswith("no class 'aunt'; did you mean 'ant'?; the classes: ant, bee;")
    assert told("wolf", "grey wolf", "bee").startswith("no class 'wolf'; did you mean 'grey wolf'?; the classes: grey wolf")
    some = told("dog", "Eskimo dog", "bee", "dogsled", "hot dog")
    assert some == "no class 'dog'; classes with that in their name: Eskimo dog, dogsled, hot dog; or give a number from 0 to 3"
    many = told("dog", *(f"k{i}" for i in range(50)))
    assert "k19, ... (50 in all); or" in many and "k20" not in many


def options(*words):
    parser = argparse.ArgumentParser()
    add_network(parser)
    return parser.parse_args(["--device", "cpu", *words])


def test_published_weights_keep_their_own_number_of_classes(monkeypatch):
    built = []

    def build(spec, count, pretrained=False):
        built.append((spec, count, pretrained))
        return timm.create_model("resnet18", num_classes=count)

    monkeypatch.setattr(model_loading, "build_network", build)
    found = load_model(options("--model", "timm/resnetv2_50x1_bit.goog_in21k", "--pretrained"))
    assert built == [("timm/resnetv2_50x1_bit.goog_in21k", 21843, True)] and found.class_names[7] == "class 7"
    assert load_model(options("--model", "timm/resnet18", "--pretrained")).class_names[0] == "tench"
    assert load_model(options("--model", "torchvision/resnet18", "--pretrained")).class_names[0] == "tench"


def test_published_weights_without_a_classifier_are_refused():
    with pytest.raises(ValueError, match="have no classifier; fine-tune it"):
        load_model(options("--model", "timm/vit_small_patch14_dinov2.lvd142m", "--pretrained"))


def test_a_checkpoint_s_own_crop_and_timm_s(monkeypatch, tmp_path):
    import pytorch_lightning as pl
    from PIL import Image

    from groupcam_aug.recipes.classifier import Classifier
    from groupcam_aug.recipes.data import eval_transform

    network = {"class_path": "groupcam_aug.recipes.networks.CIFARResNet", "init_args": {"depth": 8, "width": 4}}
    module = Classifier(network, num_classes=3, size=32, mean=[0.0] * 3, std=[1.0] * 3)
    trainer = pl.Trainer(max_steps=0, logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    content = torch.load(tmp_path / "last.ckpt", weights_only=False)
    torch.save({**content, "ImageData": {"resize": 40, "val_fraction": 0.2, "seed": 0}}, tmp_path / "last.ckpt")
    noise = torch.randint(0, 256, (60, 50, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(noise.numpy())

    def seen(size, resize):
        pixels = torch.tensor(np.asarray(eval_transform(size, resize)(picture))).permute(2, 0, 1)
        return pixels / 255

    mine = load_model(options("--ckpt", str(tmp_path / "last.ckpt")))
    torch.testing.assert_close(mine.transform(picture), seen(32, 40))
    smaller = load_model(options("--ckpt", str(tmp_path / "last.ckpt"), "--size", "24"))
    torch.testing.assert_close(smaller.transform(picture), seen(24, None), msg="the shorter side belongs to the other size")
    whole = load_model(options("--ckpt", str(tmp_path / "last.ckpt"), "--resize", "squash"))
    squashed = picture.resize((32, 32), Image.Resampling.BILINEAR)
    torch.testing.assert_close(whole.transform(picture), torch.tensor(np.asarray(squashed)).permute(2, 0, 1) / 255)
    assert whole.description == f"{mine.description}, squashed"
    with pytest.raises(ValueError, match="says itself which network it holds.*leave out --model"):
        load_model(options("--ckpt", str(tmp_path / "last.ckpt"), "--model", "timm/resnet18"))
    net = timm.create_model("resnet18", num_classes=1000)
    net.pretrained_cfg = {**net.pretrained_cfg, "input_size": (3, 32, 32), "crop_pct": 0.5, "mean": (0, 0, 0), "std": (1, 1, 1)}
    monkeypatch.setattr(model_loading, "build_network", lambda *_: net)
    theirs = load_model(options("--model", "timm/resnet18", "--pretrained"))
    torch.testing.assert_close(theirs.transform(picture), seen(32, 64))


def test_a_state_dict_tells_the_number_of_classes_and_three_spellings_are_one(tmp_path):
    torch.save(timm.create_model("resnet18", num_classes=7).state_dict(), tmp_path / "w.pt")
    for flag in ("--checkpoint", "--ckpt_path", "--ckpt"):
        loaded = load_model(options("--model", "timm/resnet18", flag, str(tmp_path / "w.pt"), "--size", "64"))
        assert len(loaded.class_names) == 7 and loaded.network.fc.out_features == 7
        assert loaded.description == "timm/resnet18, 64 px" and loaded.class_names[3] == "class 3"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say which network: --checkpoint FILE, or --model NAME with"),
        (["--pretrained", "--checkpoint", "FILE"], "--model NAME, which is missing"),
        (["--model", "timm/resnet18"], "needs its weights: --checkpoint FILE"),
        (["--model", "timm/resnet18", "--pretrained", "--checkpoint", "FILE"], "and not both"),
        (["--checkpoint", "FILE"], "not a checkpoint of `groupcam-aug fit`.*a plain state dict needs the name of its network"),
        (["--checkpoint", "nowhere.ckpt"], "nowhere.ckpt': no such file"),
    ],
)
def test_wrong_networks_are_refused_with_the_way_out(tmp_path, words, message):
    torch.save(timm.create_model("resnet18", num_classes=7).state_dict(), tmp_path / "w.pt")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_model(options(*(str(tmp_path / "w.pt") if word == "FILE" else word for word in words)))


def test_images_come_in_batches_and_broken_ones_are_noted(tmp_path):
    from PIL import Image

    for i in range(5):
        Image.new("RGB", (9, 9), (i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"nothing")
    paths, failed = sorted(tmp_path.glob("*.png")), {}
    batches = list(read_images(paths, named("a"), 2, failed))
    assert [[path.name for path in batch] for batch, _ in batches] == [["0.png", "1.png"], ["3.png", "4.png"]]
    assert all(images.shape == (2, 3, 8, 8) for _, images in batches) and list(failed) == [tmp_path / "2.png"]
