"""The work behind ``groupcam-aug evaluate``: maps of every method for every image, scored, and kept row by row."""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from groupcam_aug.borrow import as_found
from groupcam_aug.fidelity import wait_for
from groupcam_aug.metrics import (
    average_drop,
    box_masks,
    boxes_from_maps,
    energy_pointing_game,
    insertion_deletion,
    localisation_error,
    pointing_game,
)
from groupcam_aug.occlusion import Occlusion, occlusion
from groupcam_aug.outputs import not_numbers, why_not_finite
from groupcam_aug.recipes.evaluation.datasets import Item, evenly
from groupcam_aug.recipes.evaluation.map_method import Maps, Method, Setup
from groupcam_aug.recipes.evaluation.results_file import Outcome, Plan, ResultsFile
from groupcam_aug.recipes.image_files import shown
from groupcam_aug.recipes.model_loading import LoadedModel, read_images
from groupcam_aug.sanity import randomization_check

__all__ = ["STAGES", "checked", "estimate", "first_image", "measure", "picked", "preprocessing_of"]

STAGES = 8  # at most so many in the sanity check


def measure(
    model: LoadedModel,
    setup: Setup,
    items: Sequence[Item],
    methods: Sequence[Method],
    plan: Plan,
    results: ResultsFile,
    progress: Progress,
) -> Outcome:
    """Fill `results` with a row for each item and method that has none yet.

    Images are gone through in batches that do not depend on what is already there, and a batch and method is redone as a whole,
    so that an interrupted run gives the same figures. A method whose first map raises is left out; a file that cannot be read,
    too.

    Returns:
        `Outcome`, with the reasons for what is missing.
    """
    outcome = Outcome()
    task = progress.add_task("starting", total=None)
    chunks = [items[start : start + plan.batch_size] for start in range(0, len(items), plan.batch_size)]
    ready: dict[str, Maps] = {}
    unfinished = [method for method in methods if results.todo(items, method)]
    shared = 0
    if unfinished:
        image = first_image(model, items, outcome.failed)
        shared = plan.shared_passes((image.shape[-2], image.shape[-1]))
        _prepare(
            setup, unfinished, image, results, ready, outcome, lambda name: progress.update(task, description=f"trying {name}")
        )
    kept = [method for method in methods if method.key not in outcome.left_out]
    effort = {key: cost + plan.passes + 0.1 for key, cost in _costs(kept, results).items()}
    trials = {key: STAGES * min(plan.sanity_images, len(items)) * (cost - plan.passes) for key, cost in effort.items()}
    total = len(items) * (shared + sum(effort.values())) + sum(trials[method.key] for method in checked(kept, plan))
    progress.update(task, total=total)
    warm: set[str] = set()
    for number, chunk in enumerate(chunks):
        todo = [method for method in kept if results.todo(chunk, method)]
        progress.advance(task, len(chunk) * sum(effort[method.key] for method in kept if method not in todo))
        progress.advance(task, 0 if todo else len(chunk) * shared)
        batch = _read(model, chunk, outcome.failed) if todo else ([], torch.empty(0))
        if not len(batch[0]):
            progress.advance(task, len(chunk) * (sum(effort[method.key] for method in todo) + (shared if todo else 0)))
            continue
        readable, images = batch[0], batch[1].to(next(setup.network.parameters()).device)
        progress.advance(task, len(chunk) * sum(effort[method.key] for method in todo if not results.todo(readable, method)))
        todo = [method for method in todo if results.todo(readable, method)]  # but for files that cannot be read
        classes, right = _classes(setup.network, readable, images)
        seen = None
        if "occlusion" in plan.measures and todo:
            progress.update(task, description=f"{number * plan.batch_size + len(chunk)} of {len(items)}, hiding windows")
            seen = occlusion(setup.network, images, classes, activation=plan.activation)
        progress.advance(task, len(chunk) * shared)
        made: dict[str, Tensor] = {}
        for method in todo:
            reached = number * plan.batch_size + len(chunk)
            progress.update(task, description=f"{reached} of {len(items)}, {method.name}")
            maps = made.get(method.of)
            seconds = None
            if maps is None:
                maps, seconds = _timed(ready[method.key], images, classes, [_seed(plan.seed, item) for item in readable])
            made[method.key] = maps
            maps = maps if method.alter is None else method.alter(maps)
            rows = _rows(setup.network, readable, images, maps, classes, right, seen, plan, results)
            for item, label, row in zip(readable, classes.tolist(), rows, strict=True):
                timing = {} if seconds is None else {"seconds": round(seconds, 6), "warm": method.key in warm}
                about = {"file": item.key, "stamp": item.stamp, "method": method.key, "class": label, "label": item.label}
                results.add({**about, **row, **timing})
            warm.add(method.key)
            progress.advance(task, len(chunk) * effort[method.key])
    for method in checked(kept, plan):
        progress.update(task, description=f"sanity check, {method.name}")
        _check(model, setup, items, method, plan, results, outcome)
        progress.advance(task, trials[method.key])
    progress.update(task, description="done", completed=total)
    return outcome


