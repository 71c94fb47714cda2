"""The presets: what share of the images is augmented, and where and against what the masks of their maps are scored."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

__all__ = ["PRESETS", "Preset", "mode_name", "scoring_of"]


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
    """How a mode scores masks, as options of `GroupCAM`: `mask_at` and `baseline`.

    Args:
        mode: a preset's name; or a `mask_at` ("input", "stage", "target", a layer's name), with ", zero" behind it for
            `baseline="zero"`.
    """
    if mode in PRESETS:
        return {"mask_at": PRESETS[mode]["mask_at"], "baseline": PRESETS[mode]["baseline"]}
    place, _, baseline = mode.partition(", ")
    return {"mask_at": place, "baseline": baseline or "blur"}


def mode_name(mode: str) -> str:
    """The one name of a mode: of the preset that scores masks so, else `mask_at` (with ", zero" behind it)."""
    scoring = scoring_of(mode)
    for name in PRESETS:
        if scoring_of(name) == scoring:
            return name
    return scoring["mask_at"] + (f", {scoring['baseline']}" if scoring["baseline"] != "blur" else "")
