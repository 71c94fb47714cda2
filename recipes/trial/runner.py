"""Doing the runs of a trial: in this process or in several; what fails is kept in mind, and the others go on."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from groupcam_aug.printable import printable, without_secrets
from groupcam_aug.recipes.cli import Refused
from groupcam_aug.recipes.terminal import say
from groupcam_aug.recipes.trial.run import Run, run_arm

__all__ = ["Failure", "do_runs"]

FAILURES = 2  # of one arm, after which its other seeds are not tried


class Failure(NamedTuple):
    """A run that is missing, and why."""

    arm: str
    seed: int
    error: str


def do_runs(
    runs: Sequence[Run], costs: Mapping[str, float], jobs: int, console: Console, line: Callable[[dict[str, Any]], str]
) -> list[Failure]:
    """Do all runs; each record is written as soon as its run is finished.

    Args:
        runs: in their order.
        costs: seconds of a run by arm, about, for the remaining time.
        jobs: how many at a time; with 1 in this process.
        console: for progress.
        line: what to say of a finished record.

    Returns:
        The runs that failed, and those that were not tried because others of their arm had.

    Raises:
        Refused: the disk is full, or a process of the pool was killed; what is finished stays.
        KeyboardInterrupt: Ctrl-C; likewise.
    """
    failures: list[Failure] = []
    if not runs:
        return failures
    waiting, running = list(runs), dict[Future[_Outcome], Run]()
    shares = dict[str, float]()  # of the runs under way
    columns = TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    # A run takes minutes: its speed must be remembered for longer than rich would.
    bar = Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, speed_estimate_period=7200)
    cost_of = {run.name: costs[run.arm.name] for run in runs}
    with bar, _pool(jobs) as pool:
        task = bar.add_task("", total=sum(cost_of.values()))
        done, finished = 0.0, 0

        def show(name: str = "", share: float = 0.0) -> None:
            if name in shares:
                shares[name] = share
            completed = done + sum(cost_of[run] * part for run, part in list(shares.items()))
            under_way = ", ".join(list(shares)[:2]) + (", ..." if len(shares) > 2 else "")
            bar.update(task, completed=completed, description=printable(f"{finished} of {len(runs)} runs  {under_way}"))

        pool.listen(show)
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                if sum(failure.arm == run.arm.name for failure in failures) >= FAILURES:
                    failures.append(Failure(run.arm.name, run.seed, "not tried: other seeds of this arm failed"))
                    continue
                shares[run.name] = 0.0
                show()
                running[pool.submit(run)] = run
            for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                run = running.pop(future)
                del shares[run.name]
                done += cost_of[run.name]
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    raise Refused(
                        "a process was killed (out of memory?); finished runs stay, the same command goes on, with fewer --jobs"
                    ) from None
                if outcome.full:
                    raise Refused(f"no space is left for {run.name}; finished runs stay, the same command goes on with the rest")
                if outcome.record is None:
                    failures.append(Failure(run.arm.name, run.seed, outcome.error))
                    say(console, f"{run.name}: {outcome.error}", mark="failed")
                else:
                    finished += 1
                    say(console, line(outcome.record))
                show()
    return failures


class _Outcome(NamedTuple):
    """A record, or why there is none: exceptions of users' classes need not survive the way between processes."""

    record: dict[str, Any] | None
    error: str = ""
    full: bool = False  # whether the disk is


def _attempt(run: Run, progress: Callable[[float], None]) -> _Outcome:
    try:
        return _Outcome(run_arm(run, progress))
    except Exception as error:  # whatever a run may raise: the others go on, and it is said
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        return _Outcome(None, without_secrets(f"{type(error).__name__}: {error}"), full)


class _Here:
    """A pool of this process alone."""

    def listen(self, update: Callable[[str, float], None]) -> None:
        """Call `update` with the name of a run and the share that is done."""
        self._update = update

    def submit(self, run: Run) -> Future[_Outcome]:
        """Do it now."""
        future: Future[_Outcome] = Future()
        future.set_result(_attempt(run, lambda share: self._update(run.name, share)))
        return future


class _Several:
    """A pool of processes, with a queue on which they say how far they are."""

    def __init__(self, pool: ProcessPoolExecutor, queue: Any) -> None:
        self._pool, self._queue = pool, queue

    def listen(self, update: Callable[[str, float], None]) -> None:
        """Call `update` with the name of a run and the share that is done."""

        def pass_on() -> None:
            with contextlib.suppress(EOFError, OSError):  # the queue ends with the pool
                while (said := self._queue.get()) is not None:
                    update(*said)

        threading.Thread(target=pass_on, daemon=True).start()

    def submit(self, run: Run) -> Future[_Outcome]:
        """Do it in one of the processes."""
        return self._pool.submit(_do, run)


@contextlib.contextmanager
def _pool(jobs: int) -> Iterator[_Here | _Several]:
    if jobs == 1:
        yield _Here()
        return
    context = multiprocessing.get_context("spawn")  # not forked: torch's threads do not survive that
    queue = context.SimpleQueue()
    threads = max(1, torch.get_num_threads() // jobs)
    pool = ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=(queue, threads))
    try:
        yield _Several(pool, queue)
        pool.shutdown()
    except BaseException:
        children = multiprocessing.active_children()
        pool.shutdown(wait=False, cancel_futures=True)
        for child in children:
            child.terminate()
        for child in children:
            child.join()
        raise
    finally:
        queue.put(None)


_QUEUE: Any = None


def _begin(queue: Any, threads: int) -> None:
    """A process of the pool: Ctrl-C is for the one that waits for it, and it does not outlive that one, however that ends."""
    global _QUEUE
    _QUEUE = queue
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do(run: Run) -> _Outcome:
    said = 0.0

    def progress(share: float) -> None:
        nonlocal said
        if share >= said + 0.01:
            said = share
            _QUEUE.put((run.name, share))

    return _attempt(run, progress)
