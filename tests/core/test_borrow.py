"""The network is given back exactly as it was found, whatever happens in between."""

import pytest
import torch
from models import PooledNet, assert_same, snapshot
from torch import nn
from torch.ao.quantization import FusedMovingAvgObsFakeQuantize, MovingAverageMinMaxObserver
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from groupcam_aug import GradCAM, GroupCAM, guided_backprop, guided_grad_cam
from groupcam_aug.borrow import as_found, capture, unwrap

METHODS = {
    "Group-CAM": lambda net: GroupCAM(net, "relu2", groups=4),
    "Group-CAM, training form": lambda net: GroupCAM.for_training(net, "relu2", groups=4),
    "Group-CAM at the target": lambda net: GroupCAM(net, "relu2", groups=4, mask_at="target"),
    "Group-CAM at a layer": lambda net: GroupCAM(net, "relu2", groups=4, mask_at="relu1"),
    "Grad-CAM": lambda net: GradCAM(net, "relu2"),
    "Grad-CAM, several layers": lambda net: GradCAM(net, ["relu1", "relu2"]),
    "Guided Grad-CAM": lambda net: lambda images, targets: guided_grad_cam(net, images, targets, "relu2"),
    "guided backpropagation": lambda net: lambda images, targets: guided_backprop(net, images, targets),
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


def _statistics(net, x):
    F.batch_norm(x, net.norm.running_mean, net.norm.running_var, training=True)


WAYS = {
    "in place": lambda net, x: net.stat.add_(1),
    ".data": lambda net, x: net.stat.data.add_(1),
    "copy_": lambda net, x: net.stat.copy_(x.mean((0, 2, 3))),
    "out=": lambda net, x: torch.add(net.stat, 1, out=net.stat),
    "an index": lambda net, x: net.stat.__setitem__(0, x.mean()),
    "through numpy": lambda net, x: net.stat.numpy().__iadd__(1),
    "a view": lambda net, x: net.stat[:2].zero_(),
    "assigned": lambda net, x: setattr(net, "stat", net.stat + x.mean((0, 2, 3))),
    "registered again": lambda net, x: net.register_buffer("stat", x.mean((0, 2, 3))),
    "resized": lambda net, x: net.stat.resize_(7),
    "set_": lambda net, x: net.stat.set_(x.flatten()),
    "set to None": lambda net, x: setattr(net, "stat", None),
    "deleted": lambda net, x: net._buffers.pop("stat", None),
    "a tied one": lambda net, x: net.tied.stat.add_(1),
    "statistics of normalisation": _statistics,
    "an observer": lambda net, x: net.observer(x),
    "a fused observer": lambda net, x: net.fused(x),
    "training mode": lambda net, x: net.norm.train()(x),
}


class Writes(PooledNet):
    """Writes to a buffer in every forward pass, in one of the ways; another one scales a layer."""

    def __init__(self, write):
        super().__init__()
        self.write = write
        self.register_buffer("stat", torch.arange(3.0))
        self.register_buffer("scale", torch.ones(8, 1, 1))
        self.tied, self.norm = nn.Module(), nn.BatchNorm2d(3)
        self.tied.register_buffer("stat", self.stat)
        self.observer = MovingAverageMinMaxObserver()
        self.fused = FusedMovingAvgObsFakeQuantize(MovingAverageMinMaxObserver, quant_min=0, quant_max=255)
        self.fused(torch.ones(1, 3, 2, 2))
        self.conv1.register_forward_hook(lambda module, args, output: output * self.scale)

    def forward(self, x):
        self.write(self, x)
        self.scale.mul_(1)  # bumps the version of what an unfinished backward pass has saved
        return super().forward(x)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", [*METHODS][:1] + [*METHODS][3:5])
def test_buffers_come_back_however_they_are_written(method, way):
    net, images = Writes(WAYS[way]).train(), torch.randn(2, 3, 24, 20)
    before, tied = snapshot(net), net.tied.stat
    METHODS[method](net)(images, 1)
    assert_same(before, snapshot(net))
    assert net.tied.stat is tied is net.stat and net.stat.storage_offset() == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_backward_pass_that_has_saved_a_buffer_goes_on_after_maps(method):
    net, images = Writes(lambda net, x: None).train(), torch.randn(2, 3, 24, 20)
    loss = net(images).sum()
    METHODS[method](net)(images, 1)
    loss.backward()  # "one of the variables needed for gradient computation has been modified by an inplace operation"
    assert net.conv1.weight.grad.isfinite().all()


@pytest.mark.filterwarnings("ignore:.*(reduce_range|torch.ao.quantization)")
def test_quantisation_ranges_do_not_follow_the_maps():
    """Ranges of quantisation-aware training are those of its batches, not of blurred and masked ones."""
    torch.manual_seed(0)
    net = PooledNet().train()
    net.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    net = torch.ao.quantization.prepare_qat(net)
    images = torch.randn(2, 3, 24, 20)
    net(images)
    before = snapshot(net)
    for _ in range(3):
        GroupCAM.for_training(net, "conv2", groups=4)(5 * images, 1)
    assert_same(before, snapshot(net))
    assert any("activation_post_process" in name for name, _ in net.named_buffers())


def test_buffers_made_in_inference_mode_are_borrowed_too():
    with torch.inference_mode():
        net = Writes(WAYS["in place"])
    images = torch.randn(2, 3, 24, 20)
    with torch.no_grad():
        before = snapshot(net)
        GroupCAM.for_training(net, "relu2", groups=4)(images, 1)
        with torch.inference_mode():
            GroupCAM.for_training(net, "relu2", groups=4)(images, 1)
        assert_same(before, snapshot(net))


def test_modes_that_a_forward_pass_sets_come_back():
    net = PooledNet().eval()
    net.register_forward_pre_hook(lambda module, _: module.drop.train() and None)
    GradCAM(net, "relu2")(torch.randn(2, 3, 24, 20), 1)
    assert not net.drop.training


def test_lending_buffers_is_cheap():
    """A hundredth of a step on a CPU, a few launches on an accelerator: copies by kind, none of parameters."""
    net = nn.Sequential(*(nn.BatchNorm2d(4) for _ in range(50)))
    calls = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            calls.append(str(function))
            return function(*args, **(kwargs or {}))

    with Count(), as_found(net):
        pass
    assert calls.count("aten._foreach_copy_.default") == 2 and not [c for c in calls if "clone" in c or "aten.copy" in c]


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
