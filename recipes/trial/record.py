"""The record of a finished run of a trial, as it lies on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from groupcam_aug.json_shape import misfit

__all__ = ["read_record"]


def read_record(path: Path) -> dict[str, Any]:
    """A record as written; one that was changed since, or damaged, is none.

    Raises:
        ValueError: the file is none.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        problem = misfit(record, _RECORD)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is no record of a run ({error})") from error
    if problem:
        raise ValueError(f"{str(path)!r} is no record of a run ({problem})")
    return record


_NUMBER = (float, None)
_COUNTS = {...: [int, int]}  # right, all
_RECORD = {
    "arm": str,
    "seed": int,
    "about": (str, None),
    "control": (str, None),
    "hash": str,
    "tests": {
        ...: {
            "n": (int, None),
            "metrics": {...: _NUMBER},
            "classes": _COUNTS,
            "groups": _COUNTS,
            "digest?": (str, None),
            "unlabelled?": int,
            "not_finite?": int,
        }
    },
    "train": {
        "seconds": float,
        **{f"{key}?": _NUMBER for key in ("epochs", "steps", "planned", "loss", "augmented", "no_map")},
        **{f"{key}?": _NUMBER for key in ("keep_fraction", "object_kept", "ground_kept")},
    },
    "pairing": {f"{key}?": (str, None) for key in ("start", "batches", "data")},
    "warnings": [str],
    "folder": str,
    "device": str,
    "precision": str,
    "versions": {...: str},
}
