"""Masks on features: the identities that tie `mask_at` to the input form and to closed forms, and replays that equal passes."""

import copy

import pytest
import torch
from models import EchoNet, PooledNet
from torch import nn
from torch.nn import functional as F

from groupcam_aug import GroupCAM
from groupcam_aug.blur import blur
from groupcam_aug.borrow import as_found, capture
from groupcam_aug.map_ops import minmax
from groupcam_aug.partial_forward import Tail


def test_mask_at_an_identity_in_front_equals_mask_at_input(images):
    torch.manual_seed(0)
    net = nn.Sequential()
    net.front, net.rest = nn.Identity(), PooledNet().double()
    for options in ({}, {"weights": "none", "denoise": None}, {"variant": "head"}):
        at_input = GroupCAM(net, "rest.relu2", groups=4, **options)(images, 3)
        at_front = GroupCAM(net, "rest.relu2", groups=4, mask_at="front", **options)(images, 3)
        torch.testing.assert_close(at_front, at_input, rtol=0, atol=1e-5)
        assert at_input.max() == 1


@pytest.mark.parametrize("weights", ["none", "gradient"])
def test_masks_at_the_target_have_a_closed_form_for_a_pooled_linear_head(net, images, weights):
    net.eval()
    target, groups = 2, 4

    def features(x):
        return F.relu(net.conv2(net.relu1(net.bn1(net.conv1(x)))))

    def p(A):
        return net.fc(A.mean(dim=(2, 3))).softmax(1)[:, target]

    with torch.no_grad():
        A, B = features(images), features(blur(images))
        w = net.fc.weight[target] / (A.shape[2] * A.shape[3]) if weights == "gradient" else torch.ones(8, dtype=A.dtype)
        total = torch.zeros(3, 24, 20, dtype=A.dtype)
        for k in range(groups):
            M = (w[2 * k : 2 * k + 2, None, None] * A[:, 2 * k : 2 * k + 2]).sum(1, keepdim=True).relu()
            small, large = minmax(M), minmax(F.interpolate(M, (24, 20), mode="bilinear"))[:, 0]
            alpha = p(A * small + B * (1 - small)) - p(B)
            total += torch.where(large.amax(dim=(1, 2)) > 0, alpha, 0)[:, None, None] * large
        expected = minmax(total.relu())
    cam = GroupCAM(net, "relu2", groups=groups, weights=weights, denoise=None, mask_at="target")
    torch.testing.assert_close(cam(images, target), expected)


def test_mask_at_a_layer_resizes_the_mask_with_antialiasing(net, images):
    net.eval()
    with torch.no_grad():
        full = GroupCAM(net, "relu2", groups=1, weights="none", denoise=None)
        M = net.relu2(net.conv2(net.relu1(net.bn1(net.conv1(images))))).sum(1, keepdim=True)
        large = minmax(F.interpolate(M, (24, 20), mode="bilinear"))
        small = F.interpolate(large, (12, 10), mode="bilinear", antialias=True)
        first, rest = nn.Sequential(net.conv1, net.bn1, net.relu1), nn.Sequential(net.conv2, net.relu2)
        p = lambda a: net.fc(rest(a).mean(dim=(2, 3))).softmax(1)[:, 1]  # noqa: E731
        F_x, F_b = first(images), first(blur(images))
        alpha = p(F_x * small + F_b * (1 - small)) - p(F_b)
        expected = minmax((alpha[:, None, None] * large[:, 0]).relu())
    cam = GroupCAM(net, "relu2", groups=1, weights="none", denoise=None, mask_at="relu1")
    torch.testing.assert_close(cam(images, 1), expected)
    assert full.mask_at == "input"


