"""Paired statistics for a handful of seeds: differences, intervals, exact tests. Numbers in, numbers out.

Every function takes one number per seed, arms in the same order of seeds. What cannot be said (an interval from one seed) is
None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from groupcam_aug.metrics.intervals import bootstrap_interval

__all__ = [
    "Comparison",
    "Control",
    "compare",
    "equivalence_p",
    "mean_and_error",
    "positive_control",
    "recovered",
    "sign_flip_p",
    "student_interval",
]

ASSIGNMENTS = 2**16  # of signs: all of them for up to 16 seeds


class Comparison(NamedTuple):
    """One arm minus another, over the seeds both have."""

    n: int
    mean: float
    low: float | None  # percentile bootstrap interval; None from fewer than 2 seeds
    high: float | None
    t_low: float | None  # Student's interval: wider, and right for few seeds if differences are about normal
    t_high: float | None
    p: float | None  # exact sign-flip test, two-sided; None from fewer than 2 seeds
    wins: int  # seeds with a difference above zero
    equivalence: float | None  # p of the test that the difference is within the margin; None from fewer than 2 seeds


class Control(NamedTuple):
    """Whether a regime can show a gain at all."""

    works: bool | None  # None: no control arm was run on at least 2 seeds
    by: str | None  # the control arm with the largest gain
    comparison: Comparison | None  # of that arm with the reference


def mean_and_error(values: Sequence[float] | np.ndarray) -> tuple[float, float | None]:
    """Mean, and its standard error (None from fewer than 2 values)."""
    error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return float(np.mean(values)), error


def compare(values: Sequence[float], reference: Sequence[float], *, margin: float, level: float = 0.95) -> Comparison:
    """All that is said about one arm against another.

    Args:
        values: of the arm, one per seed.
        reference: of the arm it is compared with, same seeds in the same order.
        margin: of the equivalence test, in the unit of the values.
        level: of the interval.

    Raises:
        ValueError: different numbers of values, or none.
    """
    if len(values) != len(reference) or not len(values):
        raise ValueError(f"paired values need partners: {len(values)} values, {len(reference)} of the reference")
    differences = np.asarray(values, dtype=float) - np.asarray(reference, dtype=float)
    # Too narrow for few seeds, see `bootstrap_interval`: Student's interval and the exact test are for decisions.
    low, high = bootstrap_interval(differences, level=level) if len(differences) > 1 else (None, None)
    t_low, t_high = student_interval(differences, level=level) or (None, None)
    return Comparison(
        n=len(differences),
        mean=float(differences.mean()),
        low=low,
        high=high,
        t_low=t_low,
        t_high=t_high,
        p=sign_flip_p(differences),
        wins=int((differences > 0).sum()),
        equivalence=equivalence_p(differences, margin),
    )


def student_interval(differences: Sequence[float] | np.ndarray, *, level: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval of the mean over seeds; None from fewer than 2, a point where all are equal."""
    from scipy.stats import t

    mean, error = mean_and_error(differences)
    if error is None:
        return None
    # Not `ttest_1samp`: differences that are equal, as a few seeds' may be, make it warn.
    low, high = t.interval(level, len(differences) - 1, mean, error) if error else (mean, mean)
    return float(low), float(high)


def sign_flip_p(differences: Sequence[float] | np.ndarray) -> float | None:
    """Two-sided p of the sign-flip test: how many of all 2^n sign assignments have a mean at least as far from zero.

    Without an effect each paired difference is as likely to have the other sign. The smallest possible value is 2 / 2^n (0.0625
    for 5 seeds, 0.0078 for 8). Above 16 seeds, 2^16 random assignments with a fixed seed stand for all. None from fewer than 2.
    """
    from scipy.stats import permutation_test

    if len(differences) < 2:
        return None
    tested = permutation_test(
        (np.asarray(differences, dtype=float),),
        lambda signed, axis: signed.mean(axis=axis).round(9),  # or shares of 300 images that tie would not count as ties
        permutation_type="samples",
        vectorized=True,
        n_resamples=ASSIGNMENTS,
        rng=0,
    )
    return float(tested.pvalue)


def equivalence_p(differences: Sequence[float] | np.ndarray, margin: float) -> float | None:
    """P of two one-sided paired t tests (TOST): small when the mean difference is shown to lie within +-margin.

    Without any variance the answer is 0 (mean inside the margin) or 1. None from fewer than 2 seeds.

    Raises:
        ValueError: the margin is not positive.
    """
    if margin <= 0:
        raise ValueError(f"margin must be positive, got {margin}")
    from scipy.stats import t

    mean, error = mean_and_error(differences)
    if error is None:
        return None
    if not error:
        return 0.0 if abs(mean) < margin else 1.0
    return float(t.sf((margin - abs(mean)) / error, len(differences) - 1))  # the larger of the two one-sided values


def recovered(
    values: Sequence[float], reference: Sequence[float], ceiling: Sequence[float], *, level: float = 0.95
) -> tuple[float, float | None, float | None] | None:
    """Share of the ceiling's gain over the reference that an arm reaches: (mean gain) / (mean gain of the ceiling).

    Args:
        values: of the arm, one per seed.
        reference: of the arm without augmentation.
        ceiling: of the arm with perfect masks.
        level: of the bootstrap interval over seeds, all three resampled together.

    Returns:
        (share, low, high); no interval from fewer than 2 seeds, or where the ceiling's own gain is not above zero throughout
        its interval (a ratio to something that may be nothing). None if the ceiling does not gain.
    """
    gain = np.asarray(values, dtype=float) - np.asarray(reference, dtype=float)
    best = np.asarray(ceiling, dtype=float) - np.asarray(reference, dtype=float)
    if best.mean() <= 0:
        return None
    share = float(gain.mean() / best.mean())
    if len(gain) < 2 or bootstrap_interval(best, level=level)[0] <= 0:
        return share, None, None
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = bootstrap_interval(np.stack([gain, best], axis=1), _ratio_of_means, level=level)
    return share, float(low), float(high)


def positive_control(
    arms: Mapping[str, Mapping[int, float]], reference: str, controls: Sequence[str], *, margin: float
) -> Control:
    """Whether a known regulariser gains over the reference, Student's interval above zero at 5 % over all of them (Bonferroni).

    Args:
        arms: clean accuracy by arm and seed.
        reference: the arm without augmentation.
        controls: names of the regularisers' arms; those not run are passed over.
        margin: as for `compare`.
    """
    pairs: dict[str, tuple[list[float], list[float]]] = {}
    for name in controls:
        seeds = sorted(set(arms.get(name, {})) & set(arms.get(reference, {})))
        if len(seeds) > 1:
            pairs[name] = [arms[name][seed] for seed in seeds], [arms[reference][seed] for seed in seeds]
    found = [(name, compare(*pair, margin=margin, level=1 - 0.05 / len(pairs))) for name, pair in pairs.items()]
    if not found:
        return Control(None, None, None)
    works = [(name, comparison) for name, comparison in found if comparison.t_low is not None and comparison.t_low > 0]
    name, comparison = max(works or found, key=lambda entry: entry[1].mean)
    return Control(bool(works), name, comparison)


def _ratio_of_means(rows: np.ndarray, axis: int) -> Any:
    """Of resampled pairs (2, ..., n): mean of the first over mean of the second; infinite where the second is not above zero."""
    top, bottom = rows.mean(axis=axis)
    return np.where(bottom > 0, top / bottom, np.inf)
