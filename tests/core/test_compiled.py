"""Scoring passes through torch.compile: the same maps, few graphs, the network given back, eager where it cannot be."""

import copy
import shutil
import threading
import warnings

import pytest
import torch
import torch._dynamo
from models import PooledNet
from torch import nn
from torch._dynamo import eval_frame

from groupcam_aug import GroupCAM, compiled
from groupcam_aug.borrow import as_found, compiled_code
from groupcam_aug.callbacks import GroupCAMAugmentation
from groupcam_aug.compiled import CompiledForward, rows_of_a_pass
from groupcam_aug.cost import cost_in_forwards, count_flops


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """Graphs are traced as ever, but run by torch's own operations, which takes no C++ compiler."""
    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "BACKEND", "inductor" if "slow" in request.keywords else "aot_eager")
    yield
    torch._dynamo.reset()


def pictures(count, size=24):
    return torch.randn(count, 3, size, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(count))


def pair(net, **options):
    return GroupCAM.for_training(net, groups=4, **options), GroupCAM.for_training(net, groups=4, compile=True, **options)


@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
@pytest.mark.parametrize("baseline", ["blur", "zero"])
def test_maps_are_those_of_eager_passes(net, chunk, baseline):
    eager, quick = pair(net, chunk=chunk, baseline=baseline)
    for count in (3, 1, 5):
        torch.testing.assert_close(quick(pictures(count), 1), eager(pictures(count), 1), rtol=0, atol=1e-12)
    assert quick.compiled.graphs >= 1 and not quick.compiled.refusal and quick.compiled.seconds > 0
    assert quick(pictures(3), 1).amax() == 1, "a map that could be another"


def test_every_pass_has_the_same_number_of_images(net):
    _, quick = pair(net, chunk=7)
    seen = []
    quick.compiled._call, quick.compiled.graphs = lambda images: seen.append(len(images)) or quick.forward(images), 1
    quick(pictures(5), 1)  # 5 blurred and 4 x 5 masked images
    quick(pictures(4), 1)
    assert seen == [7] * 4 + [7] * 3


def test_training_steps_and_other_batches_compile_nothing_again(net):
    """The weights move, modes change, BatchNorm's statistics too, and the number of drawn images: one graph."""
    net = nn.Sequential(nn.BatchNorm2d(3, dtype=torch.float64), net)
    eager, quick = pair(net, chunk=4)
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    for count in (3, 2, 5, 4):
        net.train()
        images = pictures(count)
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(images), torch.arange(count) % 3).backward()
        optimiser.step()
        torch.testing.assert_close(quick(images, 1), eager(images, 1), rtol=0, atol=1e-12)
        assert net.training and net[0].training
    assert quick.compiled.graphs == 1, quick.compiled.summary()
    assert quick.compiled.summary().startswith("scoring passes compiled in") and quick.compiled.summary().endswith("1 graph")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_all_passes_have_one_memory_format(net, layout):
    """A blurred batch comes in the usual one, masked images in that of the images."""
    eager, quick = pair(net, chunk=4)
    images = pictures(4).contiguous(memory_format=layout)
    torch.testing.assert_close(quick(images, 1), eager(images, 1), rtol=0, atol=1e-12)
    assert quick.compiled.graphs == 1


def test_another_size_of_images_is_another_graph(net):
    _, quick = pair(net, chunk=4)
    for size in (24, 32, 24, 32):
        quick(pictures(4, size), 1)
    assert quick.compiled.graphs == 2 and quick.compiled.summary().endswith("2 graphs")


def test_nothing_is_left_behind(net):
    """Hooks, buffers, torch.compile's setting."""
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    GroupCAM.for_training(net, groups=4, compile=True)(pictures(3), 1)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules()) and net.training
    assert eval_frame._stance.stance == "default"


def test_compiled_code_runs_as_such_only_inside_its_block(net):
    net.train()
    with as_found(net):
        assert eval_frame._stance.stance == "force_eager"
        watched = [module for module in net.modules() if module._forward_pre_hooks]
        with pytest.raises(KeyError), compiled_code(net):
            assert eval_frame._stance.stance == "default" and not watched[0]._forward_pre_hooks
            raise KeyError
        assert eval_frame._stance.stance == "force_eager" and len(watched[0]._forward_pre_hooks) == 1
    assert eval_frame._stance.stance == "default"


def test_a_thread_that_trains_meanwhile_is_still_noticed(net):
    """The hook that looks for it stands aside during compiled passes only."""
    net.train()
    ran = []

    def observe(images):
        if not ran and threading.current_thread() is threading.main_thread():
            ran.append(threading.Thread(target=net, args=(images,)))
            ran[0].start()
            ran[0].join(timeout=60)
        return images

    with pytest.warns(UserWarning, match="ran PooledNet while thread"):
        GroupCAM.for_training(net, "relu2", groups=4, preprocess=observe, compile=True)(pictures(2), 1)


class Refuses(PooledNet):
    """Its author keeps torch.compile out of it: it is left as it is, without a word."""

    @torch.compiler.disable
    def forward(self, x):
        return super().forward(x)


