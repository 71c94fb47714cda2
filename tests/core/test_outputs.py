"""What a network's outputs tell about it: heads that give probabilities, rows that mix, NaN, features."""

import warnings
from itertools import product

import pytest
import torch
from models import PooledNet
from torch import nn
from torch.nn import functional as F

from groupcam_aug import GradCAM, GroupCAM, measure_fidelity
from groupcam_aug.callbacks.monitoring.map_stats import read_maps
from groupcam_aug.metrics import average_drop, insertion_auc
from groupcam_aug.outputs import ends_in_probabilities, mixes_rows, no_numbers, not_numbers, sum_to_one
from groupcam_aug.sanity import randomization_check


class Headed(PooledNet):
    """The tiny network with a function behind its logits."""

    def __init__(self, head, classes=5):
        torch.manual_seed(1)
        super().__init__(classes=classes)
        self.head = head
        self.double().eval()

    def forward(self, x):
        return self.head(super().forward(x))


def two_parts(z):
    return torch.cat([z[:, :2].sigmoid(), z[:, 2:].sigmoid()], dim=1)


# A head of probabilities, and the activation that the same network needs without it.
HEADS = {
    "softmax module": (nn.Softmax(dim=1), "softmax"),
    "softmax function": (lambda z: F.softmax(z, dim=-1), "softmax"),
    "softmax method": (lambda z: z.softmax(1), "softmax"),
    "softmax in float32": (lambda z: z.softmax(1, dtype=torch.float32), "softmax"),
    "exponential of log_softmax": (lambda z: z.log_softmax(1).exp(), "softmax"),
    "softmax by hand": (lambda z: z.exp() / z.exp().sum(1, keepdim=True), "softmax"),
    "mean of two softmaxes": (lambda z: (z.softmax(1) + z.softmax(1)) / 2, "softmax"),
    "sigmoid module": (nn.Sigmoid(), "sigmoid"),
    "sigmoid in place": (lambda z: z.sigmoid_(), "sigmoid"),
    "sigmoid special": (lambda z: torch.special.expit(z), "sigmoid"),
    "sigmoids of two tasks": (two_parts, "sigmoid"),
    "sigmoid, twice turned": (lambda z: z.sigmoid().t().contiguous().t(), "sigmoid"),
}


def test_rows_that_are_no_numbers():
    inf, nan = float("inf"), float("nan")
    rows = torch.tensor([[0, 1.0], [0, -inf], [inf, 0], [nan, 0], [-inf, -inf], [3e38, -3e38]])
    assert not_numbers(rows).tolist() == [False, False, True, True, True, False]
    assert not_numbers(rows.half()).tolist() == [False, False, True, True, True, True]
    assert not_numbers(torch.tensor([0.5, nan])).tolist() == [False, True]
    assert no_numbers(PooledNet(), 2, 3).startswith("the network returns no finite numbers for 2 of 3 images: the parameters of ")


@pytest.mark.parametrize("name", ["softmax module", "sigmoid module"])
def test_probabilities_are_taken_as_they_are(images, name):
    """Squashed once more, all would be near 1/2."""
    head, activation = HEADS[name]
    plain, headed = Headed(nn.Identity()), Headed(head)
    options = {"groups": 4, "weights": "none"}  # the gradient of a softmax is not that of its logits
    expected = GroupCAM(plain, "relu2", activation=activation, **options).raw(images, 1)
    with pytest.warns(
        UserWarning, match="Headed ends in a softmax or sigmoid: its outputs are taken as the probabilities"
    ) as said:
        for asked, mask_at in product(("softmax", "sigmoid"), ("input", "target")):
            found = GroupCAM(headed, "relu2", activation=asked, mask_at=mask_at, **options).raw(images, 1)
            if mask_at == "input":
                torch.testing.assert_close(found, expected)
    assert len(said) == 1, "once a network"
    assert expected.amax() > 0


@pytest.mark.filterwarnings("ignore:.*ends in a softmax or sigmoid")
def test_a_single_probability_is_that_of_class_one(images):
    plain, headed = Headed(nn.Identity(), classes=1), Headed(nn.Sigmoid(), classes=1)
    for target in (None, 0, 1, [1, 0, 1]):
        expected = GroupCAM(plain, "relu2", groups=4, activation="sigmoid").raw(images, target)
        torch.testing.assert_close(GroupCAM(headed, "relu2", groups=4).raw(images, target), expected)
        score = read_maps(GradCAM(headed, "relu2"), images, None, "softmax", 14)
        torch.testing.assert_close(score.chosen, (plain(images)[:, 0] > 0).long())
        torch.testing.assert_close(score.score, plain(images)[:, 0].abs().sigmoid().float())