def test_a_head_that_starts_at_zero_does_not_make_any_pooling_a_mean(images):
    torch.manual_seed(0)
    net = nn.Sequential()
    net.conv, net.act, net.pool = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1)
    net.flat, net.fc = nn.Flatten(), nn.Linear(8, 4)
    net.double().eval()
    nn.init.zeros_(net.fc.weight)
    nn.init.zeros_(net.fc.bias)
    cam = GroupCAM.for_training(net, "act", groups=4, mask_at="target")
    assert not cam(images, 1).any()
    nn.init.normal_(net.fc.weight)
    fresh = GroupCAM.for_training(net, "act", groups=4, mask_at="target")
    maps = [cam(images, label) for label in range(4)]
    assert any(found.any() for found in maps)
    for label, found in enumerate(maps):
        torch.testing.assert_close(found, fresh(images, label))


class Power(nn.Module):
    """A generalised mean, which starts as the mean."""

    def __init__(self):
        super().__init__()
        self.power = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return (x.clamp(min=1e-6) ** self.power).mean(dim=(2, 3), keepdim=True) ** (1 / self.power)


class Pooling(nn.Module):
    """One that is chosen by a word."""

    def __init__(self):
        super().__init__()
        self.kind = "mean"

    def forward(self, x):
        return x.mean(dim=(2, 3), keepdim=True) if self.kind == "mean" else x.amax(dim=(2, 3), keepdim=True)


EXCHANGES = {
    "module": (nn.AdaptiveAvgPool2d(1), lambda net: setattr(net, "pool", nn.AdaptiveMaxPool2d(1))),
    "word": (Pooling(), lambda net: setattr(net.pool, "kind", "max")),
    "learned": (Power(), lambda net: nn.init.constant_(net.pool.power, 3.0)),
}


@pytest.mark.parametrize(
    ("how", "looked_at"), [("module", True), ("word", True), ("learned", True), ("module", False), ("word", False)]
)
def test_a_pooling_that_is_exchanged_after_the_first_call_is_noticed(images, how, looked_at, monkeypatch):
    torch.manual_seed(0)
    pooling, exchange = EXCHANGES[how]
    net = PooledNet().double().eval()
    net.pool = copy.deepcopy(pooling)
    cam = GroupCAM.for_training(net, "relu2", groups=4, mask_at="target")
    before = [cam(images, label) for label in range(5)]
    assert cam._tails == {"relu2": "pooled"}
    exchange(net)
    if not looked_at:  # as on an accelerator between two epochs: what is built otherwise is noticed there, too
        monkeypatch.setattr(Tail, "still_pooled", lambda *_: True)
    after = [cam(images, label) for label in range(5)]
    fresh = GroupCAM.for_training(net, "relu2", groups=4, mask_at="target")
    torch.testing.assert_close(after, [fresh(images, label) for label in range(5)])
    assert cam._tails == {"relu2": "alone"} and (torch.stack(after) - torch.stack(before)).abs().max() > 0.05


def test_modules_that_return_no_tensor_are_passed_over(images):
    class Log(nn.Module):
        def forward(self, x):
            return None

    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())

    class Logged(nn.Module):
        def __init__(self):
            super().__init__()
            self.log, self.body, self.fc = Log(), net, nn.Linear(8, 4)

        def forward(self, x):
            self.log(x)
            return self.fc(self.body(x).mean(dim=(2, 3)))

    torch.manual_seed(0)
    cam = GroupCAM.for_training(Logged().double().eval(), "body.1", groups=4, mask_at="target")
    assert torch.equal(cam(images, 1), cam(images, 1))


