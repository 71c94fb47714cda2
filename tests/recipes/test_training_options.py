"""The help of fit, validate, test and predict: what people set, with the defaults that the classes have."""

import inspect

import pytest
from pytorch_lightning import Trainer

from groupcam_aug.recipes.classifier import Classifier
from groupcam_aug.recipes.cli import main
from groupcam_aug.recipes.data import ImageData
from groupcam_aug.recipes.training_options import OPTIONS, build_parser

CLASSES = {"data": ImageData, "model": Classifier, "trainer": Trainer}
OWN = "class Own(__import__('pytorch_lightning').LightningDataModule):\n    def __init__(self, colour: str = 'red') -> None:\n        super().__init__()\n"


def test_defaults_are_those_of_the_classes():
    checked = 0
    for flag, _, default, _, _ in OPTIONS:
        part, _, name = flag.removeprefix("--").partition(".")
        if part in CLASSES and "." not in name:
            known = inspect.signature(CLASSES[part]).parameters[name].default
            assert default == known or (default is None and name == "num_workers"), flag
            checked += 1
    assert checked > 10


def test_fit_shows_some_fifteen_options_and_where_the_others_are(capsys):
    assert main(["fit", "--help"]) == 0
    told = capsys.readouterr().out
    assert len(told.splitlines()) < 80
    for option in ("--data.root", "--model.lr", "--trainer.max_epochs", "--help-all", "--trainer.help", "--data.help"):
        assert option in told
    assert 15 <= sum("fit" in commands for _, _, _, commands, _ in OPTIONS) <= 18
    assert "--ckpt_path FILE" in build_parser("test").format_help() and "--model.lr" not in build_parser("test").format_help()


def test_bare_help_of_data_and_model_is_that_of_the_usual_classes(capsys):
    for words, told in (
        (["--data.help"], "--data.val_fraction"),
        (["--model.help", "--seed_everything", "1"], "--model.lr_step"),
    ):
        assert main(["fit", *words]) == 0
        assert told in capsys.readouterr().out
    assert main(["fit", "--config", "resnet50_folder", "--data.help"]) == 0
    assert "--data.val_fraction" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["--data", "own.Own", "--data.help"], ["--data.help", "own.Own"], ["--config", "c.yaml", "--data.help"]]
)
def test_help_of_another_class(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "c.yaml").write_text("data: {class_path: own.Own}")
    assert main(["fit", *words]) == 0
    told = capsys.readouterr().out
    assert "colour" in told and "red" in told


def test_all_options_in_plain_text_without_lists_of_classes(capsys):
    assert main(["fit", "--help-all"]) == 0
    told = capsys.readouterr().out
    assert "--trainer.gradient_clip_val" in told
    assert "known" not in told.replace("unknown", "") and "``" not in told and ":class:" not in told
    assert main(["fit", "--trainer.callbacks.help", "GroupCAMAugmentation"]) == 0
    told = capsys.readouterr().out
    assert len(told.splitlines()) < 250 and "known subclasses" not in " ".join(told.split()) and "torch.nn.modules" not in told
