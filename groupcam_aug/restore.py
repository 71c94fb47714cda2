"""Changes for the length of a `with` block, undone whatever ends it: an error, Ctrl-C, even one that falls into the undoing.

Python may raise KeyboardInterrupt between any two calls. So the restore is registered before the change, and an undoing that
is interrupted is done once more.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack, _pop_mode, _push_mode
from torch.utils.hooks import RemovableHandle

__all__ = ["ending_blocks", "hooked", "mode_stacks", "replaced", "restoring", "undo"]

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
def ending_blocks() -> Iterator[None]:
    """Where an interrupt ends the block, end the `with` blocks of torch inside that it has skipped.

    They would end when the traceback is dropped, after all else has been restored: torch then puts a mode back on its stack.
    Where the end of a block failed because of the interrupt ("empty mode stack"), the interrupt itself goes on.
    """
    try:
        yield
    except BaseException as error:
        chain: list[BaseException] = [error]
        while (former := chain[-1].__context__) is not None:
            chain.append(former)
        interrupts = [each for each in chain if isinstance(each, KeyboardInterrupt)]
        if not interrupts:
            raise
        for each in chain:
            traceback.clear_frames(each.__traceback__)
        if error is interrupts[0]:
            raise
        raise interrupts[0] from None


def mode_stacks() -> Callable[[], None]:
    """What brings torch's stacks of function modes and dispatch modes back to what they are now, in this thread.

    While a mode handles a call, torch takes it off the stack and puts it back: an interrupt in between loses it, or leaves one
    that is over on the stack, where it would meddle with every later call.
    """
    functions, dispatches = _function_modes(), _get_current_dispatch_mode_stack()

    def restore() -> None:
        _bring_back(functions, _function_modes, torch._C._pop_torch_function_stack, torch._C._push_on_torch_function_stack)
        _bring_back(dispatches, _get_current_dispatch_mode_stack, _pop_mode, _push_mode)

    return restore


def _function_modes() -> list[Any]:
    return [torch._C._get_function_stack_at(i) for i in range(torch._C._len_torch_function_stack())]


def _bring_back(before: list[Any], now: Callable[[], list[Any]], pop: Callable[[], Any], push: Callable[[Any], Any]) -> None:
    while len(stack := now()) > len(before) or any(a is not b for a, b in zip(stack, before, strict=False)):
        pop()
    for mode in before[len(stack) :]:
        push(mode)


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
