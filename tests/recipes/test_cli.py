"""The command line itself: help, recipes, export, and what commands share."""

import functools
import subprocess
import sys
import types
from importlib.metadata import version

import pytest
import torch

from groupcam_aug.recipes import cli
from groupcam_aug.recipes.cli import COMMANDS, device_of, main
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


@pytest.mark.parametrize("words", [[], *([command.name] for command in COMMANDS), ["fit", "--data.root", "images"]])
def test_version_everywhere(words, capsys):
    assert main([*words, "--version"]) == 0
    assert capsys.readouterr().out.strip() in (
        version("groupcam-aug"),
        "unknown: groupcam-aug is not installed but run from its folder",
    )


def test_no_command_shows_the_help(capsys):
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().out


def test_an_unknown_command_suggests_the_nearest(capsys):
    assert main(["vaildate"]) == 2
    assert "did you mean 'validate'?" in capsys.readouterr().err


def test_every_command_has_help_in_plain_text(capsys):
    for command in COMMANDS:
        assert main([command.name, "--help"]) == 0
        told = capsys.readouterr().out
        assert f"groupcam-aug {command.name}" in told and "--version" in told
        assert "``" not in told and ":class:" not in told, command.name


def test_help_waits_for_no_torch():
    """Importing torch takes seconds, Lightning more."""
    code = """
import contextlib, io, sys
from groupcam_aug.recipes.cli import COMMANDS, main
helps = [[command.name, "--help"] for command in COMMANDS] + [["fit", f"--{part}.help"] for part in ("data", "model", "trainer")]
for words in [["--help"], ["recipes", "list"], ["completion", "bash"], *helps]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(words) == 0, words
    assert len(out.getvalue()) > 100, words
    heavy = {"torch", "pytorch_lightning", "jsonargparse", "matplotlib", "scipy"} & set(sys.modules)
    assert not heavy, (words, heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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


def test_a_device_that_is_not_there_is_refused():
    assert device_of("auto") in ("cpu", "cuda") and device_of("cpu") == "cpu"
    for name in ("gpu", "cuda:77", "meta"):
        with pytest.raises(ValueError, match=f"--device {name}: "):
            device_of(name)
