"""One fit under watch: the probes are mapped, compared with the maps before, and the result is written down."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from groupcam_aug.callbacks.glue.attributes import attribute
from groupcam_aug.callbacks.glue.class_names import known_class_names
from groupcam_aug.callbacks.glue.compat import announce, warn
from groupcam_aug.callbacks.monitoring.film_strip import FilmStrip, is_kept
from groupcam_aug.callbacks.monitoring.final_evaluation import assess
from groupcam_aug.callbacks.monitoring.map_stats import Reading, alive, map_statistics
from groupcam_aug.callbacks.monitoring.monitor_state import MonitorState
from groupcam_aug.callbacks.monitoring.probe_mapper import ProbeMapper
from groupcam_aug.callbacks.monitoring.probing_cost import ProbingCost
from groupcam_aug.callbacks.monitoring.snapshots import Snapshots
from groupcam_aug.callbacks.records.folder import open_folder, run_id
from groupcam_aug.files import add_line, put_file
from groupcam_aug.targets import Activation

__all__ = ["Session"]

SHOWN = 12  # probes in pictures
GROWTH = 1.5  # after the first ten, loggers get the pictures of a probing whenever the way so far has grown by this factor


class Session:
    """What a `SaliencyMonitor` holds of a fit from the moment when its probes are there; dropped at the fit's end.

    Being made, it goes on where a checkpoint stopped, if that is of the same maps; else it takes a reference.

    Args:
        trainer: of the fit.
        mapper: of the probes.
        state: what is known of the training so far, kept up to date.
        cost: likewise.
        epochs: completed so far.
        network: dotted name of the mapped network.
        warmup_epochs: epochs after which maps may serve as a reference.
        min_alive: share of probes that must have a map for a change to be trusted.
        grid: most cells along a side of the grid on which maps are compared.
        name: of the files ("monitor") and of the folder of pictures.
        facts: about what is watched, for the file `<name>.json`.
        tag: of pictures in loggers, in front of their names. None: they are not shown there.
        style: `class_names`, `mean` and `std` for pictures, see `Snapshots`. None: as the data module says; names by whoever
            knows them, see `known_class_names`.
    """

    def __init__(
        self,
        trainer: Any,
        mapper: ProbeMapper,
        state: MonitorState,
        cost: ProbingCost,
        epochs: int,
        *,
        network: str | None,
        warmup_epochs: int,
        min_alive: float,
        grid: int,
        name: str,
        facts: dict[str, Any],
        tag: str | None,
        style: dict[str, Any],
    ) -> None:
        self.mapper = mapper
        self.announced = False  # whether the user has been told what is watched
        self.looked_behind = False  # whether the module has been looked at for layers behind the mapped network
        self._trainer, self._state, self._cost = trainer, state, cost
        self._warmup_epochs, self._min_alive, self._grid = warmup_epochs, min_alive, grid
        self._name, self._tag = name, tag
        said = {key: attribute(trainer.datamodule, key) if value is None else value for key, value in style.items()}
        if style["class_names"] is None:
            said["class_names"] = known_class_names(trainer, trainer.lightning_module)
        self._style: dict[str, Any] = said
        self._snapshots: Snapshots | None = None
        self._lost: set[str] = set()  # what was given up
        self._waiting: Reading | None = None  # the last one, while loggers have not got its pictures
        fingerprint = {**mapper.identity, "network": network}
        differs = state.recognise(fingerprint)
        if differs:
            warn(
                trainer,
                f"the checkpoint's saliency maps are of other {' and '.join(differs)}: SaliencyMonitor starts anew from the "
                "weights as they are now",
            )
        labels = mapper.probes.labels if state.targets is None else state.targets
        reading = state.reading
        if reading is None:
            reading = mapper.look(labels)
            state.reading, state.epochs = reading, epochs
            state.values = map_statistics(None, reading, grid=grid, min_alive=min_alive, warm=False)
        if labels is None:
            labels = state.targets = reading.chosen.clone()
        self.labels = labels  # (P,) or (P, classes), what the maps explain
        self._shown = replace(mapper.probes, labels=labels).shown(SHOWN)
        self._size = tuple(reading.maps.shape[1:])
        if not state.film.count:
            state.film.add(epochs - 1, reading.maps[self._shown])
        watched: dict[str, Any] = {"layer": mapper.cam.layer, "num_probes": len(mapper.probes), "origin": mapper.probes.origin}
        watched["cells"] = list(self._size)
        watched["labelled"] = mapper.probes.has_single_labels
        self._facts = {**facts, **watched, "fingerprint": fingerprint}

    def plan(self) -> str:
        """What is watched, in a line."""
        mapper, (rows, columns) = self.mapper, self._size
        explained = "their labels" if self._state.targets is None else "the first choice at the start"
        return (
            f"Saliency monitor: {mapper.name} at {mapper.cam.layer} ({rows} x {columns}) of {len(mapper.probes)} probes from "
            f"{mapper.probes.origin}, explaining {explained}"
        )

    def probe(self, epoch: int) -> None:
        """One probing: compare with the one before, write down, show."""
        state, trainer = self._state, self._trainer
        if "probings" in self._lost:
            return
        self.mapper.synchronize()
        began = time.perf_counter()
        try:
            before, now = state.reading, self.mapper.look(self.labels)
        except Exception as error:
            if trainer.world_size > 1:  # the other ranks wait for this one's maps
                raise
            self._lost.add("probings")
            what = f"{type(error).__name__}: {error}"
            warn(trainer, f"SaliencyMonitor maps nothing from here on: {what}. It goes on logging its last values")
            return
        if before is not None and before.maps.shape != now.maps.shape:
            warn(trainer, f"the maps' grid changed from {tuple(before.maps.shape[1:])} to {tuple(now.maps.shape[1:])}")
            before, state.film = None, FilmStrip()
        warm = before is not None and state.epochs >= self._warmup_epochs
        values = map_statistics(before, now, grid=self._grid, min_alive=self._min_alive, warm=warm)
        news = state.add(epoch, trainer.global_step, now, values, self._shown)
        if news is not None:
            announce(trainer, news)
        self._show(epoch, now)
        seconds = time.perf_counter() - began
        warning = self._cost.measure(began, seconds, len(self.mapper.probes))
        if warning is not None:
            warn(trainer, warning)
        line = {
            **state.history[-1],
            "seconds": seconds,
            "overhead": self._cost.share,
            "converged_epoch": state.convergence.converged_epoch,
            "fell_with_lr_epoch": state.convergence.fell_with_lr,
            "probe_alive": alive(now, self._grid),
            "probe_right": now.right.tolist(),
            "probe_chosen": now.chosen.tolist(),
        }
        if (folder := self.open()) is not None:
            with self._sparing("records"):
                add_line(folder, self._name, {"run": run_id(trainer, folder), **line})

    def evaluate(self, activation: Activation, seed: int) -> None:
        """Measure the maps as they are now, and write the result to `evaluation.json`, whose name follows the monitor's."""
        if (folder := self.open()) is None:
            return
        mapper, name = self.mapper, self._name.replace("monitor", "evaluation", 1)
        try:
            with mapper.borrow():
                result = assess(mapper.cam, mapper.images(), self.labels, mapper.name, activation=activation, seed=seed)
            result = {"run": run_id(self._trainer, folder), **result}
            put_file(folder, f"{name}.json", json.dumps(result, indent=1) + "\n")
        except Exception as error:  # hours of training must not end on this
            what = f"{type(error).__name__}: {error}"
            warn(self._trainer, f"SaliencyMonitor could not evaluate its maps: {what}. The training itself is complete")

    def open(self) -> Path | None:
        """The folder of the run's records, with what is watched written down in it; None where nothing is written.

        Asked for whenever something is to be written, not once: a `SaliencyReport` behind the monitor in the list of callbacks
        opens the folder later.
        """
        folder = None if "records" in self._lost else open_folder(self._trainer)
        if folder is not None and self._snapshots is None:
            with self._sparing("records"):
                snapshots = Snapshots(folder, self._name, self.mapper.probes.images, self.labels, self._shown, **self._style)
                snapshots.open({"run": run_id(self._trainer, folder), **self._facts})
                self._snapshots = snapshots
                with self._sparing("pictures"):
                    snapshots.show_probes()
        return None if "records" in self._lost else folder

    def upload(self) -> None:
        """Pictures of the last probing in the loggers, if they have not got them yet."""
        if self._snapshots is None or self._waiting is None or self._tag is None or "uploads" in self._lost:
            return
        with self._sparing("uploads"):
            self._snapshots.upload(self._trainer, self._tag, self._waiting, self._state.film, self._grid)
        self._waiting = None

    def _show(self, epoch: int, reading: Reading) -> None:
        """Pictures of an epoch, in files and in loggers."""
        if self.open() is None or self._snapshots is None or "pictures" in self._lost:
            return
        with self._sparing("pictures"):
            self._snapshots.add(epoch, reading, self._state.film)
            if self.mapper.probes.has_single_labels:
                self._snapshots.add_errors({"run": run_id(self._trainer, self._snapshots.folder), "epoch": epoch}, reading)
            self._waiting = reading
        if is_kept(self._state.film.count - 1, GROWTH):
            self.upload()

    @contextmanager
    def _sparing(self, part: Literal["records", "pictures", "uploads"]) -> Iterator[None]:
        """What is only to be looked at must not end a training run: it is given up from there on, and that is said."""
        try:
            yield
        except Exception as error:
            self._lost.add(part)
            given_up = {"records": "writes nothing", "pictures": "draws no pictures", "uploads": "shows loggers no pictures"}[
                part
            ]
            what = f"SaliencyMonitor {given_up} from here on: {type(error).__name__}: {error}"
            warn(self._trainer, f"{what}. It goes on logging its values")
