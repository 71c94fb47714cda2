"""GroupCAM and GradCAM against the literal oracle, the identities of the method, and independence of batch mates."""

import math

import oracle
import pytest
import torch
from models import EchoNet, PooledNet
from torch import nn

from groupcam_aug import GradCAM, GroupCAM, grad_cam, group_cam
from groupcam_aug.blur import blur

FORMS = {
    "paper": {"weights": "gradient", "denoise": 70.0},
    "head": {"weights": "gradient", "denoise": 70.0, "variant": "head"},
    "training": {"weights": "none", "denoise": None},
}


class Deep(nn.Module):
    """Random torchvision ResNet, narrow enough for float64."""

    def __new__(cls):
        from torchvision.models.resnet import Bottleneck, ResNet

        torch.manual_seed(3)
        network = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=7, width_per_group=16)
        for module in network.modules():  # statistics and scales of a trained network, not of a fresh one
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        nn.init.normal_(network.fc.weight, std=0.5)
        return network.double()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("groups", [1, 8, 16, 32])
def test_group_cam_equals_oracle_on_a_small_net(form, groups):
    torch.manual_seed(0)
    net = PooledNet(channels=37).double().eval()  # 37 channels: uneven groups
    images = torch.randn(4, 3, 25, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    targets = [0, 4, 2, 2]
    maps = GroupCAM(net, "relu2", groups=groups, **FORMS[form])(images, torch.tensor(targets))
    assert maps.dtype == torch.float64
    for image, target, result in zip(images, targets, maps):
        expected = oracle.group_cam(net, "relu2", image, target, groups, **FORMS[form])
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    assert any(m.max() == 1 for m in maps)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("groups", [1, 8, 16, 32])
def test_group_cam_equals_oracle_on_a_resnet(form, groups):
    net = Deep().eval()
    images = torch.randn(3, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    targets = [6, 1, 3]
    cam = GroupCAM(net, groups=groups, **FORMS[form])
    maps = cam(images, torch.tensor(targets))
    assert cam.layer == "layer4"
    for image, target, result in zip(images, targets, maps):
        expected = oracle.group_cam(net, "layer4", image, target, groups, **FORMS[form])
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("make, layer", [(lambda: PooledNet().double(), "relu2"), (Deep, "layer4"), (Deep, "layer2")])
def test_grad_cam_equals_oracle(make, layer):
    torch.manual_seed(0)
    net = make().eval()
    images = torch.randn(3, 3, 64, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    maps = GradCAM(net, layer)(images, torch.tensor([1, 0, 3]))
    for image, target, result in zip(images, [1, 0, 3], maps):
        torch.testing.assert_close(result, oracle.grad_cam(net, layer, image, target), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form, groups", [("paper", 32), ("head", 32), ("training", 16), ("paper", 8), ("training", 1)])
def test_group_cam_equals_oracle_on_photographs(squeezenet, photographs, form, groups):
    images, labels = photographs(2, start=40)
    maps = GroupCAM(squeezenet, groups=groups, **FORMS[form])(images, labels)
    for image, label, result in zip(images, labels, maps):
        expected = oracle.group_cam(squeezenet, "features.12", image, int(label), groups, **FORMS[form])
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_grad_cam_equals_oracle_on_photographs(squeezenet, photographs):
    images, labels = photographs(3, start=40)
    for image, label, result in zip(images, labels, GradCAM(squeezenet)(images, labels)):
        torch.testing.assert_close(result, oracle.grad_cam(squeezenet, "features.12", image, int(label)), rtol=0, atol=1e-5)


def test_hand_computed_map():
    """Two channels, one group each. Class 0 sees channel 0 alone, so only the group of channel 0 gains over the blur."""
    net = EchoNet().double()
    image = torch.zeros(1, 2, 6, 6, dtype=torch.float64)
    image[0, 0, 0, 0], image[0, 1, 5, 5] = 3.0, 3.0
    S = GroupCAM.for_training(net, "body", groups=2)(image, 0)[0]
    # Both masks are one pixel; at it the masked image is the image, elsewhere the blur. A pixel that stands alone is above
    # its blurred value there, so the group of channel 0 raises logit 0 and the group of channel 1 raises logit 1.
    b = blur(image)[0]
    logits = [b[0].mean(), b[1].mean()]
    gain0 = (3 - b[0, 0, 0]) / 36, (0 - b[1, 0, 0]) / 36
    gain1 = (0 - b[0, 5, 5]) / 36, (3 - b[1, 5, 5]) / 36
    p = lambda d: torch.stack([logits[0] + d[0], logits[1] + d[1]]).softmax(0)[0]  # noqa: E731
    alpha = [p(gain0) - p((0, 0)), p(gain1) - p((0, 0))]
    assert alpha[0] > 0 > alpha[1]
    expected = torch.zeros(6, 6, dtype=torch.float64)
    expected[0, 0] = 1  # minmax(alpha_0 M'_0), the other group cut off by the ReLU
    torch.testing.assert_close(S, expected)


def test_one_group_without_denoising_is_grad_cam(net, images):
    """P1: docs/method.md section 2, first identity."""
    net.eval()
    group, grad = GroupCAM(net, "relu2", groups=1, denoise=None)(images, 2), GradCAM(net, "relu2")(images, 2)
    assert grad.amax() == 1
    for g, expected, image in zip(group, grad, images):
        b = blur(image[None])
        mixed = torch.lerp(b, image[None], expected)
        gain = net(mixed).softmax(1)[0, 2] - net(b).softmax(1)[0, 2]
        torch.testing.assert_close(g, expected if gain > 0 else torch.zeros_like(expected))


@pytest.mark.parametrize("groups", [1, 3, 8])
def test_group_sums_add_up_to_grad_cam(net, images, groups):
    """P2: second identity, checked on the oracle that judges the implementation."""
    net.eval()
    for image in images:
        sums = oracle.group_sums(net, "relu2", image, 1, groups, "gradient")
        torch.testing.assert_close(sum(sums), oracle.grad_cam_raw(net, "relu2", image, 1))


def test_grad_cam_is_cam_for_a_pooled_linear_head(net, images):
    """P3: third identity, w_k = W[c, k] / (u v), in closed form."""
    net.eval()
    kept = {}
    handle = net.relu2.register_forward_hook(lambda m, i, o: kept.update(A=o.detach().clone()))
    net(images)
    handle.remove()
    A = kept["A"]
    cam = torch.einsum("k,nkuv->nuv", net.fc.weight[3] / (A.shape[2] * A.shape[3]), A).relu()
    expected = torch.stack([oracle.minmax(oracle.upsample(m, images.shape[-2:])) for m in cam.detach()])
    torch.testing.assert_close(GradCAM(net, "relu2")(images, 3), expected)


@pytest.mark.parametrize("make", [lambda n, **k: GroupCAM(n, "relu2", groups=4, **k), lambda n, **k: GradCAM(n, "relu2", **k)])
@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-5), (torch.float32, 2e-4)])
def test_independent_of_batch_mates_order_size_and_chunk(make, dtype, atol):
    """P11, P12: an image's map is its own, whatever stands beside it: NaN, constant, or another order."""
    torch.manual_seed(0)
    net = PooledNet().to(dtype).eval()
    images = torch.randn(7, 3, 24, 24, dtype=dtype, generator=torch.Generator().manual_seed(1))
    images[2], images[5] = math.nan, 0.25
    targets = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    whole = make(net)(images, targets)
    assert torch.isfinite(whole).all() and (whole[2] == 0).all()
    order = torch.tensor([6, 0, 5, 3, 1, 4, 2])
    torch.testing.assert_close(make(net)(images[order], targets[order]), whole[order], rtol=0, atol=atol)
    for i in range(7):
        torch.testing.assert_close(make(net)(images[i : i + 1], targets[i : i + 1])[0], whole[i], rtol=0, atol=atol)
    for chunk in (1, 2, 3, 7, 100):
        torch.testing.assert_close(make(net, chunk=chunk)(images, targets), whole, rtol=0, atol=atol)


def test_maps_are_zero_or_reach_from_zero_to_one(net, images):
    """P5: range, and invariance to a shift of the logits."""
    net.eval()
    maps = GroupCAM(net, "relu2", groups=4)(images, 1)
    assert ((maps.amax(dim=(1, 2)) == 1) | (maps.amax(dim=(1, 2)) == 0)).all() and (maps >= 0).all()
    with torch.no_grad():
        net.fc.bias += 7
    torch.testing.assert_close(GroupCAM(net, "relu2", groups=4)(images, 1), maps)


def test_no_map_is_zeros(net, images):
    """Maps with nothing positive: zeros, never NaN, never None."""
    net.eval()
    with torch.no_grad():
        net.fc.weight.zero_()
    for maps in (GroupCAM(net, "relu2", groups=4)(images, 1), GradCAM(net, "relu2")(images, 1)):
        assert maps.shape == (3, 24, 20) and (maps == 0).all()


def test_denoise_with_ties_in_the_map():
    """A planted map whose percentile is a tie: `>` and `>=` would differ here."""
    net = EchoNet(1).double()
    image = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    image[0, 0, :4] = 1.0  # 20 of 25 pixels tie at the 70th percentile
    image[0, 0, 0, 0] = 2.0
    cam = GroupCAM(net, "body", groups=1, denoise=70.0, weights="none", activation="sigmoid")
    expected = torch.zeros(5, 5, dtype=torch.float64)
    expected[0, 0] = 1
    torch.testing.assert_close(cam(image, 1)[0], expected)


def test_functions_equal_classes(net, images):
    net.eval()
    torch.testing.assert_close(group_cam(net, images, 1, "relu2", groups=4), GroupCAM(net, "relu2", groups=4)(images, 1))
    torch.testing.assert_close(grad_cam(net, images, 1, "relu2"), GradCAM(net, "relu2")(images, 1))


def test_empty_batch(net, images):
    assert GroupCAM(net, "relu2", groups=4)(images[:0]).shape == (0, 24, 20)
    assert GradCAM(net, ["relu1", "relu2"])(images[:0])[1].shape == (0, 24, 20)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"groups": 9}, "only 8 channels"),
        ({"groups": 0}, "groups must be a whole number of at least 1, got 0"),
        ({"weights": "grad"}, "weights must be one of"),
        ({"variant": "old"}, "variant must be one of"),
        ({"denoise": 101}, "denoise must be a number from 0 to 100 or None, got 101"),
        ({"chunk": 0}, "chunk"),
        ({"activation": "relu"}, "activation must be one of"),
        ({"layer": "relu3"}, "did you mean"),
        ({"mask_at": "relu3"}, "did you mean"),
        ({"layer": "fc"}, "no spatial grid"),
        ({"layer": "pool"}, "1 x 1"),
    ],
)
def test_bad_options(net, images, options, message):
    with pytest.raises(ValueError, match=message):
        GroupCAM(net, **{"layer": "relu2", "groups": 4, **options})(images, 1)


