"""The 27 properties a saliency engine must have, by number: where each is tested, and the tests that have no other home."""

import ast
import copy
import gc
import os
from pathlib import Path

import pytest
import torch
from memory import Bytes
from models import PooledNet, assert_same, snapshot
from torch import nn
from torch.nn import functional as F
from torchvision import tv_tensors

from groupcam_aug import GradCAM, GroupCAM, SaliencyBlur, guided_grad_cam
from groupcam_aug.augment import keep_mask
from groupcam_aug.blur import blur
from groupcam_aug.metrics import PointingGame
from groupcam_aug.metrics.insertion_deletion import insertion_deletion
from groupcam_aug.sanity import randomization_check

PROPERTIES = {
    1: ["test_saliency::test_one_group_without_denoising_is_grad_cam"],
    2: ["test_saliency::test_group_sums_add_up_to_grad_cam"],
    3: ["test_saliency::test_grad_cam_is_cam_for_a_pooled_linear_head"],
    4: ["test_saliency::test_group_cam_equals_oracle_on_a_small_net", "test_properties::test_p4_many_channels"],
    5: ["test_saliency::test_maps_are_zero_or_reach_from_zero_to_one", "test_properties::test_p5_scale_of_weights_cancels"],
    6: ["test_properties::test_p6_permutation_of_channels"],
    7: [
        "test_map_ops::test_percentile_equals_numpy",
        "test_saliency::test_denoise_with_ties_in_the_map",
        "test_properties::test_p7_edges_of_denoise",
    ],
    8: ["test_augment::test_blend_is_exact_at_both_ends", "test_properties::test_p8_blend_stays_between"],
    9: ["test_augment::test_keep_mask_thresholds", "test_properties::test_p9_at_least_one_pixel_kept"],
    10: ["test_blur::test_blur_keeps_constants_format_and_dtype", "test_blur::test_blur_commutes_with_normalisation"],
    11: ["test_saliency::test_independent_of_batch_mates_order_size_and_chunk"],
    12: [
        "test_saliency::test_independent_of_batch_mates_order_size_and_chunk",
        "test_properties::test_p12_memory_is_flat_in_groups",
    ],
    13: [
        "test_targets::test_forms_agree",
        "test_targets::test_soft_labels_are_linear_in_the_gradient",
        "test_targets::test_refused",
    ],
    14: ["test_properties::test_p14_flip_equivariance"],
    15: ["test_borrow::test_given_back_as_found"],
    16: ["test_borrow::test_a_layer_that_raises_leaves_nothing_behind", "test_properties::test_p16_two_engines_and_user_hooks"],
    17: ["test_borrow::test_given_back_as_found"],
    18: ["test_borrow::test_training_is_the_same_with_and_without"],
    19: ["test_borrow::test_no_graph_and_no_memory_kept", "test_properties::test_p19_memory_flat_over_200_calls"],
    20: ["test_properties::test_p20_frozen_no_grad_and_inference_mode"],
    21: ["test_borrow::test_capture_sees_the_output_before_an_inplace_operation", "test_properties::test_p21_cpu_equals_cuda"],
    22: ["test_properties::test_p22_low_precision"],
    23: [
        "test_properties::test_p23_layouts",
        "test_properties::test_p23_compiled",
        "test_saliency::test_layer_that_never_fires",
        "test_saliency::test_layer_that_fires_twice",
    ],
    24: ["test_grid::test_reading_and_mixing_agree_in_every_layout", "test_grid::test_read_grid_refuses"],
    25: [
        "test_insertion_deletion::test_endpoints_and_constant_models",
        "test_insertion_deletion::test_linear_model_gives_a_half_for_any_order",
        "test_insertion_deletion::test_planted_evidence_in_closed_form",
        "test_pixel_swaps::test_only_the_order_counts_and_ties_are_settled",
        "test_pixel_swaps::test_more_steps_approach_a_limit",
        "test_pixel_swaps::test_chunk_batch_and_layout_do_not_matter",
        "test_properties::test_p25_better_maps_score_better",
    ],
    26: [
        "test_localisation::test_pointing_of_undefined_maps_and_empty_masks",
        "test_localisation::test_pointing_tolerance_includes_its_edge",
        "test_localisation::test_macro_is_over_the_classes_seen",
        "test_properties::test_p26_a_flat_map_is_no_free_hit",
    ],
    27: [
        "test_sanity::test_everything_comes_back",
        "test_sanity::test_batch_norm_and_modules_without_reset",
        "test_sanity::test_a_map_that_ignores_the_network_fails",
        "test_properties::test_p27_maps_that_ignore_the_network_fail",
    ],
}


