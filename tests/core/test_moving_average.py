"""The moving average of a network: how warm it starts, what it averages and what it copies."""

import pickle

import pytest
import torch

from groupcam_aug.moving_average import moving_average


def test_average_is_warm_from_the_start():
    """The n-th update keeps (n + 1) / (n + 10), never more than the decay; normalisation statistics are the network's."""
    net = torch.nn.BatchNorm1d(1)
    average, expected = moving_average(net, 0.6), 1.0
    for n in range(12):
        with torch.no_grad():
            net.weight.fill_(float(n))
        average.update_parameters(net)
        keep = 0.0 if n == 0 else min(0.6, (n + 1) / (n + 10))
        expected = keep * expected + (1 - keep) * n
        assert average.module.weight.item() == pytest.approx(expected), n


def test_buffers_are_copied_and_the_network_is_left_alone(net):
    average = moving_average(net, 0.9)
    assert all(a is not b and torch.equal(a, b) for a, b in zip(average.module.parameters(), net.parameters(), strict=True))
    for step in range(3):
        with torch.no_grad():
            net.conv1.weight += 1
            net.bn1.running_mean += 1
            net.bn1.num_batches_tracked += 5
        before = net.conv1.weight.clone()
        average.update_parameters(net)
        assert torch.equal(net.conv1.weight, before) and average.n_averaged == step + 1
        assert torch.equal(average.module.bn1.running_mean, net.bn1.running_mean), "statistics are copied, not averaged"
        assert average.module.bn1.num_batches_tracked == net.bn1.num_batches_tracked
    assert (average.module.conv1.weight < net.conv1.weight).all(), "it lags behind"
    assert not any(parameter.grad_fn for parameter in average.module.parameters())


def test_goes_on_after_pickling_and_loading(net):
    def step(average):
        with torch.no_grad():
            net.fc.weight += 1
        average.update_parameters(net)
        return average.module.fc.weight

    average = moving_average(net, 0.5)
    for _ in range(3):
        step(average)
    copy, loaded = pickle.loads(pickle.dumps(average)), moving_average(net, 0.5)
    loaded.load_state_dict(average.state_dict())
    expected = step(average).clone()
    net.fc.weight.data -= 1
    for other in (copy, loaded):
        torch.testing.assert_close(step(other), expected)
        net.fc.weight.data -= 1


def test_buffers_that_were_resized_replaced_or_made_are_followed(net):
    """As observers of quantisation-aware training do with theirs in the first step."""
    net.register_buffer("ranges", torch.tensor([]))
    net.register_buffer("late", None)
    average = moving_average(net, 0.9)
    net.ranges.resize_(3).fill_(2)
    net.late = torch.ones(2)
    net.register_buffer("new", torch.zeros(1))
    for _ in range(2):
        average.update_parameters(net)
    for name in ("ranges", "late", "new"):
        mine = getattr(average.module, name)
        assert torch.equal(mine, getattr(net, name)) and mine is not getattr(net, name), name
    net.late = None
    average.update_parameters(net)
    assert average.module.late is None
