"""The map methods that ``groupcam-aug evaluate`` measures: this package's, controls that know nothing, and other libraries'."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from groupcam_aug.baselines import centred_blob, random_cells
from groupcam_aug.recipes.cli import nearest
from groupcam_aug.recipes.evaluation.external_methods import (
    NOISE,
    SAMPLES,
    STEPS,
    captum_method,
    grad_cam_library,
    guided,
    integrated,
    smooth,
)
from groupcam_aug.saliency import GradCAM, GroupCAM

__all__ = ["ABLATIONS", "METHODS", "Maps", "Method", "Setup", "ablation", "choose"]

Maps = Callable[[Tensor, Tensor, Sequence[int]], Tensor]
"""Images (n, 3, H, W), classes (n,) and a seed for each image -> maps (n, H, W) in [0, 1]."""
_EXTRA = "pip install 'groupcam-aug[compare]'"


@dataclass(frozen=True)
class Setup:
    """What methods are made for: a network, and the layer whose maps are taken."""

    network: nn.Module
    layer: str
    channels: int  # of that layer

    @classmethod
    def of(cls, network: nn.Module, images: Tensor, layer: str | None = None) -> Setup:
        """Find the layer (None) or check it, and count its channels, with one image (1, 3, H, W)."""
        cam = GroupCAM(network, layer, groups=1, weights="none", denoise=None)
        cam(images, 0)
        assert cam.layer is not None  # for the type checker
        return cls(network, cam.layer, cam.layer_shape[0])

    def groups(self, wanted: int) -> int:
        """G, at most as many as there are channels."""
        return min(wanted, self.channels)

    @cached_property
    def copied(self) -> nn.Module:
        """A copy for libraries that write into what they are given."""
        return copy.deepcopy(self.network).eval()


@dataclass(frozen=True)
class Method:
    """A row of the table. `make` is called once and may raise; what it returns is called with each batch."""

    key: str  # as --methods takes it
    name: str  # in tables and pictures
    kind: Literal["ours", "control", "peer"]
    told: str
    make: Callable[[Setup], Maps]
    needs: str = ""  # a module of an extra
    default: bool = True
    of: str = ""  # key of the method whose maps it alters, so that they are made once
    alter: Callable[[Tensor], Tensor] | None = None
    cam: Callable[[Setup], Any] | None = field(default=None, compare=False)  # for the sanity check

    def missing(self) -> str | None:
        """Why it cannot be made here, or None."""
        if not self.needs:
            return None
        try:
            importlib.import_module(self.needs)
        except ImportError as error:
            return f"{self.needs} cannot be imported ({error}): {_EXTRA}"
        return None


def choose(words: str | None, compare: bool) -> list[Method]:
    """The methods behind `--methods`, comma-separated keys (None: the default ones), and with `compare` the other libraries'.

    Raises:
        ValueError: an unknown key; near ones are suggested.
    """
    known = {method.key: method for method in METHODS}
    if words is None:
        chosen = [method for method in METHODS if method.default and method.kind != "peer"]
    else:
        keys = [] if words.strip() == "none" else [word.strip() for word in words.split(",") if word.strip()]
        for key in keys:
            if key not in known:
                raise ValueError(f"no method {key!r}{nearest(key, known)}; --list shows them")
        chosen = [known[key] for key in keys]
    return list(dict.fromkeys([*chosen, *(method for method in METHODS if compare and method.kind == "peer")]))


def ablation(kind: str, channels: int) -> dict[float, Method]:
    """The full Group-CAM with other numbers: value -> method.

    Args:
        kind: "groups" (the paper's table 2; as many as the layer's `channels` allow) or "denoise" (its figure 5).
        channels: of the layer.
    """
    full, found = METHODS[0], {}
    for value in ABLATIONS[kind]:
        groups, theta = (value, 70) if kind == "groups" else (min(32, channels), value)
        if groups <= channels:
            how = {"groups": groups, "denoise": float(theta)}
            same = (groups, theta) == (min(32, channels), 70)
            key, name = f"groupcam:{groups}:{theta}", f"Group-CAM, G={groups}, theta={theta}"
            found[float(value)] = full if same else Method(key, name, "ours", "ablation", _group_cam(**how))
    return found


ABLATIONS: dict[str, tuple[int, ...]] = {"groups": (1, 4, 8, 16, 32, 64, 128, 256), "denoise": tuple(range(0, 100, 10))}


def _ours(make: Callable[[Setup], Any]) -> Callable[[Setup], Maps]:
    def made(setup: Setup) -> Maps:
        cam = make(setup)
        return lambda images, classes, _seeds: cam(images, classes)

    return made


def _full(setup: Setup, **options: Any) -> GroupCAM:
    return GroupCAM(setup.network, setup.layer, **{"groups": setup.groups(32), **options})


def _training(setup: Setup, **options: Any) -> GroupCAM:
    return GroupCAM.for_training(setup.network, setup.layer, groups=setup.groups(16), **options)


def _group_cam(**options: Any) -> Callable[[Setup], Maps]:
    return _ours(lambda setup: _full(setup, **options))


def _row(key: str, name: str, told: str, make: Callable[[Setup], Any], default: bool = True) -> Method:
    return Method(key, name, "ours", told, _ours(make), default=default, cam=make)


def _inverted(maps: Tensor) -> Tensor:
    return torch.where(maps.amax(dim=(1, 2), keepdim=True) > 0, 1 - maps, maps)


def _per_image(draw: Callable[[Tensor, int], Tensor]) -> Callable[[Setup], Maps]:
    """A control that draws each map by the image's own seed: the same, however images fall into batches."""
    return lambda _setup: (
        lambda images, _classes, seeds: torch.cat([draw(images[i : i + 1, 0], seed) for i, seed in enumerate(seeds)])
    )