def test_every_property_has_its_tests():
    folder = Path(__file__).parent
    for names in PROPERTIES.values():
        for name in names:
            file, _, function = name.partition("::")
            found = {
                n.name
                for n in ast.walk(ast.parse(next(folder.rglob(f"{file}.py")).read_text()))
                if isinstance(n, ast.FunctionDef)
            }
            assert function in found, name
    assert set(PROPERTIES) == set(range(1, 28))


CAMS = {
    "Group-CAM": lambda net, **k: GroupCAM(net, "relu2", groups=4, **k),
    "training form": lambda net, **k: GroupCAM.for_training(net, "relu2", groups=4, **k),
    "at the target": lambda net, **k: GroupCAM(net, "relu2", groups=4, mask_at="target", **k),
    "Grad-CAM": lambda net, **k: GradCAM(net, "relu2", **k),
}
every_cam = pytest.mark.parametrize("kind", CAMS)


def test_p4_many_channels():
    """G=32 over K=512, one image: the sizes the paper works with."""
    import oracle

    torch.manual_seed(0)
    net = PooledNet(channels=512).double().eval()
    image = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    for variant in ("paper", "head"):
        found = GroupCAM(net, "relu2", groups=32, variant=variant)(image, 3)[0]
        torch.testing.assert_close(found, oracle.group_cam(net, "relu2", image[0], 3, 32, variant=variant), rtol=0, atol=1e-5)


@every_cam
def test_p5_scale_of_weights_cancels(kind, net, images):
    """Twice the activations with half the head: the same network, the same map."""
    net.eval()
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.conv2.weight *= 2
        twin.conv2.bias *= 2
        twin.fc.weight /= 2
    torch.testing.assert_close(CAMS[kind](twin)(images, 1), CAMS[kind](net)(images, 1))


def test_p6_permutation_of_channels(net, images):
    """Within a group the order of channels is nothing; across groups it may matter; G = K is one channel a mask."""

    def permuted(order):
        twin = copy.deepcopy(net)
        with torch.no_grad():
            twin.conv2.weight.copy_(net.conv2.weight[order])
            twin.conv2.bias.copy_(net.conv2.bias[order])
            twin.fc.weight.copy_(net.fc.weight[:, order])
        return CAMS["training form"](twin)(images, 1)

    base = permuted(list(range(8)))
    torch.testing.assert_close(permuted([1, 0, 3, 2, 5, 4, 7, 6]), base)  # inside the groups of two
    assert not torch.allclose(permuted([0, 2, 4, 6, 1, 3, 5, 7]), base)
    single = GroupCAM.for_training(net, "relu2", groups=8)
    assert single(images, 1).max() == 1


def test_p7_edges_of_denoise(net, images):
    """theta=0 drops only the minimum of a mask, theta=100 drops everything; each image and group by itself."""
    full = GroupCAM(net, "relu2", groups=4, denoise=100)(images, 1)
    assert (full == 0).all()
    alone = torch.cat([GroupCAM(net, "relu2", groups=4)(image[None], 1) for image in images])
    torch.testing.assert_close(GroupCAM(net, "relu2", groups=4)(images, 1), alone)
    cam = GroupCAM(net, "relu2", groups=1, weights="none", denoise=0)
    masks = cam._group_masks(images, torch.arange(1.0, 17).view(1, 1, 4, 4).double().expand(3, 8, 4, 4), None, None)
    assert (masks == 0).sum(dim=(1, 2, 3)).tolist() == [1, 1, 1]