class Residual(nn.Module):
    """Siblings before and behind the target, a shared activation, a functional step, a skip, an in-place addition."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.act = nn.ReLU()
        self.inner = nn.ModuleDict({"a": nn.Conv2d(6, 6, 3, padding=1), "b": nn.Conv2d(6, 6, 3, padding=1)})
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 4)
        self.calls = []

    def forward(self, x):
        self.calls.append("stem")
        x = self.act(self.stem(x)) + 1
        y = self.act(self.inner["a"](x))
        y = self.inner["b"](y)
        y += x
        y = self.act(self.norm(y))
        return self.fc(y.mean(dim=(2, 3)))


@pytest.mark.parametrize("name, kind", [("stem", "alone"), ("inner.a", "recorded"), ("inner.b", "recorded"), ("norm", "alone")])
def test_replay_equals_a_pass_with_the_output_swapped(name, kind):
    torch.manual_seed(0)
    net = Residual().double().eval()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    tail = Tail(net, name, net)
    with as_found(net):
        with tail.recording(), capture(net.get_submodule(name), name) as seen:
            logits = net(images)
        torch.testing.assert_close(tail.run(images, seen.one()), logits, rtol=0, atol=0)
        other = torch.randn_like(seen.one())
        assert tail.check(images, seen.one(), logits, other, grid=True) == kind
        handle = net.get_submodule(name).register_forward_hook(lambda *_: other.clone())
        expected = net(images)
        handle.remove()
        torch.testing.assert_close(tail.run(images, other), expected, rtol=0, atol=0)
        assert not torch.allclose(expected, logits)
    assert "forward" not in vars(net.inner["a"]) and "forward" not in vars(net.stem)


def test_replay_does_not_run_what_stands_in_front():
    net = PooledNet().eval()
    runs = []
    net.conv1.register_forward_pre_hook(lambda *_: runs.append(1))
    real = net.conv1.forward
    net.conv1.forward = lambda x: runs.append("real") or real(x)
    cam = GroupCAM(net, "relu2", groups=4, mask_at="target")
    cam(torch.randn(2, 3, 16, 16), 1)  # the first call looks at the network
    runs.clear()
    cam(torch.randn(2, 3, 16, 16), 1)
    runs.clear()  # of the first call, which looks for the grid
    cam(torch.randn(2, 3, 16, 16), 1)
    assert runs.count("real") == 2, "once for x and once for blur(x), however many groups"
    assert net.conv1.forward is not real and "forward" in vars(net.conv1), "the user's own override is back"


def test_a_network_that_cannot_be_split_says_so():
    class Forgetful(PooledNet):
        """Counts its passes, so that a replay is not the pass that was recorded."""

        passes = 0

        def forward(self, x):
            self.passes += 1
            return super().forward(x) * self.passes

    with pytest.raises(RuntimeError, match="cannot be run from layer 'relu1' on.*Mask at the input: no late layer"):
        GroupCAM(Forgetful().eval(), "relu2", groups=4, mask_at="relu1")(torch.randn(2, 3, 16, 16), 1)


def test_the_layers_that_work_are_named():
    class Drifting(nn.Module):
        """Different at each pass, up to its end."""

        passes = 0

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            self.passes += 1
            return self.conv(x) * self.passes

    net = nn.Sequential()
    net.front, net.rest = (
        Drifting(),
        nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
    )
    with pytest.raises(RuntimeError, match=r"from layer 'front.conv' on.*one of \['front', 'rest.0', 'rest.1'\]"):
        GroupCAM(net.eval(), "rest.1", groups=4, mask_at="front.conv")(torch.randn(2, 3, 16, 16), 1)


@pytest.mark.parametrize("place", ["input", "relu1", "relu2"])
def test_zero_baseline_by_hand(net, images, place):
    """Masked pixels or features become zero, and the gain is over the network's answer to nothing at all."""
    net.eval()
    with torch.no_grad():
        first, rest = nn.Sequential(net.conv1, net.bn1, net.relu1), nn.Sequential(net.conv2, net.relu2)
        parts = {"input": [], "relu1": [first], "relu2": [first, rest]}[place]
        front = nn.Sequential(*parts)
        behind = nn.Sequential(*[part for part in (first, rest) if part not in parts])
        p = lambda a: net.fc(behind(a).mean(dim=(2, 3))).softmax(1)[:, 1]  # noqa: E731
        A, kept, total = rest(first(images)), front(images), 0
        for M in (A[:, :4].sum(1, keepdim=True), A[:, 4:].sum(1, keepdim=True)):
            large = minmax(F.interpolate(M, (24, 20), mode="bilinear"))
            small = {"input": large, "relu2": minmax(M)}.get(
                place, F.interpolate(large, kept.shape[-2:], mode="bilinear", antialias=True)
            )
            alpha = p(kept * small) - p(torch.zeros_like(kept))
            total = total + alpha[:, None, None] * large[:, 0]
        expected = minmax(total.relu())
    cam = GroupCAM(net, "relu2", groups=2, weights="none", denoise=None, baseline="zero", mask_at=place)
    torch.testing.assert_close(cam(images, 1), expected)


