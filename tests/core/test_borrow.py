"""The network is given back exactly as it was found, whatever happens in between."""

import pytest
import torch
from models import PooledNet, assert_same, snapshot
from torch import nn
from torch.nn import functional as F

from groupcam_aug import GradCAM, GroupCAM, guided_grad_cam
from groupcam_aug.borrow import as_found, capture, unwrap

METHODS = {
    "Group-CAM": lambda net: GroupCAM(net, "relu2", groups=4),
    "Group-CAM, training form": lambda net: GroupCAM.for_training(net, "relu2", groups=4),
    "Group-CAM at the target": lambda net: GroupCAM(net, "relu2", groups=4, mask_at="target"),
    "Group-CAM at a layer": lambda net: GroupCAM(net, "relu2", groups=4, mask_at="relu1"),
    "Grad-CAM": lambda net: GradCAM(net, "relu2"),
    "Grad-CAM, several layers": lambda net: GradCAM(net, ["relu1", "relu2"]),
    "Guided Grad-CAM": lambda net: lambda images, targets: guided_grad_cam(net, images, targets, "relu2"),
}


class Restless(PooledNet):
    """Changes a buffer in eval mode, draws random numbers, and can be made to raise in any layer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.fail = False

    def forward(self, x):
        self.seen += 1
        x = F.dropout(x, 0.1)  # no `training=`: draws in eval mode too
        if self.fail:
            raise ArithmeticError("planted")
        return super().forward(x)


def mixed(net):
    """A network as people leave it: partly frozen, partly in eval, with gradients accumulated and a hook of its own."""
    net.train()
    net.bn1.eval()
    net.conv1.requires_grad_(False)
    net.fc.register_forward_hook(lambda *_: None)
    net(torch.randn(2, 3, 24, 20, dtype=net.fc.weight.dtype)).sum().backward()
    return net


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("outcome", ["fine", "bad target", "network raises", "inside no_grad", "inside autocast"])
def test_given_back_as_found(method, outcome):
    torch.manual_seed(0)
    net = mixed(Restless())
    images = torch.randn(3, 3, 24, 20)
    run = METHODS[method](net)
    modes = {"inside no_grad": torch.no_grad(), "inside autocast": torch.autocast("cpu", torch.bfloat16)}
    with modes.get(outcome, torch.enable_grad()):
        before = snapshot(net)
        if outcome == "bad target":
            with pytest.raises(ValueError, match="outside the 5 classes"):
                run(images, torch.tensor([0, 1, 5]))
        elif outcome == "network raises":
            net.fail = True
            with pytest.raises(ArithmeticError):
                run(images, 1)
            net.fail = False
        else:
            run(images, 1)
        assert_same(before, snapshot(net))


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_that_raises_leaves_nothing_behind(method):
    net, images = PooledNet(), torch.randn(2, 4, 24, 20)  # 4 channels for a network of 3
    before = snapshot(net)
    run = METHODS[method](net)
    with pytest.raises(RuntimeError):
        run(images, 1)
    assert_same(before, snapshot(net))


@pytest.mark.parametrize("method", METHODS)
def test_training_is_the_same_with_and_without(method):
    """P18: k optimiser steps with maps computed and thrown away equal k steps without, bit for bit."""

    def train(look):
        torch.manual_seed(0)
        net = PooledNet().train()
        optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        average = torch.optim.swa_utils.AveragedModel(net)
        images, labels = torch.randn(4, 4, 3, 24, 20), torch.randint(5, (4, 4))
        for step, (x, y) in enumerate(zip(images, labels)):
            if look:
                METHODS[method](net)(x, y)
            F.cross_entropy(net(x), y).backward()
            if look:
                METHODS[method](net)(x, y)  # between backward and step, as in gradient accumulation
            if step % 2:
                optimiser.step()
                optimiser.zero_grad()
                average.update_parameters(net)
        return [*net.state_dict().values(), *average.state_dict().values()], torch.get_rng_state()

    (plain, plain_rng), (looked, looked_rng) = train(False), train(True)
    assert torch.equal(plain_rng, looked_rng)
    assert all(torch.equal(a, b) for a, b in zip(plain, looked, strict=True))


def test_autocast_cache_does_not_lose_gradients():
    net = PooledNet()
    images = torch.randn(2, 3, 24, 20)
    with torch.autocast("cpu", torch.bfloat16):
        GroupCAM(net, "relu2", groups=4)(images, 1)
        net(images).float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert net.conv1.weight.grad.abs().sum() > 0


def test_frozen_and_mixed_modes_survive_nesting(net):
    net.train()
    net.bn1.eval()
    with as_found(net), as_found(net):
        assert not any(module.training for module in net.modules())
    assert net.training and not net.bn1.training and net.conv1.training


def test_capture_sees_the_output_before_an_inplace_operation():
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(inplace=True))
    x = -torch.ones(1, 1, 2, 2)
    nn.init.ones_(net[0].weight)
    nn.init.zeros_(net[0].bias)
    with torch.no_grad(), capture(net[0], "0") as seen:
        assert (net(x) == 0).all()
    assert (seen.one() == -1).all() and not net[0]._forward_hooks


def test_capture_of_something_that_is_no_tensor():
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    layer = Two()
    with capture(layer, "two") as seen:
        layer(torch.ones(1))
    with pytest.raises(RuntimeError, match="returned tuple"):
        seen.one()


def test_unwrap():
    net = PooledNet()
    assert unwrap(net) is net
    assert unwrap(nn.DataParallel(net)) is net
    assert unwrap(torch.compile(net)) is net
    with pytest.raises(TypeError, match="ScriptModule"):
        unwrap(torch.jit.trace(net.eval(), torch.randn(1, 3, 24, 20)))
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, got function"):
        unwrap(lambda x: x)


def test_no_graph_and_no_memory_kept(net, images):
    """P19: results carry no graph; 50 calls leave no tensor behind."""
    import gc

    def alive():
        gc.collect()
        return sum(isinstance(obj, torch.Tensor) for obj in gc.get_objects())

    cam, grad = GroupCAM(net, "relu2", groups=4), GradCAM(net, "relu2")
    assert not cam(images, 1).requires_grad and not grad(images, 1).requires_grad
    before = alive()
    for _ in range(50):
        cam(images, 1), grad(images, 1)
    assert alive() <= before
