"""The runs of a trial: the arms' configs in its folder, which runs are finished, and that nothing there is somebody else's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from groupcam_aug.files import put_file
from groupcam_aug.recipes.terminal import say
from groupcam_aug.recipes.trial.arms import Arm, where_things_are
from groupcam_aug.recipes.trial.configured import resolve, settings_hash
from groupcam_aug.recipes.trial.record import read_record
from groupcam_aug.recipes.trial.run import Run

__all__ = ["finished_runs", "planned_runs", "record_of"]

Record = dict[str, Any]


def planned_runs(
    config: Mapping[str, Any], arms: Sequence[Arm], seeds: Sequence[int], out: Path, keep: bool = False
) -> list[Run]:
    """Every run of a trial; the arms' configs are written.

    Args:
        config: complete, of `read_config`.
        arms: in the order of the tables.
        seeds: of each arm.
        out: folder of the trial.
        keep: whether the last weights of each run are kept. Default: they are not.

    Raises:
        SystemExit: the parser refuses an arm's config (status 2, after its message).
        FileExistsError: a file in the place of an arm's config is none of a trial's.
        ValueError: there are runs of an arm with another config.
    """
    where = where_things_are(config, arms)
    for arm in arms:
        before = out / "arms" / f"{arm.name}.yaml"
        text = before.read_text(encoding="utf-8", errors="replace") if before.is_file() else None
        started = any((out / "runs").glob(f"{arm.name}__seed*.json"))
        if text is not None and not started and not text.startswith(f"# arm {arm.name}"):
            raise FileExistsError(f"{str(before)!r} is there and no config of a trial: give another folder by --out")
        resolve(config, arm, out / "arms")
        if text is not None and started and (changed := _changed(text, before.read_text(encoding="utf-8"))):
            put_file(before.parent, before.name, text)
            raise ValueError(
                f"{str(out)!r} has runs of arm {arm.name} with another config ({changed}): give another --out, or delete them"
            )
    return [Run(arm, seed, out, where, keep) for seed in seeds for arm in arms]


def finished_runs(runs: Sequence[Run], console: Console) -> dict[str, Record]:
    """The records of the runs that are finished, by the runs' names; damaged ones are said, and left out.

    Raises:
        FileExistsError: what is in the place of a run that is to be done is none of a trial's.
        ValueError: a record is of another config than the arm's.
    """
    records: dict[str, Record] = {}
    for run in runs:
        record = record_of(run, console)
        if record is None:
            run.check_place()
        elif record["hash"] != settings_hash(run.config):
            raise ValueError(
                f"{str(run.path)!r} was run with another config of arm {run.arm.name}: give another --out, or delete it"
            )
        else:
            records[run.name] = record
    return records


def record_of(run: Run, console: Console | None = None) -> Record | None:
    """The record of a run; None where there is none, or one that cannot be read, which is said on the console."""
    if not run.path.is_file():
        return None
    try:
        return read_record(run.path)
    except ValueError as error:
        if console is not None:
            say(console, f"{error}: it is run again", mark="damaged", style="yellow")
        return None


def _changed(before: str, after: str) -> str:
    """Where two configs differ, in words; the seed does not count."""
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
