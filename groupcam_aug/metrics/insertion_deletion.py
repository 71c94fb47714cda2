"""Insertion and deletion (Petsiuk et al. 2018; Zhang et al. 2021, section 4): does the map matter to the class?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from groupcam_aug.arguments import check_choice, check_flag, check_whole
from groupcam_aug.extra import Extras
from groupcam_aug.metrics.pixel_swaps import AUTHORS_STEPS, Direction, Spacing, SwapPlan, swap_curves
from groupcam_aug.metrics.summed_metric import SummedMetric, mean, total
from groupcam_aug.scoring import Output, Scorer, Substrate
from groupcam_aug.targets import Activation, Targets

__all__ = ["Curves", "DeletionAUC", "InsertionAUC", "InsertionDeletion", "deletion_auc", "insertion_auc", "insertion_deletion"]

_BOTH: tuple[Direction, Direction] = ("insertion", "deletion")


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
    extra: Extras = None,
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
        extra: what the network takes beside images, one row per image; see `GroupCAM`.

    Raises:
        TypeError: images or maps that are not floating point; a ScriptModule.
        ValueError: an argument out of range, or shapes that do not fit.
    """
    shape: dict[str, Any] = {"steps": steps, "substrate": substrate, "spacing": spacing, "author_compatible": author_compatible}
    network: dict[str, Any] = {"activation": activation, "chunk": chunk, "output": output, "preprocess": preprocess}
    network["extra"] = extra
    fractions, (insertion, deletion) = _curves_and_areas(_BOTH, model, images, maps, targets, **shape, **network)
    undefined = insertion[1].isnan() | deletion[1].isnan()
    return Curves(fractions, insertion[0], deletion[0], insertion[1], deletion[1], undefined)


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
    return _curves_and_areas(["insertion"], model, images, maps, targets, **shape, **options)[1][0][1]


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
    return _curves_and_areas(["deletion"], model, images, maps, targets, **shape, **options)[1][0][1]


