"""What the maps of a finished network are worth, on the probes: do they find what matters, do they depend on the weights?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from groupcam_aug.baselines import centred_blob, random_cells
from groupcam_aug.metrics import Curves, insertion_deletion
from groupcam_aug.metrics.intervals import student_interval
from groupcam_aug.saliency import GradCAM, GroupCAM
from groupcam_aug.sanity import randomization_check
from groupcam_aug.targets import Activation

__all__ = ["assess"]

STEPS = 28  # points of a curve
STAGES = 8  # at most so many in the sanity check


def assess(
    cam: GradCAM | GroupCAM, images: Tensor, targets: Tensor, name: str, *, activation: Activation = "softmax", seed: int = 0
) -> dict[str, Any]:
    """Insertion and deletion of a method's maps beside two controls, and the cascading sanity check.

    Takes 6 `STEPS` + 1 forward passes per image, and up to `STAGES` + 1 times those of a map.

    Args:
        cam: the method, on the network.
        images: (N, C, H, W) on the network's device.
        targets: (N,) class indices or (N, classes) soft rows.
        name: of the method.
        activation: what turns logits into probabilities.
        seed: of the random cells and the new weights.

    Returns:
        What evaluation.json holds: `methods`, `sanity`, `told`. Images without a map count in no row of
        `methods`; if none has one, the controls alone are there, over all images; of outputs that are no numbers nothing is.
    """
    maps: Any = cam(images, targets)  # a tensor: the maps of one layer
    controls = {"centred blob": centred_blob(maps), "random cells": random_cells(maps, seed)}
    options: dict[str, Any] = {"activation": activation, "output": cam.output, "preprocess": cam.preprocess}
    curves = {
        label: insertion_deletion(cam.network, images, masks, targets, steps=STEPS, chunk=cam.chunk, **options)
        for label, masks in {name: maps, **controls}.items()
    }
    missing = int(curves[name].undefined.sum())
    usable = ~torch.stack([curves[label].undefined for label in controls]).any(dim=0)
    # Controls are judged on the images that the method maps: those it does not may be harder or easier than the rest.
    mapped = usable & ~curves[name].undefined
    labels, scored = ([name, *controls], mapped) if bool(mapped.any()) else (list(controls), usable)
    methods = {label: _rows(curves[label], scored) for label in labels if bool(scored.any())}
    sanity = randomization_check(cam.network, images, cam, targets, seed=seed, stages=STAGES)
    note = f"{name} at {cam.layer} on {len(images)} probes after the last epoch, {STEPS} steps from and to the blurred image"
    if missing:
        note += f"; {missing} of them have no map" + (" and count in no row" if missing < len(images) else "")
    return {"methods": methods, "sanity": sanity.summary(), "told": note}


def _rows(curves: Curves, scored: Tensor) -> dict[str, Any]:
    rows = {}
    for kind, curve, area in (
        ("insertion", curves.insertion, curves.insertion_auc),
        ("deletion", curves.deletion, curves.deletion_auc),
    ):
        interval = student_interval(area[scored].cpu().numpy())
        rows[kind] = {
            "fractions": curves.fractions.tolist(),
            "mean": curve[scored].mean(dim=0).tolist(),
            "auc": float(area[scored].mean()),
            "interval": None if interval is None else [*interval],
        }
    return rows
