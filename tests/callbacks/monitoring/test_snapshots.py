"""Pictures of the probes: in files, and in the loggers that take them."""

import json
import warnings

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from lit import SILENT, Recording
from monitoring import Learner, batches, textures, watched
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader, TensorDataset

from groupcam_aug.callbacks import GroupCAMAugmentation, SaliencyMonitor, SaliencyReport
from groupcam_aug.callbacks.monitoring import snapshots
from groupcam_aug.callbacks.monitoring.film_strip import FRAME, SIZE, FilmStrip
from groupcam_aug.callbacks.monitoring.map_stats import Reading
from groupcam_aug.callbacks.monitoring.snapshots import Snapshots


def sizes(folder):
    return {path.name: Image.open(path).size for path in (folder / "groupcam" / "monitor").glob("*.png")}


def test_files_are_always_written(tmp_path):
    images = DataLoader(TensorDataset(*textures(20, seed=2)), 10)
    for log_images in (True, False):
        folder = tmp_path / str(log_images)
        watched(folder, monitor=SaliencyMonitor(num_images=20, log_images=log_images), val=images)
        found = sizes(folder)
        assert found.pop("film_strip.png")[1] > 12 * FRAME
        assert found.keys() - {"errors.png"} == {"probes.png", "epoch_00000.png", "epoch_00001.png", "epoch_00002.png"}
        assert found.pop("errors.png", (2 * SIZE, 0))[0] == 2 * SIZE
        assert set(found.values()) == {(SIZE, 12 * SIZE)}, "at most 12 probes"


