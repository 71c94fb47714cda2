"""``groupcam-aug study NAME``: does the augmentation help, compared with controls, over paired seeds?

Every run of a seed has the same data, starting weights, order, crops and flips; the arms differ in what they do to the
batches. All train for the same number of epochs and the last one is reported: nothing is chosen on the test set. Each finished
run is one file, so a study that was stopped goes on where it was when the same command is given again.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from groupcam_aug.recipes.cli import Refused, device_of, nearest, refusing
from groupcam_aug.recipes.trial.arms import ARMS, Arm, read_arm
from groupcam_aug.recipes.trial.variants import changed, read_variant

if TYPE_CHECKING:  # torch takes seconds to import: not for `--help`
    from groupcam_aug.recipes.trial.regimes import Regime
    from groupcam_aug.recipes.trial.run import Trial
    from groupcam_aug.recipes.trial.runner import Work
    from groupcam_aug.recipes.trial.training import Machine

__all__ = ["STUDIES", "planned", "read_regime", "read_seeds", "run"]

STUDIES = {
    "backgrounds": "drawn objects whose background gives the class away, with probability rho",
    "finetune": "CIFAR-10, all or little of it: pretrained networks as in the paper, and one from scratch",
    "scenes": "CIFAR-10 photographs in scenes that go with the class, by texture or by colour",
}


def run(command: str, words: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog=f"groupcam-aug {command}",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", choices=STUDIES, metavar="NAME", help=", ".join(STUDIES))
    parser.add_argument("--list", action="store_true", help="show the arms, and the regimes of the studies")
    parser.add_argument("--dry-run", action="store_true", help="show what would be run, and about how long it takes")
    parser.add_argument("--summarise", metavar="OUT", help="run nothing; write the results of the finished runs in that folder")
    parser.add_argument("--out", default="groupcam_study", help="folder for runs and results (default: %(default)s)")
    parser.add_argument("--size", choices=["smoke", "cpu", "full"], help="default: full on a GPU, else cpu")
    parser.add_argument("--regimes", nargs="+", metavar="NAME", help="NAME or NAME,key=value,... (default: the study's)")
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="NAME or NAME,key=value,... (default: the study's)")
    parser.add_argument("--seeds", metavar="N", help="how many, from 0; or which: 3-7, or 0,2,5 (default: the study's)")
    parser.add_argument("--reference", default="none", metavar="ARM", help="arm that others are compared with (default: none)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: cuda if there is one, else cpu)")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="of network passes")
    parser.add_argument("--jobs", type=int, help="runs at a time, one thread each on a CPU (default: one per core; 1 on a GPU)")
    parser.add_argument("--data", help="folder with CIFAR-10 and pretrained weights (default: $GROUPCAM_DATA)")
    parser.add_argument("--network", help="for the regimes own-*: as in `fit`, timm/<name> or torchvision/<name>")
    parser.add_argument("--pretrained", metavar="FILE", help="for the regimes own-*: its state dict")
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.weights:
        parser.error("--weights is now --pretrained: a file of network weights; importance weights are an arm, as fast-weights")
    console = Console()
    if options.list:
        _print_list(console, options.name, options.size or "cpu")
        return 0
    if options.name is None:
        parser.error(f"which study? {', '.join(STUDIES)} (or --list)")
    if options.jobs is not None and options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: give at least 1")
    from groupcam_aug.recipes.trial.runner import work_through
    from groupcam_aug.recipes.trial.summary import write_summary

    with refusing():
        reference = read_arm(options.reference).name
        if options.summarise:
            _print_written(console, write_summary(Path(options.summarise), options.name, reference, planned=_missing))
            return 0
        work = _work(options)
        if reference != "none" and not _is_there(reference, work):
            raise ValueError(f"--reference {reference} is none of the arms to run, nor finished in {options.out!r}")
    done = [trial for trial in work.trials if trial.path(work.out).is_file()]
    pending = [trial for trial in work.trials if not trial.path(work.out).is_file()]
    if options.dry_run:
        _print_plan(console, work, pending)
        return 0
    if done:
        console.print(f"{len(done)} of {len(work.trials)} runs are finished already")
    try:
        failed = work_through(work._replace(trials=pending), console)
    except KeyboardInterrupt:
        told = f"finished runs are kept in {work.out / 'runs'}; the same command goes on with the rest"
        console.print(told, soft_wrap=True, highlight=False)
        raise
    with refusing():
        _print_written(console, write_summary(work.out, options.name, reference, planned=_missing))
    if failed:
        raise Refused(f"{failed} of {len(work.trials)} runs are missing; the same command tries them again")
    return 0


def planned(
    name: str, size: str, machine: Machine, regimes: Sequence[str] | None, arms: Sequence[str] | None, seeds: str | None
) -> list[Trial]:
    """The runs of a study, seed by seed, each once.

    Args:
        name: of the study.
        size: "smoke", "cpu" or "full".
        machine: where they run.
        regimes: names, perhaps with changes. None: those the study runs by default.
        arms: likewise.
        seeds: as for the command. None: as many as the study runs by default.

    Raises:
        ValueError: unknown names, arms that a regime cannot run.
    """
    from groupcam_aug.recipes.trial.run import Trial, check_trial

    module = _module(name)
    table, plans = module.regimes(size), list(module.plans(size))
    wanted = {text: read_regime(text, table) for text in regimes or ()}
    chosen = None if arms is None else [read_arm(text) for text in arms]
    rows: list[tuple[Regime, Sequence[Arm], Sequence[int]]] = []
    for plan in plans:
        own = [text for text in plan.regimes if regimes is None or text in wanted]
        rows += [(table[text], chosen or [read_arm(arm) for arm in plan.arms], range(plan.seeds)) for text in own]
    if regimes is not None:
        known = {text for plan in plans for text in plan.regimes}
        some = chosen or [read_arm(arm) for arm in plans[0].arms]
        rows += [(wanted[text], some, range(plans[0].seeds)) for text in wanted if text not in known]
    trials = [
        Trial(regime, arm, seed, machine)
        for regime, own_arms, own_seeds in rows
        for seed in (read_seeds(seeds) if seeds is not None else own_seeds)
        for arm in own_arms
    ]
    order = {text: i for i, text in enumerate(dict.fromkeys(regime.name for regime, _, _ in rows))}
    # Seed by seed, so that a study that is stopped has whole seeds to show.
    trials = sorted(dict.fromkeys(trials), key=lambda trial: (trial.seed, order[trial.regime.name]))
    kept = []
    for trial in trials:
        try:
            check_trial(trial)
            kept.append(trial)
        except ValueError:
            if chosen is not None or regimes is None:
                raise  # only arms that nobody asked for are left out of a regime that they do not fit
    return kept


def read_regime(text: str, table: dict[str, Any]) -> Regime:
    """The regime that `text` names, with its changes in its name.

    Raises:
        ValueError: see `variants.read_variant`.
    """
    base = text.split(",")[0].strip()
    found: Regime = read_variant(text, table, "regime", table[base].options if base in table else None)
    return dataclasses.replace(found, name=base + changed(found, table[base], found.options))


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


def _work(options: argparse.Namespace) -> Work:
    """What the options ask for."""
    import torch

    from groupcam_aug.recipes.trial.runner import Work
    from groupcam_aug.recipes.trial.stock import Stock
    from groupcam_aug.recipes.trial.training import Machine

    device = device_of(options.device)
    kind = torch.device(device).type
    machine = Machine(device, options.precision)
    size = options.size or ("full" if kind == "cuda" else "cpu")
    trials = planned(options.name, size, machine, options.regimes, options.arms, options.seeds)
    if options.name == "finetune":
        from groupcam_aug.recipes.trial.finetune import with_own

        trials = [trial._replace(regime=with_own(trial.regime, options.network, options.pretrained)) for trial in trials]
    elif options.network or options.pretrained:
        raise ValueError("--network and --pretrained belong to `study finetune --regimes own-50 own-500 own-full`")
    folder = options.data or os.environ.get("GROUPCAM_DATA")
    stock = Stock(Path(options.out) / "starts", Path(folder).expanduser().absolute() if folder else None)
    for regime in dict.fromkeys(trial.regime for trial in trials):
        regime.check(stock)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = options.jobs or (cores if kind == "cpu" else 1)
    return Work(trials, stock, Path(options.out), min(jobs, max(1, len(trials))))


def _is_there(reference: str, work: Work) -> bool:
    """Whether this arm is to be run, or has been."""
    arm = read_arm(reference)
    return any(trial.arm.name == arm.name or trial._replace(arm=arm).path(work.out).is_file() for trial in work.trials)


def _missing(name: str, size: str, machine: Machine, out: Path) -> list[tuple[str, str, int]]:
    """(regime, arm, number of seeds) of the study's own plan without a record, for the summary; none if all are."""
    trials = planned(name, size, machine, None, None, None)
    missing = [trial for trial in trials if not trial.path(out).is_file()]
    counts: dict[tuple[str, str], int] = {}
    for trial in missing if len(missing) < len(trials) else ():
        key = trial.regime.name, trial.arm.name
        counts[key] = counts.get(key, 0) + 1
    return [(*key, count) for key, count in counts.items()]


