"""The dispatcher's comings and goings."""

import pytest

from groupcam_aug.callbacks.glue.dispatcher import Dispatcher


class Strategy:
    def batch_to_device(self, batch, device=None, dataloader_idx=0):
        return [*batch, "moved"]


def plus(mark):
    return lambda batch: [*batch, mark]


def test_dispatcher_passes_through_all_owners_and_leaves_no_trace():
    strategy, a, b = Strategy(), plus("a"), plus("b")
    first, second = Dispatcher.attach(strategy, a), Dispatcher.attach(strategy, b)
    assert first is second
    Dispatcher.attach(strategy, a)
    assert strategy.batch_to_device([], dataloader_idx=0) == ["moved", "a", "b"]
    Dispatcher.detach(strategy, a)
    assert strategy.batch_to_device([]) == ["moved", "b"]
    Dispatcher.detach(strategy, b)
    Dispatcher.detach(strategy, b)
    assert vars(strategy) == {}


@pytest.mark.parametrize("foreign_leaves_first", [True, False])
def test_foreign_wrapper_on_top(foreign_leaves_first):
    strategy, owner = Strategy(), plus("a")
    Dispatcher.attach(strategy, owner)
    below = strategy.batch_to_device
    strategy.batch_to_device = lambda batch: [*below(batch), "foreign"]
    assert strategy.batch_to_device([]) == ["moved", "a", "foreign"]
    if foreign_leaves_first:
        strategy.batch_to_device = below
        Dispatcher.detach(strategy, owner)
        assert vars(strategy) == {}
    else:
        Dispatcher.detach(strategy, owner)
        assert strategy.batch_to_device([]) == ["moved", "foreign"], "stays below as a pass-through"
        strategy.batch_to_device = below
        assert strategy.batch_to_device([]) == ["moved"]
        Dispatcher.attach(strategy, owner)
        assert strategy.batch_to_device([]) == ["moved", "a"], "and serves again"
        Dispatcher.detach(strategy, owner)
        assert vars(strategy) == {}


def test_foreign_wrapper_below_is_put_back():
    strategy = Strategy()
    original = strategy.batch_to_device
    strategy.batch_to_device = foreign = lambda batch: [*original(batch), "foreign"]
    owner = plus("a")
    Dispatcher.attach(strategy, owner)
    assert strategy.batch_to_device([]) == ["moved", "foreign", "a"]
    Dispatcher.detach(strategy, owner)
    assert strategy.batch_to_device is foreign
