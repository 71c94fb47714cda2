"""The command, on a real checkpoint, and the line that it recommends."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import squeezenet1_1
from torchvision.transforms.v2.functional import to_pil_image

from groupcam_aug.callbacks import GroupCAMAugmentation
from groupcam_aug.fidelity import Fidelity
from groupcam_aug.presets import scoring_of
from groupcam_aug.recipes import fidelity
from groupcam_aug.recipes.cli import main


@pytest.fixture
def words(tmp_path):
    torch.manual_seed(0)
    save_file(squeezenet1_1(num_classes=10).state_dict(), tmp_path / "w.safetensors")
    for i in range(5):
        folder = tmp_path / "images" / f"class {i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        to_pil_image(torch.rand(3, 32, 32)).save(folder / f"{i}.png")
    model = ["--model", "torchvision/squeezenet1_1", "--checkpoint", str(tmp_path / "w.safetensors")]
    return ["fidelity", str(tmp_path / "images"), *model, "--size", "64", "--groups", "4"]


def test_command(words, tmp_path, capsys):
    (tmp_path / "images" / "class 1" / "broken.png").write_bytes(b"nothing")
    assert main([*words, "--modes", "fast", "target", "--json", str(tmp_path / "f.json")]) == 1
    told = capsys.readouterr().out
    assert "broken.png" in told and "| fast |" in told and "| target |" in told and "5 images" in told
    assert "GroupCAMAugmentation(" in told and "groups=4)" in told
    record = json.loads((tmp_path / "f.json").read_text())
    assert [row["mode"] for row in record["rows"]][1:] == ["fast", "target"] and 0 < record["floor"] <= 1
    assert record["recommended"] in {row["mode"] for row in record["rows"]}


def test_a_network_that_returns_no_numbers_is_refused_and_images_without_are_counted(words, tmp_path, capsys, monkeypatch):
    state = squeezenet1_1(num_classes=10).state_dict()
    state["features.0.weight"].fill_(float("inf"))
    save_file(state, tmp_path / "inf.safetensors")
    assert main([*words, "--checkpoint", str(tmp_path / "inf.safetensors")]) == 1
    told = capsys.readouterr()
    assert "no finite numbers for 5 of 5 images: 'features.0.weight' of SqueezeNet holds NaN" in " ".join(told.err.split())
    assert "| paper |" not in told.out
    monkeypatch.setattr(fidelity, "_count_not_numbers", lambda *_: 2)
    assert main([*words, "--modes", "fast"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "no finite numbers for 2 of 5 images" in told and "| fast |" in told


def test_importance_weights_reach_the_maps_and_the_line(words, capsys, monkeypatch):
    seen, measure = {}, fidelity.measure_fidelity

    def measured(*args, **options):
        seen.update(options)
        return measure(*args, **options)

    monkeypatch.setattr(fidelity, "measure_fidelity", measured)
    assert main([*words, "--modes", "paper", "target, zero", "--weights", "gradient"]) == 0
    told = capsys.readouterr().out
    assert 'weights="gradient")' in told and "| fast |" in told and seen["weights"] == "gradient"
    assert seen["modes"] == ["target, zero"], "paper is what the others are compared with"


@pytest.mark.parametrize(
    ("recommended", "layer", "expected"),
    [
        ("paper", None, 'preset="paper"'),
        ("input", None, 'preset="paper"'),
        ("stage", None, 'preset="balanced"'),
        ("fast", "relu2", 'preset="fast", layer="relu2"'),
        ("target, zero", None, 'preset="fast"'),
        ("target", None, 'mask_at="target", baseline="blur"'),
        ("features.9, zero", None, 'mask_at="features.9", baseline="zero"'),
        ("fast, bf16-mixed", None, 'preset="fast", precision="bf16-mixed"'),
        ("features.9, bf16-mixed", None, 'mask_at="features.9", baseline="blur", precision="bf16-mixed"'),
    ],
)
def test_the_line_is_a_preset_where_there_is_one_and_trains_with_what_was_measured(recommended, layer, expected):
    result = Fidelity((), 1.0, 0.0, recommended, 1, "relu2", 16, "none")
    line = fidelity.training_line(result, layer)
    assert line == f"GroupCAMAugmentation({expected})"
    callback = eval(line)
    assert {name: getattr(callback, name) for name in ("mask_at", "baseline")}.items() <= scoring_of(recommended).items()
    assert callback.precision == scoring_of(recommended).get("precision")
    assert isinstance(callback, GroupCAMAugmentation)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            ["--weights", "some/file.pt"],
            "'some/file.pt' is neither none nor gradient; a file of network weights is a --checkpoint",
        ),
        (["--importance", "gradient"], "--importance is called --weights {none,gradient} now"),
        (["--limit", "0"], "give at least 1"),
    ],
)
def test_wrong_calls(words, extra, message, capsys):
    assert main([*words, *extra]) == 2
    assert message in capsys.readouterr().err


def test_a_network_must_be_named(tmp_path, capsys):
    assert main(["fidelity", str(tmp_path)]) == 1
    assert "say which network" in capsys.readouterr().err
