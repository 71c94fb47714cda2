"""Pictures of the sanity check: both modes for each method that looks at the network, with a verdict or the reason for none."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from evaluations import QUICK, evaluate
from PIL import Image

from groupcam_aug.recipes.evaluation import sanity_pictures as pictures_of
from groupcam_aug.recipes.evaluation.datasets import Item
from groupcam_aug.recipes.evaluation.map_method import Method, Setup
from groupcam_aug.recipes.evaluation.methods import METHODS
from groupcam_aug.recipes.evaluation.results_file import Outcome, Plan
from groupcam_aug.recipes.evaluation.runner import STAGES, first_image
from groupcam_aug.recipes.evaluation.sanity_pictures import pictured, sanity_pictures, verdict
from groupcam_aug.recipes.model_loading import load_model
from groupcam_aug.recipes.parsers import explain
from groupcam_aug.sanity import Randomization, randomization_check

GRADCAM = next(method for method in METHODS if method.key == "gradcam")


def result(mode="cascading", rho=0.1, floor=0.3, left=6):
    values = torch.full((2, 6), rho)
    values[-1, left:] = float("nan")
    return Randomization(mode, ("fc", "conv"), values, floor)


def test_a_verdict_or_the_reason_for_none():
    assert verdict(result()) == "passed: likeness to the original maps at the end 0.10, of other images' maps 0.30"
    assert verdict(result(rho=0.9)).startswith("FAILED: likeness to the original maps at the end 0.90")
    few = verdict(result(left=3))
    assert few.startswith("no verdict, for 3 of 6 maps are left at the end and 5 are needed") and "--sanity-images" in few
    alone = "likeness of other images' maps is 0.30; "
    assert verdict(result("independent")) == f"passed: {alone}each stage by itself takes maps down to it"
    assert verdict(result("independent", rho=0.9)) == f"FAILED: {alone}re-initialised alone, these leave maps above it: fc, conv"
    unsure = result("independent", rho=0.2)
    unsure.rho[0] += torch.tensor([0.5, -0.3, 0.4, -0.2, 0.5, -0.1])
    assert verdict(unsure).startswith("no verdict, for some stage leaves maps above other images', but not beyond chance")
    assert verdict(result("independent", left=3)).startswith("no verdict, for 3 of 6 maps are left behind some stage")


def edges(images, _classes, _seeds):
    """A map that does not look at the network."""
    gradient = (images[:, :, 1:, 1:] - images[:, :, :-1, :-1]).abs().sum(dim=1)
    return torch.nn.functional.pad(gradient, (0, 1, 0, 1))


@pytest.fixture
def given(pictures, checkpoint):
    model = load_model(explain("explain").parse_args(["a.png", "--checkpoint", str(checkpoint), "--device", "cpu"]))
    items = [Item(path.as_posix(), path, (1,)) for path in sorted(pictures.rglob("*.*"))]
    return model, Setup.of(model.network, first_image(model, items, {})), items


def test_each_method_has_a_picture_of_the_checks_own_maps(given, monkeypatch):
    model, setup, items = given
    sheets, said, outcome = [], [], Outcome()

    def noted(rows, captions, heading, signed, *, titles, size):
        sheets.append((rows, captions, heading, titles))
        return Image.new("RGB", (100, 50))

    monkeypatch.setattr(pictures_of, "sheet", noted)
    blind = Method("edges", "edges", "peer", "", lambda _setup: edges)
    broken = dataclasses.replace(blind, key="broken", make=lambda _setup: lambda *_: torch.zeros(1))
    centre = next(method for method in METHODS if method.key == "centre")
    made = sanity_pictures(model, setup, items, [GRADCAM, blind, broken, centre], Plan(sanity_images=6), outcome, said.append)
    assert list(made) == ["sanity_gradcam.png", "sanity_edges.png"] and list(outcome.left_out) == ["broken"]
    assert Image.open(io.BytesIO(made["sanity_edges.png"])).size == (100, 100), "one mode above the other"
    assert [line.split(":")[0] for line in said] == [
        f"Sanity pictures of {name}, {mode}" for name in ("Grad-CAM", "edges") for mode in ("cascading", "independent")
    ]
    assert "FAILED" in said[2] and "FAILED" in said[3], "a map that ignores the network stays"
    for rows, captions, heading, titles in sheets:
        assert titles[1] == "trained" and titles[-1] == f"stage {len(titles) - 2}" and len(titles) <= STAGES + 2
        assert all(len(row) == len(titles) for row in (*rows, *captions)) and len(rows) == pictures_of.SHOWN
    assert sheets[2][0][0][2].equal(sheets[2][0][0][1]) and sheets[2][1][0][2:] == ["1.00"] * (len(sheets[2][3]) - 2)
    assert sheets[0][2][0].startswith("Grad-CAM, cascading: ") and "another image's map" in sheets[0][2][2]
    _, images, classes = pictures_of.picked(model, items, Plan(sanity_images=6), {})
    check = randomization_check(setup.network, images, GRADCAM.cam(setup), classes, mode="independent", stages=STAGES)
    expected = [f"{round(value, 2) + 0:.2f}" if value == value else "" for value in check.rho[:, 0].tolist()]
    assert sheets[1][1][0][2:] == expected and sheets[0][1][0][2:] != expected
    share = setup.network(images).softmax(dim=1)[0, classes[0]].item()
    assert sheets[0][1][0][0] == f"{model.class_names[int(classes[0])]} {share:.0%}"
    assert pictured([GRADCAM, centre]) == [GRADCAM]


def test_a_method_that_copies_the_network_sees_the_new_weights(given):
    model, setup, items = given
    seen = []

    def copying(setup):
        seen.append(torch.cat([value.flatten() for value in setup.copied.state_dict().values()]).double().sum().item())
        return edges

    method = Method("copying", "copying", "peer", "", copying)
    sanity_pictures(model, setup, items, [method], Plan(sanity_images=2), Outcome(), lambda _line: None)
    assert len(set(seen)) > STAGES


def test_the_command_writes_them_and_refuses_what_has_none(pictures, checkpoint, tmp_path, capsys):
    words = [*QUICK, "--methods", "gradcam,centre", "--measures", "drop", "--sanity-pictures", "--out", tmp_path / "out"]
    assert evaluate(pictures, *words, "--dry-run", checkpoint=checkpoint) == 0
    assert "sanity pictures: 3" in capsys.readouterr().out and not (tmp_path / "out").exists()
    assert evaluate(pictures, *words, checkpoint=checkpoint) == 0
    told = capsys.readouterr().out
    assert "sanity_gradcam.png to" in told and "take more images by --sanity-images (at least 5)" in told
    picture = np.asarray(Image.open(tmp_path / "out" / "sanity_gradcam.png"))
    assert picture.shape[1] > 10 * pictures_of.SIZE and picture.shape[0] > 4 * pictures_of.SIZE and picture.std() > 20
    assert not (tmp_path / "out" / "sanity_centre.png").exists()
    words[words.index("gradcam,centre")] = "centre"
    assert evaluate(pictures, *words, checkpoint=checkpoint) == 1
    assert "--sanity-pictures is for methods that look at the network" in " ".join(capsys.readouterr().err.split())