def _random_pixels(maps: Tensor, seed: int) -> Tensor:
    return torch.rand(maps.shape, generator=torch.Generator().manual_seed(seed)).to(maps)


METHODS: tuple[Method, ...] = (
    _row("groupcam", "Group-CAM", "the paper's explanation form: G=32, theta=70, importance weights", _full),
    _row(
        "groupcam-stage",
        "Group-CAM at stage",
        "the same, masks inside the last stage",
        lambda s: _full(s, mask_at="stage"),
        False,
    ),
    _row(
        "groupcam-target",
        "Group-CAM at target",
        "the same, masks on the target layer",
        lambda s: _full(s, mask_at="target"),
        False,
    ),
    _row("training", "training form", "the paper's training form: G=16, gradient-free, no denoising", _training),
    _row("training-stage", "training at stage", "the same, masks inside the last stage", lambda s: _training(s, mask_at="stage")),
    _row(
        "training-target", "training at target", "the same, masks on the target layer", lambda s: _training(s, mask_at="target")
    ),
    _row(
        "training-gradient",
        "training weighted",
        "the training form with importance weights (weights=gradient)",
        lambda s: _training(s, weights="gradient"),
    ),
    _row(
        "fast",
        "fast",
        "the training form, masks on the target layer against zeros",
        lambda s: _training(s, mask_at="target", baseline="zero"),
    ),
    _row("gradcam", "Grad-CAM", "at the same layer", lambda s: GradCAM(s.network, s.layer)),
    Method(
        "centre",
        "centred blob",
        "control",
        "a Gaussian in the middle: what centring is worth",
        lambda _: lambda images, _classes, _seeds: centred_blob(images[:, 0]),
    ),
    Method("cells", "random cells", "control", "noise on 7 x 7 cells: as coarse as a map", _per_image(random_cells)),
    Method("pixels", "random pixels", "control", "noise in every pixel", _per_image(_random_pixels)),
    Method(
        "inverted",
        "inverted Group-CAM",
        "control",
        "1 - Group-CAM: must be the worst",
        _ours(_full),
        of="groupcam",
        alter=_inverted,
    ),
    Method(
        "scorecam", "Score-CAM", "peer", "grad-cam; a pass for every channel", grad_cam_library("ScoreCAM"), "pytorch_grad_cam"
    ),
    Method("gradcam++", "Grad-CAM++", "peer", "grad-cam", grad_cam_library("GradCAMPlusPlus"), "pytorch_grad_cam"),
    Method(
        "integrated",
        "integrated gradients",
        "peer",
        f"captum; {STEPS} steps from mean grey, absolute sum over channels",
        captum_method(integrated),
        "captum.attr",
    ),
    Method(
        "smoothgrad",
        "SmoothGrad",
        "peer",
        f"captum; {SAMPLES} copies, noise {NOISE:.0%} of the range, absolute sum over channels",
        captum_method(smooth),
        "captum.attr",
    ),
    Method("guided", "guided backprop", "peer", "captum; absolute sum over channels", captum_method(guided), "captum.attr"),
)
