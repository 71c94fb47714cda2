"""The records of a run, read from its folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from groupcam_aug.files import read_lines

__all__ = ["FILES", "RunRecords", "higher_is_better", "main_metric", "read_records", "series"]

CLOCK_SKEW = 5.0  # seconds by which the clocks of file servers may differ
ENOUGH_ALIVE = 0.5  # where the monitor does not say
OUR_PREFIXES = ("groupcam/", "saliency/")  # of what the callbacks log, which is no score
FILES = ("run.json", "run.jsonl", "monitor.json", "monitor.jsonl", "augmentation.json", "augmentation.jsonl", "evaluation.json")


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
    evaluation: dict[str, Any] = field(default_factory=dict)

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
        for names in (self.run.get("class_names"), self.monitor.get("class_names")):
            if isinstance(names, list) and 0 <= int(label) < len(names):
                return str(names[int(label)])
        return f"class {label}"


def read_records(folder: Path) -> RunRecords:
    """Read `folder`, the `groupcam` folder of a run. Files last written before the run began are of an earlier one there.

    Raises:
        ValueError: a file there is not what it should be; it is named.
    """
    run = _read(folder / "run.json")
    began = _began(run)

    def lines(name: str) -> list[dict[str, Any]]:
        return read_lines(folder, name) if _is_new(folder / f"{name}.jsonl", began) else []

    def facts(path: Path) -> dict[str, Any]:
        return _read(path) if _is_new(path, began) else {}

    augmentation_epochs = lines("augmentation")
    last = max((line["epoch"] for line in augmentation_epochs if _is_number(line.get("epoch"))), default=None)
    grids = [grid for path in sorted((folder / "gallery").glob("epoch_*.json")) if (grid := facts(path))]
    return RunRecords(
        folder=folder,
        run=run,
        epochs=lines("run"),
        monitor=facts(folder / "monitor.json"),
        probings=lines("monitor"),
        augmentation=facts(folder / "augmentation.json"),
        augmentation_epochs=augmentation_epochs,
        sample_grids=[grid for grid in grids if last is None or grid.get("epoch", 0) <= last],
        evaluation=facts(folder / "evaluation.json"),
    )


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


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); move it away, the report does without it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, not an object; move it away, the report does without it")
    return content


def _began(run: dict[str, Any]) -> float:
    """When the run began, in seconds since 1970; 0 if that is not known."""
    try:
        return datetime.fromisoformat(run["started"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return 0.0


def _is_new(path: Path, began: float) -> bool:
    """Whether a file is of a run that began then."""
    return path.is_file() and path.stat().st_mtime >= began - CLOCK_SKEW


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
