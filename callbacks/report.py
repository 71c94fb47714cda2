"""One page that a team can read: `report.html`, self-contained, written again as a run goes on."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import sys
import time
from datetime import datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from groupcam_aug.callbacks.glue.compat import Callback, announce, warn
from groupcam_aug.callbacks.records.folder import record_folder
from groupcam_aug.callbacks.records.sample_grid import KINDS
from groupcam_aug.callbacks.report_page import sections as chapters
from groupcam_aug.callbacks.report_page.checks import findings
from groupcam_aug.callbacks.report_page.images import film, gallery
from groupcam_aug.callbacks.report_page.run_records import FILES, read_journal
from groupcam_aug.files import add_line, put_file

__all__ = ["FILES", "SaliencyReport", "render"]

LIMIT = 5_000_000  # bytes of a page
PATIENCE = 20  # a page is not written again before this many times the seconds that the last one took
_NAMES = dict(zip(KINDS, ("least kept", "most kept", "no map", "ordinary"), strict=True))


def render(folder: str | os.PathLike[str]) -> str:
    """The report of a run as HTML, from its records alone.

    Args:
        folder: the `groupcam` folder in a run's log directory.

    Returns:
        A page without scripts and without any address outside itself, below 5 MB; chapters without records say in a line what
        would fill them.

    Raises:
        FileNotFoundError: no records in that folder.
        ValueError: a record there is not what it should be.
    """
    folder = Path(folder)
    journal = read_journal(folder)
    if journal.is_empty:
        raise FileNotFoundError(f"{str(folder)!r} holds no records of a run")
    told = findings(journal)
    warnings = sum(finding.level == "warning" for finding in told)
    things = "One thing deserves" if warnings == 1 else f"{warnings} things deserve"
    shared = {
        "version": _version("groupcam-aug"),
        "name": journal.run.get("name") or str(folder.resolve().parent if folder.name == "groupcam" else folder.resolve()),
        "headline": chapters.headline(journal),
        "verdict": f"{things} a look." if warnings else "Nothing stands out.",
        "cards": chapters.cards(journal),
        "findings": told,
        "curves": chapters.curves(journal),
        "probed": bool(journal.probings),
        "epochs": bool(journal.epochs),
        "augmentation": chapters.augmentation(journal),
        "cost": chapters.cost(journal),
        "faithfulness": chapters.faithfulness(journal),
        "facts": chapters.facts(journal),
        "kinds": _NAMES,
    }
    page = ""
    for quality, columns, epochs in ((82, 16, 3), (60, 12, 2), (40, 8, 1)):
        page = _template().render(shared, film=film(journal, quality, columns), gallery=gallery(journal, quality, epochs))
        if len(page.encode()) < LIMIT:
            break
    return page


class SaliencyReport(Callback):
    """Writes one self-contained `report.html` for the run: readable offline, without JavaScript, below 5 MB.

    It shows what the other callbacks recorded in the folder `groupcam` of the run's log directory: how the probes' maps change
    (`SaliencyMonitor`), what the augmentation did (`GroupCAMAugmentation`), faithfulness (`groupcam-aug evaluate`), and by itself
    facts of the run, learning rate and all logged scalars per epoch. On top stand plain warnings. The page is written again after
    every epoch (where epochs are shorter than twenty times the half second that it takes: less often), at the end, and when the
    run stops with an error, by an exchange of files, so that a crash leaves the last one. `groupcam-aug report` writes it anew.

    Only rank zero writes; nothing is written in `fast_dev_run` and with `barebones`. The place among the callbacks does not
    matter: an epoch is reported when all callbacks are done with it.

    Args:
        dirpath: folder of the report. None: that of the records.
        filename: name of the report in it. Default: "report.html".

    Example::

        trainer = Trainer(callbacks=[GroupCAMAugmentation(network="model"), SaliencyReport()])
    """

    _folder: Path | None  # of the records; None where nothing is recorded
    _facts: dict[str, Any]
    _epoch: dict[str, Any] | None  # that is over, and not yet reported
    _began: float | None
    _rates: list[Any]  # of the last step, one per group of parameters
    _set_up: str  # when this fit was
    _next: float  # when the page may be written again

    def __init__(self, dirpath: str | None = None, filename: str = "report.html") -> None:
        super().__init__()
        if not filename or Path(filename).name != filename:
            raise ValueError(f"filename must be a plain file name, got {filename!r}; the folder is dirpath")
        self.dirpath, self.filename = dirpath, filename
        self._reset()

    @property
    def path(self) -> Path | None:
        """Where the report is written in the current or last fit; None before, and where nothing is recorded."""
        return None if self._folder is None else Path(self.dirpath or self._folder) / self.filename

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Note the time, before any callback of this run writes."""
        self._set_up = _now()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Note the facts of the run."""
        self._reset()
        self._folder = record_folder(trainer)
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)  # tells the others that this run is recorded
        self._facts = _facts(trainer, pl_module, self._folder, self._set_up)
        self._note(trainer, "running")

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Report the epoch before: all callbacks are done with it, and its means are known."""
        self._finish_epoch(trainer)
        self._began = time.perf_counter()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Remember the learning rates of the step: when an epoch ends, its scheduler has set those of the next."""
        if self._folder is not None:
            rates = [group.get("lr") for optimizer in trainer.optimizers for group in optimizer.param_groups]
            self._rates = [rate.clone() if isinstance(rate, torch.Tensor) else rate for rate in rates if rate is not None]

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Remember the epoch, which is not over before all callbacks are done with it."""
        rate = max(map(float, self._rates), default=None)
        self._epoch = {"epoch": trainer.current_epoch, "step": trainer.global_step, "lr": rate}

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Report the last epoch, and say where to look."""
        self._finish_epoch(trainer, "finished")
        if self._folder is not None and self.path is not None and self.path.is_file():
            announce(trainer, f"Saliency report: {self.path.resolve()}")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Report what there is."""
        told = f"stopped by {type(exception).__name__} in epoch {trainer.current_epoch}"
        words = " ".join(str(exception).split())
        self._finish_epoch(trainer, f"{told}: {words[:200]}" if words else told, alone=True)

    def _finish_epoch(self, trainer: Any, status: str = "running", *, alone: bool = False) -> None:
        epoch, self._epoch = self._epoch, None
        metrics: dict[str, Any] = {}
        if epoch is not None and not (alone and trainer.world_size > 1):
            # On every rank: what is not yet reduced is reduced together. After an error the others may not answer.
            metrics = {name: value for name, value in trainer.callback_metrics.items() if value.numel() == 1}
        if self._folder is None:
            return
        try:
            if epoch is not None:
                seconds = None if self._began is None else time.perf_counter() - self._began
                numbers = {name: float(value) for name, value in metrics.items()}
                add_line(self._folder, "run", {**numbers, **epoch, "seconds": seconds})
            if epoch is not None or status != "running":
                self._note(trainer, status)
                self._write(status != "running")
        except Exception as error:  # a page is no reason to lose a training run
            warn(trainer, f"SaliencyReport could not write its report: {type(error).__name__}: {error}")

    def _note(self, trainer: Any, status: str) -> None:
        assert self._folder is not None  # for the type checker
        facts = {**self._facts, "status": status, "updated": _now()}
        put_file(self._folder, "run.json", json.dumps(facts, indent=2, default=str))

    def _write(self, at_once: bool) -> None:
        assert self._folder is not None and self.path is not None  # for the type checker
        start = time.perf_counter()
        if not at_once and start < self._next:
            return
        put_file(self.path.parent, self.path.name, render(self._folder))
        end = time.perf_counter()
        self._next = end + PATIENCE * (end - start)

    def _reset(self) -> None:
        self._folder, self._facts, self._epoch, self._began, self._next = None, {}, None, None, 0.0
        self._rates = []


