"""Does the augmentation help on your data? That is `groupcam-aug trial CONFIG`.

CONFIG is whatever `fit` takes, with any of its options behind it: your own LightningModule and data, or a recipe. An arm is a
named set of overrides of it. Every arm is trained with the same seeds, which give the same initial weights, order and crops, for
the same number of epochs; the last epoch is tested, never the best one. The answer is in differences over paired seeds, also to
the control that blurs as much elsewhere, and stands in OUT/index.html.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from groupcam_aug.files import inside, put_file
from groupcam_aug.printable import without_secrets
from groupcam_aug.recipes.cli import Refused, nearest, refusing
from groupcam_aug.recipes.terminal import cell, say
from groupcam_aug.recipes.trial.lock import locked
from groupcam_aug.recipes.trial.metrics import ACCURACIES, better, check_measured
from groupcam_aug.recipes.trial.printing import line_of, print_arms, print_plan, print_results

if TYPE_CHECKING:  # torch takes seconds to import: not for `--help`
    from groupcam_aug.recipes.trial.arms import Arm
    from groupcam_aug.recipes.trial.run import Rehearsal, Run
    from groupcam_aug.recipes.trial.runner import Failure

__all__ = ["build_parser", "read_seeds", "run"]

ARMS = ("none", "fast", "fast-other", "fast-centre")
EPILOG = """examples:
  groupcam-aug trial resnet50_folder --data.root my_photographs --dry-run
  groupcam-aug trial resnet50_folder --data.root my_photographs --arms none fast fast-other fast-centre --seeds 5
  groupcam-aug trial my_config.yaml --arms-file my_arms.yaml --seeds 3 --trainer.max_epochs 10
  groupcam-aug trial --list

