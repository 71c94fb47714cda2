"""What the records of a run hold, as far as the page reads it; see `misfit` for how a shape is written."""

from __future__ import annotations

from typing import Any

from groupcam_aug.callbacks.records.sample_grid import COLUMNS
from groupcam_aug.json_shape import misfit

__all__ = ["ERRORS", "FACTS", "LINES", "SAMPLES", "curve_misfit", "line_misfit"]

_NUMBER = (float, None)
_NAMES = ([(str, int)], None)
_CURVE = {"fractions?": [float], "mean?": [float], "auc": float, "interval?": ([float, float], None)}

# Of each file: a part that does not fit is left out.
FACTS: dict[str, dict[str, Any]] = {
    "run": {"class_names?": _NAMES, "resumed?": [int], "versions?": {...: object}, "status?": str},
    "monitor": {
        "cells?": [int],
        "class_names?": _NAMES,
        "every_n_epochs?": int,
        "labelled?": bool,
        "labels?": [int],
        "min_alive?": float,
        "origin?": str,
        "shown?": [int],
        "threshold?": float,
        "warmup_epochs?": float,
    },
    "augmentation": {"class_names?": _NAMES, "layer_shape?": ([int], None), "world_size?": int},
    "evaluation": {
        "methods?": {...: {"insertion?": (_CURVE, None), "deletion?": (_CURVE, None)}},
        "sanity?": {
            "spearman?": [_NUMBER],
            "stages?": [object],
            "undefined?": [_NUMBER],
            "floors?": {...: _NUMBER},
            "passed?": (bool, None),
            "mode?": str,
            "standing?": [str],
        },
        "told?": str,
    },
}

# Of each line: one that does not fit is left out.
LINES: dict[str, dict[str, Any]] = {
    "run": {"epoch": float, "lr?": _NUMBER, "seconds?": _NUMBER},
    "monitor": {
        "epoch": float,
        "probe_right?": [(bool, float)],
        "probe_chosen?": [int],
        **{f"{name}?": _NUMBER for name in ("alive", "change", "converged_epoch", "counted", "flip_rate", "noise", "seconds")},
    },
    "augmentation": {
        "epoch": int,
        "images": int,
        "drawn": int,
        "no_map": int,
        "steps": int,
        "augmented_steps": int,
        "keep_histogram?": [float],
        "per_class?": {...: [float, float]},
        "other_classes?": [float, float],
        "unlabelled?": [float, float],
        **{f"{name}?": _NUMBER for name in ("keep_fraction", "object_kept", "ground_kept", "seconds", "plain_seconds")},
    },
}

_ERROR = {"label": int, "chosen": int, "confidence": _NUMBER, "score": _NUMBER, "has_map": bool}
ERRORS = {"epoch": float, "cell": [int, int], "wrong": int, "rows": [_ERROR]}
_SAMPLE = {"kind": str, "keep": float, "label?": (int, None)}
SAMPLES = {"epoch": int, "cell": [int, int], "columns": [str] * len(COLUMNS), "rows": [_SAMPLE]}


def line_misfit(name: str, line: dict[str, Any]) -> str | None:
    """Where a line of `NAME.jsonl` is not what it should be, in words; None if it is."""
    labels = line.get("per_class")
    if isinstance(labels, dict) and not all(label.isdecimal() for label in labels):
        return f"per_class has the class {next(label for label in labels if not label.isdecimal())!r}, not a number"
    return misfit(line, LINES[name])


def curve_misfit(evaluation: dict[str, Any]) -> str | None:
    """Which curve of an `evaluation.json` that is otherwise as it should be cannot be drawn, in words; None if all can."""
    for name, method in evaluation.get("methods", {}).items():
        for kind in ("insertion", "deletion"):
            curve = method.get(kind) or {}
            points, values = len(curve.get("fractions", ())), len(curve.get("mean", ()))
            if points != values:
                return f"methods.{name}.{kind} has {points} fractions and {values} means"
    return None
