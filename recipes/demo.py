"""``groupcam-aug demo``: does Group-CAM augmentation help a network that leans on the background? Minutes on two CPU cores.

A small ResNet is trained on the drawn shapes, whose background usually gives the class away. Copies of it are then fine-tuned
with the same budget: (a) without augmentation, (b) with Group-CAM, (c) with another image's mask, the control that keeps
the area and the blur but not the place. All are measured on the same objects with kept and with swapped backgrounds. The first
run of (b) is watched and written up in report.html, as `SaliencyReport` does for any training.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from groupcam_aug import GroupCAM, SaliencyBlur
from groupcam_aug.callbacks import GroupCAMAugmentation, SaliencyMonitor, SaliencyReport
from groupcam_aug.draw import mask_picture, overlay, panels
from groupcam_aug.recipes.classifier import Classifier
from groupcam_aug.recipes.cli import refusing
from groupcam_aug.recipes.networks import CIFARResNet
from groupcam_aug.recipes.shapes import CLASSES, Shapes

__all__ = ["ARMS", "Budget", "energy_inside", "run", "run_seed"]

ARMS: dict[str, Literal["saliency", "other"] | None] = {
    "(a) no augmentation": None,
    "(b) Group-CAM, paper": "saliency",
    "(c) another image's mask": "other",
}
MEAN, STD = 0.5, 0.25
REPORTED = "(b) Group-CAM, paper"  # the arm whose first run is reported
SHORT_EPOCHS = 8  # that a fit is divided into, so that the report's curves have points


@dataclass(frozen=True)
class Budget:
    """How much is trained and measured. The data's difficulty was tuned once on arm (a) and is frozen in `shapes` and here."""

    train: int = 3000  # samples
    test: int = 600  # samples per test split, the same objects in each
    rho: float = 0.9  # share of training backgrounds that show the class
    epochs: int = 8  # of training before the arms part
    steps: int = 40  # of fine-tuning, each arm
    maps: int = 150  # test samples that maps are measured on
    batch: int = 32
    width: int = 12
    seeds: int = 3


QUICK = Budget(train=640, test=120, epochs=2, steps=4, maps=24, seeds=2)