class _CurveMetric(SummedMetric):
    """The common part of the curve metrics: areas and mean curves over the images whose maps are defined."""

    ways: tuple[Direction, ...]
    prefix = ""

    def __init__(self, steps: int = 28, *, author_compatible: bool = False, **options: Any) -> None:
        chosen = {name: options.pop(name) for name in _CURVE_OPTIONS if name in options}
        super().__init__(**options)
        check_whole("steps", steps, 1)
        check_flag("author_compatible", author_compatible)
        check_choice("activation", chosen.get("activation", "softmax"), ("softmax", "sigmoid"))
        check_choice("spacing", chosen.get("spacing", "uniform"), ("uniform", "quadratic"))
        check_choice("substrate", chosen.get("substrate", "blur"), ("blur", "zeros", "mean"), or_callable=True)
        check_whole("chunk", chosen.get("chunk"), 1, optional=True)
        self.options = {"steps": steps, "author_compatible": author_compatible, **chosen}
        self.steps = AUTHORS_STEPS if author_compatible else steps
        self._add_sums(f"{self._name}_count", f"{self._name}_undefined")
        for way in self.ways:
            self._add_sums(f"{self.prefix}{way}_area")
            self._add_sums(f"{self.prefix}{way}_curve", shape=(self.steps + 1,))

    @property
    def _name(self) -> str:
        return self.prefix.strip("_") or self.ways[0]

    def update(self, model: nn.Module, images: Tensor, maps: Tensor, targets: Targets = None, extra: Extras = None) -> None:
        """Score a batch.

        Args:
            model: any classifier; borrowed for this call, given back as found, not kept.
            images: (N, C, H, W) as the network takes them.
            maps: (N, H, W).
            targets: as for `GroupCAM`; None = each image's top-1 class.
            extra: what the network takes beside images, one row per image; see `GroupCAM`.
        """
        _, scored = _curves_and_areas(self.ways, model, images, maps, targets, extra=extra, **self.options)
        undefined = torch.stack([area.isnan() for _, area in scored]).any(dim=0)
        self._add(**{f"{self._name}_count": (~undefined).sum(), f"{self._name}_undefined": undefined.sum()})
        for way, (curve, area) in zip(self.ways, scored, strict=True):
            curve = torch.where(undefined[:, None], torch.zeros_like(curve), curve)
            area = torch.where(undefined, torch.zeros_like(area), area)
            self._add(**{f"{self.prefix}{way}_area": total(area), f"{self.prefix}{way}_curve": total(curve, dim=0)})

    def _area(self, way: str) -> Tensor:
        return mean(getattr(self, f"{self.prefix}{way}_area"), getattr(self, f"{self._name}_count"))

    def curves(self) -> dict[str, Tensor]:
        """Mean curves, (n + 1,) each, and "fractions", the nominal share of pixels swapped. A collective: every rank calls it."""
        shares = torch.linspace(0, 1, self.steps + 1)
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync):
            count = getattr(self, f"{self._name}_count")
            shares = (shares**2 if self.options.get("spacing") == "quadratic" else shares).to(count.device)
            return {"fractions": shares} | {way: mean(getattr(self, f"{self.prefix}{way}_curve"), count) for way in self.ways}

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Figure and axes of the mean curves, or of values over time if `val` is given; needs matplotlib."""
        if val is not None:
            return self._plot(val, ax)
        try:
            from matplotlib import pyplot
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("plot() needs matplotlib: pip install 'groupcam-aug[plot]'") from error
        figure, ax = (ax.get_figure(), ax) if ax is not None else pyplot.subplots()
        curves = {name: values.cpu().numpy() for name, values in self.curves().items()}
        for way in self.ways:
            (line,) = ax.plot(curves["fractions"], curves[way], label=f"{way} {float(self._area(way)):.3f}")
            ax.fill_between(curves["fractions"], curves[way], alpha=0.2, color=line.get_color())
        ax.set(xlabel="share of pixels swapped", ylabel="probability of the class", xlim=(0, 1), ylim=(0, 1))
        ax.legend()
        return figure, ax


class InsertionAUC(_CurveMetric):
    """Mean area under the insertion curve, see `insertion_deletion`: 0 to 1, higher is better, 0 if nothing was scored.

    Undefined maps (constant, not finite) are left out of the mean and counted in the state `insertion_undefined`.

    Args:
        steps: intervals of the curve. Default: 28.
        author_compatible: the authors' protocol, 112 steps. Default: False.
        options: `substrate`, `spacing`, `activation`, `chunk`, `output`, `preprocess` as there; others go to `Metric`.

    Example:
        >>> import torch
        >>> from groupcam_aug.metrics import InsertionAUC
        >>> first_pixel = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2, bias=False))
        >>> _ = first_pixel[1].weight.data.copy_(torch.tensor([[9.0, 0, 0, 0], [0, 0, 0, 0]]))
        >>> metric = InsertionAUC(steps=4, substrate="zeros")
        >>> metric.update(first_pixel, torch.ones(1, 1, 2, 2), torch.tensor([[[4.0, 3], [2, 1]]]), torch.tensor([0]))
        >>> metric.compute()
        tensor(0.9374)
    """

    ways = ("insertion",)
    higher_is_better = True

    def compute(self) -> Tensor:
        """Scalar float32."""
        return self._area("insertion")


class DeletionAUC(_CurveMetric):
    """Mean area under the deletion curve, see `insertion_deletion`: 0 to 1, lower is better, 0 if nothing was scored.

    Arguments and undefined maps (`deletion_undefined`) as for `InsertionAUC`.

    Example:
        >>> import torch
        >>> from groupcam_aug.metrics import DeletionAUC
        >>> first_pixel = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2, bias=False))
        >>> _ = first_pixel[1].weight.data.copy_(torch.tensor([[9.0, 0, 0, 0], [0, 0, 0, 0]]))
        >>> metric = DeletionAUC(steps=4, substrate="zeros")
        >>> metric.update(first_pixel, torch.ones(1, 1, 2, 2), torch.tensor([[[4.0, 3], [2, 1]]]), torch.tensor([0]))
        >>> metric.compute()
        tensor(0.5625)
    """

    ways = ("deletion",)
    higher_is_better = False

    def compute(self) -> Tensor:
        """Scalar float32."""
        return self._area("deletion")


class InsertionDeletion(_CurveMetric):
    """Both areas and their difference, {"insertion", "deletion", "overall"}, in one pass over the points they share.

    Arguments as for `InsertionAUC`; undefined maps are counted in `overall_undefined`. Insertion and overall (-1 to 1): higher is
    better; deletion: lower is better, so that the metric as a whole has no direction.

    Example:
        >>> import torch
        >>> from groupcam_aug.metrics import InsertionDeletion
        >>> first_pixel = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2, bias=False))
        >>> _ = first_pixel[1].weight.data.copy_(torch.tensor([[9.0, 0, 0, 0], [0, 0, 0, 0]]))
        >>> metric = InsertionDeletion(steps=4, substrate="zeros")
        >>> metric.update(first_pixel, torch.ones(1, 1, 2, 2), torch.tensor([[[4.0, 3], [2, 1]]]), torch.tensor([0]))
        >>> metric.compute()["overall"]
        tensor(0.3749)
    """

    ways = _BOTH
    prefix = "overall_"
    higher_is_better = None
    plot_lower_bound = -1.0

    def compute(self) -> dict[str, Tensor]:
        """Three scalars, float32."""
        insertion, deletion = self._area("insertion"), self._area("deletion")
        return {"insertion": insertion, "deletion": deletion, "overall": insertion - deletion}


_CURVE_OPTIONS = ("substrate", "spacing", "activation", "chunk", "output", "preprocess")


def _curves_and_areas(
    ways: Sequence[Direction],
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
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The fractions, (n + 1,), and for each way the curves, (N, n + 1), and their areas, (N,); arguments as for both."""
    scorer = Scorer(model, images, targets, **options)
    plan = SwapPlan(scorer.images, steps, substrate, spacing, author_compatible)
    curves = swap_curves(scorer, plan, maps, ways)
    return plan.fractions, [(curve, plan.area(curve)) for curve in curves]
