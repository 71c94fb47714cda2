"""Curves of the class's probability while pixels are swapped in the order of a map.

All points of all curves of a batch are one list of jobs, run in chunks: no point waits for the one before it, memory does not
grow with the number of steps, and the unchanged image and the substrate are each scored once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from groupcam_aug.arguments import check_choice, check_flag, check_whole
from groupcam_aug.scoring import Scorer, Substrate, check_maps, make_substrate

__all__ = ["AUTHORS_STEPS", "Direction", "Spacing", "SwapPlan", "swap_curves"]

Spacing = Literal["uniform", "quadratic"]
Direction = Literal["insertion", "deletion"]
AUTHORS_STEPS = 112  # of 448 pixels at 224 x 224


class SwapPlan:
    """How many pixels are swapped at each point, in which order, and against what."""

    def __init__(self, images: Tensor, steps: int, substrate: Substrate, spacing: Spacing, author_compatible: bool) -> None:
        check_whole("steps", steps, 1)
        check_choice("spacing", spacing, ("uniform", "quadratic"))
        check_flag("author_compatible", author_compatible)
        if author_compatible and (steps != 28 or substrate != "blur" or spacing != "uniform"):
            raise ValueError(
                "author_compatible=True fixes the steps, both substrates and the spacing; leave steps, substrate and spacing out"
            )
        self.authors, self.steps = author_compatible, AUTHORS_STEPS if author_compatible else steps
        self.substrates: dict[Direction, Substrate] = {
            "insertion": substrate,
            "deletion": "zeros" if author_compatible else substrate,
        }
        shares, pixels = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64), images.shape[2] * images.shape[3]
        self.counts = ((shares**2 if spacing == "quadratic" else shares) * pixels).round().int()
        self.fractions = self.counts.double() / pixels

    def ranks(self, maps: Tensor) -> Tensor:
        """(N, H, W) int32: 0 for the pixel that is swapped first."""
        flat = maps.flatten(1)
        if self.authors:
            order = flat.argsort(dim=1, stable=True).flip(1)
        else:
            order = flat.argsort(dim=1, descending=True, stable=True)
        places = torch.arange(flat.shape[1], dtype=torch.int32, device=maps.device).expand_as(order)
        return torch.empty_like(places).scatter_(1, order, places).view(maps.shape)

    def area(self, curves: Tensor) -> Tensor:
        """(N, n + 1) curves -> (N,) areas."""
        if self.authors:
            return (curves.sum(dim=1) - (curves[:, 0] + curves[:, -1]) / 2) / self.steps
        return torch.trapezoid(curves, self.fractions.to(device=curves.device, dtype=curves.dtype), dim=1)


def swap_curves(scorer: Scorer, plan: SwapPlan, maps: Tensor, directions: Sequence[Direction]) -> list[Tensor]:
    """(N, n + 1) for each direction, NaN where the map orders nothing or a probability is not finite."""
    maps = check_maps(maps, scorer.images)
    if not len(maps):
        return [maps.new_zeros(0, plan.steps + 1, dtype=scorer.dtype) for _ in directions]
    with scorer.borrowed():
        distinct = list(dict.fromkeys(plan.substrates[way] for way in directions))
        bases = [make_substrate(scorer.images, substrate) for substrate in distinct]
        which = [distinct.index(plan.substrates[way]) for way in directions]
        hidden = [scorer.scores(base) for base in bases]
        inner = _inner_points(scorer, plan, plan.ranks(maps), torch.cat(bases), which, [way == "deletion" for way in directions])
    finite, spread = maps.isfinite().all(dim=(1, 2)), maps.amax(dim=(1, 2)) > maps.amin(dim=(1, 2))
    curves = []
    for i, way in enumerate(directions):
        first, last = (scorer.clean, hidden[which[i]]) if way == "deletion" else (hidden[which[i]], scorer.clean)
        curve = torch.cat([first[:, None], inner[:, i], last[:, None]], dim=1)
        usable = finite & spread & curve.isfinite().all(dim=1)
        curves.append(torch.where(usable[:, None], curve, torch.full_like(curve, float("nan"))))
    return curves


def _inner_points(scorer: Scorer, plan: SwapPlan, ranks: Tensor, bases: Tensor, which: list[int], reverse: list[bool]) -> Tensor:
    """(N, directions, n - 1) probabilities of all points but the first and the last; `bases`: one substrate after another."""
    count, ways, points, device = len(ranks), len(which), plan.steps - 1, ranks.device
    # One job per image, direction and point, known beforehand on the CPU: the device is never waited for.
    job = torch.arange(count * ways * points)
    image, way, point = job // max(1, ways * points), job // max(1, points) % ways, job % max(1, points) + 1
    pixels = plan.counts[point].to(device, non_blocking=True)
    base = (torch.tensor(which)[way] * count + image).to(device, non_blocking=True)
    removed, image = torch.tensor(reverse)[way].to(device, non_blocking=True), image.to(device, non_blocking=True)
    scores = [scorer.clean[:0]]
    for part in scorer.parts(len(job)):
        at = image[part]
        shown = (ranks[at] < pixels[part, None, None]) ^ removed[part, None, None]
        # lerp is exact at weights 0 and 1, and on a CPU twice as fast as where() with a mask shared by the channels.
        mixed = torch.lerp(bases[base[part]], scorer.images[at], shown[:, None].to(scorer.images.dtype))
        scores.append(scorer.scores_of(at, mixed))
    return torch.cat(scores).view(count, ways, points)
