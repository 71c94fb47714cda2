"""Paired statistics for a handful of seeds: differences, intervals, exact tests. Numbers in, numbers out.

Every function takes one number per seed, arms in the same order of seeds. What cannot be said (an interval from one seed, or
from seeds without any spread) is None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from groupcam_aug.metrics.intervals import student_interval

__all__ = ["Comparison", "compare", "equivalence_p", "mean_and_error", "sign_flip_p"]

ASSIGNMENTS = 2**16  # of signs: all of them for up to 16 seeds
DIGITS = 9  # after the point; or shares of 300 images that tie would not count as ties


class Comparison(NamedTuple):
    """One arm minus another, over the seeds both have."""

    n: int
    mean: float
    low: float | None  # Student's interval; None from fewer than 2 seeds, or where all differences are equal
    high: float | None
    p: float | None  # exact sign-flip test, two-sided; None from fewer than 2 seeds
    wins: int  # seeds with a difference above zero
    equivalence: float | None  # p of the test that the difference is within the margin; None where there is no interval


def compare(values: Sequence[float], reference: Sequence[float], *, margin: float, level: float = 0.95) -> Comparison:
    """All that is said about one arm against another.

    Args:
        values: of the arm, one per seed.
        reference: of the arm it is compared with, same seeds in the same order.
        margin: of the equivalence test, in the unit of the values.
        level: of the interval.

    Raises:
        ValueError: different numbers of values, or none; a margin that is not positive.
    """
    if len(values) != len(reference) or not len(values):
        raise ValueError(f"paired values need partners: {len(values)} values, {len(reference)} of the reference")
    differences = np.round(np.asarray(values, dtype=float) - np.asarray(reference, dtype=float), DIGITS)
    low, high = student_interval(differences, level=level) or (None, None)
    return Comparison(
        n=len(differences),
        mean=float(differences.mean()),
        low=low,
        high=high,
        p=sign_flip_p(differences),
        wins=int((differences > 0).sum()),
        equivalence=equivalence_p(differences, margin),
    )


def mean_and_error(values: Sequence[float] | np.ndarray) -> tuple[float, float | None]:
    """Mean, and its standard error (None from fewer than 2 values)."""
    error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return float(np.mean(values)), error


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
        lambda signed, axis: signed.mean(axis=axis).round(DIGITS),
        permutation_type="samples",
        vectorized=True,
        n_resamples=ASSIGNMENTS,
        rng=0,
    )
    return float(tested.pvalue)


def equivalence_p(differences: Sequence[float] | np.ndarray, margin: float) -> float | None:
    """P of two one-sided paired t tests (TOST): small when the mean difference is shown to lie within +-margin.

    None from fewer than 2 seeds, and where all differences are equal, see `student_interval`.

    Raises:
        ValueError: the margin is not positive.
    """
    if not margin > 0:
        raise ValueError(f"margin must be positive, got {margin}")
    from scipy.stats import t

    mean, error = mean_and_error(differences)
    if not error:
        return None
    return float(t.sf((margin - abs(mean)) / error, len(differences) - 1))  # the larger of the two one-sided values
