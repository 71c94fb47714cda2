"""The metric that a trial compares its arms in: which way is better, and whether the tests measure it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Literal

from groupcam_aug.recipes.unknown_names import nearest

__all__ = ["ACCURACIES", "Mode", "better", "check_measured"]

Mode = Literal["max", "min"]

# Shares of right answers, shown in percent and their differences in points. All other metrics are shown as they were logged.
ACCURACIES = ("accuracy", "mean_class_accuracy", "worst_class_accuracy", "worst_group_accuracy")
_MORE = re.compile(r"accuracy|(?<![a-z])acc(?![a-z])")
_LESS = re.compile(r"loss|error|nll|mse|brier|perplexity")


def better(metric: str) -> Mode | None:
    """Whether more ("max") or less ("min") of a metric is better, by its name; None if that does not tell."""
    name = metric.lower()
    modes: list[Mode] = [mode for mode, words in (("max", _MORE), ("min", _LESS)) if words.search(name)]  # type: ignore[misc]
    return modes[0] if len(modes) == 1 else None


def check_measured(metric: str, measured: Collection[str], problems: Iterable[str] = ()) -> None:
    """Whether any arm's tests measure the metric.

    Args:
        metric: that is asked for.
        measured: what they measure.
        problems: why there is no accuracy, as far as known.

    Raises:
        ValueError: none does.
    """
    if metric in measured:
        return
    reasons = list(dict.fromkeys(problems)) if metric in ACCURACIES else []
    why = f" ({'; '.join(reasons)})" if reasons else nearest(metric, measured)
    raise ValueError(f"--metric {metric}: no test measures it{why}; measured: {', '.join(measured) or 'nothing'}")
