"""Every config of the package runs, one batch of each stage, on generated images; a new file is picked up by itself."""

import csv
import importlib
import inspect
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.demos.boring_classes import BoringModel
from safetensors.torch import save_file
from torchvision import models

from groupcam_aug.recipes.cli import main
from groupcam_aug.recipes.networks import CIFARResNet, pretrained_network
from groupcam_aug.recipes.shipped_configs import find_recipe, recipe_names, shipped_arms
from groupcam_aug.recipes.trial.scenes import CLASSES

ARMS = yaml.safe_load(shipped_arms().read_text())
CONFIGS = recipe_names()
STUDY = Path(__file__).parents[2] / "docs" / "study.md"
COMMANDS = re.findall(r"`(trials/[^`]*--arms [^`]*)`", STUDY.read_text())


@pytest.fixture
def images(tmp_path):
    """Two classes (of CIFAR-10) in every folder that a config names, object masks, and a list of backgrounds."""
    root, rows = tmp_path / "images", []
    for part in ("train", "val", "test", "test_kept", "test_shift"):
        for c, name in enumerate(CLASSES[:2]):
            for folder in (root / part / name, root / "masks" / part / name):
                folder.mkdir(parents=True)
            for i in range(2):
                size = (32, 32) if part == "test" else (80, 70)
                Image.new("RGB", size, (200 * c, 20 * i, 99)).save(root / part / name / f"{i}.png")
                Image.new("1", size, 1).save(root / "masks" / part / name / f"{i}.png")
                rows.append([f"{part}/{name}/{i}.png", "grass"])
    with (root / "index.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "background"], *rows])
    return root


def small(text, images):
    """Options that make a config small, on the images of the fixture."""
    options = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.strategy=auto", "--trainer.precision=32-true"]
    options += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    options += ["--data.batch_size=2", "--data.num_workers=0"]
    if "pretrained:" in text:
        options += ["--model.pretrained=false"]
    if "ImageData" in text:
        options += [f"--data.root={images}", "--data.size=64", "--data.resize=64"]
    if "ScenesDataModule" in text:
        for folder in (images / "train").iterdir():
            for path in folder.iterdir():
                Image.new("RGB", (32, 32)).save(path)
        options += [f"--data.root={images}", "--data.train=4", "--data.val=2", "--data.test=2"]
    if "ShapesDataModule" in text:
        options += ["--data.train=4", "--data.test=2"]
    if "per_class:" in text:
        options += ["--data.per_class=1"]
    return options


@pytest.mark.parametrize("name", CONFIGS)
def test_config_runs(name, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = find_recipe(name).read_text()
    # Otherwise one batch would never meet the augmentation.
    text = re.sub(r"start_epoch: \d+", "start_epoch: 0", text)
    config = tmp_path / "config.yaml"
    config.write_text(text)
    assert main(["fit", "--config", str(config), "--trainer.fast_dev_run=true", *small(text, images)]) == 0


@pytest.mark.parametrize("command", COMMANDS, ids=[re.sub(r"[^\w-]+", " ", command).strip()[:60] for command in COMMANDS])
def test_command_of_the_page_of_trials_runs(command, images, tmp_path, monkeypatch):
    """Each command line of docs/study.md, with its arms, at the size of a few images: one seed, five steps."""
    monkeypatch.chdir(tmp_path)
    save_file(models.squeezenet1_1().state_dict(), "squeezenet1_1.safetensors")
    save_file(CIFARResNet(20).state_dict(), "resnet20.safetensors")
    (tmp_path / "docs").symlink_to(
        STUDY.parent, target_is_directory=True
    )  # the page's commands run in the root of the repository
    words = shlex.split(re.sub(r"--data.root \S+|--seeds [\d-]+", "", command))
    text = find_recipe(words[0]).read_text()
    last = yaml.safe_load(text)["trainer"]["callbacks"][0]["init_args"]["start_epoch"]
    short = [f"--trainer.max_epochs={last + 1}", "--trainer.limit_train_batches=1", "--trainer.limit_test_batches=1"]
    assert main(["trial", *words, *small(text, images), *short, "--seeds=1", "--out=out"]) == 0
    arms = command.split("--arms ")[1].split(" --")[0].split()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [run["arm"] for run in results["records"]] == arms and not results["failures"]


@pytest.mark.parametrize("name", CONFIGS)
def test_config_begins_with_the_command_that_runs_it(name):
    head = [line for line in find_recipe(name).read_text().splitlines()[:6] if line.startswith("#")]
    command = f"groupcam-aug trial {name} " if name.startswith(("trials/", "demo")) else f"groupcam-aug fit --config {name}.yaml"
    assert any(command in line for line in head)
    assert len(head[0]) > 20  # what `recipes list` shows


@pytest.mark.parametrize("name", [name for name in CONFIGS if not name.startswith("trials/")])
def test_every_run_of_fit_is_watched_and_reported(name):
    callbacks = yaml.safe_load(find_recipe(name).read_text())["trainer"]["callbacks"]
    paths = [callback["class_path"].removeprefix("groupcam_aug.callbacks.") for callback in callbacks]
    assert {"SaliencyMonitor", "SaliencyReport", "GroupCAMAugmentation"} <= set(paths)
    if name != "demo":  # of a trial, whose arms say what augments
        assert paths[-1] == "GroupCAMAugmentation", "the command line reaches the last"


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("trials/")])
def test_configs_of_trials_are_fit_for_pairs(name):
    config = yaml.safe_load(find_recipe(name).read_text())
    assert find_recipe(name).read_text().startswith("# Trial: ")
    assert config["data"]["init_args"]["seed"] is None  # that of the run
    assert config["trainer"]["limit_val_batches"] == config["trainer"]["num_sanity_val_steps"] == 0
    (callback,) = config["trainer"]["callbacks"]  # what arms take over
    assert callback["class_path"] == "groupcam_aug.callbacks.GroupCAMAugmentation"
    arguments = callback["init_args"]
    assert arguments["network"] == "network" and arguments["start_epoch"] < config["trainer"]["max_epochs"]
    masked = bool(config["data"]["init_args"].get("masks"))
    assert arguments.get("mask_key") == (2 if masked else None) and arguments.get("source") == ("self" if masked else None)
    # Every command on top names arms that there are.
    for line in find_recipe(name).read_text().splitlines():
        if line.startswith("#   groupcam-aug trial"):
            assert set(re.findall(r"(?<=--arms ).*(?= --seeds)", line)[0].split() if "--arms" in line else ()) <= set(ARMS)