class Picky(PooledNet):
    """Works behind its target on so many rows, and on grids, only."""

    def __init__(self, error, rows=None, cells=2):
        super().__init__()
        self.error, self.rows, self.cells = error, rows, cells
        self.pool.register_forward_pre_hook(self.look)

    def look(self, _, args):
        if (self.rows and len(args[0]) > self.rows) or args[0][0, 0].numel() < self.cells:
            raise self.error


class OfAnotherLibrary(Exception):
    pass


@pytest.mark.parametrize(
    "options, kind, told",
    [
        ({"rows": 2}, "recorded", "does not run on blanks: OfAnotherLibrary('no such shape')"),
        ({}, "alone", "does not run on averages: OfAnotherLibrary('no such shape')"),
        ({"cells": 0}, "pooled", None),
    ],
)
def test_a_shortcut_that_is_not_taken_is_logged_with_its_reason(caplog, options, kind, told):
    torch.manual_seed(0)
    net, images = Picky(OfAnotherLibrary("no such shape"), **options).eval(), torch.randn(2, 3, 16, 16)
    cam = GroupCAM.for_training(net, "relu2", groups=4, mask_at="target")
    with caplog.at_level("DEBUG", "groupcam_aug.partial_forward"):
        cam(images, 1)
    assert cam._tails == {"relu2": kind}
    assert caplog.messages == ([f"layer 'relu2': what follows it {told}"] if told else [])
    caplog.clear()
    with caplog.at_level("DEBUG", "groupcam_aug.partial_forward"):
        cam(images, 1)
    assert not caplog.messages, "settled at the first call"


def test_other_logits_are_logged(caplog):
    net = nn.Sequential()
    net.conv, net.act, net.pool = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1)
    net.flat, net.fc = nn.Flatten(), nn.Linear(8, 4)
    cam = GroupCAM.for_training(net.eval(), "act", groups=4, mask_at="target")
    with caplog.at_level("DEBUG", "groupcam_aug.partial_forward"):
        cam(torch.randn(2, 3, 16, 16), 1)
    assert caplog.messages == ["layer 'act': what follows it gives other logits on averages"] and cam._tails == {"act": "alone"}


@pytest.mark.parametrize("call", [3, 5])  # passes of x and blur(x); replays of both; blanks
def test_out_of_memory_is_no_word_on_the_network(call):
    """Neither "cannot be split here" nor "works on no blanks": everything again in smaller passes."""
    torch.manual_seed(0)
    net, images, calls = PooledNet().eval(), torch.randn(4, 3, 16, 16), []
    expected = GroupCAM.for_training(net, "relu2", groups=2, mask_at="target", chunk=4)(images, 1)

    def short(*_):
        calls.append(1)
        if len(calls) == call:
            raise torch.OutOfMemoryError("out of memory")

    net.pool.register_forward_pre_hook(short)
    cam = GroupCAM.for_training(net, "relu2", groups=2, mask_at="target", chunk=4)
    with pytest.warns(UserWarning, match="at most 2 per forward pass"):
        torch.testing.assert_close(cam(images, 1), expected)
    assert cam._tails == {"relu2": "pooled"}


def test_shared_target_is_refused():
    net = Residual().eval()
    with pytest.raises(RuntimeError, match="'act' fired 3 times"):
        GroupCAM(net, "norm", groups=2, mask_at="act")(torch.randn(2, 3, 8, 8), 1)


def test_baseline_is_the_tail_on_blurred_features():
    """With every mask zero but one pixel, the gain at a mask of zeros is exactly zero: nothing is credited to the blur."""
    net = EchoNet().double()
    flat = torch.full((1, 2, 8, 8), 0.5, dtype=torch.float64)
    assert (GroupCAM.for_training(net, "body", groups=2, mask_at="features")(flat, 0) == 0).all()
