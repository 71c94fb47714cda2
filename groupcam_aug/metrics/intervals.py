"""How sure a mean over images or seeds is: the percentile bootstrap, by scipy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = ["bootstrap_interval"]

RESAMPLES = 10_000
_HELD = 8_000_000  # numbers at a time while resampling


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
