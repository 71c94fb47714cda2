"""Insertion, deletion (Petsiuk et al. 2018; Zhang et al. 2021, section 4) and average drop: does the map matter to the class?

All points of all curves of a batch are one list of jobs, run in chunks: no point waits for the one before it, memory does not
grow with the number of steps, and the unchanged image and the substrate are each scored once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from groupcam_aug.scoring import Output, Rescore, Substrate, check_maps, make_substrate
from groupcam_aug.targets import Activation, Targets

__all__ = ["Curves", "Drop", "average_drop", "deletion_auc", "insertion_auc", "insertion_deletion"]

Spacing = Literal["uniform", "quadratic"]
Direction = Literal["insertion", "deletion"]
AUTHORS_STEPS = 112  # of 448 pixels at 224 x 224


class Curves(NamedTuple):
    """What `insertion_deletion` gives; float32 (float64 for float64 images), on the images' device."""

    fractions: Tensor  # (n + 1,) float64 on the CPU: true share of the pixels swapped at each point, 0 to 1
    insertion: Tensor  # (N, n + 1) probability of the class, most salient pixels shown first; NaN where undefined
    deletion: Tensor  # (N, n + 1) the same, most salient pixels removed first
    insertion_auc: Tensor  # (N,) area under the curve, 0 to 1, higher is better; NaN where undefined
    deletion_auc: Tensor  # (N,) lower is better
    undefined: Tensor  # (N,) bool: the map is constant or not finite and orders nothing, or the network's output is not finite

    @property
    def overall(self) -> Tensor:
        """(N,) insertion less deletion, -1 to 1."""
        return self.insertion_auc - self.deletion_auc


class Drop(NamedTuple):
    """What `average_drop` gives, each of shape (N,)."""

    drop: Tensor  # relu(p - p') / p, 0 to 1, lower is better; 0 where undefined
    increase: Tensor  # bool: p' > p
    activation: Tensor  # mean of the map: a map of ones has no drop, so read the two together
    undefined: Tensor  # bool: no map (zeros), or not finite


def insertion_deletion(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    targets: Targets = None,
    *,
    steps: int = 28,
    substrate: Substrate = "blur",
    spacing: Spacing = "uniform",
    author_compatible: bool = False,
    activation: Activation = "softmax",
    chunk: int | None = None,
    output: Output = None,
    preprocess: Callable[[Tensor], Tensor] | None = None,
) -> Curves:
    """Both curves of each image; points they share are scored once (2 `steps` forward passes an image in all).

    Insertion starts from the substrate and shows the most salient pixels first, deletion starts from the image and moves the
    most salient pixels to the substrate first. Score: p of the class. Area: trapezoids over the true fractions, endpoints
    included. Ties are taken in raster order (stable descending sort). Results of other steps, substrates and spacings do not
    compare: deletion at 112 / 28 / 14 / 7 steps gave .029 / .033 / .038 / .051 on the same images.

    On a CPU float32 batches run in channels_last, which doubles the speed of networks such as SqueezeNet and moves
    probabilities by rounding only; a network whose `view` calls cannot take that layout gets the plain one.

    Args:
        model: any classifier; compiled, DDP and DataParallel wrappers are looked through. Given back as found.
        images: (N, C, H, W), floating point, as the network takes them.
        maps: (N, H, W), any range: only the order of the values counts. A constant or non-finite map is undefined, not 0.
        targets: as for `GroupCAM`; None = each image's top-1 class.
        steps: n, intervals of the curve. Default: 28.
        substrate: what stands where nothing is shown: "blur" (`blur.blur`), "zeros" (of the images as given: mean grey if
            they are normalised), "mean" (each image's own mean colour), or a callable `images -> images`. Default: "blur".
        spacing: "uniform", or "quadratic": fractions (j / n)^2, which suit deletion (14 points err less than a fifth as much as
            uniform ones) and not insertion. Default: "uniform".
        author_compatible: the authors' code: 448 of 224 x 224 pixels a step (1/112 of the pixels at other sizes), insertion
            from blur(x) and deletion to zeros, area on a uniform axis, ties from the last pixel back. Leave `steps`,
            `substrate` and `spacing` at their defaults.
        activation: "softmax" or "sigmoid", what turns logits into probabilities.
        chunk: most images per forward pass; see `GroupCAM` for the default.
        output: where the logits are in what the network returns (see `targets.select_output`).
        preprocess: applied to images before the network sees them; substrates are made before it.

    Raises:
        TypeError: images or maps that are not floating point; a ScriptModule.
        ValueError: an argument out of range, or shapes that do not fit.
    """
    run = Rescore(model, images, targets, activation, chunk, output, preprocess)
    plan = _Plan(run.images, steps, substrate, spacing, author_compatible)
    insertion, deletion = _curves(run, plan, maps, ("insertion", "deletion"))
    areas = plan.area(insertion), plan.area(deletion)
    return Curves(plan.fractions, insertion, deletion, *areas, areas[0].isnan() | areas[1].isnan())


