"""The whole page: HTML from the records of a run."""

from __future__ import annotations

import os
import shlex
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

from groupcam_aug.callbacks.records.sample_grid import KINDS
from groupcam_aug.callbacks.report_page import sections
from groupcam_aug.callbacks.report_page.checks import findings, verdict
from groupcam_aug.callbacks.report_page.images import errors, film_strip, samples
from groupcam_aug.callbacks.report_page.mistakes import mistakes
from groupcam_aug.callbacks.report_page.run_records import RunRecords, read_records

__all__ = ["installed_version", "render", "render_records"]

LIMIT = 5_000_000  # bytes of a page
_KIND_NAMES = dict(zip(KINDS, ("fewest pixels kept", "most pixels kept", "no map", "typical"), strict=True))


def render(folder: str | os.PathLike[str]) -> str:
    """The report of a run as HTML, from its records alone.

    Args:
        folder: the `groupcam` folder in a run's log directory.

    Returns:
        A page without scripts and without any address outside itself, below 5 MB; sections without records say in a line what
        would fill them.

    Raises:
        FileNotFoundError: no records in that folder.
        ValueError: none of the records there can be read.
    """
    return render_records(read_records(Path(folder)))


def render_records(records: RunRecords) -> str:
    """The same of records that are read; what pictures cannot be read is added to their `problems`."""
    folder = records.folder
    if records.is_empty:
        if records.problems:
            raise ValueError(f"no record in {str(folder)!r} can be read: {'; '.join(records.problems.values())}")
        raise FileNotFoundError(f"{str(folder)!r} holds no records of a run")
    content = {
        "version": installed_version("groupcam-aug"),
        "name": records.run.get("name") or str(folder.resolve().parent if folder.name == "groupcam" else folder.resolve()),
        "headline": sections.headline(records),
        "cards": sections.cards(records),
        "curves": sections.curves(records),
        "probed": bool(records.probings),
        "epochs": bool(records.epochs),
        "augmentation": sections.augmentation(records),
        "cost": sections.cost(records),
        "faithfulness": sections.faithfulness(records),
        "mistakes": mistakes(records),
        "commands": _commands(records),
        "facts": sections.facts(records),
        "kinds": _KIND_NAMES,
    }
    page = ""
    for quality, columns, epochs in ((82, 16, 3), (60, 12, 2), (40, 8, 1)):
        pictures = {
            "film_strip": film_strip(records, quality, columns),
            "samples": samples(records, quality, epochs),
            "errors": errors(records, quality),
        }
        noted = findings(records)
        page = _template().render(content, verdict=verdict(noted), findings=noted, **pictures)
        # Names of files and texts of errors may hold halves of surrogate pairs, which no file in UTF-8 does.
        page = page.encode(errors="replace").decode()
        if len(page.encode()) < LIMIT:
            break
    return page


def _commands(records: RunRecords) -> dict[str, str]:
    """What to paste into a shell: `report` writes the page again; `evaluate`, where a checkpoint of the run is there."""
    folder = records.folder.resolve()
    commands = {"report": f"groupcam-aug report {shlex.quote(str(folder))}", "evaluate": ""}
    checkpoints = sorted((folder.parent / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    if checkpoints and records.run.get("model") == "Classifier":
        where = f"--checkpoint {shlex.quote(str(checkpoints[-1]))} --run {shlex.quote(str(folder))}"
        commands["evaluate"] = f"groupcam-aug evaluate photos/ {where}"
    return commands


def installed_version(name: str) -> str:
    """The version of a package; "unknown" where it runs from a folder."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


@lru_cache(maxsize=1)
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    text = files("groupcam_aug.callbacks.report_page").joinpath("report.html.j2").read_text(encoding="utf-8")
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(text)