@pytest.mark.parametrize(
    "head",
    [
        lambda z: (z - z.amin(1, keepdim=True)) / (2 * (z.amax(1) - z.amin(1)))[:, None],  # within [0, 1] as it happens
        lambda z: 0 * z,  # a head that starts at zero
        lambda z: z.log_softmax(1),
        lambda z: z * z.mean(1, keepdim=True).sigmoid(),  # a gate
    ],
)
def test_logits_are_not_taken_for_probabilities(images, head):
    cam = GroupCAM(Headed(head), "relu2", groups=4)
    cam(images, 1)
    assert not cam.probabilities


def test_rows_that_sum_to_one():
    assert sum_to_one(torch.tensor([[0.25, 0.75], [1.0, 0.0]]))
    assert sum_to_one(torch.rand(4, 1000).softmax(1).bfloat16())
    assert not sum_to_one(torch.tensor([[0.25, 0.75], [1.5, -0.5]]))
    assert not sum_to_one(torch.tensor([[0.25, 0.75], [0.25, 0.7]]))
    assert not sum_to_one(torch.ones(3, 1)), "the softmax of one logit says nothing"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*ends in a softmax or sigmoid")
@pytest.mark.parametrize("asked", ["softmax", "sigmoid"])
@pytest.mark.parametrize("name", HEADS)
def test_every_head_gives_the_scores_of_the_bare_network(images, name, asked):
    head, activation = HEADS[name]
    plain, headed = Headed(nn.Identity()), Headed(head)
    maps = torch.rand(3, 24, 20, dtype=torch.float64)
    close = {"rtol": 1e-4, "atol": 1e-5}
    multi = torch.eye(5, dtype=torch.float64)[:3] + torch.eye(5, dtype=torch.float64)[1:4]
    for targets in (None, 1, torch.tensor([4, 0, 2]), multi):
        for measure in (insertion_auc, lambda *a, **k: average_drop(*a, **k).drop):
            expected = measure(plain, images, maps, targets, activation=activation)
            torch.testing.assert_close(measure(headed, images, maps, targets, activation=asked), expected, **close)
        for options in ({}, {"weights": "none", "denoise": None}, {"baseline": "zero"}):
            method = {"groups": 4, "mask_at": "input", **options}
            if "weights" not in options and (activation == "softmax" or targets is multi):
                continue  # the gradient of p is in proportion to that of y for a single sigmoid only
            one = GroupCAM(plain, "relu2", activation=activation, **method).raw(images, targets)
            torch.testing.assert_close(GroupCAM(headed, "relu2", activation=asked, **method).raw(images, targets), one, **close)
        ours, theirs = (
            read_maps(GradCAM(network, "relu2"), images, None, how, 14) for network, how in ((headed, asked), (plain, activation))
        )
        torch.testing.assert_close(ours.score, theirs.score, **close)
        assert torch.equal(ours.chosen, theirs.chosen)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", HEADS)
def test_every_head_is_noticed_in_every_precision(name, dtype):
    network = Headed(HEADS[name][0]).to(dtype)
    with torch.no_grad():
        assert ends_in_probabilities(network, torch.zeros(1, 3, 24, 20, dtype=dtype))
        assert not ends_in_probabilities(Headed(nn.Identity()).to(dtype), torch.zeros(1, 3, 24, 20, dtype=dtype))


# Rows that mix


def without_statistics():
    torch.manual_seed(1)
    net = PooledNet()
    net.bn1 = nn.BatchNorm2d(8, track_running_stats=False)
    return net.double().eval()


class Centred(PooledNet):
    """Takes the mean of the batch away, in whatever mode."""

    def forward(self, x):
        return super().forward(x - x.mean(dim=0, keepdim=True) / 2)


def centred():
    torch.manual_seed(1)
    return Centred().double().eval()


@pytest.mark.parametrize("make", [without_statistics, centred])
@pytest.mark.parametrize(
    "method",
    [
        lambda net: GradCAM(net, "relu2"),
        lambda net: GroupCAM(net, "relu2", groups=4),
        lambda net: GroupCAM(net, "relu2", groups=4, mask_at="target"),
        lambda net: GroupCAM(net, "relu2", groups=4, mask_at="relu1", chunk=3),
    ],
)
def test_maps_do_not_depend_on_batch_mates(images, make, method):
    net = make()
    with pytest.warns(UserWarning, match="images of a batch influence each other in eval mode.*run one by one") as said:
        cam = method(net)
        together = cam(images, 1)
    assert len(said) == 1
    alone = torch.cat([method(net)(image[None], 1) for image in images])
    torch.testing.assert_close(together, alone)
    assert torch.equal(cam(images, 1), together), "later calls as well"
    torch.testing.assert_close(method(net)(images[:2].flip(0), 1), alone[:2].flip(0))


