"""Other libraries' maps: theirs, beside ours, and how to get them where they are missing."""

import sys

import pytest
import torch
from evaluations import evaluate, record
from models import PooledNet, assert_same, snapshot

from groupcam_aug.recipes.evaluation.external_methods import EXTERNAL_METHODS
from groupcam_aug.recipes.evaluation.map_method import Setup


def test_other_libraries_run_beside_ours(pictures, checkpoint, tmp_path):
    pytest.importorskip("captum")
    pytest.importorskip("pytorch_grad_cam")
    words = [pictures, "--methods", "gradcam", "--compare", "--measures", "curves", "--steps", 2, "--limit", 2]
    assert evaluate(*words, "--out", tmp_path / "out", checkpoint=checkpoint) == 1
    found = record(tmp_path / "out")
    costs = {name: round(own["passes"]) for name, own in found["methods"].items() if own["kind"] == "peer"}
    # A pass for every channel; forward and backward, twice as dear as forward, for every step or copy.
    assert costs == {"Score-CAM": 17, "Grad-CAM++": 3, "integrated gradients": 100, "SmoothGrad": 50}
    assert "it has no nn.ReLU module" in found["left_out"]["guided backprop"], "which captum would pass over in silence"


def test_other_libraries_maps_are_theirs():
    captum = pytest.importorskip("captum.attr")
    pytest.importorskip("pytorch_grad_cam")
    torch.manual_seed(1)
    network = PooledNet().eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels, known = torch.tensor([1, 2]), {method.key: method for method in EXTERNAL_METHODS}
    setup, before = Setup.of(network, images[:1]), snapshot(network)
    made = {key: known[key].make(setup) for key in ("integrated", "smoothgrad", "guided", "gradcam++", "scorecam")}
    found = {key: maps(images, labels, [3, 4]) for key, maps in made.items()}
    assert_same(before, snapshot(network))
    for maps in found.values():
        assert maps.shape == (2, 32, 32) and float(maps.amin()) == 0 and maps.dtype == torch.float32
    plain = captum.IntegratedGradients(network).attribute(images, target=labels, n_steps=50).abs().sum(dim=1)
    torch.testing.assert_close(found["integrated"], rescaled(plain), atol=1e-4, rtol=0)
    torch.testing.assert_close(found["guided"], rescaled(guided_by_hand(network, images, labels)), atol=1e-5, rtol=0)
    again = made["smoothgrad"](images.flip(0), labels.flip(0), [4, 3]).flip(0)
    torch.testing.assert_close(found["smoothgrad"], again, atol=1e-5, rtol=0)


def guided_by_hand(network, images, labels):
    from groupcam_aug.guided import _GuidedReLUs

    pixels = images.clone().requires_grad_()
    with _GuidedReLUs("net"):
        value = network(pixels).gather(1, labels[:, None]).sum()
    return torch.autograd.grad(value, pixels)[0].abs().sum(dim=1)


def rescaled(maps):
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return ((maps - low) / (high - low)).detach()


def test_missing_libraries_are_named_with_the_way_to_get_them(pictures, checkpoint, tmp_path, monkeypatch, capsys):
    for name in ("captum", "captum.attr", "pytorch_grad_cam"):
        monkeypatch.setitem(sys.modules, name, None)
    words = [pictures, "--measures", "curves", "--steps", 2, "--limit", 2, "--out", tmp_path / "out"]
    assert evaluate(*words, "--methods", "gradcam", "--compare", checkpoint=checkpoint) == 1, "asked for, not done"
    told, found = capsys.readouterr().out, record(tmp_path / "out")
    assert set(found["methods"]) == {"Grad-CAM"} and len(found["left_out"]) == 5
    assert "pip install 'groupcam-aug[compare]'" in found["left_out"]["Score-CAM"] and "left out: SmoothGrad" in told
    assert evaluate(*words, "--methods", "scorecam", checkpoint=checkpoint) == 1
    assert "scorecam: pytorch_grad_cam cannot be imported" in capsys.readouterr().err
