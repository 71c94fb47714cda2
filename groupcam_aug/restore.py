"""Changes for the length of a `with` block, undone whatever ends it: an error, Ctrl-C, even one that falls into the undoing.

Python may raise KeyboardInterrupt between any two calls. So the restore is registered before the change, and an undoing that
is interrupted is done once more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.hooks import RemovableHandle

__all__ = ["hooked", "replaced", "restoring", "undo"]

_open = threading.local()


@contextmanager
def restoring(restore: Callable[[], object]) -> Iterator[None]:
    """Call `restore` once when the block ends; and then, of the blocks inside it, those whose end an interrupt has skipped.

    Args:
        restore: must do no harm if the change has not happened yet, and none if it is begun again after an interrupt.
    """
    steps = [restore]
    blocks: list[list[Callable[[], object]]] = _open.__dict__.setdefault("blocks", [])  # of this thread, outermost first
    depth = len(blocks)

    def close() -> None:
        if len(blocks) > depth and blocks[depth] is steps:
            while len(blocks) > depth:
                undo(blocks[-1])
                blocks.pop()
        undo(steps)

    try:
        try:
            blocks.append(steps)
            yield
        finally:
            close()
    finally:
        close()


def undo(steps: list[Callable[[], object]]) -> None:
    """Run `steps`, last first; one is dropped only after it has run, so that an interrupt loses none (it may repeat one)."""
    while steps:
        steps[-1]()
        steps.pop()


@contextmanager
def hooked(hooks: Iterable[tuple[Any, Callable[..., Any]]]) -> Iterator[None]:
    """Hooks for the length of a `with` block.

    Args:
        hooks: pairs of a module's table, such as `module._forward_hooks`, and a hook. The methods that register hooks return a
            handle after the change, which is too late for an interrupt in between.
    """
    handles = [(RemovableHandle(table), table, hook) for table, hook in hooks]

    def remove() -> None:
        for handle, *_ in handles:
            handle.remove()

    with restoring(remove):
        for handle, table, hook in handles:
            table[handle.id] = hook
        yield


@contextmanager
def replaced(*owners: Any, **values: Any) -> Iterator[None]:
    """Attributes of the objects themselves (not of their classes) for the length of a `with` block."""
    before = [{name: vars(owner)[name] for name in values if name in vars(owner)} for owner in owners]

    def restore() -> None:
        for owner, attributes in zip(owners, before, strict=True):
            vars(owner).update(attributes)
            for name in values.keys() - attributes.keys():
                vars(owner).pop(name, None)

    with restoring(restore):
        for owner in owners:
            vars(owner).update(values)
        yield
