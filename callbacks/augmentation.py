"""The augmentation as a callback: one line in a Trainer."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from groupcam_aug.augment import Augmented, Fill, MaskFrom, SaliencyBlur
from groupcam_aug.borrow import as_found
from groupcam_aug.callbacks.glue.batch import BatchKey, Dispatcher, describe, get_item, replace_item
from groupcam_aug.callbacks.glue.compat import Callback, announce, misconfigured, warn
from groupcam_aug.callbacks.glue.map_source import Source
from groupcam_aug.callbacks.glue.network import find_network, lent, refuse
from groupcam_aug.callbacks.records.augmentation_stats import AugmentationStats, open_stats
from groupcam_aug.callbacks.records.step_timer import StepTimer
from groupcam_aug.saliency import GroupCAM

__all__ = ["PRESETS", "GroupCAMAugmentation"]

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"p": 1.0, "mask_at": "input", "baseline": "blur"},
    "balanced": {"p": 0.5, "mask_at": "stage", "baseline": "blur"},
    "fast": {"p": 0.5, "mask_at": "target", "baseline": "zero"},
}


class GroupCAMAugmentation(Callback):
    """Group-CAM augmentation of every training batch, on its device, with the network being trained.

    Each batch is met after all transfer and precision hooks and rebuilt before `training_step` sees it: saliency of each drawn
    image for its own label, mean threshold, everything else blurred. Validation, test, predict and sanity-check batches,
    the user's dataset and the user's module are never touched; the extra forward passes run in evaluation mode, in the
    Trainer's precision, outside any DDP wrapper, and leave parameters, buffers, modes and random numbers as they found them.

    Logged per step: `groupcam/keep_fraction` (share of pixels kept in the drawn images), `groupcam/no_map` (share of drawn
    images without a map, left as they are) and `groupcam/seconds` (time of the augmentation; on a GPU of the step before,
    so that nothing waits for the device).

    Recorded per epoch, on rank zero, for `SaliencyReport` and `groupcam-aug report`: counts, keep fractions, images without a map
    per class and times in `augmentation.jsonl`, and a few samples in `gallery/`, in the folder `groupcam` of the run's log
    directory. A run without logger and checkpoints is left without records too, unless that folder is there.

    Args:
        preset: "paper" = every image, masks on the input (docs/method.md to the letter); "balanced" = half of the
            images, masks inside the last stage; "fast" = half of the images, masks at the target layer, against zeros there
            instead of the blurred image's features: one forward pass of half of the images in all.
        network: dotted name of the network on the LightningModule ("net", "model.backbone"). None: the LightningModule itself,
            whose `forward` must then map images to logits.
        layer: target layer, as named in that network. None: found at the first batch and told.
        groups: G. Default: 16.
        weights: "none" (the paper's training form) or "gradient" (class-specific maps; differentiates only what follows
            the layer).
        mask_at: "input", "stage", "target" or a layer's name; see `GroupCAM`. None: the preset's.
        baseline: what masks uncover while groups are scored, "blur" or "zero"; see `GroupCAM`. None: the preset's.
        p: probability of an image to be augmented. None: the preset's.
        strength: how far non-salient pixels move toward the fill, 0 to 1.
        threshold: "mean", a number in [0, 1], or a quantile such as "q0.6".
        fill: "blur", "mean", "noise", "other", or a callable `images -> images`.
        mask_from: "saliency", or the controls "other", "centre", "whole", "inverse", or a callable; see `SaliencyBlur`.
        labels: "own", or "mixed" with fill="other": as in CutMix the label of the image that lent pixels counts for their
            share, so batches that are augmented hold rows (N, classes) where they held class indices, which
            cross-entropy takes as they are.
        source: the network that the maps come from. "self": the one being trained (the paper). "ema": its moving average
            (decay 0.999 per optimiser step, less in the first 9,000; kept in the checkpoint), for steadier maps. A
            network, or the path of a checkpoint of the trained one: a frozen teacher with the same classes, for when the
            network in training cannot be trusted to know the object (a shortcut in the data, training from scratch).
        start_epoch: first epoch that is augmented.
        stop_epoch: first epoch that is no longer augmented. None: never stops.
        every_n_steps: augment every n-th training batch only.
        image_key: where the images are in a batch: index, key or attribute name, a list of them for nested batches, or a
            (getter, setter) pair. Default: the first item.
        target_key: where the labels are, likewise. None: each image's top-1 class. Default: the second item.
        activation: what turns logits into scores: "softmax", or "sigmoid" for multi-label and single-logit heads.
        output: where the logits are in what the network returns: key, index, attribute or callable.
        preprocess: applied to images before the borrowed network sees them, for modules that normalise in `training_step`.
        chunk: most images per forward pass; see `GroupCAM` for the default.
        seed: of the draws; they follow from (seed, rank, batch number), so a resumed run repeats them.
        record: whether to leave the records named above. Default: True; False for images that must not be copied.

    Raises:
        ValueError: an argument out of range.
        MisconfigurationException: the batch has no image under `image_key`, the module cannot be mapped, or the strategy
            or `training_step(dataloader_iter)` keeps batches out of reach (use `SaliencyBlur` inside the step there).

    Example::

        trainer = Trainer(callbacks=[GroupCAMAugmentation(preset="paper", network="model")])
    """

    _trainer: Any
    _dispatcher: Dispatcher | None
    _cam: GroupCAM | None
    _source: Source | None
    _average: dict[str, Any] | None  # of a checkpoint to go on from, or of the last fit
    _done: Augmented | None
    _clock: StepTimer
    _tally: AugmentationStats | None
    _classes: int | None  # of the network, once labels have been mixed
    _raw: tuple[int, Tensor | None, Any] | None  # of the batch on its way: how many images, and if drawn, they and their labels
    _opened: bool  # whether it has been decided if this fit is recorded
    _met: bool  # whether a batch has come through the dispatcher since the last step began
    _told: bool
    _warned: bool
    _step: int  # optimiser steps that the average has followed

    def __init__(
        self,
        *,
        preset: Literal["paper", "balanced", "fast"] = "paper",
        network: str | None = None,
        layer: str | None = None,
        groups: int = 16,
        weights: Literal["none", "gradient"] = "none",
        mask_at: str | None = None,
        baseline: Literal["blur", "zero"] | None = None,
        p: float | None = None,
        strength: float = 1.0,
        threshold: float | str = "mean",
        fill: Fill = "blur",
        mask_from: MaskFrom = "saliency",
        labels: Literal["own", "mixed"] = "own",
        source: str | nn.Module = "self",
        start_epoch: int = 0,
        stop_epoch: int | None = None,
        every_n_steps: int = 1,
        image_key: BatchKey = 0,
        target_key: BatchKey | None = 1,
        activation: Literal["softmax", "sigmoid"] = "softmax",
        output: int | str | Callable[[Any], Tensor] | None = None,
        preprocess: Callable[[Tensor], Tensor] | None = None,
        chunk: int | None = None,
        seed: int = 0,
        record: bool = True,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self._arguments = arguments
        if preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(map(repr, PRESETS))}; got {preset!r}")
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        if start_epoch < 0 or (stop_epoch is not None and stop_epoch <= start_epoch):
            raise ValueError(f"epochs must satisfy 0 <= start_epoch < stop_epoch, got {start_epoch} and {stop_epoch}")
        if labels not in ("own", "mixed"):
            raise ValueError(f"labels must be 'own' or 'mixed', got {labels!r}")
        if labels == "mixed" and (fill != "other" or target_key is None):
            raise ValueError(f"labels='mixed' needs fill='other' and a target_key, got {fill!r} and {target_key!r}")
        self.network, self.layer, self.groups, self.weights = network, layer, groups, weights
        self.mask_at = PRESETS[preset]["mask_at"] if mask_at is None else mask_at
        self.baseline = PRESETS[preset]["baseline"] if baseline is None else baseline
        self.start_epoch, self.stop_epoch, self.every_n_steps = start_epoch, stop_epoch, every_n_steps
        self.image_key, self.target_key, self.output, self.preprocess = image_key, target_key, output, preprocess
        self.labels = labels
        self.activation, self.source, self.chunk, self.seed, self.record = activation, source, chunk, seed, record
        self.augment = SaliencyBlur(
            self._map,
            p=PRESETS[preset]["p"] if p is None else p,
            strength=strength,
            threshold=threshold,
            fill=fill,
            mask_from=mask_from,
        )
        # Checks the arguments now, not at the first batch.
        GroupCAM.for_training(
            nn.Identity(), groups=groups, weights=weights, baseline=self.baseline, activation=activation, chunk=chunk
        )
        self.in_extra_forward = False  # for users whose own hooks should ignore the saliency passes
        self._reset()

    def __repr__(self) -> str:
        defaults = inspect.signature(GroupCAMAugmentation).parameters
        changed = {name: value for name, value in self._arguments.items() if value != defaults[name].default}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in changed.items())})"

    def __getstate__(self) -> dict[str, Any]:
        """Only the arguments travel (to spawned processes, into copies): what a run has built stays behind."""
        return self._arguments

    def __setstate__(self, state: dict[str, Any]) -> None:
        GroupCAMAugmentation.__init__(self, **state)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot work, then stand in line for the batches. Runs before any tuner's trial steps."""
        if stage != "fit":
            return
        self._release()
        self._reset()
        refuse(trainer, pl_module, self.network, type(self).__name__, _INSTEAD)
        if "dataloader_iter" in inspect.signature(pl_module.training_step).parameters:
            raise misconfigured(trainer, f"training_step(dataloader_iter) fetches batches out of a callback's reach. {_INSTEAD}")
        self._trainer = trainer
        self._dispatcher = Dispatcher.attach(trainer.strategy, self._on_batch)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Let labels on an accelerator be checked once more."""
        if self._cam is not None:
            self._cam.recheck = True

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Make sure that the batch went through our hands, then log what was done to it."""
        if self._source is None and self.source != "self" and not self._is_lazy(trainer):
            self._source = self._make_source(trainer)  # before the first step, so that an average starts at the start
        met, self._met = self._met, False
        if self._dispatcher is not None and batch is not None and batch is not self._dispatcher.last:
            if not met:
                raise misconfigured(
                    trainer,
                    "this batch reached training_step without passing GroupCAMAugmentation: something replaced "
                    f"strategy.batch_to_device after setup and does not call the original. {_INSTEAD}",
                )
            if not self._warned:
                self._warned = True
                warn(trainer, "another wrapper of strategy.batch_to_device exchanged the batch after GroupCAMAugmentation")
        (done, self._done), (raw, self._raw) = (self._done, None), (self._raw, None)
        if not self._opened:  # only now: a SaliencyReport after this callback has made its folder
            self._opened, self._tally = True, open_stats(trainer) if self.record else None
        if self._tally is not None:
            self._tally.add_step(0 if raw is None else raw[0])
            if done is not None and raw is not None and raw[1] is not None:
                self._tally.add(done, raw[1], raw[2], trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1)
        if done is None or trainer.barebones:
            return
        count = len(done.images)
        pl_module.log("groupcam/keep_fraction", done.keep.float().mean(), batch_size=count)
        pl_module.log("groupcam/no_map", done.no_map.float().mean(), batch_size=count)
        if (seconds := self._clock.seconds) is not None:
            # As a tensor, which stays where it is: Lightning takes a number to the device, and waits for it.
            pl_module.log("groupcam/seconds", torch.tensor(seconds), batch_size=count)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Hold on to no batch; let an average follow the optimiser's steps."""
        if self._dispatcher is not None:
            self._dispatcher.last = None
        self._clock.end(trainer.strategy.root_device)
        if self._tally is not None:
            self._tally.add_seconds(self._clock)
        if self._source is not None and trainer.global_step != self._step:
            self._step = trainer.global_step
            self._source.update()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the epoch's records."""
        if self._tally is None:
            return
        try:
            self._tally.write(trainer, pl_module, self._facts(trainer))
        except OSError as error:  # a full disk must not end a training run
            warn(trainer, f"GroupCAMAugmentation records nothing from here on: {error}")
            self._tally = None

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Keep the average."""
        if self._source is not None and self._source.average is not None:
            self._average = self._source.average.state_dict()
        if self._average is not None:
            checkpoint[_AVERAGE] = self._average

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Take the average up again."""
        self._average = checkpoint.get(_AVERAGE)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Step out of the line, and forget the network."""
        self._release()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """The same after an error or Ctrl-C, when Lightning calls no teardown."""
        self._release()

    def _on_batch(self, batch: Any) -> Any:
        trainer = self._trainer
        if not (trainer.training and not trainer.sanity_checking and torch.is_grad_enabled()) or batch is None:
            return batch
        self._met, self._raw = True, None
        self._clock.begin(trainer.strategy.root_device)
        number = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        if not self._due(trainer.current_epoch, number):
            return batch
        images, targets = self._read(batch)
        generator = torch.Generator().manual_seed(_seed(self.seed, trainer.global_rank, number))
        self._raw = (len(images), None, None)
        index = self.augment.draw(len(images), generator)
        if not len(index):
            return batch
        if self._cam is None and self._is_lazy(trainer):
            warn(trainer, "the network's lazy modules take their shape in the first step: that batch is not augmented")
            return batch
        with (
            trainer.profiler.profile(f"[Callback]{self.state_key}.augment"),
            self._clock.measure(images.device),
            self._borrowed(trainer, images),
        ):
            done = self._apply(images, targets, index, generator)
            mixed = self._mix(targets, done) if self.labels == "mixed" else None
        self._done, self._raw = done, (len(images), images, targets)
        if not self._told:
            self._told = True
            announce(trainer, self._plan())
            self._question(targets)
        batch = replace_item(batch, self.image_key, done.images)
        if mixed is None or self.target_key is None:
            return batch
        return replace_item(batch, self.target_key, mixed)

    def _apply(self, images: Tensor, targets: Any, index: Tensor, generator: torch.Generator) -> Augmented:
        try:
            return self.augment.apply(images, targets, index, generator)
        except (ValueError, TypeError) as error:
            if self._told:
                raise
            raise misconfigured(self._trainer, str(error)) from error  # before the first step: a matter of set-up

    def _question(self, targets: Any) -> None:
        """Labels of the first batch that look like several an image, where scores are those of one."""
        rows = isinstance(targets, Tensor) and targets.ndim == 2
        scored = self._cam is not None and self._cam.layer_shape and self.activation == "softmax"
        if rows and scored and bool((targets.float().sum(dim=1) > 1.01).any()):
            warn(
                self._trainer,
                "rows of labels sum to more than 1: with several labels an image GroupCAMAugmentation(activation='sigmoid') "
                "scores each class by itself; now all share one softmax",
            )

    def _mix(self, targets: Any, done: Augmented) -> Tensor:
        assert self._cam is not None  # for the type checker
        if self._classes is None:
            with torch.no_grad(), as_found(self._cam.network, done.images.device):
                self._classes = self._cam.logits(done.images[:1]).shape[-1]
        try:
            return self.augment.mixed_labels(targets, done, self._classes)
        except ValueError as error:
            raise misconfigured(self._trainer, str(error)) from error

    def _due(self, epoch: int, number: int) -> bool:
        inside = self.start_epoch <= epoch and (self.stop_epoch is None or epoch < self.stop_epoch)
        return inside and self.augment.p > 0 and self.augment.strength > 0 and number % self.every_n_steps == 0

    def _is_lazy(self, trainer: Any) -> bool:
        """Whether modules wait for the first step to take their shape."""
        return any(is_lazy(p) for p in find_network(trainer, trainer.lightning_module, self.network).parameters())

    def _read(self, batch: Any) -> tuple[Tensor, Any]:
        """The images and targets of a batch, or what is wrong with it."""
        try:
            images = get_item(batch, self.image_key)
            targets = None if self.target_key is None or isinstance(batch, Tensor) else get_item(batch, self.target_key)
        except KeyError as error:
            raise misconfigured(
                self._trainer,
                f"{error.args[0]}. Say where images and labels are: GroupCAMAugmentation(image_key=..., target_key=...), with "
                "target_key=None to explain the network's own first choice",
            ) from None
        if isinstance(targets, Mapping):
            raise misconfigured(
                self._trainer,
                f"target_key={self.target_key!r} gives {describe(targets)}, not labels: name them with "
                f"target_key=[{self.target_key!r}, ...]",
            )
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
            raise misconfigured(
                self._trainer,
                f"image_key={self.image_key!r} gives {describe(images)}, not floating-point images (N, C, H, W); the batch holds "
                f"{describe(batch)}. Name the images with image_key=, or scale and normalise them before training_step",
            )
        return images, targets

    def _map(self, images: Tensor, targets: Any) -> Tensor:
        assert self._cam is not None  # for the type checker: built before the first map
        return self._cam(images, targets)

    @contextmanager
    def _borrowed(self, trainer: Any, images: Tensor) -> Iterator[None]:
        """The network ready to be mapped: built once, logging muted, in the Trainer's precision."""
        first = self._cam is None
        if self._cam is None:
            self._cam = self._make_cam(trainer, images)
        self.in_extra_forward = True
        try:
            with lent(trainer, self._cam.network, type(self).__name__, check=first):
                if first:
                    self._check_teacher(trainer, images[:1])
                yield
        finally:
            self.in_extra_forward = False

    def _check_teacher(self, trainer: Any, image: Tensor) -> None:
        assert self._cam is not None and self._source is not None  # for the type checker
        if self._source.mapped is self._source.training:
            return
        student = GroupCAM.for_training(self._source.training, output=self.output, preprocess=self.preprocess)
        with as_found(student.network, image.device), as_found(self._cam.network, image.device):
            own, its = (cam.logits(image).shape[-1] for cam in (student, self._cam))
        if own != its:
            raise misconfigured(
                trainer, f"the source network has {its} classes, the one in training {own}: give one with the same"
            )

    def _make_cam(self, trainer: Any, images: Tensor) -> GroupCAM:
        if self._source is None:
            self._source = self._make_source(trainer)
        self._source.follow(images)
        try:
            return GroupCAM.for_training(
                self._source.mapped,
                self.layer,
                groups=self.groups,
                weights=self.weights,
                mask_at=self.mask_at,
                baseline=self.baseline,
                activation=self.activation,
                output=self.output,
                preprocess=self.preprocess,
                chunk=self.chunk,
            )
        except (ValueError, TypeError) as error:
            raise misconfigured(trainer, str(error)) from error

    def _make_source(self, trainer: Any) -> Source:
        network = find_network(trainer, trainer.lightning_module, self.network)
        try:
            source = Source(self.source, network)
        except (ValueError, TypeError, OSError) as error:
            raise misconfigured(trainer, str(error)) from error
        if source.average is not None and self._average is not None:
            source.average.load_state_dict(self._average)
        self._average, self._step = None, trainer.global_step
        return source

    def _plan(self) -> str:
        cam, p = self._cam, self.augment.p
        assert cam is not None  # for the type checker
        share = ("every image" if p == 1 else f"{p:.0%} of the images") + (", labels mixed" if self.labels == "mixed" else "")
        if not cam.layer_shape:
            return f"Group-CAM augmentation: {self.augment.mask_from!r} masks, {share}: no extra forward pass"
        shape = " x ".join(map(str, cam.layer_shape))
        told = f"Group-CAM augmentation: {cam.layer}, {shape}, G={self.groups}, {share}: "
        passes = (2 if self.baseline == "blur" else 1) * p
        if self.mask_at == "input":
            passes += self.groups * p
            return told + f"+{passes:g} forwards per image, about +{passes / 3:.0%} of a step; preset fast: about +17%"
        return (
            told
            + f"+{passes:g} forwards per image and {self.groups} short ones behind {cam.place}, about +{passes / 3:.0%} of a step"
        )

    def _facts(self, trainer: Any) -> dict[str, Any]:
        kinds = (int, float, str, type(None))
        facts: dict[str, Any] = {name: value for name, value in self._arguments.items() if isinstance(value, kinds)}
        facts |= {"p": self.augment.p, "mask_at": self.mask_at, "baseline": self.baseline, "world_size": trainer.world_size}
        for name in ("fill", "mask_from", "source"):
            value = self._arguments[name]
            facts.setdefault(name, getattr(value, "__name__", type(value).__name__))
        if self._cam is not None:
            facts |= {"layer": self._cam.layer, "layer_shape": self._cam.layer_shape, "plan": self._plan()}
        return facts

    def _reset(self) -> None:
        self._trainer = self._dispatcher = self._cam = self._source = self._done = self._average = None
        self._step = 0
        self._met = self._told = self._warned = self._opened = False
        self._clock, self._tally, self._raw, self._classes = StepTimer(), None, None, None

    def _release(self) -> None:
        if self._source is not None and self._source.average is not None:
            self._average = self._source.average.state_dict()  # for a checkpoint written after the fit, or after an error
        if self._dispatcher is not None:
            Dispatcher.detach(self._trainer.strategy, self._on_batch)
        self._dispatcher = self._cam = self._source = self._done = self._trainer = self._raw = self._tally = None


_AVERAGE = "groupcam_aug.average"
_INSTEAD = (
    "Augment inside training_step instead: images = SaliencyBlur(GroupCAM.for_training(network))(images, labels), see "
    "groupcam_aug.SaliencyBlur; where the strategy shards the network, with a teacher that it does not shard"
)


def _seed(seed: int, rank: int, number: int) -> int:
    """One stream per (seed, rank, batch): resuming in the middle of an epoch repeats it, and no state is stored."""
    digest = hashlib.blake2b(f"{seed} {rank} {number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
