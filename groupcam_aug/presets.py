"""The three presets: which images are mapped, where the group masks are applied while groups are scored, and the cost."""

from __future__ import annotations

from typing import Any

from groupcam_aug.saliency import GroupCAM

__all__ = ["PRESETS", "announced_cost"]

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"p": 1.0, "mask_at": "input", "baseline": "blur"},
    "balanced": {"p": 0.5, "mask_at": "stage", "baseline": "blur"},
    "fast": {"p": 0.5, "mask_at": "target", "baseline": "zero"},
}


def announced_cost(cam: GroupCAM, p: float) -> str:
    """What mapping a share `p` of the images adds to training, in words; a training step counts three forward passes.

    Args:
        cam: after its first call.
        p: 0 to 1.
    """
    on_input = cam.mask_at == "input"
    passes = (2 if cam.baseline == "blur" else 1) * p + (cam.groups * p if on_input else 0)
    short = "" if on_input else f" and {cam.groups} short ones behind {cam.place}"
    return f"+{passes:g} forwards per image{short}, about +{passes / 3:.0%} of a step" + (
        "; preset fast: about +17%" if on_input else ""
    )
