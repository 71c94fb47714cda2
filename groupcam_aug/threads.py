"""Threads that share a network: those that make maps wait for each other; others cannot be stopped, but are noticed."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from groupcam_aug.restore import restoring

__all__ = ["by_this_thread", "first_layer", "is_watching", "one_thread", "warn_of_other_threads"]

_guard = threading.RLock()
_freed = threading.Condition(_guard)
_borrowed: dict[object, tuple[int, frozenset[int]]] = {}  # who has which modules: a thread, and the ids of its modules


@contextmanager
def one_thread(network: nn.Module) -> Iterator[None]:
    """Only one thread at a time is in here with a network, or with anything that shares a module with weights or buffers.

    Others wait. The thread that is inside may enter again. Networks that share nothing do not wait for each other.
    """
    ticket, thread = object(), threading.get_ident()
    modules = frozenset(id(module) for module in network.modules() if module._parameters or module._buffers) or {id(network)}

    def leave() -> None:
        with _guard:
            _borrowed.pop(ticket, None)
            _freed.notify_all()

    with restoring(leave):
        with _guard:
            _freed.wait_for(lambda: all(owner == thread or modules.isdisjoint(theirs) for owner, theirs in _borrowed.values()))
            _borrowed[ticket] = thread, frozenset(modules)
        yield


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


def is_watching(hook: Any) -> bool:
    """Whether a hook is one of `warn_of_other_threads`."""
    return getattr(hook, "__qualname__", "").startswith(f"{warn_of_other_threads.__qualname__}.")
