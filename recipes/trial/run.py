"""One run of a trial: an arm's config with a seed, trained by a Trainer, tested after its last epoch; and its rehearsal."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import math
import platform
import shutil
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.utilities.warnings import PossibleUserWarning

from groupcam_aug.files import put_file, read_lines
from groupcam_aug.recipes.named_tests import run_tests
from groupcam_aug.recipes.trial.arms import Arm, is_kind
from groupcam_aug.recipes.trial.configured import PreparedFit, prepare, settings_hash
from groupcam_aug.recipes.trial.observers import ClassCounter, FitObserver, digest_of

__all__ = ["Rehearsal", "Run", "rehearse", "run_arm"]

STEPS = 3  # of a rehearsal: the first is a warm-up
_KEPT = ("keep_fraction", "object_kept", "ground_kept")
PACKAGES = ("groupcam-aug", "torch", "torchvision", "pytorch-lightning", "timm")


@dataclass(frozen=True)
class Run:
    """An arm and a seed.

    Args:
        arm: which.
        seed: of weights, order and crops.
        out: folder of the trial.
        where: what `ClassCounter` needs to know, from `where_things_are`.
        keep: whether the last weights are kept, as `last.ckpt` in the run's folder.
    """

    arm: Arm
    seed: int
    out: Path
    where: Mapping[str, Any] = field(default_factory=dict, compare=False)
    keep: bool = field(default=False, compare=False)

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.arm.name}__seed{self.seed}"

    @property
    def path(self) -> Path:
        """The record, which is there once the run is finished."""
        return self.out / "runs" / f"{self.name}.json"

    @property
    def folder(self) -> Path:
        """Where the Trainer, the callbacks and the log of the run write."""
        return self.out / "runs" / self.name

    @property
    def config(self) -> Path:
        """The arm's complete config."""
        return self.out / "arms" / f"{self.arm.name}.yaml"


@dataclass(frozen=True)
class Rehearsal:
    """What a few steps of an arm show."""

    seconds: float  # of a step
    steps: int  # of a whole run
    epochs: int
    images: int | None  # of the training set; None where it does not say
    tests: Mapping[str, int | None]  # images by test set

    @property
    def total(self) -> float:
        """Seconds of training of a run, about."""
        return self.seconds * self.steps


def run_arm(run: Run, progress: Callable[[float], None] = lambda share: None) -> dict[str, Any]:
    """Train, test after the last epoch, write the record.

    Args:
        run: which. What an interrupted attempt left in its folder is deleted.
        progress: called with the share of the training that is done.

    Returns:
        The record: ``tests`` (by data set: ``n``, ``metrics``, ``classes``, ``groups``), ``train`` (seconds, steps, and what the
        augmentation did), ``pairing`` (digests that are the same for all arms of a seed), ``weights`` (digest of the last
        weights), ``warnings``, settings and versions.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        Exception: whatever the fit or the test raises; the traceback is in ``error.txt`` in the run's folder.
    """
    if run.folder.exists():
        shutil.rmtree(run.folder)
    (run.folder / "groupcam").mkdir(parents=True)  # the callbacks write where this folder is
    observer, counter = FitObserver(progress), ClassCounter(**run.where)
    try:
        with _captured(run.folder) as heard:
            made = prepare(run.config, run.seed, run.folder, [observer, counter])
            _interruptible(made.trainer, lambda: made.trainer.fit(made.model, datamodule=made.datamodule))
            weights = digest_of(made.model)
            if run.keep:
                made.trainer.save_checkpoint(run.folder / "last.ckpt", weights_only=False)
            tests = _tested(made, counter)
    except Exception:
        put_file(run.folder, "error.txt", traceback.format_exc())
        raise
    finally:
        _free()
    if counter.problem is not None:
        heard.append(f"no accuracy was counted, only what test_step logs: {counter.problem}")
    record = {
        "arm": run.arm.name,
        "seed": run.seed,
        "about": run.arm.about,
        "control": run.arm.control,
        "hash": settings_hash(run.config),
        "tests": tests,
        "train": _training(observer, made.trainer, run.folder),
        "pairing": {"start": observer.start, "batches": observer.batches},
        "weights": weights,
        "warnings": heard,
        "folder": f"runs/{run.name}",
        "device": _device(made.trainer),
        "precision": str(made.trainer.precision),
        "versions": _versions(),
    }
    put_file(run.path.parent, run.path.name, json.dumps(_finite(record), indent=1, allow_nan=False) + "\n")
    return record


