"""Tiny LightningModules and loaders for the tests of the callbacks."""

import pytorch_lightning as pl
import torch
from models import PooledNet
from pytorch_lightning.loggers import Logger
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

SILENT = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Pictures(Dataset):
    """Deterministic random images and labels, kept in one tensor that nobody may write to."""

    def __init__(self, count=10, size=(24, 20), channels=3, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(count, channels, *size, generator=generator)
        self.labels = torch.randint(5, (count,), generator=generator)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i], self.labels[i]


def loader(count=10, batch_size=4, shuffle=False, collate_fn=None, **options):
    return DataLoader(Pictures(count, **options), batch_size, shuffle=shuffle, collate_fn=collate_fn)


class Recording(Logger):
    """Takes pictures as Weights & Biases' logger does; `failing`, it then says that it could not."""

    name, version, experiment, failing = "recording", 0, None, False

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
        self.pictures.append((key, images, step))
        if self.failing:
            raise ConnectionError("rate limit")


class Fixed:
    """Batches as they stand, the same objects in every epoch (a plain list would be taken for several loaders).

    Goes on where a checkpoint left it, as a stateful loader does.
    """

    def __init__(self, batches):
        self.batches, self.at = batches, 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        # Lightning stops at `len` without exhausting an iterator, so an epoch that ended leaves `at` at the end.
        for self.at in range(self.at % len(self.batches) + 1, len(self.batches) + 1):
            yield self.batches[self.at - 1]

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


class Lit(pl.LightningModule):
    """A stock module; remembers every batch that reached a step."""

    def __init__(self, net=None):
        super().__init__()
        torch.manual_seed(7)
        self.net = net or PooledNet()
        self.seen, self.evaluated = [], []

    def forward(self, x):
        return self.net(x)

    def read(self, batch):
        return batch[0], batch[1]

    def training_step(self, batch, batch_idx):
        x, y = self.read(batch)
        self.seen.append(x.detach().clone())
        return F.cross_entropy(self(x).float(), y)

    def evaluate(self, batch, batch_idx):
        self.evaluated.append(self.read(batch)[0].clone())

    validation_step = test_step = evaluate

    def predict_step(self, batch, batch_idx):
        self.evaluate(batch, batch_idx)
        return self(self.read(batch)[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


def fit(module, callbacks, train=None, trainer_class=pl.Trainer, val=None, **options):
    """Fit quietly, from one random state; returns the trainer."""
    torch.manual_seed(11)
    trainer = trainer_class(**{**SILENT, "max_epochs": 1, "callbacks": callbacks, **options})
    trainer.fit(module, loader() if train is None else train, val)
    return trainer


def state(module):
    """Weights, buffers and the global random state after a run, for comparisons bit by bit."""
    return [*(t.clone() for t in module.state_dict().values()), torch.get_rng_state()]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))
