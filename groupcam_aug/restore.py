"""Changes for the length of a `with` block, undone whatever ends it: an error, Ctrl-C, even one that falls into the undoing.

Python may raise KeyboardInterrupt between any two calls. So the restore is registered before the change, and an undoing that
is interrupted is done once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.hooks import RemovableHandle

__all__ = ["hooked", "replaced", "restoring", "undo"]


@contextmanager
def restoring(restore: Callable[[], object]) -> Iterator[None]:
    """Call `restore` when the block ends, twice: the second time is for an interrupt within the first.

    Args:
        restore: must do no harm if the change has not happened yet, and none if it is repeated.
    """
    try:
        try:
            yield
        finally:
            restore()
    finally:
        restore()


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
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Attributes of the object itself (not of its class) for the length of a `with` block."""
    attributes = vars(owner)
    before = {name: attributes[name] for name in values if name in attributes}

    def restore() -> None:
        attributes.update(before)
        for name in values.keys() - before.keys():
            attributes.pop(name, None)

    with restoring(restore):
        attributes.update(values)
        yield