def estimate(model: LoadedModel, setup: Setup, items: Sequence[Item], methods: Sequence[Method], plan: Plan) -> dict[str, Any]:
    """What measuring would take; maps are made of one image, one batch is scored and timed, nothing is kept.

    Returns:
        "maps": passes of one map by method; "shared": passes of an image for all methods; "sanity": passes of the sanity check
        by method; "seconds" of a pass here;
        "left_out": methods that cannot be used, with the reason.
    """
    outcome, costs = Outcome(), _Costs()
    batch = _read(model, items[: plan.batch_size], outcome.failed)[1]
    if not len(batch):
        batch = first_image(model, items, outcome.failed)
    batch = batch.to(next(setup.network.parameters()).device)
    _prepare(setup, methods, batch[:1], costs, {}, outcome)
    kept = [method for method in methods if method.key not in outcome.left_out]
    noise = torch.rand(batch[:, 0].shape, generator=torch.Generator().manual_seed(plan.seed)).to(batch)
    steps = 4
    how: dict[str, Any] = {"activation": plan.activation}
    insertion_deletion(setup.network, batch[:1], noise[:1], 0, steps=1, **how)
    wait_for(batch.device)
    start = time.perf_counter()
    insertion_deletion(setup.network, batch, noise, 0, steps=steps, **how)
    wait_for(batch.device)
    seconds = (time.perf_counter() - start) / (2 * steps * len(batch))
    trials = STAGES * min(plan.sanity_images, len(items))
    return {
        "maps": _costs(kept, costs),
        "sanity": {method.key: trials * (costs.costs.get(method.key) or 0.0) for method in checked(kept, plan)},
        "shared": plan.shared_passes((batch.shape[-2], batch.shape[-1])),
        "seconds": seconds,
        "left_out": outcome.left_out,
    }


def checked(methods: Sequence[Method], plan: Plan) -> list[Method]:
    """The methods whose maps are followed while the weights are randomised."""
    return [method for method in methods if "sanity" in plan.measures and method.key in _CHECKED]


def first_image(model: LoadedModel, items: Sequence[Item], failed: dict[Path, str]) -> Tensor:
    """(1, 3, H, W), the first that can be read, on the network's device.

    Raises:
        ValueError: none can, or the network returns no numbers for it.
    """
    for item in items:
        readable, images = _read(model, [item], failed)
        if readable:
            images = images.to(next(model.network.parameters()).device)
            _logits(model.network, readable, images)
            return images
    raise ValueError(f"none of the {len(items)} files is an image that can be read: {next(iter(failed.values()), 'no files')}")


def picked(model: LoadedModel, items: Sequence[Item], plan: Plan, failed: dict[Path, str]) -> tuple[list[Item], Tensor, Tensor]:
    """The few items of the sanity check, evenly picked, their images (n, 3, H, W) on the network's device and classes (n,)."""
    paths = evenly([item.path for item in items if item.path not in failed], plan.sanity_images)
    readable, images = _read(model, [next(item for item in items if item.path == path) for path in paths], failed)
    images = images.to(next(model.network.parameters()).device)
    return readable, images, _classes(model.network, readable, images)[0] if readable else torch.empty(0)


