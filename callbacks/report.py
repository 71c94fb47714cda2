"""One page that a team can read: `report.html`, self-contained, written again as a run goes on."""

from __future__ import annotations

import json
import logging
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from groupcam_aug.arguments import changed_options
from groupcam_aug.callbacks.glue.class_names import known_class_names
from groupcam_aug.callbacks.glue.compat import Callback, announce, warn
from groupcam_aug.callbacks.records.folder import RUNS, now, record_folder, run_id
from groupcam_aug.callbacks.report_page.page import installed_version, render, render_records
from groupcam_aug.callbacks.report_page.run_records import FILES, current_run, read_records
from groupcam_aug.files import add_line, put_file, read_lines
from groupcam_aug.printable import without_secrets

__all__ = ["FILES", "SaliencyReport", "current_run", "read_records", "render", "render_records"]

PATIENCE = 20  # a page is not written again before this many times the seconds that the last one took
_LOG = logging.getLogger(__name__)


class SaliencyReport(Callback):
    """Writes one self-contained `report.html` for the run: readable offline, without JavaScript, below 5 MB.

    It shows what the other callbacks recorded in the folder `groupcam` of the run's log directory: how the probes' maps change
    and which probes are taken for another class (`SaliencyMonitor`), what the augmentation did (`GroupCAMAugmentation`),
    faithfulness (`groupcam-aug evaluate`), and by itself facts of the run, learning rate and all logged scalars per epoch. On top
    stand plain warnings. The page is written again after every epoch (where epochs are shorter than twenty times the half second
    that it takes: less often), at the end, and when the run stops with an error, by an exchange of files, so that a crash leaves
    the last one. `groupcam-aug report` writes it anew.

    Only rank zero writes; nothing is written in `fast_dev_run` and with `barebones`. The place among the callbacks does not
    matter: an epoch is reported when all callbacks are done with it.

    Args:
        dirpath: folder of the report. None: that of the records.
        filename: name of the report in it. Default: "report.html".

    Example::

        trainer = Trainer(callbacks=[GroupCAMAugmentation(network="model"), SaliencyReport()])
    """

    _fit: _Fit | None  # the fit under way
    _path: Path | None  # of the current or last fit's report

    def __init__(self, dirpath: str | None = None, filename: str = "report.html") -> None:
        super().__init__()
        if dirpath is not None and not isinstance(dirpath, str | PathLike):
            raise TypeError(f"dirpath must be the path of a folder or None, got {type(dirpath).__name__}")
        plain = isinstance(filename, str) and filename and Path(filename).name == filename and filename.isprintable()
        if not plain or filename == ".." or filename in FILES:
            raise ValueError(f"filename must be a plain file name, got {filename!r}; the folder is dirpath")
        self.dirpath, self.filename = dirpath, filename
        self._fit = self._path = None

    def __repr__(self) -> str:
        """The arguments that differ from their defaults."""
        return f"{type(self).__name__}({', '.join(changed_options(type(self).__init__, vars(self)))})"

    @property
    def path(self) -> Path | None:
        """Where the report is written in the current or last fit; None before, and where nothing is recorded."""
        return self._path

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Note the facts of the run."""
        self._fit, self._path, folder = _Fit(), None, record_folder(trainer)
        if folder is None:
            return
        self._path = Path(self.dirpath or folder) / self.filename
        with _sparing_the_run(trainer):
            self._fit.writer = _Writer(trainer, folder, self._path, _facts(trainer, pl_module, folder))
            folder.mkdir(parents=True, exist_ok=True)  # tells the others that this run is recorded
            self._fit.writer.write_facts("running")

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Report the epoch before: all callbacks are done with it, and its means are known."""
        self._report_epoch(trainer)
        if self._fit is not None:
            self._fit.epoch_began = time.perf_counter()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Remember the learning rates of the step: when an epoch ends, its scheduler has set those of the next."""
        if self._fit is not None and self._fit.writer is not None:
            rates = [group.get("lr") for optimizer in trainer.optimizers for group in optimizer.param_groups]
            self._fit.rates = [rate.clone() if isinstance(rate, torch.Tensor) else rate for rate in rates if rate is not None]

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Remember the epoch, which is not over before all callbacks are done with it."""
        if self._fit is not None:
            rate = max(map(float, self._fit.rates), default=None)
            self._fit.epoch = {"epoch": trainer.current_epoch, "step": trainer.global_step, "lr": rate}

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Report the last epoch, and say where to look."""
        self._report_epoch(trainer, "finished")
        self._fit = None
        if self._path is not None and self._path.is_file():
            announce(trainer, f"Saliency report: {self._path.resolve()}")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Report what there is."""
        status = f"stopped by {type(exception).__name__} in epoch {trainer.current_epoch}"
        message = without_secrets(" ".join(str(exception).split()))[:200]
        self._report_epoch(trainer, f"{status}: {message}" if message else status, alone=True)
        self._fit = None

    def _report_epoch(self, trainer: Any, status: str = "running", *, alone: bool = False) -> None:
        """Record the epoch that is over, if one is, and write the page; on every rank, or alone after an error."""
        fit = self._fit
        if fit is None:
            return
        epoch, fit.epoch = fit.epoch, None
        metrics: dict[str, Any] = {}
        if epoch is not None and not (alone and trainer.world_size > 1):
            # On every rank: what is not yet reduced is reduced together. After an error the others may not answer.
            metrics = {name: value for name, value in trainer.callback_metrics.items() if value.numel() == 1}
        if fit.writer is None or (epoch is None and status == "running"):
            return
        with _sparing_the_run(trainer):
            if epoch is not None:
                seconds = None if fit.epoch_began is None else time.perf_counter() - fit.epoch_began
                fit.writer.add_epoch({**{name: float(value) for name, value in metrics.items()}, **epoch, "seconds": seconds})
            fit.writer.write_facts(status)
            fit.writer.write_page(at_once=status != "running")