def run(command: str, words: list[str]) -> int:
    """The command: run every seed and arm, print the table, write ``results.json``, ``panels.png`` and ``report.html``."""
    parser = argparse.ArgumentParser(
        prog=f"groupcam-aug {command}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="under a minute: shows that everything runs; the numbers mean little"
    )
    parser.add_argument("--out", default="groupcam_demo", help="folder to write to (default: %(default)s)")
    parser.add_argument("--seeds", type=int, help=f"paired repetitions (default: {Budget.seeds}; quick: {QUICK.seeds})")
    options = parser.parse_args(words)
    budget = QUICK if options.quick else Budget()
    seeds = budget.seeds if options.seeds is None else options.seeds
    if seeds < 1:
        parser.error(f"--seeds {seeds}: give at least 1")
    torch.set_num_threads(min(4, torch.get_num_threads()))  # the network is too small for more to pay
    out, console, start = Path(options.out), Console(), time.perf_counter()
    with refusing():
        out.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    with _quiet_lightning(), _progress(console) as progress:
        for seed in range(seeds):
            rows, networks = run_seed(seed, budget, progress, out if seed == 0 else None)
            results += rows
            if seed == 0:
                sheet = draw_panels(networks[REPORTED], Shapes("kept", budget.test, seed=seed))
                sheet.save(out / "panels.png")
    seconds = time.perf_counter() - start
    console.print(_table(results, seeds, budget))
    if options.quick:
        console.print("Quick form: far too little training for the numbers to mean anything; run without --quick.")
    record = {
        "budget": asdict(budget),
        "seeds": seeds,
        "torch": torch.__version__,
        "seconds": round(seconds, 1),
        "results": results,
    }
    (out / "results.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    console.print(f"{seconds:.0f} s. Wrote {out / 'results.json'} and {out / 'panels.png'} (look at it).", soft_wrap=True)
    console.print(f"Report of the first run of {REPORTED}: {out / 'report.html'}", soft_wrap=True)
    return 0


def run_seed(
    seed: int, budget: Budget, progress: Progress, out: Path | None = None
) -> tuple[list[dict[str, Any]], dict[str, nn.Module]]:
    """One paired repetition: its own data and start, one shared pre-trained network, every arm with the same batches.

    Args:
        seed: of data, start and order.
        budget: how much is trained and measured.
        progress: display of it.
        out: folder for the report of the arm `REPORTED`. None: no report.

    Returns:
        One result per arm (``arm, seed, kept, swapped, energy, no_map, ms_per_step``; shares in [0, 1]) and the networks by arm.
    """
    task = progress.add_task(f"seed {seed}: drawing the data", total=None)
    images, labels, _ = Shapes("train", budget.train, rho=budget.rho, seed=seed, transform=_normalise).tensors()
    tests = {split: Shapes(split, budget.test, seed=seed, transform=_normalise).tensors() for split in ("kept", "swapped")}
    progress.remove_task(task)
    train = TensorDataset(images, labels)
    pl.seed_everything(seed, verbose=False)
    start = CIFARResNet(8, len(CLASSES), budget.width)
    pretrained = _Module(start, lr=0.1, steps=budget.epochs * (budget.train // budget.batch))
    _fit(pretrained, train, budget, seed, [], progress, f"seed {seed}: training")
    results, networks = [], {}
    for arm, mask_from in ARMS.items():
        module = _Module(copy.deepcopy(start), lr=0.02, steps=budget.steps)
        reported = out is not None and arm == REPORTED
        callbacks: list[pl.Callback] = []
        if mask_from is not None:
            callbacks.append(GroupCAMAugmentation(preset="paper", network="network", mask_from=mask_from, record=reported))
        test = None
        if out is not None and reported:
            test = TensorDataset(*tests["kept"][:2])
            probes = tuple(part[:48] for part in tests["kept"][:2])
            # Validation and probing leave the training as it is, bit for bit: this arm stays paired with the others.
            callbacks += [_watch(probes), SaliencyReport(dirpath=str(out))]
        seconds = _fit(module, train, budget, seed, callbacks, progress, f"seed {seed}: {arm}", test, out if reported else None)
        network = networks[arm] = module.network.eval()
        task = progress.add_task(f"seed {seed}: measuring {arm}", total=None)
        x, y, masks = (part[: budget.maps] for part in tests["kept"])
        maps = GroupCAM.for_training(network)(x, y)
        results.append(
            {
                "arm": arm,
                "seed": seed,
                **{split: _accuracy(network, *test[:2]) for split, test in tests.items()},
                "energy": energy_inside(maps, masks),
                "no_map": float((maps.amax(dim=(1, 2)) == 0).float().mean()),
                "ms_per_step": 1000 * seconds,
            }
        )
        progress.remove_task(task)
    return results, networks


def energy_inside(maps: Tensor, masks: Tensor) -> float:
    """Mean over images of sum(map * mask) / sum(map), maps (N, H, W), masks (N, H, W) bool; images without a map are left out."""
    total = maps.sum(dim=(1, 2))
    share = (maps * masks).sum(dim=(1, 2)) / total
    return float(share[total > 0].mean())


def draw_panels(network: nn.Module, data: Shapes, count: int = 6) -> Any:
    """A sheet: image, heat map, mask and augmented image of ``count`` samples, one of each class."""
    images, labels = (
        torch.stack(part) for part in zip(*((data[i][0], torch.tensor(data[i][1])) for i in range(count)), strict=True)
    )
    done = SaliencyBlur(GroupCAM.for_training(network)).apply(_normalise(images), labels, torch.arange(count))
    augmented = done.images * STD + MEAN
    rows = [[images[i], overlay(images[i], done.maps[i]), mask_picture(done.keep[i]), augmented[i]] for i in range(count)]
    captions = [["", "no map" if missing else "", "", "left as it is" if missing else ""] for missing in done.no_map.tolist()]
    return panels(
        rows,
        titles=["image", "Group-CAM", "kept pixels", "augmented"],
        labels=[CLASSES[int(label)] for label in labels],
        captions=captions,
    )


class _Module(Classifier):
    """The classifier with a one-cycle schedule over a fixed number of steps."""

    def __init__(self, network: nn.Module, lr: float, steps: int) -> None:
        super().__init__(network, lr=lr, weight_decay=5e-4, class_names=CLASSES, mean=[MEAN] * 3, std=[STD] * 3)
        self.steps = steps

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=max(2, self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _Bar(pl.Callback):
    """One line of the demo's progress display, and the seconds that each step took."""

    def __init__(self, progress: Progress, title: str, steps: int) -> None:
        self.progress, self.task = progress, progress.add_task(title, total=steps)
        self.last, self.seconds = 0.0, []  # type: float, list[float]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.last = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now
        self.progress.advance(self.task)


class _ShortEpochs:
    """A loader's batches in epochs of another length, each going on where the one before stopped."""

    def __init__(self, loader: DataLoader, length: int) -> None:
        self.loader, self.length = loader, length
        self.batches = self._endless()

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return islice(self.batches, self.length)

    def _endless(self) -> Iterator[Any]:
        while True:
            # Not to exhaustion, at which a sampler draws once more: the batches are those of an undivided fit.
            yield from islice(self.loader, len(self.loader))


def _watch(probes: tuple[Tensor, ...]) -> SaliencyMonitor:
    images, labels = probes
    return SaliencyMonitor(
        method="gradcam",
        network="network",
        images=images,
        labels=labels,
        class_names=CLASSES,
        mean=[MEAN] * 3,
        std=[STD] * 3,
        max_overhead=None,
        evaluate=True,
    )


def _fit(
    module: _Module,
    train: TensorDataset,
    budget: Budget,
    seed: int,
    callbacks: Sequence[pl.Callback],
    progress: Progress,
    title: str,
    test: TensorDataset | None = None,
    out: Path | None = None,
) -> float:
    """Train for ``module.steps`` steps; every call with the same seed sees the same batches. Median seconds per step."""
    bar = _Bar(progress, title, module.steps)
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(train, budget.batch, shuffle=True, drop_last=True, generator=order)
    trainer = pl.Trainer(
        max_steps=module.steps,
        accelerator="cpu",
        devices=1,
        callbacks=[*callbacks, bar],  # the bar last: what the others do between epochs is no part of a step
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=out,
        num_sanity_val_steps=0,
    )
    trainer.fit(
        module, _ShortEpochs(loader, max(1, module.steps // SHORT_EPOCHS)), None if test is None else DataLoader(test, 200)
    )
    progress.remove_task(bar.task)
    return statistics.median(bar.seconds)


@torch.no_grad()
def _accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    predicted = torch.cat([network(part).argmax(dim=1) for part in images.split(200)])
    return float((predicted == labels).float().mean())


def _normalise(images: Tensor) -> Tensor:
    return (images - MEAN) / STD


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """A dozen Trainers would say a dozen times that there is no GPU."""
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        try:
            yield
        finally:
            logger.setLevel(level)


def _progress(console: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console)


def _table(results: list[dict[str, Any]], seeds: int, budget: Budget) -> Table:
    no_map = 100 * statistics.mean(row["no_map"] for row in results)
    table = Table(
        title=f"Fine-tuning with the same budget ({budget.steps} steps of {budget.batch})",
        caption=f"mean ± standard error over {seeds} paired seeds, each with its own data and start; n = {budget.test} images "
        f"per split, {min(budget.maps, budget.test)} for the maps ({no_map:.0f} % have none and do not count); "
        f"chance is {100 / len(CLASSES):.0f} %",
    )
    for name in ("fine-tuned", "accuracy\nkept, %", "accuracy\nswapped, %", "map energy\ninside, %", "step,\nms"):
        table.add_column(name, justify="left" if name == "fine-tuned" else "right")
    for arm in ARMS:
        of_arm = [row for row in results if row["arm"] == arm]
        cells = [_spread([100 * row[key] for row in of_arm], 1) for key in ("kept", "swapped", "energy")]
        table.add_row(arm, *cells, _spread([row["ms_per_step"] for row in of_arm], 0))
    return table


def _spread(values: list[float], digits: int) -> str:
    """Mean and standard error; the mean alone of a single value."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values) / math.sqrt(len(values)):.{digits}f}"
