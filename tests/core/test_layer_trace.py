"""Watching one pass: what fires, with what, and whether it matters."""

import torch
from models import PooledNet
from tokens import TokenNet
from torch import nn

from groupcam_aug import GradCAM
from groupcam_aug.grid import Grid
from groupcam_aug.layer_trace import has_weights, influential, show_grids, trace, usable
from groupcam_aug.spatial_check import probe_image


def test_usable_modules_fire_once_with_one_grid():
    net = PooledNet(channels=6).eval()
    twice = nn.Sequential(net.conv1, net.bn1, net.relu1, net.relu1)
    with torch.no_grad(), trace(twice, (20, 24)) as events:
        twice(torch.randn(1, 3, 20, 24))
    assert [event.name for event in events] == ["0", "1", "2", "2"]
    assert [event.name for event in usable(events)] == ["0", "1"]
    with torch.no_grad(), trace(twice, (20, 24), ["1"]) as events:
        twice(torch.randn(2, 3, 20, 24))
    assert [(event.name, event.grid) for event in events] == [("1", None)], "of two images"
    assert not twice[0]._forward_hooks


def test_grids_are_shown_or_stated():
    torch.manual_seed(0)
    net, probe = TokenNet(prefix=3, suffix=1).eval(), probe_image(torch.zeros(1, 3, 64, 64))
    with torch.no_grad(), trace(net, (64, 64), ["blocks.0", "norm"]) as events:
        net(probe)
    grid = Grid("tokens", 4, 4, 3)
    assert show_grids(net, net, probe, events, None, set()) == {"blocks.0": (grid, True), "norm": (grid, True)}
    assert show_grids(net, net, probe, events, (4, 4, 2), set())["norm"] == (Grid("tokens", 4, 4, 2), False)
    assert show_grids(net, net, probe, events, (4, 5), set())["norm"] == (Grid("tokens", 4, 5, 0), False)
    assert show_grids(net, net, probe, events, (5, 5), set())["norm"] == (None, False)


def test_influence_is_that_of_the_patches():
    torch.manual_seed(0)
    net, probe = TokenNet(prefix=1).eval(), probe_image(torch.zeros(1, 3, 64, 64))
    nn.init.zeros_(net.fc.weight)
    with torch.no_grad(), trace(net, (64, 64), ["blocks.0", "blocks.1.norm", "blocks.1", "norm"]) as events:
        net(probe)
    events = [event._replace(grid=Grid("tokens", 4, 4, 1)) for event in events]
    with torch.no_grad():
        assert influential(net, net, probe, events) == {"blocks.0", "blocks.1.norm"}
        assert len(influential(net, lambda x: net(x).detach(), probe, events)) >= 2


def test_a_container_with_parameters_is_no_classifier():
    """A whole ViT inside another module: what enters it is the image, which no layer of it influences."""
    torch.manual_seed(0)
    net, images = nn.Sequential(TokenNet(prefix=1)).double().eval(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    cam, bare = GradCAM(net), GradCAM(net[0])
    torch.testing.assert_close(cam(images, 1), bare(images, 1))
    assert cam.layer == f"0.{bare.layer}"


def test_has_weights():
    assert has_weights(nn.Sequential(nn.Linear(2, 2))) and not has_weights(nn.Sequential(nn.Linear(2, 2)), recurse=False)
    assert not has_weights(nn.LayerNorm(2))
