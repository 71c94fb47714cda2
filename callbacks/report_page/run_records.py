"""The records of a run, read from its folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from groupcam_aug.callbacks.report_page.record_shapes import ERRORS, FACTS, SAMPLES, curve_misfit, line_misfit
from groupcam_aug.files import all_lines, inside, read_lines, those_that_hold
from groupcam_aug.json_shape import fitting, misfit

__all__ = ["FILES", "RunRecords", "current_run", "higher_is_better", "main_metric", "read_records", "series"]

ENOUGH_ALIVE = 0.5  # where the monitor does not say
OUR_PREFIXES = ("groupcam/", "saliency/")  # of what the callbacks log, which is no score
FILES = ("run.json", "run.jsonl", "monitor.json", "monitor.jsonl", "augmentation.json", "augmentation.jsonl", "evaluation.json")

T = TypeVar("T")


@dataclass
class RunRecords:
    """What the callbacks wrote; empty where nothing was written."""

    folder: Path
    run: dict[str, Any] = field(default_factory=dict)
    epochs: list[dict[str, Any]] = field(default_factory=list)  # of run.jsonl
    monitor: dict[str, Any] = field(default_factory=dict)
    probings: list[dict[str, Any]] = field(default_factory=list)
    augmentation: dict[str, Any] = field(default_factory=dict)
    augmentation_epochs: list[dict[str, Any]] = field(default_factory=list)
    sample_grids: list[dict[str, Any]] = field(default_factory=list)
    errors: dict[str, Any] = field(default_factory=dict)  # of the last probing: monitor/errors.json
    evaluation: dict[str, Any] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)  # what could not be read, by its path
    others: int = 0  # lines and files of other runs in the folder
    mixed: bool = False  # whether another run wrote on after this one had begun

    def note_problem(self, path: Path, problem: object, instead: T) -> T:
        """Keep in mind what is wrong with a file, and return what is taken in its place."""
        self.problems[str(path)] = f"{path.relative_to(self.folder).as_posix()} {problem}"
        return instead

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to report."""
        return not any((self.run, self.epochs, self.probings, self.augmentation_epochs, self.evaluation))

    @property
    def drawn_epochs(self) -> list[dict[str, Any]]:
        """The epochs in which images were drawn to be augmented."""
        return [line for line in self.augmentation_epochs if line.get("drawn")]

    @property
    def compared(self) -> list[dict[str, Any]]:
        """The probings whose change is known: maps of an untrained network are no reference, and neither are too few."""
        warmup = self.monitor.get("warmup_epochs", 1)
        pairs = zip(self.probings, self.probings[1:], strict=False)
        known = [line for before, line in pairs if before.get("epoch", 0) + 1 >= warmup and line.get("counted") != 0]
        return [line for line in known if line.get("alive") is None or line["alive"] >= self.min_alive]

    @property
    def min_alive(self) -> float:
        """Share of the probes that must have a map, below which the monitor sets the change to 1."""
        return float(self.monitor.get("min_alive", ENOUGH_ALIVE))

    def class_name(self, label: int | str | None) -> str:
        """A class in words: "cat", or "class 3" where names are unknown; "" for None."""
        if label is None:
            return ""
        # The monitor first: it alone can be told names.
        for names in (facts.get("class_names") for facts in (self.monitor, self.run, self.augmentation)):
            if isinstance(names, list) and 0 <= int(label) < len(names):
                return str(names[int(label)])
        return f"class {label}"


