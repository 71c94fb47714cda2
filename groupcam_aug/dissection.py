"""Names of a layer's units: network dissection (Bau et al. 2017, arXiv 1704.05796), and what named units say of a decision.

A unit (channel) is a detector of a concept where its strongest responses lie on that concept's pixels. With the neuron
importance weights of Grad-CAM that makes an explanation in words (Selvaraju et al. 2017, section 7).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from groupcam_aug.arguments import check_number
from groupcam_aug.map_ops import enlarge, percentile

__all__ = ["UnitName", "Words", "attainable", "in_words", "name_units", "overlaps", "thresholds_of"]

_CELLS = 2**24  # of enlarged activations held at a time: 64 MiB


class UnitName(NamedTuple):
    """A unit with a name, and how well the two overlap."""

    unit: int
    concept: str
    iou: float  # on the data that the name was chosen on
    held_out: float  # of the same unit and concept on other data


class Words(NamedTuple):
    """What named units say for a decision and against it: concepts with the evidence of their units, the largest first."""

    because: list[tuple[str, float]]
    against: list[tuple[str, float]]
    named: float  # share of all evidence, by size, that units with names bear: 0 to 1; NaN where there is none


def thresholds_of(activations: Tensor, share: float = 0.005) -> Tensor:
    """T_k: what a unit exceeds at this share of all positions of all images, (K,).

    Args:
        activations: (N, K, u, v), of the data to learn names from; see `GradCAM.activations`.
        share: above 0, at most 1. Default: .005, as in the paper.
    """
    check_number("share", share, 0, 1, above=True)
    return percentile(activations.transpose(0, 1).flatten(1), 100 * (1 - share))[:, 0]


def overlaps(activations: Tensor, thresholds: Tensor, concepts: Tensor) -> Tensor:
    """IoU of each unit's thresholded map with each concept's pixels, over all images together: (K, C) in [0, 1].

    Maps are enlarged bilinearly to the concepts' size and count where they are strictly above T_k (a unit that is silent but for
    a few positions has T_k = 0, and is not active everywhere). A concept and a unit that are nowhere have IoU 0.

    Args:
        activations: (N, K, u, v).
        thresholds: (K,), see `thresholds_of`.
        concepts: (N, C, H, W) bool, true on the pixels of a concept.

    Raises:
        ValueError: shapes that do not belong together.
    """
    if concepts.ndim != 4 or activations.ndim != 4 or len(concepts) != len(activations):
        raise ValueError(
            f"activations (N, K, u, v) and concepts (N, C, H, W) must be of the same images, got {tuple(activations.shape)} and "
            f"{tuple(concepts.shape)}"
        )
    size, count = concepts.shape[-2:], activations.shape[1]
    both = activations.new_zeros(count, concepts.shape[1], dtype=torch.float64)
    active, present = both.new_zeros(count), concepts.sum(dim=(0, 2, 3)).to(both)
    step = max(1, _CELLS // (count * size.numel()))
    units = max(1, _CELLS // size.numel())
    for maps, there in zip(activations.split(step), concepts.split(step), strict=True):
        flat = there.flatten(2).float()
        for first in range(0, count, units):
            rows = slice(first, first + units)
            on = (enlarge(maps[:, rows], size) > thresholds[rows, None, None]).flatten(2).float()
            both[rows] += torch.einsum("nkp,ncp->kc", on, flat)
            active[rows] += on.sum(dim=(0, 2))
    union = active[:, None] + present - both
    return (both / union.clamp(min=1)).float()


def attainable(concepts: Tensor, share: float = 0.005) -> Tensor:
    """The largest IoU that a unit active at this share of the positions can have with each concept, (C,).

    A concept on a tenth of the pixels, and a unit active on a two-hundredth, overlap by .05 at best.

    Args:
        concepts: (N, C, H, W) bool.
        share: as for `thresholds_of`.
    """
    covered = concepts.float().mean(dim=(0, 2, 3))
    return torch.minimum(covered, covered.new_tensor(share)) / torch.maximum(covered, covered.new_tensor(share))


def name_units(iou: Tensor, held_out: Tensor, concepts: Sequence[str], least: float = 0.04) -> list[UnitName]:
    """Each unit's best concept, of those units where it overlaps enough; the others stay without a name.

    Args:
        iou: (K, C), see `overlaps`.
        held_out: the same with the same thresholds on other images.
        concepts: names, C.
        least: IoU. Default: .04, as in the paper.
    """
    check_number("least", least, 0, 1)
    best, which = iou.max(dim=1)
    return [
        UnitName(unit, concepts[concept], value, float(held_out[unit, concept]))
        for unit, (value, concept) in enumerate(zip(best.tolist(), which.tolist(), strict=True))
        if value >= least and value > 0
    ]


def in_words(weights: Tensor, activations: Tensor, names: Mapping[int, str], most: int = 3) -> Words:
    """What the named units say of one image and class.

    A unit's evidence is w_k times the mean of A_k: its part of the sum of Grad-CAM's map before the ReLU. (The paper sorts by w_k
    alone, which in networks of global pooling and a linear layer is the same for every image.) Evidence of units of the same
    name adds up.

    Args:
        weights: (K,), see `GradCAM.weights`.
        activations: (K, u, v), see `GradCAM.activations`.
        names: unit -> concept.
        most: concepts on each side. Default: 3.
    """
    evidence = (weights * activations.mean(dim=(1, 2))).double().tolist()
    total = sum(map(abs, evidence))
    sums: dict[str, float] = {}
    for unit, name in names.items():
        sums[name] = sums.get(name, 0.0) + evidence[unit]
    ordered = sorted(sums.items(), key=lambda item: -abs(item[1]))
    named = sum(abs(evidence[unit]) for unit in names) / total if total > 0 else float("nan")
    return Words([item for item in ordered if item[1] > 0][:most], [item for item in ordered if item[1] < 0][:most], named)
