"""Methods of explain: those of evaluate by key, and the library's own pictures; contradictions are refused with the way out."""

import pytest
import torch
from torch import nn

from groupcam_aug import GradCAM, GroupCAM, guided_backprop, guided_grad_cam
from groupcam_aug.recipes import parsers
from groupcam_aug.recipes.evaluation import map_method
from groupcam_aug.recipes.evaluation.map_method import Setup
from groupcam_aug.recipes.explain_methods import FINE, SIGNED, choose_methods, keys_of, maps_of, needs_layer, ranking


@pytest.fixture
def setup():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    return Setup(network, "1", 8)


def test_own_methods_are_the_functions_of_the_library(setup):
    images, classes = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 2])
    network = setup.network
    expected = {
        "groupcam": GroupCAM(network, "1", groups=4, mask_at="target")(images, classes),
        "gradcam": GradCAM(network, "1")(images, classes),
        "gradcam-against": GradCAM(network, "1", sign=-1)(images, classes),
        "guided-gradcam": guided_grad_cam(network, images, classes, "1"),
        "guided-backprop": guided_backprop(network, images, classes),
    }
    methods = choose_methods(list(expected), 4, "target")
    for method in methods:
        torch.testing.assert_close(maps_of(method, setup)(images, classes, [0, 1]), expected[method.key])
        assert (expected[method.key].ndim == 4) == (method.key in SIGNED) and bool(expected[method.key].any())
    assert len({method.name for method in choose_methods([*expected, "fast", "centre"], None, "input")}) == 7
    inverted, full = choose_methods(["inverted", "groupcam"], None, "input")
    maps = maps_of(full, setup)(images, classes, [0, 1])
    alive = maps.amax(dim=(1, 2)) > 0
    assert alive.any()
    torch.testing.assert_close(maps_of(inverted, setup)(images, classes, [0, 1])[alive], 1 - maps[alive])


def test_what_ranks_pixels():
    maps = torch.randn(2, 3, 4, 4)
    assert torch.equal(ranking(maps), maps.abs().sum(dim=1)) and torch.equal(ranking(maps[:, 0]), maps[:, 0])


def test_unknown_repeated_and_missing_methods(monkeypatch):
    for keys, message in (
        (["gradcamm"], "no method 'gradcamm'; did you mean 'gradcam'.*guided-backprop.*evaluate --list"),
        (["gradcam", "gradcam"], "'gradcam' is given 2 times"),
    ):
        with pytest.raises(ValueError, match=message):
            choose_methods(keys, None, "input")

    def absent(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(map_method.importlib, "import_module", absent)
    with pytest.raises(ValueError, match=r"scorecam: .*pytorch_grad_cam.*pip install 'groupcam-aug\[compare\]'"):
        choose_methods(["gradcam", "scorecam"], None, "input")
    assert not needs_layer(choose_methods(["guided-backprop", "centre"], None, "input")) and "guided" in FINE
    assert needs_layer(choose_methods(["guided-backprop", "gradcam-against"], None, "input"))


def keys(*words):
    parser = parsers.explain("explain")
    return keys_of(parser, parser.parse_args(["a.png", *words]))


def test_which_methods_the_options_ask_for():
    assert keys() == ["groupcam"] and keys("--method", "guided-backprop") == ["guided-backprop"]
    assert keys("--methods", "groupcam, scorecam") == ["groupcam", "scorecam"]
    assert keys("--against") == keys("--against", "--method", "gradcam") == ["gradcam-against"]
    assert keys("--against", "--methods", "gradcam,gradcam-against") == ["gradcam", "gradcam-against"]
    assert keys("--methods", "fast,groupcam", "--groups", "8", "--mask-at", "stage") == ["fast", "groupcam"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--method", "gradcam", "--methods", "groupcam"], "exclude each other: --methods groupcam,gradcam"),
        (["--methods", ","], "--methods names none"),
        (
            ["--against", "--method", "groupcam"],
            "--against is Grad-CAM's: leave groupcam out, or take --methods groupcam,gradcam-ag",
        ),
        (["--method", "gradcam", "--groups", "8"], "--groups 8 is Group-CAM's, not of gradcam: leave it out, or add groupcam"),
        (["--methods", "fast,gradcam", "--mask-at", "stage"], "--mask-at stage is"),
        (["--methods", "groupcam,gradcam", "--style", "raw"], "--style raw is for one method"),
    ],
)
def test_contradictions_are_refused_with_the_way_out(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        keys(*words)
    assert stop.value.code == 2 and message in " ".join(capsys.readouterr().err.split())