The arms inherit from the config's GroupCAMAugmentation where things are (network, layer, image_key, target_key, mask_key,
start_epoch and the like). Stopped (Ctrl-C, a kill, a full disk), the same command goes on where it was. OUT/arms/ARM.yaml is
the complete config of an arm: `groupcam-aug fit --config OUT/arms/ARM.yaml --seed_everything SEED` is the same training."""


def run(command: str, words: list[str]) -> int:
    """The command; exit status 1 if runs are missing, or no arms could be compared."""
    parser = build_parser(command)
    config = words.pop(0) if words and not words[0].startswith("-") else None
    options, rest = parser.parse_known_args(words)
    console = Console()
    from groupcam_aug.recipes.trial.arms import read_arms

    if options.list:
        with refusing():
            print_arms(console, options.arms_file)
        return 0
    if config is None:
        parser.error("which config? Give a file or the name of a recipe first: groupcam-aug trial CONFIG ...")
    _check(parser, options)
    from groupcam_aug.recipes.trial.configured import read_config

    with refusing():
        arms = read_arms(options.arms or ([] if options.arms_file else ARMS), options.arms_file)
        seeds = read_seeds(options.seeds)
        reference = options.reference or ("none" if any(arm.name == "none" for arm in arms) else arms[0].name)
        if reference not in [arm.name for arm in arms]:
            raise ValueError(f"--reference {reference} is none of the arms: {', '.join(arm.name for arm in arms)}")
        tree = read_config(config, rest)
    line = without_secrets(shlex.join(["groupcam-aug", command, config, *words]))
    with contextlib.ExitStack() as stack:
        with refusing():
            stack.enter_context(locked(Path(options.out)))
        return _trial(tree, arms, seeds, options, reference, line, console)


def _trial(
    config: Mapping[str, Any],
    arms: Sequence[Arm],
    seeds: Sequence[int],
    options: argparse.Namespace,
    reference: str,
    line: str,
    console: Console,
) -> int:
    from groupcam_aug.recipes.trial.plan import finished_runs, planned_runs, record_of
    from groupcam_aug.recipes.trial.runner import do_runs
    from groupcam_aug.recipes.trial.summary import results_in

    out = Path(options.out)
    with refusing():
        results_in(out)
        runs = planned_runs(config, arms, seeds, out, options.checkpoints)
        finished = finished_runs(runs, console)
    pending = [run for run in runs if run.name not in finished]
    if finished:
        say(console, f"{len(finished)} of {len(runs)} runs are finished already")
    if options.mode is None and better(options.metric) == "min":
        say(console, f"{options.metric}: less is better, by its name (--mode max says otherwise)")
    rehearsals, failures = _rehearse(pending, console)
    costs = {name: found.total for name, found in rehearsals.items()} | _known_seconds(list(finished.values()))
    if pending:
        print_plan(console, runs, pending, rehearsals, costs, failures, options.jobs)
    with refusing():
        _check_metric(options.metric, list(rehearsals.values()), list(finished.values()))
    if options.dry_run:
        return 1 if failures else 0
    failed = {failure.arm for failure in failures}
    # Seed by seed, so that a trial that is stopped has whole seeds to show.
    doable = sorted((run for run in pending if run.arm.name not in failed), key=lambda run: run.seed)
    ended: Refused | None = None  # before all runs were done
    try:
        failures += do_runs(doable, costs, min(options.jobs, max(1, len(doable))), console, line_of(options.metric))
    except KeyboardInterrupt:
        say(console, f"finished runs are kept in {options.out}/runs; the same command goes on")
        raise
    except Refused as refusal:
        if not any(record_of(run) for run in runs):
            raise
        ended = refusal
    with refusing():
        written, verdict = _write(runs, failures, options, reference, line, console)
    page = next(path for path in written if path.name == "index.html")
    others = ", ".join(sorted(path.name for path in written if path != page))
    say(console, f"\nlook at {page} (tables, plot, samples; also {others})")
    if ended is not None:
        raise ended
    if failures:
        raise Refused(f"{len(failures)} of {len(runs)} runs are missing; the same command tries them again")
    if len(arms) > 1 and not any(sentence["kind"] for sentence in verdict["sentences"]):
        raise Refused(f"no arms could be compared: {verdict['conclusion'].splitlines()[0]}")
    return 0


def read_seeds(text: str) -> list[int]:
    """``8`` = 0 to 7, ``3-7`` = 3 to 7, ``0,2,5`` = those.

    Raises:
        ValueError: anything else, or none.
    """
    try:
        if "," in text:
            seeds = [int(part) for part in text.split(",")]
        elif "-" in text:
            first, last = (int(part) for part in text.split("-"))
            seeds = list(range(first, last + 1))
        else:
            seeds = list(range(int(text)))
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds {text}: give how many (8), a range (3-7) or a list (0,2,5)")
    return seeds


def build_parser(command: str) -> argparse.ArgumentParser:
    """Options of the command; what is not among them is `fit`'s."""
    parser = argparse.ArgumentParser(
        prog=f"groupcam-aug {command}",
        usage=f"groupcam-aug {command} CONFIG [options] [options of fit]",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # what is not here is fit's
    )
    parser.add_argument("--arms", nargs="+", metavar="NAME", help=f"(default: {' '.join(ARMS)}; with --arms-file all of it)")
    parser.add_argument("--arms-file", metavar="FILE", help="YAML with arms of yours, beside those that --list shows")
    parser.add_argument("--seeds", default="5", metavar="N", help="how many, from 0; or which: 3-7, or 0,2,5 (default: 5)")
    parser.add_argument("--out", default="groupcam_trial", help="folder for runs and results (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores (default: 1)")
    parser.add_argument("--checkpoints", action="store_true", help="keep the last weights of each run, for explain and evaluate")
    parser.add_argument(
        "--dry-run", action="store_true", help="a few steps of each arm, then what would be run and how long it takes"
    )
    parser.add_argument("--list", action="store_true", help="show the arms")
    parser.add_argument("--reference", metavar="ARM", help="arm that others are compared with (default: none, or the first)")
    parser.add_argument(
        "--metric", default="accuracy", help="what is compared: accuracy, or what test_step logs (default: accuracy)"
    )
    parser.add_argument(
        "--mode", choices=["max", "min"], help="whether more or less of it is better (default: by its name, where that tells)"
    )
    parser.add_argument(
        "--margin", type=float, default=0.01, help="difference that does not matter, for the test of equivalence (default: 0.01)"
    )
    return parser


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: give at least 1")
    if not 0 < options.margin < math.inf:
        parser.error(
            f"--margin {options.margin:g}: give a number above 0, in the unit of the metric (0.01 is one point of accuracy)"
        )
    if options.mode is None and better(options.metric) is None:
        near = nearest(options.metric, ACCURACIES)
        parser.error(f"--metric {options.metric}: say by --mode max or --mode min whether more or less of it is better{near}")


