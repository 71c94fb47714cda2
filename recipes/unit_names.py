"""``groupcam-aug name-units``: a table of what a layer's units detect, and the words that `explain --words` makes of it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from groupcam_aug.arguments import check_number, check_seed, check_whole
from groupcam_aug.checkpoints import fingerprint
from groupcam_aug.dissection import UnitName, attainable, in_words, name_units, overlaps, thresholds_of
from groupcam_aug.files import put_file
from groupcam_aug.json_shape import misfit
from groupcam_aug.recipes import parsers
from groupcam_aug.recipes.cli import refusing
from groupcam_aug.recipes.concepts import CONCEPTS, draw_concepts
from groupcam_aug.recipes.data import normalised
from groupcam_aug.recipes.image_files import shown
from groupcam_aug.recipes.model_loading import LoadedModel, load_model
from groupcam_aug.recipes.terminal import say
from groupcam_aug.saliency import GradCAM

__all__ = ["UnitWords", "learn_names", "run", "sentence", "table_beside"]

NONE = "no unit has a name"
_UNIT = {"unit": int, "concept": str, "iou": float, "held_out": float}
_TABLE = {"network": str, "layer": str, "rectified": bool, "channels": int, "units": [_UNIT]}


def run(command: str, words: list[str]) -> int:
    """The command: learn names, write the table, say what is in it."""
    parser = parsers.name_units(command)
    options = parser.parse_args(words)
    if options.file is not None and options.checkpoint is not None:
        parser.error("CHECKPOINT and --checkpoint are the same: give one")
    options.checkpoint = options.file or options.checkpoint
    console = Console()
    with refusing():
        if options.out is None and options.checkpoint is None:
            raise ValueError("there is no checkpoint to write the table beside: say where with --out FILE")
        check_whole("--images", options.images, len(CONCEPTS))
        check_whole("--batch-size", options.batch_size, 1)
        check_number("--share", options.share, 0, 1, above=True)
        check_number("--iou", options.iou, 0, 1)
        check_seed(options.seed)
        model = load_model(options)
        say(console, f"{model.description}; {options.images} drawings to learn from, {options.images} to check")
        table = learn_names(
            model, options.layer, options.images, options.share, options.iou, options.seed, options.batch_size, console
        )
        out = Path(options.out) if options.out else table_beside(options.checkpoint)
        put_file(out.parent, out.name, json.dumps(table, indent=1) + "\n")
    units = [UnitName(**unit) for unit in table["units"]]
    for line in _summary(table, units):
        say(console, line)
    say(console, f"wrote {shown(out)}")
    return 0


def table_beside(checkpoint: str | Path) -> Path:
    """Where the table of a checkpoint lies: ``last.ckpt.units.json`` beside ``last.ckpt``."""
    path = Path(checkpoint).expanduser()
    return path.with_name(f"{path.name}.units.json")


def learn_names(
    model: LoadedModel,
    layer: str | None,
    images: int,
    share: float,
    least: float,
    seed: int,
    batch_size: int,
    console: Console | None = None,
) -> dict[str, Any]:
    """The table: network, layer, settings, concepts, and the units that have a name.

    Args:
        model: whose units; drawings are made at its size and normalised as it takes them.
        layer: name; None: found as for maps.
        images: drawings to learn from, and as many others to check on.
        share: see `thresholds_of`.
        least: IoU of a name, see `name_units`.
        seed: of the drawings.
        batch_size: images per call.
        console: shows progress. Default: none.
    """
    device = next(model.network.parameters()).device
    cam = GradCAM(model.network, layer)
    finish = normalised(model.mean, model.std)

    def activations(pixels: Tensor, what: str) -> Tensor:
        parts = pixels.split(batch_size)
        watched = track(parts, what, console=console) if console else parts
        return torch.cat([_tensor(cam.activations(finish(part).as_subclass(Tensor).to(device))) for part in watched])

    drawn, other = (draw_concepts(images, model.size, seed, held_out=held_out) for held_out in (False, True))
    learnt = activations(drawn.images, "learning")
    thresholds = thresholds_of(learnt, share)
    iou = overlaps(learnt, thresholds, drawn.masks)
    held_out = overlaps(activations(other.images, "checking"), thresholds, other.masks)
    units = name_units(iou, held_out, list(CONCEPTS), least)
    return {
        "network": fingerprint(model.network),
        "layer": cam.layer,
        "rectified": cam.layer in cam.rectified,
        "channels": learnt.shape[1],
        "grid": list(learnt.shape[2:]),
        "images": images,
        "size": model.size,
        "seed": seed,
        "share": share,
        "least": least,
        "attainable": {
            name: round(most, 4) for name, most in zip(CONCEPTS, attainable(drawn.masks, share).tolist(), strict=True)
        },
        "units": [unit._asdict() for unit in units],
    }


class UnitWords:
    """What named units of a network say of images, for ``groupcam-aug explain --words``.

    Args:
        path: of a table that `name-units` wrote.
        network: that is explained.
        layer: as asked for: a name, or None for the one found.
        image: (1, 3, H, W), to find it with.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: another file, a table of another network or layer, or one without names.
    """

    def __init__(self, path: str | Path, network: nn.Module, layer: str | None, image: Tensor) -> None:
        path = Path(path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{shown(path)}: there is no table of units; `groupcam-aug name-units` writes it")
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{shown(path)} is no table of `groupcam-aug name-units`: {error}") from error
        if problem := misfit(table, _TABLE):
            raise ValueError(f"{shown(path)} is no table of `groupcam-aug name-units`: {problem}")
        self.cam = GradCAM(network, layer)
        channels = _tensor(self.cam.activations(image)).shape[1]
        if table["network"] != fingerprint(network):
            raise ValueError(f"{shown(path)} names the units of another network, or of other weights: run name-units on this one")
        mine, theirs = (str(self.cam.layer), self.cam.layer in self.cam.rectified), (table["layer"], table["rectified"])
        if mine != theirs or channels != table["channels"] or any(not 0 <= u["unit"] < channels for u in table["units"]):
            raise ValueError(
                f"{shown(path)} names the units of layer {_layer(*theirs)}, and {_layer(*mine)} is explained: run name-units "
                "with that --layer"
            )
        if not table["units"]:
            raise ValueError(f"{shown(path)}: {NONE} at layer {table['layer']!r}, so there are no words for it")
        self.names = {unit["unit"]: unit["concept"] for unit in table["units"]}

    def __call__(self, images: Tensor, classes: Tensor) -> list[dict[str, Any]]:
        """For each image, by name: ``because`` and ``against``, lists of (concept, evidence), and ``named``; see `Words`."""
        pairs = zip(_tensor(self.cam.weights(images, classes)), _tensor(self.cam.activations(images)), strict=True)
        return [in_words(weights, activations, self.names)._asdict() for weights, activations in pairs]


def sentence(class_name: str, words: dict[str, Any]) -> str:
    """``ring, because: green, round; against: stripes (named units: 42 % of the evidence)``."""
    told = [f"{key}: {', '.join(name for name, _ in words[key])}" for key in ("because", "against") if words[key]]
    return f"{class_name}, {'; '.join(told) or 'nothing by units with names'} (named units: {words['named']:.0%} of the evidence)"


def _tensor(of_one_layer: Tensor | list[Tensor]) -> Tensor:
    return of_one_layer.float().cpu() if isinstance(of_one_layer, Tensor) else of_one_layer[0].float().cpu()


def _layer(name: str, rectified: bool) -> str:
    return f"{name!r} behind its ReLU" if rectified else repr(name)


def _summary(table: dict[str, Any], units: list[UnitName]) -> list[str]:
    lines = []
    if units:
        counts = Counter(unit.concept for unit in units)
        best = {name: max((unit for unit in units if unit.concept == name), key=lambda unit: unit.iou) for name in counts}
        lines = [f"{'concept':<10} {'units':>5}  {'best unit':>9}  {'IoU':>5}  {'held out':>8}"]
        for name, number in counts.most_common():
            unit = best[name]
            lines.append(f"{name:<10} {number:>5}  {unit.unit:>9}  {unit.iou:>5.3f}  {unit.held_out:>8.3f}")
        kept = sum(unit.held_out >= table["least"] for unit in units)
        lines.append(
            f"{len(units)} of {table['channels']} units of layer {_layer(table['layer'], table['rectified'])} have a name "
            f"(IoU of at least {table['least']:g}); {kept} of them overlap as much on other drawings"
        )
    else:
        lines.append(
            f"{NONE}: none of the {table['channels']} units of layer {_layer(table['layer'], table['rectified'])} overlaps a "
            f"concept by {table['least']:g}"
        )
    short = [name for name, most in table["attainable"].items() if most < table["least"]]
    if short:
        lines.append(
            f"too widespread to reach that with {table['share']:.1%} of the responses: {', '.join(short)}; a larger --share can"
        )
    return lines
