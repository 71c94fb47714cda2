"""``groupcam-aug explain``: saliency maps of images, drawn or raw."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from groupcam_aug.draw import panels, png, to_uint8
from groupcam_aug.outputs import sum_to_one, why_not_finite
from groupcam_aug.recipes import parsers
from groupcam_aug.recipes.cli import refusing
from groupcam_aug.recipes.curve_picture import curve_picture, curves_of
from groupcam_aug.recipes.evaluation.map_method import Maps, Method, Setup
from groupcam_aug.recipes.explain_methods import (
    AGAINST,
    FINE,
    FULL,
    SIGNED,
    choose_methods,
    keys_of,
    maps_of,
    needs_layer,
    ranking,
)
from groupcam_aug.recipes.image_files import find_images, shown
from groupcam_aug.recipes.map_sheet import MOST, drawn, percent, sheet
from groupcam_aug.recipes.model_loading import LoadedModel, load_model, read_images
from groupcam_aug.recipes.terminal import counted, say
from groupcam_aug.recipes.unit_names import UnitWords, sentence, table_beside
from groupcam_aug.recipes.written_files import WrittenFiles

__all__ = ["explain", "run"]

ON_SHEET = 40  # rows of a page


def run(command: str, words: list[str]) -> int:
    """The command; exit status 1 if an image could not be read."""
    parser = parsers.explain(command)
    options = parser.parse_args(words)
    keys = keys_of(parser, options)
    if options.target is not None and options.top is not None:
        parser.error("--target and --top exclude each other: --target several times gives several classes")
    options.top = 1 if options.top is None else options.top
    if options.words == "" and options.checkpoint is None:
        parser.error("--words: there is no checkpoint beside which a table could lie: name it, --words FILE")
    if options.top < 1 or options.batch_size < 1:
        parser.error("--top and --batch-size must be at least 1")
    console = Console(stderr=True)
    with refusing():
        methods = choose_methods(keys, options.groups, options.mask_at or "input")
        if options.layer is not None and not needs_layer(methods):
            raise ValueError(f"--layer {options.layer}, but {', '.join(keys)} takes its maps from no layer: leave it out")
        model, paths = load_model(options), find_images(options.images, Path(options.out))
        fixed = None if options.target is None else _classes(model, options.target)
        if options.top > len(model.class_names):
            raise ValueError(f"--top {options.top}, but the network has {len(model.class_names)} classes")
    say(console, f"{model.description}; {counted(len(paths), 'image')}, {', '.join(method.name for method in methods)}")
    with refusing():
        failed = explain(model, paths, options, methods, fixed, console)
    for path, reason in failed.items():
        say(console, f"{shown(path)}: {reason}", mark="not read:")
    return 1 if failed else 0


def explain(
    model: LoadedModel,
    paths: list[Path],
    options: argparse.Namespace,
    methods: Sequence[Method],
    fixed: list[int] | None,
    console: Console,
) -> dict[Path, str]:
    """Write a picture (or .npy) per image into `options.out`, sheets of `ON_SHEET` rows if there are several, and ``maps.json``.

    A picture lies where its image lies below the folder that all have in common, under the same name. One method's maps stand
    side by side, a column for each class; of several methods each has a column, and each class a row. With `options.curve`
    ``NAME_curves.png`` lies beside it.

    Returns:
        The files that could not be read, with the reason.

    Raises:
        ValueError: a picture would take the place of an image, or of another picture.
        FileExistsError: or of another file that this command did not write.
    """
    out, raw = Path(options.out), options.style == "raw"
    files, failed = WrittenFiles(out, "explained"), dict[Path, str]()
    several = len(methods) > 1
    count = options.top if fixed is None else len(fixed)
    each = max(1, ON_SHEET // count) if several else ON_SHEET  # images on a page
    pages = [] if raw or len(paths) == 1 else [f"sheet_{i + 1}.png" for i in range(math.ceil(len(paths) / each))]
    names = _names(paths, ".npy" if raw else ".png", pages)
    curved = {path: Path(name).with_suffix("").as_posix() + "_curves.png" for path, name in names.items() if options.curve}
    written = [*pages, "maps.json", *names.values(), *curved.values()]
    if twice := [name for name, times in Counter(written).items() if times > 1]:
        raise ValueError(
            f"{twice[0]!r} would be the name of two pictures: explain those images in calls of their own, each with --out"
        )
    targets = {(out / name).resolve() for name in written}
    for path in paths:
        if path.resolve() in targets:
            raise ValueError(f"{str(path)!r} would be overwritten: give another folder by --out")
    files.check(written)
    rows, captions, records = list[list[Any]](), list[list[str]](), list[dict[str, Any]]()
    ready: dict[str, Maps] = {}
    words_of: UnitWords | None = None
    about: dict[str, Any] = {}
    heading: list[str] = []
    titles = ["", *(method.name for method in methods)] if several else ["", *[methods[0].name] * count]
    signed = [method.key in SIGNED for method in methods]

    def put_page() -> None:
        page = sheet(rows, captions, heading, any(signed), coloured=not all(signed), titles=titles if several else None)
        files.put(pages.pop(0), png(page))
        rows.clear()
        captions.clear()

    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("mapping", total=len(paths))
        for batch, images in read_images(paths, model, options.batch_size, failed):
            images = images.to(next(model.network.parameters()).device)
            with torch.no_grad():
                logits = model.network(images)
            if not bool(logits.isfinite().any()):
                raise ValueError(f"the network returns no finite number for {shown(batch[0])}: {why_not_finite(model.network)}")
            if not ready:
                setup = _setup(model, images, options, methods)
                ready = {method.key: maps_of(method, setup) for method in methods}
                about, heading = _told(model, setup, methods, options)
                if options.words is not None:
                    table = options.words or table_beside(options.checkpoint)
                    words_of = UnitWords(table, model.network, options.layer, images[:1])
            probability = logits if sum_to_one(logits) else _probabilities(logits, options.activation)
            if fixed is None:
                classes = probability.topk(count, dim=1).indices
            else:
                classes = torch.tensor([fixed] * len(images), device=logits.device)
            shares = probability.gather(1, classes).tolist()
            seeds = [zlib.crc32(os.fsencode(names[path])) for path in batch]
            maps = [[ready[method.key](images, chosen, seeds) for method in methods] for chosen in classes.unbind(dim=1)]
            spoken = [words_of(images, each_class) for each_class in classes.unbind(dim=1)] if words_of else []
            pixels = to_uint8(images, model.mean, model.std)
            for i, path in enumerate(batch):
                chosen, own = classes[i].tolist(), [[one[i] for one in of_class] for of_class in maps]
                labels = [f"{model.class_names[c]} {percent(share)}" for c, share in zip(chosen, shares[i], strict=True)]
                entries = _entries(model, methods, chosen, shares[i], own)
                for words, start in zip(spoken, range(0, len(entries), len(methods)), strict=bool(spoken)):
                    say(console, f"{path.name}: {sentence(entries[start]['class'], words[i])}")
                    for entry in entries[start : start + len(methods)]:
                        entry["words"] = words[i]
                records.append({"image": str(path), "file": names[path], "maps": entries})
                if options.curve:
                    records[-1]["curves"] = curved[path]
                    files.put(curved[path], _curves(setup, model, methods, images[i : i + 1], chosen, labels, own, entries))
                if raw:
                    np.save(buffer := io.BytesIO(), torch.stack([m for (m,) in own]).cpu().numpy())
                    files.put(names[path], buffer.getvalue())
                    continue
                if fixed is None and path.parent.name in model.class_names and model.class_names[chosen[0]] != path.parent.name:
                    labels[0] += f", not {path.parent.name}"
                told = [[f"against {label}" if method.key == AGAINST else label for method in methods] for label in labels]
                drawings = [
                    [
                        drawn(pixels[i], one, options.style, fine=method.key in FINE)
                        for method, one in zip(methods, of_class, strict=True)
                    ]
                    for of_class in own
                ]
                if not several:
                    drawings, told = [[one for (one,) in drawings]], [[words for (words,) in told]]
                of_image = [[pixels[i], *row] for row in drawings]
                picture = panels(
                    of_image, titles, captions=[[path.name, *row] for row in told], size=max(224, *pixels.shape[-2:])
                )
                files.put(names[path], png(picture))
                rows += of_image
                captions += [[(Path(names[path]).parent / path.name).as_posix(), *row] for row in told]
                if len(rows) == each * len(of_image) and pages:
                    put_page()
            progress.update(task, completed=min(len(paths), progress.tasks[0].completed + len(batch)))
        progress.update(task, completed=len(paths))
    if rows and pages:
        put_page()
    files.put("maps.json", (json.dumps({**about, "images": records}, indent=1) + "\n").encode())
    say(console, f"wrote {counted(len(records), 'array' if raw else 'picture')} and maps.json to {shown(out)}/")
    missing = sum(one["empty"] for record in records for one in record["maps"])
    if missing:
        are = "map is empty" if missing == 1 else "maps are empty"
        why = "nothing in the image speaks for that class more than its blurred copy does"
        say(
            console,
            f"{missing} {are}: {why if [method.key for method in methods] == [FULL] else 'the method finds nothing there'}",
        )
    return failed


def _entries(
    model: LoadedModel,
    methods: Sequence[Method],
    chosen: Sequence[int],
    shares: Sequence[float],
    maps: Sequence[Sequence[Tensor]],
) -> list[dict[str, Any]]:
    """What maps.json says of one image's maps, class by class."""
    return [
        {
            "class": model.class_names[c],
            "index": c,
            "probability": round(share, 4),
            "method": method.key,
            "empty": not bool(one.any()),
        }
        for c, share, of_class in zip(chosen, shares, maps, strict=True)
        for method, one in zip(methods, of_class, strict=True)
    ]


