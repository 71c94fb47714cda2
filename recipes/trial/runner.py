"""Doing the runs of a study: in this process or in several, each record written as soon as it is there."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from groupcam_aug.recipes.cli import Refused
from groupcam_aug.recipes.trial.regimes import Regime, Start, piece_name, prepare, settings_hash
from groupcam_aug.recipes.trial.run import Trial, read_record, run_trial, write_record
from groupcam_aug.recipes.trial.stock import Stock
from groupcam_aug.recipes.trial.training import Machine

__all__ = ["Work", "estimates", "work_through"]

FAILURES = 3  # after which nothing more is started


class Work(NamedTuple):
    """What is to be done, and with what."""

    trials: list[Trial]
    stock: Stock
    out: Path
    jobs: int


def work_through(work: Work, console: Console) -> int:
    """Run all trials, in this process or in several; each record is written as soon as it is there.

    Returns:
        How many are missing because they, or what they start from, failed.
    """
    if not work.trials:
        return 0
    estimate = estimates(work)
    runs = _by_start(work.trials)
    preparations, ready = list(runs), list[_Task]()
    left = {start: len(tasks) for start, tasks in runs.items()}
    failures = finished = 0
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeElapsedColumn()
    with (
        # A run takes minutes: its speed must be remembered for longer than rich would.
        Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, speed_estimate_period=7200) as progress,
        _pool(work) as submit,
    ):
        bar = progress.add_task(f"0 of {len(work.trials)} runs", total=sum(estimate(trial) for trial in work.trials))
        running: dict[Future[str], _Task] = {}
        while True:
            # One task for each process: what is prepared is run before the next is prepared, so that whole seeds come first.
            while failures < FAILURES and len(running) < work.jobs and (waiting := ready or preparations):
                task = waiting.pop(0)
                running[submit(task)] = task
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task = running.pop(future)
                try:
                    message = future.result()
                except BrokenProcessPool:
                    raise Refused(
                        "a process was killed (out of memory?); the same command goes on, with --jobs 1 in one process"
                    ) from None
                except Exception as error:  # whatever a run may raise: the others go on, and it is told
                    failures += 1
                    console.print(f"[red]failed[/red] {task.title}: {type(error).__name__}: {error}", soft_wrap=True)
                    continue
                if task.trial is None:
                    ready += runs[task]
                    continue
                finished += 1
                console.print(message, soft_wrap=True, highlight=False)
                progress.advance(bar, estimate(task.trial))
                progress.update(bar, description=f"{finished} of {len(work.trials)} runs")
                start = task._replace(trial=None)
                left[start] -= 1
                if not left[start] and task.regime.keeps_data:
                    work.stock.drop(piece_name(task.regime, task.seed, "data"))
    if failures >= FAILURES:
        console.print(f"stopped after {failures} failures", highlight=False)
    return len(work.trials) - finished


class _Task(NamedTuple):
    """Preparing what the arms of a seed share (no trial), or one run."""

    regime: Regime
    seed: int
    sources: tuple[str, ...]
    machine: Machine
    trial: Trial | None

    @property
    def title(self) -> str:
        what = "preparation" if self.trial is None else self.trial.arm.name
        return f"{self.regime.study} {self.regime.name}, seed {self.seed}, {what}"


def _by_start(trials: Sequence[Trial]) -> dict[_Task, list[_Task]]:
    """The preparation of each regime and seed, and the runs that wait for it."""
    groups: dict[tuple[Regime, int], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.regime, trial.seed), []).append(trial)
    tasks = {}
    for (regime, seed), group in groups.items():
        sources = tuple(sorted({trial.source for trial in group if trial.source is not None}))
        start = _Task(regime, seed, sources, group[0].machine, None)
        # Long ones first, so that no core is left with one at the end.
        tasks[start] = [start._replace(trial=trial) for trial in sorted(group, key=lambda trial: -trial.arm.cost)]
    return tasks


@contextmanager
def _pool(work: Work) -> Iterator[Callable[[_Task], Future[str]]]:
    """Something that takes tasks: this process, or others, which end with the block."""
    if work.jobs == 1:

        def here(task: _Task) -> Future[str]:
            future: Future[str] = Future()
            try:
                future.set_result(_do(task, work.stock, work.out))
            except Exception as error:  # as a pool would: it is raised again where the result is asked for
                future.set_exception(error)
            return future

        try:
            with _one_thread(work.trials[0].machine):
                yield here
        finally:
            _STARTS.clear()
        return
    # Not forked: torch's threads do not survive that.
    pool = ProcessPoolExecutor(work.jobs, multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        yield lambda task: pool.submit(_do, task, work.stock, work.out)
        pool.shutdown()
    except BaseException:
        children = multiprocessing.active_children()
        pool.shutdown(wait=False, cancel_futures=True)
        for child in children:
            child.terminate()
        for child in children:
            child.join()
            for part in work.out.rglob(f".*.{child.pid}.part"):
                part.unlink(missing_ok=True)
        raise


def _begin() -> None:
    """A process of the pool: Ctrl-C is for the one that waits for it, and it does not outlive that one, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _one_thread(machine: Machine) -> Iterator[None]:
    """On a CPU the sums of one thread and of several differ in the last digits; results must not depend on `--jobs`."""
    before = torch.get_num_threads()
    if machine.device == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_STARTS: dict[tuple[Any, ...], Start] = {}  # what this process used last


def _do(task: _Task, stock: Stock, out: Path) -> str:
    """Do a task; what is said of it."""
    key = task[:4]
    if key not in _STARTS:
        _STARTS.clear()
        _STARTS[key] = prepare(task.regime, task.seed, task.sources, stock, task.machine)
    if task.trial is None:
        return task.title
    record = run_trial(task.trial, _STARTS[key])
    write_record(task.trial.path(out), record)
    metric = next(metric for metric in task.regime.metrics if metric.name == task.regime.primary)
    value = metric.scale * record["metrics"][metric.name]
    return f"{task.title}: {metric.title} {value:.{metric.digits}f}, {record['seconds']:.0f} s"


def estimates(work: Work) -> Callable[[Trial], float]:
    """Seconds of a trial: of finished ones of the same arm and regime, or else roughly."""
    known: dict[str, list[float]] = {}
    for path in (work.out / "runs").glob("*.json"):
        try:
            record = read_record(path)
        except ValueError:
            continue  # the summary will complain; here it is about time only
        known.setdefault(record["hash"], []).append(record["total_seconds"])

    def estimate(trial: Trial) -> float:
        seconds = known.get(settings_hash(trial.settings()))
        rough = trial.regime.seconds / (1 if trial.machine.device == "cpu" else 60)
        return max(0.1, sum(seconds) / len(seconds) if seconds else rough * trial.arm.cost + 0.1 * rough)

    return estimate
