"""What the callback costs where it does nothing (p=0): time in our own code per training step, ResNet-18.

Every call from Lightning into the callback is timed: the batch on its way to the device (less the Trainer's own part of it)
and the hooks of a step. Bound: 1 ms, median.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
import torchvision
from common import conditions, filed, report
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from groupcam_aug.callbacks import GroupCAMAugmentation

BOUND_MS = 1.0
HOOKS = ("on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "on_before_backward", "on_after_backward")


class Classifier(pl.LightningModule):
    """A stock module around torchvision's ResNet-18."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torchvision.models.resnet18(num_classes=10)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


class Watch(pl.Callback):
    """Adds up, step by step, the milliseconds that a callback spends in its own code. Comes last in the Trainer's list."""

    def __init__(self, watched: GroupCAMAugmentation) -> None:
        self.watched, self.spent = watched, 0.0
        self.own: list[float] = []
        self.whole: list[float] = []
        for name in HOOKS:
            setattr(watched, name, self.timed(getattr(watched, name)))

    def timed(self, function: Callable[..., Any], sign: int = 1) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.spent += sign * 1000 * (time.perf_counter() - start)

        return call

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        fit = self.watched._fit
        assert fit is not None
        dispatcher = fit.dispatcher
        dispatcher.original = self.timed(dispatcher.original, -1)  # the Trainer's own part is not ours
        trainer.strategy.batch_to_device = self.timed(dispatcher)
        self.start = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.whole.append(1000 * (now - self.start))
        self.own.append(self.spent)
        self.start, self.spent = now, 0.0


def measure(p: float, steps: int, warm_up: int, batch: int, size: int) -> tuple[list[float], list[float]]:
    """Milliseconds of our code and of the whole step, per step."""
    torch.manual_seed(0)
    count = batch * (steps + warm_up)
    data = TensorDataset(torch.randn(count, 3, size, size), torch.randint(10, (count,)))
    ours = GroupCAMAugmentation(preset="paper", network="net", p=p)
    watch = Watch(ours)
    trainer = pl.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="auto", devices=1, callbacks=[ours, watch],
    )  # fmt: skip
    trainer.fit(Classifier(), DataLoader(data, batch))
    return watch.own[warm_up:], watch.whole[warm_up:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--warm-up", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=32)
    options = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    ours, whole = measure(0.0, options.steps, options.warm_up, options.batch, options.size)
    own = torch.tensor(ours)
    row = [
        "p=0",
        float(own.median()),
        float(own.quantile(0.95)),
        float(torch.tensor(whole).median()),
        BOUND_MS,
        "yes" if own.median() < BOUND_MS else "NO",
    ]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # as the Trainer chooses
    told = conditions(
        device,
        network="torchvision ResNet-18",
        size=options.size,
        batch=options.batch,
        steps=options.steps,
        lightning=pl.__version__,
    )
    report(
        filed("isolation", device),
        told,
        ["mode", "our code, median ms", "95 %", "whole step, median ms", "bound ms", "below"],
        [row],
    )


if __name__ == "__main__":
    main()
