"""The presets: what share of the images is augmented, and where and against what the masks of their maps are scored."""

from __future__ import annotations

import math
from typing import Any, Literal, TypedDict

from groupcam_aug.augment import SaliencyBlur
from groupcam_aug.saliency import GroupCAM

__all__ = ["HALF", "PRESETS", "Preset", "describe", "mode_name", "scoring_of"]


HALF: Literal["bf16-mixed"] = "bf16-mixed"  # as Lightning names it


class Preset(TypedDict):
    """What a preset sets; the names are those of `SaliencyBlur` (p) and of `GroupCAM` (the others)."""

    p: float
    mask_at: str
    baseline: Literal["blur", "zero"]


PRESETS: dict[str, Preset] = {
    "paper": {"p": 1.0, "mask_at": "input", "baseline": "blur"},
    "balanced": {"p": 0.5, "mask_at": "stage", "baseline": "blur"},
    "fast": {"p": 0.5, "mask_at": "target", "baseline": "zero"},
}


def scoring_of(mode: str) -> dict[str, Any]:
    """How a mode scores masks, as options of `GroupCAM`: `mask_at` and `baseline`, and `precision` where it has one.

    Args:
        mode: a preset's name; or a `mask_at` ("input", "stage", "target", a layer's name), with ", zero" behind it for
            `baseline="zero"`. Either with ", bf16-mixed" behind it for `precision="bf16-mixed"`.
    """
    mode, half = mode.removesuffix(f", {HALF}"), mode.endswith(f", {HALF}")
    precision = {"precision": HALF} if half else {}
    if mode in PRESETS:
        return {"mask_at": PRESETS[mode]["mask_at"], "baseline": PRESETS[mode]["baseline"], **precision}
    place, _, baseline = mode.partition(", ")
    return {"mask_at": place, "baseline": baseline or "blur", **precision}


def mode_name(mode: str) -> str:
    """The one name of a mode: of the preset that scores masks so, else `mask_at` (with ", zero" behind it)."""
    scoring = scoring_of(mode)
    half = f", {HALF}" if scoring.pop("precision", None) else ""
    for name in PRESETS:
        if scoring_of(name) == scoring:
            return name + half
    return scoring["mask_at"] + (f", {scoring['baseline']}" if scoring["baseline"] != "blur" else "") + half


def describe(cam: GroupCAM | None, augment: SaliencyBlur, cost: float = math.nan) -> str:
    """What is done to how many images, and what it adds to training, in a line; a training step counts three forward passes.

    Args:
        cam: of the maps, after its first call; None where object masks stand in for maps.
        augment: of the images.
        cost: of a map, see `cost.cost_in_forwards`; NaN where it is not known.
    """
    p = augment.p
    share = "every image" if p == 1 else f"{p:.0%} of the images"
    if cam is None:
        return f"object masks of the batch (mask_from={augment.mask_from!r}), {share}: no map is made"
    if not cam.layer_shape:
        return f"{augment.mask_from!r} masks, {share}: no extra forward pass"
    what = f"{cam.layer}, {' x '.join(map(str, cam.layer_shape))}, G={cam.groups}, {share}"
    if math.isnan(cost):
        return f"{what}; what a map costs could not be counted"
    half, most = (f", in {cam.precision}", "less than") if cam.precision else ("", "about")
    return f"{what}: a map costs {cost:.1f} forward passes (counted{half}), so {most} +{p * cost / 3:.0%} of a step"
