"""When maps have settled: sequences of changes, learning rates and shares of maps, and what is said of them."""

import pickle

import pytest

from groupcam_aug.callbacks.monitoring.convergence import Convergence


@pytest.mark.parametrize(
    ("changes", "rates", "alive", "converged", "cut"),
    [
        ([1, 0.5, 0.04, 0.03, 0.02, 0.01], None, None, 2, None),
        ([1, 0.04, 0.03, 0.5, 0.04, 0.05, 0.05], None, None, 4, None),  # equal is enough
        ([1, 0.04, 0.5, 0.04, 0.04, 0.06, 0.04, 0.04], None, None, None, None),  # dips do not count
        ([1, 0.5, 0.04, 0.03, 0.02], [1, 1, 0.01, 0.01, 0.01], None, None, 4),  # the rate was cut
        ([1, 0.5, 0.04, 0.03, 0.02], [1, 1, 0.2, 0.2, 0.2], None, 2, None),  # a fifth is still a rate
        ([1, 0.5, 0.04, 0.03, 0.02], [1, 1, 1 / 10, 0.1, 0.1000000001], None, None, 4),  # a division by ten is a cut
        ([1, 0.04, 0.03, 0.02, 0.02], [1, 1, 1, 0.01, 0.01], None, None, 3),  # cut just before the third
        ([1, 0.5, 0.04, 0.03, 0.02, 0.02, 0.02], [1, 1, 0.01, 0.01, 0.01, 1, 1], None, None, 4),  # up again: not yet three
        ([1, 0.5, 0.04, 0.03, 0.02, 0.02, 0.02, 0.02], [1, 1, 0.01, 0.01, 0.01, 1, 1, 1], None, 5, 4),
        ([1, 0.01, 0.01, 0.01, 0.01], [1, 1, 1, 0.01, 1], None, None, 3),  # two, an interruption, one
        ([1, 0.0, 0.0, 0.0], [0, 0, 0, 0], None, None, 3),  # nothing was trained at all
        ([1, 0.0, 0.0, 0.0], [None] * 4, None, 1, None),  # no optimiser to ask
        ([1, 0.02, 0.02, 0.02, 0.02], None, [1, 1, 0.4, 1, 1], None, None),  # too few alive in between
    ],
)
def test_convergence_of_a_sequence(changes, rates, alive, converged, cut):
    rule, highest, news = Convergence(), 0.0, []
    for epoch, change in enumerate(changes):
        rate = 1.0 if rates is None else rates[epoch]
        highest = max(highest, rate or 0.0)
        told = rule.update(epoch, change, 1.0 if alive is None else alive[epoch], rate, None if rate is None else highest)
        news += [told] if told else []
        again = Convergence()
        again.load_state_dict(pickle.loads(pickle.dumps(rule.state_dict())))
        assert rule.update(epoch, 0.0, 1.0, 1.0, 1.0) is None, "an epoch counts once"
        rule = again
    assert (rule.converged_epoch, rule.fell_with_lr) == (converged, cut)
    assert sorted(news) == sorted([*(["converged"] if converged is not None else []), *(["lr"] if cut is not None else [])])


def test_a_rule_begun_anew_has_its_own_measures_and_no_count():
    rule = Convergence(threshold=0.3, patience=2, min_lr_share=0.2, min_alive=0.1)
    assert rule.update(0, 0.2, 1.0, 1.0, 1.0) is None and rule.update(1, 0.2, 1.0, 1.0, 1.0) == "converged"
    again = rule.renewed()
    assert (again.threshold, again.patience, again.min_lr_share, again.min_alive) == (0.3, 2, 0.2, 0.1)
    assert again.state_dict() == Convergence().state_dict() != rule.state_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.1}, "threshold must be a number from 0 to 1, got 1.1"),
        ({"min_lr_share": None}, "min_lr_share must be a number from 0 to 1, got None"),
        ({"min_alive": True}, "min_alive must be a number from 0 to 1, got True"),
        ({"patience": 0}, "patience must be a whole number of at least 1, got 0"),
    ],
)
def test_misuse_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        Convergence(**arguments)