def _probabilities(logits: Tensor, activation: str) -> Tensor:
    return logits.sigmoid() if activation == "sigmoid" else logits.softmax(dim=1)


def _curves(
    setup: Setup,
    model: LoadedModel,
    methods: Sequence[Method],
    image: Tensor,
    chosen: Sequence[int],
    labels: Sequence[str],
    maps: Sequence[Sequence[Tensor]],
    entries: Sequence[dict[str, Any]],
) -> bytes:
    """The picture of one image's curves, whose areas are put into its `entries`."""
    rows = [
        (f"{method.name}, {label}", curves_of(setup, image, ranking(one[None])[0], c, against=method.key == AGAINST))
        for c, label, of_class in zip(chosen, labels, maps, strict=True)
        for method, one in zip(methods, of_class, strict=True)
    ]
    for entry, (_, curves) in zip(entries, rows, strict=True):
        entry |= {way: None if curves is None else round(curves.areas[way], 4) for way in ("insertion", "deletion")}
    return curve_picture(rows, model.mean, model.std)


def _classes(model: LoadedModel, names: Sequence[str]) -> list[int]:
    """Indices of the classes given by --target."""
    classes = [model.class_index(name) for name in names]
    for i, index in enumerate(classes):
        if index in classes[:i]:
            raise ValueError(f"--target {names[i]} and --target {names[classes.index(index)]} are one class: give it once")
    return classes


