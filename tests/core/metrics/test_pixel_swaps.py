"""The order, the number and the cost of swapped pixels."""

import pytest
import torch

from groupcam_aug.metrics.insertion_deletion import insertion_auc, insertion_deletion


@pytest.mark.parametrize("chunk", [1, 2, 7, 64])
def test_chunk_batch_and_layout_do_not_matter(net, images, chunk):
    maps = torch.rand(3, 24, 20, generator=torch.Generator().manual_seed(0))
    expected = insertion_deletion(net, images, maps, 1, steps=6)
    for form in (images, images.to(memory_format=torch.channels_last), images.transpose(2, 3).contiguous().transpose(2, 3)):
        seen = insertion_deletion(net, form, maps, 1, steps=6, chunk=chunk)
        torch.testing.assert_close(seen.insertion, expected.insertion)
        torch.testing.assert_close(seen.deletion, expected.deletion)
    alone = torch.cat([insertion_auc(net, images[i : i + 1], maps[i : i + 1], 1, steps=6, chunk=chunk) for i in range(3)])
    torch.testing.assert_close(alone, expected.insertion_auc)
    torch.testing.assert_close(insertion_auc(net, images.flip(0), maps.flip(0), 1, steps=6).flip(0), expected.insertion_auc)


def test_only_the_order_counts_and_ties_are_settled(net, images):
    maps = torch.rand(3, 24, 20, generator=torch.Generator().manual_seed(0))
    expected = insertion_auc(net, images, maps, 1)
    torch.testing.assert_close(insertion_auc(net, images, 5 * maps.exp() - 100, 1), expected)
    binary = maps.round()
    settled = binary + torch.linspace(0, -0.1, 480).view(24, 20)  # raster order among equals
    torch.testing.assert_close(insertion_auc(net, images, binary, 1), insertion_auc(net, images, settled, 1))


def test_more_steps_approach_a_limit(net, images):
    maps = torch.rand(3, 24, 20, generator=torch.Generator().manual_seed(0))
    limit = insertion_auc(net, images, maps, 1, steps=480)
    errors = [(insertion_auc(net, images, maps, 1, steps=steps) - limit).abs().max().item() for steps in (3, 12, 60)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-3, errors
    quadratic = insertion_deletion(net, images, maps, 1, steps=4, spacing="quadratic").fractions
    torch.testing.assert_close(quadratic, torch.tensor([0, 30, 120, 270, 480], dtype=torch.float64) / 480)


def test_undefined_maps_are_marked(net, images):
    maps = torch.rand(3, 24, 20, generator=torch.Generator().manual_seed(0)).double()
    expected = insertion_deletion(net, images, maps, 1, steps=4)
    maps[0], maps[2, 0, 0] = 0.7, float("nan")
    seen = insertion_deletion(net, images, maps, 1, steps=4)
    assert seen.undefined.tolist() == [True, False, True]
    assert seen.insertion_auc.isnan().tolist() == seen.deletion[:, 0].isnan().tolist() == [True, False, True]
    torch.testing.assert_close(seen.insertion[1], expected.insertion[1])
    broken = images.clone()
    broken[1, 0, 0, 0] = float("nan")
    assert insertion_deletion(net, broken, maps, 1, steps=4).undefined.tolist() == [True, True, True]
    none = insertion_deletion(net, images[:0], maps[:0], steps=4)
    assert none.insertion.shape == (0, 5) and none.insertion_auc.shape == (0,)


class Count(torch.utils._python_dispatch.TorchDispatchMode):
    """How often the device would be waited for."""

    def __init__(self):
        super().__init__()
        self.waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.waits += func._overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal)
        return func(*args, **(kwargs or {}))


def test_no_wait_and_no_memory_per_step(net, images):
    from memory import Bytes

    maps, waits, peaks = torch.rand(3, 24, 20), [], []
    for steps in (8, 64):
        insertion_deletion(net, images, maps, 1, steps=steps, chunk=4)
        with Count() as count:
            insertion_deletion(net, images, maps, 1, steps=steps, chunk=4)
        waits.append(count.waits)
        with Bytes() as memory:
            insertion_deletion(net, images, maps, 1, steps=steps, chunk=4)
        peaks.append(memory.peak)
    assert waits[0] == waits[1]
    assert peaks[1] - peaks[0] < images.numel() * 8, peaks  # of 336 more jobs, each an image


def test_passes_are_shared(net, images):
    """2 n images pass the network for n steps: the ends are common to both curves."""
    seen = []
    insertion_deletion(net, images, torch.rand(3, 24, 20), 1, steps=1)  # the first call looks at the network
    handle = net.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    insertion_deletion(net, images, torch.rand(3, 24, 20), 1, steps=10)
    assert sum(seen) == 3 * 2 * 10
    handle.remove()