@pytest.mark.filterwarnings("ignore:.*influence each other")
def test_scores_do_not_depend_on_batch_mates(images):
    net, maps = without_statistics(), torch.rand(3, 24, 20, dtype=torch.float64)
    together = insertion_auc(net, images, maps, 1, steps=4)
    alone = [insertion_auc(net, image[None], one[None], 1, steps=4, chunk=1) for image, one in zip(images, maps)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_a_usual_network_is_looked_at_once_and_left_in_peace(net, images):
    sizes = []
    net.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    GradCAM(net, "relu2")(images, 1)
    assert sizes == [3, 1, 2]
    GradCAM(net, "relu2")(images, 1)
    assert sizes == [3, 1, 2, 3]


def test_no_word_is_said_on_mixing_while_outputs_tell_nothing_apart(images):
    """A head of zeros tells no two images apart; once it is trained the network is seen to mix."""
    torch.manual_seed(1)
    net = PooledNet().double().eval()
    net.bn1 = nn.BatchNorm2d(net.bn1.num_features, track_running_stats=False).double()
    head = net.fc.weight.detach().clone()
    nn.init.zeros_(net.fc.weight)
    cam = GroupCAM(net, "relu2", groups=4, weights="none")
    cam(images, 1)
    with torch.no_grad():
        net.fc.weight.copy_(head)
    with pytest.warns(UserWarning, match="images of a batch influence each other"):
        together = cam(images, 1)
    torch.testing.assert_close(together, torch.cat([cam(image[None], 1) for image in images]))


def test_a_damaged_first_image_hides_no_mixing(images):
    net = PooledNet().double().eval()
    net.bn1 = nn.BatchNorm2d(net.bn1.num_features, track_running_stats=False).double()
    damaged = images.clone()
    damaged[0] = torch.nan
    with pytest.warns(UserWarning, match="images of a batch influence each other"):
        assert mixes_rows(net, net, damaged)


def test_one_damaged_image_does_not_turn_probabilities_into_logits(images):
    """The maps of the others stay as they are; a batch of nothing else leaves the reading as it was."""
    cam = GroupCAM(Headed(nn.Softmax(dim=1)), "relu2", groups=4, weights="none")
    damaged = images.clone()
    damaged[-1] = torch.nan
    with pytest.warns(UserWarning, match="ends in a softmax"):
        expected = cam.raw(images[:-1], 1)
    torch.testing.assert_close(cam.raw(damaged, 1)[:-1], expected)
    cam.raw(damaged[-1:], 1)
    assert cam.probabilities


def test_one_column_of_a_softmax_is_a_probability(images):
    torch.manual_seed(1)
    cam = GroupCAM(Headed(lambda z: z.softmax(1)[:, 1:], classes=2), "relu2", groups=4, activation="sigmoid")
    with pytest.warns(UserWarning, match="ends in a softmax or sigmoid"):
        cam(images)
    assert cam.probabilities


def test_a_network_without_classes_may_have_been_given_a_head(net, images):
    net.num_classes, net.num_features = 0, 8
    GradCAM(net, "relu2")(images, 1)
    net.num_features = 5
    with pytest.raises(ValueError, match="num_classes=0: it returns features"):
        GradCAM(net, "relu2")(images, 1)


def test_gradients_that_a_forward_switches_on_for_good_leave_no_graph(images):
    class Leaves(PooledNet):
        def forward(self, x):
            torch.set_grad_enabled(True)
            return super().forward(x)

    torch.manual_seed(1)
    cam = GroupCAM(Leaves().double(), "relu2", groups=4, weights="none")
    with torch.no_grad():
        assert not cam.logits(images).requires_grad and not torch.is_grad_enabled()
        assert not cam.logits(images).requires_grad
        assert not cam(images, 1).requires_grad


def test_random_draws_are_no_mixing(images):
    class Noisy(PooledNet):
        def forward(self, x):
            return super().forward(x + torch.randn_like(x))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not mixes_rows(net := Noisy().double().eval(), net, images)


def test_a_network_that_takes_no_single_image_is_warned_of(images):
    torch.manual_seed(1)
    net = PooledNet()
    net.drop = nn.BatchNorm1d(8, track_running_stats=False)  # behind the pooling: one value a channel
    with pytest.warns(UserWarning, match="PooledNet does not run on one image and on two.*could not be looked"):
        GradCAM(net.double(), "relu2")(images, 1)


# No numbers, no logits


def broken():
    net = PooledNet()
    with torch.no_grad():
        net.conv2.weight[0] = float("nan")
    return net


def test_a_network_of_nan_is_named_not_the_images():
    images, net = torch.randn(3, 3, 24, 20), broken()
    with pytest.warns(
        UserWarning, match=r"'conv2\.weight' of PooledNet holds NaN or infinity.*the network, not the images"
    ) as said:
        assert not GroupCAM(net, "relu2", groups=4)(images).any()
        assert not GroupCAM(net, "relu2", groups=4)(images).any()
        found = measure_fidelity(net, images, layer="relu2", groups=4, repeats=0)
    assert len(said) == 1
    assert found.recommended == "" and "none, for no image has a map to compare" in str(found)


def test_images_of_nan_are_not_the_networks_fault(net, images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images[1] = float("nan")
        assert (GroupCAM(net, "relu2", groups=4)(images, 1).flatten(1).amax(1) > 0).tolist()[1] is False
        GroupCAM(net, "relu2", groups=4)(images[1:2], 1)


def test_overflow_is_named(net, images):
    net.fc.weight.data.mul_(1e308).mul_(10)
    net.fc.weight.data.clamp_(-1e308, 1e308)
    net.fc.register_forward_hook(lambda module, args, output: output * float("inf") * 0)
    with pytest.warns(UserWarning, match="parameters of PooledNet are finite, but its activations overflow"):
        GroupCAM(net, "relu2", groups=4)(images, 1)


def test_features_are_no_logits(net, images):
    net.num_classes = 0
    for targets in (None, 1):
        with pytest.raises(ValueError, match="PooledNet has num_classes=0: it returns features, not logits"):
            GradCAM(net, "relu2")(images, targets)
    assert GradCAM(net, "relu2")(images, lambda features: features[:, 1]).shape == (3, 24, 20)
    net.num_classes = 5
    GradCAM(net, "relu2")(images, 1)


# A forward that switches gradients


class Switching(PooledNet):
    """Sets gradients by itself, as modules for linear probes do."""

    def __init__(self, on):
        torch.manual_seed(1)
        super().__init__()
        self.on = on
        self.double()

    def forward(self, x):
        with torch.set_grad_enabled(self.on):
            x = self.relu2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
            x = self.pool(x).flatten(1)
            if self.on:
                return self.fc(x)
        return self.fc(x)


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("method", [lambda net, layer: GradCAM(net, layer), lambda net, layer: GroupCAM(net, layer, groups=4)])
@pytest.mark.parametrize("layer", ["relu2", "conv2", ["relu1", "relu2"]])
def test_maps_are_those_of_a_network_that_does_not_switch(images, on, method, layer):
    torch.manual_seed(1)
    plain = PooledNet().double()
    net = Switching(on)
    if isinstance(layer, list):
        if not isinstance(method(plain, "relu2"), GradCAM):
            return
        expected, found = (method(network, layer)(images, 1) for network in (plain, net))
    else:
        expected, found = [method(plain, layer)(images, 1)], [method(net, layer)(images, 1)]
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one)
        assert one.amax() > 0 and not other.requires_grad


@pytest.mark.parametrize(
    "run",
    [
        lambda net, x: GroupCAM(net, "relu2", groups=8).raw(x, 1),
        lambda net, x: GroupCAM(net, "relu2", groups=8, weights="none").raw(x, 1),
        lambda net, x: GroupCAM(net, "relu2", groups=8, weights="none", mask_at="relu1").raw(x, 1),
        lambda net, x: GroupCAM(net, "relu2", groups=8, weights="none", mask_at="target").raw(x, 1),
        lambda net, x: insertion_auc(net, x, torch.rand(3, 24, 20), 1, steps=8, chunk=3),
        lambda net, x: average_drop(net, x, torch.rand(3, 24, 20), 1).drop,
        lambda net, x: read_maps(GradCAM(net, "relu2"), x, None, "softmax", 14).score,
        lambda net, x: randomization_check(net, x, GroupCAM(net, "relu2", groups=4), stages=2).rho,
    ],
)
def test_no_graph_outlives_its_pass(images, run):
    """Graphs do not gather, however many passes there are; that of the gradient begins at its layer, behind the witness."""
    import gc
    import weakref

    net, graphs, most = Switching(True), [], []

    def count(*_):
        most.append(sum(graph() is not None for graph in graphs))

    class Witness:
        pass

    def witness(module, args, output):
        if output.grad_fn is not None:
            mark = Witness()
            output.grad_fn.metadata["witness"] = mark
            graphs.append(weakref.ref(mark))

    net.register_forward_pre_hook(count)
    net.conv1.register_forward_hook(witness)
    gc.disable()
    try:
        result = run(net, images)
    finally:
        gc.enable()
    assert not result.requires_grad and len(graphs) > 3
    assert max(most) == 0
