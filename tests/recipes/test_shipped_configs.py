"""The configs that come with the package: listed, shown, copied, found by name."""

import pytest

from groupcam_aug.recipes.cli import main
from groupcam_aug.recipes.shipped_configs import find_recipe, recipe_names, with_recipes


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_recipes_are_listed_with_their_claims(capsys):
    assert main(["recipes", "list"]) == 0
    told = capsys.readouterr().out
    assert "  resnet50_folder " in told and "Fine-tune a pretrained ResNet-50 on your own folder" in told


def test_configs_come_first_and_are_found_by_name(folder):
    words = with_recipes(["--data.root", "images", "--config", "shapes_demo"])
    assert words == ["--config", str(find_recipe("shapes_demo").absolute()), "--data.root", "images"]


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
