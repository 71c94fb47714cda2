"""Watching the maps of a fixed set of images from epoch to epoch: whether they settle, how noisy they are, how many there are."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from groupcam_aug.arguments import (
    check_callable,
    check_choice,
    check_flag,
    check_name,
    check_number,
    check_output,
    check_seed,
    check_whole,
)
from groupcam_aug.borrow import unwrap
from groupcam_aug.callbacks.glue.arguments import ConfiguredCallback
from groupcam_aug.callbacks.glue.attributes import check_style
from groupcam_aug.callbacks.glue.batch import BatchKey, check_keys, describe, get_item
from groupcam_aug.callbacks.glue.compat import announce, misconfigured, warn
from groupcam_aug.callbacks.glue.network import (
    borrowed_network,
    find_network,
    has_lazy_parameters,
    log_epoch,
    reduce_together,
    refuse,
    warn_of_head,
)
from groupcam_aug.callbacks.monitoring.convergence import Convergence
from groupcam_aug.callbacks.monitoring.monitor_state import MonitorState
from groupcam_aug.callbacks.monitoring.probe_mapper import ProbeMapper
from groupcam_aug.callbacks.monitoring.probes import Probes, first_of_batch, from_validation, given
from groupcam_aug.callbacks.monitoring.probing_cost import ProbingCost, predicted_share
from groupcam_aug.callbacks.monitoring.session import Session
from groupcam_aug.layers import layer_name
from groupcam_aug.memory import is_out_of_memory
from groupcam_aug.saliency import GroupCAM

__all__ = ["SaliencyMonitor"]

_MAPPING = ("method", "layer", "output", "preprocess", "chunk", "groups", "mask_at", "activation", "grid")
_COMPARING = ("network", "warmup_epochs", "min_alive", "grid")
_FACTS = ("method", "network", "every_n_epochs", "threshold", "patience", "min_alive", "warmup_epochs", "prefix")


class SaliencyMonitor(ConfiguredCallback):
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
    - `saliency/change_correct` and so on: the same over the probes classified as labelled both times. `saliency/correct`: the
      share classified as labelled now, `/flip_rate` with another first choice than last time. `/counted`, `/counted_correct`:
      how many pairs a change is the mean of.

    `converged_epoch` is the first of `patience` probings in a row with a change of at most `threshold`, enough maps alive and a
    learning rate that has not been cut: it is announced and reported, not acted upon (see `SaliencyEarlyStopping`). Stable
    maps are necessary for a finished training, not sufficient. If change only fell with the learning rate, that is said instead.

    Rank zero writes what it saw under `<log directory>/groupcam/` (monitor.json, monitor.jsonl, pictures in monitor/); nothing
    in a run without logger and checkpoints, unless a `SaliencyReport` asks for records.

    In `fast_dev_run` the probes are mapped only to see whether that works, and the values before anything is known are logged;
    in `barebones` nothing is done.

    Args:
        method: "gradcam" (three forward units per probe) or "groupcam" (groups + 4).
        images: the probes, as the network takes them: (P, C, H, W), or a pair (images, labels). None: drawn from the first
            validation loader with a map-style data set, as many of each class as can be, the same ones in every run; without
            one, the first training batch, as `training_step` gets it (on all ranks, rank zero's).
        labels: of `images`: (P,) class indices or (P, classes) soft rows. None: the network's own first choice at the first
            probing, kept from then on; so too where the validation data have no labels.
        num_images: number of probes drawn. Default: 64.
        every_n_epochs: epochs between probings. Default: 1.
        network: dotted name of the network on the LightningModule. None: the LightningModule itself.
        layer: target layer, as named in that network. None: found, and announced.
        log_images: show pictures (a panel and a film strip) in loggers, as files where one takes none: of the first nine
            probings, then ever more rarely, and of the last, 22 of 1,000. Files in `groupcam/monitor` are written either way, in
            the end of 60 of 1,000.
        image_key: where the images are in a batch of the loader that probes come from: index, key or attribute name, a list of
            them, or a (getter, setter) pair.
        target_key: where the labels are, likewise. None: the network's own first choice. Images labelled -100 are no probes.
        output: where the logits are in what the network returns: key, index, attribute or callable.
        preprocess: applied to images before the network sees them, for modules that normalise in their steps.
        class_names: for pictures and the report. None: those of the data module, the module, or the data sets
            behind the loaders (`classes`), if one has them.
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
        MisconfigurationException: no images under `image_key`, nothing under another `target_key` than the default, a module
            that cannot be mapped, a sharded strategy.
        RuntimeError: two monitors with one prefix (by Lightning, which could not keep their states apart).

    Example::

        trainer = Trainer(callbacks=[SaliencyMonitor(network="model"), EarlyStopping("saliency/change", patience=10)])
    """

    _hidden = ("images", "labels")
    _state: MonitorState  # what is known of the training; outlives the fit
    _cost: ProbingCost
    _probes: Probes | None  # of this fit, from when they are chosen
    _session: Session | None  # the fit under watch, from when the probes can be mapped

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
        super().__init__()
        check_choice("method", method, ("gradcam", "groupcam"))
        for name, value, least in (("num_images", num_images, 1), ("every_n_epochs", every_n_epochs, 1), ("grid", grid, 2)):
            check_whole(name, value, least)
        check_whole("warmup_epochs", warmup_epochs)
        check_seed(seed)
        check_callable("preprocess", preprocess)
        check_output(output)
        for name, word in (("network", network), ("layer", layer), ("mask_at", mask_at)):
            check_name(name, word)
        check_keys(image_key=image_key, target_key=target_key)
        check_flag("log_images", log_images)
        check_flag("evaluate", evaluate)
        check_number("max_overhead", max_overhead, above=True, optional=True)
        check_style(class_names, mean, std)
        if not isinstance(prefix, str) or not re.search(r"\w", prefix):
            raise ValueError(f"prefix must be a name to start logged keys with, such as 'saliency/'; got {prefix!r}")
        GroupCAM(nn.Identity(), groups=groups, activation=activation, chunk=chunk)  # checks them now, not at the first probing
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
        self._session = self._probes = None

    @property
    def state_key(self) -> str:
        """Two monitors in one Trainer keep their states apart."""
        return self._generate_state_key(prefix=self.prefix)

    @property
    def history(self) -> list[dict[str, Any]]:
        """One entry per probing: epoch, step, lr, max_lr and every logged value."""
        return self._state.history

    @property
    def values(self) -> dict[str, float]:
        """What is logged, without the prefix."""
        return self._state.values

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What maps are watched: of which probes, by which method, at which layer. Empty before they are."""
        return dict(self._state.fingerprint)

    @property
    def converged_epoch(self) -> int | None:
        """The epoch in which the maps had settled, None so far."""
        return self._state.convergence.converged_epoch

    @property
    def fell_with_lr_epoch(self) -> int | None:
        """The epoch by which the change had been low as long, but only since the learning rate was cut; None so far."""
        return self._state.convergence.fell_with_lr

    @property
    def overhead(self) -> float | None:
        """Measured: seconds of the last probing over those of the epochs it stands for. None before one."""
        return self._cost.share

    def predict_overhead(self, images_per_epoch: float) -> float:
        """Share that probing adds to an epoch, in forward passes; see `probing_cost.predicted_share`."""
        probes = self._session.mapper.probes if self._session else self._given
        count = self.num_images if probes is None else len(probes)
        return predicted_share(count, images_per_epoch, self.every_n_epochs, self.groups if self.method == "groupcam" else None)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot work."""
        if stage != "fit":
            return
        self._release()
        if trainer.current_epoch == 0:  # not when the same Trainer goes on
            self._reset()
        instead = "Train with ddp, or map a saved checkpoint afterwards with groupcam_aug.GradCAM"
        refuse(trainer, pl_module, self.network, type(self).__name__, instead)
        if trainer.barebones:
            announce(trainer, "SaliencyMonitor: Trainer(barebones=True) logs nothing, so nothing is mapped")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Map the probes before anything is learned."""
        if self._state.lr is None:  # else the rate of the last step, after which a schedule may have moved on
            self._state.follow_rate(trainer.optimizers)
        self._begin(trainer, pl_module, trainer.current_epoch)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clock of the epoch."""
        self._cost.start_epoch()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Take probes from the first batch if there are none, say once what is watched, and follow the learning rate."""
        if self._probes is None:
            self._begin(trainer, pl_module, trainer.current_epoch, batch)
        self._state.follow_rate(trainer.optimizers, wait=False)
        if (session := self._session) is not None and not session.announced:
            session.announced = True
            often = "epoch" if self.every_n_epochs == 1 else f"{self.every_n_epochs} epochs"
            announce(trainer, f"{session.plan()}, every {often}{self._prediction(trainer, batch)}")
            if session.open() is None and self.evaluate and trainer.is_global_zero:
                warn(trainer, "evaluate=True is without effect in a run that leaves no records: give the Trainer a logger")

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Look, once, whether what is mapped ends before the classifier."""
        if (session := self._session) is not None and not session.looked_behind:
            session.looked_behind = True
            warn_of_head(trainer, pl_module, self.network, session.mapper.cam.columns, type(self).__name__)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Repeat the last values for whoever monitors them after a validation within an epoch. Loggers do not see this."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._log(trainer, pl_module, logger=False)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Map the probes if it is their epoch, and log."""
        state, epoch = self._state, trainer.current_epoch
        reduce_together(trainer)  # what others logged, before this rank waits for the others' maps
        if state.lr is None:  # kept on a device: only now is there time to wait for it
            state.follow_rate(trainer.optimizers)
        if self._session is None:  # the network had no shape before
            self._begin(trainer, pl_module, epoch + 1)
        elif (epoch + 1) % self.every_n_epochs == 0 and not (state.history and state.history[-1]["epoch"] >= epoch):
            with trainer.profiler.profile(f"[Callback]{self.state_key}.probe"):
                self._session.probe(epoch)
        self._log(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Show the last maps, and evaluate them, if asked to, on rank zero: the others have nothing left to do."""
        if self._session is None:
            return
        self._session.upload()
        if self.evaluate:
            with trainer.profiler.profile(f"[Callback]{self.state_key}.evaluate"):
                self._session.evaluate(self.activation, self.seed)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget the network."""
        self._release()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """The same after an error or Ctrl-C, when Lightning calls no teardown."""
        self._release()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and builtins only: the last reading in the probes' order, whose it is, the history, the counters."""
        return self._state.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`; whether the probes are still the same is seen when training starts."""
        self._state.load_state_dict(state_dict)

    def _begin(self, trainer: Any, module: Any, epochs: int, batch: Any = None) -> None:
        """Start watching after `epochs` epochs, once the network has its shape and there are probes, at worst of the batch."""
        if self._session is not None or trainer.barebones:
            return
        count = 1 if trainer.fast_dev_run else self.num_images
        if self._probes is None:
            self._probes = self._given or from_validation(trainer, self.image_key, self.target_key, count, self.seed)
        if self._probes is None and batch is not None:
            self._probes = first_of_batch(trainer, batch, self.image_key, self.target_key, count)
        if (probes := self._probes) is None:
            return
        network = find_network(trainer, module, self.network)
        try:
            network = unwrap(network)
            if has_lazy_parameters(network):
                if self.layer is not None:
                    layer_name(network, self.layer)
                warn(trainer, "lazy modules take their shape in the first step: SaliencyMonitor starts after the first epoch")
                return
            borrow = partial(self._borrowed, trainer, network)
            mapper = ProbeMapper(trainer, network, probes, borrow=borrow, **self._settings(_MAPPING))
            if trainer.fast_dev_run:
                mapper.look(probes.labels)  # what does not fit shows now
                return
            records = {"name": self._name, "facts": self._settings(_FACTS), "tag": self.prefix if self.log_images else None}
            options = {**self._settings(_COMPARING), **records, "style": self._settings(("class_names", "mean", "std"))}
            self._session = Session(trainer, mapper, self._state, self._cost, epochs, **options)
        except (ValueError, TypeError, RuntimeError) as error:  # before the first step: a matter of set-up
            if is_out_of_memory(error):
                raise
            raise misconfigured(trainer, f"{error} (probes: {probes.origin}, {describe(probes.images)})") from error
        # A checkpoint of an epoch's last step: Lightning goes on with the next one and calls no hook for that one's end.
        if epochs > self._state.epochs and epochs % self.every_n_epochs == 0:
            self._session.probe(epochs - 1)

    @contextmanager
    def _borrowed(self, trainer: Any, network: nn.Module) -> Iterator[None]:
        """The network ready to be run on the monitor's account."""
        self.in_extra_forward = True
        try:
            with borrowed_network(trainer, network, type(self).__name__):
                yield
        finally:
            self.in_extra_forward = False

    def _log(self, trainer: Any, module: Any, logger: bool | None = None) -> None:
        """Log the values, which are the same on all ranks."""
        if not trainer.barebones:
            log_epoch(trainer, module, {f"{self.prefix}{name}": value for name, value in self.values.items()}, logger=logger)

    def _prediction(self, trainer: Any, batch: Any) -> str:
        """What it will cost, as far as that is known."""
        try:
            count = len(get_item(batch, self.image_key)) * trainer.num_training_batches * trainer.world_size
        except (KeyError, TypeError):  # batches without images under that key: fine where the probes were given
            return ""
        known = 0 < count < math.inf
        return f": about +{self.predict_overhead(count):.1%} of the training's forward and backward passes" if known else ""

    def _settings(self, names: tuple[str, ...]) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names}

    def _reset(self) -> None:
        """As before any training."""
        self._state = MonitorState(Convergence(self.threshold, self.patience, self.min_lr_share, self.min_alive))
        self._cost = ProbingCost(self.every_n_epochs, self.max_overhead)

    def _release(self) -> None:
        """Hold on to nothing of the run but what was seen."""
        self._session = self._probes = None
        self._cost.stop()
