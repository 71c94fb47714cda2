"""``groupcam-aug explain``: saliency maps of images, drawn or raw."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from groupcam_aug.draw import heat_map, overlay, panels, png, to_uint8
from groupcam_aug.guided import guided_grad_cam
from groupcam_aug.outputs import sum_to_one, why_not_finite
from groupcam_aug.recipes import parsers
from groupcam_aug.recipes.cli import refusing
from groupcam_aug.recipes.image_files import find_images, shown
from groupcam_aug.recipes.model_loading import LoadedModel, load_model, read_images
from groupcam_aug.recipes.terminal import say
from groupcam_aug.recipes.written_files import WrittenFiles
from groupcam_aug.saliency import GradCAM, GroupCAM

__all__ = ["explain", "run"]

ON_SHEET = 100  # images at most: they are held until it is drawn

Maps = Callable[[Tensor, Tensor], Tensor]  # images (n, 3, H, W), classes (n,) -> (n, H, W), or (n, 3, H, W) for guided Grad-CAM


def run(command: str, words: list[str]) -> int:
    """The command; exit status 1 if an image could not be read."""
    parser = parsers.explain(command)
    options = parser.parse_args(words)
    if options.target is not None and options.top != 1:
        parser.error("--target and --top exclude each other")
    if options.top < 1 or options.batch_size < 1:
        parser.error("--top and --batch-size must be at least 1")
    console = Console(stderr=True)
    with refusing():
        model, paths = load_model(options), find_images(options.images, Path(options.out))
        fixed = None if options.target is None else model.class_index(options.target)
        if options.top > len(model.class_names):
            raise ValueError(f"--top {options.top}, but the network has {len(model.class_names)} classes")
    say(console, f"{model.description}; {len(paths)} images, {options.method}")
    with refusing():
        failed = explain(model, paths, options, fixed, console)
    for path, reason in failed.items():
        say(console, f"{shown(path)}: {reason}", mark="not read:")
    return 1 if failed else 0


def explain(
    model: LoadedModel, paths: list[Path], options: argparse.Namespace, fixed: int | None, console: Console
) -> dict[Path, str]:
    """Write a picture (or .npy) per image into `options.out`, and a sheet of the first `ON_SHEET` if there are several.

    Returns:
        The files that could not be read, with the reason.

    Raises:
        ValueError: a picture would take the place of an image.
        FileExistsError: or of another file that this command did not write.
    """
    out = Path(options.out)
    files = WrittenFiles(out, "explained")
    maps_of = _method(model, options)
    failed: dict[Path, str] = {}
    rows: list[list[Tensor]] = []
    captions: list[list[str]] = []
    missing, names = 0, _unique_names(paths)
    written = [f"{name}.npy" for name in names.values()]
    if options.style != "raw":
        written = ["sheet.png", *(f"{name}.png" for name in names.values())]
    targets = {(out / name).resolve() for name in written}
    for path in paths:
        if path.resolve() in targets:
            raise ValueError(f"{str(path)!r} would be overwritten: give another folder by --out")
    files.check(written[1:] if len(paths) == 1 and options.style != "raw" else written)  # there is no sheet of one
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("mapping", total=len(paths))
        for batch, images in read_images(paths, model, options.batch_size, failed):
            images = images.to(next(model.network.parameters()).device)
            with torch.no_grad():
                logits = model.network(images)
            if not bool(logits.isfinite().any()):
                raise ValueError(f"the network returns no finite number for {shown(batch[0])}: {why_not_finite(model.network)}")
            probability = logits if sum_to_one(logits) else logits.softmax(dim=1)
            classes = (
                probability.topk(options.top, dim=1).indices if fixed is None else images.new_full((len(images), 1), fixed).long()
            )
            maps = torch.stack([maps_of(images, chosen) for chosen in classes.unbind(dim=1)], dim=1)
            missing += int((maps.flatten(2).abs().amax(dim=2) == 0).sum())
            pixels = to_uint8(images, model.mean, model.std)
            for i, path in enumerate(batch):
                if options.style == "raw":
                    import numpy as np

                    np.save(buffer := io.BytesIO(), maps[i].cpu().numpy())
                    files.put(f"{names[path]}.npy", buffer.getvalue())
                    continue
                labels = [f"{model.class_names[c]} {float(probability[i, c]):.0%}" for c in classes[i].tolist()]
                row, caption = [pixels[i], *(_drawn(pixels[i], m, options.style) for m in maps[i])], [path.name, *labels]
                picture = panels([row], captions=[caption], size=max(224, *pixels.shape[-2:]))
                files.put(f"{names[path]}.png", png(picture))
                if len(rows) < ON_SHEET:
                    rows.append(row)
                    captions.append(caption)
            progress.update(task, completed=min(len(paths), progress.tasks[0].completed + len(batch)))
        progress.update(task, completed=len(paths))
    if len(rows) > 1:
        files.put("sheet.png", png(panels(rows, captions=captions, size=160)))
    things = "arrays" if options.style == "raw" else "pictures"
    cut = f" (on sheet.png the first {ON_SHEET})" if len(rows) == ON_SHEET < len(paths) - len(failed) else ""
    say(console, f"wrote {len(paths) - len(failed)} {things} to {shown(out)}/{cut}")
    if missing:
        say(console, f"{missing} maps are empty: nothing in the image speaks for that class more than its blurred copy does")
    return failed


def _method(model: LoadedModel, options: argparse.Namespace) -> Maps:
    if options.method == "guided-gradcam":
        return lambda images, classes: guided_grad_cam(model.network, images, classes, options.layer)
    if options.method == "gradcam":
        return GradCAM(model.network, options.layer)  # type: ignore[return-value]
    return GroupCAM(model.network, options.layer, groups=options.groups, mask_at=options.mask_at)


def _drawn(pixels: Tensor, saliency: Tensor, style: str) -> Tensor:
    if saliency.ndim == 3:  # guided Grad-CAM: signed, grey where there is nothing, on its own scale
        return to_uint8(saliency / (2 * saliency.abs().amax()).clamp(min=1e-12) + 0.5)
    return heat_map(saliency) if style == "heatmap" else overlay(pixels, saliency)


def _unique_names(paths: list[Path]) -> dict[Path, str]:
    """A file name for each image: its stem, with the folder or a number where stems repeat."""
    names: dict[Path, str] = {}
    taken = {"sheet"}
    for path in paths:
        candidates = [path.stem, f"{path.parent.name}_{path.stem}", *(f"{path.stem}_{i}" for i in range(2, len(paths) + 2))]
        name = next(candidate for candidate in candidates if candidate not in taken)
        names[path] = name
        taken.add(name)
    return names