@pytest.mark.parametrize(
    "batch, error, message",
    [
        (torch.zeros(2, 3, 24, 24, dtype=torch.uint8), TypeError, "uint8.*normalise"),
        (torch.zeros(3, 24, 24), ValueError, "batch"),
        (torch.zeros(2, 3, 2, 24, dtype=torch.float64), ValueError, "too small to blur"),
        ([1, 2], TypeError, "tensor"),
    ],
)
def test_bad_images(net, batch, error, message):
    with pytest.raises(error, match=message):
        GroupCAM(net, "conv1", groups=4)(batch, 1)


def test_layer_that_never_fires(net, images):
    net.spare = nn.Conv2d(3, 3, 1).double()
    with pytest.raises(RuntimeError, match="'spare' never fired.*'conv2', 'relu2'"):
        GroupCAM(net, "spare", groups=2)(images, 1)


def test_layer_that_fires_twice(images):
    class Shared(PooledNet):
        def forward(self, x):
            return super().forward(self.conv3(self.conv3(x)))

    net = Shared().double()
    net.conv3 = nn.Conv2d(3, 3, 1).double()
    with pytest.raises(RuntimeError, match="fired 2 times"):
        GradCAM(net, "conv3")(images, 1)


def test_counterfactual_maps_explain_with_the_negative_gradient(net, images):
    """METHOD 7: weights from -dy_c/dA_k; what speaks against a class and what speaks for it are not the same."""
    net.eval()
    against = GradCAM(net, "relu2", sign=-1)(images, 2)
    for image, found in zip(images, against, strict=True):
        expected = oracle.minmax(oracle.upsample((-oracle.grad_cam_raw(net, "relu2", image, 2)).relu(), image.shape[-2:]))
        torch.testing.assert_close(found, expected)
    assert against.any() and not torch.allclose(against, GradCAM(net, "relu2")(images, 2))
    with pytest.raises(ValueError, match="sign must be one of 1, -1; got 0"):
        GradCAM(net, "relu2", sign=0)