def _print_plan(console: Console, work: Work, pending: list[Trial]) -> None:
    from groupcam_aug.recipes.trial.runner import estimates

    estimate = estimates(work)
    table = Table(title=f"{len(pending)} runs to do, {len(work.trials) - len(pending)} finished")
    for column in ("regime", "arm", "seeds to do", "a run, s"):
        table.add_column(column, justify="left" if column in ("regime", "arm") else "right", overflow="fold")
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in pending:
        groups.setdefault((trial.regime.name, trial.arm.name), []).append(trial)
    for (regime, arm), trials in groups.items():
        table.add_row(regime, arm, ", ".join(str(trial.seed) for trial in trials), f"{estimate(trials[0]):.0f}")
    console.print(table)
    hours = sum(estimate(trial) for trial in pending) / work.jobs / 3600
    console.print(f"about {hours:.1f} h with --jobs {work.jobs}, shared preparations not counted", highlight=False)


def _print_list(console: Console, name: str | None, size: str) -> None:
    console.print("arms (--arms NAME or NAME,key=value,...):", highlight=False)
    arms = Table(show_header=False, box=None)
    for arm in ARMS.values():
        arms.add_row(arm.name, arm.about)
    console.print(arms)
    options = dict.fromkeys(option for arm in ARMS.values() for option in arm.options)
    console.print(f"keys: {', '.join(options)}\n", highlight=False)
    for study in [name] if name else STUDIES:
        console.print(f"regimes of {study} ({STUDIES[study]}), {size} size:", highlight=False)
        table = Table(show_header=False, box=None)
        found = _module(study).regimes(size)
        for regime in found.values():
            table.add_row(regime.name, f"about {regime.seconds:.0f} s a run without augmentation on one CPU core")
        console.print(table)
        console.print(f"keys: {', '.join(next(iter(found.values())).options)}\n", highlight=False)


def _print_written(console: Console, written: Sequence[Path]) -> None:
    if not written:
        console.print("no finished run: nothing written")
    for path in written:
        console.print(f"wrote {path}", soft_wrap=True, highlight=False)


def _module(name: str) -> Any:
    if name not in STUDIES:
        raise ValueError(f"no study {name!r}{nearest(name, STUDIES)}; known: {', '.join(STUDIES)}")
    return importlib.import_module(f"groupcam_aug.recipes.trial.{name}")


_EPILOG = """examples:
  groupcam-aug study backgrounds --size smoke
  groupcam-aug study backgrounds --dry-run
  groupcam-aug study backgrounds --regimes rho0.95 --arms none fast "fast,fill=other,source=teacher" --seeds 8
  groupcam-aug study finetune --regimes scratch-50,epochs=100 --arms none cutmix erase --seeds 3
  groupcam-aug study scenes --summarise groupcam_study"""
