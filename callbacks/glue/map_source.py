"""Which network the maps come from: the one in training, its moving average, or a teacher."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from groupcam_aug.borrow import as_found, unwrap
from groupcam_aug.callbacks.glue.compat import misconfigured
from groupcam_aug.callbacks.glue.network import borrowed_network, find_network, has_lazy_parameters
from groupcam_aug.checkpoints import state_dict_of
from groupcam_aug.extra import NOTHING, Extra
from groupcam_aug.moving_average import moving_average
from groupcam_aug.saliency import GroupCAM

__all__ = ["DECAY", "MapSource"]

DECAY = 0.999  # of the moving average, per optimiser step, once it is warm


class MapSource:
    """The network that is mapped in one fit, and the `GroupCAM` that maps it.

    A teacher is a copy, held here and nowhere else: no optimiser, checkpoint or DDP bucket knows it, and the user's own object
    stays where it was.

    Args:
        trainer: of the fit.
        name: dotted name of the network in training on the LightningModule; None: the module itself.
        choice: "self", "ema", a network, or the path of a checkpoint of the network in training.
        make_cam: the method, from the network to map.
        other_classes: whether a teacher may have other classes than the network in training. Default: False.
    """

    def __init__(
        self,
        trainer: Any,
        name: str | None,
        choice: str | Path | nn.Module,
        make_cam: Callable[[nn.Module], GroupCAM],
        other_classes: bool = False,
    ) -> None:
        self.trainer, self.name, self.choice, self.make_cam = trainer, name, choice, make_cam
        self.other_classes = other_classes
        self.cam: GroupCAM | None = None  # once started
        self.average: AveragedModel | None = None
        self._is_checked = False
        self._epoch: int | None = None  # of the last batch that was mapped
        self._classes: int | None = None
        self._step = 0  # optimiser steps that the average has followed
        self._are_counted = False  # whether Lightning counts them; not where a wrapper of the optimiser is stepped by hand

    def start(self, average: Mapping[str, Any] | None = None) -> bool:
        """Choose the network, once.

        Args:
            average: state of a moving average to go on from.

        Returns:
            Whether it is chosen: not while modules of the network in training wait for the first step to take their shape.

        Raises:
            MisconfigurationException: no such network, file or layer, or arguments that do not fit the network.
        """
        if self.cam is not None:
            return True
        network = self._in_training()
        if has_lazy_parameters(network):
            return False
        try:
            cam = self.make_cam(self._choose(network))
        except (ValueError, TypeError, OSError) as error:
            raise misconfigured(self.trainer, str(error)) from error
        if self.average is not None and average is not None:
            self.average.load_state_dict(average)
        self.cam, self._step = cam, self.trainer.global_step
        return True

    @contextmanager
    def borrowed(self, images: Tensor, who: str, extra: Extra = NOTHING) -> Iterator[GroupCAM]:
        """The network ready to be mapped: on the images' device, logging muted, in the Trainer's precision.

        Args:
            images: (N, C, H, W) that are to be mapped.
            who: the callback's name, for messages.
            extra: further inputs of the network for them.

        Raises:
            RuntimeError: not started.
            MisconfigurationException: a teacher with other classes, a network whose forward updates metrics.
        """
        if self.cam is None:
            raise RuntimeError("MapSource.borrowed before MapSource.start")
        first, self._is_checked = not self._is_checked, True
        if self.trainer.current_epoch != self._epoch:  # labels on an accelerator are checked once an epoch
            self._epoch, self.cam.recheck = self.trainer.current_epoch, True
        if first:
            self._follow(images)
        with borrowed_network(self.trainer, self.cam.network, who, check=first):
            if first:
                one = extra[slice(1)]
                self._check_dtype(self.cam, images[:1], one)
                self._check_classes(self.cam, images[:1], one)
            yield self.cam

    def classes(self, images: Tensor, extra: Extra = NOTHING) -> int:
        """How many classes the network has, by one forward pass of one of the images (N, C, H, W), once."""
        if self.cam is None:
            raise RuntimeError("MapSource.classes before MapSource.start")
        if self._classes is None:
            with torch.no_grad(), as_found(self.cam.network, images.device), self.cam.passing(extra[slice(1)]):
                self._classes = self.cam.logits(images[:1]).shape[-1]
        return self._classes

    def after_step(self) -> None:
        """Move the average, if the optimiser has moved; after every batch where nothing counts its steps."""
        if self.average is None:
            return
        moved = self.trainer.global_step != self._step
        self._are_counted |= moved or self.trainer.lightning_module.automatic_optimization
        if moved or not self._are_counted:
            self._step = self.trainer.global_step
            self.average.update_parameters(self._in_training())

    def _in_training(self) -> nn.Module:
        return unwrap(find_network(self.trainer, self.trainer.lightning_module, self.name))

    def _choose(self, network: nn.Module) -> nn.Module:
        if self.choice == "self":
            return network
        if self.choice == "ema":
            self.average = moving_average(network, DECAY)
            return self.average.module
        if isinstance(self.choice, nn.Module):
            return copy.deepcopy(unwrap(self.choice))
        if not Path(self.choice).expanduser().is_file():
            raise FileNotFoundError(f"source={str(self.choice)!r} is neither 'self', 'ema' nor a file")
        teacher = copy.deepcopy(network)
        teacher.load_state_dict(state_dict_of(teacher, self.choice))
        return teacher

    def _follow(self, images: Tensor) -> None:
        """Go where the images are, in their precision if the network in training is in it too."""
        parameter = next(self._in_training().parameters(), None)
        if self.cam is not None and self.choice != "self" and parameter is not None:
            self.cam.network.to(device=images.device, dtype=parameter.dtype)

    def _check_dtype(self, cam: GroupCAM, image: Tensor, extra: Extra) -> None:
        """Say what is wrong where the network does not take images of that precision; forwards that cast them are fine."""
        dtype = next((parameter.dtype for parameter in cam.network.parameters() if parameter.is_floating_point()), image.dtype)
        if image.dtype == dtype:
            return
        try:
            with as_found(cam.network, image.device), cam.passing(extra):
                cam.logits(image)
        except RuntimeError as error:
            raise misconfigured(
                self.trainer,
                f"the network has {dtype} parameters and does not take {image.dtype} images ({error}): cast the images in the "
                f"dataset, images.to({dtype}), or give a Trainer(precision=...) that does",
            ) from error

    def _check_classes(self, cam: GroupCAM, image: Tensor, extra: Extra) -> None:
        if self.choice == "self" or self.other_classes:
            return
        student = GroupCAM.for_training(self._in_training(), output=cam.output, preprocess=cam.preprocess)
        with (
            as_found(student.network, image.device),
            as_found(cam.network, image.device),
            student.passing(extra),
            cam.passing(extra),
        ):
            in_training, in_source = (each.logits(image).shape[-1] for each in (student, cam))
        if in_training != in_source:
            raise misconfigured(
                self.trainer,
                f"the source network has {in_source} classes, the one in training {in_training}: give one with the same, "
                "or explain it for its own first choice with source_target='top1'",
            )
