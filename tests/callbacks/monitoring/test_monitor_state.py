"""What outlives a fit: it goes through a checkpoint, knows whose maps it holds, and remembers the right learning rate."""

import io

import pytest
import torch

from groupcam_aug.callbacks.monitoring.convergence import Convergence
from groupcam_aug.callbacks.monitoring.map_stats import UNKNOWN, Reading
from groupcam_aug.callbacks.monitoring.monitor_state import MonitorState


def reading(seed=0, size=4):
    maps = torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed)).half()
    return Reading(maps, maps.flip(-1), torch.tensor([0, 1, 2]), torch.tensor([True, False, True]), torch.ones(3), torch.ones(3))


def seen(*changes, lr=0.1):
    """A state after so many probings."""
    state = MonitorState(Convergence(patience=2))
    state.lr, state.max_lr, state.fingerprint = lr, 0.1, {"probes": "abc", "layer": "act"}
    news = [
        state.add(epoch, 3 * epoch, reading(epoch), {**UNKNOWN, "change": change, "alive": 1.0}, [0, 2])
        for epoch, change in enumerate(changes)
    ]
    return state, news


# As it stands in checkpoints of earlier versions: these must stay readable.
KEYS = {"reading", "epochs", "targets", "fingerprint", "history", "values", "convergence", "film", "lr", "max_lr"}


def test_it_goes_through_a_checkpoint():
    state, _ = seen(1.0, 0.3, 0.2)
    state.targets = torch.tensor([2, 1, 0])
    saved = state.state_dict()
    assert saved.keys() == KEYS and saved["reading"].keys() == {"maps", "mirrored", "chosen", "right", "score"}
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    again = MonitorState(Convergence(patience=2))
    again.load_state_dict(torch.load(buffer, weights_only=True))
    assert again.history == state.history and again.values == state.values and again.epochs == 3
    assert torch.equal(again.reading.maps, state.reading.maps) and again.reading.chosen.tolist() == [0, 1, 2]
    assert again.targets.tolist() == [2, 1, 0] and again.fingerprint == state.fingerprint and again.lr == again.max_lr == 0.1
    assert again.convergence.state_dict() == state.convergence.state_dict() and list(again.film.frames) == [0, 1, 2]


def test_older_checkpoints_lack_some_values():
    saved = seen(1.0)[0].state_dict()
    del saved["lr"], saved["values"]["floor"]
    state = MonitorState(Convergence())
    state.load_state_dict(saved)
    assert state.lr is None and state.values.keys() == UNKNOWN.keys()


def test_nothing_is_saved_before_there_is_a_reading():
    assert MonitorState(Convergence()).state_dict() == {}


def test_maps_of_other_probes_are_forgotten_and_numbers_kept():
    state, _ = seen(1.0, 0.01, 0.01)
    assert state.recognise({"probes": "abc", "layer": "act"}) == [] and state.reading is not None
    assert state.recognise({"probes": "abc", "layer": "conv", "groups": 4}) == ["layer", "groups"]
    assert state.reading is None and state.film.count == 0 and state.convergence.converged_epoch is None
    assert len(state.history) == 3 and state.lr == 0.1 and state.fingerprint["layer"] == "conv"
    assert state.convergence.patience == 2


def test_it_says_when_maps_have_settled_and_when_only_the_rate_was_cut():
    state, news = seen(1.0, 0.04, 0.03, 0.02)
    assert news[:2] == [None, None] == [news[3], None]
    assert news[2].startswith("Saliency maps have settled since epoch 1: change 0.030 <= 0.05 for 2 probings")
    _, news = seen(1.0, 0.04, 0.03, lr=0.001)
    assert "the learning rate is 0.001, at most 0.1 before: change fell with the learning rate" in news[2]


class Optimizer:
    def __init__(self, *rates):
        self.param_groups = [{"lr": rate} for rate in rates]


def test_the_highest_rate_of_all_groups_is_followed():
    state = MonitorState(Convergence())
    state.follow_rate([])
    assert state.lr is None
    for rates, expected in (((0.1, 0.3), (0.3, 0.3)), ((0.01,), (0.01, 0.3)), ((torch.tensor(0.5),), (0.5, 0.5))):
        state.follow_rate([Optimizer(rate) for rate in rates], wait=False)
        assert (state.lr, state.max_lr) == pytest.approx(expected)
    state.follow_rate([Optimizer(torch.tensor(0.5, device="meta"))], wait=False)
    assert state.lr is None and state.max_lr == 0.5, "a device is not waited for"