def test_where_nothing_is_compiled_passes_are_eager_with_one_warning():
    torch.manual_seed(1)
    net = Refuses().double()
    eager, quick = pair(net)
    with pytest.warns(UserWarning, match="compile=True has no effect: Refuses runs eagerly.*nothing to compile") as told:
        maps = quick(pictures(3), 1)
    assert len(told) == 1
    torch.testing.assert_close(maps, eager(pictures(3), 1), rtol=0, atol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick(pictures(3), 1)
    assert quick.compiled.summary() == "scoring passes are eager, for compiling failed" and not quick.compiled.graphs


def test_a_missing_cpp_compiler_is_no_end(net, monkeypatch):
    def missing(graph, inputs):
        raise torch._inductor.exc.InvalidCxxCompiler

    monkeypatch.setattr(compiled, "BACKEND", missing)
    eager, quick = pair(net)
    with pytest.warns(UserWarning, match="InvalidCxxCompiler"):
        maps = quick(pictures(3), 1)
    assert torch.equal(maps, eager(pictures(3), 1))


def test_networks_do_not_use_up_each_others_graphs():
    """torch.compile runs code eagerly, in silence, once it has been compiled eight times."""
    for seed in range(torch._dynamo.config.recompile_limit + 2):
        torch.manual_seed(seed)
        _, quick = pair(PooledNet().double(), chunk=4)
        quick(pictures(4), 1)
        assert quick.compiled.graphs == 1


def test_two_methods_on_one_network_compile_each_for_themselves(net):
    (_, first), (_, second) = pair(net, chunk=4), pair(net, chunk=4)
    torch.testing.assert_close(first(pictures(4), 1), second(pictures(4), 1), rtol=0, atol=1e-12)
    assert first.compiled.graphs == second.compiled.graphs == 1


def test_an_error_of_the_network_is_the_users_and_memory_is_halved(net):
    def breaks(images):
        raise LookupError("of the network")

    with pytest.raises(LookupError, match="of the network"):
        CompiledForward(net, breaks)(pictures(2))
    _, quick = pair(net, chunk=8)
    sizes = []

    def short(images):
        sizes.append(len(images))
        if len(images) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return quick.forward(images)

    quick.compiled._call, quick.compiled.graphs = short, 1
    with pytest.warns(UserWarning, match="at most 4 per forward pass"):
        maps = quick(pictures(3), 1)
    assert sizes[0] == 8 and set(sizes[1:]) == {4} and maps.amax() == 1


def test_copies_and_pickles_start_anew(net):
    _, quick = pair(net)
    maps = quick(pictures(3), 1)
    again = copy.deepcopy(quick)
    assert again.compiled.graphs == 0 and again.compiled.network is again.network is not net
    torch.testing.assert_close(again(pictures(3), 1), maps, rtol=0, atol=1e-12)


def test_what_is_counted_runs_eagerly_and_is_no_word_on_compiling(net):
    eager, quick = pair(net)
    for method in (quick, eager):
        assert count_flops(lambda: method(pictures(3), 1)) > 0
    assert quick.compiled.graphs == 0 and not quick.compiled.refusal
    quick(pictures(3), 1)
    graphs = quick.compiled.graphs
    assert graphs > 0
    assert cost_in_forwards(quick, pictures(3)) == pytest.approx(cost_in_forwards(eager, pictures(3)), rel=0.1)
    assert quick.compiled.graphs == graphs


def test_callbacks_refuse_it_with_their_default_preset():
    with pytest.raises(ValueError, match="compile=True is for masks on the input.*'fast'"):
        GroupCAMAugmentation(compile=True)


@pytest.mark.parametrize("place", ["target", "stage", "relu2"])
def test_masks_elsewhere_have_no_such_passes(net, place):
    with pytest.raises(ValueError, match=f"compile=True is for masks on the input.*mask_at='{place}'"):
        GroupCAM(net, "relu2", groups=4, mask_at=place, compile=True)


@pytest.mark.parametrize(
    ("most", "images", "rows"),
    [
        (7, 85, 7),
        (7, 4, 7),  # not 3: too few
        (7, 3, 3),
        (64, 17, 32),
        (64, 1000, 64),
        (100, 1000, 64),
        (256, 200, 256),
        (200, 2000, 128),
        (1, 5, 1),
    ],
)
def test_rows_of_a_pass(most, images, rows):
    assert rows_of_a_pass(most, images) == rows and (rows < 2 * images or rows == 1)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small"])
def test_the_real_compiler_on_real_networks(name):
    """Maps of float32 images within 2e-4 of the eager ones, through a step of training, without a second graph."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    net = torchvision.models.get_model(name, num_classes=10)
    images = torch.randn(5, 3, 96, 96).to(memory_format=torch.channels_last)
    eager, quick = GroupCAM.for_training(net), GroupCAM.for_training(net, compile=True)
    for _ in range(2):
        torch.testing.assert_close(quick(images), eager(images), rtol=0, atol=2e-4)
        nn.functional.cross_entropy(net(images), torch.arange(5)).backward()
        torch.optim.SGD(net.parameters(), 1e-3).step()
    assert quick.compiled.graphs == 1 and not quick.compiled.refusal
