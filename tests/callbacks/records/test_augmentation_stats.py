"""What the augmentation counts, against counting by hand."""

import json
import warnings

import lit
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from records import augmented_batch
from torch.utils.data import DataLoader

from groupcam_aug.augment import Augmented
from groupcam_aug.callbacks import GroupCAMAugmentation
from groupcam_aug.callbacks.records import augmentation_stats, sample_grid
from groupcam_aug.callbacks.records.augmentation_stats import BINS, CLASSES, AugmentationStats
from groupcam_aug.files import read_lines


def test_stats_of_an_epoch_by_hand(tmp_path):
    stats = AugmentationStats(tmp_path)
    for fractions, drawn, labels in [([0.25, None], [1, 3], [9, 4, 9, 7]), ([1.0, 0.0, 0.26], [0, 1, 2], [4, 7, 4, 9])]:
        done, images = augmented_batch(fractions, drawn=drawn, batch=4)
        stats.add_step(4)
        stats.add(done, images, torch.tensor(labels), 0)
    stats.add_step(4)  # due, nobody drawn
    stats.add_step(0)  # not due
    values = stats.values()
    assert {name: values[name] for name in ("steps", "augmented_steps", "images", "drawn", "no_map")} == {
        "steps": 4,
        "augmented_steps": 2,
        "images": 12,
        "drawn": 5,
        "no_map": 1,
    }
    assert values["keep_fraction"] == pytest.approx((0.25 + 1.0 + 0.0 + 0.26) / 4), "an image without a map is not kept whole"
    assert values["keep_histogram"] == [1, 0, 0, 0, 0, 2] + [0] * (BINS - 7) + [1]
    assert values["per_class"] == {"4": [3, 0], "7": [2, 1]}
    assert values["seconds"] is values["step_seconds"] is None
    stats.reset()
    assert stats.values()["drawn"] == 0 and stats.values()["keep_fraction"] is None


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (torch.tensor([2, 0, 2]), {"0": [1, 1], "2": [2, 0]}),
        (torch.tensor([2, 0, 2], dtype=torch.int32), {"0": [1, 1], "2": [2, 0]}),
        ([2, 0, 2], {"0": [1, 1], "2": [2, 0]}),
        (1, {"1": [3, 1]}),
        (torch.eye(3)[[2, 0, 2]], {"0": [1, 1], "2": [2, 0]}),
        (torch.tensor([[0.7, 0.3, 0], [0, 0.5, 0.5], [0, 0, 1.0]]), {"0": [0.7, 0], "1": [0.8, 0.5], "2": [1.5, 0.5]}),
        (torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0]]), {"0": [0.83, 0.33], "1": [0.83, 0.33], "2": [0.33, 0.33]}),
        (torch.tensor([0.0, 1.0, 1.0]), {"0": [1, 0], "1": [2, 1]}),  # as BCEWithLogitsLoss takes them
        (torch.tensor([[0.0], [1.0], [1.0]]), {"0": [1, 0], "1": [2, 1]}),
        (torch.tensor([99_999, 5, 5]), {"5": [2, 1]}),
        (torch.tensor([CLASSES - 1, CLASSES, -100]), {str(CLASSES - 1): [1, 0]}),
        (None, {}),
        (torch.zeros(3, 4, 4), {}),
        (["a", "b", "c"], {}),
        (torch.zeros(2, dtype=torch.long), {}),
    ],
)
def test_classes_of_every_form_of_target(tmp_path, targets, expected):
    stats = AugmentationStats(tmp_path)
    done, images = augmented_batch([0.5, None, 0.5])
    stats.add_step(3)
    stats.add(done, images, targets, 0)
    assert stats.values()["per_class"] == expected


