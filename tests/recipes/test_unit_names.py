"""The command name-units and the words that explain makes of its table, as one types them."""

import json

import numpy as np
import pytest
import torch
from models import Coloured
from PIL import Image

from groupcam_aug import GradCAM
from groupcam_aug.recipes import explain as explaining
from groupcam_aug.recipes import unit_names
from groupcam_aug.recipes.cli import main
from groupcam_aug.recipes.model_loading import LoadedModel


@pytest.fixture
def model(monkeypatch):
    """A network whose unit 0 sees green alone and unit 1 red alone, in the place of the one that a file would hold."""
    made = LoadedModel(
        Coloured().eval(),
        lambda picture: torch.from_numpy(np.asarray(picture) / 255).movedim(-1, 0).float(),
        (0, 0, 0), (1, 1, 1), ["leaf", "rose"], "coloured, 32 px", 32,
    )  # fmt: skip
    for module in (unit_names, explaining):
        monkeypatch.setattr(module, "load_model", lambda _options: made)
    return made


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, colour in (("grass", (20, 200, 20)), ("poppy", (200, 20, 20))):
        picture = np.full((32, 32, 3), 128, dtype=np.uint8)
        picture[8:24, 8:24] = colour
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "in" / f"{name}.png")
    return tmp_path


NAME = ("name-units", "some.ckpt", "--images", "120", "--share", "0.05")


def test_names_are_learnt_written_and_told(model, folder, capsys):
    assert main([*NAME]) == 0
    told, table = capsys.readouterr().out, json.loads((folder / "some.ckpt.units.json").read_text())
    assert [(unit["unit"], unit["concept"]) for unit in table["units"]] == [(0, "green"), (1, "red")]
    assert (table["layer"], table["channels"], table["share"], table["least"]) == ("relu", 3, 0.05, 0.04)
    assert "2 of 3 units of layer 'relu' have a name (IoU of at least 0.04); 2 of them overlap as much on other" in told
    assert f"{table['units'][0]['held_out']:.3f}" in told and "wrote some.ckpt.units.json" in told


def test_explain_says_which_units_spoke(model, folder, capsys):
    main([*NAME])
    assert main(["explain", "in", "--checkpoint", "some.ckpt", "--words", "--groups", "1", "--out", "out"]) == 0
    told = capsys.readouterr().err
    assert "grass.png: leaf, because: green (named units: 100% of the evidence)" in told
    assert "poppy.png: rose, because: red (named units: 100% of the evidence)" in told
    assert main(["explain", "in/poppy.png", "--checkpoint", "some.ckpt", "--words", "--target", "leaf", "--out", "out"]) == 0
    assert "poppy.png: leaf, against: red" in capsys.readouterr().err
    (record,) = json.loads((folder / "out" / "maps.json").read_text())["images"]
    ((name, evidence),) = record["maps"][0]["words"]["against"]
    picture = model.transform(Image.open(folder / "in" / "poppy.png"))[None]
    cam = GradCAM(model.network)
    by_hand = (cam.weights(picture, 0)[0] * cam.activations(picture)[0].mean(dim=(1, 2)))[1]
    assert name == "red" and evidence == pytest.approx(float(by_hand), rel=1e-5)


def test_without_names_that_is_said(model, folder, capsys):
    assert main([*NAME, "--iou", "0.99"]) == 0
    told = capsys.readouterr().out
    assert "no unit has a name: none of the 3 units of layer 'relu' overlaps a concept by 0.99" in told
    assert main(["explain", "in", "--checkpoint", "some.ckpt", "--words", "--out", "out"]) == 1
    assert "no unit has a name at layer 'relu', so there are no words" in capsys.readouterr().err


def test_concepts_that_no_unit_could_reach_are_named(model, folder, capsys):
    main(["name-units", "some.ckpt", "--images", "60"])
    told = " ".join(capsys.readouterr().out.split())
    assert "too widespread to reach that with 0.5% of the responses: " in told and "checks" in told.split("too widespread")[1]


def test_a_table_of_other_weights_or_another_layer_is_refused(model, folder, capsys):
    main([*NAME, "--out", "units.json"])
    words = ["explain", "in", "--checkpoint", "some.ckpt", "--words", "units.json", "--out", "out"]
    assert main([*words, "--layer", "body"]) == 1
    assert "names the units of layer 'relu', and 'body' is explained" in capsys.readouterr().err
    with torch.no_grad():
        model.network.fc.weight += 1
    assert main(words) == 1
    assert "another network, or of other weights" in capsys.readouterr().err
    for content, reason in (("{", "no table"), ("[1]", "not a mapping"), ('{"network": "a"}', "there is no layer")):
        (folder / "units.json").write_text(content)
        assert main(words) == 1
        assert reason in capsys.readouterr().err


def test_wrong_calls(model, folder, capsys):
    assert main(["explain", "in", "--checkpoint", "some.ckpt", "--words", "--out", "out"]) == 1
    assert "there is no table of units; `groupcam-aug name-units` writes it" in capsys.readouterr().err
    for words, reason in (
        (["--model", "resnet18", "--pretrained"], "say where with --out FILE"),
        (["a.ckpt", "--images", "3"], "--images must be"),
        (["a.ckpt", "--share", "2"], "--share must be"),
        (["a.ckpt", "--checkpoint", "b.ckpt"], "give one"),
    ):
        assert main(["name-units", *words]) != 0
        assert reason in capsys.readouterr().err
    assert main(["explain", "in", "--model", "resnet18", "--pretrained", "--words"]) == 2
    assert "there is no checkpoint beside which" in capsys.readouterr().err
