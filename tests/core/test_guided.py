"""Guided Grad-CAM: by hand, against hooks on modules, and refused where it is not defined."""

import pytest
import torch
from models import PooledNet
from torch import nn
from torch.nn import functional as F

from groupcam_aug import GradCAM, guided_backprop, guided_grad_cam


def test_equals_the_module_hook_form(net, images):
    """The classic implementation: backward hooks that clamp the gradients at each ReLU module."""
    net.relu2.inplace = False
    found = guided_grad_cam(net, images, [0, 1, 2], "relu2")
    net.eval()
    handles = [m.register_full_backward_hook(lambda m, g_in, g_out: (g_in[0].clamp(min=0),)) for m in (net.relu1, net.relu2)]
    pixels = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(pixels)[range(3), [0, 1, 2]].sum(), pixels)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(found, GradCAM(net, "relu2")(images, [0, 1, 2])[:, None] * gradient)
    assert found.abs().max() > 0
    alone = guided_backprop(net, images, [0, 1, 2])
    torch.testing.assert_close(alone, gradient)
    torch.testing.assert_close(guided_backprop(net, images, [0, 1, 2], chunk=1), alone)
    assert guided_backprop(net, images[:0], 0).shape == (0, *images.shape[1:])


def test_functional_relus_count_as_well(images):
    class Functional(PooledNet):
        def forward(self, x):
            x = F.relu(self.bn1(self.conv1(x)), inplace=True)
            return self.fc(self.pool(torch.relu_(self.conv2(x))).flatten(1))

    torch.manual_seed(0)
    functional = Functional().double()
    torch.manual_seed(0)
    modules = PooledNet().double()
    a, b = guided_grad_cam(functional, images, 1, "conv2"), guided_grad_cam(modules, images, 1, "conv2")
    torch.testing.assert_close(a, b)


OTHERS = [
    nn.Tanh(), nn.Sigmoid(), nn.RReLU(), nn.LeakyReLU(inplace=True), nn.Hardsigmoid(), nn.Softsign(), nn.PReLU(), nn.ELU(),
    nn.CELU(), nn.SELU(), nn.Mish(), nn.SiLU(), nn.Hardswish(), nn.Tanhshrink(), nn.Softshrink(), nn.Hardshrink(),
    nn.LogSigmoid(), nn.Softplus(), nn.Threshold(0.1, 0.0), nn.Sequential(nn.Conv2d(8, 16, 1), nn.GLU(1)),
]  # fmt: skip


@pytest.mark.parametrize("activation", OTHERS, ids=lambda module: type(module).__name__)
def test_any_other_activation_beside_relus_is_refused(images, activation):
    net = PooledNet().double()
    net.bn1 = activation.double()
    with pytest.raises(ValueError, match="PooledNet uses .*networks of ReLUs only; use grad_cam"):
        guided_grad_cam(net, images, 1, "conv2")
    with pytest.raises(ValueError, match="PooledNet uses .*networks of ReLUs only; use grad_cam"):
        guided_backprop(net, images, 1)


@pytest.mark.parametrize("activation", [F.leaky_relu_, torch.tanh_, torch.Tensor.sigmoid_, torch.special.expit])
def test_activations_as_functions_are_refused(images, activation):
    class Functional(PooledNet):
        def forward(self, x):
            return self.fc(self.pool(self.relu2(self.conv2(activation(self.conv1(x))))).flatten(1))

    with pytest.raises(ValueError, match="Functional uses"):
        guided_grad_cam(Functional().double(), images, 1, "conv2")


@pytest.mark.parametrize("everything", [True, False])
def test_a_network_behind_no_grad_is_refused(images, everything):
    class Probe(PooledNet):
        def forward(self, x):
            with torch.no_grad():
                x = self.relu2(self.conv2(self.relu1(self.conv1(x))))
                if everything:
                    return self.fc(self.pool(x).flatten(1))
            return self.fc(self.pool(x).flatten(1))

    with pytest.raises(ValueError, match="no gradient of Probe reaches the images.*use grad_cam"):
        guided_grad_cam(Probe().double(), images, 1, "relu2")


@pytest.mark.parametrize(
    "activation, message", [(nn.GELU(), "uses gelu"), (nn.ReLU6(), "uses hardtanh"), (nn.Identity(), "no ReLU")]
)
def test_refused_without_relus(images, activation, message):
    net = PooledNet().double()
    net.relu1, net.relu2 = activation, activation if message == "no ReLU" else nn.ReLU()
    if message == "no ReLU":
        net.relu2 = nn.Identity()
    with pytest.raises(ValueError, match=message):
        guided_grad_cam(net, images, 1, "conv2")


@pytest.mark.parametrize(
    "cut", [lambda x: x.clamp(min=0), lambda x: x.clamp(0), lambda x: torch.clamp_min(x, 0.0), lambda x: x.clip(0)]
)
def test_a_clamp_that_is_a_relu_is_refused(images, cut):
    with pytest.raises(ValueError, match="as a ReLU, which is no guided one"):
        guided_grad_cam(Cut(cut), images, 1, "conv1")


def test_another_clamp_is_none(images):
    guided_grad_cam(Cut(lambda x: x.clamp(-9, 9)), images, 1, "conv1")
    guided_grad_cam(Cut(lambda x: x.clamp(min=-9)), images, 1, "conv1")


class Cut(PooledNet):
    def __init__(self, cut):
        super().__init__()
        self.cut = cut
        self.double()

    def forward(self, x):
        return super().forward(self.cut(x))


def test_a_scripted_part_is_refused(images):
    net = PooledNet().double()
    net.bn1 = torch.jit.script(nn.Sequential(nn.BatchNorm2d(net.bn1.num_features), nn.ReLU()).double())
    with pytest.raises(ValueError, match="'bn1' is a ScriptModule, whose ReLUs cannot be seen"):
        guided_grad_cam(net, images, 1, "relu2")
