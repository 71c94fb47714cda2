"""The arms of a study: what happens to training batches, as plain data. `treatment.Treatment` carries an arm out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from groupcam_aug.recipes.trial.variants import changed, read_variant

__all__ = ["ARMS", "RENAMED", "Arm", "read_arm"]


@dataclass(frozen=True)
class Arm:
    """One way to treat training batches; everything else (data, start, order, crops, epochs) is the same for all arms of a seed.

    Args:
        name: as in `ARMS`, with the changes to that row; see `read_arm`.
        about: one line.
        kind: "none" = no augmentation (continue training), "frozen" = no training, `source` is measured as it is ("self" = the
            starting network), "map" = pixels outside a mask are replaced,
            "erase" = RandomErasing with the area of the fast form's masks, "cutmix".
        map: what masks come from: "groupcam" (gradient-free), "gradcam", or "oracle" = the object's exact mask.
        mask: "saliency" = the image's own mask; the controls "other" (that of the next image in the batch; with fill="other" of
            the one after, so that mask and pixels are not of one image), "centre" (a disc in the middle with as many pixels as
            its own), "shifted" (its own, rolled by half an image), "inverse", "whole" (nothing is kept, no network pass).
        weights: "none" (gradient-free, as the paper trains) or "gradient" (importance weights).
        at: where group masks are applied for scoring: "input", "stage", "target"; see `GroupCAM`.
        baseline: what they uncover, "blur" or "zero"; see `GroupCAM`.
        groups: G.
        p: probability of an image (for CutMix: of a batch) to be augmented.
        fill: what replaces pixels: "blur", "mean", "noise", "other" (the next image's pixels).
        labels: "own", or "mixed" as CutMix does: with fill="other" the label of the image that lends pixels counts for their
            share.
        strength: how far they move toward the fill.
        threshold: "mean", a number in [0, 1] or a quantile such as "q0.6".
        source: network that the maps come from: "self", "ema" (moving average), "teacher" (the regime's, trained apart), "start"
            (a frozen copy of the starting weights), "early" (frozen when augmentation starts), "few" (fine-tuned on a little
            clean data).
        decay: of the moving average, per step, once it is warm; see `groupcam_aug.moving_average`.
        warmup: epochs before augmentation starts. None: the regime's.
        clean_last: share of the epochs, at the end, that is not augmented (at least one epoch, if above 0).
        p_ramp: share of the augmented steps over which p grows linearly from 0.
        inverse_share: share of the augmented images whose salient pixels are replaced instead.
        other_share: share of the augmented images that get the next image's mask.
        alpha: of CutMix's Beta(alpha, alpha).
        area: share of an image that is erased on average, in (0, 0.8]. None: as much as the fast form's masks would replace,
            measured anew in every epoch.

    Raises:
        ValueError: an option out of range, or options that contradict each other.
    """

    name: str
    about: str
    kind: Literal["none", "frozen", "map", "erase", "cutmix"] = "map"
    map: Literal["groupcam", "gradcam", "oracle"] = "groupcam"
    mask: Literal["saliency", "other", "centre", "shifted", "inverse", "whole"] = "saliency"
    weights: Literal["none", "gradient"] = "none"
    at: Literal["input", "stage", "target"] = "target"
    baseline: Literal["blur", "zero"] = "zero"
    groups: int = 16
    p: float = 0.5
    fill: Literal["blur", "mean", "noise", "other"] = "blur"
    labels: Literal["own", "mixed"] = "own"
    strength: float = 1.0
    threshold: float | str = "mean"
    source: Literal["self", "ema", "teacher", "start", "early", "few"] = "self"
    decay: float = 0.999
    warmup: int | None = None
    clean_last: float = 0.0
    p_ramp: float = 0.0
    inverse_share: float = 0.0
    other_share: float = 0.0
    alpha: float = 1.0
    area: float | None = None

    def __post_init__(self) -> None:
        for key in ("p", "strength", "clean_last", "p_ramp", "inverse_share", "other_share", "decay"):
            value = getattr(self, key)
            if not 0 <= value <= 1:
                raise ValueError(f"{key} must be in [0, 1], got {value:g}")
        if self.groups < 1 or self.alpha <= 0 or (self.warmup is not None and self.warmup < 0):
            raise ValueError(f"need groups >= 1, alpha > 0, warmup >= 0; got {self.groups}, {self.alpha:g}, {self.warmup}")
        if isinstance(self.threshold, str) and self.threshold != "mean":
            number = self.threshold.removeprefix("q")
            if number == self.threshold or not _is_share(number):
                raise ValueError(
                    f"threshold must be 'mean', a number in [0, 1] or a quantile such as 'q0.6', got {self.threshold!r}"
                )
        elif not isinstance(self.threshold, str) and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], got {self.threshold:g}")
        if self.area is not None and not 0 < self.area <= 0.8:
            raise ValueError(f"area must be in (0, 0.8], got {self.area:g}")
        if self.inverse_share + self.other_share > 1:
            raise ValueError(f"inverse_share + other_share must be at most 1, got {self.inverse_share + self.other_share:g}")
        if self.labels == "mixed" and (self.fill != "other" or self.inverse_share or self.other_share):
            raise ValueError("labels=mixed needs fill=other, and no inverse_share or other_share: whose pixels come in decides")
        if self.mask != "saliency" and (self.inverse_share or self.other_share):
            raise ValueError(f"mask={self.mask} leaves no place for inverse_share or other_share")

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options that mean something for this arm."""
        return _OPTIONS[self.kind]

    def settings(self) -> dict[str, Any]:
        """What decides the arm's training, and nothing else: arms with the same settings are the same arm."""
        keys = [key for key in self.options if not (self.mask == "whole" and key in _OF_MAPS)]
        if self.map != "groupcam":
            keys = [key for key in keys if key not in _OF_GROUPS]
        if self.kind == "frozen" and self.source == "self":
            keys = []
        if self.map == "oracle" or self.source != "ema":
            keys = [key for key in keys if key != "decay" and not (self.map == "oracle" and key == "source")]
        if self.labels == "own":
            keys = [key for key in keys if key != "labels"]
        return {"kind": self.kind} | {key: getattr(self, key) for key in keys}

    @property
    def cost(self) -> float:
        """Rough time of a training step, in steps without augmentation (3 forward passes); for estimates only."""
        if self.kind in ("none", "frozen"):
            return 1.0 if self.kind == "none" else 0.02
        if self.kind != "map" or self.mask == "whole" or self.map == "oracle":
            return 1.03
        if self.map == "gradcam" or self.at == "target":
            passes = 1.2 if self.baseline == "zero" or self.map == "gradcam" else 2.2
        else:
            passes = (self.groups + 2.0) if self.at == "input" else 2 + 0.2 * self.groups
        return 1.03 + self.p * passes / 3

    def twin(self, mask: Literal["other", "centre"]) -> Arm:
        """The control of an arm with own masks: the same with another image's mask, or with a disc as large as its own."""
        return _named(dataclasses.replace(self, mask=mask, inverse_share=0.0, other_share=0.0))


_SCHEDULE = ("p", "warmup", "clean_last", "p_ramp")
_OF_GROUPS = ("weights", "at", "baseline", "groups")
_OF_MAPS = ("map", *_OF_GROUPS, "threshold", "source", "decay", "inverse_share", "other_share")
_OPTIONS: dict[str, tuple[str, ...]] = {
    "none": (),
    "frozen": ("source",),
    "map": (*_OF_MAPS, "mask", "fill", "labels", "strength", *_SCHEDULE),
    "erase": (*_SCHEDULE, "area"),
    "cutmix": (*_SCHEDULE, "alpha"),
}

ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("none", "no augmentation: training goes on with the same data for as long", kind="none"),
        Arm("frozen", "the starting network as it is, if it is a pretrained one; or a source of maps (source=)", kind="frozen"),
        Arm("paper", "Group-CAM as in the paper: every image, masks on the input", p=1.0, at="input", baseline="blur"),
        Arm("balanced", "Group-CAM, half of the images, masks inside the last stage", at="stage", baseline="blur"),
        Arm("fast", "Group-CAM, half of the images, masks at the target layer against zeros"),
        Arm("paper-weights", "paper, with importance weights", weights="gradient", p=1.0, at="input", baseline="blur"),
        Arm("balanced-weights", "balanced, with importance weights", weights="gradient", at="stage", baseline="blur"),
        Arm("fast-weights", "fast, with importance weights", weights="gradient"),
        Arm("gradcam", "Grad-CAM masks, half of the images", map="gradcam"),
        Arm("fast-other", "fast, with another image's mask: area, blur and centre prior without the place", mask="other"),
        Arm(
            "fast-centre",
            "fast, with a centre disc as large as the image's own mask: what a centre prior is worth",
            mask="centre",
        ),
        Arm("fast-shifted", "fast, with the image's own mask rolled by half an image: away from the centre", mask="shifted"),
        Arm("whole", "half of the images blurred entirely, no network pass", mask="whole"),
        Arm("fast-inverse", "fast, with the inverted mask: salient pixels are blurred", mask="inverse"),
        Arm("masks", "object masks, exact ones, half of the images", map="oracle"),
        Arm("erase", "RandomErasing of half of the images, area as the masks of fast", kind="erase"),
        Arm("cutmix", "CutMix of half of the batches", kind="cutmix"),
    )
}

