"""One run of a trial: an arm's config with a seed, trained by a Trainer, tested after its last epoch; and its rehearsal."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import platform
import shutil
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml

from groupcam_aug.files import put_file, read_lines
from groupcam_aug.recipes.named_tests import run_tests
from groupcam_aug.recipes.trial.arms import Arm, is_kind
from groupcam_aug.recipes.trial.capture import captured, interruptible
from groupcam_aug.recipes.trial.configured import PreparedFit, prepare, settings_hash
from groupcam_aug.recipes.trial.digests import digest_of
from groupcam_aug.recipes.trial.metrics import ACCURACIES
from groupcam_aug.recipes.trial.observers import ClassCounter, FitObserver

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

    def check_place(self) -> None:
        """Before the run is done: what is in its place must be what an attempt left, which is deleted.

        Raises:
            FileExistsError: it is somebody else's.
        """
        mine = (self.folder / "groupcam").is_dir() and not self.folder.is_symlink()  # an attempt makes that first
        path = next((path for path in (self.folder, self.path) if path.exists() or path.is_symlink()), None)
        if path is not None and not mine:
            raise FileExistsError(f"{str(path)!r} is there and no run of a trial: give another folder by --out, or move it away")


@dataclass(frozen=True)
class Rehearsal:
    """What a few steps of an arm show."""

    seconds: float  # of a step
    steps: int  # of a whole run
    epochs: int
    images: int | None  # of the training set; None where it does not say
    tests: Mapping[str, int | None]  # images by test set
    metrics: Sequence[str] = ()  # that the tests measure
    problem: str = ""  # why there is no accuracy

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
        The record: ``tests`` (by data set, see `ClassCounter.result`), ``train`` (seconds, steps, and what the augmentation
        did), ``pairing`` (digests that are the same for all arms of a seed), ``weights`` (digest of the last weights),
        ``warnings``, settings and versions.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        FileExistsError: what is in the run's place is somebody else's.
        Exception: whatever the fit or the test raises; the traceback is in ``error.txt`` in the run's folder.
    """
    run.check_place()
    if run.folder.exists():
        shutil.rmtree(run.folder)
    (run.folder / "groupcam").mkdir(parents=True)  # the callbacks write where this folder is
    observer, counter = FitObserver(progress), ClassCounter(**run.where)
    try:
        with captured(run.folder) as heard:
            made = prepare(run.config, run.seed, run.folder, [observer, counter])
            interruptible(made.trainer, lambda: made.trainer.fit(made.model, datamodule=made.datamodule))
            weights = digest_of(made.model)
            if run.keep:
                made.trainer.save_checkpoint(run.folder / "last.ckpt", weights_only=False)
            tests, problems = _tested(made, counter)
    except Exception:
        put_file(run.folder, "error.txt", traceback.format_exc())
        raise
    finally:
        _free()
    heard += [f"{name}: no accuracy was counted, only what test_step logs: {problem}" for name, problem in problems.items()]
    record = {
        "arm": run.arm.name,
        "seed": run.seed,
        "about": run.arm.about,
        "control": run.arm.control,
        "hash": settings_hash(run.config),
        "tests": tests,
        "train": _training(observer, made.trainer, run.folder),
        "pairing": {"start": observer.start, "batches": observer.batches, "data": observer.data},
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
    observer, counter = FitObserver(), ClassCounter(**run.where)
    limits = {"max_epochs": 1, "max_steps": STEPS, "num_sanity_val_steps": 0, "limit_test_batches": 1}
    if tree["trainer"]["limit_val_batches"] != 0:  # where three steps are an epoch, what looks at validation has to find it
        limits["limit_val_batches"] = 1
    sizes: dict[str, int | None] = {}
    try:
        # Loggers may still be writing when it ends.
        with tempfile.TemporaryDirectory(dir=run.out, prefix=".rehearsal-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            put_file(folder, "config.yaml", yaml.safe_dump(tree, sort_keys=False))
            with captured(folder):
                made = prepare(folder / "config.yaml", run.seed, folder, [observer, counter], limits)
                interruptible(made.trainer, lambda: made.trainer.fit(made.model, datamodule=made.datamodule))
                tests, problems = _tested(made, counter, sizes)
    finally:
        _free()
    epochs = 1000 if epochs is None else max(0, epochs)  # Lightning's default
    seconds = min(observer.seconds[1:] or observer.seconds)
    metrics = dict.fromkeys(name for test in tests.values() for name in test["metrics"])
    if any(test["n"] == 0 for test in tests.values()):  # no label in the first batch tells nothing of the others
        metrics |= dict.fromkeys(ACCURACIES)
    return Rehearsal(
        seconds,
        observer.steps * epochs,
        epochs,
        observer.images,
        sizes,
        tuple(metrics),
        "; ".join(dict.fromkeys(problems.values())),
    )


def _tested(
    made: PreparedFit, counter: ClassCounter, sizes: dict[str, int | None] | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """What was measured by data set, and for those without accuracy why."""
    tests: dict[str, Any] = {}
    problems: dict[str, str] = {}
    current: list[str] = []
    names = getattr(made.datamodule, "class_names", None)
    names = names if names is not None else getattr(made.model, "class_names", None)

    def close() -> None:
        if current:
            name = current.pop()
            tests[name] = counter.result(names)
            if counter.problem is not None:
                problems[name] = counter.problem

    def before(name: str, loader: Any) -> None:
        close()
        counter.begin(loader)
        current.append(name)
        if sizes is not None:
            sizes[name] = _length(getattr(loader, "dataset", None))

    logged: dict[str, dict[str, float]] = {}

    def test() -> None:
        logged.update(run_tests(made.trainer, made.model, made.datamodule, before=before, verbose=False))

    interruptible(made.trainer, test)
    close()
    for name, metrics in logged.items():
        found = tests.setdefault(name, {})
        found["metrics"] = {**found.get("metrics", {}), **metrics}
        found.setdefault("n", None)
        found.setdefault("classes", {})
        found.setdefault("groups", {})
    return tests, problems


def _training(observer: FitObserver, trainer: pl.Trainer, folder: Path) -> dict[str, Any]:
    """What the fit took and, from the callback's records, what the augmentation did."""
    lines = [line for line in read_lines(folder / "groupcam", "augmentation") if line.get("drawn")]
    drawn = sum(line["drawn"] for line in lines)
    mapped = {id(line): line["drawn"] - line["no_map"] for line in lines}

    def mean(key: str) -> float | None:
        known = [(line[key], mapped[id(line)]) for line in lines if line.get(key) is not None and mapped[id(line)]]
        weight = sum(count for _, count in known)
        return sum(value * count for value, count in known) / weight if weight else None

    epochs = trainer.max_epochs if trainer.max_steps < 0 or trainer.global_step < trainer.max_steps else None
    return {
        "seconds": round(sum(observer.seconds), 3),
        "epochs": trainer.current_epoch,
        "planned": epochs if epochs is not None and epochs >= 0 else None,  # None: by steps, or without an end
        "steps": trainer.global_step,
        "loss": float(torch.stack(observer.losses).float().mean()) if observer.losses else None,
        "augmented": drawn or None,
        "no_map": sum(line["no_map"] for line in lines) / drawn if drawn else None,
        **{key: mean(key) for key in _KEPT},
    }


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
