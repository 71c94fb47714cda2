"""Weight randomisation: the order of layers, what comes back, what a good and a bad method score."""

import copy
import functools
import json

import pytest
import torch
from models import PooledNet, assert_same, snapshot
from torch import nn
from torch.nn.utils import prune

from groupcam_aug import GradCAM, GroupCAM
from groupcam_aug.metrics.stability import map_change, map_floor
from groupcam_aug.sanity import Randomization, forward_order, randomization_check, randomized


def edges(images, targets=None):
    """A map that does not look at the network at all."""
    gradient = (images[:, :, 1:, 1:] - images[:, :, :-1, :-1]).abs().sum(1)
    return nn.functional.pad(gradient, (0, 1, 0, 1))


def parameters_of(net):
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def changed(before, net):
    return {name.rpartition(".")[0] for name, p in net.named_parameters() if not torch.equal(p, before[name])}


@pytest.fixture
def images():
    return torch.randn(6, 3, 24, 20, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def net():
    torch.manual_seed(1)
    return PooledNet()


@pytest.mark.parametrize("targets", [None, 1])
def test_a_network_that_normalises_in_place_leaves_the_images_as_they_are(net, images, targets):
    def halved(x):
        return x.sub_(0.5).div_(2)

    before = images.clone()
    found = randomization_check(net, images, GradCAM(net, "relu2", preprocess=halved), targets)
    plain = randomization_check(net, images, GradCAM(net, "relu2", preprocess=lambda x: (x - 0.5) / 2), targets)
    assert torch.equal(images, before)
    torch.testing.assert_close(found.rho, plain.rho, equal_nan=True)


def test_more_stages_than_modules_are_as_many_as_there_are(net, images):
    assert randomization_check(net, images, GradCAM(net, "relu2"), 1, stages=8).stages == ("fc", "conv2", "bn1", "conv1")


def test_stages_are_the_forward_order_from_the_output_down(net, images):
    """By when a layer runs, not by when it was registered: fc, conv2, bn1, conv1."""
    backwards = PooledNet()
    backwards._modules = dict(reversed(backwards._modules.items()))
    for one in (net, backwards):
        assert randomization_check(one, images, GradCAM(one, "relu2"), 1).stages == ("fc", "conv2", "bn1", "conv1")
    assert forward_order(net, lambda: net(images))[:3] == ["", "conv1", "bn1"]
    assert not any(len(module._forward_pre_hooks) for module in net.modules())


def test_cascading_keeps_what_came_before_and_independent_does_not(net, images):
    before, seen = parameters_of(net), []

    def method(batch, targets):
        seen.append(changed(before, net))
        return edges(batch)

    randomization_check(net, images, method, 1)
    assert seen == [set(), {"fc"}, {"fc", "conv2"}, {"fc", "conv2", "bn1"} - {"bn1"}, {"fc", "conv2", "conv1"}], (
        "batch norm starts as it is initialised here"
    )
    seen.clear()
    randomization_check(net, images, method, 1, mode="independent", stages=["conv1", "fc"])
    assert seen == [set(), {"conv1"}, {"fc"}]
    seen.clear()
    found = randomization_check(net, images, method, 1, stages=2)
    assert seen == [set(), {"fc", "conv2"}, {"fc", "conv2", "conv1"}] and found.stages == ("fc .. conv2", "bn1 .. conv1")


def test_a_module_draws_the_same_whatever_else_is_drawn(net):
    with randomized(net, "conv2", seed=3):
        alone = net.conv2.weight.clone()
    with randomized(net, seed=3):
        assert torch.equal(net.conv2.weight, alone)
    with randomized(net, "conv2", seed=4):
        assert not torch.equal(net.conv2.weight, alone)
    twins = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with randomized(twins):
        assert not torch.equal(twins[0].weight, twins[1].weight), "each from a generator of its own"
    torch.manual_seed(99)
    with randomized(net, ["fc", "conv2"], seed=3):
        assert torch.equal(net.conv2.weight, alone)


def test_batch_norm_and_modules_without_reset(images):
    """Running statistics start anew; a bare parameter is drawn with its old mean and spread."""

    class Scaled(PooledNet):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.linspace(1, 3, 8)[:, None, None])

        def forward(self, x):
            return self.fc(self.pool(self.scale * self.relu1(self.bn1(self.conv1(x)))).flatten(1))

    net = Scaled()
    for _ in range(3):
        net(images)
    with torch.no_grad():
        net.bn1.weight.fill_(7)
    before = snapshot(net)
    with randomized(net, ["bn1"]):
        assert (net.bn1.running_mean == 0).all() and (net.bn1.running_var == 1).all() and (net.bn1.weight == 1).all()
        assert net.bn1.num_batches_tracked == 0
        net.train()(images)  # writes to stand-ins only
    assert_same(before, snapshot(net))
    stages = randomization_check(net, images, edges, 1).stages
    assert stages == ("fc", "bn1", "conv1", "(network)"), "what the network itself holds is entered first"
    wide = nn.Module()
    wide.scale = nn.Parameter(5 + 0.1 * torch.randn(10_000))
    old = wide.scale.detach().clone()
    with randomized(wide):
        assert abs(wide.scale.mean() - 5) < 0.01 and abs(wide.scale.std() - 0.1) < 0.01
        assert abs(torch.corrcoef(torch.stack([wide.scale.detach(), old]))[0, 1]) < 0.05