def rehearse(run: Run) -> Rehearsal:
    """Train an arm for a few steps, from the first augmented epoch on, and test on one batch of each data set; nothing is kept.

    Raises:
        Exception: whatever would end the run.
    """
    tree = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    epochs = tree["trainer"]["max_epochs"]
    for entry in tree["trainer"]["callbacks"] or []:
        if "start_epoch" in (entry.get("init_args") or {}) and not is_kind(entry, "SaliencyMonitor"):
            entry["init_args"]["start_epoch"] = 0
    folder = run.out / "rehearsal"
    config = folder / "config.yaml"
    put_file(folder, config.name, yaml.safe_dump(tree, sort_keys=False))
    observer, counter = FitObserver(), ClassCounter(**run.where)
    limits = {"max_epochs": 1, "max_steps": STEPS, "limit_val_batches": 0, "num_sanity_val_steps": 0, "limit_test_batches": 1}
    sizes: dict[str, int | None] = {}
    try:
        with _captured(folder):
            made = prepare(config, run.seed, folder, [observer, counter], limits)
            _interruptible(made.trainer, lambda: made.trainer.fit(made.model, datamodule=made.datamodule))
            _tested(made, counter, sizes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _free()
    epochs = 1000 if epochs is None else max(0, epochs)  # Lightning's default
    seconds = min(observer.seconds[1:] or observer.seconds)
    return Rehearsal(seconds, observer.steps * epochs, epochs, observer.images, sizes)


def _tested(made: PreparedFit, counter: ClassCounter, sizes: dict[str, int | None] | None = None) -> dict[str, Any]:
    tests: dict[str, Any] = {}
    current: list[str] = []
    names = getattr(made.datamodule, "class_names", None)
    names = names if names is not None else getattr(made.model, "class_names", None)

    def close() -> None:
        if current:
            tests[current.pop()] = counter.result(names)

    def before(name: str, loader: Any) -> None:
        close()
        counter.begin(loader)
        current.append(name)
        if sizes is not None:
            sizes[name] = _length(getattr(loader, "dataset", None))

    logged: dict[str, dict[str, float]] = {}

    def test() -> None:
        logged.update(run_tests(made.trainer, made.model, made.datamodule, before=before, verbose=False))

    _interruptible(made.trainer, test)
    close()
    for name, metrics in logged.items():
        found = tests.setdefault(name, {})
        found["metrics"] = {**found.get("metrics", {}), **metrics}
        found.setdefault("n", None)
        found.setdefault("classes", {})
        found.setdefault("groups", {})
    return tests


def _training(observer: FitObserver, trainer: pl.Trainer, folder: Path) -> dict[str, Any]:
    """What the fit took and, from the callback's records, what the augmentation did."""
    lines = [line for line in read_lines(folder / "groupcam", "augmentation") if line.get("drawn")]
    drawn = sum(line["drawn"] for line in lines)
    mapped = {id(line): line["drawn"] - line["no_map"] for line in lines}

    def mean(key: str) -> float | None:
        known = [(line[key], mapped[id(line)]) for line in lines if line.get(key) is not None and mapped[id(line)]]
        weight = sum(count for _, count in known)
        return sum(value * count for value, count in known) / weight if weight else None

    return {
        "seconds": round(sum(observer.seconds), 3),
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "loss": float(torch.stack(observer.losses).float().mean()) if observer.losses else None,
        "augmented": drawn or None,
        "no_map": sum(line["no_map"] for line in lines) / drawn if drawn else None,
        **{key: mean(key) for key in _KEPT},
    }


@contextlib.contextmanager
def _captured(folder: Path) -> Iterator[list[str]]:
    """Warnings are kept, once each; what is printed goes to the log of the run; Lightning's own notes are not for a trial."""
    import logging

    heard: list[str] = []
    names = [f"{package}.utilities.rank_zero" for package in ("pytorch_lightning", "lightning.pytorch")]
    loggers = [logging.getLogger(name) for name in (*names, "lightning_fabric.utilities.seed", "lightning.fabric.utilities.seed")]
    levels = [logger.level for logger in loggers]
    printed = io.StringIO()
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(printed):
        warnings.simplefilter("default")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield heard
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            texts = [str(one.message) for one in caught if not issubclass(one.category, _OF_LIBRARIES)]
            heard[:0] = dict.fromkeys(text for text in texts if "GPU available but not used" not in text)
            log = "\n".join([printed.getvalue().rstrip(), *heard]).strip()
            if log and folder.is_dir():
                put_file(folder, "log.txt", log + "\n")


def _interruptible(trainer: pl.Trainer, work: Callable[[], Any]) -> None:
    """Lightning answers Ctrl-C with an exit, and ignores further ones: here it stays what it is."""
    handler = signal.getsignal(signal.SIGINT) if _in_main_thread() else None
    try:
        work()
    except SystemExit as stop:
        if trainer.interrupted:
            raise KeyboardInterrupt from stop
        raise
    finally:
        if handler is not None and signal.getsignal(signal.SIGINT) is not handler:
            signal.signal(signal.SIGINT, handler)
    if trainer.interrupted:
        raise KeyboardInterrupt


def _in_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _device(trainer: pl.Trainer) -> str:
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' if threads > 1 else ''}" if device.type == "cpu" else device.type


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):  # lightning without pytorch-lightning, a folder that is not installed
            found[package] = version(package)
    return found


def _length(data: Any) -> int | None:
    return len(data) if hasattr(data, "__len__") else None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_OF_LIBRARIES = (PossibleUserWarning, DeprecationWarning, FutureWarning)  # to those who write them, or about speed