RENAMED = {
    "exact": "paper",
    "exact-weights": "paper-weights",
    "other": "fast-other",
    "centre": "fast-centre",
    "shifted": "fast-shifted",
    "inverse": "fast-inverse",
    "oracle": "masks",
}


def read_arm(text: str) -> Arm:
    """The arm that `text` names: a row of `ARMS`, perhaps with changes, ``fast,fill=other,source=teacher``.

    The name of the result is the same for every way of writing the same arm.

    Raises:
        ValueError: see `variants.read_variant` and `Arm`.
    """
    base, *changes = (part.strip() for part in text.split(","))
    if base in RENAMED:
        name = RENAMED[base]
        raise ValueError(f"arm {text!r}: {base!r} is now called {name!r}; give {','.join([name, *changes])}")
    arm = read_variant(text, ARMS, "arm", ARMS[base].options if base in ARMS else None)
    idle = [change for change in changes if change.partition("=")[0].strip() not in arm.settings()]
    if idle:
        raise ValueError(
            f"arm {text!r}: {', '.join(idle)} would change nothing (map={arm.map}, mask={arm.mask}, source={arm.source})"
        )
    return _named(arm)


def _named(arm: Arm) -> Arm:
    """`arm`, called after the row of `ARMS` from which it differs least."""
    settings = arm.settings()
    names = []
    for base in ARMS.values():
        if base.kind != arm.kind:
            continue
        keys = [key for key in settings if key in arm.options and getattr(arm, key) != getattr(base, key)]
        names.append((len(keys), base.name + changed(arm, base, keys)))
    name = min(names, key=lambda entry: entry[0])[1]  # the first of equals: the table's order
    base = ARMS[name.split(",")[0]]
    return dataclasses.replace(arm, name=name, about=base.about)


def _is_share(word: str) -> bool:
    try:
        return 0 <= float(word) <= 1
    except ValueError:
        return False
