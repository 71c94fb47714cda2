"""Threads that share a network: maps as if each were alone, other passes untouched, training ones warned."""

import copy
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from models import PooledNet, assert_same, snapshot
from torch import nn

from groupcam_aug import GradCAM, GroupCAM, guided_grad_cam, threads
from groupcam_aug.borrow import as_found, capture
from groupcam_aug.partial_forward import Tail
from groupcam_aug.sanity import randomized
from groupcam_aug.threads import by_this_thread, one_thread

METHODS = {
    "Group-CAM": lambda net: GroupCAM(net, "relu2", groups=4),
    "Group-CAM at the target": lambda net: GroupCAM.for_training(net, "relu2", groups=4, mask_at="target"),
    "Group-CAM at a layer": lambda net: GroupCAM(net, "relu2", groups=4, mask_at="relu1"),
    "Grad-CAM": lambda net: GradCAM(net, "relu2"),
    "Guided Grad-CAM": lambda net: lambda images, targets: guided_grad_cam(net, images, targets, "relu2"),
}


def in_threads(*works):
    """Run all at once, each in a thread; their results, errors raised."""
    start = threading.Barrier(len(works))

    def run(work):
        start.wait(timeout=30)
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result(timeout=120) for future in [pool.submit(run, work) for work in works]]


def check_maps_of_threads(method, rounds, threads=3, shared=False):
    torch.manual_seed(0)
    net = PooledNet().train()
    batches = torch.randn(threads, 4, 3, 24, 20)
    expected = [METHODS[method](net)(images, 1) for images in batches]
    before = snapshot(net)
    same = METHODS[method](net)

    def work(images):
        cam = same if shared else METHODS[method](net)
        return lambda: [cam(images, 1) for _ in range(rounds)]

    for maps, right in zip(in_threads(*map(work, batches)), expected, strict=True):
        for each in maps:
            torch.testing.assert_close(each, right, rtol=0, atol=1e-6)
    assert_same(before, snapshot(net))


@pytest.mark.parametrize("method", METHODS)
def test_threads_that_map_one_network_get_the_maps_they_get_alone(method):
    check_maps_of_threads(method, rounds=5)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_many_threads_and_rounds(method, shared):
    check_maps_of_threads(method, rounds=40, threads=6, shared=shared)


@pytest.mark.parametrize("method", METHODS)
def test_a_thread_that_predicts_meanwhile_gets_its_logits(method, rounds=30):
    torch.manual_seed(0)
    net, images, mine = PooledNet().eval(), torch.randn(4, 3, 24, 20), torch.randn(3, 3, 24, 20)
    cam, done = METHODS[method](net), threading.Event()
    with torch.no_grad():
        expected, right = cam(images, 1), net(mine)

    def explain():
        try:
            return [cam(images, 1) for _ in range(rounds)]
        finally:
            done.set()

    def predict():
        with torch.no_grad():
            logits = [net(mine)]
            while not done.is_set():
                logits.append(net(mine))
        return logits

    maps, logits = in_threads(explain, predict)
    assert all(torch.equal(each, right) for each in logits)
    for each in maps:
        torch.testing.assert_close(each, expected, rtol=0, atol=1e-6)


def elsewhere(work, name="another"):
    """The result of `work` in a thread of that name."""
    results = []
    thread = threading.Thread(target=lambda: results.append(work()), name=name)
    thread.start()
    thread.join(timeout=60)
    return results[0]


def test_a_replay_answers_its_thread_alone():
    net, images = PooledNet().eval(), torch.randn(2, 3, 24, 20)
    with torch.no_grad():
        right, tail = net(images), Tail(net, "relu1", net)
        with tail.recording(), capture(net.relu1) as seen:
            elsewhere(lambda: net(images[:1]))
            net(images)
        assert [len(outputs) for outputs in tail.record.values()] == [1] * len(tail.record) and len(seen.one()) == 2
        others, main = [], threading.current_thread()

        def predict():
            with torch.no_grad():
                return net(images)

        def before(*_):
            if threading.current_thread() is main:
                others.append(elsewhere(predict))

        net.register_forward_pre_hook(before)
        replayed = tail.run(images, torch.zeros_like(seen.one()))
    assert torch.equal(others[0], right) and not torch.equal(replayed, right)


