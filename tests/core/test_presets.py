"""Presets by name, and the names of modes."""

import pytest

from groupcam_aug import GroupCAM
from groupcam_aug.presets import PRESETS, mode_name, scoring_of


def test_presets_are_those_of_the_method():
    assert {name: tuple(values.values()) for name, values in PRESETS.items()} == {
        "paper": (1.0, "input", "blur"),
        "balanced": (0.5, "stage", "blur"),
        "fast": (0.5, "target", "zero"),
    }


@pytest.mark.parametrize(
    "mode, place, baseline, name",
    [
        ("paper", "input", "blur", "paper"),
        ("input", "input", "blur", "paper"),
        ("balanced", "stage", "blur", "balanced"),
        ("stage, blur", "stage", "blur", "balanced"),
        ("stage, zero", "stage", "zero", "stage, zero"),
        ("fast", "target", "zero", "fast"),
        ("target, zero", "target", "zero", "fast"),
        ("target", "target", "blur", "target"),
        ("layer4.1", "layer4.1", "blur", "layer4.1"),
        ("layer4.1, zero", "layer4.1", "zero", "layer4.1, zero"),
    ],
)
def test_modes(net, mode, place, baseline, name):
    assert scoring_of(mode) == {"mask_at": place, "baseline": baseline}
    assert mode_name(mode) == mode_name(name) == name
    assert scoring_of(f"{mode}, bf16-mixed") == {"mask_at": place, "baseline": baseline, "precision": "bf16-mixed"}
    assert mode_name(f"{mode}, bf16-mixed") == f"{name}, bf16-mixed"
    if "layer4" not in mode:
        cam = GroupCAM(net, "relu2", groups=4, **scoring_of(mode))
        assert (cam.mask_at, cam.baseline) == (place, baseline)
