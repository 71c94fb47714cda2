"""The command line itself: help, recipes, export, and what commands share."""

import argparse
import functools
import subprocess
import sys
import types

import pytest
import torch

from groupcam_aug.recipes import cli
from groupcam_aug.recipes.cli import COMMANDS, Renamed, device_of, find_recipe, main, recipe_names
from groupcam_aug.recipes.image_folder import load_rgb


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_in_the_place_of_a_folder_is_told(folder, capsys):
    (folder / "taken").write_text("mine")
    for words in (["recipes", "copy", "shapes_demo", "taken/x.yaml"], ["demo", "--quick", "--out", "taken"]):
        assert main(words) == 1
        assert "taken" in capsys.readouterr().err and (folder / "taken").read_text() == "mine"


def test_help_lists_every_command_with_one_line(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert f"  {command.name} " in text and command.help in text


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip()


def test_no_command_shows_the_help(capsys):
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().out


def test_an_unknown_command_suggests_the_nearest(capsys):
    assert main(["vaildate"]) == 2
    assert "did you mean 'validate'?" in capsys.readouterr().err


def test_every_command_resolves_and_has_help(capsys):
    for command in COMMANDS:
        assert main([command.name, "--help"]) == 0
        assert command.name in capsys.readouterr().out


def test_listing_recipes_needs_no_lightning():
    code = "import sys; from groupcam_aug.recipes.cli import main; main(['recipes', 'list']); "
    code += "sys.exit('pytorch_lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "resnet50_imagenet" in done.stdout


def test_recipes_are_shown_and_copied_but_not_overwritten(folder, capsys):
    assert main(["recipes", "show", "shapes_demo"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("#")
    assert main(["recipes", "copy", "shapes_demo"]) == 0
    assert (folder / "shapes_demo.yaml").read_text() == text
    (folder / "shapes_demo.yaml").write_text("mine")
    assert main(["recipes", "copy", "shapes_demo"]) == 1
    assert "--force" in capsys.readouterr().err and (folder / "shapes_demo.yaml").read_text() == "mine"
    assert main(["recipes", "copy", "shapes_demo", "--force"]) == 0
    assert main(["recipes", "copy", "shapes_demo", "deep/own.yaml"]) == 0
    assert (folder / "deep" / "own.yaml").read_text() == (folder / "shapes_demo.yaml").read_text() == text


def test_an_unknown_recipe_suggests_the_nearest(capsys):
    assert main(["recipes", "show", "resnet50_foldr"]) == 1
    assert "did you mean 'resnet50_folder'?" in capsys.readouterr().err


def test_a_config_in_the_working_directory_wins_over_a_recipe(folder):
    assert find_recipe("shapes_demo.yaml") == find_recipe("shapes_demo")
    (folder / "shapes_demo.yaml").write_text("trainer: {}")
    assert find_recipe("shapes_demo.yaml").resolve() == folder / "shapes_demo.yaml"
    assert "shapes_demo" in recipe_names()


def test_export_writes_a_state_dict(folder, capsys):
    import pytorch_lightning as pl
    from lit import SILENT

    from groupcam_aug.recipes.classifier import Classifier

    network = {"class_path": "groupcam_aug.recipes.networks.CIFARResNet", "init_args": {"depth": 8, "width": 4}}
    trainer = pl.Trainer(**SILENT, max_steps=0)
    trainer.strategy.connect(Classifier(network, 3))
    trainer.save_checkpoint("last.ckpt")
    assert main(["export", "last.ckpt", "out.safetensors"]) == 0
    assert (folder / "out.safetensors").is_file()
    assert main(["export", "last.ckpt", "out.onnx"]) == 1
    assert ".safetensors" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_disk_that_fills_up_leaves_the_good_file_of_before(folder, suffix):
    """A limit on the size of files stands in for a full disk."""
    code = f"""
import resource, signal, sys
from groupcam_aug.recipes.cli import main
import pytorch_lightning as pl, torch
from groupcam_aug.recipes.classifier import Classifier
network = {{"class_path": "groupcam_aug.recipes.networks.CIFARResNet", "init_args": {{"depth": 8, "width": 16}}}}
trainer = pl.Trainer(max_steps=0, logger=False, accelerator="cpu", enable_progress_bar=False)
trainer.strategy.connect(Classifier(network, 3))
trainer.save_checkpoint("last.ckpt")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
assert main(["recipes", "copy", "shapes_demo", "own.yaml", "--force"]) == 1
sys.exit(main(["export", "last.ckpt", "out.{suffix}"]))
"""
    for name in (f"out.{suffix}", "own.yaml"):
        (folder / name).write_text("the good one")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    for name in (f"out.{suffix}", "own.yaml"):
        assert (folder / name).read_text() == "the good one"
    assert not list(folder.glob("*.part")) and not list(folder.glob(".*.part"))


def test_what_is_raised_on_purpose_is_a_sentence_and_a_fault_keeps_its_traceback(monkeypatch, capsys):
    module = types.ModuleType("groupcam_aug.made_up")
    source = "def run(command, words):\n    if words: raise {}('not 3; give 4')\n    return int('x')\n"
    for kind in ("ValueError", "TypeError", "RuntimeError", "OSError"):
        exec(source.format(kind), vars(module))
        monkeypatch.setitem(sys.modules, "groupcam_aug.made_up", module)
        monkeypatch.setattr(cli, "COMMANDS", (cli.Command("made", "", "groupcam_aug.made_up:run"),))
        assert main(["made", "3"]) == 1
        assert capsys.readouterr().err == "groupcam-aug: not 3; give 4\n"
        with pytest.raises(ValueError, match="invalid literal"):
            main(["made"])
    exec(source.format("KeyError"), vars(module))
    with pytest.raises(KeyError):
        main(["made", "3"])


class Items(torch.utils.data.Dataset):
    """One item, which is fetched by a function."""

    def __init__(self, fetch):
        self.fetch = fetch

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.fetch()


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_loading_process_refuses_is_the_sentence_that_it_is_without_one(tmp_path, monkeypatch, capsys, workers):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")

    def run(command, words):
        fetch = functools.partial(load_rgb, broken) if words else functools.partial(int, "x")
        return len(list(torch.utils.data.DataLoader(Items(fetch), num_workers=workers, multiprocessing_context=context)))

    context = "fork" if workers else None
    monkeypatch.setitem(sys.modules, "groupcam_aug.made_up", types.ModuleType("groupcam_aug.made_up"))
    monkeypatch.setattr(sys.modules["groupcam_aug.made_up"], "run", run, raising=False)
    monkeypatch.setattr(cli, "COMMANDS", (cli.Command("made", "", "groupcam_aug.made_up:run"),))
    assert main(["made", "picture"]) == 1
    assert capsys.readouterr().err.startswith(f"groupcam-aug: '{broken}' cannot be read: cannot identify image file ")
    with pytest.raises(ValueError, match="invalid literal"):
        main(["made"])


def test_an_option_that_was_renamed_says_so(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--old", action=Renamed, now="--new FILE")
    assert vars(parser.parse_args([])) == {} and "--old" not in parser.format_help()
    for words in (["--old"], ["--old", "x"], ["--old=x"]):
        with pytest.raises(SystemExit) as stop:
            parser.parse_args(words)
        assert stop.value.code == 2 and "--old is called --new FILE now" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_refused():
    assert device_of("auto") in ("cpu", "cuda") and device_of("cpu") == "cpu"
    for name in ("gpu", "cuda:77", "meta"):
        with pytest.raises(ValueError, match=f"--device {name}: "):
            device_of(name)