def read_records(folder: Path) -> RunRecords:
    """Read `folder`, the `groupcam` folder of a run.

    Of several runs in one folder the last to begin is read, with those that it resumes. What is damaged is left out and named in
    `problems`.
    """
    found = RunRecords(folder)
    try:
        chain = [line for line in read_lines(folder, "runs") if isinstance(line.get("run"), str)]
    except (OSError, ValueError) as error:
        chain = found.note_problem(folder / "runs.jsonl", f"cannot be read: {error}", [])
    ids = {line["run"] for line in chain} if chain else None
    if ids is not None and chain[0].get("epoch"):
        ids.add(None)  # it resumes one that had no id

    def is_other(content: dict[str, Any]) -> bool:
        return ids is not None and not (isinstance(run := content.get("run"), (str, type(None))) and run in ids)

    def facts(path: Path, shape: dict[str, Any]) -> dict[str, Any]:
        content = _read(path, found)
        may_be_copied = path.name == "evaluation.json" and "run" not in content  # there by hand
        if content and is_other(content) and not may_be_copied:
            found.others += 1
            return {}
        kept, problems = fitting(content, shape)
        if problems:
            found.note_problem(path, f"is not what it should be ({'; '.join(problems)})", None)
        return kept

    def lines(name: str) -> list[dict[str, Any]]:
        path = folder / f"{name}.jsonl"
        try:
            every = all_lines(folder, name)
        except (OSError, ValueError) as error:
            return found.note_problem(path, f"cannot be read: {error}", [])
        kept, problems, began = [], [], False
        for line in every:
            if is_other(line):
                found.others += 1
                found.mixed |= began
            elif problem := line_misfit(name, line):
                problems.append(problem)
            else:
                kept.append(line)
                began |= bool(chain) and line.get("run") == chain[-1]["run"]
        if problems:
            count = "a line" if len(problems) == 1 else f"{len(problems)} lines"
            found.note_problem(path, f"has {count} not as it should be ({problems[0]})", None)
        return those_that_hold(kept)

    found.run = facts(folder / "run.json", FACTS["run"])
    found.epochs = lines("run")
    found.monitor = facts(folder / "monitor.json", FACTS["monitor"])
    found.probings = lines("monitor")
    found.augmentation = facts(folder / "augmentation.json", FACTS["augmentation"])
    found.augmentation_epochs = lines("augmentation")
    found.evaluation = facts(folder / "evaluation.json", FACTS["evaluation"])
    if problem := curve_misfit(found.evaluation):
        found.note_problem(folder / "evaluation.json", f"is not what it should be ({problem})", None)
        del found.evaluation["methods"]
    errors = facts(path := folder / "monitor" / "errors.json", {})
    if errors and (problem := misfit(errors, ERRORS)):
        found.note_problem(path, f"is not what it should be ({problem})", None)
    elif errors and found.probings and errors["epoch"] == found.probings[-1]["epoch"]:
        found.errors = errors
    last = max((line["epoch"] for line in found.augmentation_epochs), default=None)
    for path in sorted((folder / "gallery").glob("epoch_*.json")):
        grid = facts(path, {})
        if grid and (problem := misfit(grid, SAMPLES)):
            found.note_problem(path, f"is not what it should be ({problem})", None)
        elif grid and (last is None or grid["epoch"] <= last):
            found.sample_grids.append(grid)
    return found


def current_run(folder: Path) -> str | None:
    """Id of the run that began last in a folder of records; None of one without ids."""
    lines = read_lines(folder, "runs")
    return lines[-1].get("run") if lines else None


def series(lines: Iterable[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Epochs and values of a number, at those lines that have it."""
    points = [(line["epoch"], line[key]) for line in lines if _is_number(line.get(key)) and _is_number(line.get("epoch"))]
    return [float(epoch) for epoch, _ in points], [float(value) for _, value in points]


def main_metric(lines: list[dict[str, Any]]) -> str | None:
    """The logged number that says best how good the network is: a validation score, else a validation loss, else of training."""
    names = list({name: None for line in lines for name, value in line.items() if _is_number(value)})
    names = [name for name in names if name not in ("epoch", "step", "lr", "seconds") and not name.startswith(OUR_PREFIXES)]
    for pattern in (rf"(?=.*val).*{_SCORES}", r"(?=.*val).*loss", _SCORES, "loss"):
        for name in names:
            if re.match(f".*?{pattern}", name.lower()) and not name.endswith("_step"):
                return name
    return None


def higher_is_better(name: str) -> bool:
    """Whether a logged number grows as the network gets better."""
    return not re.search(r"loss|err|perplexity|mae|mse", name.lower())


_SCORES = r"(acc|f1|auroc|auc|iou|dice|precision|recall|top1|top_1|kappa|map\b)"


def _read(path: Path, found: RunRecords) -> dict[str, Any]:
    """A file of facts; empty if there is none, or none that can be read."""
    try:
        if not inside(found.folder, path).is_file():
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        return found.note_problem(path, f"is no JSON ({error})", {})
    except (OSError, ValueError) as error:
        return found.note_problem(path, f"cannot be read: {error}", {})
    if not isinstance(content, dict):
        return found.note_problem(path, f"holds {type(content).__name__}, not an object", {})
    return content


def _is_number(value: Any) -> bool:
    return misfit(value, float) is None