def _setup(model: LoadedModel, images: Tensor, options: argparse.Namespace, methods: Sequence[Method]) -> Setup:
    """The network, and the layer that is explained where a method has one: found where it is not given."""
    if not needs_layer(methods):
        return Setup(model.network, "", 0, activation=options.activation)
    return Setup.of(model.network, images[:1], options.layer, options.activation)


def _told(
    model: LoadedModel, setup: Setup, methods: Sequence[Method], options: argparse.Namespace
) -> tuple[dict[str, Any], list[str]]:
    """What was asked for, for maps.json, and for the head of a sheet."""
    keys = [method.key for method in methods]
    groups, mask_at = setup.groups(32) if options.groups is None else options.groups, options.mask_at or "input"
    settings = {"groups": groups, "mask_at": mask_at} if FULL in keys else {}
    which = {"methods": keys} if len(keys) > 1 else {"method": keys[0]}
    layer = {"layer": setup.layer} if setup.layer else {}
    place = {"input": "the input", "stage": "the last stage", "target": "the layer"}.get(mask_at, mask_at)
    how = f"{counted(groups, 'group')}, masks on {place}" if FULL in keys else ""
    at = f"layer {setup.layer}" if setup.layer else ""
    if len(keys) > 1:
        first = [at, f"{methods[keys.index(FULL)].name}: {how}" if how else ""]
    else:
        first = [", ".join(part for part in (methods[0].name, at) if part), how]
    fine = ", ".join(method.name for method in methods if method.key in FINE)
    alike = f"{fine}: the highest {1 - MOST:.1%} of the pixels are shown alike" if fine else ""
    return {**which, **layer, **settings, "network": model.description}, [*first, alike, model.description]


def _names(paths: list[Path], suffix: str, taken: Sequence[str]) -> dict[Path, str]:
    """For each image the file to write: its path below the folder in common, with the image's suffix only where it must be."""
    root = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    below = {path: path.absolute().relative_to(root) for path in paths}
    bare = Counter([*(path.with_suffix(suffix).as_posix() for path in below.values()), *taken])
    return {
        path: name if bare[name := part.with_suffix(suffix).as_posix()] == 1 else f"{part.as_posix()}{suffix}"
        for path, part in below.items()
    }