def _facts(trainer: Any, module: Any, folder: Path, began: str) -> dict[str, Any]:
    """What is known of a run before its first step."""
    before: dict[str, Any] = {}
    if trainer.current_epoch and (folder / "run.json").is_file():
        before = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    sources = [source for source in (module, trainer.datamodule) if source is not None]
    names = next((found for source in sources if _are_names(found := getattr(source, "class_names", None))), None)
    network = next((child for child in module.children() if next(child.parameters(), None) is not None), None)
    device = trainer.strategy.root_device
    is_gpu = device.type == "cuda"
    lightning = next(base.__module__ for base in type(trainer).__mro__ if base.__name__ == "Trainer").split(".")[0]
    packages = ("groupcam-aug", "torch", "torchvision", "lightning" if lightning == "lightning" else "pytorch-lightning")
    return {
        "name": str(folder.resolve().parent),
        "model": type(module).__name__,
        "network": None if network is None else type(network).__name__,
        "parameters": sum(parameter.numel() for parameter in module.parameters() if not is_lazy(parameter)),
        "class_names": None if names is None else [str(name) for name in names],
        "device": torch.cuda.get_device_name(device) if is_gpu else f"{device.type} ({platform.machine()})",
        "precision": str(trainer.precision),
        "world_size": trainer.world_size,
        "max_epochs": trainer.max_epochs,
        "command": _command(sys.argv),
        "directory": str(Path.cwd()),
        "versions": {"Python": platform.python_version(), **{name: _version(name) for name in packages}},
        "started": before.get("started") or began,
        "resumed": [*before.get("resumed", []), *([trainer.current_epoch] if trainer.current_epoch else [])],
    }


def _are_names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(name, (str, int)) for name in value)


def _command(words: list[str]) -> str:
    """The command as it was typed, without what looks like a secret."""
    secret = r"(?i)((?:token|secret|password|api[-_]?key)[\w-]*(?:=| ))\S+"
    return re.sub(secret, r"\1***", shlex.join(words))


def _now() -> str:
    return datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


@lru_cache(maxsize=1)
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    text = files("groupcam_aug.callbacks.report_page").joinpath("report.html.j2").read_text(encoding="utf-8")
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(text)
