"""The augmentation as a callback: one line in a Trainer."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Literal

import torch
from torch import Tensor, nn

from groupcam_aug.arguments import check_choice, check_flag, check_name, check_seed, check_whole
from groupcam_aug.augment import Fill, MaskFrom, SaliencyBlur
from groupcam_aug.callbacks.glue.arguments import plain_values
from groupcam_aug.callbacks.glue.batch import (
    BatchKey,
    ExtraKeys,
    Step,
    batch_generator,
    check_extra_keys,
    check_keys,
    has_run_out,
    read_batch,
    read_batch_extra,
    replace_item,
    warn_of_several_labels,
)
from groupcam_aug.callbacks.glue.class_names import known_class_names
from groupcam_aug.callbacks.glue.compat import announce, keeping_random_numbers, misconfigured, warn
from groupcam_aug.callbacks.glue.dispatcher import BatchCallback, Dispatcher, is_for_training
from groupcam_aug.callbacks.glue.logger_pictures import send_picture
from groupcam_aug.callbacks.glue.map_source import MapSource
from groupcam_aug.callbacks.glue.network import log_epoch, refuse, warn_of_head
from groupcam_aug.callbacks.glue.object_masks import count_kept, kept_shares, read_masks
from groupcam_aug.callbacks.records.augmentation_stats import AugmentationStats, open_stats
from groupcam_aug.callbacks.records.epoch_means import EpochMeans
from groupcam_aug.callbacks.records.sample_grid import Samples, is_kept
from groupcam_aug.callbacks.records.step_timer import StepTimer
from groupcam_aug.cost import cost_in_forwards
from groupcam_aug.extra import Extra, Extras
from groupcam_aug.presets import PRESETS, describe
from groupcam_aug.saliency import GroupCAM

__all__ = ["PRESETS", "GroupCAMAugmentation"]


@dataclass
class _Fit:
    """One fit: made in `setup`, dropped in `teardown` or after an error."""

    trainer: Any
    dispatcher: Dispatcher
    source: MapSource
    timer: StepTimer = field(default_factory=StepTimer)
    means: EpochMeans = field(default_factory=EpochMeans)
    step: Step | None = None  # of the batch on its way to training_step
    stats: AugmentationStats | None = None
    opened: bool = False  # whether it has been decided if there are any
    samples: Samples | None = None  # of the last epoch, while loggers have not got them
    class_names: list[str] | None = None
    shows: bool = True  # whether loggers are to get pictures
    shown: bool = False  # whether they have got one
    checked: bool = False  # whether a batch has been mapped, which shows that the arguments fit module and data
    behind: bool = False  # whether the module has been looked at for layers behind the mapped network
    plan: str = ""  # what is done and what it costs, after the first batch
    masks_checked: int | None = None  # the last epoch in which the values of object masks were looked at


@contextmanager
def _sparing(fit: _Fit, part: Literal["records", "pictures"] = "records") -> Iterator[None]:
    """Records, and what is drawn for them, must not end a training run: they are given up, and that is said."""
    try:
        yield
    except Exception as error:
        given_up = {"records": "records nothing", "pictures": "shows loggers no pictures"}[part]
        warn(fit.trainer, f"GroupCAMAugmentation {given_up} from here on: {type(error).__name__}: {error}")
        if part == "records":
            fit.stats = None
        else:
            fit.shows = False


class GroupCAMAugmentation(BatchCallback):
    """Group-CAM augmentation of every training batch, on its device, with the network being trained.

    Each batch is met after all transfer and precision hooks and rebuilt before `training_step` sees it: saliency of each drawn
    image for its own label, mean threshold, everything else blurred. Validation, test, predict and sanity-check batches,
    the user's dataset and the user's module are never touched; the extra forward passes run in evaluation mode, in the
    Trainer's precision, outside any DDP wrapper, and leave parameters, buffers, modes and random numbers as they found them.

    Logged per step: `groupcam/keep_fraction` (share of pixels kept in the drawn images), `groupcam/no_map` (share of drawn
    images without a map, left as they are) and `groupcam/seconds` (time of the augmentation; on a GPU of the step before,
    so that nothing waits for the device). With `mask_key` also `groupcam/object_kept` and `groupcam/ground_kept`: the shares of
    the objects' and of the backgrounds' pixels that are kept, over the step's drawn images that have a map and an object mask
    (a pixel of at least .5); NaN where there is no such pixel. At the end of an epoch the same with `_epoch` behind the name: the
    mean over the steps in which something is known, weighted by drawn images; under DDP of each rank's share.

    Recorded per epoch, on rank zero, for `SaliencyReport` and `groupcam-aug report`: counts, keep fractions, images without a map
    per class and times in `augmentation.jsonl`, and a few samples in `gallery/`, in the folder `groupcam` of the run's log
    directory. A run without logger and checkpoints is left without records too, unless that folder is there. Loggers get the
    samples as a picture, `groupcam/samples`, or as files where they take none: those of the first epoch, of epochs 1, 2, 4, 8 and
    so on, and of the last.

    Args:
        preset: "fast" (default) = half of the images, masks at the target layer, against zeros there instead of the blurred
            image's features: one forward pass of half of the images in all; "balanced" = half of the images, masks inside the
            last stage; "paper" = every image, masks on the input (docs/method.md to the letter), at several times the step time.
        network: dotted name of the network on the LightningModule ("net", "model.backbone"). None: the LightningModule itself,
            whose `forward` must then map images to logits.
        layer: target layer, as named in that network. None: found at the first batch and announced.
        groups: G. Default: 16.
        weights: importance weights, "none" (the paper, in training) or "gradient" (class-specific maps; differentiates only
            what follows the layer).
        mask_at: "input", "stage", "target" or a layer's name; see `GroupCAM`. None: the preset's.
        baseline: what masks uncover while groups are scored, "blur" or "zero"; see `GroupCAM`. None: the preset's.
        p: probability of an image to be augmented. None: the preset's.
        strength: how far non-salient pixels move toward the fill, 0 to 1.
        threshold: "mean", a number in [0, 1], or a quantile such as "q0.6".
        fill: "blur", "mean", "noise", "other", or a callable `images -> images`.
        mask_from: "saliency", or the controls "other", "centre", "whole", "inverse", or a callable; see `SaliencyBlur`.
        labels: "own", or "mixed" with fill="other": as in CutMix the label of the image that gave pixels counts for their
            share. Augmented batches then hold rows (N, classes) in place of class indices; cross-entropy takes both.
        source: where the maps come from. None: "masks" where `mask_key` is given, else "self". "self": the network being trained
            (the paper). "masks": the object masks under `mask_key`, in place of maps: threshold, fill and mask_from work on
            them, no network is mapped; an image whose mask is all zero has no map. "ema": the network's moving average
            (decay 0.999 per optimiser step, or per batch where Lightning counts none; less in the first 9,000; kept in the
            checkpoint), for steadier maps. A network, or the path of a checkpoint of the trained one: a frozen teacher with the
            same classes, for when the network in training cannot be trusted to know the object (a shortcut in the data,
            training from scratch).
        source_target: what maps are made for: "label", the image's label, or "top1", the first choice of the network that is
            mapped. With "top1" a teacher may have other classes: an ImageNet network with its head finds objects of any data.
        start_epoch: first epoch that is augmented.
        stop_epoch: first epoch that is no longer augmented. None: never stops.
        every_n_steps: augment every n-th training batch only.
        image_key: where the images are in a batch: index, key or attribute name, a list of them for nested batches, or a
            (getter, setter) pair. Default: the first item.
        target_key: where the labels are, likewise. None: each image's top-1 class. Default: the second item. A row without any
            label stands for the top-1 class, too; an image whose label is -100 is left as it is.
        mask_key: where object masks are, likewise: (N, H, W) or (N, 1, H, W) of any size, bool or in [0, 1]; all zero for an
            image of which nothing is known. They replace the maps, or with another `source` than "masks" only measure.
            None: the batches have none.
        extra_keys: where the inputs are that the mapped network takes beside images, one row per image each: a list of such keys,
            for positional arguments in that order, or {argument's name: key} for keyword ones. None: images are all it takes.
        activation: what turns logits into scores: "softmax", or "sigmoid" for multi-label and single-logit heads.
        output: where the logits are in what the network returns: key, index, attribute or callable.
        preprocess: applied to images before the borrowed network sees them, for modules that normalise in `training_step`.
        chunk: most images per forward pass; see `GroupCAM` for the default.
        compile: run the passes of masked images through `torch.compile`; for masks on the input only, as of "paper". Compiling
            takes half a minute or more at the first batch. Default: False.
        precision: None (default) = the Trainer's, or "bf16-mixed" for the maps alone, of a network trained in float32.
        seed: of the draws; they follow from (seed, rank, batch number), so a resumed run repeats them.
        record: whether to leave the records named above. Default: True; False for images that must not be copied.
        log_images: whether loggers that take pictures get the recorded samples. Default: True.

    Raises:
        ValueError: an argument out of range, or source="masks" without `mask_key`.
        MisconfigurationException: the batch has no image under `image_key` or no masks under `mask_key`, the module cannot be
            mapped, or the strategy or `training_step(dataloader_iter)` keeps batches out of reach (use `SaliencyBlur` inside the
            step there).

    Example::

        trainer = Trainer(callbacks=[GroupCAMAugmentation(network="model")])
    """

    def __init__(
        self,
        *,
        preset: Literal["fast", "balanced", "paper"] = "fast",
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
        source: str | nn.Module | None = None,
        source_target: Literal["label", "top1"] = "label",
        start_epoch: int = 0,
        stop_epoch: int | None = None,
        every_n_steps: int = 1,
        image_key: BatchKey = 0,
        target_key: BatchKey | None = 1,
        mask_key: BatchKey | None = None,
        extra_keys: ExtraKeys | None = None,
        activation: Literal["softmax", "sigmoid"] = "softmax",
        output: int | str | Callable[[Any], Tensor] | None = None,
        preprocess: Callable[[Tensor], Tensor] | None = None,
        chunk: int | None = None,
        compile: bool = False,
        precision: Literal["bf16-mixed"] | None = None,
        seed: int = 0,
        record: bool = True,
        log_images: bool = True,
    ) -> None:
        if source is None:
            source = "self" if mask_key is None else "masks"
        settings = plain_values({name: value for name, value in locals().items() if name not in ("self", "__class__")})
        super().__init__()
        check_choice("preset", preset, tuple(PRESETS))
        check_choice("labels", labels, ("own", "mixed"))
        check_choice("source_target", source_target, ("label", "top1"))
        for name, count, least in (("start_epoch", start_epoch, 0), ("every_n_steps", every_n_steps, 1)):
            check_whole(name, count, least)
        check_seed(seed)
        check_whole("stop_epoch", stop_epoch, start_epoch + 1, optional=True)
        check_flag("record", record)
        check_flag("log_images", log_images)
        for name, word in (("network", network), ("layer", layer), ("mask_at", mask_at)):
            check_name(name, word)
        check_keys(image_key=image_key, target_key=target_key, mask_key=mask_key)
        check_extra_keys(extra_keys)
        if not isinstance(source, str | PathLike | nn.Module):
            raise TypeError(f"source must be 'self', 'ema', 'masks', a network or a checkpoint's path, got {source!r:.60}")
        if labels == "mixed" and (fill != "other" or target_key is None):
            raise ValueError(f"labels='mixed' needs fill='other' and a target_key, got {fill!r} and {target_key!r}")
        if labels == "mixed" and source_target == "top1" and source not in ("self", "ema"):
            raise ValueError(
                "labels='mixed' counts the classes of the mapped network: a teacher with source_target='top1' may have others"
            )
        if source == "masks" and mask_key is None:
            raise ValueError("source='masks' needs mask_key=, the place of the object masks in a batch")
        defaults = PRESETS[preset]
        self.network, self.source, self.source_target = network, source, source_target
        self.labels, self.seed, self.record, self.log_images = labels, seed, record, log_images
        self.start_epoch, self.stop_epoch, self.every_n_steps = start_epoch, stop_epoch, every_n_steps
        self.image_key, self.target_key, self.mask_key, self.extra_keys = image_key, target_key, mask_key, extra_keys
        self.layer, self.groups, self.weights, self.activation, self.chunk = layer, groups, weights, activation, chunk
        self.output, self.preprocess, self.compile, self.precision = output, preprocess, compile, precision
        self.mask_at = defaults["mask_at"] if mask_at is None else mask_at
        self.baseline = defaults["baseline"] if baseline is None else baseline
        checked = self.mask_at if self.mask_at in ("stage", "target") else "input"  # a layer's name: at the first batch
        self._make_cam(nn.Identity(), layer=None, mask_at=checked)  # checks the arguments now, not at the first batch
        p = defaults["p"] if p is None else p
        self.augment = SaliencyBlur(self._map, p=p, strength=strength, threshold=threshold, fill=fill, mask_from=mask_from)
        self._settings = settings  # for the records
        self.in_extra_forward = False  # for users whose own hooks should ignore the saliency passes
        self._fit: _Fit | None = None
        self._average: dict[str, Any] | None = None  # of a checkpoint to go on from, or of the last fit

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot work, then stand in line for the batches. Runs before any tuner's trial steps."""
        if stage != "fit":
            return
        self._release()
        self._average = None
        if self._runs_network():
            refuse(trainer, pl_module, self.network, type(self).__name__, _INSTEAD)
        if "dataloader_iter" in inspect.signature(pl_module.training_step).parameters:
            raise misconfigured(trainer, f"training_step(dataloader_iter) fetches batches out of a callback's reach. {_INSTEAD}")
        choice = "self" if self.source == "masks" else self.source
        source = MapSource(trainer, self.network, choice, self._make_cam, other_classes=self.source_target == "top1")
        self._fit = _Fit(trainer, Dispatcher.attach(trainer.strategy, self._on_batch), source)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Make sure that the batch went through our hands, then record what was done to it."""
        if (fit := self._fit) is None:
            return
        if self.source not in ("self", "masks"):
            fit.source.start(self._average)  # before the first step, so that an average starts at the start
        step, fit.step = fit.step, None
        fit.dispatcher.check_arrival(trainer, batch, step is not None, type(self).__name__, _INSTEAD)
        if step is None:
            return
        result = step.result
        if not fit.opened:  # only now: a SaliencyReport after this callback has made its folder
            fit.opened, fit.stats = True, open_stats(trainer) if self.record else None
        if fit.stats is not None:
            with _sparing(fit):
                fit.stats.add_step(step.due)
                if result is not None:
                    fit.stats.add(result, step.images, step.targets, step.number, step.kept)
        if result is None or trainer.barebones:
            return
        values = {"keep_fraction": result.keep.float().mean(), "no_map": result.no_map.float().mean()}
        if step.kept is not None:
            values["object_kept"], values["ground_kept"] = kept_shares(step.kept)
        fit.means.add(values, len(result.drawn))
        if (seconds := fit.timer.seconds) is not None:
            values["seconds"] = torch.tensor(seconds)  # Lightning takes a plain number to the device, and waits for it
            fit.means.add({"seconds": values["seconds"]}, 1)
        pl_module.log_dict({f"groupcam/{name}": value for name, value in values.items()}, batch_size=len(result.images))

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Look, once, whether what is mapped ends before the classifier."""
        if (fit := self._fit) is None or fit.behind or fit.source.cam is None or not fit.checked:
            return
        fit.behind = True
        if self.source in ("self", "ema"):
            warn_of_head(trainer, pl_module, self.network, fit.source.cam.columns, type(self).__name__)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Hold on to no batch; let an average follow the optimiser's steps."""
        if (fit := self._fit) is None:
            return
        fit.dispatcher.last = None
        fit.timer.end(trainer.strategy.root_device)
        if fit.stats is not None:
            fit.stats.add_seconds(fit.timer)
        fit.source.after_step()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the epoch's means, and write its records."""
        if (fit := self._fit) is None:
            return
        means = fit.means.take()
        log_epoch(trainer, pl_module, {f"groupcam/{name}_epoch": torch.tensor(mean) for name, mean in means.items()})
        if fit.stats is None:
            return
        with _sparing(fit):
            fit.class_names = known_class_names(trainer, pl_module)
            fit.samples = fit.stats.write(trainer, pl_module, self._facts(fit))
        if is_kept(trainer.current_epoch) or not fit.shown:
            self._show(fit)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Show loggers the samples of the last epoch, if they have not got them."""
        if self._fit is not None:
            self._show(self._fit)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Keep the average."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        self._keep_average()
        if self._average is not None:
            checkpoint[_AVERAGE] = self._average

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Take the average up again."""
        self._average = checkpoint.get(_AVERAGE) if self.source == "ema" else None

    def _on_batch(self, batch: Any) -> Any:
        """A batch on its way to `training_step`, augmented if it is one of training that is due.

        Of the first batch one image is mapped even where none is drawn, and the result dropped: what cannot work shows now.
        """
        if (fit := self._fit) is None or not is_for_training(fit.trainer, batch):
            return batch
        trainer = fit.trainer
        fit.timer.begin(trainer.strategy.root_device)
        number = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        fit.step = Step(number)
        due = self._is_due(trainer.current_epoch, number)
        if not (self.augment.p and self.augment.strength) or (fit.checked and not due):
            return batch
        if number and has_run_out(batch, self.image_key, self.target_key, self.mask_key):
            return batch
        images, targets = read_batch(trainer, batch, self.image_key, self.target_key, type(self).__name__)
        masks = self._read_masks(fit, batch, images)
        fit.step = Step(number, len(images) if due else 0)
        generator = batch_generator(self.seed, trainer.global_rank, number)
        drawn = self.augment.draw(len(images) if due else 0, generator)
        trial = not len(drawn)
        if trial and (fit.checked or not len(images)):
            return batch
        runs_network = self._runs_network()
        keys = self.extra_keys if runs_network else None
        extra = read_batch_extra(trainer, batch, keys, images, type(self).__name__)
        if runs_network and not fit.source.start(self._average):
            if not trial:
                warn(trainer, "the network's lazy modules take their shape in the first step: that batch is not augmented")
            return batch
        self.in_extra_forward = runs_network
        try:
            with (
                trainer.profiler.profile(f"[Callback]{self.state_key}.augment"),
                keeping_random_numbers(trainer) if trial else fit.timer.measure(images.device),
                fit.source.borrowed(images, type(self).__name__, extra) if runs_network else nullcontext() as cam,
            ):
                maps = masks if self.source == "masks" else None
                index = drawn[:1].new_zeros(1) if trial else drawn
                result = self.augment.augment_at(images, targets, index, generator, maps, extra.given())
                mixed = None
                if self.labels == "mixed":
                    mixed = self.augment.mixed_labels(targets, result, fit.source.classes(images, extra))
        except (ValueError, TypeError) as error:
            if fit.checked:
                raise
            raise misconfigured(trainer, str(error)) from error  # before the first step: a matter of set-up
        finally:
            self.in_extra_forward = False
        if not fit.checked:
            fit.checked = True
            fit.plan = self._plan(fit, images[:_COUNTED], extra[slice(_COUNTED)])
            announce(trainer, fit.plan)
            if cam is not None:
                cam.recheck = trial  # the labels of one image have been looked at
                warn_of_several_labels(trainer, cam, targets)
        if trial:
            return batch
        kept = None if masks is None else count_kept(masks, result)
        fit.step = Step(number, len(images), images, targets, result, kept)
        batch = replace_item(batch, self.image_key, result.images)
        return batch if mixed is None or self.target_key is None else replace_item(batch, self.target_key, mixed)

    def _runs_network(self) -> bool:
        return self.source != "masks" or self.labels == "mixed"  # mixed labels ask it for the number of classes

    def _read_masks(self, fit: _Fit, batch: Any, images: Tensor) -> Tensor | None:
        if self.mask_key is None:
            return None
        check = images.device.type == "cpu" or fit.masks_checked != fit.trainer.current_epoch
        fit.masks_checked = fit.trainer.current_epoch
        return read_masks(fit.trainer, batch, self.mask_key, images, type(self).__name__, check=check)

    def _is_due(self, epoch: int, number: int) -> bool:
        inside = self.start_epoch <= epoch and (self.stop_epoch is None or epoch < self.stop_epoch)
        return inside and number % self.every_n_steps == 0

    def _map(self, images: Tensor, targets: Any, extra: Extras = None) -> Tensor:
        """Maps for `SaliencyBlur`, which knows no Trainer."""
        if self._fit is None or self._fit.source.cam is None:
            raise RuntimeError("GroupCAMAugmentation.augment maps within a fit only; elsewhere use groupcam_aug.SaliencyBlur")
        return self._fit.source.cam(images, targets if self.source_target == "label" else None, extra)

    def _make_cam(self, network: nn.Module, **changed: Any) -> GroupCAM:
        return GroupCAM.for_training(network, **{name: getattr(self, name) for name in _METHOD} | changed)

    def _show(self, fit: _Fit) -> None:
        """The samples in every logger that takes pictures, once."""
        samples, fit.samples = fit.samples, None
        if samples is None or not (self.log_images and fit.shows and fit.trainer.loggers):
            return
        with _sparing(fit, "pictures"):
            send_picture(fit.trainer, "groupcam/samples", samples.panel(fit.class_names))
            fit.shown = True

    def _facts(self, fit: _Fit) -> dict[str, Any]:
        """The settings of the run, for its records."""
        facts = {
            "p": self.augment.p,
            "mask_at": self.mask_at,
            "baseline": self.baseline,
            "world_size": fit.trainer.world_size,
            "class_names": fit.class_names,
        }
        if fit.plan:
            facts["plan"] = fit.plan
        if self.source != "masks" and (cam := fit.source.cam) is not None:
            facts |= {"layer": cam.layer, "layer_shape": cam.layer_shape}
        return self._settings | facts

    def _plan(self, fit: _Fit, images: Tensor, extra: Extra) -> str:
        """What is done, and at what cost, which is counted on these images: outside what is timed, some 2 F for `fast`."""
        cam, cost, why = None if self.source == "masks" else fit.source.cam, math.nan, ""
        if cam is not None and cam.layer_shape:
            self.in_extra_forward = True
            try:
                with keeping_random_numbers(fit.trainer), fit.source.borrowed(images, type(self).__name__, extra):
                    cost = cost_in_forwards(cam, images, extra=extra.given())
            except Exception as error:  # of any class: what a network does under a counter is no reason to end a training
                why = f" ({type(error).__name__}: {error})"
            finally:
                self.in_extra_forward = False
            if cam.compiled is not None:
                why += f"; {cam.compiled.summary()}"
        mixed = "labels mixed, " if self.labels == "mixed" else ""
        return f"Group-CAM augmentation: {mixed}{describe(cam, self.augment, cost)}{why}"

    def _keep_average(self) -> None:
        if self._fit is not None and self._fit.source.average is not None:
            self._average = self._fit.source.average.state_dict()

    def _release(self) -> None:
        self._keep_average()  # for a checkpoint written after the fit, or after an error
        super()._release()


_AVERAGE = "groupcam_aug.average"
_COUNTED = 4  # images on which cost is counted: what a batch shares weighs little, and `paper` takes a fraction of its first step
_METHOD = (
    "layer",
    "groups",
    "weights",
    "mask_at",
    "baseline",
    "activation",
    "output",
    "preprocess",
    "chunk",
    "compile",
    "precision",
)
_INSTEAD = (
    "Augment inside training_step instead: images = SaliencyBlur(GroupCAM.for_training(network))(images, labels), see "
    "groupcam_aug.SaliencyBlur; where the strategy shards the network, with a teacher that it does not shard"
)