def test_a_data_modules_names_and_normalisation_are_used(tmp_path):
    class Data(pl.LightningDataModule):
        class_names, mean, std = ["a", "b", "c", "d"], (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
        train_dataloader = staticmethod(batches)

        def val_dataloader(self):
            return DataLoader(TensorDataset(torch.full((8, 3, 32, 32), -0.2), torch.arange(8) % 4), 4)

    def fit(monitor, folder):
        trainer = pl.Trainer(
            max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[monitor], default_root_dir=folder,
        )  # fmt: skip
        (folder / "groupcam").mkdir(parents=True)  # as a SaliencyReport does
        trainer.fit(Learner(), datamodule=Data())
        probes = Image.open(folder / "groupcam" / "monitor" / "probes.png")
        return probes.getpixel((5, 5)), (folder / "groupcam" / "monitor.json").read_text()

    pixel, facts = fit(SaliencyMonitor(num_images=4), tmp_path / "a")
    assert pixel == (115, 115, 115) and '"a"' in facts
    settings = {"mean": (0.4, 0.4, 0.4), "std": (1, 1, 1), "class_names": ["w", "x", "y", "z"]}
    pixel, facts = fit(SaliencyMonitor(num_images=4, **settings), tmp_path / "b")
    assert pixel == (51, 51, 51) and '"w"' in facts


def test_a_real_tensorboard_file_has_the_pictures_under_constant_tags(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoardLogger(tmp_path, name="run")
    monitor = SaliencyMonitor(num_images=8)
    watched(tmp_path, monitor=monitor, logger=logger, log_every_n_steps=1)
    assert (tmp_path / "run" / "version_0" / "groupcam" / "monitor.jsonl").is_file()
    events = accumulator.EventAccumulator(logger.log_dir, size_guidance={"images": 0})
    events.Reload()
    assert set(events.Tags()["images"]) == {"saliency/maps", "saliency/film_strip"}
    for tag in events.Tags()["images"]:
        seen = events.Images(tag)
        assert [each.step for each in seen] == [3, 6, 9]
        picture = torch.frombuffer(bytearray(seen[0].encoded_image_string), dtype=torch.uint8)
        assert picture[:4].tolist() == [0x89, 0x50, 0x4E, 0x47] and seen[0].width > FRAME
    assert [each.value for each in events.Scalars("saliency/change")] == pytest.approx(
        [entry["change"] for entry in monitor.history], abs=1e-6
    )


def test_the_longer_the_run_the_fewer_pictures_are_kept_and_sent(tmp_path):
    """1.3 MB an epoch would be 266 MB in 200 epochs."""
    recording, epochs = Recording(tmp_path), 30
    watched(
        tmp_path, monitor=SaliencyMonitor(images=textures(2)), val=False, logger=recording, train=batches(4), max_epochs=epochs
    )
    (folder,) = tmp_path.rglob("monitor")
    kept = sorted(int(path.stem.removeprefix("epoch_")) for path in folder.glob("epoch_*.png"))
    assert kept == [*range(12), 13, 14, 15, 17, 19, 21, 23, 25, 28, 29]
    assert [step for key, _, step in recording.pictures if key == "saliency/maps"] == [*range(1, 10), 12, 18, 26, epochs]
    assert len(recording.pictures) == 2 * 13
    again = Recording(tmp_path)
    watched(tmp_path, monitor=SaliencyMonitor(images=textures(2)), val=False, logger=again, train=batches(4), max_epochs=3)
    kept = sorted(int(path.stem.removeprefix("epoch_")) for path in folder.glob("epoch_*.png"))
    assert kept[:3] == [0, 1, 2], "a run that starts anew in the same folder takes the place of the one before"


def test_pictures_of_a_run_with_other_probes_stay(tmp_path):
    shots = Snapshots(tmp_path, "monitor", torch.rand(3, 3, 8, 8), torch.arange(3), [0, 2], None, None, None)
    now, film = reading([0, 1, 2], [True] * 3, [1.0] * 3), FilmStrip()
    (tmp_path / "monitor").mkdir()
    for name in ("epoch_00003.png", "epoch_00012.png", "epoch_00040.png", "epoch_other.png"):
        (tmp_path / "monitor" / name).touch()
    for epoch in range(9, 30):
        film.add(epoch, now.maps[[0, 2]])
        if epoch > 9:
            shots.add(epoch, now, film)
    names = {path.name for path in (tmp_path / "monitor").glob("epoch_*")}
    assert names >= {"epoch_00003.png", "epoch_00040.png", "epoch_other.png", "epoch_00012.png", "epoch_00029.png"}
    assert "epoch_00022.png" not in names and len(names) == 3 + len(film.frames) - 1


class Sharpness(torch.optim.SGD):
    """Steps by a method that Lightning does not wrap, as SAM's implementations do."""

    def second_step(self):
        super().step()


@pytest.mark.parametrize("method", ["second_step", "step"])
def test_under_manual_optimisation_pictures_stand_at_the_steps_of_the_metrics(tmp_path, method):
    class Manual(Learner):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizers = self.optimizers()
            self.manual_backward(super().training_step(batch, batch_idx))
            for optimizer in optimizers:
                (optimizer.optimizer.second_step if method == "second_step" else optimizer.step)()
                optimizer.zero_grad()

        def configure_optimizers(self):
            return [Sharpness(self.net.conv.parameters(), 0.05), Sharpness(self.net.fc.parameters(), 0.05)]

    recording = Recording(tmp_path)
    _, trainer = watched(tmp_path, Manual(), logger=recording, max_epochs=2)
    assert trainer.global_step == (0 if method == "second_step" else 12)
    assert [step for key, _, step in recording.pictures if key == "saliency/maps"] == [3, 6]


def test_weights_and_biases_and_loggers_that_take_no_pictures(tmp_path):
    recording = Recording(tmp_path)
    watched(tmp_path, logger=[CSVLogger(tmp_path), recording], max_epochs=2, log_every_n_steps=1)
    kinds = [Image.Image]
    assert [(key, [*map(type, images)], step) for key, images, step in recording.pictures] == [
        (key, kinds, step) for step in (3, 6) for key in ("saliency/maps", "saliency/film_strip")
    ]
    quiet = Recording(tmp_path)
    monitor = SaliencyMonitor(num_images=4, log_images=False)
    watched(tmp_path, monitor=monitor, logger=quiet, max_epochs=1, log_every_n_steps=1)
    assert quiet.pictures == []


@pytest.mark.parametrize("error", [RuntimeError, ConnectionError])
def test_a_logger_that_fails_is_sent_no_more_pictures_and_training_goes_on(tmp_path, error):
    class Failing(Recording):
        def log_image(self, key, images, step=None, **kwargs):
            super().log_image(key, images, step)
            raise error("rate limit")

    failing = Failing(tmp_path)
    with pytest.warns(UserWarning, match=f"shows loggers no pictures from here on: {error.__name__}: rate limit") as caught:
        monitor, trainer = watched(tmp_path, logger=failing, max_epochs=3)
    assert sum("from here on" in str(each.message) for each in caught) == 1 and len(failing.pictures) == 1
    assert trainer.state.finished and len(monitor.history) == 3 and len(list(tmp_path.rglob("epoch_*.png"))) == 3


def reading(chosen, right, score):
    maps = torch.zeros(3, 4, 4).half()
    maps[1:, 1, 1] = 1  # the first has none
    return Reading(maps, maps, torch.tensor(chosen), torch.tensor(right), torch.tensor(score), torch.tensor([0.6, 0.9, 0.7]))


@pytest.mark.parametrize(
    "labels", [torch.tensor([2, 0, 1]), torch.eye(3)[[2, 0, 1]], torch.tensor([[0, 0.4, 0.6], [0.9, 0.1, 0], [0.3, 0.4, 0.3]])]
)
def test_facts_and_captions_name_one_class_per_probe(tmp_path, monkeypatch, labels):
    given = {}
    monkeypatch.setattr(snapshots, "panels", lambda rows, captions, size: given.update(rows=rows, captions=captions))
    shots = Snapshots(tmp_path, "monitor", torch.rand(3, 3, 8, 8), labels, [0, 2], ["ant", "bee"], None, None)
    shots.open({"method": "gradcam"})
    facts = json.loads((tmp_path / "monitor.json").read_text())
    assert facts == {"method": "gradcam", "labels": [2, 0, 1], "class_names": ["ant", "bee"], "shown": [0, 2]}
    shots.panel(reading([0, 0, 1], [False, True, True], [0.125, 0.5, 0.75]), 14)
    assert given["captions"] == [["class 2", "no map, p 0.12, taken for ant", "bee", "p 0.75"]]
    assert [len(row) for row in given["rows"]] == [4]


def test_the_most_confident_mistakes_come_first(tmp_path, monkeypatch):
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    shots = Snapshots(tmp_path, "monitor", images, torch.tensor([0, 1, 2]), [0], None, None, None)
    shots.add_errors({"run": "a", "epoch": 4}, reading([1, 0, 2], [False, False, True], [0.1, float("nan"), 0.9]))
    facts = json.loads((tmp_path / "monitor" / "errors.json").read_text())
    assert facts == {
        "run": "a", "epoch": 4, "cell": [SIZE, SIZE], "wrong": 2,
        "rows": [
            {"label": 1, "chosen": 0, "confidence": 0.9, "score": None, "has_map": True},
            {"label": 0, "chosen": 1, "confidence": 0.6, "score": 0.1, "has_map": False},
        ],
    }  # fmt: skip
    picture = np.array(Image.open(tmp_path / "monitor" / "errors.png"))
    assert picture.shape == (2 * SIZE, 2 * SIZE, 3)
    thumbs = snapshots.thumbnails(images[[1, 0]]).permute(0, 2, 3, 1).numpy()
    assert (picture[:SIZE, :SIZE] == thumbs[0]).all() and (picture[SIZE:, :SIZE] == thumbs[1]).all()
    assert (picture[:SIZE, SIZE:] != thumbs[0]).any() and (picture[SIZE:, SIZE:] == thumbs[1]).all(), "it has no map"
    monkeypatch.setattr(snapshots, "ERRORS", 1)
    shots.add_errors({"epoch": 5}, reading([1, 0, 2], [False, False, True], [0.1, 0.2, 0.9]))
    facts = json.loads((tmp_path / "monitor" / "errors.json").read_text())
    assert [row["label"] for row in facts["rows"]] == [1] and facts["wrong"] == 2
    shots.add_errors({"epoch": 6}, reading([0, 1, 2], [True] * 3, [1.0] * 3))
    assert json.loads((tmp_path / "monitor" / "errors.json").read_text())["rows"] == []


def test_mistakes_of_a_run_are_on_its_page(tmp_path):
    watched(tmp_path, monitor=SaliencyMonitor(num_images=8), after=[SaliencyReport()], max_epochs=1)
    facts = json.loads((tmp_path / "groupcam" / "monitor.json").read_text())
    line = json.loads((tmp_path / "groupcam" / "monitor.jsonl").read_text().splitlines()[-1])
    assert facts["labelled"] is True and len(line["probe_chosen"]) == 8
    wrong = sum(label != chosen for label, chosen in zip(facts["labels"], line["probe_chosen"], strict=True))
    page = (tmp_path / "groupcam" / "report.html").read_text()
    assert f"Of the 8 probes, from the validation data (TensorDataset), {8 - wrong} are classified as labelled" in page
    assert page.count('alt="its map"') == min(wrong, 6) > 0
    watched(tmp_path / "b", monitor=SaliencyMonitor(num_images=8, target_key=None), after=[SaliencyReport()], max_epochs=1)
    assert "No labelled probes were classified" in (tmp_path / "b" / "groupcam" / "report.html").read_text()


@pytest.mark.parametrize(
    "said",
    [
        {"mean": torch.tensor(0.5), "std": torch.tensor(0.5), "class_names": torch.tensor(4)},
        {"mean": np.float64(0.5), "std": np.ones(3), "class_names": np.array(["a", "b", "c", "d"])},
        {"mean": {"red": 0.5}, "std": len, "class_names": 4},
        {"mean": torch.ones(2, 3), "std": "one", "class_names": {"a", "b"}},
    ],
)
def test_attributes_that_are_only_for_pictures_never_end_a_training(tmp_path, said):
    class Data(pl.LightningDataModule):
        train_dataloader, val_dataloader = staticmethod(batches), staticmethod(batches)

    class Module(Learner):
        pass

    for name, value in said.items():
        for kind in (Data, Module):
            setattr(kind, name, value)
    folder = tmp_path / "groupcam"
    trainer = pl.Trainer(
        **{**SILENT, "default_root_dir": tmp_path, "max_epochs": 1},
        callbacks=[SaliencyMonitor(num_images=4), GroupCAMAugmentation(preset="paper", groups=4), SaliencyReport()],
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(from here on|could not write)")
        trainer.fit(Module(), datamodule=Data())
    names = json.loads((folder / "monitor.json").read_text())["class_names"]
    assert names == (["a", "b", "c", "d"] if isinstance(said["class_names"], np.ndarray) else None)
    assert json.loads((folder / "run.json").read_text())["class_names"] == names
    assert (folder / "gallery" / "epoch_00000.png").is_file() and (folder / "monitor" / "epoch_00000.png").is_file()


def test_a_panel_has_three_probes_abreast(tmp_path):
    shots = Snapshots(tmp_path, "monitor", torch.rand(5, 3, 8, 8), torch.arange(5), [0, 1, 2, 3, 4], None, None, None)
    now = Reading(*[torch.rand(5, 4, 4).half()] * 2, torch.arange(5), torch.ones(5, dtype=torch.bool), torch.ones(5))
    few = Snapshots(tmp_path, "monitor", torch.rand(5, 3, 8, 8), torch.arange(5), [0, 1, 2], None, None, None)
    wide, high = few.panel(now, 14), shots.panel(now, 14)
    assert wide.width == high.width >= 6 * SIZE and wide.height < high.height
