"""Threads that share a network: those that make maps wait for each other; others cannot be stopped, but are noticed."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

__all__ = ["by_this_thread", "first_layer", "lock_of", "warn_of_other_threads"]

_locks: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_guard = threading.Lock()


def lock_of(network: nn.Module) -> Any:
    """The re-entrant lock of a network, a context manager.

    It belongs to the network's first layer, so a LightningModule and the network in it share one. Parts without a layer in
    common have locks of their own.
    """
    layer = first_layer(network)
    with _guard:
        if layer not in _locks:
            _locks[layer] = threading.RLock()
        return _locks[layer]


def first_layer(network: nn.Module) -> nn.Module:
    """The first module that holds parameters, which every forward pass of a usual network calls; else the network itself."""
    holders = (module for module in network.modules() if next(module.parameters(recurse=False), None) is not None)
    return next(holders, network)


def by_this_thread() -> Callable[[], bool]:
    """A function that says whether the thread that calls it is the one that calls this now."""
    owner = threading.get_ident()
    return lambda: threading.get_ident() == owner


def warn_of_other_threads(network: nn.Module) -> Callable[..., None]:
    """A forward pre-hook for a network lent in evaluation mode, that warns, once, of a pass that another thread makes."""
    mine, owner = by_this_thread(), threading.current_thread().name
    warned: list[bool] = []

    def hook(*_: Any) -> None:
        # Autograd's threads, where checkpointed layers run once more, work for the one that called it.
        if mine() or warned or torch._C._current_graph_task_id() != -1:
            return
        warned.append(True)
        warnings.warn(
            f"thread {threading.current_thread().name!r} ran {type(network).__name__} while thread {owner!r} was making maps "
            "with it: that pass was in evaluation mode, without dropout and batch statistics. Map a copy (copy.deepcopy), or let "
            "the threads take turns",
            stacklevel=2,
        )

    return hook
