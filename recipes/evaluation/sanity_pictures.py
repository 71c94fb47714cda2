"""Maps of a few images while layers are re-initialised, to be looked at (Adebayo et al. 2018, figure 2; Grad-CAM's figure 6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from groupcam_aug.borrow import as_found
from groupcam_aug.draw import png, to_uint8
from groupcam_aug.outputs import sum_to_one
from groupcam_aug.recipes.evaluation.datasets import Item
from groupcam_aug.recipes.evaluation.map_method import Method, Setup
from groupcam_aug.recipes.evaluation.results_file import Outcome, Plan
from groupcam_aug.recipes.evaluation.runner import STAGES, picked
from groupcam_aug.recipes.map_sheet import drawn, percent, sheet
from groupcam_aug.recipes.model_loading import LoadedModel
from groupcam_aug.sanity import LEAST, Randomization, randomization_check

__all__ = ["MODES", "pictured", "sanity_pictures", "verdict"]

SHOWN, SIZE = 4, 96  # images at most; pixels of a picture
MODES: dict[Literal["cascading", "independent"], str] = {
    "cascading": "from the output down, each stage keeps those before it re-initialised",
    "independent": "one stage at a time, the others as they were trained",
}


def pictured(methods: Sequence[Method]) -> list[Method]:
    """The methods whose maps can be followed: all that look at the network."""
    return [method for method in methods if method.kind != "control"]


def sanity_pictures(
    model: LoadedModel,
    setup: Setup,
    items: Sequence[Item],
    methods: Sequence[Method],
    plan: Plan,
    outcome: Outcome,
    tell: Callable[[str], None],
) -> dict[str, bytes]:
    """A picture for each of the methods that `pictured` names: cascading above, independent below, a verdict over each.

    Args:
        model: the network, and how images reach it.
        setup: the network and the layer of the maps.
        items: `plan.sanity_images` of them are taken, evenly picked; at most `SHOWN` are drawn, all count for the figures.
        methods: of the table; controls have no picture.
        plan: how many images, and the seed of the new weights.
        outcome: methods and files that are left out; methods that raise are added.
        tell: is told a line for each method and mode.

    Returns:
        ``sanity_KEY.png`` -> PNG.
    """
    readable, images, classes = picked(model, items, plan, outcome.failed)
    made: dict[str, bytes] = {}
    if readable:
        with as_found(setup.network, images.device):
            logits = setup.network(images)
        shares = (logits if sum_to_one(logits) else logits.softmax(dim=1)).gather(1, classes[:, None])[:, 0]
    for method in pictured(methods):
        if method.key in outcome.left_out or not readable:
            continue
        cam = method.cam(setup) if method.cam is not None else _made_anew(method, setup)
        pages = []
        try:
            for mode in MODES:
                check = randomization_check(
                    setup.network, images, cam, classes, mode=mode, seed=plan.seed, stages=STAGES, keep_maps=True
                )
                said = f"{method.name}, {mode}: {verdict(check)}"
                tell(f"Sanity pictures of {said}")
                pages.append(_page(model, images, classes, shares, check, said))
        except (ValueError, RuntimeError, TypeError, NotImplementedError) as error:
            outcome.left_out[method.key] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            continue
        made[f"sanity_{method.key}.png"] = png(_stacked(pages))
    return made


def verdict(check: Randomization) -> str:
    """Whether the maps go when the weights do, or why that is not said."""
    left, count = check.rho.isnan().logical_not().sum(dim=1).tolist(), check.rho.shape[1]
    alone = check.mode == "independent"
    if check.passed is None:
        fewest, where = (min(left), "behind some stage") if alone else (left[-1], "at the end")
        if fewest >= LEAST:
            return (
                "no verdict, for some stage leaves maps above other images', but not beyond chance: take more by --sanity-images"
            )
        more = f"take more images by --sanity-images{f' (at least {LEAST})' if count < LEAST else ''}"
        return f"no verdict, for {fewest} of {count} maps are left {where} and {LEAST} are needed: {more}"
    said = "passed" if check.passed else "FAILED"
    if alone:
        rest = "each stage by itself takes maps down to it"
        if check.standing:
            rest = f"re-initialised alone, these leave maps above it: {', '.join(check.standing)}"
        return f"{said}: likeness of other images' maps is {check.floor:.2f}; {rest}"
    return f"{said}: likeness to the original maps at the end {check.spearman[-1]:.2f}, of other images' maps {check.floor:.2f}"


def _made_anew(method: Method, setup: Setup) -> Callable[[Tensor, Tensor], Tensor]:
    """A method that may work on a copy of the network: made again for the weights of the moment."""

    def maps(images: Tensor, classes: Tensor) -> Tensor:
        now = replace(setup)  # another copy of the network, where there is one
        return method.make(now)(images, classes, range(len(images)))

    return maps


def _page(model: LoadedModel, images: Tensor, classes: Tensor, shares: Tensor, check: Randomization, said: str) -> Image.Image:
    """One mode: a row for each image, a column for each stage."""
    assert check.maps is not None
    size = (images.shape[-2], images.shape[-1])
    pixels = to_uint8(images[:SHOWN], model.mean, model.std)
    rows, captions = [], []
    for i, image in enumerate(pixels):
        maps = F.interpolate(check.maps[:, i, None].float(), size, mode="bilinear", align_corners=False)[:, 0].nan_to_num()
        maps = maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)
        rho = [f"{round(value, 2) + 0:.2f}" if value == value else "" for value in check.rho[:, i].tolist()]
        rows.append([image, *(drawn(image, one, "heatmap") for one in maps)])
        captions.append([f"{model.class_names[int(classes[i])]} {percent(float(shares[i]))}", "", *rho])
    means = zip(check.stages, check.spearman, check.undefined, strict=True)
    stages = [
        f"{i} = {stage} ({f'{mean:.2f}' if gone < 1 else 'no map'})" for i, (stage, mean, gone) in enumerate(means, start=1)
    ]
    heading = [
        said,
        f"Re-initialised: {MODES[check.mode]}. Below each map its rank correlation with the trained one.",
        f"Mean of {len(images)} images: {'; '.join(stages)}; another image's map: {check.floor:.2f}",
    ]
    titles = ["", "trained", *(f"stage {i + 1}" for i in range(len(check.stages)))]
    return sheet(rows, captions, heading, False, titles=titles, size=SIZE)


def _stacked(pages: Sequence[Image.Image]) -> Image.Image:
    whole = Image.new("RGB", (max(page.width for page in pages), sum(page.height for page in pages)), "white")
    y = 0
    for page in pages:
        whole.paste(page, (0, y))
        y += page.height
    return whole