def preprocessing_of(model: LoadedModel) -> str:
    """A fingerprint of what happens to a picture before the network sees it, and of the classes' names and order."""
    ramp = np.linspace(0, 255, 3 * 97 * 61).reshape(97, 61, 3).astype(np.uint8)
    curves = model.transform(Image.fromarray(ramp)).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(curves + json.dumps(list(model.class_names)).encode()).hexdigest()[:16]


_CHECKED = ("groupcam", "paper", "gradcam")  # a form each; their cheap modes share what they see


class _NoModules:
    """In the place of the counter's module tracker, whose hooks and captum's do not go together."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def _flop_counter() -> FlopCounterMode:
    """Counts the multiply-adds inside, backward passes included."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    return counter


class _Costs:
    """Results that are costs alone."""

    def __init__(self) -> None:
        self.costs: dict[str, float] = {}

    def add(self, line: dict[str, Any]) -> None:
        self.costs[line["method"]] = line["cost"]


def _costs(methods: Sequence[Method], results: ResultsFile | _Costs) -> dict[str, float]:
    """Passes of a map of each method, of those whose maps are not made anyway."""
    keys = {method.key for method in methods}
    return {method.key: 0.0 if method.of in keys else results.costs.get(method.key, 0.0) for method in methods}


def _prepare(
    setup: Setup,
    methods: Sequence[Method],
    image: Tensor,
    results: ResultsFile | _Costs,
    ready: dict[str, Maps],
    outcome: Outcome,
    tell: Any = lambda _name: None,
) -> None:
    """Make every method and its first map, which also warms it up, and count its cost in forward passes."""
    with _flop_counter() as counter, as_found(setup.network, image.device):
        label = setup.network(image).argmax(dim=1)
    whole = counter.get_total_flops()
    for method in methods:
        tell(method.name)
        reason = method.missing()
        if reason is None:
            try:
                ready[method.key] = made = method.make(setup)
                if method.passes is not None:
                    cost: float | None = method.passes((image.shape[-2], image.shape[-1]))
                else:
                    with _flop_counter() as counter:
                        made(image, label, [0])
                    cost = round(counter.get_total_flops() / whole, 3) if whole else None
                if method.key not in results.costs and cost is not None:
                    results.add({"method": method.key, "cost": cost})
            except (ValueError, RuntimeError, TypeError, NotImplementedError) as error:
                reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if reason is not None:
            outcome.left_out[method.key] = reason


def _read(model: LoadedModel, items: Sequence[Item], failed: dict[Path, str]) -> tuple[list[Item], Tensor]:
    """The items whose files can be read, and their images; boxes must be of the picture as it is shown."""
    failed.update({item.path: reason for item in items if (reason := item.misfit())})
    items = [item for item in items if item.path not in failed]
    batches = [images for _, images in read_images([item.path for item in items], model, max(1, len(items)), failed)]
    readable = [item for item in items if item.path not in failed]
    return readable, torch.cat(batches) if batches else torch.empty(0)


def _logits(network: nn.Module, items: Sequence[Item], images: Tensor) -> Tensor:
    """(n, classes) of the items' images; scores of what is no number would be none either.

    Raises:
        ValueError: an image for which the network returns no numbers.
    """
    with as_found(network, images.device):
        logits = network(images)
    bad = [item for item, none in zip(items, not_numbers(logits).tolist(), strict=True) if none]
    if bad:
        raise ValueError(
            f"the network returns no finite numbers for {shown(bad[0].path)}: {why_not_finite(network)}; "
            "if it does for others, take this image away"
        )
    return logits


def _classes(network: nn.Module, items: Sequence[Item], images: Tensor) -> tuple[Tensor, list[bool]]:
    """(n,) the class of each item; the network chooses where there are none or several. And whether it is its first choice."""
    logits = _logits(network, items, images)
    chosen = []
    for item, row in zip(items, logits, strict=True):
        among = torch.tensor(item.classes or range(len(row)), device=row.device)
        chosen.append(among[row[among].argmax()])
    classes = torch.stack(chosen)
    return classes, (classes == logits.argmax(dim=1)).tolist()


