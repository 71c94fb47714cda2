"""What a call costs, in forward passes of the bare network (F), counted in multiplications, and on a GPU in memory."""

import math

import pytest
import torch
import torchvision
from torch import nn

from groupcam_aug import GroupCAM, SaliencyBlur
from groupcam_aug.cost import cost_in_forwards, count_flops
from groupcam_aug.fidelity import measure_fidelity
from groupcam_aug.presets import describe, scoring_of
from groupcam_aug.recipes.networks import CIFARResNet

NETWORKS = {
    "resnet18": (lambda: torchvision.models.resnet18(), 64),
    "resnet50": (lambda: torchvision.models.resnet50(), 96),
    "cifar_resnet20": (lambda: CIFARResNet(20, 10), 32),
}


def costs(name, **options):
    torch.manual_seed(0)
    make, size = NETWORKS[name]
    network, images = make().eval(), torch.randn(2, 3, size, size)
    targets = torch.tensor([3, 1])
    cam = GroupCAM.for_training(network, **options)
    cam(images, targets)  # finds the layer, and looks how the network may be split
    return cost_in_forwards(cam, images, targets), cam


def test_flops_of_a_convolution_and_of_its_backward_pass():
    convolution, images = nn.Conv2d(3, 5, 3, bias=False), torch.randn(2, 3, 8, 8)
    once = 2 * (2 * 5 * 6 * 6) * (3 * 3 * 3)  # a multiplication and an addition for each weight that an output sums over
    assert count_flops(lambda: convolution(images)) == once
    assert count_flops(lambda: convolution(images).sum().backward()) == 2 * once, "for the weights; images need no gradient"


def test_a_network_that_multiplies_nothing_has_no_cost_to_compare_with():
    class Means(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x):
            return self.relu(x).mean(dim=(2, 3))

    cam = GroupCAM.for_training(Means(), "relu", groups=3, mask_at="target")
    images = torch.randn(2, 3, 8, 8)
    cam(images)
    cost = cost_in_forwards(cam, images)
    assert math.isnan(cost) and describe(cam, SaliencyBlur(cam), cost).endswith("what a map costs could not be counted")


@pytest.mark.parametrize(
    "name, cost, words",
    [
        # Its head is a convolution that every group has to pass: .26 F of 16 groups and the blank image.
        ("squeezenet1_1", 5.2, "50% of the images: a map costs 5.2 forward passes (counted), so about +87% of a step"),
        ("resnet18", 1.0, "50% of the images: a map costs 1.0 forward passes (counted), so about +17% of a step"),
        ("vgg11", 1.3, "50% of the images: a map costs 1.3 forward passes (counted), so about +21% of a step"),
    ],
)
def test_the_announced_cost_of_fast_is_the_counted_one_and_that_of_fidelity(name, cost, words):
    torch.manual_seed(0)
    network, images = torchvision.models.get_model(name, num_classes=1000).eval(), torch.randn(4, 3, 224, 224)
    cam = GroupCAM.for_training(network, **scoring_of("fast"))
    cam(images)
    counted = cost_in_forwards(cam, images)
    assert counted == pytest.approx(cost, abs=0.1)
    assert describe(cam, SaliencyBlur(cam, p=0.5), counted).endswith(words)
    if name == "squeezenet1_1":
        row = measure_fidelity(network, images, modes=["fast"], groups=16, regroupings=1, repeats=0)["fast"]
        assert row.cost == pytest.approx(counted, rel=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("groups", [4, 16])
def test_exact_maps_cost_two_passes_and_one_per_group(name, groups):
    cost, _ = costs(name, groups=groups)
    assert groups + 2 <= cost <= 1.03 * (groups + 2)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    "options, most",
    [
        ({"mask_at": "target"}, 2.15),
        ({"mask_at": "target", "baseline": "zero"}, 1.15),
        ({"baseline": "zero"}, 17.6),  # the blank image is one of two
    ],
    ids=str,
)
def test_features_cost_no_pass_per_group(name, options, most):
    cost, _ = costs(name, **options)
    assert most - 0.16 <= cost <= most


@pytest.mark.parametrize("mask_at", ["input", "stage", "target"])
@pytest.mark.parametrize("name", NETWORKS)
def test_importance_weights_cost_next_to_nothing(name, mask_at):
    plain, _ = costs(name, mask_at=mask_at)
    weighted, _ = costs(name, mask_at=mask_at, weights="gradient")
    assert weighted <= plain + 0.05


def test_only_what_follows_the_target_is_differentiated_with_masks_inside_the_stage():
    network = torchvision.models.resnet18().eval()
    kept = []

    def watch(module, args, output):
        kept.append(output.requires_grad)

    handle = network.layer4[1].conv1.register_forward_hook(watch)
    GroupCAM.for_training(network, "layer4", weights="gradient", mask_at="layer4.0")(torch.randn(2, 3, 64, 64), 1)
    handle.remove()
    assert kept and not any(kept)


@pytest.mark.parametrize(
    "name, place, kind",
    [
        ("resnet18", "layer4", "pooled"),
        ("resnet18", "layer3", "alone"),
        ("resnet18", "layer4.1.bn1", "recorded"),
        ("cifar_resnet20", "layer3", "pooled"),
    ],
)
def test_how_a_network_may_be_split(name, place, kind):
    _, cam = costs(name, mask_at=place)
    assert cam._tails == {place: kind}


@pytest.mark.parametrize("weights", ["none", "gradient"])
@pytest.mark.parametrize("place", ["layer4", "layer3"])
def test_all_kinds_of_splits_give_one_map(place, weights):
    """The averages and the blanks are shortcuts: replaying the record group by group gives the same."""
    torch.manual_seed(1)
    network, images = torchvision.models.resnet18(num_classes=7).double().eval(), torch.randn(3, 3, 64, 64).double()
    cam = GroupCAM.for_training(network, mask_at=place, weights=weights)
    short = cam(images)
    assert cam._tails[place] != "recorded"
    cam._tails[place] = "recorded"
    torch.testing.assert_close(cam(images), short, rtol=0, atol=1e-9)
    assert short.amax(dim=(1, 2)).sum() >= 2


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@gpu
def test_gpu_peak_memory_of_a_step_is_hardly_above_the_plain_step():
    """At most 1.05 times: exact maps, G = 16, ResNet-50, 32 images."""
    network = torchvision.models.resnet50().cuda().train()
    optimiser = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9)
    images, labels = torch.randn(32, 3, 224, 224, device="cuda"), torch.arange(32, device="cuda")
    cam = GroupCAM.for_training(network)

    def step(augment):
        with torch.autocast("cuda", torch.bfloat16):
            if augment:
                maps = cam(images, labels)
                assert maps.shape == (32, 224, 224)
            loss = torch.nn.functional.cross_entropy(network(images).float(), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    peaks = []
    for augment in (False, True):
        step(augment)
        torch.cuda.reset_peak_memory_stats()
        step(augment)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] <= 1.05 * peaks[0], peaks


@pytest.mark.gpu
@gpu
def test_gpu_out_of_memory_is_survived_once():
    network = torchvision.models.resnet50().cuda().eval()
    images = torch.randn(64, 3, 224, 224, device="cuda")
    expected = GroupCAM.for_training(network, groups=4, chunk=8)(images, 1)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    GroupCAM.for_training(network, groups=4, chunk=32)(images, 1)
    room = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    try:
        torch.cuda.set_per_process_memory_fraction(1.1 * room / total)
        with pytest.warns(UserWarning, match="at most 32 per forward pass"):
            maps = GroupCAM.for_training(network, groups=4, chunk=64)(images, 1)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-2)
