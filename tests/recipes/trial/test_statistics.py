import math

import numpy as np
import pytest

from groupcam_aug.recipes.trial.statistics import (
    bootstrap_interval,
    compare,
    equivalence_p,
    mean_and_error,
    positive_control,
    recovered,
    sign_flip_p,
    student_interval,
)


def test_mean_and_standard_error_by_hand():
    assert mean_and_error([1.0, 2.0, 3.0]) == (2.0, pytest.approx(1 / math.sqrt(3)))
    assert mean_and_error([4.0]) == (4.0, None)


@pytest.mark.parametrize(
    "differences, p",
    [
        ([1, 1, 1], 2 / 8),  # only all plus and all minus are as far
        ([1, 2, 3], 2 / 8),
        ([1, -1], 1.0),  # a mean of zero: everything is as far
        ([3, -1], 1.0),  # sums 2, 4, -4, -2
        ([0, 0, 0], 1.0),
        ([1, 1, 1, -1], 10 / 16),  # |sum| >= 2: all but the 6 assignments that sum to 0
        ([0.1, 0.2, 0.3, 0.4, 0.5], 2 / 32),
        ([0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3], 2 / 256),
        ([0.1, 0.1, 0.1 + 1e-17, -0.1], 10 / 16),  # ties that rounding would break
    ],
)
def test_sign_flips_by_hand(differences, p):
    assert sign_flip_p(differences) == pytest.approx(p)
    assert sign_flip_p([-value for value in differences]) == pytest.approx(p)


def test_sign_flips_agree_with_scipy_and_end_in_sampling():
    from scipy.stats import permutation_test

    values = np.random.default_rng(3).normal(0.4, 1, size=7)
    theirs = permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_flip_p(values) == pytest.approx(theirs)
    assert sign_flip_p([1.0] * 24) < 1e-5
    assert sign_flip_p([1.0, -1.0] * 12) == 1.0


def test_one_seed_says_nothing_but_its_difference():
    one = compare([3.0], [1.0], margin=0.3)
    assert one == (1, 2.0, None, None, None, None, None, 1, None) and student_interval([1.0]) is None
    assert bootstrap_interval([1.0]) is None and sign_flip_p([1.0]) is None and equivalence_p([1.0], 0.3) is None


def test_no_variance():
    same = compare([2.0, 2.0, 2.0], [1.0, 1.0, 1.0], margin=0.3)
    assert (same.mean, same.low, same.high, same.equivalence) == (1.0, 1.0, 1.0, 1.0)
    assert compare([1.0, 1.0], [1.0, 1.0], margin=0.3) == (2, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0, 0.0)


def test_the_interval_of_two_seeds_is_their_range_and_repeats():
    # Of two values a quarter of the resamples shows only the one, a quarter only the other.
    assert bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)
    assert bootstrap_interval([0.3, 1.0, 2.0]) == bootstrap_interval([0.3, 1.0, 2.0])


def test_the_interval_covers():
    draw = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        low, high = bootstrap_interval(draw.normal(1, 1, size=20))
        inside += low <= 1 <= high
    assert 0.86 < inside / 200 < 0.99  # the percentile bootstrap of 20 values is a little narrow


def test_students_interval_against_scipy():
    from scipy.stats import ttest_1samp

    values = [0.3, 1.1, -0.2, 0.9, 0.6]
    assert student_interval(values) == pytest.approx(tuple(ttest_1samp(values, 0).confidence_interval(0.95)))
    found = compare(values, [0.0] * 5, margin=0.3)
    assert found.t_low < found.low < found.mean < found.high < found.t_high  # the bootstrap's is too narrow for five


def test_equivalence_by_hand_and_against_scipy():
    from scipy.stats import ttest_1samp

    values = np.array([0.05, -0.1, 0.12, 0.02, -0.04])
    below = ttest_1samp(values, 0.3, alternative="less").pvalue
    above = ttest_1samp(values, -0.3, alternative="greater").pvalue
    assert equivalence_p(values, 0.3) == pytest.approx(max(below, above))
    assert equivalence_p(values, 0.3) < 0.05 < equivalence_p(values + 0.3, 0.3)
    assert equivalence_p([0.3, 0.3 + 1e-12, 0.3 - 1e-12], 0.3) == pytest.approx(0.5, abs=0.01)  # on the margin: undecided
    with pytest.raises(ValueError, match="margin must be positive, got 0"):
        equivalence_p(values, 0)


def test_pairs_need_partners():
    with pytest.raises(ValueError, match="2 values, 1 of the reference"):
        compare([1.0, 2.0], [1.0], margin=0.3)
    with pytest.raises(ValueError, match="0 values"):
        compare([], [], margin=0.3)


def test_pairing_takes_out_what_seeds_share():
    reference = np.array([10.0, 50.0, 90.0, 30.0])
    paired = compare(reference + np.array([1.0, 1.2, 0.8, 1.0]), reference, margin=0.3)
    assert paired.mean == pytest.approx(1.0) and paired.low > 0.8 and paired.wins == 4


def test_recovered_share_by_hand():
    none, oracle = [10.0, 20.0], [14.0, 24.0]
    assert recovered([12.0, 22.0], none, oracle) == (0.5, 0.5, 0.5)
    assert recovered([10.0, 20.0], none, oracle) == (0.0, 0.0, 0.0)
    share, low, high = recovered([12.0, 20.0], none, oracle)  # gains 2 and 0 of 4
    assert (share, low, high) == (0.25, 0.0, 0.5)
    assert recovered([12.0], [10.0], [14.0]) == (0.5, None, None)
    assert recovered([12.0, 20.0], none, none) is None  # no gain to recover
    assert recovered([12.0, 20.0], none, [9.0, 20.0]) is None
    assert recovered([12.0, 20.0], none, [9.0, 28.0])[1:] == (None, None)  # the ceiling's own interval reaches below zero


def test_positive_control():
    arms = {
        "none": {0: 80.0, 1: 81.0, 2: 82.0},
        "cutmix": {0: 79.0, 1: 80.5, 2: 81.0},
        "erase": {0: 80.5, 1: 81.7, 2: 82.6, 9: 10.0},
    }
    verdict = positive_control(arms, "none", ("cutmix", "erase"), margin=0.3)
    assert verdict.works is True and verdict.by == "erase" and verdict.comparison.n == 3
    alone = positive_control(arms, "none", ("erase",), margin=0.3).comparison
    assert verdict.comparison.t_low < alone.t_low  # two were tried, so more is asked of each
    few = {"none": {0: 0.0, 1: 0.0}, "cutmix": {0: 1.0, 1: 1.4}}
    assert positive_control(few, "none", ("cutmix",), margin=0.3).works is False  # two seeds above zero prove nothing
    fails = positive_control(arms, "none", ("cutmix",), margin=0.3)
    assert fails.works is False and fails.by == "cutmix" and fails.comparison.mean < 0
    assert positive_control(arms, "none", ("mixup",), margin=0.3) == (None, None, None)
    one = {"none": {0: 1.0}, "cutmix": {0: 2.0}}
    assert positive_control(one, "none", ("cutmix",), margin=0.3).works is None
