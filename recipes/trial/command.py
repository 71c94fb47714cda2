"""Does the augmentation help on your data? That is `groupcam-aug trial CONFIG`.

CONFIG is whatever `fit` takes, with any of its options behind it: your own LightningModule and data, or a recipe. An arm is a
named set of overrides of it. Every arm is trained with the same seeds, which give the same initial weights, order and crops, for
the same number of epochs; the last epoch is tested, never the best one. The answer is in differences over paired seeds, also to
the control that blurs as much elsewhere, and stands in OUT/index.html.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from groupcam_aug.files import inside, put_file
from groupcam_aug.printable import without_secrets
from groupcam_aug.recipes.cli import Refused, refusing
from groupcam_aug.recipes.terminal import cell, say
from groupcam_aug.recipes.trial.printing import line_of, print_arms, print_plan, print_results

if TYPE_CHECKING:  # torch takes seconds to import: not for `--help`
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
    """The command; exit status 1 if runs are missing."""
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
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: give at least 1")
    with refusing():
        arms = read_arms(options.arms or ([] if options.arms_file else ARMS), options.arms_file)
        seeds = read_seeds(options.seeds)
        reference = options.reference or ("none" if any(arm.name == "none" for arm in arms) else arms[0].name)
        if reference not in [arm.name for arm in arms]:
            raise ValueError(f"--reference {reference} is none of the arms: {', '.join(arm.name for arm in arms)}")
        runs = _plan(config, rest, arms, seeds, Path(options.out), options.checkpoints)
        finished = [run for run in runs if _record(run, console) is not None]
        _check_finished(finished)
    pending = [run for run in runs if run not in finished]
    if finished:
        say(console, f"{len(finished)} of {len(runs)} runs are finished already")
    known = _known_seconds(finished)
    rehearsals, failures = _rehearse(pending, console)
    costs = {name: known.get(name, found.total) for name, found in rehearsals.items()}
    if pending:
        print_plan(console, runs, pending, rehearsals, costs, failures, options.jobs)
    if options.dry_run:
        return 1 if failures else 0
    failed = {failure.arm for failure in failures}
    from groupcam_aug.recipes.trial.runner import do_runs

    # Seed by seed, so that a trial that is stopped has whole seeds to show.
    doable = sorted((run for run in pending if run.arm.name not in failed), key=lambda run: run.seed)
    ended: Refused | None = None  # before all runs were done
    try:
        failures += do_runs(doable, costs, min(options.jobs, max(1, len(doable))), console, line_of(options.metric))
    except KeyboardInterrupt:
        say(console, f"finished runs are kept in {options.out}/runs; the same command goes on")
        raise
    except Refused as refusal:
        if not any(_record(run) for run in runs):
            raise
        ended = refusal
    with refusing():
        line = without_secrets(shlex.join(["groupcam-aug", command, config, *words]))
        written = _write(runs, failures, options, reference, line, console)
    page = next(path for path in written if path.name == "index.html")
    others = ", ".join(sorted(path.name for path in written if path != page))
    say(console, f"\nlook at {page} (tables, plot, samples; also {others})")
    if ended is not None:
        raise ended
    if failures:
        raise Refused(f"{len(failures)} of {len(runs)} runs are missing; the same command tries them again")
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
        "--mode", choices=["max", "min"], default="max", help="whether more or less of it is better (default: max)"
    )
    parser.add_argument(
        "--margin", type=float, default=0.01, help="difference that does not matter, for the test of equivalence (default: 0.01)"
    )
    return parser


def _plan(config: str, words: Sequence[str], arms: Sequence[Any], seeds: Sequence[int], out: Path, keep: bool) -> list[Run]:
    """Every run; the arms' configs are written."""
    from groupcam_aug.recipes.trial.arms import where_things_are
    from groupcam_aug.recipes.trial.configured import read_config, resolve
    from groupcam_aug.recipes.trial.run import Run

    tree = read_config(config, words)
    where = where_things_are(tree, arms)
    for arm in arms:
        before = out / "arms" / f"{arm.name}.yaml"
        text = before.read_text(encoding="utf-8", errors="replace") if before.is_file() else None
        resolve(tree, arm, out / "arms")
        started = any((out / "runs").glob(f"{arm.name}__seed*.json"))
        if text is not None and started and (changed := _changed(text, before.read_text(encoding="utf-8"))):
            put_file(before.parent, before.name, text)
            raise ValueError(
                f"{str(out)!r} has runs of arm {arm.name} with another config ({changed}): give another --out, or delete them"
            )
    return [Run(arm, seed, out, where, keep) for seed in seeds for arm in arms]


def _changed(before: str, after: str) -> str:
    """Where two configs differ, in words; the seed does not count."""
    import yaml

    try:
        trees = [yaml.safe_load(text) for text in (before, after)]
    except yaml.YAMLError:
        return ""
    if not isinstance(trees[0], dict):  # damaged, too: the records say of which config they are
        return ""
    flat = [_flattened(tree) for tree in trees]
    keys = [key for key in {**flat[0], **flat[1]} if key != "seed_everything" and flat[0].get(key) != flat[1].get(key)]
    some = [f"{key}: {flat[0].get(key)!r} then, {flat[1].get(key)!r} now" for key in keys]
    return "; ".join(some[:3]) + (f"; {len(some) - 3} more" if len(some) > 3 else "")


def _flattened(tree: Any, above: str = "") -> dict[str, Any]:
    if isinstance(tree, Mapping | list) and tree:
        items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        return {
            key: leaf
            for name, value in items
            for key, leaf in _flattened(value, f"{above}.{name}" if above else str(name)).items()
        }
    return {above: tree}


def _record(run: Run, console: Console | None = None) -> dict[str, Any] | None:
    """The record of a run; None where there is none, or one that cannot be read, which is said on the console."""
    from groupcam_aug.recipes.trial.record import read_record

    if not run.path.is_file():
        return None
    try:
        return read_record(run.path)
    except ValueError as error:
        if console is not None:
            say(console, f"{error}: it is run again", mark="damaged", style="yellow")
        return None


def _check_finished(runs: Sequence[Run]) -> None:
    """Records must be those of the arms as they are now."""
    from groupcam_aug.recipes.trial.configured import settings_hash
    from groupcam_aug.recipes.trial.record import read_record

    for run in runs:
        if read_record(run.path)["hash"] != settings_hash(run.config):
            raise ValueError(
                f"{str(run.path)!r} was run with another config of arm {run.arm.name}: give another --out, or delete it"
            )


def _known_seconds(runs: Sequence[Run]) -> dict[str, float]:
    from groupcam_aug.recipes.trial.record import read_record

    known: dict[str, list[float]] = {}
    for run in runs:
        known.setdefault(run.arm.name, []).append(read_record(run.path)["train"]["seconds"])
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
) -> list[Path]:
    """The results, shown and written."""
    from groupcam_aug.callbacks.report import render
    from groupcam_aug.recipes.trial.summary import write_results

    found_records = {run.name: record for run in runs if (record := _record(run)) is not None}
    planned: dict[str, int] = {}
    sheets: dict[str, bytes] = {}
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
    return write_results(
        Path(options.out),
        list(found_records.values()),
        metric=options.metric,
        mode=options.mode,
        reference=reference,
        margin=options.margin,
        failures=[failure._asdict() for failure in failures],
        planned=planned,
        command=command,
        sheets=sheets,
        show=lambda results: print_results(console, results),
    )
