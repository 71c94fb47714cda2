"""A rank of the runs in test_monitor_ddp.py: `python monitor_ranks.py FOLDER WORLD`. Writes rank<n>.pt into the folder."""

import os
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytorch_lightning as pl
import torch
from lit import SILENT
from monitoring import Learner, Plain, textures
from plain_ranks import PATIENCE, Collectives
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.strategies import DDPStrategy
from torch.utils.data import DataLoader, IterableDataset

from groupcam_aug.callbacks import SaliencyEarlyStopping, SaliencyMonitor
from groupcam_aug.callbacks.monitoring.probe_mapper import ProbeMapper


class Stream(IterableDataset):
    """Another stream on each rank."""

    def __init__(self, rank):
        self.images, self.labels = textures(8, seed=40 + rank)

    def __iter__(self):
        yield from zip(self.images.double(), self.labels)


class Shards(pl.LightningDataModule):
    """Training and validation data of which each rank has its own part."""

    def __init__(self, rank):
        super().__init__()
        self.rank = rank

    def train_dataloader(self):
        return doubled()

    def val_dataloader(self):
        images, labels = textures(6 + self.rank, seed=50 + self.rank)
        return DataLoader(list(zip(images.double(), labels)), 4)


class Synced(Learner):
    """Logs a value that ranks reduce, in the progress bar, which rank zero alone reads."""

    def __init__(self):
        super().__init__(lambda: Plain().double())

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss, on_epoch=True, prog_bar=True, sync_dist=True)
        return loss


class Reader(pl.Callback):
    """Reads what is logged on rank zero alone, as progress bars do."""

    def on_train_epoch_end(self, trainer, module):
        if trainer.is_global_zero:
            assert trainer.callback_metrics


class Seen(pl.Callback):
    """What a rank could monitor."""

    def __init__(self):
        self.metrics = []

    def on_train_epoch_end(self, trainer, module):
        self.metrics.append({key: value.item() for key, value in trainer.callback_metrics.items() if "saliency" in key})


def fit(folder, monitor, world, *, train, epochs=3, callbacks=(), checkpointing=False, ckpt_path=None, bar=False):
    torch.manual_seed(11)
    (Path(folder) / "groupcam").mkdir(parents=True, exist_ok=True)  # as a SaliencyReport does
    filters = list(warnings.filters)
    module, seen = Synced() if bar else Learner(lambda: Plain().double()), Seen()
    settings = {
        **SILENT,
        "enable_progress_bar": bar,
        "default_root_dir": folder,
        "max_epochs": epochs,
        "enable_checkpointing": checkpointing,
    }
    if world > 1:
        strategy = DDPStrategy(process_group_backend="gloo", timeout=PATIENCE)
        settings |= {"num_nodes": world, "devices": 1, "strategy": strategy, "use_distributed_sampler": False}
    trainer = pl.Trainer(**settings, callbacks=[*callbacks, monitor, seen])
    trainer.fit(module, train, ckpt_path=ckpt_path)
    return {
        "filters": [str(each) for each in warnings.filters if each not in filters],
        "history": monitor.history,
        "metrics": seen.metrics,
        "state": monitor.state_dict(),
        "epochs": trainer.current_epoch,
        "weights": [p.detach().clone() for p in module.parameters()],
    }


def doubled(**options):
    images, labels = textures(12, **options)
    return DataLoader(list(zip(images.double(), labels)), 4)


@contextmanager
def counted():
    """The collectives of each look at the probes."""
    look, collectives = ProbeMapper.look, []

    def counting(mapper, targets):
        with Collectives() as seen:
            reading = look(mapper, targets)
        collectives.append(list(seen.names))
        return reading

    ProbeMapper.look = counting
    try:
        yield collectives
    finally:
        ProbeMapper.look = look


def run(folder, world):
    rank = int(os.environ.get("NODE_RANK", 0))
    images, labels = textures(5, seed=3)
    images, told = images.double(), {}
    probes = {"images": images, "labels": labels, "network": "net"}
    for name, settings in (
        ("five", {}),
        ("one", {"images": images[:1], "labels": None}),
        ("groupcam", {"method": "groupcam", "groups": 4}),
    ):
        monitor = SaliencyMonitor(**{**probes, **settings})
        with counted() as collectives:
            told[name] = {**fit(folder / name, monitor, world, train=doubled()), "collectives": collectives}
    stream = SaliencyMonitor(num_images=3, network="net")
    told["stream"] = fit(folder / "stream", stream, world, train=DataLoader(Stream(rank), 4))
    shards = SaliencyMonitor(num_images=6, network="net")
    told["shards"] = fit(folder / "shards", shards, world, train=Shards(rank), epochs=1)
    lax = SaliencyMonitor(**probes, threshold=1.0, min_alive=0.0, patience=2)
    stops = [SaliencyEarlyStopping(), EarlyStopping("saliency/change", patience=99)]
    told["stopped"] = fit(folder / "stopped", lax, world, train=doubled(), epochs=9, callbacks=stops)
    saver = ModelCheckpoint(folder / "saved", filename="{epoch}", save_top_k=-1, every_n_epochs=1)
    first = SaliencyMonitor(**probes)
    fit(folder / "saving", first, world, train=doubled(), epochs=2, callbacks=[saver], checkpointing=True)
    path = folder / "saved" / "epoch=1.ckpt"
    stopping = [Reader(), SaliencyEarlyStopping(patience=50)]
    told["bar"] = fit(folder / "bar", SaliencyMonitor(**probes), world, train=doubled(), callbacks=stopping, bar=True)
    told["resumed"] = fit(folder / "again", SaliencyMonitor(**probes), world, train=doubled(), ckpt_path=path)
    torch.save(told, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(Path(sys.argv[1]), int(sys.argv[2]))
    advice = [str(each.message) for each in caught if "sync_dist" in str(each.message) and "saliency" in str(each.message)]
    assert not advice, advice
