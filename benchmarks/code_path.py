"""How far a reader has to walk: which of our files one batch and one probing pass, and what the rooms hold and import.

A real Trainer on the CPU, seconds: `python benchmarks/code_path.py`. A change of file is counted where a function of
another file of the package is called than the last one was, and, beside it, where returns count as well; torch and Lightning in
between do not count. Another checkout is measured
by `PYTHONPATH=CHECKOUT python benchmarks/code_path.py`.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import logging
import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torchvision
from common import report
from pytorch_lightning.loggers import CSVLogger
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import groupcam_aug
from groupcam_aug.callbacks import GroupCAMAugmentation, SaliencyMonitor

PACKAGE = Path(groupcam_aug.__file__).parent
IMAGES = 8


class Walk:
    """The files of the package that execution passes between `begin` and `end`, one entry per change."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.calls_and_returns: list[str] = []

    def begin(self) -> None:
        sys.setprofile(self._event)

    def end(self) -> None:
        sys.setprofile(None)

    @property
    def files(self) -> list[str]:
        """In the order of the first visit."""
        return list(dict.fromkeys(self.calls))

    def _event(self, frame: Any, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        if event not in ("call", "return") or not name.startswith(f"{PACKAGE}{os.sep}"):
            return
        for passed in (self.calls_and_returns, *([self.calls] if event == "call" else [])):
            if passed[-1:] != [name]:
                passed.append(name)


class Classifier(pl.LightningModule):
    """A stock module around torchvision's ResNet-18."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torchvision.models.resnet18(num_classes=4)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def walk(callback: pl.Callback, start: tuple[str, int], stop: tuple[str, int]) -> Walk:
    """What is passed between two hooks, each (name, how many times it was called before), the callback's own ones done."""
    done = Walk()
    images, labels = torch.rand(3 * IMAGES, 3, 32, 32), torch.arange(3 * IMAGES) % 4
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=3,
            accelerator="cpu",
            logger=CSVLogger(folder),
            callbacks=[callback, _at(*start, done.begin), _at(*stop, done.end)],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Classifier(), DataLoader(TensorDataset(images, labels), batch_size=IMAGES))
    return done


def batch(preset: Any) -> Walk:
    """The second training batch, of 8 images: from the end of the first to its own end."""
    return walk(GroupCAMAugmentation(preset=preset, network="net"), ("on_train_batch_end", 0), ("on_train_batch_end", 1))


def probing() -> Walk:
    """The second probing, of 8 images: from the last batch of the epoch to the start of the next."""
    probes = torch.rand(IMAGES, 3, 32, 32), torch.arange(IMAGES) % 4
    monitor = SaliencyMonitor(images=probes, network="net", max_overhead=None)
    return walk(monitor, ("on_train_batch_end", 5), ("on_train_epoch_start", 2))


def sources() -> Iterator[tuple[str, Path]]:
    """(room, file) of every module: a room is a folder."""
    for folder, _, names in sorted(os.walk(PACKAGE, followlinks=True)):
        room = Path(folder).relative_to(PACKAGE.parent).as_posix().removeprefix(f"{PACKAGE.name}/")
        yield from ((room, Path(folder) / name) for name in sorted(names) if name.endswith(".py"))


def arrows() -> Counter[tuple[str, str]]:
    """How many modules of a room import something of another one."""
    files = {path: room for room, path in sources()}
    counts: Counter[tuple[str, str]] = Counter()
    for path, room in files.items():
        targets = {_room_of(name, files) for name in _imports(path)}
        counts.update((room, target) for target in targets - {None, room} if target)
    return counts


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _room_of(name: str, files: dict[Path, str]) -> str | None:
    """The room of a module, or of a name in one; None outside the package."""
    while name.split(".")[0] == PACKAGE.name:
        path = PACKAGE.parent / name.replace(".", "/")
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file in files:
                return files[file]
        name = name.rpartition(".")[0]
    return None


def _at(hook: str, before: int, act: Callable[..., None]) -> pl.Callback:
    """A callback that acts at one call of a hook."""
    calls = itertools.count()
    callback = pl.Callback()
    setattr(callback, hook, lambda *_: act() if next(calls) == before else None)
    return callback


def main(words: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(words)
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    walks = {f"a training batch, {preset}": batch(preset) for preset in ("paper", "balanced", "fast")}
    walks[f"a probing of {IMAGES} images"] = probing()
    told = {"network": "ResNet-18", "batch": f"{IMAGES} x 3 x 32 x 32", "torch": torch.__version__}
    rows = []
    for what, one in walks.items():
        names = [Path(name).relative_to(PACKAGE).as_posix() for name in one.files]
        rows.append([what, len(names), len(one.calls) - 1, len(one.calls_and_returns) - 1, ", ".join(names)])
    header = ("what", "files", "changes of file by calls", "by calls and returns", "in the order of the first visit")
    report("code_path", told, header, rows)
    rooms: dict[str, list[Path]] = {}
    for room, path in sources():
        rooms.setdefault(room, []).append(path)
    counts = arrows()
    rows = [
        [
            room,
            len(paths),
            sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths),
            ", ".join(f"{target} {count}" for (start, target), count in sorted(counts.items()) if start == room) or "-",
        ]
        for room, paths in rooms.items()
    ]
    report("code_path_rooms", told, ("room", "files", "lines", "modules that import from"), rows)


if __name__ == "__main__":
    main()
