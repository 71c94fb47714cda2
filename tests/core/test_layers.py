"""Finding the layer: by rule over many architectures, by name, and with errors that list what is there."""

import time
import warnings

import pytest
import torch
from models import PooledNet, assert_same, snapshot
from tokens import Perceiver, PlainViT, TokenNet, ZeroShot
from torch import nn
from torch.nn import functional as F

from groupcam_aug import GradCAM, GroupCAM, guided_grad_cam
from groupcam_aug.layers import layer_name

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


def test_layers_by_name_or_as_modules(net):
    assert layer_name(net, "conv1") == layer_name(net, net.conv1) == "conv1"
    with pytest.raises(ValueError, match=r"no layer 'conv3'; did you mean one of \['conv"):
        layer_name(net, "conv3")
    with pytest.raises(ValueError, match=r"one of \['conv1', 'bn1'"):
        layer_name(net, "zzzzzz")
    for stranger in (nn.Linear(1, 1), net):
        with pytest.raises(ValueError, match=f"the {type(stranger).__name__} given is no part of PooledNet"):
            layer_name(net, stranger)
    with pytest.raises(TypeError, match="a module or its name, or None, got int"):
        layer_name(net, 3)


def test_maps_of_a_layer_given_as_a_module(net):
    """The same as by name, in every function that takes a layer."""
    x, y = torch.randn(2, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 1])
    assert torch.equal(GradCAM(net, net.conv2)(x, y), GradCAM(net, "conv2")(x, y))
    first, second = GradCAM(net, [net.conv1, "conv2"])(x, y)
    assert torch.equal(second, GradCAM(net, net.conv2)(x, y)) and first.shape == second.shape
    by_module, by_name = (
        GroupCAM(net, layer, groups=2, mask_at=place) for layer, place in ((net.conv2, net.relu2), ("conv2", "relu2"))
    )
    assert torch.equal(by_module(x, y), by_name(x, y)) and by_module.layer == "conv2" and by_module.place == "relu2"
    assert torch.equal(guided_grad_cam(net, x, y, net.conv2), guided_grad_cam(net, x, y, "conv2"))


