"""What ``groupcam-aug trial`` shows on the terminal: the plan, a line for each finished run, the results, the arms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from groupcam_aug.recipes.terminal import cell, say

if TYPE_CHECKING:
    from groupcam_aug.recipes.trial.run import Rehearsal, Run
    from groupcam_aug.recipes.trial.runner import Failure

__all__ = ["line_of", "print_arms", "print_plan", "print_results"]


def print_plan(
    console: Console,
    runs: Sequence[Run],
    pending: Sequence[Run],
    rehearsals: Mapping[str, Rehearsal],
    costs: Mapping[str, float],
    failures: Sequence[Failure],
    jobs: int,
) -> None:
    """What is to be run, and how long it takes.

    Args:
        console: where to.
        runs: all of the trial.
        pending: those to do.
        rehearsals: of the arms that have runs to do and can work, by name.
        costs: seconds of a run by arm, about.
        failures: runs of arms that cannot work.
        jobs: runs at a time.
    """
    if rehearsals:
        one = next(iter(rehearsals.values()))
        tests = ", ".join(name if size is None else f"{name} ({size:,})" for name, size in one.tests.items())
        images = "" if one.images is None else f"{one.images:,} training images, "
        say(console, f"{images}{one.epochs} epochs, {one.steps:,} steps a run; tested on {tests}")
    table = Table(title=f"{len(pending)} runs to do, {len(runs) - len(pending)} finished")
    for column in ("arm", "what", "seeds to do", "a step, ms", "a run"):
        table.add_column(column, justify="left" if column in ("arm", "what") else "right", overflow="fold")
    failed = {failure.arm for failure in failures}
    for arm in dict.fromkeys(run.arm for run in pending):
        seeds = _ranges([run.seed for run in pending if run.arm == arm])
        times = ["failed", ""] if arm.name in failed else [f"{1000 * rehearsals[arm.name].seconds:.0f}", _time(costs[arm.name])]
        table.add_row(cell(arm.name), cell(arm.about), seeds, *times)
    console.print(table)
    total = sum(costs[run.arm.name] for run in pending if run.arm.name not in failed) / jobs
    seeds_of = len({run.seed for run in runs})
    least = f"; the least possible p of {seeds_of} paired seeds is {2 / 2**seeds_of:.2g}" if seeds_of > 1 else ""
    say(console, f"about {_time(total)} of training with --jobs {jobs}, by a few steps of each arm{least}")


def print_results(console: Console, results: Mapping[str, Any]) -> None:
    """Tables and the verdict."""
    from groupcam_aug.recipes.trial.page import main_table

    summary, verdict = results["summary"], results["verdict"]
    for name, test_set in summary["test_sets"].items():
        found = main_table(summary, test_set)
        shown = [i for i, column in enumerate(found.columns) if not column.startswith("worst")]
        table = Table(title=cell(name), title_justify="left")
        for i in shown:
            table.add_column(cell(found.columns[i]), justify="right" if i else "left")
        for row in found.rows:
            table.add_row(*(cell(row[i][0]) for i in shown))
        console.print(table)
    lines = [verdict["conclusion"], *(sentence["text"] for sentence in verdict["sentences"]), *verdict["caveats"]]
    say(console, "\n" + "\n".join(lines))


def print_arms(console: Console, file: str | None) -> None:
    """The arms that come with the package, and those of `file`."""
    from groupcam_aug.recipes.trial.arms import all_arms

    table = Table(show_header=False, box=None)
    for arm in all_arms(file).values():
        table.add_row(cell(arm.name), cell(arm.about, f"(control: {arm.control})" if arm.control else None))
    console.print(table)
    say(console, "\nyours: --arms-file FILE, a mapping from names to about, control, callbacks and set")


def line_of(metric: str) -> Callable[[Mapping[str, Any]], str]:
    """A function that says in a line what a record has of the metric."""

    def line(record: Mapping[str, Any]) -> str:
        values = []
        for name, test in record["tests"].items():
            value = test["metrics"].get(metric)
            shown = "no " + metric if value is None else f"{100 * value:.1f} %" if metric == "accuracy" else f"{value:.4g}"
            values.append(f"{name} {shown}")
        return f"{record['arm']}, seed {record['seed']}: {', '.join(values)}, {_time(record['train']['seconds'])}"

    return line


def _ranges(seeds: Sequence[int]) -> str:
    """``0-4, 7``."""
    parts: list[list[int]] = []
    for seed in sorted(seeds):
        if parts and seed == parts[-1][-1] + 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
