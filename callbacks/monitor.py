"""Watching the maps of a fixed set of images from epoch to epoch: whether they settle, how noisy they are, how many there are."""

from __future__ import annotations

import inspect
import json
import math
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from groupcam_aug.callbacks.glue.batch import BatchKey, get_item
from groupcam_aug.callbacks.glue.compat import Callback, announce, misconfigured, warn
from groupcam_aug.callbacks.glue.network import find_network, refuse
from groupcam_aug.callbacks.monitoring.convergence import Convergence
from groupcam_aug.callbacks.monitoring.film_strip import FilmStrip
from groupcam_aug.callbacks.monitoring.final_evaluation import assess
from groupcam_aug.callbacks.monitoring.map_stats import UNKNOWN, Reading, alive, numbers
from groupcam_aug.callbacks.monitoring.probe_mapper import Watch
from groupcam_aug.callbacks.monitoring.probes import Probes, first_of_batch, from_validation, given
from groupcam_aug.callbacks.monitoring.snapshots import Snapshots
from groupcam_aug.callbacks.records.folder import record_folder
from groupcam_aug.files import add_line, put_file
from groupcam_aug.saliency import GroupCAM

__all__ = ["SaliencyMonitor"]

SHOWN = 12  # probes in pictures
NOTICEABLE = 1.0  # seconds a probing must take before its share of an epoch is worth a warning


