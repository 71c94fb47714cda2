"""Student's interval and the verdict against scipy and by simulation; the bootstrap by hand and against resampling written out."""

import numpy as np
import pytest

from groupcam_aug.metrics.intervals import LEAST_IMAGES, bootstrap_interval, paired_verdict, student_interval

# Paired differences without an effect: their mean is zero, and all but the first are skewed (the exponential by 2).
NO_EFFECT = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "gamma": lambda rng, shape: rng.gamma(4, size=shape) - 4,
    "exponential": lambda rng, shape: rng.exponential(size=shape) - 1,
    "log-normal": lambda rng, shape: np.exp(0.5 * rng.normal(size=shape)) - np.exp(0.125),
}


def test_students_interval_against_scipy_and_where_there_is_none():
    from scipy.stats import ttest_1samp

    values = [0.3, 1.1, -0.2, 0.9, 0.6]
    assert student_interval(values) == pytest.approx(tuple(ttest_1samp(values, 0).confidence_interval(0.95)))
    assert student_interval(values, level=0.9) == pytest.approx(tuple(ttest_1samp(values, 0).confidence_interval(0.9)))
    assert student_interval([0.7]) is None and student_interval([0.7] * 5) is None
    columns = np.column_stack([values, np.ones(5)])
    low, high = student_interval(columns)
    assert (low[0], high[0]) == pytest.approx(student_interval(values)) and low[1] == high[1] == 1
    assert student_interval(columns[:1]) is None


def test_no_verdict_from_few_images_and_none_without_a_spread():
    rng = np.random.default_rng(0)
    clear = rng.normal(0.5, 0.1, LEAST_IMAGES)
    assert paired_verdict(clear) == "above" and paired_verdict(-clear) == "below"
    assert paired_verdict(clear[:-1]) == paired_verdict([0.9]) == "few"
    assert paired_verdict(clear - clear.mean()) == "open" and paired_verdict([0.0] * 30) == "open"
    assert paired_verdict(clear[:3], least=3) == "above"


def test_the_verdict_by_hand():
    """19 times -0.5 and once 9.5: mean 0, standard error 0.5, skewness 855 / 20 / 5^1.5 = 3.824; Student's quantile is 2.093."""
    values = np.array([-0.5] * 19 + [9.5])
    assert student_interval(values) == pytest.approx((-1.0465, 1.0465), abs=1e-3)
    # Moved by -1.2: size -0.5367, t -2.4, Hall's sqrt(20) * (-0.5367 + 0.3671 - 0.0837 + 0.0319) = -0.99.
    assert student_interval(values - 1.2)[1] < 0 and paired_verdict(values - 1.2) == "open" == paired_verdict(1.2 - values)
    # By -3: size -1.3416, Hall's sqrt(20) * (-1.3416 + 2.2942 - 1.3077 + 0.0319) = -1.45; by -4: -5.39.
    assert (
        paired_verdict(values - 3) == "open" and paired_verdict(values - 4) == "below" and paired_verdict(4 - values) == "above"
    )
    # On the side that the skewness is on, it takes less than Student's: that one decides.
    assert paired_verdict(values + 1.04) == "open" and paired_verdict(values + 1.06) == "above"


def false_alarms(verdict, draw, count, trials, seed=0):
    rng = np.random.default_rng(seed)
    return np.mean([verdict(draw(rng, count)) in ("above", "below") for _ in range(trials)])


@pytest.mark.slow
@pytest.mark.parametrize("count", [20, 40, 100])
@pytest.mark.parametrize("kind", NO_EFFECT)
def test_false_alarms_of_the_verdict_are_five_in_a_hundred(kind, count):
    """In 4,000 tables without an effect; 7 % is 5 % and the error of the simulation, and then some."""
    assert false_alarms(paired_verdict, NO_EFFECT[kind], count, 4000) <= 0.07


@pytest.mark.slow
def test_false_alarms_where_differences_are_more_skewed_than_that():
    def draw(rng, shape):
        return np.exp(rng.normal(size=shape)) - np.exp(0.5)

    rates = [false_alarms(paired_verdict, draw, count, 4000) for count in (20, 100)]
    assert 0.05 < rates[0] <= 0.08 and rates[1] <= 0.06


@pytest.mark.slow
def test_the_bootstrap_or_student_alone_would_give_false_alarms():
    """Why the verdict is what it is: a percentile bootstrap of few images, and Student's interval of skewed differences."""

    def bootstrapped(values):
        low, high = bootstrap_interval(values, resamples=500)
        return "above" if low > 0 else "below" if high < 0 else "open"

    def students(values):
        low, high = student_interval(values)
        return "above" if low > 0 else "below" if high < 0 else "open"

    rates = [false_alarms(bootstrapped, NO_EFFECT["normal"], count, 500) for count in (1, 2, 5)]
    assert rates[0] == 1 and rates[1] > 0.4 and rates[2] > 0.1
    assert false_alarms(students, NO_EFFECT["exponential"], 20, 4000) > 0.07


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
