"""Pictures of the probes: in files, over time, and in the loggers that take them."""

from itertools import pairwise

import pytest
import pytorch_lightning as pl
import torch
from monitoring import Learner, batches, textures, watched
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from torch.utils.data import DataLoader, TensorDataset

from groupcam_aug.callbacks import SaliencyMonitor
from groupcam_aug.callbacks.monitoring.film_strip import COLUMNS, FRAME, SIZE, Film, column, png, thumbnails


def film(moments, start=-1):
    made = Film()
    for i in range(moments):
        made.add(start + i, torch.full((2, 3, 3), i / moments).half())
    return made


def test_a_film_keeps_moments_ever_further_apart_and_always_the_first_and_the_last():
    assert [epoch for epoch, _ in film(9).frames.values()] == list(range(-1, 8))
    for moments in (20, 100, 1000):
        made = film(moments)
        numbers = list(made.frames)
        assert numbers[0] == 0 and numbers[-1] == moments - 1 and len(numbers) <= 70 and set(range(10)) <= set(numbers)
        gaps = [b - a for a, b in pairwise(numbers[10:-1])]
        assert max(gaps, default=1) <= max(3, 0.25 * moments)
    assert torch.equal(film(1000).frames[999][1], torch.full((2, 3, 3), 0.999).half())


def test_a_strip_has_a_capped_number_of_columns_on_a_logarithmic_scale():
    pictures = torch.zeros(2, 3, 40, 40, dtype=torch.uint8)
    widths = [film(moments).strip(pictures).width for moments in (1, COLUMNS, COLUMNS + 1, 300)]
    assert widths[0] < widths[1] <= widths[2] == widths[3] < (COLUMNS + 2) * (FRAME + 10)


def test_a_film_goes_on_from_its_state():
    whole, first = film(40), film(25)
    again = Film()
    again.load_state_dict(first.state_dict())
    for i in range(25, 40):
        again.add(i - 1, torch.full((2, 3, 3), i / 40).half())
    assert list(again.frames) == list(whole.frames)
    assert [epoch for epoch, _ in again.frames.values()] == [epoch for epoch, _ in whole.frames.values()]


@pytest.mark.parametrize(
    ("shape", "size"), [((2, 3, 40, 40), (112, 112)), ((2, 1, 30, 60), (56, 112)), ((2, 5, 448, 224), (112, 56))]
)
def test_thumbnails_of_all_shapes_and_ranges(shape, size):
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3
    pictures = thumbnails(images, None, None)
    assert pictures.shape == (2, 3, *size) and pictures.dtype == torch.uint8
    if shape[1] == 3:
        assert pictures.min() < 20 and pictures.max() > 235 and 100 < pictures.float().mean() < 155, "stretched, not cut off"
    assert thumbnails(images.half(), None, None).shape == pictures.shape


def test_normalisation_is_undone():
    images = torch.zeros(1, 3, 112, 112)
    assert thumbnails(images, (0.2, 0.4, 0.6), (0.1, 0.1, 0.1))[0, :, 0, 0].tolist() == [51, 102, 153]
    assert thumbnails(images + 0.5, None, None).unique().tolist() == [128], "what lies in [0, 1] is shown as it is"


def test_a_column_has_its_maps_on_one_scale():
    pictures, maps = torch.zeros(2, 3, 112, 112, dtype=torch.uint8), torch.zeros(2, 4, 4)
    maps[0], maps[1, 0, 0] = 0.5, 1.0
    plain, laid = column(pictures), column(pictures, maps)
    assert plain.size == laid.size == (112, 224) and plain.getextrema() == ((0, 0),) * 3
    half, full = laid.getpixel((60, 60)), laid.getpixel((2, 114))
    assert 0 < sum(half) < sum(full) and laid.getpixel((100, 200)) == (0, 0, 0)
    assert png(plain)[:4] == b"\x89PNG"


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
            return DataLoader(TensorDataset(torch.zeros(8, 3, 32, 32), torch.arange(8) % 4), 4)

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
    assert pixel == (128, 128, 128) and '"a"' in facts
    settings = {"mean": (0.2, 0.2, 0.2), "std": (1, 1, 1), "class_names": ["w", "x", "y", "z"]}
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
