import json
import math
from pathlib import Path

import numpy as np
import pytest

from groupcam_aug.recipes.trial.statistics import (
    compare,
    equivalence_p,
    mean_and_error,
    positive_control,
    recovered,
    sign_flip_p,
    student_interval,
)

STUDIES = Path(__file__).parents[3] / "docs" / "study"


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


def test_one_seed_says_nothing_but_its_difference():
    one = compare([3.0], [1.0], margin=0.3)
    assert one == (1, 2.0, None, None, None, None, None, 1, None) and student_interval([1.0]) is None
    assert sign_flip_p([1.0]) is None and equivalence_p([1.0], 0.3) is None


def test_no_variance():
    same = compare([2.0, 2.0, 2.0], [1.0, 1.0, 1.0], margin=0.3)
    assert (same.mean, same.low, same.high, same.equivalence) == (1.0, 1.0, 1.0, 1.0)
    assert compare([1.0, 1.0], [1.0, 1.0], margin=0.3) == (2, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0, 0.0)


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


@pytest.mark.parametrize(
    "values, reference, ceiling, comparison, share",
    [
        (
            [71.2, 68.4, 73.9, 70.1, 69.5],
            [70.3, 68.8, 72.1, 69.9, 68.0],
            [74.0, 71.1, 75.2, 73.3, 70.4],
            (5, 0.8, 0.1, 1.5, -0.3277973331, 1.9277973331, 0.1875, 4, 0.8571080213),
            (0.2684563758, 0.0331125828, 0.5102040816),
        ),
        (
            [4 / 0.9, 7 / 0.9, 5 / 0.9, 6 / 0.9],
            [3 / 0.9, 8 / 0.9, 3 / 0.9, 6 / 0.9],
            [9.0, 8.0, 9.0, 9.0],
            (4, 0.5555555556, -0.5555555556, 1.6666666667, -1.7269558408, 2.8380669520, 0.75, 2, 0.6274046530),
            (0.1739130435, -0.7407407407, 0.3921568627),
        ),
    ],
)
def test_figures_stay_what_they_were(values, reference, ceiling, comparison, share):
    """As written out by hand, before scipy."""
    assert compare(values, reference, margin=0.3) == pytest.approx(comparison, abs=1e-9)
    assert recovered(values, reference, ceiling) == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize("path", sorted(STUDIES.rglob("*.json")), ids=lambda path: str(path.relative_to(STUDIES)))
def test_committed_figures_come_out_again(path):
    summary = json.loads(path.read_text())
    for group in summary["regimes"]:
        values = {arm["name"]: {key: one["values"] for key, one in arm["metrics"].items()} for arm in group["arms"]}
        primary, reference = group["primary"], values[summary["reference"]][group["primary"]]
        for arm in group["arms"]:
            if not arm["difference"]:
                continue
            seeds = [seed for seed in arm["metrics"][primary]["values"] if seed in reference]
            pair = [[one[seed] for seed in seeds] for one in (values[arm["name"]][primary], reference)]
            assert compare(*pair, margin=summary["margin"])._asdict() == pytest.approx(arm["difference"][primary], abs=1e-9)
            if primary in arm["recovered"]:
                ceiling = values[arm["ceiling"]][primary]
                three = [
                    [one[seed] for seed in seeds if seed in ceiling] for one in (values[arm["name"]][primary], reference, ceiling)
                ]
                told = [one if one is None else pytest.approx(one, abs=1e-9) for one in arm["recovered"][primary].values()]
                assert list(recovered(*three)) == told
