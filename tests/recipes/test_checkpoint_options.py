"""A checkpoint on the command line: it holds in any order of options, and what contradicts it is refused."""

import itertools
import json

import pytest
import pytorch_lightning as pl
import torch
import yaml
from lit import SILENT
from PIL import Image

from groupcam_aug.recipes import lightning_cli
from groupcam_aug.recipes.checkpoint_options import check_same, from_checkpoint
from groupcam_aug.recipes.classifier import Classifier
from groupcam_aug.recipes.cli import main

NETWORK = {"class_path": "groupcam_aug.recipes.networks.CIFARResNet", "init_args": {"depth": 8, "width": 4}}
MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.logger", "false"]
DATA = ["--data.root", "images", "--data.num_workers", "0"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with images of two classes, the checkpoint x.ckpt and the config of its training, own.yaml."""
    monkeypatch.chdir(tmp_path)
    for c, name in enumerate(("ant", "bee")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (50, 43), (200 * c, 20 * i, 0)).save(tmp_path / "images" / name / f"{i}.png")
    torch.manual_seed(0)
    module = Classifier(NETWORK, 2, class_names=["ant", "bee"], mean=MEAN, std=STD, size=32)
    trainer = pl.Trainer(**SILENT, max_steps=0)
    trainer.strategy.connect(module)
    trainer.save_checkpoint("x.ckpt")
    content = torch.load("x.ckpt", weights_only=True)
    torch.save({**content, "ImageData": {"resize": 40, "val_fraction": 0.5, "seed": 3}}, "x.ckpt")
    config = {
        "model": {
            "class_path": "groupcam_aug.recipes.classifier.Classifier",
            "init_args": {"network": NETWORK, "pretrained": True},
        },
        "data": {"class_path": "groupcam_aug.recipes.data.ImageData", "init_args": {"root": "images", "size": 32, "seed": 3}},
        "ckpt_path": None,  # as `fit` saves it
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


@pytest.fixture
def used(monkeypatch):
    """What each command went to work with, in place of the work."""
    found = []

    def note(self, subcommand):
        data, init = self.datamodule, self.config_init[subcommand]
        found.append(
            (self.model, data.size, data.resize, list(data.mean), list(data.std), data.val_fraction, data.seed, init["ckpt_path"])
        )

    monkeypatch.setattr(lightning_cli.GroupCAMCLI, "_run_subcommand", note)
    return found


def check(used, path="x.ckpt"):
    model, *rest = used.pop()
    assert rest == [32, 40, MEAN, STD, 0.5, 3, path]
    held = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(value, held[name]) for name, value in model.state_dict().items())


ORDERS = list(
    itertools.permutations(
        (
            ["--ckpt_path", "x.ckpt"],
            ["--config", "own.yaml"],
            ["--model.network", json.dumps(NETWORK)],
            [*DATA, "--data.resize=40"],
        )
    )
)


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
@pytest.mark.parametrize(
    "words",
    [
        ["--ckpt_path", "x.ckpt", "--config", "own.yaml"],
        ["--config", "own.yaml", "--ckpt_path=x.ckpt"],
        ["--ckpt", "x.ckpt", "-c", "own.yaml"],
        ["--ckpt_path", "x.ckpt", "--model.network", json.dumps(NETWORK), *DATA],
        [
            "--ckpt_path",
            "x.ckpt",
            "--model.network.class_path",
            NETWORK["class_path"],
            "--model.network.init_args.depth=8",
            *DATA,
        ],
        ["--ckpt_path", "x.ckpt", "--model", "Classifier", "--data", "ImageData", *DATA],
        ["--ckpt_path", "gone.ckpt", "--ckpt_path", "x.ckpt", "--model.lr", "3", *DATA],
        ["--config", "named.yaml"],
        ["--config", "named.yaml", "--config", "part.yaml"],
    ],
)
def test_what_a_checkpoint_holds_holds(folder, used, words, command):
    config = yaml.safe_load((folder / "own.yaml").read_text())
    (folder / "named.yaml").write_text(yaml.safe_dump({**config, "ckpt_path": "x.ckpt"}))
    (folder / "part.yaml").write_text("trainer: {max_epochs: 1}\n")
    assert main([command, *words, *QUIET]) == 0
    check(used)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["validate", "test", "predict"])
@pytest.mark.parametrize("order", range(len(ORDERS)))
def test_every_order_of_options(folder, used, order, command):
    for count in range(4):  # leave some out at the end
        words = list(itertools.chain(*ORDERS[order][: 4 - count]))
        if "--ckpt_path" in words:
            data = [] if "own.yaml" in words or "--data.root" in words else DATA
            assert main([command, *words, *data, *QUIET]) == 0
            check(used)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("order", range(2))
def test_a_training_goes_on_in_any_order_of_options(folder, order):
    words = ["--model.network", json.dumps(NETWORK), *DATA, "--data.size", "32", "--trainer.max_epochs", "1"]
    assert main(["fit", *words, "--trainer.default_root_dir", "run", "--trainer.accelerator", "cpu"]) == 0
    (config,), (path,) = (folder / "run").rglob("config.yaml"), (folder / "run").rglob("*.ckpt")
    pair = [["--ckpt_path", str(path)], ["--config", str(config)]]
    assert main(["fit", *pair[order], *pair[1 - order], "--trainer.max_epochs", "2", "--trainer.default_root_dir", "more"]) == 0
    (last,) = (folder / "more").rglob("*.ckpt")
    assert torch.load(last, weights_only=True)["epoch"] == 1 and torch.load(last, weights_only=True)["global_step"] == 2


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--config", "own.yaml", "--model.pretrained", "false"],
            "needs a checkpoint: add --ckpt_path FILE (or --ckpt_path null",
        ),
        ([*DATA], "needs a checkpoint: add --ckpt_path FILE"),
        (["--ckpt_path", "last", *DATA], "--ckpt_path last finds no checkpoint"),
        (["--ckpt_path", "best", *DATA], "--ckpt_path best names the best of a training in the same process"),
        (["--ckpt_path", "gone.ckpt", *DATA], "'gone.ckpt': no such file"),
        (["--ckpt_path", "gone.ckpt", "--config", "own.yaml"], "'gone.ckpt': no such file"),
        (["--ckpt_path", "x.ckpt", "--model.network", "timm/resnet18", *DATA], "but config or command line say 'timm/resnet18'"),
        (["--model.network.init_args.width", "8", "--ckpt_path", "x.ckpt", *DATA], "model.network.init_args.width=4, but"),
        (["--model.num_classes", "3", "--ckpt_path", "x.ckpt", *DATA], "num_classes=2, but config or command line say 3"),
        (["--ckpt_path", "x.ckpt", "--data.mean", "[0.5,0.5,0.5]", *DATA], "data.mean=[0.1, 0.2, 0.3], but"),
        (["--ckpt_path", "x.ckpt", "--data.seed", "4", *DATA], "data.seed=3, but config or command line say 4"),
        (["--ckpt_path", "x.ckpt", "--config", "other.yaml"], "data.size=32, but config or command line say 64"),
    ],
)
def test_what_is_missing_or_contradicts_is_refused(folder, used, capsys, words, told, command):
    (folder / "other.yaml").write_text(
        "data: {class_path: groupcam_aug.recipes.data.ImageData, init_args: {size: 64, root: images}}\n"
    )
    assert main([command, *words, *QUIET]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert told in message and not used


def test_a_network_as_the_config_makes_it_is_tested_where_that_is_said(folder, used):
    for words in (["--ckpt_path", "null"], ["--model.checkpoint", "start.pt"]):
        torch.save({k.removeprefix("network."): v for k, v in torch.load("x.ckpt")["state_dict"].items()}, "start.pt")
        assert main(["test", "--model.network", json.dumps(NETWORK), "--data.size", "32", *words, *DATA, *QUIET]) == 0
        assert used.pop()[-1] is None


def test_another_resolution_is_a_question_one_may_ask(folder, used, capsys):
    assert main(["test", "--ckpt_path", "x.ckpt", "--data.size", "48", *DATA, *QUIET]) == 0
    model, size, resize, mean, *_ = used.pop()
    assert (size, resize, mean) == (48, None, MEAN) and model.size == 32
    assert "images of 48 px, as the command line says; the checkpoint was trained at 32 px" in capsys.readouterr().out


def test_last_is_found_where_a_model_checkpoint_keeps_it(folder, used, capsys):
    (folder / "kept").mkdir()
    (folder / "x.ckpt").rename(folder / "kept" / "last.ckpt")
    callback = '{"class_path": "ModelCheckpoint", "init_args": {"dirpath": "kept"}}'
    words = ["--ckpt_path", "last", "--model.network", json.dumps(NETWORK), *DATA, "--trainer.callbacks", callback, *QUIET]
    same = ["--data.size", "32", "--data.mean", str(MEAN), "--data.std", str(STD)]
    assert main(["test", *words, *same]) == 0
    assert used.pop()[-1].endswith("kept/last.ckpt")
    assert main(["test", *words, "--data.size", "32"]) == 1, "the checkpoint of another normalisation"
    assert "mean=[0.1, 0.2, 0.3], but config or command line say" in capsys.readouterr().err


def test_the_newest_checkpoint_is_named_where_last_finds_none(folder, used, capsys):
    (folder / "lightning_logs/version_0/checkpoints").mkdir(parents=True)
    (folder / "x.ckpt").rename(folder / "lightning_logs/version_0/checkpoints/a.ckpt")
    for command in ("fit", "test"):
        assert (
            main([command, "--ckpt_path", "last", "--model.network", json.dumps(NETWORK), "--data.size=32", *DATA, *QUIET]) == 1
        )
        assert "the newest here is " in capsys.readouterr().err and not used


def test_a_training_goes_on_with_its_config_only(folder, used, capsys):
    (folder / "log" / "checkpoints").mkdir(parents=True)
    (folder / "log" / "config.yaml").write_text((folder / "own.yaml").read_text())
    path = (folder / "x.ckpt").rename(folder / "log" / "checkpoints" / "x.ckpt")
    assert main(["fit", "--ckpt_path", str(path), *DATA, *QUIET]) == 1
    assert f"only with the config of its training: add --config {folder}/log/config.yaml" in capsys.readouterr().err
    assert main(["fit", "--ckpt_path", str(path), "--model.network", "timm/resnet18", "--data.size", "32", *DATA, *QUIET]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert "was trained with network={" in told and "say 'timm/resnet18'" in told and not used


def test_help_needs_no_checkpoint(capsys):
    for words in (["--help"], ["--data.help"], ["--print_config"]):
        assert main(["test", *words]) == 0
    assert from_checkpoint(["--print_config=skip_null"], "test") == (["--print_config=skip_null"], None)


def test_another_model_is_not_looked_into(folder):
    words = ["--ckpt_path", "x.ckpt", "--model", "own_project.Mine", "--a=b"]
    assert from_checkpoint(words, "test") == (["--model", "own_project.Mine", "--a=b", "--ckpt_path", "x.ckpt"], None)


def test_classes_of_the_data_are_compared(folder):
    class Data:
        class_names, mean, std = ["ant", "wasp"], MEAN, STD

    model = Classifier(NETWORK, 2, mean=MEAN, std=STD)
    with pytest.raises(ValueError, match=r"trained on the classes ant, bee .2.; the data have ant, wasp .2."):
        check_same("x.ckpt", model, Data())
    Data.class_names = ["ant", "bee"]
    check_same("x.ckpt", model, Data())
    Data.std = [0.4, 0.5, 0.7]
    with pytest.raises(ValueError, match="trained with std="):
        check_same("x.ckpt", model, Data())
    with pytest.raises(ValueError, match="trained with num_classes=2"):
        check_same("x.ckpt", Classifier(NETWORK, 3))
