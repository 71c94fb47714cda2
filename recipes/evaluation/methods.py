"""The map methods that ``groupcam-aug evaluate`` measures: this package's, controls that know nothing, and other libraries'."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from groupcam_aug.baselines import centred_blob, random_cells
from groupcam_aug.map_ops import minmax
from groupcam_aug.occlusion import occlusion, window_count
from groupcam_aug.recipes.evaluation.external_methods import EXTERNAL_METHODS
from groupcam_aug.recipes.evaluation.map_method import Maps, Method, Setup
from groupcam_aug.recipes.unknown_names import nearest
from groupcam_aug.rise import rise
from groupcam_aug.saliency import GradCAM, GroupCAM

__all__ = ["ABLATIONS", "METHODS", "RENAMED", "ablation", "choose", "rise_method"]

MASKS = 4000  # of RISE: the paper's for VGG16
# Keys of methods, as older calls and rows have them.
RENAMED = {
    "training": "paper",
    "training-stage": "balanced",
    "training-target": "target-blur",
    "training-gradient": "paper-weights",
}


def choose(words: str | None, compare: bool) -> list[Method]:
    """The methods behind `--methods`, comma-separated keys (None: the default ones), and with `compare` the other libraries'.

    Raises:
        ValueError: an unknown key, or a former one; the key of now, or a near one, is suggested.
    """
    known = {method.key: method for method in METHODS}
    if words is None:
        chosen = [method for method in METHODS if method.default and method.kind != "peer"]
    else:
        keys = [] if words.strip() == "none" else [word.strip() for word in words.split(",") if word.strip()]
        for key in keys:
            if key not in known:
                raise ValueError(f"no method {key!r}{nearest(key, known, RENAMED)}; --list shows them")
        chosen = [known[key] for key in keys]
    return list(dict.fromkeys([*chosen, *(method for method in METHODS if compare and method.needs)]))


def ablation(kind: str, channels: int) -> dict[float, Method]:
    """The full Group-CAM with other numbers: value -> method.

    Args:
        kind: "groups" (the paper's table 2; as many as the layer's `channels` allow) or "denoise" (its figure 5).
        channels: of the layer.
    """
    full, rows = METHODS[0], {}
    for value in ABLATIONS[kind]:
        groups, theta = (value, 70) if kind == "groups" else (min(32, channels), value)
        if groups <= channels:
            how = {"groups": groups, "denoise": float(theta)}
            same = (groups, theta) == (min(32, channels), 70)
            key, name = f"groupcam:{groups}:{theta}", f"Group-CAM, G={groups}, theta={theta}"
            rows[float(value)] = full if same else Method(key, name, "ours", "ablation", _ours(_full, **how))
    return rows


ABLATIONS: dict[str, tuple[int, ...]] = {"groups": (1, 4, 8, 16, 32, 64, 128, 256), "denoise": tuple(range(0, 100, 10))}


def _ours(make: Callable[..., Any], **options: Any) -> Callable[[Setup], Maps]:
    def made(setup: Setup) -> Maps:
        cam = make(setup, **options)
        return lambda images, classes, _seeds: cam(images, classes)

    return made


def _full(setup: Setup, **options: Any) -> GroupCAM:
    options = {"groups": setup.groups(32), "activation": setup.activation, **options}
    return setup.as_found(GroupCAM(setup.network, setup.layer, **options))


def _training(setup: Setup, **options: Any) -> GroupCAM:
    options = {"groups": setup.groups(16), "activation": setup.activation, **options}
    return setup.as_found(GroupCAM.for_training(setup.network, setup.layer, **options))


def _gradcam(setup: Setup) -> GradCAM:
    return setup.as_found(GradCAM(setup.network, setup.layer))


def rise_method(masks: int) -> Method:
    """RISE with so many masks, the same for all images."""

    def make(setup: Setup) -> Maps:
        return lambda images, classes, _seeds: minmax(
            rise(setup.network, images, classes, masks=masks, activation=setup.activation).to(images)
        )

    key = "rise" if masks == MASKS else f"rise:{masks}"
    told = f"{masks:,} random masks of 7 x 7 cells against mean grey, a pass each"
    return Method(key, "RISE", "peer", told, make, default=False, passes=lambda _size: masks + 1)


def _occlusion(setup: Setup) -> Maps:
    return lambda images, classes, _seeds: minmax(
        occlusion(setup.network, images, classes, activation=setup.activation).maps.to(images)
    )


def _windows(size: tuple[int, int]) -> int:
    return window_count(*size) + 1


def _row(key: str, name: str, description: str, make: Callable[..., Any], default: bool = True, **options: Any) -> Method:
    return Method(key, name, "ours", description, _ours(make, **options), default=default, cam=partial(make, **options))


def _inverted(maps: Tensor) -> Tensor:
    return torch.where(maps.amax(dim=(1, 2), keepdim=True) > 0, 1 - maps, maps)


def _per_image(draw: Callable[[Tensor, int], Tensor]) -> Callable[[Setup], Maps]:
    """A control that draws each map by the image's own seed: the same, however images fall into batches."""
    return lambda _setup: (
        lambda images, _classes, seeds: torch.cat([draw(images[i : i + 1, 0], seed) for i, seed in enumerate(seeds)])
    )


def _blob(_setup: Setup) -> Maps:
    return lambda images, _classes, _seeds: centred_blob(images[:, 0])


def _random_pixels(maps: Tensor, seed: int) -> Tensor:
    return torch.rand(maps.shape, generator=torch.Generator().manual_seed(seed)).to(maps)


METHODS: tuple[Method, ...] = (
    _row("groupcam", "Group-CAM", "the paper's explanation form: G=32, theta=70, importance weights", _full),
    _row("groupcam-stage", "Group-CAM at stage", "the same, masks inside the last stage", _full, False, mask_at="stage"),
    _row("groupcam-target", "Group-CAM at target", "the same, masks on the target layer", _full, False, mask_at="target"),
    _row("paper", "paper", "the preset: gradient-free, G=16, no denoising, masks on the image", _training),
    _row("balanced", "balanced", "the preset: as paper, masks inside the last stage", _training, mask_at="stage"),
    _row("target-blur", "fast against blur", "as fast, masks against the blurred image", _training, mask_at="target"),
    _row("paper-weights", "paper with importance weights", 'as paper, with weights="gradient"', _training, weights="gradient"),
    _row("fast", "fast", "the preset: masks on the target layer, against zeros", _training, mask_at="target", baseline="zero"),
    _row("gradcam", "Grad-CAM", "at the same layer", _gradcam),
    Method("centre", "centred blob", "control", "a Gaussian in the middle: what centring is worth", _blob),
    Method("cells", "random cells", "control", "noise on 7 x 7 cells: as coarse as a map", _per_image(random_cells)),
    Method("pixels", "random pixels", "control", "noise in every pixel", _per_image(_random_pixels)),
    Method("inverted", "inverted Group-CAM", "control", "1 - Group-CAM: the worst", _ours(_full), of="groupcam", alter=_inverted),
    rise_method(MASKS),
    Method(
        "occlusion",
        "occlusion",
        "peer",
        "a window of a seventh of the side, in steps of half of it, hidden by mean grey",
        _occlusion,
        default=False,
        passes=_windows,
    ),
    *EXTERNAL_METHODS,
)
