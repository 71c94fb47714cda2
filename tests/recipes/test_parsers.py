"""Options that the commands share."""

import argparse

import pytest

from groupcam_aug.presets import mode_name
from groupcam_aug.recipes import demo, parsers
from groupcam_aug.recipes.parsers import Renamed


def test_an_option_that_was_renamed_says_so(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--old", action=Renamed, now="--new FILE")
    assert vars(parser.parse_args([])) == {} and "--old" not in parser.format_help()
    for words in (["--old"], ["--old", "x"], ["--old=x"]):
        with pytest.raises(SystemExit) as stop:
            parser.parse_args(words)
        assert stop.value.code == 2 and "--old is called --new FILE now" in capsys.readouterr().err


def test_defaults_that_the_help_tells_are_those_of_the_commands():
    told = " ".join(parsers.demo("demo").format_help().split())
    assert f"default: {demo.SEEDS}; quick: {demo.QUICK_SEEDS}" in told
    defaults = parsers.fidelity("fidelity").parse_args(["a.png"])
    assert [mode_name(mode) for mode in defaults.modes] and "paper" not in defaults.modes