class Falling(BoringModel):
    """Best at its first epoch."""

    def on_validation_epoch_end(self):
        self.log("val/acc", -float(self.current_epoch))


@pytest.mark.parametrize("name", [name for name in CONFIGS if "ModelCheckpoint" in find_recipe(name).read_text()])
def test_the_last_checkpoint_is_of_the_last_epoch_and_the_best_stays(name, tmp_path):
    entries = yaml.safe_load(find_recipe(name).read_text())["trainer"]["callbacks"]
    kept = [ModelCheckpoint(**entry["init_args"]) for entry in entries if entry["class_path"].endswith(".ModelCheckpoint")]
    trainer = Trainer(
        default_root_dir=tmp_path,
        max_epochs=4,
        limit_train_batches=1,
        limit_val_batches=1,
        callbacks=kept,
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Falling())
    epochs = {path.name: torch.load(path, weights_only=True)["epoch"] for path in tmp_path.rglob("*.ckpt")}
    assert epochs.pop("last.ckpt") == 3 and list(epochs.values()) == [0]


def test_there_are_configs():
    assert {"resnet50_imagenet", "resnet50_folder", "shapes_demo", "trials/shapes"} <= set(recipe_names())
    trials = {"shapes", "scenes", "cifar_finetune", "cifar_scratch", "bar", "clothing"}
    assert {f"trials/{name}" for name in trials} <= set(recipe_names())


def test_the_shapes_trial_says_what_it_trains_on():
    """Regime of the published numbers: 31 steps an epoch, 16 epochs, the rate at its height from step 25 on."""
    config = yaml.safe_load(find_recipe("trials/shapes").read_text())
    data, model = config["data"]["init_args"], config["model"]["init_args"]
    assert (data["train"], data["test"], data["rho"], data["batch_size"]) == (2000, 1000, 0.95, 64)
    assert data["flip"] and data["masks"] and data["drop_last"] and data["test_backgrounds"] == ["kept", "swapped"]
    assert (model["lr"], model["weight_decay"], model["schedule"]) == (0.1, 5e-4, "cosine")
    assert model["network"]["init_args"] == {"depth": 8, "width": 8} and config["trainer"]["max_epochs"] == 16
    assert config["trainer"]["callbacks"][0]["init_args"]["start_epoch"] == 3


def test_arms_have_the_form_that_trials_read():
    for name, arm in ARMS.items():
        assert set(arm) <= {"about", "control", "callbacks", "set"} and len(arm["about"]) > 10, name
        assert arm.get("control", name) in ARMS, name
    assert ARMS["none"]["callbacks"] == []
    assert {name: arm["control"] for name, arm in ARMS.items() if "control" in arm} == {
        name: f"{name}-other" for name in ("paper", "balanced", "fast", "fast-weights", "fast-ema", "fast-pretrained", "masks")
    }
    study = yaml.safe_load((STUDY.parent / "study" / "arms.yaml").read_text())
    assert study["fast-pretrained"].keys() == ARMS["fast-pretrained"].keys()
    assert {"fast-centre", "fast-inverse", "whole", "cutmix", "erase"} <= set(ARMS)


@pytest.mark.parametrize("name", ARMS)
def test_callbacks_of_arms_can_be_made(name):
    for callback in ARMS[name]["callbacks"]:
        module, _, kind_name = callback["class_path"].rpartition(".")
        kind, arguments = getattr(importlib.import_module(module), kind_name), callback["init_args"]
        inherited = {}
        if kind.__name__ == "GroupCAMAugmentation":
            assert {"preset", "mask_from", "source"} <= set(arguments)
            inherited = {"network": "network", "mask_key": 2, "start_epoch": 3}
        if isinstance(arguments.get("source"), dict):  # a network, which the parser makes; here without a download
            assert arguments["source"]["class_path"] == f"{pretrained_network.__module__}.{pretrained_network.__name__}"
            inspect.signature(pretrained_network).bind(**arguments["source"]["init_args"])
            arguments = arguments | {"source": torch.nn.Identity()}
        made = kind(**inherited, **arguments)
        defaults = {key: value.default for key, value in inspect.signature(kind).parameters.items()}
        assert made.seed == defaults["seed"] == 0  # arms with the same p then change the same images


def test_a_control_differs_from_its_arm_in_the_mask_alone():
    for name, arm in ARMS.items():
        if "control" in arm:
            ((mine, control),) = zip(arm["callbacks"], ARMS[arm["control"]]["callbacks"], strict=True)
            assert mine["init_args"] | {"mask_from": "other"} == control["init_args"], name
            assert mine["init_args"]["mask_from"] == "saliency"