def test_shared_parameters_stay_shared():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    original = net[0].weight
    with randomized(net, "0"):
        assert net[2].weight is net[0].weight is not original
    assert net[2].weight is net[0].weight is original


def test_attention_and_transformers(images):
    """Modules that are used without being called: the output projection of torch's attention."""
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    net = VisionTransformer(24, 8, 2, 2, 16, 32, num_classes=3).eval()
    nn.init.normal_(net.class_token)  # zeros at first, as no trained one is
    square = nn.functional.pad(images, (0, 4))
    before, seen = parameters_of(net), []

    def method(batch, targets):
        seen.append(changed(before, net))
        return edges(batch)

    stages = randomization_check(net, square, method, 1).stages
    assert stages[0] == "heads.head" and stages[-1] == "(network)" and len(stages) == len(set(stages))
    attention = "encoder.layers.encoder_layer_1.self_attention"
    at = stages.index(attention)
    assert attention + ".out_proj" in seen[at + 1] - seen[at]
    assert {name.rpartition(".")[0] for name in before} - seen[-1] <= {
        name for name, module in net.named_modules() if isinstance(module, nn.LayerNorm)
    }, "all but the layer norms, which were as initialised"


class Partly(nn.Conv2d):
    """Whose reset forgets the weight, and draws the bias."""

    def reset_parameters(self):
        if not hasattr(self, "made"):
            super().reset_parameters()
        self.made = True
        nn.init.normal_(self.bias)


def partly(conv):
    made = Partly(8, 8, 3, padding=1)
    made.load_state_dict(conv.state_dict())
    return made


def cut(conv):
    return prune.l1_unstructured(conv, "weight", 0.4)


