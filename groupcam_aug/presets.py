"""The three presets: which images are mapped, where the group masks are applied while groups are scored, and the cost."""

from __future__ import annotations

from typing import Any

from groupcam_aug.augment import SaliencyBlur
from groupcam_aug.saliency import GroupCAM

__all__ = ["PRESETS", "describe"]

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"p": 1.0, "mask_at": "input", "baseline": "blur"},
    "balanced": {"p": 0.5, "mask_at": "stage", "baseline": "blur"},
    "fast": {"p": 0.5, "mask_at": "target", "baseline": "zero"},
}


def describe(cam: GroupCAM, augment: SaliencyBlur) -> str:
    """What is done to how many images, and what it adds to training, in a line; a training step counts three forward passes.

    Args:
        cam: of the maps, after its first call.
        augment: of the images.
    """
    p = augment.p
    share = "every image" if p == 1 else f"{p:.0%} of the images"
    if not cam.layer_shape:
        return f"{augment.mask_from!r} masks, {share}: no extra forward pass"
    shape, on_input = " x ".join(map(str, cam.layer_shape)), cam.mask_at == "input"
    passes = (2 if cam.baseline == "blur" else 1) * p + (cam.groups * p if on_input else 0)
    behind = "" if on_input else f" and {cam.groups} short ones behind {cam.place}"
    cost = f"+{passes:g} forwards per image{behind}, about +{passes / 3:.0%} of a step"
    return f"{cam.layer}, {shape}, G={cam.groups}, {share}: {cost}" + ("; preset fast: about +17%" if on_input else "")
