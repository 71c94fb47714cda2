"""The bootstrap: by hand, against resampling written out, and rows drawn as a whole."""

import numpy as np
import pytest

from groupcam_aug.metrics.intervals import bootstrap_interval


def test_it_is_the_percentile_bootstrap_written_out():
    values = np.random.default_rng(3).normal(1, 1, 8)
    index = np.random.default_rng(5).integers(8, size=(10_000, 8))
    expected = np.quantile(values[index].mean(axis=1), [0.05, 0.95])
    assert bootstrap_interval(values, level=0.9, seed=5) == pytest.approx(tuple(expected), abs=1e-12)


def test_two_values_and_one():
    assert bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)
    assert bootstrap_interval([0.2]) == (0.2, 0.2)
    assert bootstrap_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)
    with pytest.raises(ValueError, match="no row"):
        bootstrap_interval([])


def test_rows_are_drawn_as_a_whole():
    values = np.random.default_rng(0).normal(size=(12, 3))
    low, high = bootstrap_interval(values, seed=2)
    for column in range(3):
        assert (low[column], high[column]) == pytest.approx(bootstrap_interval(values[:, column], seed=2), abs=1e-12)


def test_another_statistic():
    values = np.arange(9.0)
    low, high = bootstrap_interval(values, np.median)
    assert 0 <= low < 4 < high <= 8 and low == int(low)
