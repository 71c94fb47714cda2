"""The map methods that ``groupcam-aug explain`` draws: those of ``evaluate``, and pictures that are no maps to be measured."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from torch import Tensor

from groupcam_aug.guided import guided_backprop, guided_grad_cam
from groupcam_aug.recipes.evaluation.map_method import Maps, Method, Setup
from groupcam_aug.recipes.evaluation.methods import METHODS
from groupcam_aug.recipes.unknown_names import nearest
from groupcam_aug.saliency import GradCAM, GroupCAM

__all__ = ["AGAINST", "FINE", "FULL", "SIGNED", "choose_methods", "keys_of", "maps_of", "needs_layer", "ranking"]

FULL = "groupcam"  # the method that --groups and --mask-at are about
AGAINST = "gradcam-against"
SIGNED = ("guided-gradcam", "guided-backprop")  # maps (n, 3, H, W), positive and negative
FINE = ("guided", "integrated", "smoothgrad")  # maps (n, H, W) of single pixels
_WITHOUT_LAYER = {"guided-backprop", *FINE, "rise", "occlusion", "centre", "cells", "pixels"}


def keys_of(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[str]:
    """Keys of the methods that are asked for.

    Exits with status 2 where options contradict each other.
    """
    if options.methods is not None and options.method is not None:
        parser.error(f"--method and --methods exclude each other: --methods {options.methods},{options.method}")
    if options.methods is not None:
        keys = [word.strip() for word in options.methods.split(",") if word.strip()]
    else:
        keys = [options.method or (AGAINST if options.against else FULL)]
    if not keys:
        parser.error("--methods names none: give keys, such as groupcam,gradcam")
    if options.against and keys == ["gradcam"]:
        keys = [AGAINST]
    if options.against and AGAINST not in keys:
        parser.error(f"--against is Grad-CAM's: leave {','.join(keys)} out, or take --methods {','.join(keys)},{AGAINST}")
    if FULL not in keys:
        for name, value in (("--groups", options.groups), ("--mask-at", options.mask_at)):
            if value is not None:
                parser.error(f"{name} {value} is Group-CAM's, not of {', '.join(keys)}: leave it out, or add {FULL} to --methods")
    if options.style == "raw" and len(keys) > 1:
        parser.error("--style raw is for one method: call once for each, by --method and --out")
    return keys


def choose_methods(keys: Sequence[str], groups: int | None, mask_at: str) -> list[Method]:
    """The methods of these keys.

    Args:
        keys: as in `groupcam-aug evaluate --list`, and those of this module.
        groups: of "groupcam"; None: 32, or as many as the layer has channels.
        mask_at: of "groupcam".

    Raises:
        ValueError: an unknown key (a near one is suggested), one given twice, or one whose library is not installed.
    """

    def groupcam(setup: Setup) -> Maps:
        count = setup.groups(32) if groups is None else groups
        cam = setup.as_found(GroupCAM(setup.network, setup.layer, groups=count, mask_at=mask_at, activation=setup.activation))
        return lambda images, classes, _seeds: cam(images, classes)

    known = {method.key: method for method in (*METHODS, *_OWN)}
    full = known[FULL]
    known[FULL] = Method(full.key, full.name, full.kind, full.description, groupcam)
    for key in keys:
        if key not in known:
            own = ", ".join(method.key for method in _OWN)
            raise ValueError(
                f"no method {key!r}{nearest(key, known)}; there are {own} and those of `groupcam-aug evaluate --list`"
            )
        if keys.count(key) > 1:
            raise ValueError(f"method {key!r} is given {keys.count(key)} times: once is enough")
        if reason := known[key].missing():
            raise ValueError(f"{key}: {reason}")
    return [known[key] for key in keys]


def needs_layer(methods: Sequence[Method]) -> bool:
    """Whether one of the methods takes its maps from a layer."""
    return any(method.key not in _WITHOUT_LAYER for method in methods)


def maps_of(method: Method, setup: Setup) -> Maps:
    """What makes a method's maps: (n, H, W), or (n, 3, H, W) of one that is `SIGNED`."""
    make, alter = method.make(setup), method.alter
    return make if alter is None else lambda images, classes, seeds: alter(make(images, classes, seeds))


def ranking(maps: Tensor) -> Tensor:
    """(n, H, W), by which pixels are ranked: maps as they are; of signed ones (n, 3, H, W) the absolute sum over the channels."""
    return maps.abs().sum(dim=1) if maps.ndim == 4 else maps


def _plain(make: Callable[[Setup], Callable[[Tensor, Tensor], Tensor]]) -> Callable[[Setup], Maps]:
    """A method that draws no random numbers."""

    def made(setup: Setup) -> Maps:
        maps = make(setup)
        return lambda images, classes, _seeds: maps(images, classes)

    return made


def _against(setup: Setup) -> Callable[[Tensor, Tensor], Tensor]:
    return setup.as_found(GradCAM(setup.network, setup.layer, sign=-1))  # type: ignore[return-value]


def _guided_grad_cam(setup: Setup) -> Callable[[Tensor, Tensor], Tensor]:
    layer = None if setup.rectified else setup.layer  # one that is named is read as it is
    return lambda images, classes: guided_grad_cam(setup.network, images, classes, layer)


def _guided_backprop(setup: Setup) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda images, classes: guided_backprop(setup.network, images, classes)


_OWN = (
    Method(AGAINST, "Grad-CAM against", "ours", "what speaks against the class: weights from -dy/dA", _plain(_against)),
    Method("guided-gradcam", "guided Grad-CAM", "ours", "Grad-CAM times guided backpropagation", _plain(_guided_grad_cam)),
    Method("guided-backprop", "guided backpropagation", "ours", "the gradient through guided ReLUs", _plain(_guided_backprop)),
)
