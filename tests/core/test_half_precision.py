"""`precision="bf16-mixed"`: maps of a float32 network by autocast, for the call alone, with weights as they are now."""

import pytest
import torch
from models import PooledNet, assert_same, snapshot

from groupcam_aug import GroupCAM, compiled
from groupcam_aug.borrow import half_precision

MODES = {"paper": {}, "fast": {"mask_at": "target", "baseline": "zero"}, "weights": {"weights": "gradient"}}
CPU = torch.device("cpu")


@pytest.fixture
def images():
    return torch.randn(4, 3, 24, 20, generator=torch.Generator().manual_seed(1))


def cam(net, **options):
    return GroupCAM.for_training(net, "relu2", groups=4, **options)


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_maps_are_those_of_a_call_under_autocast(images, options):
    torch.manual_seed(1)
    net = PooledNet().train()
    expected = cam(net, **options)(images, 1)
    before, seen = snapshot(net), []
    hook = net.conv1.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    found = cam(net, **options, precision="bf16-mixed")(images, 1)
    hook.remove()
    with torch.autocast("cpu", torch.bfloat16):
        same = cam(net, **options)(images, 1)
    assert found.dtype == torch.float32 and set(seen) == {torch.bfloat16}
    assert expected.amax() == 1 and torch.equal(found, same) and not torch.equal(found, expected)
    assert (found - expected).abs().mean() < 0.02  # of a random network
    assert_same(before, snapshot(net))


def test_weights_are_cast_once_a_call_and_anew_at_the_next(images):
    """Whatever changes them in between, and inside a training's own autocast, whose casts are of older weights."""
    torch.manual_seed(1)
    net, casts = PooledNet(), []
    network_of = {id(p) for p in net.parameters()}

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._to_copy.default and id(args[0]) in network_of:
                casts.append(function)
            return function(*args, **(kwargs or {}))

    method = cam(net, precision="bf16-mixed")
    method(images, 1)
    with torch.autocast("cpu", torch.bfloat16):
        net(images)  # its casts are kept until this block ends
        with torch.no_grad():
            net.conv1.weight.mul_(-1)
        with Watch():
            turned = method(images, 1)
        assert torch.equal(turned, cam(net, precision="bf16-mixed")(images, 1)), "not by the weights of before"
        net(images).float().sum().backward()
    assert len(casts) == len(network_of) - 2, "BatchNorm's weight and bias stay in float32; the others once, not once a pass"
    assert net.conv1.weight.grad.abs().sum() > 0, "the training step's casts have their graph"


def test_with_compiled_passes(images, monkeypatch):
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch.manual_seed(1)
    net = PooledNet()
    expected = cam(net, precision="bf16-mixed")(images, 1)
    quick = cam(net, precision="bf16-mixed", compile=True, chunk=4)
    torch.testing.assert_close(quick(images, 1), expected, rtol=0, atol=0.05)
    assert quick.compiled.graphs == 1 and not quick.compiled.refusal


def test_what_it_is_not_for(net, images):
    with pytest.raises(ValueError, match="precision='bf16-mixed' is for images and networks in float32, got torch.float64"):
        GroupCAM(net, precision="bf16-mixed")(images.double(), 1)
    with pytest.raises(ValueError, match="precision must be .* got '16-mixed'"):
        GroupCAM(net, precision="16-mixed")


@pytest.mark.parametrize("outer", [None, torch.float16, torch.bfloat16])
def test_autocast_is_as_before_behind_an_error(outer):
    with torch.autocast("cpu", outer or torch.bfloat16, enabled=outer is not None, cache_enabled=False):
        before = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled()
        with pytest.raises(KeyError), half_precision(CPU):
            assert torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
            raise KeyError
        assert before == (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu(images):
    torch.manual_seed(1)
    net, images = PooledNet().cuda(), images.cuda()
    found = cam(net, precision="bf16-mixed")(images, 1)
    with torch.autocast("cuda", torch.bfloat16):
        same = cam(net)(images, 1)
    assert found.is_cuda and found.amax() == 1
    torch.testing.assert_close(found, same, rtol=0, atol=1e-3)
    assert not torch.is_autocast_enabled("cuda")
