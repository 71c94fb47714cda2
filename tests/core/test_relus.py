"""ReLUs that a network calls as functions behind the layer that is found: maps are of what comes out of them."""

import copy

import pytest
import torch
from models import PooledNet
from torch import nn
from torch.nn import functional as F
from torchvision.models import densenet121

from groupcam_aug import GradCAM, GroupCAM
from groupcam_aug.map_ops import enlarge, minmax
from groupcam_aug.relus import is_clamp_at_zero, is_rectified


class Dense(PooledNet):
    """As torchvision's DenseNet ends: a normalisation, then a ReLU that is no module."""

    def __init__(self, relu):
        super().__init__()
        self.norm = nn.BatchNorm2d(8)
        self.norm.running_mean.uniform_(-0.5, 0.5)
        self.relu = relu
        self.first = relu if isinstance(relu, nn.Module) else F.relu
        del self.relu1, self.relu2

    def features(self, x):
        return self.norm(self.conv2(self.first(self.bn1(self.conv1(x)))))

    def forward(self, x):
        return self.fc(self.pool(self.relu(self.features(x))).flatten(1))


def in_passing(x):
    """In place, and whoever holds the tensor goes on."""
    F.relu_(x)
    return x


FORMS = {
    "function": F.relu,
    "in place": lambda x: F.relu(x, inplace=True),
    "in passing": in_passing,
    "method": lambda x: x.relu(),
    "named argument": lambda x: torch.relu(input=x),
    "shared module": nn.ReLU(),  # used twice, so no name stands for what comes out of it
}


@pytest.fixture(params=FORMS)
def dense(request):
    torch.manual_seed(3)
    return Dense(FORMS[request.param]).double().eval()


def test_grad_cam_of_pooled_rectified_features_is_cam(dense, images):
    """Where pooling and a linear layer follow, Grad-CAM is CAM (Zhou et al. 2016): the weights are those of the classifier."""
    labels = torch.tensor([0, 1, 2])
    cam = GradCAM(dense)
    found = cam.raw(images, labels)
    with torch.no_grad():
        rectified = dense.features(images).relu()
        expected = (dense.fc.weight[labels][:, :, None, None] * rectified).sum(1).relu() / rectified[0, 0].numel()
    torch.testing.assert_close(found, expected)
    assert cam.layer == "norm" and cam.rectified == {"norm"} and found.amax() > 0
    named = GradCAM(dense, "norm").raw(images, labels)
    assert (named - found).abs().max() > 0.1 * found.max(), "a layer that is named is taken as it is"


@pytest.mark.parametrize("mask_at", ["input", "target"])
@pytest.mark.parametrize("weights", ["gradient", "none"])
def test_group_cam_is_that_of_the_network_with_the_relu_as_a_module(dense, images, weights, mask_at):
    modules = copy.deepcopy(dense)
    modules.relu = nn.ReLU()
    options = {"groups": 4, "weights": weights, "denoise": None, "mask_at": mask_at}
    cam, reference = GroupCAM(dense, **options), GroupCAM(modules, **options)
    torch.testing.assert_close(cam.raw(images, 1), reference.raw(images, 1))
    assert (cam.layer, reference.layer) == ("norm", "relu") and not reference.rectified
    assert cam._tails == ({} if mask_at == "input" else {"norm": "pooled"}), "as cheap as there"
    assert cam.raw(images, 1).amax() > 0


def test_only_a_relu_and_nothing_else_counts(images):
    def also_read(x):
        return F.relu(x) + x

    for relu in (also_read, F.silu, F.relu6, lambda x: torch.cat([x, F.relu(x)], 1)[:, :8], lambda x: x, lambda x: x.clone()):
        net = Dense(relu).double().eval()
        assert not is_rectified(net, net, images[:1], "norm")
    net = Dense(F.relu).double().eval()
    assert is_rectified(net, net, images[:1], "norm") and not is_rectified(net, net, images[:1], "conv2")


def test_a_relu_that_is_no_longer_there_is_said(images):
    net = Dense(F.relu).double().eval()
    cam = GradCAM(net)
    cam(images, 1)
    net.relu = F.silu
    with pytest.raises(RuntimeError, match="applied a ReLU to the output of layer 'norm' before, and now does not"):
        cam(images, 1)


def test_clamps_at_zero():
    x = torch.zeros(1)
    assert is_clamp_at_zero(torch.clamp, (x, 0), {}) and is_clamp_at_zero(torch.Tensor.clamp_min, (x,), {"min": 0.0})
    assert not is_clamp_at_zero(torch.clamp, (x, 0, 6), {}) and not is_clamp_at_zero(torch.relu, (x, 0), {})


def test_torchvisions_densenet_is_mapped_behind_its_functional_relu():
    torch.manual_seed(0)
    net = densenet121(weights=None, num_classes=7).eval()
    pictures, labels = torch.randn(2, 3, 96, 96), torch.tensor([1, 5])
    cam = GradCAM(net)
    with pytest.warns(UserWarning, match="3 x 3 cells"):
        maps = cam(pictures, labels)
    with torch.no_grad():
        rectified = net.features(pictures).relu()
        raw = (net.classifier.weight[labels][:, :, None, None] * rectified).sum(1, keepdim=True).relu()
    torch.testing.assert_close(maps, minmax(enlarge(raw, pictures.shape[-2:])[:, 0]), rtol=0, atol=1e-5)
    assert cam.layer == "features.norm5" and cam.rectified == {"features.norm5"}