def _check_metric(metric: str, rehearsals: Sequence[Rehearsal], records: Sequence[Mapping[str, Any]]) -> None:
    """Whether what is done or could be rehearsed measures it."""
    if rehearsals or records:
        tests = [test for record in records for test in record["tests"].values()]
        known = [name for found in rehearsals for name in found.metrics] + [name for test in tests for name in test["metrics"]]
        check_measured(metric, dict.fromkeys(known), [found.problem for found in rehearsals if found.problem])


def _known_seconds(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    known: dict[str, list[float]] = {}
    for record in records:
        known.setdefault(record["arm"], []).append(record["train"]["seconds"])
    return {arm: sum(seconds) / len(seconds) for arm, seconds in known.items()}


def _rehearse(pending: Sequence[Run], console: Console) -> tuple[dict[str, Rehearsal], list[Failure]]:
    """A few steps of each arm that has runs to do: what cannot work is found now, not after hours."""
    from groupcam_aug.recipes.trial.run import rehearse
    from groupcam_aug.recipes.trial.runner import Failure

    found: dict[str, Rehearsal] = {}
    failures: list[Failure] = []
    first = {run.arm.name: run for run in reversed(pending)}
    for run in (run for run in pending if first[run.arm.name] is run):
        with console.status(cell(f"a few steps of {run.arm.name}")):
            try:
                found[run.arm.name] = rehearse(run)
            except Exception as error:  # whatever the user's code raises: the other arms go on, and it is said
                message = without_secrets(f"{type(error).__name__}: {error}")
                failures += [Failure(one.arm.name, one.seed, message) for one in pending if one.arm == run.arm]
                say(console, f"{run.arm.name}: {message}", mark="failed")
                say(console, f"groupcam-aug fit --config {run.config} --trainer.fast_dev_run true", mark="where:")
    return found, failures


def _write(
    runs: Sequence[Run],
    failures: Sequence[Failure],
    options: argparse.Namespace,
    reference: str,
    command: str,
    console: Console,
) -> tuple[list[Path], dict[str, Any]]:
    """The results, shown and written: the files, and the verdict."""
    from groupcam_aug.callbacks.report import render
    from groupcam_aug.recipes.trial.plan import record_of
    from groupcam_aug.recipes.trial.summary import write_results

    found_records = {run.name: record for run in runs if (record := record_of(run)) is not None}
    planned: dict[str, int] = {}
    sheets: dict[str, bytes] = {}
    shown: dict[str, Any] = {}
    for run in runs:
        planned[run.arm.name] = planned.get(run.arm.name, 0) + 1
        found = run.folder / "groupcam"
        samples = sorted((found / "gallery").glob("*.png"))
        if samples and run.name in found_records and run.arm.name not in sheets:  # the last epoch of the first seed
            try:
                sheets[run.arm.name] = inside(run.folder, samples[-1]).read_bytes()
                put_file(found, "report.html", render(found))
            except (OSError, ValueError) as error:  # a picture less is no reason to lose the comparison
                say(console, f"no samples or no report of {run.name}: {error}")

    def show(results: Mapping[str, Any]) -> None:
        shown.update(results["verdict"])
        print_results(console, results)

    paths = write_results(
        Path(options.out),
        list(found_records.values()),
        metric=options.metric,
        mode=options.mode or better(options.metric) or "max",
        reference=reference,
        margin=options.margin,
        failures=[failure._asdict() for failure in failures],
        planned=planned,
        command=command,
        sheets=sheets,
        show=show,
    )
    return paths, shown