def test_a_thread_that_trains_meanwhile_is_warned_once_by_name():
    net, images = PooledNet().train(), torch.randn(2, 3, 24, 20)
    with as_found(net), pytest.warns(UserWarning, match="thread 'another' ran PooledNet while thread 'MainThread' was") as caught:
        elsewhere(lambda: [net(images), net(images)])
        net(images)
    assert len(caught) == 1 and not net.conv1._forward_pre_hooks
    net.eval()
    with warnings.catch_warnings(), as_found(net):
        warnings.simplefilter("error")
        elsewhere(lambda: net(images))  # in evaluation mode anyway: nothing to warn of


def test_a_layer_that_only_another_thread_runs_is_said_so():
    class Apart(PooledNet):
        def forward(self, x):
            return elsewhere(lambda: super(Apart, self).forward(x), "worker")

    net, images = Apart().eval(), torch.randn(2, 3, 24, 20)
    with pytest.raises(RuntimeError, match="layer 'relu2' ran in thread 'worker' only"):
        GradCAM(net, "relu2")(images, 1)
    with capture(net.relu2, "relu2") as seen:
        net(images)
    with pytest.raises(RuntimeError, match="layer 'relu2' ran in thread 'worker' only"):
        seen.one()


def test_checkpointed_layers_that_autograd_runs_again_are_no_other_thread():
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(PooledNet):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guided_grad_cam(Checkpointed().train(), torch.randn(2, 3, 24, 20), 1, "relu2")


def enters(network, within=0.2):
    """Whether another thread gets in with the network; it leaves again at once, or as soon as it can."""
    inside = threading.Event()

    def work():
        with one_thread(network):
            inside.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return inside.wait(timeout=within)


def test_one_thread_at_a_time_with_whatever_shares_a_module():
    """The network, a module around it that has weights in front, a part of it behind; not a copy, nor a free part."""
    net = PooledNet()
    around = nn.ModuleDict({"centres": nn.Linear(2, 2), "net": net})
    with one_thread(around), one_thread(net), one_thread(net.bn1):  # re-entrant
        assert enters(copy.deepcopy(net), within=30) and enters(nn.Linear(2, 2), within=30) and enters(nn.ReLU(), within=30)
        assert not enters(around) and not enters(net) and not enters(net.bn1) and not enters(around["centres"])
        with randomized(net):
            assert not enters(net), "whatever stands in for the parameters"
    assert all(enters(part, within=30) for part in (around, net, net.bn1, around["centres"]))
    with one_thread(net.bn1):
        assert not enters(net) and enters(net.conv1, within=30)
    assert not threads._borrowed


class Around(nn.Module):
    """A network behind a layer that comes first in the order of modules."""

    def __init__(self):
        super().__init__()
        self.centres, self.net = nn.Linear(5, 5), PooledNet()

    def forward(self, x):
        return self.centres(self.net(x))


def test_a_module_and_the_network_inside_it_are_given_back_by_two_threads():
    around = Around().train()
    images = torch.randn(4, 3, 24, 20)
    before = snapshot(around)
    methods = GroupCAM(around, "net.relu2", groups=4), GroupCAM(around.net, "relu2", groups=4)
    in_threads(*(lambda cam=cam: [cam(images, 1) for _ in range(20)] for cam in methods))
    assert_same(before, snapshot(around))
    assert all(module.training for module in around.modules())


def test_maps_wait_for_a_network_that_is_randomised():
    net, images = PooledNet().eval(), torch.randn(2, 3, 24, 20)
    cam = GradCAM(net, "relu2")
    expected, results = cam(images, 1), []
    thread = threading.Thread(target=lambda: results.append(cam(images, 1)))
    with randomized(net):
        thread.start()
        thread.join(timeout=0.2)
        assert not results
    thread.join(timeout=60)
    assert torch.equal(results[0], expected)


def test_compiled_code_is_eager_until_the_last_of_two_threads_is_done():
    from torch._dynamo import eval_frame

    before, inside, end = eval_frame._stance, threading.Event(), threading.Event()

    def second():
        with as_found(PooledNet()):
            inside.set()
            end.wait(timeout=60)

    thread = threading.Thread(target=second)
    with as_found(PooledNet()):
        thread.start()
        inside.wait(timeout=60)
    assert eval_frame._stance.stance == "force_eager"
    end.set()
    thread.join(timeout=60)
    assert eval_frame._stance == before


def test_by_this_thread():
    mine = by_this_thread()
    assert mine() and not elsewhere(mine)
