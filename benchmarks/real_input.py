"""A few training steps of timm's ResNet-50 on the ImageNet sample at 224 pixels, plain and with each preset.

Random weights: shapes, memory and time only. On a GPU: `python benchmarks/real_input.py --precision bf16-mixed --channels-last`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import pytorch_lightning as pl
import timm
import torch
from common import batch, conditions, filed, photographs, relative, report
from torch.utils.data import DataLoader, TensorDataset

from groupcam_aug.callbacks import GroupCAMAugmentation


class Module(pl.LightningModule):
    def __init__(self, channels_last: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = timm.create_model("resnet50", num_classes=1000)
        if channels_last:
            self.network = self.network.to(memory_format=torch.channels_last)
        self.channels_last = channels_last

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        images, labels = batch
        return torch.nn.functional.cross_entropy(self.network(images).float(), labels)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, labels = batch
        return [images.contiguous(memory_format=torch.channels_last) if self.channels_last else images, labels]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3, momentum=0.9)


class Times(pl.Callback):
    """Seconds from one batch's arrival to the next."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6, help="of each arm in each round, of which two do not count")
    parser.add_argument("--rounds", type=int, default=3, help="the arms take turns (default: %(default)s)")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--channels-last", action="store_true")
    options = parser.parse_args()
    pictures, labels = photographs()
    need = options.batch * options.steps
    data = TensorDataset(batch(pictures[:need]), torch.tensor(labels[:need]))
    arms = ("plain", "paper", "balanced", "fast")
    taken: dict[str, list[float]] = {arm: [] for arm in arms}
    kept: dict[str, float] = dict.fromkeys(arms, 1.0)
    peaks: dict[str, int | None] = dict.fromkeys(arms)
    for turn in range(options.rounds):
        for arm in arms:
            times = Times()
            extra = [] if arm == "plain" else [GroupCAMAugmentation(preset=arm, network="network")]
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            trainer = pl.Trainer(
                max_steps=options.steps,
                max_epochs=-1,
                precision=options.precision,
                callbacks=[*extra, times],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                devices=1,
            )
            trainer.fit(Module(options.channels_last), DataLoader(data, options.batch))
            seconds = [b - a for a, b in zip(times.marks, times.marks[1:], strict=False)]
            taken[arm].append(statistics.median(seconds[1:]))
            kept[arm] = float(trainer.callback_metrics.get("groupcam/keep_fraction", 1))
            if torch.cuda.is_available():
                peaks[arm] = round(torch.cuda.max_memory_allocated() / 2**20)
            print(turn + 1, arm, taken[arm][-1], flush=True)
    rows = [[arm, statistics.median(own), *relative(own, taken["plain"]), kept[arm], peaks[arm]] for arm, own in taken.items()]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # as the Trainer chooses
    told = conditions(
        device, network="timm resnet50, random weights", lightning=pl.__version__, timm=timm.__version__, **vars(options)
    )
    header = ["arm", "median s per step", "x plain", "IQR", "keep fraction of the last step", "peak MiB"]
    report(filed("real_input", device), told, header, rows)


if __name__ == "__main__":
    main()
