"""One fit under watch, with a mapper that reads what a test wants."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from groupcam_aug.callbacks.monitoring import session as session_module
from groupcam_aug.callbacks.monitoring import snapshots
from groupcam_aug.callbacks.monitoring.convergence import Convergence
from groupcam_aug.callbacks.monitoring.map_stats import Reading
from groupcam_aug.callbacks.monitoring.monitor_state import MonitorState
from groupcam_aug.callbacks.monitoring.probes import Probes
from groupcam_aug.callbacks.monitoring.probing_cost import ProbingCost
from groupcam_aug.callbacks.monitoring.session import Session
from groupcam_aug.files import read_lines


class Mapper:
    """Reads maps that go on alike with some noise, on a grid of the given sizes."""

    name, cam, borrow = "Grad-CAM", SimpleNamespace(layer="act"), staticmethod(nullcontext)

    def __init__(self, labels=True, sizes=(4,)):
        images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(9))
        self.probes = Probes(images, torch.tensor([0, 1, 2]) if labels else None, "a test")
        self.identity = {"probes": self.probes.fingerprint(), "layer": "act"}
        self.sizes, self.targets = [*sizes], []

    def look(self, targets):
        size = self.sizes.pop(0) if len(self.sizes) > 1 else self.sizes[0]
        self.targets.append(targets)
        noise = torch.rand(3, size, size, generator=torch.Generator().manual_seed(len(self.targets)))
        maps = (torch.arange(size * size).view(1, size, size) / size**2 + noise / 2).half()
        return Reading(maps, maps, torch.tensor([2, 1, 0]), torch.ones(3, dtype=torch.bool), torch.ones(3), torch.ones(3))

    def synchronize(self):
        pass

    def images(self):
        return self.probes.images


class Trainer(SimpleNamespace):
    __hash__ = object.__hash__


def trainer(folder, **options):
    run = {
        "is_global_zero": True,
        "fast_dev_run": False,
        "barebones": False,
        "loggers": [],
        "checkpoint_callback": None,
        "datamodule": None,
        "lightning_module": None,
        "train_dataloader": None,
        "val_dataloaders": None,
    }
    return Trainer(**{**run, "default_root_dir": folder, "global_step": 7, "current_epoch": 0, **options})


def watch(folder, mapper=None, state=None, epochs=0, warmup_epochs=1, min_alive=0.5, **options):
    state = MonitorState(Convergence()) if state is None else state
    settings = {"network": "net", "grid": 14, "name": "monitor", "facts": {"threshold": 0.05}, "tag": None}
    session = Session(
        trainer(folder, **options),
        Mapper() if mapper is None else mapper,
        state,
        ProbingCost(1, None),
        epochs,
        warmup_epochs=warmup_epochs,
        min_alive=min_alive,
        style={"class_names": None, "mean": None, "std": None},
        **settings,
    )
    return session, state


@pytest.mark.parametrize("warmup_epochs", [0, 1, 2])
def test_maps_serve_as_a_reference_only_after_warm_up(tmp_path, warmup_epochs):
    session, state = watch(tmp_path, warmup_epochs=warmup_epochs)
    assert state.values["change"] == 1 and state.values["alive"] == 1 and state.history == []
    for epoch in range(4):
        session.probe(epoch)
    changes = [entry["change"] for entry in state.history]
    assert [change == 1 for change in changes] == [epoch < warmup_epochs for epoch in range(4)], changes
    assert all(0 < entry["mass_shift"] < 1 for entry in state.history), "the rest is known"


@pytest.mark.parametrize(("min_alive", "trusted"), [(1.0, True), (0.5, True), (1.1, False)])
def test_too_few_maps_are_not_trusted(tmp_path, min_alive, trusted):
    session, state = watch(tmp_path, min_alive=min_alive, warmup_epochs=0)
    session.probe(0)
    assert (state.history[0]["change"] < 1) == trusted


def test_what_is_explained_is_kept(tmp_path):
    mapper = Mapper(labels=False)
    session, state = watch(tmp_path, mapper)
    session.probe(0)
    assert mapper.targets[0] is None and mapper.targets[1].tolist() == [2, 1, 0] == state.targets.tolist()
    assert session.plan().endswith("3 probes from a test, explaining the first choice at the start")
    labelled = Mapper()
    session, state = watch(tmp_path, labelled)
    assert labelled.targets[0].tolist() == [0, 1, 2] and state.targets is None
    assert session.plan() == "Saliency monitor: Grad-CAM at act (4 x 4) of 3 probes from a test, explaining their labels"


def test_it_goes_on_from_maps_of_the_same_probes_and_not_from_others(tmp_path):
    session, state = watch(tmp_path)
    session.probe(0)
    mapper = Mapper()
    watch(tmp_path, mapper, state, epochs=1)
    assert mapper.targets == [] and [epoch for epoch, _ in state.film.frames.values()] == [-1, 0]
    other = Mapper(labels=False)
    with pytest.warns(
        UserWarning, match="maps are of other probes: SaliencyMonitor starts anew from the weights as they are now"
    ):
        watch(tmp_path, other, state, epochs=5)
    assert len(other.targets) == 1 and state.epochs == 5 and len(state.history) == 1
    assert [epoch for epoch, _ in state.film.frames.values()] == [4]


def test_maps_on_another_grid_are_not_compared(tmp_path):
    session, state = watch(tmp_path, Mapper(sizes=(4, 4, 6)))
    session.probe(0)
    with pytest.warns(UserWarning, match=r"the maps' grid changed from \(4, 4\) to \(6, 6\)"):
        session.probe(1)
    session.probe(2)
    assert [entry["change"] == 1 for entry in state.history] == [True, True, False] and state.film.count == 2


def test_records_begin_as_soon_as_somebody_asks_for_them(tmp_path):
    session, _ = watch(tmp_path)
    session.probe(0)
    assert session.open() is None and not list(tmp_path.iterdir())
    (tmp_path / "groupcam").mkdir()  # as a SaliencyReport does that stands behind
    session.probe(1)
    facts = json.loads((tmp_path / "groupcam" / "monitor.json").read_text())
    assert (
        facts["layer"] == "act" and facts["num_probes"] == 3 and facts["threshold"] == 0.05 and "network" in facts["fingerprint"]
    )
    assert [line["epoch"] for line in read_lines(tmp_path / "groupcam", "monitor")] == [1]
    assert {path.name for path in (tmp_path / "groupcam" / "monitor").iterdir()} == {
        "probes.png",
        "epoch_00001.png",
        "film_strip.png",
        "errors.json",
        "errors.png",
    }


@pytest.mark.parametrize("options", [{"loggers": [SimpleNamespace(log_dir=None, save_dir=None)]}, {"checkpoint_callback": 1}])
def test_a_run_with_a_logger_or_checkpoints_is_recorded(tmp_path, options):
    session, _ = watch(tmp_path, **options)
    assert session.open() == tmp_path / "groupcam" and (tmp_path / "groupcam" / "monitor.json").is_file()
    other, _ = watch(tmp_path, is_global_zero=False, **options)
    assert other.open() is None


def test_a_full_disk_ends_the_writing_only(tmp_path, monkeypatch):
    def full(*_args):
        raise OSError(28, "No space left on device")

    session, state = watch(tmp_path, checkpoint_callback=1)
    monkeypatch.setattr(session_module, "add_line", full)
    with pytest.warns(UserWarning, match="writes nothing from here on: .*No space left") as caught:
        session.probe(0)
        session.probe(1)
    assert len(caught) == 1 and len(state.history) == 2 and session.open() is None
    assert not (tmp_path / "groupcam" / "monitor" / "epoch_00001.png").exists()


@pytest.mark.parametrize("fails", ["thumbnails", "column"])
def test_a_picture_that_cannot_be_drawn_ends_the_drawing_only(tmp_path, monkeypatch, fails):
    def odd(*_args):
        raise ValueError("pictures of five dimensions")

    monkeypatch.setattr(snapshots, fails, odd)
    session, state = watch(tmp_path, checkpoint_callback=1)
    with pytest.warns(UserWarning, match="draws no pictures from here on: ValueError: pictures of five dimensions") as caught:
        session.probe(0)
        session.probe(1)
        session.upload()
    assert len(caught) == 1 and len(state.history) == 2
    assert len(read_lines(tmp_path / "groupcam", "monitor")) == 2 and (tmp_path / "groupcam" / "monitor.json").is_file()


def test_the_final_evaluation_is_written_and_may_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(session_module, "assess", lambda cam, images, labels, name, **options: {"told": name, **options})
    watch(tmp_path)[0].evaluate("sigmoid", 3)
    assert not list(tmp_path.iterdir())
    session, _ = watch(tmp_path, checkpoint_callback=1)
    session.evaluate("sigmoid", 3)
    found = json.loads((tmp_path / "groupcam" / "evaluation.json").read_text())
    assert found.pop("run") == json.loads((tmp_path / "groupcam" / "monitor.json").read_text())["run"]
    assert found == {"told": "Grad-CAM", "activation": "sigmoid", "seed": 3}

    def failing(*_args, **_options):
        raise RuntimeError("no memory left")

    monkeypatch.setattr(session_module, "assess", failing)
    with pytest.warns(
        UserWarning, match="could not evaluate its maps: RuntimeError: no memory left. The training itself is complete"
    ):
        session.evaluate("softmax", 0)
