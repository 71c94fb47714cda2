"""What probing takes: predicted in forward passes, measured as a share of the epochs that a probing stands for."""

import pytest

from groupcam_aug.callbacks.monitoring import probing_cost
from groupcam_aug.callbacks.monitoring.probing_cost import ProbingCost, predicted_share


def test_prediction_by_hand():
    assert predicted_share(60, 2800, 1, None) == pytest.approx(60 * (2 + 1) / (3 * 2800)), "a map, its mirror image, the choice"
    assert predicted_share(60, 41000, 5, 16) == pytest.approx(60 * (2 * 18 + 1) / (3 * 41000 * 5))


@pytest.fixture
def measured(monkeypatch):
    """Takes in a probing of so many seconds, 10 s after the epoch began."""

    def measure(cost, seconds):
        monkeypatch.setattr(probing_cost.time, "perf_counter", lambda: 100.0)
        cost.start_epoch()
        return cost.measure(110.0, seconds, 9)

    return measure


def test_measured_cost_is_a_share_of_the_epochs_it_stands_for(measured):
    cost = ProbingCost(4, 0.02)
    assert cost.share is None
    assert [measured(cost, seconds) for seconds in (30.0, 1.2)] == [None, None], "the first pays for what is set up"
    assert cost.share == pytest.approx(0.03)
    warning = measured(cost, 8.0)
    assert "9 probes takes 1.2 s, 3.0% of the epochs' time" in warning and "every_n_epochs=6) stays below 2%" in warning
    assert measured(cost, 8.0) is None, "said once"


def test_no_warning_where_it_is_little_or_nobody_asked(measured):
    for cost, seconds in ((ProbingCost(1, 0.02), 0.9), (ProbingCost(1, 0.5), 4.0), (ProbingCost(1, None), 9.0)):
        assert [measured(cost, seconds) for _ in range(4)] == [None] * 4


def test_an_epoch_whose_beginning_was_not_seen_is_not_measured(measured):
    cost = ProbingCost(1, 0.02)
    assert cost.measure(110.0, 5.0, 9) is None and cost.share is None
    measured(cost, 5.0)
    cost.stop()
    share = cost.share
    cost.measure(500.0, 5.0, 9)
    assert cost.share == share == pytest.approx(0.5)