@pytest.mark.parametrize("labels", [[99_999, 5, 5], [5, CLASSES, 5], [-100, -1, 5]])
def test_labels_beyond_the_table_are_counted_together(tmp_path, labels):
    stats = AugmentationStats(tmp_path)
    done, images = augmented_batch([0.5, None, 0.5])
    stats.add(done, images, torch.tensor(labels), 0)
    beyond = [not 0 <= label < CLASSES for label in labels]
    assert stats.values()["other_classes"] == [sum(beyond), int(beyond[1])]
    assert sum(drawn for drawn, _ in stats.values()["per_class"].values()) + sum(beyond) == 3


def test_rows_without_any_label_are_counted_apart(tmp_path):
    stats = AugmentationStats(tmp_path)
    for rows in ([[1, 0], [0, 0], [0, 0]], [[0.0, 0.0], [0, 1], [1, 1]]):
        done, images = augmented_batch([0.5, None, 0.5])
        stats.add(done, images, torch.tensor(rows), 0)
    assert stats.values()["unlabelled"] == [3, 1]
    assert stats.values()["per_class"] == {"0": [1.5, 0], "1": [1.5, 1]}


class Recount(GroupCAMAugmentation):
    """Keeps what every batch gave, beside what is recorded of it."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.all = [*getattr(self, "all", []), (trainer.current_epoch, self._fit.step.result)]
        super().on_train_batch_start(trainer, module, batch, batch_idx)


@pytest.mark.parametrize("options", [{"p": 0.5, "seed": 1}, {"every_n_steps": 2}, {"start_epoch": 1}, {"mask_from": "whole"}])
def test_what_a_fit_records_is_what_happened(tmp_path, options):
    callback = Recount(network="net", layer="relu2", groups=4, **options)
    lit.fit(lit.Lit(), [callback], max_epochs=3, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    folder = tmp_path / "lightning_logs" / "version_0" / "groupcam"
    lines = read_lines(folder, "augmentation")
    assert [line["epoch"] for line in lines] == [0, 1, 2] and [line["step"] for line in lines] == [3, 6, 9]
    for line in lines:
        seen = [done for epoch, done in callback.all if epoch == line["epoch"]]
        seen, steps = [done for done in seen if done is not None], len(seen)
        assert (line["steps"], line["augmented_steps"]) == (steps, len(seen)) and steps == 3
        assert line["drawn"] == sum(len(done.drawn) for done in seen)
        assert line["no_map"] == sum(int(done.no_map.sum()) for done in seen)
        kept = [float(keep.float().mean()) for done in seen for keep in done.keep[~done.no_map]]
        assert sum(line["keep_histogram"]) == len(kept)
        if kept:
            assert line["keep_fraction"] == pytest.approx(sum(kept) / len(kept), abs=1e-6)
            assert 0 < line["seconds"] < line["step_seconds"] or line["augmented_steps"] < line["steps"]
            assert line["plain_seconds"] > 0
    drawn = {0: lines[0]["drawn"], 1: lines[1]["drawn"]}
    assert drawn[0] < 10 if "p" in options or "start_epoch" in options else drawn[0] > 0
    facts = json.loads((folder / "augmentation.json").read_text())
    assert facts["groups"] == 4 and facts["world_size"] == 1
    assert facts["mask_from"] == options.get("mask_from", "saliency")


def test_recording_changes_nothing(tmp_path):
    states = []
    for record in (True, False):
        module, folder = lit.Lit(), tmp_path / str(record)
        callback = GroupCAMAugmentation(preset="paper", network="net", layer="relu2", groups=4, p=0.5, record=record)
        lit.fit(module, [callback], lit.loader(shuffle=True), max_epochs=2, logger=CSVLogger(folder), log_every_n_steps=1)
        states.append([*lit.state(module), *module.seen])
        assert bool(list(folder.rglob("groupcam"))) == record
    assert lit.same(*states)


def test_a_run_that_leaves_nothing_is_left_without_records(tmp_path):
    callback = GroupCAMAugmentation(preset="paper", network="net", layer="relu2", groups=4)
    lit.fit(lit.Lit(), [callback], default_root_dir=tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "groupcam").mkdir()  # as a SaliencyReport does
    lit.fit(lit.Lit(), [callback], default_root_dir=tmp_path)
    assert (tmp_path / "groupcam" / "augmentation.jsonl").is_file()


@pytest.mark.parametrize("fails", ["put_file", "class_labels", "_sheet"])
def test_neither_a_full_disk_nor_a_picture_ends_the_training(tmp_path, monkeypatch, fails):
    def failing(*_):
        raise OSError(28, "No space left on device") if fails == "put_file" else TypeError("no place left for it")

    monkeypatch.setattr(sample_grid if fails == "_sheet" else augmentation_stats, fails, failing)
    module = lit.Lit()
    with pytest.warns(UserWarning, match=r"records nothing from here on: .*(No space|no place) left"):
        trainer = lit.fit(
            module,
            [GroupCAMAugmentation(preset="paper", network="net", layer="relu2", groups=4)],
            max_epochs=3,
            logger=CSVLogger(tmp_path),
            log_every_n_steps=1,
        )
    assert trainer.current_epoch == 3 and len(module.seen) == 9


def test_a_resumed_run_goes_on_recording(tmp_path):
    def fit(epochs, ckpt_path=None):
        logger = CSVLogger(tmp_path, version=0)
        callback = GroupCAMAugmentation(preset="paper", network="net", layer="relu2", groups=4)
        options = {**lit.SILENT, "logger": logger, "max_epochs": epochs, "log_every_n_steps": 1, "callbacks": [callback]}
        trainer = pl.Trainer(**options)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*Experiment logs directory.*")
            trainer.fit(lit.Lit(), lit.loader(), ckpt_path=ckpt_path)
        return trainer

    fit(2).save_checkpoint(tmp_path / "two.ckpt")
    folder = tmp_path / "lightning_logs" / "version_0" / "groupcam"
    fit(4, tmp_path / "two.ckpt")
    assert [line["epoch"] for line in read_lines(folder, "augmentation")] == [0, 1, 2, 3]
    fit(3, tmp_path / "two.ckpt")  # once more from there
    assert [line["epoch"] for line in read_lines(folder, "augmentation")] == [0, 1, 2]
    assert {path.stem for path in (folder / "gallery").glob("*.json")} == {"epoch_00000", "epoch_00001", "epoch_00002"}


def test_trial_steps_of_a_tuner_do_not_count(tmp_path):
    from pytorch_lightning.tuner import Tuner

    module = lit.Lit()
    module.lr = 0.01
    callback = GroupCAMAugmentation(preset="paper", network="net", layer="relu2", groups=4)
    options = {**lit.SILENT, "logger": CSVLogger(tmp_path), "max_epochs": 1, "log_every_n_steps": 1}
    trainer = pl.Trainer(**options, callbacks=[callback], default_root_dir=tmp_path)
    train = DataLoader(lit.Pictures(10), 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Tuner(trainer).lr_find(module, train, num_training=5, update_attr=False)
    trainer.fit(module, train)
    (line,) = read_lines(next(tmp_path.rglob("groupcam")), "augmentation")
    assert (line["steps"], line["drawn"]) == (3, 10)


@pytest.mark.parametrize("targets", [torch.tensor([1, 2, 0]), torch.eye(3), None])
def test_nothing_waits_for_the_device_before_the_end_of_the_epoch(tmp_path, targets):
    """Tensors without content: whoever looks at a value raises."""
    stats = AugmentationStats(tmp_path)
    done, images = augmented_batch([0.5, None, 0.25], drawn=[0, 1, 2])
    nowhere = [part.to("meta") for part in (done.images, done.maps, done.keep, done.no_map)]
    for step in range(3):
        stats.add_step(3)
        there = Augmented(nowhere[0], done.drawn, *nowhere[1:])
        stats.add(there, images.to("meta"), None if targets is None else targets.to("meta"), step)
    assert stats.drawn == 9
    with pytest.raises(NotImplementedError):
        stats.values()