HOOKED = {
    "weight_norm, hooks": nn.utils.weight_norm,
    "weight_norm, parametrised": nn.utils.parametrizations.weight_norm,
    "spectral_norm, hooks": nn.utils.spectral_norm,
    "spectral_norm, parametrised": nn.utils.parametrizations.spectral_norm,
    "pruning": cut,
    "a reset that forgets": partly,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("wrap", HOOKED.values(), ids=HOOKED)
def test_weights_that_hooks_make_are_drawn_as_well(net, images, wrap):
    """And what the hooks had left on the module comes back: nothing depends on a pass that recomputes it."""
    net.conv2 = wrap(net.conv2)
    net(images)  # in training, so that hooks and statistics have run
    net.eval()

    def features():
        with torch.no_grad():
            return net.conv2(net.relu1(net.bn1(net.conv1(images))))

    before, held = features(), net.conv2.weight
    whole = snapshot(net)
    with randomized(net, "conv2"):
        other = features()
    assert abs(torch.corrcoef(torch.stack([before.flatten(), other.flatten()]))[0, 1]) < 0.5
    if "weight" in vars(net.conv2):
        assert net.conv2.weight is held
    assert_same(whole, snapshot(net))
    assert torch.equal(features(), before)
    with randomized(net, "conv2"):
        assert torch.equal(features(), other), "the same seed, the same weights"


class Fourier(nn.Module):
    """Complex weights, and a reset that takes an argument."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, dtype=torch.cfloat))

    def reset_parameters(self, spread):
        raise AssertionError("nobody knows the spread")


def test_complex_weights_are_drawn_and_a_reset_with_arguments_is_left_out():
    module = Fourier()
    before = module.weight.detach().clone()
    with randomized(module):
        assert not torch.equal(module.weight, before) and module.weight.is_complex()
        assert not torch.equal(module.weight.imag, before.imag)
    assert torch.equal(module.weight, before)


@pytest.mark.parametrize("targets", [None, torch.arange(6) % 5])
def test_inside_an_inference_mode(net, images, targets):
    def rho():
        return randomization_check(net, images, GradCAM(net, "relu2"), targets, stages=2).rho

    before = snapshot(net)
    outside = rho()
    with torch.inference_mode():
        assert torch.equal(rho(), outside)
        with randomized(net) as network:
            inside = GradCAM(network, "relu2")(images, 1)
    with randomized(net) as network:
        assert torch.equal(GradCAM(network, "relu2")(images, 1), inside)
    assert_same(before, snapshot(net))


def test_the_first_choice_of_a_network_that_ends_in_a_sigmoid(images):
    """One probability an image: class 1 above a half, not above 0."""
    torch.manual_seed(1)
    net = nn.Sequential(PooledNet(classes=1), nn.Sigmoid()).eval()
    with torch.no_grad():
        net[0].fc.bias -= net[0](images).median()
        expected = (net(images)[:, 0] > 0.5).long()
    explained = []

    def cam(batch, targets):
        explained.append(targets)
        return GradCAM(net, "0.relu2")(batch, targets)

    with pytest.warns(UserWarning, match="ends in a softmax or sigmoid"):
        randomization_check(net, images, cam, stages=1)
    assert 0 < expected.sum() < 6 and all(torch.equal(targets, expected) for targets in explained)


@pytest.mark.parametrize("mode", ["cascading", "independent"])
def test_everything_comes_back(net, images, mode):
    net.train()
    net.bn1.eval()
    net.conv1.weight.requires_grad_(False)
    net(images).sum().backward()
    net = net.to(memory_format=torch.channels_last)
    before = snapshot(net)
    handle = net.conv1.register_forward_hook(lambda *_: None)
    handle.remove()
    randomization_check(net, images, GroupCAM(net, "relu2", groups=4), mode=mode)
    assert_same(before, snapshot(net))

    calls = []

    def breaks(batch, targets):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return GradCAM(net, "relu2")(batch, targets)

    with pytest.raises(KeyboardInterrupt):
        randomization_check(net, images, breaks, mode=mode)
    assert_same(before, snapshot(net))


def test_a_reset_that_raises_leaves_nothing(net):
    class Bad(nn.Linear):
        def reset_parameters(self):
            super().reset_parameters()
            if hasattr(self, "ready"):
                self.weight.data.zero_()
                raise RuntimeError("no reset here")

    net.fc = Bad(8, 5)
    net.fc.ready = True
    before = snapshot(net)
    with pytest.raises(RuntimeError, match="no reset"):
        with randomized(net):
            pass
    assert_same(before, snapshot(net))


def test_the_class_is_fixed(net, images):
    asked = []

    def method(batch, targets):
        asked.append(targets)
        return edges(batch)

    randomization_check(net, images, method)
    expected = copy.deepcopy(net).eval()(images).argmax(1)
    assert len(asked) == 5 and all(torch.equal(targets, expected) for targets in asked)


def test_maps_are_kept_if_asked_for(net, images):
    found = randomization_check(net, images, GradCAM(net, "relu2"), 1, keep_maps=True, mode="independent")
    assert found.maps.shape[:2] == (len(found.stages) + 1, len(images))
    assert torch.equal(found.maps[0], GradCAM(net, "relu2").raw(images, 1))
    with randomized(net, found.stages[1]):
        assert torch.equal(found.maps[2], GradCAM(net, "relu2").raw(images, 1))
    assert randomization_check(net, images, GradCAM(net, "relu2"), 1).maps is None


def test_values_are_those_of_map_change(net, images):
    """Per stage the mean rho over what is alive, on the layer's grid; undefined maps are counted."""
    cam = GradCAM(net, "relu2")
    found = randomization_check(net, images, cam, 1, stages=["fc", "conv2"])
    original = cam.raw(images, 1)
    with randomized(net, ["fc", "conv2"]):
        last = map_change(original, cam.raw(images, 1), grid=14)
    assert found.rho.shape == (2, 6)
    defined = last.both
    torch.testing.assert_close(found.rho[1][defined], last.spearman[defined])
    assert found.rho[1][~defined].isnan().all()
    assert found.undefined[1] == (~defined).double().mean().item()
    assert abs(found.spearman[1] - last.spearman[defined].mean().item()) < 1e-6
    assert found.floors == {"other_image": map_floor(original).item(), "zero": 0.0}


def test_methods_factories_and_the_result(net, images):
    direct = randomization_check(net, images, GradCAM(net, "relu2"), 1)
    made = randomization_check(net, images, functools.partial(GradCAM, layer="relu2"), 1)
    assert torch.equal(direct.rho.nan_to_num(9), made.rho.nan_to_num(9))
    found = randomization_check(net, images, functools.partial(GroupCAM, layer="relu2", groups=2), 1)
    told = json.loads(json.dumps(found.summary()))
    assert told["mode"] == "cascading" and len(told["spearman"]) == len(told["undefined"]) == len(told["stages"]) == 4
    assert set(told["floors"]) == {"other_image", "zero"}


def test_a_map_that_ignores_the_network_fails(net, images):
    """And one that follows it does not; self-similarity is not part of the result."""
    control = randomization_check(net, images, edges, 1)
    assert control.spearman == [1.0] * 4 and control.undefined == [0.0] * 4 and control.passed is False
    each = randomization_check(net, images, edges, 1, mode="independent")
    assert each.passed is False and each.standing == each.stages == ("fc", "conv2", "bn1", "conv1")
    assert control.standing == ("conv1",), "of the cascade the end decides"

    def weights(batch, targets):
        generator = torch.Generator().manual_seed(int(1e6 * net.conv1.weight.abs().sum()))
        return torch.rand(len(batch), 14, 14, generator=generator)

    followed = randomization_check(net, images, weights, 1)
    assert followed.spearman[:3] == pytest.approx([1, 1, 1]) and abs(followed.spearman[3]) < 0.2
    each = randomization_check(net, images, weights, 1, mode="independent")
    assert each.passed is False and each.standing == ("fc", "conv2", "bn1"), "it follows the first layer alone"
    assert json.loads(json.dumps(each.summary()))["standing"] == ["fc", "conv2", "bn1"]

    def all_weights(batch, targets):
        generator = torch.Generator().manual_seed(int(1e6 * sum(p.abs().sum() for p in net.parameters())))
        return torch.rand(1, 14, 14, generator=generator).expand(len(batch), -1, -1) + 0.1 * edges(batch)[:, :14, :14]

    each = randomization_check(net, images, all_weights, 1, mode="independent", stages=["fc", "conv2", "conv1"])
    assert each.passed is True and each.standing == () and max(each.spearman) < each.floor
    assert randomization_check(net, images[:4], edges, 1, mode="independent").passed is None, "four maps are too few"
    few = randomization_check(net, images[:4], edges, 1)
    assert few.spearman == [1.0] * 4 and few.passed is None, "four maps are too few for a verdict"
    nothing = randomization_check(net, images, lambda batch, targets: torch.zeros(len(batch), 7, 7), 1)
    assert nothing.undefined == [1.0] * 4 and nothing.spearman == [0.0] * 4 and nothing.passed is None


def test_wrapped_outputs(net, images):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net

        def forward(self, x):
            return {"scores": self.inner(x)}

    wrapped = Wrapped()
    cam = GradCAM(wrapped, "inner.relu2", output="scores", preprocess=lambda x: 2 * x)
    found = randomization_check(wrapped, images, cam)
    expected = randomization_check(net, 2 * images, GradCAM(net, "relu2"))
    assert found.stages == tuple("inner." + name for name in expected.stages)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mode": "both"}, "mode"),
        ({"stages": ["nowhere"]}, "no module 'nowhere'"),
        ({"stages": ["pool"]}, "no parameters"),
        ({"stages": "fc"}, "list of module names"),
        ({"stages": 0}, "stages must be a whole number of at least 1, got 0"),
        ({"targets": [1]}, "1 targets for 6 images"),
    ],
)
def test_refused(net, images, options, match):
    with pytest.raises(ValueError, match=match):
        randomization_check(net, images, edges, **{"targets": 1, **options})
    with pytest.raises(ValueError, match="no images"):
        randomization_check(net, images[:0], edges)
    with pytest.raises(ValueError, match="one map an image"):
        randomization_check(net, images, lambda batch, targets: batch, 1)