def test_p8_blend_stays_between(images):
    """x_hat lies between x and blur(x), pixel by pixel."""
    maps = torch.rand(3, 24, 20, dtype=torch.float64)
    augmented = SaliencyBlur(lambda x, y: maps, strength=0.7)(images, None)
    low, high = torch.minimum(images, blur(images)), torch.maximum(images, blur(images))
    assert ((augmented >= low - 1e-12) & (augmented <= high + 1e-12)).all()


def test_p9_at_least_one_pixel_kept():
    maps = torch.zeros(2, 9, 9)
    maps[0, 4, 4] = 1
    keep = keep_mask(maps)
    assert keep[0].sum() == 1 and keep[1].all()
    assert keep_mask(torch.full((1, 9, 9), 0.3)).all(), "a constant positive map keeps everything"


@pytest.mark.parametrize("mask_at", ["input", "target", "relu1"])
def test_p12_memory_is_flat_in_groups(mask_at):
    torch.manual_seed(0)
    net = PooledNet(channels=64).eval()
    images = torch.randn(8, 3, 64, 64)
    peaks = {}
    for groups in (4, 16, 64):
        cam = GroupCAM.for_training(net, "relu2", groups=groups, mask_at=mask_at, chunk=8)
        cam(images, 1)
        gc.collect()
        with Bytes() as memory:
            cam(images, 1)
        peaks[groups] = memory.peak
    masks = 8 * 64 * 32 * 32 * 4  # the group maps themselves, on the layer's grid: (N, G, u, v) float32
    assert peaks[64] - peaks[4] <= 2 * masks, peaks


@every_cam
def test_p14_flip_equivariance(kind):
    """A network of flip-symmetric kernels: the map of the flipped image is the flipped map."""
    torch.manual_seed(0)
    net = PooledNet().double().eval()
    net.conv1.stride = (1, 1)
    with torch.no_grad():
        for conv in (net.conv1, net.conv2):
            conv.weight.add_(conv.weight.flip(-1).clone()).div_(2)
    images = torch.randn(3, 3, 24, 20, dtype=torch.float64)
    torch.testing.assert_close(CAMS[kind](net)(images.flip(-1), 1), CAMS[kind](net)(images, 1).flip(-1))


def test_p16_two_engines_and_user_hooks(net, images):
    """Two engines on one network do not see each other; the user's own hooks stay and fire."""
    fired = []
    handle = net.relu2.register_forward_hook(lambda *_: fired.append(1))
    a, b = GradCAM(net, "relu2"), GroupCAM(net, "relu1", groups=2)
    first = a(images, 1)
    b(images, 2)
    torch.testing.assert_close(a(images, 1), first)
    assert fired and list(net.relu2._forward_hooks) == [handle.id]


def test_p19_memory_flat_over_200_calls(net, images):
    cam = GroupCAM.for_training(net, "relu2", groups=4)

    def tensors():
        gc.collect()
        return sum(isinstance(o, torch.Tensor) for o in gc.get_objects())

    cam(images, 1)
    before = tensors()
    for _ in range(200):
        cam(images, 1)
    assert tensors() == before


@every_cam
def test_p20_frozen_no_grad_and_inference_mode(kind, net, images):
    expected = CAMS[kind](net)(images, 1)
    with torch.no_grad():
        torch.testing.assert_close(CAMS[kind](net)(images, 1), expected)
    net.requires_grad_(False)
    torch.testing.assert_close(CAMS[kind](net)(images, 1), expected)
    with torch.inference_mode():
        inside = images * 1
        assert inside.is_inference()
        found = CAMS[kind](net)(inside, 1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(CAMS[kind](net)(images.requires_grad_(), 1), expected)
    assert images.grad is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_cam
def test_p21_cpu_equals_cuda(kind, net, images):
    expected = CAMS[kind](net)(images, 1)
    net.cuda()
    before = torch.cuda.get_rng_state()
    found = CAMS[kind](net)(images.cuda(), torch.tensor([1, 1, 1], device="cuda"))
    assert found.is_cuda and torch.equal(torch.cuda.get_rng_state(), before)
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-5)


