"""A training that is stopped at the end of an epoch and goes on is the undisturbed one, bit for bit."""

import random

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from groupcam_aug.recipes.classifier import Classifier
from groupcam_aug.recipes.data import ImageData
from groupcam_aug.recipes.epoch_order import EpochIndex, EpochSampler, SeededItems, shuffled_loader
from groupcam_aug.recipes.shapes import ShapesDataModule


class Noise(Dataset):
    """Samples that draw from all three sources of random numbers."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return index, torch.rand(()).item(), np.random.random(), random.random()  # noqa: NPY002


def rounds(loader, count):
    return [[[column.tolist() for column in batch] for batch in loader] for _ in range(count)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_follows_from_seed_and_epoch_whatever_the_processes(num_workers):
    options = {"num_workers": num_workers, "persistent_workers": num_workers > 0}
    whole = rounds(shuffled_loader(SeededItems(Noise()), 4, seed=3), 3)
    assert all(sorted(i for batch in epoch for i in batch[0]) == list(range(10)) for epoch in whole), "every sample once"
    assert len({str(epoch) for epoch in whole}) == 3, "another order, and other numbers, in every epoch"
    numbers = {value for epoch in whole for batch in epoch for column in batch[1:] for value in column}
    assert len(numbers) == 90
    assert rounds(shuffled_loader(SeededItems(Noise()), 4, seed=3, **options), 3) == whole
    later = shuffled_loader(SeededItems(Noise()), 4, seed=3, **options)
    iterator = iter(later)
    later.sampler.set_epoch(2)  # as a Trainer does, which has made the iterator before
    assert [[column.tolist() for column in batch] for batch in iterator] == whole[2]
    assert rounds(shuffled_loader(SeededItems(Noise()), 4, seed=4), 1)[0] != whole[0]
    assert rounds(shuffled_loader(SeededItems(Noise()), 4, seed=2), 2)[1] != whole[0], "seeds do not share epochs"


def test_the_global_numbers_stay_as_they_are():
    states = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
    items = SeededItems(Noise())
    first = items[EpochIndex.of(4, 7)]
    assert first == items[EpochIndex.of(4, 7)] != items[EpochIndex.of(4, 8)]
    assert (str(np.random.get_state()), random.getstate()) == states[1:] and torch.equal(torch.get_rng_state(), states[0])  # noqa: NPY002
    assert items[4] != items[4], "with a plain number a sample draws anew"


def test_the_seed_is_the_runs(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert shuffled_loader(Noise(), 2).sampler.run_seed == 5
    monkeypatch.delenv("PL_GLOBAL_SEED")
    torch.manual_seed(1)
    drawn = [shuffled_loader(Noise(), 2).sampler.run_seed for _ in range(2)]
    torch.manual_seed(1)
    assert shuffled_loader(Noise(), 2).sampler.run_seed == drawn[0] != drawn[1]


def test_processes_share_the_samples_of_an_epoch():
    parts = [list(EpochSampler(Noise(), 3, 2, rank)) for rank in (0, 1)]
    assert sorted(parts[0] + parts[1]) == list(range(10)) and len(parts[0]) == 5
    whole = [index for pair in zip(*parts) for index in pair]
    assert whole == list(EpochSampler(Noise(), 3)), "together they have the order of a process alone"
    assert {index.seed for index in whole} == {EpochSampler(Noise(), 3).__iter__().__next__().seed}


@pytest.fixture
def pictures(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(9):
            pixels = generator.integers(0, 255, (40, 44, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    return tmp_path / "pictures"


class Watch(pl.Callback):
    """What training got, and random numbers in between, as other callbacks might draw them."""

    def __init__(self, draws=0):
        self.draws, self.batches = draws, {}

    def on_train_batch_start(self, trainer, module, batch, index):
        self.batches.setdefault(trainer.current_epoch, []).append(batch[0].sum().item())
        torch.rand(self.draws)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 6))


def fit(data, folder, epochs, path=None, draws=0, **options):
    pl.seed_everything(3, verbose=False)
    watch = Watch(draws)
    if "val" in folder.name:
        saving = pl.callbacks.ModelCheckpoint(folder, save_last=True, save_on_train_epoch_end=False)
    elif "steps" in folder.name:
        saving = pl.callbacks.ModelCheckpoint(folder, save_last=True, every_n_train_steps=1)
    else:
        saving = pl.callbacks.ModelCheckpoint(folder, save_last=True, save_on_train_epoch_end=True)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_epochs=epochs, callbacks=[watch, saving], **quiet, **options)
    module = Classifier(network(), num_classes=6, lr=0.01)
    trainer.fit(module, datamodule=data(), ckpt_path=path)
    return watch.batches, {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("saved", ["train end", "val end", "steps end"])
@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["folder", "shapes"])
def test_a_resumed_training_is_the_undisturbed_one(pictures, tmp_path, monkeypatch, saved, num_workers, kind):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)

    def data():
        if kind == "shapes":
            return ShapesDataModule(train=24, val=6, test=6, batch_size=8, flip=True, num_workers=num_workers)
        return ImageData(str(pictures), size=32, batch_size=4, num_workers=num_workers, train_transform="crop-resize")

    whole, weights = fit(data, tmp_path / f"{saved} whole", 4)
    assert len({str(batches) for batches in whole.values()}) == 4
    fit(data, tmp_path / f"{saved} part", 2)
    found, again = fit(data, tmp_path / f"{saved} rest", 4, tmp_path / f"{saved} part" / "last.ckpt")
    assert found == {epoch: whole[epoch] for epoch in (2, 3)}
    assert all(torch.equal(value, again[name]) for name, value in weights.items())


@pytest.mark.filterwarnings("ignore")
def test_what_others_draw_does_not_change_the_data(pictures, tmp_path):
    def data():
        return ImageData(str(pictures), size=32, batch_size=4, num_workers=0)

    assert fit(data, tmp_path / "a", 2)[0] == fit(data, tmp_path / "b", 2, draws=7)[0]


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_may_take_the_order_away(pictures, tmp_path):
    def data():
        return ImageData(str(pictures), size=32, batch_size=4, num_workers=0)

    batches, _ = fit(data, tmp_path / "a", 2, overfit_batches=2)
    assert [len(found) for found in batches.values()] == [2, 2]
