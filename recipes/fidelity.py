"""``groupcam-aug fidelity``: which cheap preset keeps the masks of `paper`, on your own network and your own images."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track

from groupcam_aug.fidelity import Fidelity, measure_fidelity
from groupcam_aug.files import put_file
from groupcam_aug.outputs import no_numbers, not_numbers
from groupcam_aug.presets import HALF, PRESETS, mode_name, scoring_of
from groupcam_aug.recipes import parsers
from groupcam_aug.recipes.cli import refusing
from groupcam_aug.recipes.image_files import find_images, shown
from groupcam_aug.recipes.model_loading import LoadedModel, load_model, read_images
from groupcam_aug.recipes.terminal import say

__all__ = ["run", "training_line"]


def run(command: str, words: list[str]) -> int:
    """The command: parse ``words``, measure, print the table and the line to use."""
    parser = parsers.fidelity(command)
    options = parser.parse_args(words)
    if options.limit < 1:
        parser.error(f"--limit {options.limit}: give at least 1")
    console = Console()
    failed: dict[Path, str] = {}
    with refusing():
        model = load_model(options)
        paths = find_images(options.paths)
        paths = paths[:: math.ceil(len(paths) / options.limit)]
        say(console, f"{model.description}; {len(paths)} images")
        images, targets = _read(paths, model, options.batch_size, failed, console)
        if bad := _count_not_numbers(model, images, options.batch_size):
            told = no_numbers(model.network, bad, len(images))
            if bad == len(images):
                raise ValueError(told)
            say(console, told)
        result = measure_fidelity(
            model.network,
            images,
            targets,
            layer=options.layer,
            groups=options.groups,
            modes=[mode for mode in options.modes if mode_name(mode) != "paper"],
            weights=options.weights,
            batch_size=options.batch_size,
            progress=lambda parts: track(parts, "mapping", console=console),
        )
    say(console, result)
    if result.recommended:
        say(console, training_line(result, options.layer))
    for path, reason in failed.items():
        say(console, f"left out {shown(path)}: {reason}")
    if options.json:
        record: dict[str, Any] = {**asdict(result), "rows": [row._asdict() for row in result.rows], "torch": torch.__version__}
        file = Path(options.json)
        with refusing():
            put_file(file.parent, file.name, json.dumps(record, indent=2) + "\n")
    return 1 if failed else 0


def training_line(result: Fidelity, layer: str | None) -> str:
    """The callback that trains with what was recommended.

    What was not left at its default is named, too, or other maps are trained with than were measured.
    """
    name = mode_name(result.recommended)
    scoring, preset = scoring_of(name), name.removesuffix(f", {HALF}")
    arguments: dict[str, Any] = scoring
    if preset in PRESETS:
        arguments = {"preset": preset} | {key: value for key, value in scoring.items() if key == "precision"}
    measured = {"layer": (layer, None), "groups": (result.groups, 16), "weights": (result.weights, "none")}
    arguments |= {key: value for key, (value, default) in measured.items() if value != default}
    return f"GroupCAMAugmentation({', '.join(f'{key}={json.dumps(value)}' for key, value in arguments.items())})"


def _count_not_numbers(model: LoadedModel, images: torch.Tensor, batch_size: int) -> int:
    device = next(model.network.parameters()).device
    with torch.no_grad():
        return sum(int(not_numbers(model.network(part.to(device))).sum()) for part in images.split(batch_size))


def _read(
    paths: list[Path], model: LoadedModel, batch_size: int, failed: dict[Path, str], console: Console
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """All images, and their classes if every one lies in a folder named after one."""
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    images, kept = [], []
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("reading", total=len(paths))
        for batch, pixels in read_images(paths, model, batch_size, failed):
            images.append(pixels)
            kept += batch
            progress.update(task, advance=len(batch))
    if not images:
        raise ValueError(f"none of the {len(paths)} files is an image that can be read: {next(iter(failed.values()))}")
    names = {name: i for i, name in enumerate(model.class_names)}
    folders = [path.parent.name for path in kept]
    named = all(folder in names for folder in folders)
    return torch.cat(images), torch.tensor([names[folder] for folder in folders]) if named else None
