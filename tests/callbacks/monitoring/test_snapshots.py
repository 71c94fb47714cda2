"""Pictures of the probes: in files, and in the loggers that take them."""

import json

import pytest
import pytorch_lightning as pl
import torch
from monitoring import Learner, batches, textures, watched
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from torch.utils.data import DataLoader, TensorDataset

from groupcam_aug.callbacks import SaliencyMonitor
from groupcam_aug.callbacks.monitoring import snapshots
from groupcam_aug.callbacks.monitoring.film_strip import FRAME, SIZE
from groupcam_aug.callbacks.monitoring.map_stats import Reading
from groupcam_aug.callbacks.monitoring.snapshots import Snapshots


def sizes(folder):
    return {path.name: Image.open(path).size for path in (folder / "groupcam" / "monitor").iterdir()}


def test_files_are_always_written(tmp_path):
    images = DataLoader(TensorDataset(*textures(20, seed=2)), 10)
    for log_images in (True, False):
        folder = tmp_path / str(log_images)
        watched(folder, monitor=SaliencyMonitor(num_images=20, log_images=log_images), val=images)
        found = sizes(folder)
        assert found.pop("film_strip.png")[1] > 12 * FRAME
        assert found.keys() == {"probes.png", "epoch_00000.png", "epoch_00001.png", "epoch_00002.png"}
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


class Recording(Logger):
    """Takes pictures as Weights & Biases' logger does."""

    name, version, experiment = "recording", 0, None

    def __init__(self, folder):
        super().__init__()
        self.folder, self.pictures = folder, []

    @property
    def save_dir(self):
        return self.folder

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params):
        pass

    def log_image(self, key, images, step=None, **kwargs):
        self.pictures.append((key, [type(image) for image in images], step))


def test_weights_and_biases_and_loggers_that_take_no_pictures(tmp_path):
    recording = Recording(tmp_path)
    watched(tmp_path, logger=[CSVLogger(tmp_path), recording], max_epochs=2, log_every_n_steps=1)
    kinds = [Image.Image]
    assert recording.pictures == [(key, kinds, step) for step in (3, 6) for key in ("saliency/maps", "saliency/film_strip")]
    quiet = Recording(tmp_path)
    monitor = SaliencyMonitor(num_images=4, log_images=False)
    watched(tmp_path, monitor=monitor, logger=quiet, max_epochs=1, log_every_n_steps=1)
    assert quiet.pictures == []


def reading(chosen, right, score):
    maps = torch.zeros(3, 4, 4).half()
    maps[1:, 1, 1] = 1  # the first has none
    return Reading(maps, maps, torch.tensor(chosen), torch.tensor(right), torch.tensor(score))


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


def test_a_panel_has_three_probes_abreast(tmp_path):
    shots = Snapshots(tmp_path, "monitor", torch.rand(5, 3, 8, 8), torch.arange(5), [0, 1, 2, 3, 4], None, None, None)
    now = Reading(*[torch.rand(5, 4, 4).half()] * 2, torch.arange(5), torch.ones(5, dtype=torch.bool), torch.ones(5))
    few = Snapshots(tmp_path, "monitor", torch.rand(5, 3, 8, 8), torch.arange(5), [0, 1, 2], None, None, None)
    wide, high = few.panel(now, 14), shots.panel(now, 14)
    assert wide.width == high.width >= 6 * SIZE and wide.height < high.height
