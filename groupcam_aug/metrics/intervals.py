"""How sure a mean over images or seeds is: Student's interval, a verdict that says when it is none, and the bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

__all__ = ["LEAST_IMAGES", "bootstrap_interval", "paired_verdict", "student_interval"]

LEAST_IMAGES = 20  # for a verdict: below, skewed differences are taken for effects too often
RESAMPLES = 10_000
_HELD = 8_000_000  # numbers at a time while resampling


def student_interval(values: Sequence[float] | np.ndarray, *, level: float = 0.95) -> tuple[Any, Any] | None:
    """Student's t interval of the mean over rows (images, seeds).

    Args:
        values: (n,), or (n, ...) for an interval of each column.
        level: of the interval. Default: 0.95.

    Returns:
        Lower and upper end: floats for (n,) values, float64 arrays (...) for (n, ...). None from fewer than 2 rows, and where all
        (n,) values are equal: with few that happens by chance, and an interval without width would claim what they cannot know.
    """
    from scipy.stats import t

    rows = np.asarray(values, dtype=float)
    if len(rows) < 2:
        return None
    mean, error = rows.mean(axis=0), rows.std(axis=0, ddof=1) / np.sqrt(len(rows))
    if rows.ndim == 1 and not error:
        return None
    reach = float(t.ppf((1 + level) / 2, len(rows) - 1)) * error
    low, high = mean - reach, mean + reach
    return (float(low), float(high)) if rows.ndim == 1 else (low, high)


def paired_verdict(
    differences: Sequence[float] | np.ndarray, *, level: float = 0.95, least: int = LEAST_IMAGES
) -> Literal["above", "below", "open", "few"]:
    """Which side of zero the mean of paired differences is on, if that is shown.

    Student's interval must leave zero out, and so must his t as Hall transforms it (1992, J. R. Stat. Soc. B 54:221) for skewed
    values: alone, Student's takes chance for an effect in 8 % of the cases where 20 differences are skewed as an exponential is.

    Args:
        differences: (n,) one an image.
        level: of the verdict. Default: 0.95: without an effect "above" or "below" is said in about 5 % of the cases.
        least: differences below which there is no verdict.

    Returns:
        "above", "below", "open" (no difference shown, which is not: none there), or "few" (fewer than `least`).
    """
    values = np.asarray(differences, dtype=float)
    if len(values) < least:
        return "few"
    interval = student_interval(values, level=level)
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "open"
    from scipy.stats import t

    mean, spread, n = values.mean(), values.std(ddof=1), len(values)
    skew, size = ((values - mean) ** 3).mean() / spread**3, mean / spread
    transformed = np.sqrt(n) * (size + skew * size**2 / 3 + skew**2 * size**3 / 27 + skew / (6 * n))
    needed = t.ppf((1 + level) / 2, n - 1)
    return "above" if mean > 0 and transformed > needed else "below" if mean < 0 and transformed < -needed else "open"


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    statistic: Callable[..., Any] = np.mean,
    *,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[Any, Any]:
    """Percentile interval of a statistic when the rows (images, seeds) are drawn again with replacement.

    Over fewer than ten rows it is too narrow: of normal values it holds the mean in about 80 % (4 rows), 84 % (5) and 89 % (8) of
    the cases at level 0.95.

    Args:
        values: (n,), or (n, ...): then every row is drawn as a whole.
        statistic: called as `statistic(drawn, axis=-1)` with (..., n) drawn rows. Default: the mean.
        level: of the interval. Default: 0.95.
        seed: of the resampling; equal seeds draw equal rows, so that all methods meet the same images.
        resamples: how often. Default: 10,000.

    Returns:
        Lower and upper end: floats for (n,) values, float64 arrays (...) for (n, ...). A single row is both ends.

    Raises:
        ValueError: no rows.
    """
    from scipy.stats import bootstrap

    rows = np.asarray(values, dtype=float)
    if not len(rows):
        raise ValueError("values holds no row: an interval needs at least one")
    columns = np.moveaxis(rows, 0, -1)
    if len(rows) == 1:
        low = high = statistic(columns, axis=-1)
    else:
        result = bootstrap(
            (columns,),
            statistic,
            axis=-1,
            vectorized=True,
            method="percentile",
            confidence_level=level,
            n_resamples=resamples,
            batch=max(1, _HELD // rows.size),
            rng=np.random.default_rng(seed),
        )
        low, high = result.confidence_interval
    return (float(low), float(high)) if rows.ndim == 1 else (np.asarray(low), np.asarray(high))
