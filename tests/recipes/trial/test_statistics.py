import math

import numpy as np
import pytest

from groupcam_aug.recipes.trial.statistics import compare, equivalence_p, mean_and_error, sign_flip_p


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


def test_sign_flips_count_ties_but_for_rounding_and_end_in_sampling():
    right, others = np.array([94, 146, 147, 292]), np.array([95, 148, 144, 291])  # of 300 images: -1, -2, +3 and +1 more
    assert sign_flip_p(right / 300 * 100 - others / 300 * 100) == sign_flip_p(right - others) == 1.0
    assert sign_flip_p([1.0] * 24) < 1e-4
    assert sign_flip_p([1.0, -1.0] * 12) == 1.0
    assert sign_flip_p([1.0, 0.5] * 12) == sign_flip_p([1.0, 0.5] * 12)


def test_three_seeds_by_hand():
    """Differences 1, 2, 3: mean 2, standard error 1/sqrt(3), and Student's quantile for 2 degrees of freedom is 4.3027."""
    one = compare([11.0, 12.0, 13.0], [10.0, 10.0, 10.0], margin=0.5)
    half = 4.3027 / math.sqrt(3)
    assert (one.n, one.mean, one.p, one.wins) == (3, 2.0, 0.25, 3)
    assert (one.low, one.high) == (pytest.approx(2 - half, abs=1e-4), pytest.approx(2 + half, abs=1e-4))
    assert one.equivalence > 0.5  # the mean is outside the margin


def test_one_seed_says_nothing_but_its_difference():
    assert compare([3.0], [1.0], margin=0.3) == (1, 2.0, None, None, None, 1, None)
    assert sign_flip_p([1.0]) is None and equivalence_p([1.0], 0.3) is None


def test_equal_differences_have_no_interval():
    assert compare([2.0, 2.0, 2.0], [1.0, 1.0, 1.0], margin=0.3) == (3, 1.0, None, None, 0.25, 3, None)
    assert compare([1.0, 1.0], [1.0, 1.0], margin=0.3) == (2, 0.0, None, None, 1.0, 0, None)
    shares = compare([0.91, 0.81, 0.71], [0.90, 0.80, 0.70], margin=0.3)  # equal but for rounding
    assert (shares.low, shares.equivalence, shares.wins) == (None, None, 3)


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
    assert paired.mean == pytest.approx(1.0) and paired.low > 0.7 and paired.wins == 4
