"""``groupcam-aug fidelity``: which cheap mode keeps the masks, on your own network and your own images.

Compares the masks of every mode with the exact ones, sets them against the method's own noise, and names the cheapest mode
that is as good. Classes are the network's own first choice; a folder with a sub-folder for each class gives its own.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track

from groupcam_aug import measure_fidelity
from groupcam_aug.files import put_file
from groupcam_aug.recipes.cli import refusing
from groupcam_aug.recipes.model_loading import Subject, add_arguments, find_images, load_subject, read_images, shown

__all__ = ["run"]


def run(command: str, words: list[str]) -> int:
    """The command: parse ``words``, measure, print the table and the line to use."""
    parser = argparse.ArgumentParser(
        prog=f"groupcam-aug {command}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    add_arguments(parser)
    parser.add_argument("--layer", help="target layer (default: found)")
    parser.add_argument("--groups", type=int, default=16, help="G (default: %(default)s)")
    parser.add_argument("--importance", choices=("none", "gradient"), default="none", help=_WEIGHTS)
    parser.add_argument("--modes", nargs="+", metavar="MODE", default=["stage", "target", "target, zero"], help=_MODES)
    parser.add_argument("--limit", type=int, default=100, help="most images, evenly picked (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="images per call (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    options = parser.parse_args(words)
    if options.limit < 1:
        parser.error(f"--limit {options.limit}: give at least 1")
    console = Console()
    failed: dict[Path, str] = {}
    with refusing():
        subject = load_subject(options)
        paths = find_images(options.paths)
        paths = paths[:: math.ceil(len(paths) / options.limit)]
        console.print(f"{subject.told}; {len(paths)} images", soft_wrap=True, highlight=False)
        images, targets = _read(paths, subject, options.batch_size, failed, console)
        result = measure_fidelity(
            subject.network,
            images,
            targets,
            layer=options.layer,
            groups=options.groups,
            modes=options.modes,
            weights=options.importance,
            batch_size=options.batch_size,
            progress=lambda parts: track(parts, "mapping", console=console),
        )
    console.print(str(result), soft_wrap=True, highlight=False, markup=False)
    place, _, base = result.recommended.partition(", ")
    # What was not left at its default must be set in training, too, or other maps are trained with than were measured.
    chosen = {"mask_at": place, "baseline": base or None, "layer": options.layer}
    chosen |= {"groups": options.groups if options.groups != 16 else None}
    chosen |= {"weights": options.importance if options.importance != "none" else None}
    told = ", ".join(f"{name}={json.dumps(value)}" for name, value in chosen.items() if value is not None)
    console.print(f"GroupCAMAugmentation({told})", soft_wrap=True, highlight=False, markup=False)
    for path, reason in failed.items():
        console.print(f"left out {shown(path)}: {reason}", soft_wrap=True, highlight=False, markup=False)
    if options.json:
        record: dict[str, Any] = {**asdict(result), "rows": [row._asdict() for row in result.rows], "torch": torch.__version__}
        file = Path(options.json)
        put_file(file.parent, file.name, json.dumps(record, indent=2) + "\n")
    return 1 if failed else 0


_WEIGHTS = "importance weights of the maps: none = the paper's training form, gradient = class-specific (default: %(default)s)"
_MODES = "where masks are applied: stage, target, or a layer's name; with ', zero' against zeros (default: all of %(default)s)"


def _read(
    paths: list[Path], subject: Subject, batch_size: int, failed: dict[Path, str], console: Console
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """All images, and their classes if every one lies in a folder named after one."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    images, kept = [], []
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("reading", total=len(paths))
        for batch, pixels in read_images(paths, subject, batch_size, failed):
            images.append(pixels)
            kept += batch
            progress.update(task, advance=len(batch))
    if not images:
        raise ValueError(f"none of the {len(paths)} files is an image that can be read: {next(iter(failed.values()))}")
    names = {name: i for i, name in enumerate(subject.class_names)}
    folders = [path.parent.name for path in kept]
    named = all(folder in names for folder in folders)
    return torch.cat(images), torch.tensor([names[folder] for folder in folders]) if named else None