@every_cam
@pytest.mark.parametrize("how", ["bf16 autocast", "fp16 autocast", "bf16 weights"])
def test_p22_low_precision(kind, how):
    """Finite maps in float32, whose masks agree with those of float32 passes."""
    torch.manual_seed(0)
    net = PooledNet(channels=32).eval()
    images = torch.randn(16, 3, 32, 32)
    with torch.no_grad():
        net.fc.weight *= 3
        targets = net(images).argmax(1)
    expected = CAMS[kind](net)(images, targets)
    if how == "bf16 weights":
        found = CAMS[kind](net.to(torch.bfloat16))(images.to(torch.bfloat16), targets)
    else:
        with torch.autocast("cpu", torch.bfloat16 if how.startswith("bf16") else torch.float16):
            found = CAMS[kind](net)(images, targets)
    assert found.dtype == torch.float32 and found.isfinite().all()
    mapped = (expected.amax(dim=(1, 2)) > 0) & (found.amax(dim=(1, 2)) > 0)
    assert mapped.sum() >= 5
    a, b = keep_mask(expected[mapped]), keep_mask(found[mapped])
    iou = (a & b).sum(dim=(1, 2)) / (a | b).sum(dim=(1, 2))
    assert iou.mean() > 0.85, iou  # of a random network, whose gains are small; photographs below


def test_p22_low_precision_on_photographs(squeezenet, photographs):
    images, labels = photographs(4, start=40)
    expected = keep_mask(GroupCAM.for_training(squeezenet)(images, labels))
    with torch.autocast("cpu", torch.bfloat16):
        found = keep_mask(GroupCAM.for_training(squeezenet)(images, labels))
    iou = (expected & found).sum(dim=(1, 2)) / (expected | found).sum(dim=(1, 2))
    assert iou.mean() > 0.95, iou


@every_cam
def test_p23_layouts(kind, net, images):
    """channels_last, non-contiguous, expanded and tv_tensor inputs give the map of the plain tensor."""
    expected = CAMS[kind](net)(images, 1)
    forms = [
        images.to(memory_format=torch.channels_last),
        images.repeat_interleave(2, dim=3)[..., ::2],
        images.transpose(2, 3).contiguous().transpose(2, 3),
        tv_tensors.Image(images),
    ]
    for form in forms:
        found = CAMS[kind](net)(form, 1)
        assert type(found) is torch.Tensor
        torch.testing.assert_close(found, expected)
    same = images[:1].expand(3, -1, -1, -1)
    torch.testing.assert_close(CAMS[kind](net)(same, 1), expected[:1].expand(3, -1, -1))
    torch.testing.assert_close(CAMS[kind](net.to(memory_format=torch.channels_last))(forms[0], 1), expected)


@every_cam
@pytest.mark.parametrize("how", ["torch.compile(net)", "net.compile()", "a part of it"])
@pytest.mark.filterwarnings("ignore")
def test_p23_compiled(kind, how):
    """A network compiled and already run in eval mode: its graph would not fire a hook added now."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    net = PooledNet().eval()
    images = torch.randn(3, 3, 24, 20)
    expected = CAMS[kind](net)(images, 1)
    if how == "torch.compile(net)":
        net = torch.compile(net, backend="eager")
    elif how == "net.compile()":
        net.compile(backend="eager")
    else:
        net.conv2.compile(backend="eager")
    with torch.no_grad():
        net(images)
    counters = dict(torch._dynamo.utils.counters["stats"])
    torch.testing.assert_close(CAMS[kind](net)(images, 1), expected)
    assert dict(torch._dynamo.utils.counters["stats"]) == counters, "no graph was added"


def test_p23_wrappers_are_looked_through(net, images):
    expected = GradCAM(net, "relu2")(images, 1)
    torch.testing.assert_close(GradCAM(nn.DataParallel(net), "relu2")(images, 1), expected)


def test_counterfactual_and_several_layers(net, images):
    """sign=-1 explains what speaks against the class; a list of layers gives each layer's own map."""
    against = GradCAM(net, "relu2", sign=-1)(images, 1)
    torch.testing.assert_close(against, GradCAM(net, "relu2")(images, lambda z: -z[:, 1]))
    assert not torch.allclose(against, GradCAM(net, "relu2")(images, 1))
    both = GradCAM(net, ["relu1", "relu2"])(images, 1)
    torch.testing.assert_close(both[0], GradCAM(net, "relu1")(images, 1))
    torch.testing.assert_close(both[1], GradCAM(net, "relu2")(images, 1))
    torch.testing.assert_close(GradCAM(net, ["relu2", "relu1"])(images, 1)[0], both[1])
    with pytest.raises(ValueError, match="sign"):
        GradCAM(net, sign=0)
    with pytest.raises(ValueError, match="empty list"):
        GradCAM(net, [])