@pytest.mark.slow
@pytest.mark.parametrize("method", [GradCAM, functools.partial(GroupCAM, groups=8)], ids=["Grad-CAM", "Group-CAM"])
def test_photographs(squeezenet, photographs, method):
    """E9: forty photographs; fully re-initialised, the maps agree no more than those of two photographs, or hardly one is left."""
    images, labels = photographs(40)
    before = snapshot(squeezenet)
    found = randomization_check(squeezenet, images, method, labels, stages=4)
    assert_same(before, snapshot(squeezenet))
    assert found.passed or (found.passed is None and found.undefined[-1] > 0.85), found.summary()
    assert found.stages[0].startswith("classifier.1")
    control = randomization_check(squeezenet, images, edges, labels, stages=1)
    assert control.passed is False


def test_a_stage_above_the_floor_by_chance_is_no_failure_and_no_pass():
    """Mean .30 above a floor of .28: by one image more than by all; steady ones fail; all below pass."""
    stages, low = ("fc", "conv2", "conv1"), torch.zeros(8)
    noisy = torch.tensor([0.9, -0.4, 0.8, -0.3, 0.7, -0.2, 0.6, 0.3])
    assert float(noisy.mean()) == pytest.approx(0.3)
    check = Randomization("independent", stages, torch.stack([low, noisy, low]), 0.28)
    assert check.passed is None and check.standing == ()
    steady = Randomization("independent", stages, torch.stack([low, 0.35 + noisy / 100, low]), 0.28)
    assert steady.passed is False and steady.standing == ("conv2",)
    assert Randomization("independent", stages, torch.stack([low, noisy - 0.1, low]), 0.28).passed is True
    assert Randomization("cascading", stages, torch.stack([low, low, noisy]), 0.28).passed is False, "one stage, one mean"
