"""What the augmentation counts and keeps, against counting by hand."""

import json
import warnings

import lit
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader

from groupcam_aug.augment import Augmented
from groupcam_aug.callbacks import GroupCAMAugmentation
from groupcam_aug.callbacks.records import augmentation_stats as tally
from groupcam_aug.callbacks.records import sample_grid as gallery
from groupcam_aug.callbacks.records.augmentation_stats import BINS, Tally, read_classes
from groupcam_aug.callbacks.records.sample_grid import Gallery, to_display
from groupcam_aug.callbacks.records.step_timer import Clock
from groupcam_aug.files import read_lines


def made(fractions, size=10, drawn=None, batch=None):
    """A batch in which image i keeps `fractions[i]` of its pixels; None: it has no map."""
    count = len(fractions)
    drawn = torch.arange(count) if drawn is None else torch.tensor(drawn)
    keep = torch.zeros(count, size * size, dtype=torch.bool)
    for row, fraction in zip(keep, fractions, strict=True):
        row[: round((1 if fraction is None else fraction) * size * size)] = True
    keep = keep.view(count, size, size)
    no_map = torch.tensor([fraction is None for fraction in fractions])
    images = torch.rand(batch or count, 3, size, size, generator=torch.Generator().manual_seed(0))
    return Augmented(images * 0.5, drawn, keep.float() * ~no_map[:, None, None], keep, no_map), images


def test_counts_of_an_epoch_by_hand(tmp_path):
    counts = Tally(tmp_path)
    for fractions, drawn, labels in [([0.25, None], [1, 3], [9, 4, 9, 7]), ([1.0, 0.0, 0.26], [0, 1, 2], [4, 7, 4, 9])]:
        done, images = made(fractions, drawn=drawn, batch=4)
        counts.add_step(4)
        counts.add(done, images, torch.tensor(labels), 0)
    counts.add_step(4)  # due, nobody drawn
    counts.add_step(0)  # not due
    values = counts.values()
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
    counts.reset()
    assert counts.values()["drawn"] == 0 and counts.values()["keep_fraction"] is None


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
        (torch.tensor([99_999, 5, 5]), {"5": [2, 1], str(tally.CLASSES - 1): [1, 0]}),
        (None, {}),
        (torch.zeros(3, 4, 4), {}),
        (["a", "b", "c"], {}),
        (torch.zeros(2, dtype=torch.long), {}),
    ],
)
def test_classes_of_every_form_of_target(tmp_path, targets, expected):
    counts = Tally(tmp_path)
    done, images = made([0.5, None, 0.5])
    counts.add_step(3)
    counts.add(done, images, targets, 0)
    assert counts.values()["per_class"] == expected


def test_rows_of_weights_add_up():
    labels, weights = read_classes(torch.tensor([[3.0, 1.0], [0.0, 0.0]]), 2)
    assert labels is None and weights.tolist() == [[0.75, 0.25], [0, 0]]


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
        callback = GroupCAMAugmentation(network="net", layer="relu2", groups=4, p=0.5, record=record)
        lit.fit(module, [callback], lit.loader(shuffle=True), max_epochs=2, logger=CSVLogger(folder), log_every_n_steps=1)
        states.append([*lit.state(module), *module.seen])
        assert bool(list(folder.rglob("groupcam"))) == record
    assert lit.same(*states)


def test_a_run_that_leaves_nothing_is_left_without_records(tmp_path):
    callback = GroupCAMAugmentation(network="net", layer="relu2", groups=4)
    lit.fit(lit.Lit(), [callback], default_root_dir=tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "groupcam").mkdir()  # as a SaliencyReport does
    lit.fit(lit.Lit(), [callback], default_root_dir=tmp_path)
    assert (tmp_path / "groupcam" / "augmentation.jsonl").is_file()


def test_a_full_disk_ends_the_records_not_the_training(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tally, "put_file", full)
    module = lit.Lit()
    with pytest.warns(UserWarning, match=r"records nothing from here on: .*No space left"):
        trainer = lit.fit(
            module,
            [GroupCAMAugmentation(network="net", layer="relu2", groups=4)],
            max_epochs=3,
            logger=CSVLogger(tmp_path),
            log_every_n_steps=1,
        )
    assert trainer.current_epoch == 3 and len(module.seen) == 9


def test_a_resumed_run_goes_on_recording(tmp_path):
    def fit(epochs, ckpt_path=None):
        logger = CSVLogger(tmp_path, version=0)
        callback = GroupCAMAugmentation(network="net", layer="relu2", groups=4)
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


def shown(folder, epoch=0):
    return json.loads((folder / "gallery" / f"epoch_{epoch:05d}.json").read_text())


def look(sheet, fractions, step, labels=None, **options):
    done, images = made(fractions, **options)
    fraction = done.keep.flatten(1).float().mean(dim=1)
    sheet.look(done, images, done.drawn, labels, fraction, step)
    return images


def test_the_gallery_holds_the_extremes_of_the_epoch(tmp_path):
    sheet = Gallery()
    look(sheet, [0.5, 0.3, 0.8], 0, torch.tensor([5, 6, 7]))
    look(sheet, [None, 0.5, 0.9], 1, torch.tensor([1, 2, 3]))
    look(sheet, [0.4, 0.1], 2, torch.tensor([8, 9]))
    sheet.write(tmp_path, 0)
    rows = shown(tmp_path)["rows"]
    found = {kind: [(row["keep"], row["label"]) for row in rows if row["kind"] == kind] for kind in gallery.KINDS}
    assert found["smallest"] == [(0.1, 9), (0.3, 6)]
    assert found["largest"] == [(0.9, 3), (0.8, 7)]
    assert found["no map"] == [(1.0, 1)]
    assert len({(row["step"], row["label"]) for row in rows}) == len(rows), "nobody twice"
    picture = Image.open(tmp_path / "gallery" / "epoch_00000.png")
    assert picture.size == (4 * 10, len(rows) * 10)


