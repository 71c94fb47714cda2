"""``groupcam-aug demo``: the smallest trial, on drawn objects, and a sheet of what its network looks at."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from groupcam_aug import GroupCAM, SaliencyBlur
from groupcam_aug.draw import mask_picture, panels, png, to_uint8
from groupcam_aug.recipes import parsers
from groupcam_aug.recipes.classifier import Classifier, load_classifier
from groupcam_aug.recipes.cli import main, refusing
from groupcam_aug.recipes.map_sheet import drawn
from groupcam_aug.recipes.shapes import CLASSES, Shapes
from groupcam_aug.recipes.terminal import say
from groupcam_aug.recipes.written_files import WrittenFiles

__all__ = ["augmented_panels", "draw_panels", "run"]

ARMS = ("none", "fast", "fast-other")
SHOWN = "fast"  # the arm whose first network draws the panels
QUICK = {"trainer.max_epochs": 4, "data.train": 320, "data.test": 120, "data.val": 24}
SEEDS, QUICK_SEEDS = 3, 2


def run(command: str, words: list[str]) -> int:
    """The command: the trial of the config `demo`, then ``panels.png``."""
    parser = parsers.demo(command)
    options = parser.parse_args(words)
    seeds = (QUICK_SEEDS if options.quick else SEEDS) if options.seeds is None else options.seeds
    if seeds < 1:
        parser.error(f"--seeds {seeds}: give at least 1")
    jobs = options.jobs or (1 if options.quick else min(4, os.cpu_count() or 1))
    out, start, console = Path(options.out or f"groupcam_demo{'_quick' * options.quick}"), time.perf_counter(), Console()
    files, pictures = WrittenFiles(out, "demo"), ("panels.png", "report.html")
    with refusing():
        files.adopt(("results.json", *pictures), {"verdict": {"conclusion": str}})
        files.check(pictures)
    torch.set_num_threads(min(jobs, torch.get_num_threads()))  # the network is too small for more than one a run to pay
    if options.quick:
        say(console, "Quick form: far too little training for the numbers to mean anything; run without --quick.")
    changes = [f"--{key}={value}" for key, value in QUICK.items()] if options.quick else []
    trial = ["trial", "demo", "--arms", *ARMS, "--seeds", str(seeds), "--jobs", str(jobs), "--out", str(out), "--checkpoints"]
    status = main([*trial, *changes])
    if status:
        return status
    first = out / "runs" / f"{SHOWN}__seed0"
    with refusing():
        classifier, _ = load_classifier(first / "last.ckpt")
        files.put("panels.png", png(draw_panels(classifier, Shapes("kept", 60))))
        files.put("report.html", (first / "groupcam" / "report.html").read_bytes())
    say(console, f"{time.perf_counter() - start:.0f} s. Pictures of {SHOWN}: {out / 'panels.png'}")
    say(console, f"report of its first run: {out / 'report.html'}")
    return 0


def draw_panels(classifier: Classifier, data: Shapes, count: int = 6) -> Any:
    """A sheet: image, heat map, mask and augmented image of ``count`` samples, one of each class.

    Args:
        classifier: with its normalisation.
        data: images in [0, 1].
        count: how many.
    """
    images, labels = torch.stack([data[i][0] for i in range(count)]), torch.tensor([data[i][1] for i in range(count)])
    return augmented_panels(classifier, images, labels, CLASSES)


def augmented_panels(classifier: Classifier, images: Tensor, labels: Tensor, names: Sequence[str]) -> Any:
    """A sheet: image, heat map, mask and augmented image, a row for each.

    Args:
        classifier: with its normalisation.
        images: (N, 3, H, W) in [0, 1].
        labels: (N,) int64.
        names: of the classes.
    """
    mean, std = (torch.tensor(getattr(classifier, name)).view(3, 1, 1) for name in ("mean", "std"))
    cam = GroupCAM.for_training(classifier.network, mask_at="target", baseline="zero")
    done = SaliencyBlur(cam).augment_at((images - mean) / std, labels, torch.arange(len(images)))
    augmented = done.images * std + mean
    rows = [
        [images[i], drawn(to_uint8(images[i]), done.maps[i], "overlay"), mask_picture(done.keep[i]), augmented[i]]
        for i in range(len(images))
    ]
    return panels(
        rows,
        titles=["image", "Group-CAM", "kept pixels", "augmented"],
        labels=[names[int(label)] for label in labels],
    )
