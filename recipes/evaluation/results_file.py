"""The rows of ``groupcam-aug evaluate``: one for each image and method, kept on disk so that a stopped run goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from groupcam_aug.files import add_line, put_file, read_lines
from groupcam_aug.json_shape import misfit
from groupcam_aug.occlusion import window_count
from groupcam_aug.recipes.evaluation.datasets import Item
from groupcam_aug.recipes.evaluation.map_method import Method
from groupcam_aug.recipes.evaluation.methods import RENAMED
from groupcam_aug.targets import Activation

__all__ = ["Outcome", "Plan", "ResultsFile"]

_KEPT = "images"  # images.jsonl
_CURVES = ("insertion", "deletion")
# What lines hold, for a file that was damaged or changed by hand.
_SANITY = {
    "mode": str,
    "stages": [str],
    "spearman": [(float, None)],
    "undefined": [float],
    "floors": {...: (float, None)},
    "passed": (bool, None),
    "standing?": [str],
}
_ROW = {
    "file": str,
    "stamp": object,
    "method": str,
    "label": object,
    "undefined": bool,
    **{f"{name}?": bool for name in ("hit", "box_error", "top1_error")},
    **{f"{name}?": (float, None) for name in (*_CURVES, "drop", "activation", "energy", "occlusion", "seconds")},
    **{f"{name}_curve?": ([float], None) for name in _CURVES},
}
_MEASURED: dict[str, dict[str, Any]] = {
    "pointing": {"hit": bool, "energy": float},
    "localisation": {"box_error": bool, "top1_error": bool},
    "occlusion": {"occlusion": (float, None)},
}
_OTHER_LINES = ({"method": str, "cost": float}, {"method": str, "files": [str], "sanity": _SANITY}, {"fractions": [float]})


@dataclass(frozen=True)
class Plan:
    """What is measured, and how. All but the batch size decides the figures."""

    measures: tuple[str, ...] = ("curves", "drop", "sanity")  # or "occlusion", and with boxes "pointing", "localisation"
    steps: int = 28
    substrate: Literal["blur", "zeros", "mean"] = "blur"
    author_compatible: bool = False
    tolerance: float = 15.0  # of the pointing game, in pixels of the file
    sanity_mode: Literal["cascading", "independent"] = "cascading"
    sanity_images: int = 8
    seed: int = 0
    batch_size: int = 16
    activation: Activation = "softmax"

    def settings(self) -> dict[str, Any]:
        """What rows of one file must have in common."""
        left_out = {"batch_size", "sanity_images", *(["activation"] if self.activation == "softmax" else [])}  # as of old files
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    def description(self) -> str:
        """In words, for people."""
        parts = []
        if "curves" in self.measures:
            parts.append(
                "the authors' 112 steps" if self.author_compatible else f"{self.steps} steps, substrate {self.substrate}"
            )
        if "pointing" in self.measures:
            parts.append(f"pointing with a tolerance of {self.tolerance:g} pixels, mean over classes")
        if "localisation" in self.measures:
            parts.append("boxes around what is at least 15 % of the maximum, right from an overlap (IoU) of 0.5 on")
        if "occlusion" in self.measures:
            parts.append("ranks against windows hidden by mean grey")
        if self.activation != "softmax":
            parts.append(self.activation)
        return "; ".join([*parts, "95 % intervals over images"])

    @property
    def passes(self) -> int:
        """Forward passes that the scores of one map take."""
        curves = (2 * 112 + 1 if self.author_compatible else 2 * self.steps) if "curves" in self.measures else 0
        return curves + 2 * ("drop" in self.measures)

    def shared_passes(self, size: tuple[int, int]) -> int:
        """Forward passes that an image of this size takes once for all methods."""
        return window_count(*size) + 1 if "occlusion" in self.measures else 0


@dataclass
class Outcome:
    """What could not be done, with the reasons."""

    failed: dict[Path, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)  # by the method's key


class ResultsFile:
    """The rows of `images.jsonl`: one for each image and method, so that a later call goes on where one was stopped.

    Args:
        folder: of the file; not made before a row is written.
        settings: what the rows depend on.
        restart: drop what is there, instead of refusing other settings.

    Raises:
        ValueError: the file holds rows of other settings, or none of this command.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], *, restart: bool = False) -> None:
        self.folder, self.settings, self._dropping = folder, json.loads(json.dumps(settings)), restart
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}
        self.costs: dict[str, float] = {}
        self.sanity: dict[str, dict[str, Any]] = {}
        self.fractions: list[float] = []
        self.damaged = 0  # lines left out, whose rows are measured again
        self._opened = False
        measured = self.settings.get("measures", ())
        wanted = {name: kind for measure, own in _MEASURED.items() if measure in measured for name, kind in own.items()}
        kinds = ({**_ROW, **wanted}, *_OTHER_LINES)
        lines = [] if restart else read_lines(folder, _KEPT)
        if lines:
            there = lines[0].get("settings")
            if not isinstance(there, dict):
                raise ValueError(
                    f"'{folder / _KEPT}.jsonl' does not begin with the settings of this command (damaged, or another's): give "
                    "another folder by --out, or drop it by --restart"
                )
            now = self.settings
            names = [name for name in {**there, **now} if there.get(name) != now.get(name)]
            if names:
                differences = "; ".join(f"{name}: {there.get(name)!r} there, {now.get(name)!r} now" for name in names)
                raise ValueError(
                    f"{str(folder)!r} holds rows of other settings ({differences}): give another --out, or drop them by --restart"
                )
            self._opened = True
        for line in lines[1:]:
            if misfit(line, kinds):
                self.damaged += 1
            else:
                self._take(line)
        for key in [key for key, row in self.rows.items() if not self._has_whole_curves(row)]:
            self.damaged += 1
            del self.rows[key]

    def add(self, line: dict[str, Any]) -> None:
        """Keep a row, a cost, or a sanity check; on disk at once."""
        if self._dropping:
            put_file(self.folder, f"{_KEPT}.jsonl", "")
            self._dropping = False
        if not self._opened:
            add_line(self.folder, _KEPT, {"settings": self.settings})
            self._opened = True
        add_line(self.folder, _KEPT, line)
        self._take(line)

    def row(self, item: Item, key: str) -> dict[str, Any] | None:
        """Of this method (its key); None if there is none, or one of a file that has been replaced since."""
        row = self.rows.get((item.key, key))
        return row if row is not None and row.get("stamp") == item.stamp else None

    def todo(self, items: Iterable[Item], method: Method) -> list[Item]:
        """Those without a row of this method."""
        return [item for item in items if self.row(item, method.key) is None]

    def _has_whole_curves(self, row: dict[str, Any]) -> bool:
        lengths = {len(row.get(f"{kind}_curve") or ()) for kind in _CURVES}
        areas = {row.get(kind) is None for kind in _CURVES}
        return len(areas) == len(lengths) == 1 and lengths <= {0, len(self.fractions)}

    def _take(self, line: dict[str, Any]) -> None:
        if line.get("method") in RENAMED:
            line = {**line, "method": RENAMED[line["method"]]}
        if "cost" in line:
            self.costs[line["method"]] = line["cost"]
        elif "sanity" in line:
            self.sanity[line["method"]] = line
        elif "fractions" in line:
            self.fractions = line["fractions"]
        elif "file" in line:
            self.rows[line["file"], line["method"]] = line
