"""Seconds of the augmentation and of whole training steps, without waiting for a GPU."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["StepTimer"]


class StepTimer:
    """Times steps and the part of them that the augmentation takes.

    On a GPU, events are read once they have passed, so the figures of a step come a step or two later; elsewhere at once.
    """

    def __init__(self) -> None:
        self.seconds: float | None = None  # of the last augmentation that is over
        self._part: tuple[Any, Any] | None = None  # begin and end of the augmentation in the step that is under way
        self._begin: Any = None
        self._last: tuple[Any, Any] | None = None
        self._waiting: deque[tuple[Any, Any, tuple[Any, Any] | None]] = deque(maxlen=256)

    def begin(self, device: torch.device) -> None:
        """A step begins: its batch has arrived."""
        self._begin, self._part = _now(device), None

    @contextmanager
    def measure(self, device: torch.device) -> Iterator[None]:
        """The augmentation, from beginning to end."""
        self._read()
        start = _now(device)
        yield
        self._part = self._last = (start, _now(device))
        self._read()

    def end(self, device: torch.device) -> None:
        """The step is over."""
        if self._begin is not None:
            self._waiting.append((self._begin, _now(device), self._part))
        self._begin = self._part = None

    def steps(self) -> Iterator[tuple[float, float | None]]:
        """Seconds of each step that is over and not yet returned, and of the augmentation in it (None: it had none)."""
        while self._waiting and _has_passed(self._waiting[0][1]):
            begin, end, part = self._waiting.popleft()
            yield _between(begin, end), None if part is None else _between(*part)

    def _read(self) -> None:
        if self._last is not None and _has_passed(self._last[1]):
            self.seconds, self._last = _between(*self._last), None


def _now(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _has_passed(moment: Any) -> bool:
    return isinstance(moment, float) or moment.query()


def _between(start: Any, end: Any) -> float:
    return end - start if isinstance(start, float) else start.elapsed_time(end) / 1000