class SaliencyMonitor(Callback):
    """Watches the saliency maps of a fixed set of probe images while a network is trained.

    The probes are mapped before training and at the end of every n-th epoch, with the weights as they are (not their average),
    in evaluation mode, in the Trainer's precision, outside any DDP wrapper; under DDP each rank maps its share. Weights,
    gradients, modes and random numbers are left as they are: training is the same, bit for bit, with and without the monitor.

    Logged at the end of every epoch, on every rank, always finite; an epoch without probing repeats the last value:

    - `saliency/change`: how much the maps changed since the last probing, mean of 1 - Spearman's rho on the layer's grid, from
      0 (same) to 1 (unrelated). A probe whose map came or went counts 1, one without a map both times is left out. It is 1
      while there is nothing to compare: in the first `warmup_epochs`, and when fewer than `min_alive` of the probes have a map.
    - `saliency/spearman`, `/mass_shift`: mean rank correlation of the pairs (-1 to 1), mean share of the mass that moved.
    - `saliency/noise`: how much the map of the mirrored image differs, 0 to 1; falls as maps get better, and needs no labels.
    - `saliency/alive`: share of probes with a map. `saliency/floor`: rank correlation of maps of *different* images.
    - `saliency/change_correct` and so on: the same over the probes classified as labelled, both times. `saliency/correct` is
      their share, `/counted` and `/counted_correct` how many pairs a change is the mean of, `/flip_rate` the share of probes
      with another first choice than last time.

    `converged_epoch` is the first of `patience` probings in a row with a change of at most `threshold`, enough maps alive and a
    learning rate that has not been cut: it is announced and reported, not acted upon (see `SaliencyEarlyStopping`). Stable
    maps are necessary for a finished training, not sufficient. If change only fell with the learning rate, that is said instead.

    Rank zero writes what it saw under `<log directory>/groupcam/` (monitor.json, monitor.jsonl, pictures in monitor/).

    In `fast_dev_run` nothing is mapped, and the values before anything is known are logged; in `barebones` nothing is done.

    Args:
        method: "gradcam" (three forward units per probe) or "groupcam" (groups + 4).
        images: the probes, as the network takes them: (P, C, H, W), or a pair (images, labels). None: drawn from the first
            validation loader with a map-style data set, as many of each class as can be, the same ones in every run; without
            one, the first training batch, as `training_step` gets it (on all ranks, rank zero's).
        labels: of `images`: (P,) class indices or (P, classes) weights. None: the network's own first choice at the first
            probing, kept from then on; so too where the validation data have no labels.
        num_images: number of probes drawn. Default: 64.
        every_n_epochs: epochs between probings. Default: 1.
        network: dotted name of the network on the LightningModule. None: the LightningModule itself.
        layer: target layer, as named in that network. None: found, and told.
        log_images: show pictures (a panel and a film strip) in TensorBoard and Weights & Biases. Files are written either way.
        image_key: where the images are in a batch: index, key or attribute name, a list of them, or a (getter, setter) pair.
        target_key: where the labels are, likewise. None: the network's own first choice.
        output: where the logits are in what the network returns: key, index, attribute or callable.
        preprocess: applied to images before the network sees them, for modules that normalise in their steps.
        class_names: for pictures and the report. None: `class_names` of the Trainer's data module, if it has them.
        mean: per channel, of the normalisation to undo in pictures. None: the data module's `mean` and `std`, if it has them.
        std: likewise.
        threshold: change up to which maps count as unchanged. Default: 0.05.
        patience: probings in a row that must be so. Default: 3.
        min_lr_share: of the highest learning rate seen; at or below it the rate counts as cut. Default: 0.1.
        min_alive: share of probes that must have a map for a change to be trusted. Default: 0.5.
        warmup_epochs: epochs after which maps may serve as a reference: those of an untrained network are none. Default: 1.
        evaluate: at the end of the fit, measure the method's maps on the probes (insertion, deletion, against controls) and
            whether they depend on the weights (cascading randomisation); written to evaluation.json by rank zero. Takes about
            170 forward passes per probe and 9 probings.
        activation: what turns logits into scores: "softmax" or "sigmoid".
        groups: G, of `method="groupcam"`. Default: 32.
        mask_at: of `method="groupcam"`: "input", "stage", "target" or a layer's name. Default: "input".
        chunk: most images per forward pass; see `GroupCAM` for the default.
        grid: most cells along a side of the grid on which maps are compared. Default: 14.
        max_overhead: share of an epoch's time above which probing is warned about, once three probings have taken more, and
            a second or more each. None: never. Default: 0.02.
        prefix: of the logged names, for two monitors in one Trainer, or where "/" is unwelcome (file names of checkpoints).
        seed: of the draw of probes.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.
        MisconfigurationException: no images under `image_key`, a module that cannot be mapped, a sharded strategy.
        RuntimeError: two monitors with one prefix (by Lightning, which could not keep their states apart).

    Example::

        trainer = Trainer(callbacks=[SaliencyMonitor(network="model"), EarlyStopping("saliency/change", patience=10)])
    """

    history: list[dict[str, Any]]  # one entry per probing: epoch, step, lr, max_lr and every logged value
    values: dict[str, float]  # what is logged, without the prefix

    _before: Reading | None
    _epochs: int  # completed when `_before` was taken
    _targets: Tensor | None  # the network's own first choice, where there are no labels
    _fingerprint: dict[str, Any]
    _lr: float | None  # of the last batch: at an epoch's end a scheduler has set the next one's already
    _max_lr: float | None
    _overhead: float | None
    _costs: list[tuple[float, float]]  # (share of the time, seconds) of the last three probings
    _probes: Probes | None
    _watch: Watch | None
    _exhibit: Snapshots | None
    _folder: Path | None
    _shown: list[int]
    _epoch_began: float | None
    _active: bool
    _told: bool
    _warned: bool

    def __init__(
        self,
        *,
        method: Literal["gradcam", "groupcam"] = "gradcam",
        images: Tensor | tuple[Tensor, Tensor] | None = None,
        labels: Tensor | Sequence[int] | None = None,
        num_images: int = 64,
        every_n_epochs: int = 1,
        network: str | None = None,
        layer: str | None = None,
        log_images: bool = True,
        image_key: BatchKey = 0,
        target_key: BatchKey | None = 1,
        output: int | str | Callable[[Any], Tensor] | None = None,
        preprocess: Callable[[Tensor], Tensor] | None = None,
        class_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        threshold: float = 0.05,
        patience: int = 3,
        min_lr_share: float = 0.1,
        min_alive: float = 0.5,
        warmup_epochs: int = 1,
        evaluate: bool = False,
        activation: Literal["softmax", "sigmoid"] = "softmax",
        groups: int = 32,
        mask_at: str = "input",
        chunk: int | None = None,
        grid: int = 14,
        max_overhead: float | None = 0.02,
        prefix: str = "saliency/",
        seed: int = 0,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self._arguments = arguments
        if method not in ("gradcam", "groupcam"):
            raise ValueError(f"method must be 'gradcam' or 'groupcam', got {method!r}")
        for name, value, least in (
            ("num_images", num_images, 1),
            ("every_n_epochs", every_n_epochs, 1),
            ("warmup_epochs", warmup_epochs, 0),
            ("grid", grid, 2),
            ("seed", seed, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        for name, word in (("network", network), ("layer", layer)):
            if word is not None and not isinstance(word, str):
                raise TypeError(f"{name} must be a name (str) or None, got {type(word).__name__}")
        if (mean is None) != (std is None):
            raise ValueError("give both mean and std, or neither")
        if isinstance(class_names, str) or (class_names is not None and not all(isinstance(each, str) for each in class_names)):
            raise TypeError(f"class_names must be a list of names, one per class, got {class_names!r}")
        if max_overhead is not None and not max_overhead > 0:
            raise ValueError(f"max_overhead must be a share above 0, or None for no warning; got {max_overhead!r}")
        if not isinstance(prefix, str) or not re.search(r"\w", prefix):
            raise ValueError(f"prefix must be a name to start logged keys with, such as 'saliency/'; got {prefix!r}")
        # Checks these arguments now, not at the first probing.
        GroupCAM(nn.Identity(), groups=groups, activation=activation, chunk=chunk)
        Convergence(threshold, patience, min_lr_share, min_alive)
        self.method, self.num_images, self.every_n_epochs = method, num_images, every_n_epochs
        self.network, self.layer, self.log_images = network, layer, log_images
        self.image_key, self.target_key, self.output, self.preprocess = image_key, target_key, output, preprocess
        self.class_names, self.mean, self.std = class_names, mean, std
        self.threshold, self.patience, self.min_lr_share, self.min_alive = threshold, patience, min_lr_share, min_alive
        self.warmup_epochs, self.evaluate, self.activation = warmup_epochs, evaluate, activation
        self.groups, self.mask_at, self.chunk, self.grid = groups, mask_at, chunk, grid
        self.max_overhead, self.prefix, self.seed = max_overhead, prefix, seed
        self._given = given(images, labels)
        self.in_extra_forward = False  # for users whose own hooks should ignore the saliency passes
        slug = re.sub(r"\W+", "_", prefix).strip("_")
        self._name = "monitor" if slug == "saliency" else f"monitor_{slug}"  # of the files
        self._reset()
        self._release()

    def __repr__(self) -> str:
        defaults = inspect.signature(SaliencyMonitor).parameters
        changed = {name: value for name, value in self._arguments.items() if value is not defaults[name].default}
        shown = (f"{name}={'...' if name in ('images', 'labels') else repr(value)}" for name, value in changed.items())
        return f"{type(self).__name__}({', '.join(shown)})"

    def __getstate__(self) -> dict[str, Any]:
        """Only the arguments travel (to spawned processes, into copies): what a run has built stays behind."""
        return self._arguments

    def __setstate__(self, state: dict[str, Any]) -> None:
        SaliencyMonitor.__init__(self, **state)

    @property
    def state_key(self) -> str:
        """Two monitors in one Trainer keep their states apart."""
        return self._generate_state_key(prefix=self.prefix)

    @property
    def converged_epoch(self) -> int | None:
        """The epoch in which the maps had settled, None so far."""
        return self._convergence.converged_epoch

    @property
    def fell_with_lr_epoch(self) -> int | None:
        """The epoch by which the change had been low as long, but only since the learning rate was cut; None so far."""
        return self._convergence.fell_with_lr

    @property
    def overhead(self) -> float | None:
        """Measured: seconds of the last probing over those of the epochs it stands for. None before one."""
        return self._overhead

    def predict_overhead(self, images_per_epoch: float) -> float:
        """Share that probing adds to an epoch, in forward passes: a training step counts 3 per image.

        Per probe it takes 1 (Grad-CAM, whose gradient goes no further back than the layer) or `groups` + 2 (Group-CAM on the
        input; an upper limit elsewhere), twice because of the mirror image, and one for the predictions.
        """
        probes = self._probes or self._given
        count = self.num_images if probes is None else len(probes)
        units = 2 * (1 if self.method == "gradcam" else self.groups + 2) + 1
        return count * units / (3 * images_per_epoch * self.every_n_epochs)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot work."""
        if stage != "fit":
            return
        self._release()
        if trainer.current_epoch == 0:  # not when the same Trainer goes on
            self._reset()
        instead = "Train with ddp, or map a saved checkpoint afterwards with groupcam_aug.GradCAM"
        refuse(trainer, pl_module, self.network, type(self).__name__, instead)
        self._active = not trainer.fast_dev_run and not trainer.barebones
        if trainer.barebones:
            announce(trainer, "SaliencyMonitor: Trainer(barebones=True) logs nothing, so nothing is mapped")
        if trainer.world_size > 1:  # every rank logs the same number: Lightning's advice to average them is beside the point
            warnings.filterwarnings("ignore", rf"It is recommended to use `self\.log\('{re.escape(self.prefix)}")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Choose the probes, and map them before anything is learned."""
        if self._lr is None:  # else the rate of the last step, after which a schedule may have moved on
            self._follow_rate(trainer)
        if not self._active:
            return
        self._folder = record_folder(trainer)
        self._probes = self._given or from_validation(trainer, self.image_key, self.target_key, self.num_images, self.seed)
        if self._probes is not None:
            self._begin(trainer, pl_module, trainer.current_epoch)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clock of the epoch."""
        self._epoch_began = time.perf_counter()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Follow the learning rate; on the first batch, take probes from it if there are none, and tell the plan."""
        self._follow_rate(trainer, wait=False)
        if not self._active or self._told:
            return
        if self._probes is None:
            self._probes = first_of_batch(trainer, batch, self.image_key, self.target_key, self.num_images)
            self._begin(trainer, pl_module, trainer.current_epoch)
        self._told = True
        if self._watch is not None:
            announce(trainer, self._plan(trainer, batch))

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Repeat the last values for whoever monitors them after a validation within an epoch. Loggers do not see this."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._log(trainer, pl_module, logger=False)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Map the probes if it is their epoch, and log."""
        if self._lr is None:  # kept on a device: only now is there time to wait for it
            self._follow_rate(trainer)
        epoch = trainer.current_epoch
        if self._active and self._probes is not None:
            if self._watch is None:  # whose lazy modules had no shape before
                self._begin(trainer, pl_module, epoch + 1)
            elif (epoch + 1) % self.every_n_epochs == 0 and not (self.history and self.history[-1]["epoch"] >= epoch):
                with trainer.profiler.profile(f"[Callback]{self.state_key}.probe"):
                    self._probe(trainer, epoch)
        self._log(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Evaluate the final maps, if asked to, on rank zero: the others have nothing left to do."""
        if not self.evaluate or self._folder is None or self._watch is None:
            return
        try:
            with trainer.profiler.profile(f"[Callback]{self.state_key}.evaluate"), self._watch.borrowed():
                images, targets = self._watch.images(), self._explained()
                found = assess(self._watch.cam, images, targets, self._watch.name, activation=self.activation, seed=self.seed)
            put_file(self._folder, f"{self._name.replace('monitor', 'evaluation', 1)}.json", json.dumps(found, indent=1) + "\n")
        except (RuntimeError, ValueError, TypeError, OSError) as error:  # hours of training must not end on this
            warn(trainer, f"SaliencyMonitor could not evaluate its maps: {error}. The training itself is complete")

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget the network."""
        self._release()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """The same after an error or Ctrl-C, when Lightning calls no teardown."""
        self._release()

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What maps are watched: of which probes, by which method, at which layer. Empty before they are."""
        return dict(self._fingerprint)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and builtins only: the last reading in the probes' order, whose it is, the history, the counters."""
        if self._before is None:
            return {}
        return {
            "reading": dict(self._before._asdict()),
            "epochs": self._epochs,
            "targets": self._targets,
            "fingerprint": dict(self._fingerprint),
            "history": [dict(entry) for entry in self.history],
            "values": dict(self.values),
            "convergence": self._convergence.state_dict(),
            "film": self._film.state_dict(),
            "lr": self._lr,
            "max_lr": self._max_lr,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`; whether the probes are still the same is seen when training starts."""
        self._before = Reading(**state_dict["reading"])
        self._epochs, self._targets = state_dict["epochs"], state_dict["targets"]
        self._fingerprint = dict(state_dict["fingerprint"])
        self.history, self.values = list(state_dict["history"]), {**UNKNOWN, **state_dict["values"]}
        self._convergence.load_state_dict(state_dict["convergence"])
        self._film.load_state_dict(state_dict["film"])
        self._lr, self._max_lr = state_dict.get("lr"), state_dict["max_lr"]

    def _begin(self, trainer: Any, module: Any, epochs: int) -> None:
        """Get ready for the probes at hand: go on where a checkpoint stopped, or take a reference after `epochs` epochs."""
        assert self._probes is not None  # for the type checker
        network = find_network(trainer, module, self.network)
        if any(is_lazy(parameter) for parameter in network.parameters()):
            warn(trainer, "lazy modules take their shape in the first step: SaliencyMonitor starts after the first epoch")
            return
        try:
            self._watch = Watch(trainer, self, network, self._probes)
            self._recognise(trainer)
            if self._before is None:
                self._before, self._epochs = self._look(), epochs
                self.values = numbers(None, self._before, grid=self.grid, min_alive=self.min_alive, warm=False)
        except (ValueError, TypeError) as error:
            raise misconfigured(trainer, str(error)) from error  # before the first step: a matter of set-up
        labels = self._explained()
        self._shown = replace(self._probes, labels=labels).shown(SHOWN)
        if not self._film.count:
            self._film.add(epochs - 1, self._before.maps[self._shown])
        if self._folder is not None:
            with self._writing(trainer):
                self._exhibit = self._open(trainer.datamodule, self._folder, labels)
        # A checkpoint of an epoch's last step: Lightning goes on with the next epoch and calls no hook for the end of that one.
        if epochs > self._epochs and epochs % self.every_n_epochs == 0:
            self._probe(trainer, epochs - 1)

    def _recognise(self, trainer: Any) -> None:
        """Drop what a checkpoint brought if it is of other maps than those to come."""
        assert self._watch is not None  # for the type checker
        mine = self._watch.identity()
        if self._before is not None and self._fingerprint != mine:
            differs = [name for name in mine if self._fingerprint.get(name) != mine[name]]
            warn(
                trainer,
                f"the checkpoint's saliency maps are of other {' and '.join(differs)}: SaliencyMonitor starts anew from the "
                "weights as they are now",
            )
            self._before = self._targets = None
            self._film, self._convergence = FilmStrip(), self._new_convergence()
        self._fingerprint = mine

    def _look(self) -> Reading:
        assert self._watch is not None  # for the type checker
        targets = self._watch.probes.labels if self._targets is None else self._targets
        reading = self._watch.look(targets)
        if targets is None:
            self._targets = reading.chosen.clone()
        return reading

    def _explained(self) -> Tensor:
        labels = self._targets if self._targets is not None or self._probes is None else self._probes.labels
        assert labels is not None  # for the type checker: without labels there are targets
        return labels

    def _probe(self, trainer: Any, epoch: int) -> None:
        """One probing: compare with the one before, write down, show."""
        assert self._before is not None and self._watch is not None  # for the type checker
        if self._watch.device.type == "cuda":
            torch.cuda.synchronize(self._watch.device)  # what is still queued is training's time
        began = time.perf_counter()
        now, before = self._look(), self._before
        same = now.maps.shape == before.maps.shape
        if not same:
            warn(trainer, f"the maps' grid changed from {tuple(before.maps.shape[1:])} to {tuple(now.maps.shape[1:])}")
            self._film = FilmStrip()
        warm = same and self._epochs >= self.warmup_epochs
        self.values = numbers(before if same else None, now, grid=self.grid, min_alive=self.min_alive, warm=warm)
        rate = self._lr
        entry = {"epoch": epoch, "step": trainer.global_step, "lr": rate, "max_lr": self._max_lr, **self.values}
        self.history.append(entry)
        self._before, self._epochs = now, epoch + 1
        self._film.add(epoch, now.maps[self._shown])
        news = self._convergence.update(epoch, self.values["change"], self.values["alive"], rate, self._max_lr)
        if news is not None:
            announce(trainer, self._tell(news))
        if self._exhibit is not None:
            with self._writing(trainer):
                strip = self._exhibit.add(epoch, now, self._film)
                if self.log_images:
                    self._exhibit.upload(trainer, self.prefix, now, strip, self.grid)
        seconds = time.perf_counter() - began
        self._measure(trainer, began, seconds)
        if self._folder is not None:
            line = {
                **entry,
                "seconds": seconds,
                "overhead": self._overhead,
                "converged_epoch": self.converged_epoch,
                "fell_with_lr_epoch": self.fell_with_lr_epoch,
                "probe_alive": alive(now, self.grid),
                "probe_right": now.right.tolist(),
            }
            with self._writing(trainer):
                add_line(self._folder, self._name, line)

    @contextmanager
    def _writing(self, trainer: Any) -> Iterator[None]:
        """A full disk must not end a training run: nothing is written from there on."""
        try:
            yield
        except OSError as error:
            warn(trainer, f"SaliencyMonitor writes nothing from here on: {error}. It goes on logging its values")
            self._folder = self._exhibit = None

    def _log(self, trainer: Any, module: Any, logger: bool | None = None) -> None:
        if trainer.barebones:
            return
        for name, value in self.values.items():
            module.log(f"{self.prefix}{name}", value, on_step=False, on_epoch=True, batch_size=1, logger=logger)

    def _open(self, data: Any, folder: Path, labels: Tensor) -> Snapshots:
        """What is watched, in monitor.json and probes.png; names and normalisation are the data module's if not given."""
        assert self._probes is not None and self._watch is not None  # for the type checker
        looks = [getattr(data, name, None) if own is None else own for name, own in (("mean", self.mean), ("std", self.std))]
        names = getattr(data, "class_names", None) if self.class_names is None else self.class_names
        exhibit = Snapshots(folder, self._name, self._probes.images, labels, self._shown, names, *looks)
        settings = ("method", "network", "every_n_epochs", "threshold", "patience", "min_alive", "warmup_epochs", "prefix")
        facts = {name: getattr(self, name) for name in settings}
        told = {"layer": self._watch.cam.layer, "num_probes": len(self._probes), "origin": self._probes.origin}
        exhibit.open({**facts, **told, "fingerprint": self._fingerprint})
        return exhibit

    def _plan(self, trainer: Any, batch: Any) -> str:
        """What is watched and what it will cost, in a line."""
        assert self._before is not None and self._watch is not None  # for the type checker
        rows, columns = self._before.maps.shape[1:]
        probes = self._watch.probes
        told = (
            f"Saliency monitor: {self._watch.name} at {self._watch.cam.layer} ({rows} x {columns}) of {len(probes)} probes from "
            f"{probes.origin}, explaining {'their labels' if self._targets is None else 'the first choice at the start'}, every "
            + ("epoch" if self.every_n_epochs == 1 else f"{self.every_n_epochs} epochs")
        )
        try:
            count = len(get_item(batch, self.image_key)) * trainer.num_training_batches * trainer.world_size
        except (KeyError, TypeError):  # batches without images under that key: fine where the probes were given
            return told
        if not 0 < count < math.inf:
            return told
        return f"{told}: about +{self.predict_overhead(count):.1%} of the training's forward and backward passes"

    def _measure(self, trainer: Any, began: float, seconds: float) -> None:
        """Share of the time; a warning, once, where it is too much."""
        assert self._watch is not None  # for the type checker
        if self._epoch_began is None:  # resumed within an epoch
            return
        epoch = began - self._epoch_began
        self._overhead = seconds / max(epoch, 1e-9) / self.every_n_epochs
        self._costs = [*self._costs, (self._overhead, seconds)][-3:]
        # The least of three probings: the first pays for what is set up on first use, and any may meet a busy machine.
        share, least = (min(column) for column in zip(*self._costs, strict=True))
        limit = self.max_overhead
        if limit is None or len(self._costs) < 3 or share <= limit or least < NOTICEABLE or self._warned:
            return
        self._warned, often = True, math.ceil(share * self.every_n_epochs / limit)
        warn(
            trainer,
            f"watching {len(self._watch.probes)} probes takes {least:.1f} s, {share:.1%} of the epochs' time; "
            f"SaliencyMonitor(every_n_epochs={often}) stays below {limit:.0%}, fewer probes (num_images=) help as well, and "
            "max_overhead=None silences this",
        )

    def _tell(self, news: str) -> str:
        change, often = self.values["change"], f"for {self.patience} probings"
        if news == "converged":
            return (
                f"Saliency maps have settled since epoch {self.converged_epoch}: change {change:.3f} <= {self.threshold} "
                f"{often}. Stable maps are necessary for a finished training, not sufficient"
            )
        rate = self.history[-1]["lr"]
        return (
            f"Saliency maps changed little {often} (now {change:.3f}), but the learning rate is {rate:.3g}, at most "
            f"{self._max_lr:.3g} before: change fell with the learning rate, which says nothing about convergence"
        )

    def _follow_rate(self, trainer: Any, wait: bool = True) -> None:
        """Remember the rate of this batch and the highest one; without `wait`, not where that would wait for a device."""
        rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
        if not wait and any(isinstance(rate, Tensor) and rate.device.type != "cpu" for rate in rates):
            self._lr = None
        elif rates:
            self._lr = max(map(float, rates))
            self._max_lr = max(self._max_lr or 0.0, self._lr)

    def _new_convergence(self) -> Convergence:
        return Convergence(self.threshold, self.patience, self.min_lr_share, self.min_alive)

    def _reset(self) -> None:
        """As before any training."""
        self.history, self.values = [], dict(UNKNOWN)
        self._convergence, self._film = self._new_convergence(), FilmStrip()
        self._before = self._targets = self._lr = self._max_lr = self._overhead = None
        self._epochs, self._fingerprint, self._costs, self._warned = 0, {}, [], False

    def _release(self) -> None:
        """Hold on to nothing of the run but what was seen."""
        self._probes = self._watch = self._exhibit = self._folder = self._epoch_began = None
        self._shown, self._active, self._told = [], False, False