def insertion_auc(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    targets: Targets = None,
    *,
    steps: int = 28,
    substrate: Substrate = "blur",
    spacing: Spacing = "uniform",
    author_compatible: bool = False,
    **options: Any,
) -> Tensor:
    """Area under the insertion curve of each image; arguments and further `options` are those of `insertion_deletion`.

    Returns:
        (N,) in [0, 1], higher is better; NaN for a map that is constant or not finite.
    """
    shape: dict[str, Any] = {"steps": steps, "substrate": substrate, "spacing": spacing, "author_compatible": author_compatible}
    return one_curve("insertion", model, images, maps, targets, **shape, **options)[1]


def deletion_auc(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    targets: Targets = None,
    *,
    steps: int = 28,
    substrate: Substrate = "blur",
    spacing: Spacing = "uniform",
    author_compatible: bool = False,
    **options: Any,
) -> Tensor:
    """Area under the deletion curve of each image; arguments and further `options` are those of `insertion_deletion`.

    The paper's text removes 1 % at a time (`steps=100`, substrate "blur"); its code is `author_compatible=True`.

    Returns:
        (N,) in [0, 1], lower is better; NaN for a map that is constant or not finite.
    """
    shape: dict[str, Any] = {"steps": steps, "substrate": substrate, "spacing": spacing, "author_compatible": author_compatible}
    return one_curve("deletion", model, images, maps, targets, **shape, **options)[1]


