"""Insertion and deletion of one image in a picture: the image as it was altered, above the curves (Group-CAM paper, figure 4)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from groupcam_aug.draw import to_uint8
from groupcam_aug.metrics import insertion_deletion
from groupcam_aug.metrics.pixel_swaps import SwapPlan
from groupcam_aug.recipes.evaluation.map_method import Setup
from groupcam_aug.scoring import make_substrate

__all__ = ["FRAMES", "STEPS", "ImageCurves", "curve_picture", "curves_of"]

STEPS = 28  # intervals of a curve, as in `groupcam-aug evaluate`
FRAMES = (2, 7, 14, 21)  # points of the curve whose images are shown: 7, 25, 50 and 75 % of the pixels
Way = Literal["insertion", "deletion"]
_WAYS: tuple[tuple[Way, str, str], ...] = (("insertion", "shown", "#2f7fc1"), ("deletion", "removed", "#d9791f"))


@dataclass(frozen=True)
class ImageCurves:
    """Both curves of one map, n = `STEPS` intervals, and the images at `FRAMES`."""

    fractions: list[float]  # (n + 1,) share of the pixels swapped
    curves: dict[Way, list[float]]  # (n + 1,) each, probability of the class
    areas: dict[Way, float]
    frames: dict[Way, Tensor]  # (len(FRAMES), C, H, W), as the network took them
    against: bool = False  # the map says what speaks against the class: then low insertion and high deletion are good

    @property
    def overall(self) -> float:
        """Area of insertion less area of deletion."""
        return self.areas["insertion"] - self.areas["deletion"]


def curves_of(setup: Setup, image: Tensor, saliency: Tensor, label: int, *, against: bool = False) -> ImageCurves | None:
    """Score one map, against the blurred image.

    Args:
        setup: a classifier, and what makes probabilities of its logits.
        image: (1, 3, H, W), as the network takes it.
        saliency: (H, W); only the order of the values counts.
        label: the class.
        against: the map is of what speaks against the class. Default: False.

    Returns:
        None for a map that is constant and orders nothing.
    """
    label_of_it = torch.tensor([label], device=image.device)
    found = insertion_deletion(setup.network, image, saliency[None], label_of_it, steps=STEPS, activation=setup.activation)
    if bool(found.undefined[0]):
        return None
    plan, base = SwapPlan(image, STEPS, "blur", "uniform", False), make_substrate(image, "blur")
    first = plan.ranks(saliency[None]) < plan.counts[list(FRAMES)].to(image.device)[:, None, None]
    frames: dict[Way, Tensor] = {
        "insertion": torch.where(first[:, None], image, base),
        "deletion": torch.where(first[:, None], base, image),
    }
    return ImageCurves(
        found.fractions.tolist(),
        {"insertion": found.insertion[0].tolist(), "deletion": found.deletion[0].tolist()},
        {"insertion": float(found.insertion_auc[0]), "deletion": float(found.deletion_auc[0])},
        frames,
        against,
    )


def curve_picture(
    rows: Sequence[tuple[str, ImageCurves | None]], mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> bytes:
    """A PNG with a block for each map: insertion on the left, deletion on the right, frames above curves.

    Args:
        rows: a title for each map (method, class, probability), and its curves; None where the map orders nothing.
        mean: of the normalisation of the frames.
        std: likewise.
    """
    from matplotlib.figure import Figure

    heights = [3.4 if curves else 0.6 for _, curves in rows]
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    blocks = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    for block, (title, curves) in zip(blocks, rows, strict=True):
        if curves is None:
            block.suptitle(f"{_plain(title)}: no map, so nothing orders the pixels and there is no curve", x=0.01, ha="left")
            continue
        block.suptitle(f"{_plain(title)}: over-all {curves.overall:.3f}", x=0.01, ha="left", fontsize=12)
        for half, way in zip(block.subfigures(1, 2), _WAYS, strict=True):
            _half(half, curves, *way, to_uint8(curves.frames[way[0]], mean, std))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _half(figure: Any, curves: ImageCurves, way: Way, what: str, colour: str, frames: Tensor) -> None:
    """One curve below its frames."""
    better = "higher" if (way == "insertion") != curves.against else "lower"
    top = min(1.0, 1.1 * max(map(max, curves.curves.values())))
    grid = figure.add_gridspec(2, len(FRAMES), height_ratios=(1, 1.2))
    values, shares = curves.curves[way], curves.fractions
    for column, (point, frame) in enumerate(zip(FRAMES, frames, strict=True)):
        axis = figure.add_subplot(grid[0, column])
        axis.imshow(frame.permute(1, 2, 0).numpy())
        axis.set_title(f"{shares[point]:.0%}: {values[point]:.2f}", fontsize=8.5, pad=3)
        axis.set_axis_off()
    axis = figure.add_subplot(grid[1, :])
    axis.plot(shares, values, color=colour, linewidth=1.8)
    axis.fill_between(shares, values, color=colour, alpha=0.16, linewidth=0)
    axis.plot([shares[point] for point in FRAMES], [values[point] for point in FRAMES], "o", color=colour, markersize=5)
    axis.set_title(f"{way}: area {curves.areas[way]:.3f} ({better} is better)", fontsize=9.5, loc="left", pad=4)
    axis.set_xlabel(f"share of the pixels {what}, most salient first", fontsize=8.5)
    axis.set_ylabel("probability", fontsize=8.5)
    axis.tick_params(labelsize=8)
    axis.set(xlim=(0, 1), ylim=(0, max(top, 1e-3)))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.2)


def _plain(title: str) -> str:
    """Without matplotlib's marks for formulas: names of classes may hold a $."""
    return title.replace("$", r"\$")
