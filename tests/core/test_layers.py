"""Finding the layer: by rule over many architectures, by name, and with errors that list what is there."""

import time

import pytest
import torch
from models import PooledNet, assert_same, snapshot
from torch import nn

from groupcam_aug import GradCAM, GroupCAM
from groupcam_aug.layers import find_stage, get_layer

# name -> (image side, layer that must be found, layer for mask_at="stage")
MATRIX = {
    "torchvision/resnet18": (64, "layer4", "layer4.0"),
    "torchvision/squeezenet1_1": (64, "features.12", "features.11"),
    "torchvision/mobilenet_v3_small": (64, "features.12", "features.11"),
    "torchvision/convnext_tiny": (64, "features.7", "features.7.1"),
    "timm/vit_tiny_patch16_224": (64, "blocks.11.norm1", "blocks.9"),
    "torchvision/resnet50": (64, "layer4", "layer4.1"),
    "torchvision/resnext50_32x4d": (64, "layer4", "layer4.1"),
    "torchvision/regnet_y_400mf": (64, "trunk_output.block4", "trunk_output.block4.block4-4"),
    "torchvision/vgg19": (64, "features.35", "features.33"),
    "torchvision/alexnet": (96, "features.11", "features.9"),
    "torchvision/densenet121": (64, "features.norm5", "features.transition3"),
    "torchvision/mobilenet_v2": (64, "features.18", "features.17"),
    "torchvision/efficientnet_b0": (64, "features.8", "features.7"),
    "torchvision/inception_v3": (150, "Mixed_7c", "Mixed_7b"),
    "torchvision/googlenet": (64, "inception5b", "inception5a"),
    "torchvision/shufflenet_v2_x1_0": (64, "conv5", "stage4"),
    "torchvision/vit_b_16": (64, "encoder.layers.encoder_layer_11.ln_1", "encoder.layers.encoder_layer_9"),
    "torchvision/swin_t": (64, "permute", "features.7.0"),
    "timm/resnet50": (64, "layer4", "layer4.1"),
    "timm/resnet50d": (64, "layer4", "layer4.1"),
    "timm/nf_resnet50": (64, "final_act", "stages.3.1"),
    "timm/vit_small_patch16_224": (64, "blocks.11.norm1", "blocks.9"),
    "timm/vit_small_patch14_reg4_dinov2": (56, "blocks.11.norm1", "blocks.9"),
    "timm/swin_tiny_patch4_window7_224": (224, "norm", "layers.2"),
    "timm/deit_tiny_distilled_patch16_224": (64, "blocks.11.norm1", "blocks.9"),
    "timm/mobilenetv4_conv_small": (64, "blocks.4", "blocks.3"),
    "timm/efficientformer_l1": (224, "norm", "stages.2"),
    "timm/convnext_atto": (64, "stages.3", "stages.2"),
}
QUICK = list(MATRIX)[:5]


def build(name, side):
    family, _, arch = name.partition("/")
    torch.manual_seed(0)
    if family == "timm":
        import timm

        options = {"img_size": side} if any(word in arch for word in ("vit", "deit")) else {}
        return timm.create_model(arch, num_classes=20, **options)
    import torchvision

    options = {"init_weights": False} if arch in ("inception_v3", "googlenet") else {}
    options |= {"image_size": side} if arch.startswith("vit") else {}
    return torchvision.models.get_model(arch, num_classes=20, **options)


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MATRIX])
@pytest.mark.filterwarnings("ignore")
def test_matrix(name, record_property, capsys):
    """Layer, maps in every form, and the give-back guarantee, per architecture; prints a row of the table."""
    side, layer, stage = MATRIX[name]
    net = build(name, side).train()
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    targets, before, start = torch.tensor([3, 7]), snapshot(net), time.perf_counter()
    cam = GroupCAM(net, groups=4)
    maps = {"input": cam(images, targets)}
    for place in ("stage", "target"):
        split = GroupCAM(net, groups=4, mask_at=place)
        maps[place] = split(images, targets)
        assert split.place == {"stage": stage, "target": layer}[place]
    maps["Grad-CAM"] = GradCAM(net)(images, targets)
    seconds = time.perf_counter() - start
    assert_same(before, snapshot(net))
    assert cam.layer == layer
    for kind, result in maps.items():
        assert result.shape == (2, side, side) and result.isfinite().all() and result.min() >= 0 and result.max() <= 1, kind
    torch.testing.assert_close(GroupCAM(net, groups=4)(images[1:], 7)[0], maps["input"][1], rtol=0, atol=2e-3)
    with capsys.disabled():
        print(f"\n| {name} | {cam.layer} | {' x '.join(map(str, cam.layer_shape))} | {seconds:.1f} s |", end=" ")


def test_matrix_covers_twenty_architectures():
    assert len(MATRIX) >= 20 and len({find for _, find, _ in MATRIX.values()}) > 10


def test_grid_falls_back_to_an_earlier_layer_for_small_images():
    """ResNet-18 at 32 px has a 1 x 1 layer4: the last layer with more than one position is found instead."""
    cam = GroupCAM(build("torchvision/resnet18", 32), groups=4)
    cam(torch.randn(1, 3, 32, 32), 1)
    assert cam.layer == "layer3" and cam.layer_shape == (256, 2, 2)


def test_choice_does_not_depend_on_the_image(images):
    for batch in (images, images * 0, images * float("nan")):
        cam = GradCAM(PooledNet().double())
        cam(batch, 1)
        assert cam.layer == "relu2"


def test_convolution_as_classifier_is_not_taken():
    class AllConv(nn.Module):
        def __init__(self, last):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
            self.head = nn.Conv2d(6, 4, 1)
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.last = last

        def forward(self, x):
            return self.last(self.pool(self.head(self.body(x))).flatten(1))

    cam = GradCAM(AllConv(nn.Identity()))
    cam(torch.randn(1, 3, 16, 16))
    assert cam.layer == "body"
    cam = GradCAM(AllConv(nn.Linear(4, 4)))  # with parameters behind it, it is a layer like any other
    cam(torch.randn(1, 3, 16, 16))
    assert cam.layer == "head"


def test_no_spatial_layer():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    with pytest.raises(ValueError, match="no layer with spatial activations.*layer="):
        GroupCAM(flat, groups=2)(torch.randn(2, 3, 4, 4), 1)


def test_get_layer_errors(net):
    assert get_layer(net, "conv1") is net.conv1
    with pytest.raises(ValueError, match=r"no layer 'conv3'; did you mean one of \['conv"):
        get_layer(net, "conv3")
    with pytest.raises(ValueError, match=r"one of \['conv1', 'bn1'"):
        get_layer(net, "zzzzzz")
    with pytest.raises(TypeError, match="a Conv2d itself: write layer='conv1'"):
        get_layer(net, net.conv1)
    with pytest.raises(TypeError, match="a Linear itself: and it is no part of PooledNet"):
        get_layer(net, torch.nn.Linear(1, 1))
    for make in (lambda: GradCAM(net, net.conv2), lambda: GradCAM(net, [net.conv2]), lambda: GroupCAM(net, net.conv2)):
        with pytest.raises(TypeError, match="write layer='conv2'"):
            make()
    with pytest.raises(TypeError, match="module name or None, got int"):
        get_layer(net, 3)


def test_find_stage_needs_something_in_front():
    with pytest.raises(ValueError, match="no block in front"):
        find_stage(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()), "1")