@dataclass
class _Fit:
    """The state of a fit on one rank."""

    writer: _Writer | None = None  # None on ranks that write nothing
    epoch: dict[str, Any] | None = None  # that is over, and not yet reported
    epoch_began: float | None = None
    rates: list[Any] = field(default_factory=list)  # of the last step, one per group of parameters


class _Writer:
    """Writes the records and the page of a fit.

    Args:
        trainer: of the fit.
        folder: of the records.
        path: of the page.
        facts: of the run.
    """

    def __init__(self, trainer: Any, folder: Path, path: Path, facts: dict[str, Any]) -> None:
        self.trainer, self.folder, self.path, self.facts = trainer, folder, path, facts
        self._next = 0.0  # when the page may be written again
        self._disturbed = False  # whether another run has been noticed

    def write_facts(self, status: str) -> None:
        run, chain = run_id(self.trainer, self.folder), read_lines(self.folder, RUNS)
        if chain and chain[-1].get("run") != run and not self._disturbed:
            self._disturbed = True
            warn(
                self.trainer,
                f"another run has begun to write its records into {str(self.folder)!r}: the report shows that one. Give each run "
                "a log directory of its own, by its logger's name or version, or by default_root_dir",
            )
        of = (
            {"started": chain[0].get("began"), "resumed": [line["epoch"] for line in chain if line.get("epoch")]} if chain else {}
        )
        facts = {"run": run, **self.facts, **of, "status": status, "updated": now()}
        put_file(self.folder, "run.json", json.dumps(facts, indent=2, default=str))

    def add_epoch(self, numbers: dict[str, Any]) -> None:
        add_line(self.folder, "run", {"run": run_id(self.trainer, self.folder), **numbers})

    def write_page(self, *, at_once: bool) -> None:
        start = time.perf_counter()
        if not at_once and start < self._next:
            return
        put_file(self.path.parent, self.path.name, render(self.folder))
        end = time.perf_counter()
        self._next = end + PATIENCE * (end - start)


@contextmanager
def _sparing_the_run(trainer: Any) -> Iterator[None]:
    """A page is no reason to lose a training run, whatever the records hold that it is written from."""
    try:
        yield
    except OSError as error:
        warn(trainer, f"SaliencyReport could not write its report: {type(error).__name__}: {error}")
    except Exception:  # logged with its traceback
        _LOG.exception("SaliencyReport could not write its report; training goes on")


def _facts(trainer: Any, module: Any, folder: Path) -> dict[str, Any]:
    """What is known of a run before its first step."""
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
        "class_names": known_class_names(trainer, module),
        "device": torch.cuda.get_device_name(device) if is_gpu else f"{device.type} ({platform.machine()})",
        "precision": str(trainer.precision),
        "world_size": trainer.world_size,
        "max_epochs": trainer.max_epochs,
        "command": without_secrets(shlex.join(sys.argv)),
        "directory": str(Path.cwd()),
        "versions": {"Python": platform.python_version(), **{name: installed_version(name) for name in packages}},
    }