def one_curve(
    way: Direction,
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    targets: Targets = None,
    *,
    steps: int = 28,
    substrate: Substrate = "blur",
    spacing: Spacing = "uniform",
    author_compatible: bool = False,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """One of the two curves, (N, n + 1), and its area, (N,); `way` is "insertion" or "deletion", the rest as there."""
    run = Rescore(model, images, targets, **options)
    plan = _Plan(run.images, steps, substrate, spacing, author_compatible)
    curve = _curves(run, plan, maps, [way])[0]
    return curve, plan.area(curve)


def average_drop(
    model: nn.Module, images: Tensor, maps: Tensor, targets: Targets = None, *, substrate: Substrate = "zeros", **options: Any
) -> Drop:
    """Drop and increase of confidence when only what the map shows is left: x' = S x + (1 - S) substrate; two passes an image.

    Args:
        model: as for `insertion_deletion`.
        images: (N, C, H, W), as there.
        maps: (N, H, W) in [0, 1].
        targets: as there.
        substrate: what stands where nothing is shown. Default: "zeros".
        options: `activation`, `chunk`, `output`, `preprocess` of `insertion_deletion`.

    Returns:
        `Drop`, each of shape (N,).

    Raises:
        ValueError: as there, and for maps outside [0, 1] (looked for on the CPU only).
    """
    run = Rescore(model, images, targets, **options)
    maps = check_maps(maps, run.images)
    if maps.device.type == "cpu" and bool(((maps < 0) | (maps > 1)).any()):
        raise ValueError(f"maps must lie in [0, 1], got {maps.min().item():.4g} to {maps.max().item():.4g}")
    finite = maps.isfinite().all(dim=(1, 2))
    maps = torch.where(finite[:, None, None], maps, torch.zeros_like(maps)).to(run.dtype)
    before = shown = maps.new_zeros(0)
    if len(maps):
        with run.borrowed():
            kept, base = run.images.to(run.dtype), make_substrate(run.images, substrate).to(run.dtype)
            mixed = torch.lerp(base, kept, maps[:, None]).to(run.images.dtype)
            before, shown = run.clean, run.scores(mixed)
    undefined = ~(finite & (maps.amax(dim=(1, 2)) > 0) & before.isfinite() & shown.isfinite())
    drop = (before - shown).relu() / before.clamp(min=torch.finfo(run.dtype).tiny)
    return Drop(torch.where(undefined, 0.0, drop), (shown > before) & ~undefined, maps.mean(dim=(1, 2)), undefined)


class _Plan:
    """How many pixels are swapped at each point, in which order, and against what."""

    def __init__(self, images: Tensor, steps: int, substrate: Substrate, spacing: Spacing, author_compatible: bool) -> None:
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps must be a positive integer, got {steps!r}")
        if spacing not in ("uniform", "quadratic"):
            raise ValueError(f"spacing must be 'uniform' or 'quadratic', got {spacing!r}")
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


def _curves(run: Rescore, plan: _Plan, maps: Tensor, directions: Sequence[Direction]) -> list[Tensor]:
    """(N, n + 1) for each direction, NaN where the map orders nothing or a probability is not finite."""
    maps = check_maps(maps, run.images)
    if not len(maps):
        return [maps.new_zeros(0, plan.steps + 1, dtype=run.dtype) for _ in directions]
    with run.borrowed():
        distinct = list(dict.fromkeys(plan.substrates[way] for way in directions))
        bases = [make_substrate(run.images, substrate) for substrate in distinct]
        which = [distinct.index(plan.substrates[way]) for way in directions]
        hidden = [run.scores(base) for base in bases]
        inner = _inner_points(run, plan, plan.ranks(maps), torch.cat(bases), which, [way == "deletion" for way in directions])
    finite, spread = maps.isfinite().all(dim=(1, 2)), maps.amax(dim=(1, 2)) > maps.amin(dim=(1, 2))
    curves = []
    for i, way in enumerate(directions):
        first, last = (run.clean, hidden[which[i]]) if way == "deletion" else (hidden[which[i]], run.clean)
        curve = torch.cat([first[:, None], inner[:, i], last[:, None]], dim=1)
        usable = finite & spread & curve.isfinite().all(dim=1)
        curves.append(torch.where(usable[:, None], curve, torch.full_like(curve, float("nan"))))
    return curves


def _inner_points(run: Rescore, plan: _Plan, ranks: Tensor, bases: Tensor, which: list[int], reverse: list[bool]) -> Tensor:
    """(N, directions, n - 1) probabilities of all points but the first and the last; `bases`: one substrate after another."""
    count, ways, points, device = len(ranks), len(which), plan.steps - 1, ranks.device
    # One job per image, direction and point, known beforehand on the CPU: the device is never waited for.
    job = torch.arange(count * ways * points)
    image, way, point = job // max(1, ways * points), job // max(1, points) % ways, job % max(1, points) + 1
    pixels = plan.counts[point].to(device, non_blocking=True)
    base = (torch.tensor(which)[way] * count + image).to(device, non_blocking=True)
    removed, image = torch.tensor(reverse)[way].to(device, non_blocking=True), image.to(device, non_blocking=True)
    scores = [run.clean[:0]]
    for part in run.parts(len(job)):
        at = image[part]
        shown = (ranks[at] < pixels[part, None, None]) ^ removed[part, None, None]
        # lerp is exact at weights 0 and 1, and on a CPU twice as fast as where() with a mask shared by the channels.
        mixed = torch.lerp(bases[base[part]], run.images[at], shown[:, None].to(run.images.dtype))
        scores.append(run.scores_of(at, mixed))
    return torch.cat(scores).view(count, ways, points)