def test_defaults_are_the_papers():
    """G = 32, importance weights and theta = 70 to explain; G = 16, neither of them, to train."""
    torch.manual_seed(0)
    net = PooledNet(channels=37).double().eval()
    images = torch.randn(3, 3, 25, 32, dtype=torch.float64)
    classes = net(images).argmax(dim=1)
    explained, trained = GroupCAM(net, "relu2")(images, classes), GroupCAM.for_training(net, "relu2")(images, classes)
    for i, (image, label) in enumerate(zip(images, classes.tolist(), strict=True)):
        torch.testing.assert_close(explained[i], oracle.group_cam(net, "relu2", image, label, 32, "gradient", 70.0))
        torch.testing.assert_close(trained[i], oracle.group_cam(net, "relu2", image, label, 16, "none", None))
    assert explained.any() and trained.any()


class Overflowing(nn.Module):
    """Three channels, the second beyond all numbers where it is positive; class c is the mean of channel 2 c."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(1, 3, 1, bias=False)
        self.scale = nn.Hardtanh(-1e9, 1e9)
        with torch.no_grad():
            self.body.weight.copy_(torch.tensor([1.0, 0, -1]).view(3, 1, 1, 1))

    def forward(self, x):
        return self.head(self.scale(self.body(x)))

    def head(self, features):
        return features[:, [0, 2]].mean(dim=(2, 3)) * 9


@pytest.mark.parametrize("value", [0.0, 3.0, math.inf, math.nan])
@pytest.mark.parametrize("variant", ["paper", "head"])
def test_a_dead_group_has_mask_and_weight_zero(variant, value):
    """Constant or not finite: the map is that of the other groups alone."""
    net = Overflowing().double().eval()
    handle = net.body.register_forward_hook(lambda m, i, o: torch.cat([o[:, :1], o[:, 1:2] * 0 + value, o[:, 2:]], dim=1))
    image = torch.randn(2, 1, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with_dead = GroupCAM(net, "body", groups=3, weights="none", denoise=None, variant=variant).raw(image, 0)
    handle.remove()
    live = GroupCAM(net, "body", groups=3, weights="none", denoise=None, variant=variant).raw(image, 0)  # where it is all zeros
    assert (live.amax(dim=(1, 2)) > 0).all()
    torch.testing.assert_close(with_dead, live)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask_at", ["input", "target", "relu1"])
def test_float64_is_kept_and_the_rest_is_float32(net, images, dtype, mask_at):
    cam = GroupCAM(net.to(dtype), "relu2", groups=4, mask_at=mask_at)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert cam(images.to(dtype), 1).dtype == cam.raw(images[:0].to(dtype), 1).dtype == expected
    assert GradCAM(net, "relu2")(images.to(dtype), 1).dtype == expected


def test_stage_and_target_mask_at_different_layers(net, images):
    """What enters the last block, and the target layer itself: each equals naming it, and they differ."""
    labels = net.eval()(images).argmax(dim=1)
    places = ("input", "stage", "target", "relu1", "relu2")
    maps = {place: GroupCAM.for_training(net, "relu2", groups=4, mask_at=place)(images, labels) for place in places}
    torch.testing.assert_close(maps["stage"], maps["relu1"])
    torch.testing.assert_close(maps["target"], maps["relu2"])
    for one, other in (("stage", "target"), ("input", "stage"), ("input", "target")):
        assert (maps[one] - maps[other]).abs().max() > 0.01, (one, other)


@pytest.mark.parametrize("mask_at", ["input", "target"])
def test_without_importance_weights_no_graph_is_built(net, images, mask_at):
    graphs = []
    net.fc.register_forward_pre_hook(lambda _, args: graphs.append(args[0].requires_grad or torch.is_grad_enabled()))
    GroupCAM(net, "relu2", groups=4, weights="none", mask_at=mask_at)(images, 1)
    assert graphs and not any(graphs)
    graphs.clear()
    GroupCAM(net, "relu2", groups=4, weights="gradient", mask_at=mask_at)(images, 1)
    assert graphs[0] and not any(graphs[1:]), "of the first pass alone, from the target layer on"
