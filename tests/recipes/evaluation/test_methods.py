"""The methods of the table: what each computes, and which a call chooses."""

import pytest
import torch
from models import PooledNet

from groupcam_aug import GradCAM, GroupCAM
from groupcam_aug.baselines import centred_blob, random_cells
from groupcam_aug.map_ops import minmax
from groupcam_aug.occlusion import occlusion
from groupcam_aug.recipes.evaluation.map_method import Setup
from groupcam_aug.recipes.evaluation.methods import METHODS, RENAMED, ablation, choose, rise_method
from groupcam_aug.rise import rise

KNOWN = {method.key: method for method in METHODS}
OURS = {
    "groupcam": lambda net: GroupCAM(net, groups=8),
    "groupcam-stage": lambda net: GroupCAM(net, groups=8, mask_at="stage"),
    "groupcam-target": lambda net: GroupCAM(net, groups=8, mask_at="target"),
    "paper": lambda net: GroupCAM.for_training(net, groups=8),
    "balanced": lambda net: GroupCAM.for_training(net, groups=8, mask_at="stage"),
    "target-blur": lambda net: GroupCAM.for_training(net, groups=8, mask_at="target"),
    "paper-weights": lambda net: GroupCAM.for_training(net, groups=8, weights="gradient"),
    "fast": lambda net: GroupCAM.for_training(net, groups=8, mask_at="target", baseline="zero"),
    "gradcam": GradCAM,
}


@pytest.fixture(scope="module")
def setup():
    torch.manual_seed(1)
    return Setup.of(PooledNet(channels=8).eval(), torch.randn(1, 3, 24, 24))


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 3, 24, 24, generator=generator), torch.tensor([1, 2, 0]), [4, 5, 6]


@pytest.mark.parametrize("key", OURS)
def test_ours_are_those_of_the_library(key, setup, batch):
    images, labels, seeds = batch
    assert torch.equal(KNOWN[key].make(setup)(images, labels, seeds), OURS[key](setup.network)(images, labels))
    assert {method.key for method in METHODS if method.kind == "ours"} == set(OURS)


def test_rise_and_occlusion_are_those_of_the_library_and_are_not_among_other_libraries(setup, batch):
    images, labels, seeds = batch
    few = rise_method(30)
    expected = minmax(rise(setup.network, images, labels, masks=30))
    assert torch.equal(few.make(setup)(images, labels, seeds), expected) and few.passes((24, 24)) == 31
    expected = minmax(occlusion(setup.network, images, labels).maps)
    torch.testing.assert_close(KNOWN["occlusion"].make(setup)(images, labels, seeds), expected)
    assert KNOWN["occlusion"].passes((224, 224)) == 170 and KNOWN["rise"].passes((9, 9)) == 4001
    assert not {"rise", "occlusion"} & {method.key for method in choose(None, True)}, "dear, and asked for by name"
    assert [method.key for method in choose("rise,occlusion", False)] == ["rise", "occlusion"]


@pytest.mark.parametrize("key", ["groupcam", "paper", "fast", "occlusion"])
def test_sigmoid_reaches_the_methods_that_read_probabilities(key, setup, batch):
    images, labels, seeds = batch
    sigmoid = Setup.of(setup.network, images[:1], activation="sigmoid")
    found = KNOWN[key].make(sigmoid)(images, labels, seeds)
    assert not torch.allclose(found, KNOWN[key].make(setup)(images, labels, seeds), atol=1e-4)
    if key == "groupcam":
        assert torch.equal(found, GroupCAM(setup.network, groups=8, activation="sigmoid")(images, labels))


def test_presets_are_called_as_in_training():
    """And their maps are those that training makes; the shares `p` have no meaning here."""
    assert {"paper", "balanced", "fast"} <= set(KNOWN) and all(KNOWN[key].name == key for key in ("paper", "balanced", "fast"))


def test_controls_know_nothing_and_do_not_depend_on_the_batch(setup, batch):
    images, labels, seeds = batch
    for key in ("centre", "cells", "pixels"):
        made = KNOWN[key].make(setup)
        maps = made(images, labels, seeds)
        assert maps.shape == (3, 24, 24) and 0 <= float(maps.amin()) and float(maps.amax()) <= 1
        assert torch.equal(maps, made(images * 2, labels.flip(0), seeds))
        assert torch.equal(maps[1:2], made(images[1:2], labels[1:2], seeds[1:2]))
    assert torch.equal(KNOWN["centre"].make(setup)(*batch), centred_blob(images[:, 0]))
    assert torch.equal(KNOWN["cells"].make(setup)(images[:1], labels, seeds[:1]), random_cells(images[:1, 0], 4))
    inverted = KNOWN["inverted"]
    maps = torch.stack([torch.rand(4, 4), torch.zeros(4, 4)])
    assert inverted.of == "groupcam" and torch.equal(inverted.alter(maps), torch.stack([1 - maps[0], maps[1]])), (
        "no map stays none"
    )


def test_a_call_chooses_by_key():
    assert [method.key for method in choose("gradcam, fast,gradcam", False)] == ["gradcam", "fast"] and choose(
        "none", False
    ) == []
    usual = choose(None, False)
    assert all(method.default and method.kind != "peer" for method in usual) and "groupcam-stage" not in {m.key for m in usual}
    assert [m.kind for m in choose("none", True)] == ["peer"] * sum(bool(m.needs) for m in METHODS)
    with pytest.raises(ValueError, match="no method 'gradcamm'; did you mean 'gradcam'"):
        choose("gradcamm", False)


@pytest.mark.parametrize("former", RENAMED)
def test_former_keys_are_refused_with_those_of_now(former):
    with pytest.raises(ValueError, match=f"no method '{former}'; it is called '{RENAMED[former]}' now"):
        choose(f"gradcam,{former}", False)


def test_an_ablation_varies_one_number_and_keeps_the_method_itself(setup, batch):
    images, labels, seeds = batch
    groups = ablation("groups", 8)
    assert list(groups) == [1.0, 4.0, 8.0] and groups[8.0] is KNOWN["groupcam"], "as many as there are channels, at most"
    assert torch.equal(groups[4.0].make(setup)(*batch), GroupCAM(setup.network, groups=4)(images, labels))
    theta = ablation("denoise", 8)
    assert list(theta) == [float(value) for value in range(0, 100, 10)] and theta[70.0] is KNOWN["groupcam"]
    assert torch.equal(theta[30.0].make(setup)(*batch), GroupCAM(setup.network, groups=8, denoise=30.0)(images, labels))