def test_pictures_belong_to_their_row(tmp_path):
    sheet = Gallery()
    images = look(sheet, [0.2, 0.6, 0.4], 0)
    sheet.write(tmp_path, 0)
    rows = shown(tmp_path)["rows"]
    picture = torch.from_numpy(np.array(Image.open(tmp_path / "gallery" / "epoch_00000.png"))).float() / 255
    for i, row in enumerate(rows):
        source = {0.2: 0, 0.6: 1, 0.4: 2}[row["keep"]]
        cells = picture[10 * i : 10 * i + 10].unflatten(1, (4, 10)).permute(1, 3, 0, 2)
        assert torch.allclose(cells[0], images[source], atol=0.003) and torch.allclose(cells[3], images[source] / 2, atol=0.003)
        assert float(cells[2].mean()) == pytest.approx(row["keep"], abs=0.01)


def test_the_gallery_takes_no_more_memory_with_more_batches(monkeypatch):
    monkeypatch.setattr(gallery, "SIZE", 12)
    sheet, sizes = Gallery(), set()
    for step in range(40):
        look(sheet, [0.5, None, 0.1 + step / 100, 0.9], step, size=30)
        sizes.add(sheet._pictures.numel())
    assert len(sizes) == 1 and sheet._pictures.shape[-1] < 2 * gallery.SIZE


def test_batches_of_one_and_of_other_sizes(tmp_path):
    sheet = Gallery()
    for step, (fractions, size) in enumerate([([0.5], 8), ([0.25, None], 12), ([0.75], 8)]):
        look(sheet, fractions, step, size=size)
    sheet.write(tmp_path, 3)
    assert [row["kind"] for row in shown(tmp_path, 3)["rows"]].count("no map") == 1
    Gallery().write(tmp_path, 4)  # an epoch without a drawn image
    assert {path.name for path in (tmp_path / "gallery").iterdir()} == {"epoch_00003.png", "epoch_00003.json"}


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_images_of_any_number_of_channels(tmp_path, channels):
    sheet = Gallery()
    done, images = made([0.5, 0.2])
    images = torch.randn(2, channels, 10, 10).to(torch.bfloat16)
    done = done._replace(images=images)
    sheet.look(done, images, done.drawn, None, done.keep.flatten(1).float().mean(dim=1), 0)
    sheet.write(tmp_path, 0)
    assert Image.open(tmp_path / "gallery" / "epoch_00000.png").mode == "RGB"


def test_few_epochs_are_kept(tmp_path):
    for epoch in range(3, 40):
        sheet = Gallery()
        look(sheet, [0.5, 0.2], 0)
        sheet.write(tmp_path, epoch)
    assert sorted(int(path.stem[6:]) for path in (tmp_path / "gallery").glob("*.png")) == [3, 4, 8, 16, 32, 39]


class Normalised(torch.nn.Module):
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.2, 0.1]


def test_normalised_images_are_shown_as_they_were():
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pixels = (images * 255).round().to(torch.uint8)
    assert torch.equal(to_display(images), pixels)
    normalised = (images - torch.tensor(Normalised.mean)[:, None, None]) / torch.tensor(Normalised.std)[:, None, None]
    assert torch.equal(to_display(normalised, Normalised()), pixels)
    stretched = to_display(normalised)  # nobody knows how
    assert stretched.min() == 0 and stretched.max() == 255
    for odd in (torch.nn.BatchNorm2d(3), torch.nn.Identity(), None):  # that have something else, or nothing, by those names
        assert torch.equal(to_display(normalised, odd), stretched)
    assert to_display(torch.zeros(1, 3, 2, 2)).max() == 0 and to_display(torch.full((1, 3, 2, 2), 7.0)).max() == 0


def test_the_clock_tells_steps_and_their_augmentation(monkeypatch):
    from groupcam_aug.callbacks.records import step_timer as clock

    now = iter([0.0, 1.0, 3.0, 7.0, 10.0, 11.0])
    monkeypatch.setattr(clock.time, "perf_counter", lambda: next(now))
    cpu, watch = torch.device("cpu"), Clock()
    assert watch.seconds is None
    watch.begin(cpu)
    with watch.measure(cpu):
        pass
    assert watch.seconds == 2.0, "known while the step goes on"
    watch.end(cpu)
    watch.begin(cpu)
    watch.end(cpu)
    watch.end(cpu)  # of a step that never began here: nothing
    assert list(watch.steps()) == [(7.0, 2.0), (1.0, None)] and list(watch.steps()) == []


def test_trial_steps_of_a_tuner_do_not_count(tmp_path):
    from pytorch_lightning.tuner import Tuner

    module = lit.Lit()
    module.lr = 0.01
    callback = GroupCAMAugmentation(network="net", layer="relu2", groups=4)
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
    counts = Tally(tmp_path)
    done, images = made([0.5, None, 0.25], drawn=[0, 1, 2])
    nowhere = [part.to("meta") for part in (done.images, done.maps, done.keep, done.no_map)]
    for step in range(3):
        counts.add_step(3)
        there = Augmented(nowhere[0], done.drawn, *nowhere[1:])
        counts.add(there, images.to("meta"), None if targets is None else targets.to("meta"), step)
    assert counts.drawn == 9
    with pytest.raises(NotImplementedError):
        counts.values()
