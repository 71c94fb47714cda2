"""What methods are made for, and whether one can be made."""

import sys

import pytest
import torch
from models import PooledNet, assert_same, snapshot

from groupcam_aug.recipes.evaluation.map_method import Method, Setup


def test_a_setup_finds_the_layer_counts_its_channels_and_leaves_the_network_alone():
    network, image = PooledNet(channels=8).train(), torch.randn(1, 3, 24, 24)
    before = snapshot(network)
    setup = Setup.of(network, image)
    assert_same(before, snapshot(network))
    assert (setup.layer, setup.channels) == ("relu2", 8) and setup.groups(32) == 8 and setup.groups(4) == 4
    assert setup.copied is setup.copied is not network and not setup.copied.training
    with pytest.raises(ValueError, match="stage9"):
        Setup.of(network, image, "stage9")


def test_a_method_says_what_it_lacks(monkeypatch):
    assert Method("a", "A", "ours", "", lambda setup: None).missing() is None
    assert Method("a", "A", "peer", "", lambda setup: None, needs="json").missing() is None
    monkeypatch.setitem(sys.modules, "captum", None)
    reason = Method("a", "A", "peer", "", lambda setup: None, needs="captum").missing()
    assert "captum cannot be imported" in reason and "pip install 'groupcam-aug[compare]'" in reason