def test_binary_head_and_multi_label(images):
    torch.manual_seed(0)
    binary = PooledNet(classes=1).double()
    cam = GroupCAM(binary, "relu2", groups=4, activation="sigmoid")
    positive, negative = cam(images, 1), cam(images, 0)
    assert positive.max() == 1 or negative.max() == 1
    torch.testing.assert_close(GradCAM(binary, "relu2")(images, 0), GradCAM(binary, "relu2", sign=-1)(images, 1))
    multi = PooledNet().double()
    rows = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [0, 1, 1, 1, 0]])
    cam = GroupCAM(multi, "relu2", groups=4, activation="sigmoid")
    maps = cam(images, rows)
    assert maps.isfinite().all()
    torch.testing.assert_close(maps[1], cam(images)[1], msg="no positive label: the first choice is explained")


class Harness(nn.Module):
    """Any network, with planted random noise in eval mode: `F.dropout` without `training=`."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(F.dropout(x, 0.2))


def random_case(generator):
    """One random call: sizes, channels, dtype, damage, target form, method."""

    def pick(options):
        return options[int(torch.randint(len(options), (), generator=generator))]

    channels, count = pick([1, 3, 4]), pick([0, 1, 2, 3, 5, 9])
    height, width = (pick([1, 2, 3, 4, 5, 7, 16, 31, 32, 33, 64, 97, 150, 300]) for _ in range(2))
    if height * width > 30_000:
        count = min(count, 2)
    dtype = pick([torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16])
    damage = pick(["none", "none", "nan", "inf", "constant", "black", "huge"])
    form = pick(["int", "tensor", "list", "none", "one-hot", "soft", "multi-hot", "zeros", "callable", "wrong length", "outside"])
    method = pick(["full", "training", "target", "layer", "head", "grad", "guided", "augment"])
    return channels, count, height, width, dtype, damage, form, method


def run_case(case, generator):
    channels, count, height, width, dtype, damage, form, method = case
    torch.manual_seed(0)
    net = PooledNet(in_channels=channels).to(dtype)
    images = torch.randn(count, channels, height, width, generator=generator).to(dtype)
    if count:
        hurt = {"nan": float("nan"), "inf": float("inf"), "constant": 0.5, "black": 0.0, "huge": 1e4}
        if damage in hurt:
            images[0] = hurt[damage]
    labels = torch.randint(5, (count,), generator=generator)
    targets = {
        "int": 2,
        "tensor": labels,
        "list": labels.tolist(),
        "none": None,
        "one-hot": F.one_hot(labels, 5),
        "soft": torch.rand(count, 5, generator=generator),
        "multi-hot": torch.randint(2, (count, 5), generator=generator),
        "zeros": torch.zeros(count, 5),
        "callable": lambda z: z[:, 0],
        "wrong length": torch.zeros(count + 1, dtype=torch.long),
        "outside": torch.full((count,), 5),
    }[form]
    make = {
        "full": lambda: GroupCAM(net, groups=4),
        "training": lambda: GroupCAM.for_training(net, groups=8, chunk=3),
        "target": lambda: GroupCAM(net, groups=3, mask_at="target"),
        "layer": lambda: GroupCAM(net, groups=1, denoise=None, mask_at="conv1"),
        "head": lambda: GroupCAM(net, groups=5, variant="head"),
        "grad": lambda: GradCAM(net),
        "guided": lambda: lambda x, y: guided_grad_cam(net, x, y),
        "augment": lambda: SaliencyBlur(GroupCAM.for_training(net, groups=4)),
    }[method]
    before = snapshot(net)
    try:
        result = make()(images, targets)
    except (ValueError, TypeError) as error:
        assert_same(before, snapshot(net))
        explained = ("targets for", "outside the 5", "too small to blur", "no layer with spatial", "no spatial grid", "1 x 1")
        assert any(word in str(error) for word in explained), f"unexplained: {error!r}"
        return "refused"
    assert_same(before, snapshot(net))
    if method not in ("augment", "guided"):
        assert result.shape == (count, height, width) and result.isfinite().all()
        assert count == 0 or (result.min() >= 0 and result.max() <= 1)
    elif damage not in ("nan", "inf", "huge"):
        assert result.shape == images.shape and result.isfinite().all()
    return "mapped"


# Its bfloat16 convolution of narrow one-channel images gives other numbers for one image than for two, on a CPU.
TORCHS_OWN = "ignore:in PooledNet the images of a batch influence each other"


def fuzz(seconds=None, cases=None, seed=0):
    import time

    generator, outcomes, start, n = torch.Generator().manual_seed(seed), {"mapped": 0, "refused": 0}, time.perf_counter(), 0
    while (n < cases) if cases else (time.perf_counter() - start < seconds):
        case = random_case(generator)
        try:
            outcomes[run_case(case, generator)] += 1
        except Exception as error:
            raise AssertionError(f"case {n} of seed {seed}: {case}") from error
        n += 1
    return outcomes


@pytest.mark.filterwarnings("ignore:no output is a finite number", TORCHS_OWN)  # some cases are damaged so
def test_fuzz_briefly():
    outcomes = fuzz(cases=150)
    assert outcomes["mapped"] > 60 and outcomes["refused"] > 10, outcomes


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:no output is a finite number", TORCHS_OWN)
def test_fuzz_for_ten_minutes(capsys):
    outcomes = fuzz(seconds=float(os.environ.get("GROUPCAM_FUZZ_SECONDS", 600)), seed=1)
    with capsys.disabled():
        print(f"\nfuzz: {outcomes}")
    assert outcomes["mapped"] > 100


def test_p25_better_maps_score_better(images):
    """Planted evidence: oracle above random above inverted, in insertion less deletion; softmax probabilities."""

    class Corner(nn.Module):
        def forward(self, x):
            inside = x[:, 0, :6, :5].sum(dim=(1, 2))
            return torch.stack([torch.zeros_like(inside), inside - 15], dim=1)

    bright = images.abs() + 0.5
    oracle = torch.zeros(3, 24, 20, dtype=torch.float64)
    oracle[:, :6, :5] = 1
    random = torch.rand(3, 24, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores = [insertion_deletion(Corner(), bright, maps, 1, substrate="zeros").overall for maps in (oracle, random, -oracle)]
    assert (scores[0] > scores[1] + 0.2).all() and (scores[1] > scores[2] + 0.2).all()
    assert all(((score >= -1) & (score <= 1)).all() for score in scores)


def test_p26_a_flat_map_is_no_free_hit():
    """A constant map is a miss that is counted, an empty mask no trial, classes weigh the same."""
    game = PointingGame(average="macro", num_classes=3)
    masks = torch.zeros(3, 5, 5, dtype=torch.bool)
    masks[0], masks[1] = True, True
    maps = torch.stack([torch.full((5, 5), 0.4), torch.eye(5), torch.eye(5)])
    game.update(maps, masks, torch.tensor([0, 1, 2]))
    assert game.compute() == 0.5 and game.pointing_undefined == 1 and game.pointing_skipped == 1


def test_p27_maps_that_ignore_the_network_fail(net, images):
    """The control explains nothing and stays; Grad-CAM moves; the network and the random state are as before."""
    before, images = snapshot(net), torch.cat([images, images.flip(-1)])  # enough for a verdict
    control = randomization_check(net, images, lambda x, y: x.abs().sum(1), 1)
    assert control.passed is False and control.spearman == pytest.approx([1] * 4)
    seen = randomization_check(net, images, GradCAM(net, "relu2"), 1)
    assert len(seen.spearman) == len(seen.stages) == 4, "the original is no stage, and no part of any mean"
    assert seen.spearman[-1] < 0.9 or seen.undefined[-1] > 0
    assert_same(before, snapshot(net))
