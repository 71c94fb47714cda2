"""Other libraries' maps: theirs, beside ours, and how to get them where they are missing."""

import sys
from importlib.util import find_spec

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
    gradients = dict.fromkeys(("Grad-CAM++", "LayerCAM", "HiResCAM", "XGradCAM"), 3)
    assert costs.items() >= {"Score-CAM": 17, **gradients, "integrated gradients": 100, "SmoothGrad": 50}.items()
    assert {"EigenCAM", "Ablation-CAM"} <= set(costs) and ("SmoothGrad-CAM++" in costs) == (find_spec("torchcam") is not None)
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


def features_and_slopes(network, image, label):
    """Activations (K, h, w) of PooledNet's last ReLU, and the gradient of the logit there."""
    x = network.relu1(network.bn1(network.conv1(image[None])))
    features = network.relu2(network.conv2(x)) if hasattr(network, "conv2") else x
    features = features.detach().requires_grad_()
    logit = network.fc(network.pool(features).flatten(1))[0, label]
    return features[0].detach(), torch.autograd.grad(logit, features)[0][0]


def by_hand(key, features, slopes):
    """The maps as their papers write them, before the last ReLU."""
    if key == "layercam":
        return (slopes.relu() * features).sum(dim=0)
    if key == "hirescam":
        return (slopes * features).sum(dim=0)
    weights = (slopes * features).sum(dim=(1, 2)) / (features.sum(dim=(1, 2)) + 1e-7)  # xgradcam
    return (weights[:, None, None] * features).sum(dim=0)


@pytest.mark.parametrize("key", ["layercam", "hirescam", "xgradcam"])
def test_cam_variants_are_those_of_their_papers(key):
    """Of grad-cam, called as here; and by the formula."""
    pytest.importorskip("pytorch_grad_cam")
    torch.manual_seed(1)
    network = PooledNet().eval()
    images, labels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2])
    method = next(method for method in EXTERNAL_METHODS if method.key == key)
    setup, before = Setup.of(network, images[:1]), snapshot(network)
    found = method.make(setup)(images, labels, [0, 0])
    assert_same(before, snapshot(network))
    for i in range(2):
        grid = by_hand(key, *features_and_slopes(network, images[i], labels[i])).relu()
        large = torch.nn.functional.interpolate(grid[None, None], (32, 32), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(found[i], rescaled(large)[0], atol=2e-3, rtol=0)  # grad-cam enlarges by OpenCV


def test_ablation_eigen_and_smooth_cams_run_and_the_same_seed_gives_the_same_map():
    pytest.importorskip("pytorch_grad_cam")
    pytest.importorskip("torchcam")
    torch.manual_seed(1)
    network = PooledNet().eval()
    images, labels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2])
    setup, before = Setup.of(network, images[:1]), snapshot(network)
    for key in ("ablationcam", "eigencam", "smoothgradcam++"):
        made = next(method for method in EXTERNAL_METHODS if method.key == key).make(setup)
        maps = made(images, labels, [3, 4])
        assert maps.shape == (2, 32, 32) and (float(maps.amin()), float(maps.amax())) == (0, 1), key
        torch.testing.assert_close(made(images.flip(0), labels.flip(0), [4, 3]).flip(0), maps, atol=1e-5, rtol=0)
    assert not torch.equal(made(images, labels, [5, 6]), maps), "the noise is that of the seed"
    assert_same(before, snapshot(network))


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
    for name in ("captum", "captum.attr", "pytorch_grad_cam", "torchcam", "torchcam.methods"):
        monkeypatch.setitem(sys.modules, name, None)
    words = [pictures, "--measures", "curves", "--steps", 2, "--limit", 2, "--out", tmp_path / "out"]
    assert evaluate(*words, "--methods", "gradcam", "--compare", checkpoint=checkpoint) == 1, "asked for, not done"
    told, found = capsys.readouterr().out, record(tmp_path / "out")
    assert set(found["methods"]) == {"Grad-CAM"} and len(found["left_out"]) == 11
    assert "pip install 'groupcam-aug[compare]'" in found["left_out"]["Score-CAM"] and "left out: SmoothGrad" in told
    assert evaluate(*words, "--methods", "scorecam", checkpoint=checkpoint) == 1
    assert "scorecam: pytorch_grad_cam cannot be imported" in capsys.readouterr().err