def _timed(maps: Maps, images: Tensor, classes: Tensor, seeds: Sequence[int]) -> tuple[Tensor, float]:
    """The maps, and the seconds that one image's took."""
    wait_for(images.device)
    start = time.perf_counter()
    made = maps(images, classes, seeds)
    wait_for(images.device)
    return made, (time.perf_counter() - start) / len(images)


def _rows(
    network: nn.Module,
    items: Sequence[Item],
    images: Tensor,
    maps: Tensor,
    classes: Tensor,
    right: Sequence[bool],
    seen: Occlusion | None,
    plan: Plan,
    results: ResultsFile,
) -> list[dict[str, Any]]:
    """The scores of each image's map."""
    rows: list[dict[str, Any]] = [{"undefined": bool(flat)} for flat in maps.amax(dim=(1, 2)) <= maps.amin(dim=(1, 2))]
    if "curves" in plan.measures:
        how: dict[str, Any] = {"author_compatible": True} if plan.author_compatible else {"steps": plan.steps}
        how |= {} if plan.author_compatible else {"substrate": plan.substrate}
        how["activation"] = plan.activation
        curves = insertion_deletion(network, images, maps, classes, **how)
        if not results.fractions:
            results.add({"fractions": curves.fractions.tolist()})
        for i, row in enumerate(rows):
            row["undefined"] = bool(curves.undefined[i])
            for name, curve, area in (
                ("insertion", curves.insertion, curves.insertion_auc),
                ("deletion", curves.deletion, curves.deletion_auc),
            ):
                usable = not row["undefined"]
                row[name] = round(float(area[i]), 7) if usable else None
                row[f"{name}_curve"] = [round(value, 6) for value in curve[i].tolist()] if usable else None
    if "drop" in plan.measures:
        drop = average_drop(network, images, maps, classes, activation=plan.activation)
        for i, row in enumerate(rows):
            row["drop"] = None if drop.undefined[i] else round(float(drop.drop[i]), 7)
            row["increase"] = None if drop.undefined[i] else bool(drop.increase[i])
            row["activation"] = round(float(drop.activation[i]), 7)
    if seen is not None:
        agreement = seen.correlation(maps)
        for value, undefined, row in zip(agreement.value.tolist(), agreement.undefined.tolist(), rows, strict=True):
            row["occlusion"] = None if undefined else round(value, 7)
    if {"pointing", "localisation"} & set(plan.measures):
        for item, saliency, is_right, row in zip(items, maps, right, rows, strict=True):
            large = F.interpolate(saliency[None, None].float(), item.size, mode="bilinear", align_corners=False)[0]
            if "pointing" in plan.measures:
                masks = box_masks([item.boxes], item.size).to(large.device)
                row["hit"] = bool(pointing_game(large, masks, tolerance=plan.tolerance).value)
                row["energy"] = round(float(energy_pointing_game(large, masks).value), 7)
            if "localisation" in plan.measures:
                row["box_error"] = bool(localisation_error(boxes_from_maps(large), [item.boxes]).value)
                row["top1_error"] = row["box_error"] or not is_right
    return rows


def _check(
    model: LoadedModel, setup: Setup, items: Sequence[Item], method: Method, plan: Plan, results: ResultsFile, outcome: Outcome
) -> None:
    """The sanity check of one method, on a few images evenly picked."""
    readable, images, classes = picked(model, items, plan, outcome.failed)
    files = [f"{item.key} {item.stamp}" for item in readable]
    if method.cam is None or not readable or results.sanity.get(method.key, {}).get("files") == files:
        return
    check = randomization_check(
        setup.network, images, method.cam(setup), classes, mode=plan.sanity_mode, seed=plan.seed, stages=STAGES
    )
    results.add({"method": method.key, "files": files, "sanity": check.summary()})


def _seed(seed: int, item: Item) -> int:
    return seed + zlib.crc32(os.fsencode(item.key))  # names of files need not be UTF-8