class Shrinking(nn.Module):
    """Three stages of half the size each: 10 x 10, 5 x 5 and 2 x 2 cells of 20 x 20 pixels."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(nn.Sequential(nn.Conv2d(3 if i == 0 else 4, 4, 2, 2), nn.ReLU()) for i in range(3))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean(dim=(2, 3)))


@pytest.mark.parametrize("make", [lambda m: GradCAM(m), lambda m: GroupCAM(m, groups=2), lambda m: GradCAM(m, m.stages[2])])
def test_a_grid_of_a_few_cells_is_warned_of_once(make):
    model, x = Shrinking().eval(), torch.randn(2, 3, 20, 20)
    with pytest.warns(UserWarning) as said:
        make(model)(x, 1)
        make(model)(x, 1)
    (only,) = [str(one.message) for one in said]
    assert "has 2 x 2 cells for images of 20 x 20" in only and "layer='stages.1' has 5 x 5" in only
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GradCAM(Shrinking().eval(), "stages.1")(x, 1)
        GradCAM(Shrinking().eval())(torch.randn(1, 3, 40, 40), 1)


def test_images_with_their_channels_last_are_refused(net):
    for images in (torch.rand(2, 32, 16, 3), torch.rand(2, 32, 16, 1), torch.rand(2, 32, 16, 4)):
        with pytest.raises(ValueError, match=r"channels last: bring them to \(N, C, H, W\) with images.permute\(0, 3, 1, 2\)"):
            GradCAM(net)(images, 1)
    GradCAM(net)(torch.rand(2, 3, 32, 4, dtype=torch.float64), 1)  # narrow images are images


# name -> arguments of TokenNet and side of the images; every one with 50 or so tokens that a count alone reads otherwise
LAYOUTS = {
    "no other tokens": ({}, 64),
    "class token": ({"prefix": 1}, 64),
    "16 prompts": ({"prefix": 17}, 64),
    "50 prompts": ({"prefix": 51}, 64),
    "100 prompts": ({"prefix": 101}, 64),
    "behind": ({"suffix": 9}, 64),
    "on both sides": ({"prefix": 1, "suffix": 3}, 64),
    "padded patches": ({"prefix": 1}, 100),
    "cut-off patches": ({"prefix": 1, "pad": False}, 100),
    "not square": ({"prefix": 2}, (48, 96)),
    "two by two": ({"prefix": 1}, 32),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_patches_among_tokens_are_found_wherever_they_are(layout):
    options, side = LAYOUTS[layout]
    torch.manual_seed(0)
    net = TokenNet(**options).double().eval()
    images = torch.randn(2, 3, *(side if isinstance(side, tuple) else (side, side)), dtype=torch.float64)
    found, named, true = GradCAM(net), GradCAM(net, "blocks.1.norm"), GradCAM(net, "view")(images, 1)  # there as (N, K, h, w)
    torch.testing.assert_close(named(images, 1), true)
    found(images, 1)
    assert found.layer == ("norm" if layout == "no other tokens" else "blocks.1.norm") and true.amax() == 1
    stated = (*net.grid, options.get("prefix", 0))
    assert torch.equal(GradCAM(net, "blocks.1.norm", grid=stated)(images, 1), named(images, 1))
    for options in ({"mask_at": "target"}, {"mask_at": "blocks.0"}, {"weights": "gradient"}):
        maps = [GroupCAM.for_training(net, "blocks.1.norm", groups=4, grid=grid, **options) for grid in (None, stated)]
        assert torch.equal(*(cam(images, 1) for cam in maps))


NO_GRID = {
    "unrolled": (lambda: TokenNet(prefix=0, order="shuffled"), "blocks.1.norm", "embed"),
    "column by column": (lambda: TokenNet(prefix=0, order="columns"), "blocks.1.norm", "embed"),
    **{f"{n} latents": (lambda n=n: Perceiver(n), "blocks.1", "embed") for n in (8, 16, 64)},
}


@pytest.mark.parametrize("case", NO_GRID)
def test_tokens_that_are_no_grid_are_passed_over_with_a_warning_and_refused_by_name(case):
    make, name, before = NO_GRID[case]
    torch.manual_seed(0)
    net, images = make().double().eval(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    cam = GradCAM(net)
    with pytest.warns(UserWarning, match=f"taken from layer '{before}', not behind it, for layer '.*grid="):
        cam(images, 1)
    assert cam.layer == before
    for options in ({}, {"weights": "none"}, {"weights": "none", "mask_at": name}):
        with pytest.raises(ValueError, match=f"layer '{name}' has no grid that could be shown.*grid="):
            GroupCAM(net, before if "mask_at" in options else name, groups=4, **options)(images, 1)
    with pytest.raises(ValueError, match=f"layer '{name}' has no grid"):
        GradCAM(net, name, grid=(20, 20))(images, 1)
    assert GradCAM(net, name, grid=(2, 4))(images, 1).shape == (2, 64, 64), "a statement is taken as it is"


def test_a_stated_grid_is_checked(net):
    for grid in ((4,), (4, 4, 1, 1), (0, 4), (4, 4, -1)):
        with pytest.raises(ValueError, match="grid must be"):
            GradCAM(net, grid=grid)


def test_flattened_channels_are_no_tokens(recwarn):
    """(N, C, positions) with as many channels as a square has patches; the layer in front of it is found without a word."""
    net = nn.Sequential(nn.Conv2d(3, 64, 8, stride=8), nn.Flatten(2), nn.Flatten(), nn.Linear(64 * 64, 5)).double().eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    cam = GradCAM(net)
    torch.testing.assert_close(cam(images, 1), GradCAM(net, "0")(images, 1))
    assert cam.layer == "0" and not recwarn
    with pytest.raises(ValueError, match="layer '1' has no grid"):
        GradCAM(net, "1")(images, 1)


def test_a_cube_is_read_as_the_image_moves_it():
    """K = h = w, channels last: the shape alone does not say which of its sides are the grid."""

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv2d(3, 16, 4, stride=4), nn.LayerNorm(16), nn.Linear(16, 5)

        def forward(self, x):
            return self.fc(F.gelu(self.norm(self.conv(x).permute(0, 2, 3, 1))).mean(dim=(1, 2)))

    torch.manual_seed(0)
    net, images = Last().double().eval(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    cam = GradCAM(net)
    maps = cam(images, 1)
    assert cam.layer == "norm"
    with torch.no_grad():
        A = net.norm(net.conv(images).permute(0, 2, 3, 1))
    A.requires_grad_()
    slope = torch.autograd.grad(net.fc(F.gelu(A).mean(dim=(1, 2)))[:, 1].sum(), A)[0]
    raw = (A.detach() * slope.mean(dim=(1, 2), keepdim=True)).sum(dim=3).relu()
    torch.testing.assert_close(cam.raw(images, 1), raw)
    assert maps.amax() == 1


@pytest.mark.parametrize("class_token", [True, False])
def test_attention_weights_are_no_grid(class_token):
    """As many rows and columns as tokens, here 65 or 64 for 128 pixels, like the grid of a convolution of stride 2."""
    torch.manual_seed(0)
    net, x = PlainViT(class_token).double().eval(), torch.randn(2, 3, 128, 128, dtype=torch.float64)
    last = "blocks.1.norm" if class_token else "blocks.1"
    for make in (
        lambda: GradCAM(net),
        lambda: GroupCAM.for_training(net, groups=8),
        lambda: GroupCAM(net, groups=8, mask_at="stage"),
    ):
        (cam := make())(x, 1)
        assert cam.layer == last and "att" not in getattr(cam, "place", "") and "scores" not in getattr(cam, "place", "")
    assert torch.equal(GradCAM(net)(x, 1), GradCAM(net, last)(x, 1))
    for name in ("blocks.0.attend", "blocks.0.scores"):  # of a softmax, and as many as tokens
        with pytest.raises(ValueError, match=f"'{name}' has no grid that could be shown.*attention weights"):
            GradCAM(net, name)(x, 1)


def test_a_square_grid_of_as_many_rows_as_tokens_is_one_if_the_image_shows_it():
    class Upside(nn.Module):
        def forward(self, x):
            return x.flip(2, 3)

    class Hybrid(nn.Module):
        """A grid of 8 x 8 and 8 queries; behind it the same grid upside down, which no patch of the image shows."""

        def __init__(self):
            super().__init__()
            self.stem, self.queries, self.mix = nn.Conv2d(3, 6, 8, stride=8), nn.Parameter(torch.randn(1, 8, 6)), nn.Linear(6, 6)
            self.upside, self.fc = Upside(), nn.Linear(6, 5)

        def forward(self, x):
            grid = self.upside(self.stem(x))
            return self.fc(grid.mean(dim=(2, 3)) * self.mix(self.queries.expand(len(x), -1, -1)).mean(dim=1))

    torch.manual_seed(0)
    net = Hybrid().eval()
    x = torch.randn(2, 3, 64, 64)
    for cam in (GradCAM(net), GradCAM(net, "stem")):
        assert cam(x, 1).shape == (2, 64, 64) and cam.layer == "stem"
    with pytest.raises(ValueError, match="'upside' has no grid that could be shown"):
        GradCAM(net, "upside")(x, 1)
    stated = GradCAM(net, "upside", grid=(8, 8)).raw(x, 1)
    torch.testing.assert_close(stated, GradCAM(net, "stem").raw(x, 1).flip(1, 2))


class Aside(nn.Module):
    """`side` is read by nobody."""

    def __init__(self):
        super().__init__()
        self.stem, self.side, self.body, self.fc = (
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.Conv2d(8, 8, 3, 1, 1),
            nn.Conv2d(8, 16, 3, 2, 1),
            nn.Linear(16, 5),
        )

    def forward(self, x):
        x = self.stem(x).relu()
        self.seen = self.side(x)
        return self.fc(self.body(x).relu().mean(dim=(2, 3)))


def test_masks_at_a_layer_that_nothing_reads_are_refused():
    net, x = Aside().eval(), torch.randn(2, 3, 32, 32)
    for options in ({"layer": "body", "mask_at": "side"}, {"layer": "side", "mask_at": "target"}):
        with pytest.raises(ValueError, match="nothing that leads to the logits reads layer 'side'"):
            GroupCAM.for_training(net, groups=4, **options)(x, 0)
    GroupCAM.for_training(net, groups=4, layer="body", mask_at="stem")(x, 0)


def test_a_head_or_branch_that_starts_at_zero_is_no_reason_to_refuse_a_layer():
    net = Aside().eval()
    for parameter in (*net.fc.parameters(), *net.body.parameters()):
        nn.init.zeros_(parameter)
    GroupCAM.for_training(net, groups=4, layer="body", mask_at="stem")(torch.randn(2, 3, 32, 32), 0)


def test_the_text_tower_of_a_zero_shot_classifier_is_no_layer(recwarn):
    torch.manual_seed(0)
    for classes in (5, 1):
        cam = GradCAM(ZeroShot(classes).double().eval())
        cam(torch.randn(2, 3, 64, 64, dtype=torch.float64), 0)
        assert cam.layer.startswith("image.") and all("only pick blocks" in str(one.message) for one in recwarn)


def test_folded_rows_are_no_layer():
    class Frames(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv, self.fc = nn.Conv2d(6, 6, 1), nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x):
            return (
                self.fc(self.conv(self.stem(x).unflatten(1, (2, 3)).flatten(0, 1)).mean(dim=(2, 3))).unflatten(0, (-1, 2)).sum(1)
            )

    cam = GradCAM(Frames().eval())
    cam(torch.randn(2, 6, 16, 16), 1)
    assert cam.layer == "stem"


@pytest.mark.parametrize("name", ["blocks.1", "norm"])
def test_named_layers_where_patches_cannot_matter_are_refused(name):
    torch.manual_seed(0)
    net, images = TokenNet(prefix=1).double().eval(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    match = f"patches in layer '{name}' do not influence the logits.*such as 'blocks.1.norm'"
    for cam in (GradCAM(net, name), GroupCAM(net, name, groups=4), GroupCAM.for_training(net, name, groups=4, mask_at="target")):
        with pytest.raises(ValueError, match=match):
            cam(images, 1)
    with pytest.raises(ValueError, match=match):
        GroupCAM.for_training(net, "blocks.1.norm", groups=4, mask_at=name)(images, 1)
    maps = torch.stack([GroupCAM.for_training(net, name, groups=4)(images, label) for label in range(5)])
    assert maps.amax() == 1, "masks of patches that are scored at the input mean something"
    nn.init.zeros_(net.fc.weight)  # a freshly made head
    assert not GradCAM(net, "blocks.1.norm")(images, 1).any()


def test_a_network_of_nan_weights_says_so():
    net = TokenNet(prefix=1).eval()
    nn.init.constant_(net.embed.weight, float("nan"))
    with pytest.raises(ValueError, match="'blocks.1.norm' returns NaN"):
        GradCAM(net, "blocks.1.norm")(torch.randn(1, 3, 64, 64), 1)


# name -> (image side, options, grid at the layer that is found, tokens in front), or None where nothing behind the embedding shows one
TOKENS = {
    "vit_tiny_patch16_224": (224, {}, (14, 14, 1)),
    "vit_small_patch14_reg4_dinov2": (56, {"img_size": 56}, (4, 4, 5)),
    "deit_tiny_distilled_patch16_224": (224, {}, (14, 14, 2)),
    "vit_tiny_patch16_224.padded": (100, {"dynamic_img_size": True, "dynamic_img_pad": True}, (7, 7, 1)),
    "vit_tiny_r_s16_p8_224": (224, {}, (7, 7, 1)),
    "hiera_tiny_224": (224, {}, (7, 7, 0)),
    "mvitv2_tiny": (224, {}, (7, 7, 0)),
    "twins_pcpvt_small": (224, {}, (7, 7, 0)),
    "pvt_v2_b0": (224, {}, None),
    "xcit_nano_12_p16_224": (224, {}, (14, 14, 1)),
    "crossvit_tiny_240": (240, {}, (20, 20, 1)),
    "mixer_s32_224": (224, {}, (7, 7, 0)),
    "gmlp_s16_224": (224, {}, (14, 14, 0)),
    "maxvit_tiny_tf_224": (224, {}, None),
}


@pytest.mark.slow
@pytest.mark.parametrize("arch", TOKENS)
def test_token_matrix(arch, recwarn):
    import timm

    side, options, expected = TOKENS[arch]
    torch.manual_seed(0)
    net = timm.create_model(arch.split(".")[0], num_classes=5, **options).eval()
    cam, images = GradCAM(net), torch.randn(2, 3, side, side)
    assert cam(images, 1).isfinite().all()
    (grid,) = cam._grids.values()
    if expected is None:
        assert grid.layout == "channels first"
    else:
        assert (grid.height, grid.width, grid.prefix) == expected
    assert not [str(warning.message) for warning in recwarn if "maps are taken from" in str(warning.message)]


def test_unrolled_tokens_of_hiera_are_refused_by_name():
    import timm

    net = timm.create_model("hiera_tiny_224", num_classes=5).eval()
    with pytest.raises(ValueError, match="layer 'blocks.9' has no grid"):
        GradCAM(net, "blocks.9")(torch.randn(1, 3, 224, 224), 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["layers.0.blocks.1.attn", "layers.1.blocks.0.attn.qkv"])
def test_windows_are_refused_by_name(name):
    import timm

    net = timm.create_model("swin_tiny_patch4_window7_224", num_classes=5).eval()
    with pytest.raises(ValueError, match=f"layer '{name}' returns .* for 2 images: windows"):
        GradCAM(net, name)(torch.randn(2, 3, 224, 224), 1)
