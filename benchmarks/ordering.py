"""Insertion, deletion and over-all of every method on the ImageNet photographs, by the code of `groupcam-aug evaluate`.

Over-all of every form of Group-CAM and of Grad-CAM must lie above that of a centred blob, that above random cells, and those
above inverted maps. Stopped, the same command goes on where it was: rows are kept in `--rows`. `--only-sanity` does nothing but
re-initialise the network, layer by layer, and tells what is left of the maps.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from common import EFFICIENTNET, Setting, add_device_options, conditions, data_folder, filed, report

from groupcam_aug.checkpoints import fingerprint
from groupcam_aug.recipes.evaluation.command import evaluate
from groupcam_aug.recipes.evaluation.datasets import Item
from groupcam_aug.recipes.evaluation.map_method import Setup
from groupcam_aug.recipes.evaluation.methods import METHODS, choose, rise_method
from groupcam_aug.recipes.evaluation.results_file import Plan, ResultsFile
from groupcam_aug.recipes.evaluation.runner import first_image
from groupcam_aug.recipes.evaluation.statistics import figures_of, make_record
from groupcam_aug.recipes.evaluation.tables_and_plots import write_files
from groupcam_aug.recipes.model_loading import load_model
from groupcam_aug.recipes.parsers import add_network

NETWORKS = {
    "squeezenet": ("torchvision/squeezenet1_1", "squeezenet1_1_imagenet.safetensors"),
    "efficientnet": (f"timm/{EFFICIENTNET}", f"{EFFICIENTNET}_imagenet_fp16.safetensors"),
}
ALL = ",".join(method.key for method in METHODS if method.kind != "peer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_device_options(parser)
    parser.add_argument("--network", choices=tuple(NETWORKS), default="squeezenet", help="pretrained (default: %(default)s)")
    parser.add_argument("--images", type=int, default=300, help="evenly picked (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--author-compatible", action="store_true")
    parser.add_argument("--methods", default=ALL, help="(default: all of this package and the controls)")
    parser.add_argument("--compare", action="store_true", help="other libraries' methods, too")
    parser.add_argument("--rise", type=int, default=0, metavar="MASKS", help="RISE with so many masks, too")
    parser.add_argument("--sanity-images", type=int, default=8)
    parser.add_argument("--only-sanity", action="store_true", help="the sanity check alone, on --sanity-images photographs")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--tag", default="", help="ending of the result file's name")
    parser.add_argument("--rows", help="(default: a folder named after the result file, with other temporary files)")
    parser.add_argument("--restart", action="store_true", help="drop the rows that are there")
    options = parser.parse_args()
    name = "sanity" if options.only_sanity else "ordering" + "_authors" * options.author_compatible
    name += f"_{options.network}" if options.network != "squeezenet" else ""
    name += f"_{options.tag}" if options.tag else ""
    rows = Path(options.rows or Path(tempfile.gettempdir()) / f"groupcam_{name}")
    setting = Setting(options)
    if setting.half or options.channels_last:
        parser.error("areas are measured in fp32 in the usual memory format: leave --precision and --channels-last out")
    spec, file = NETWORKS[options.network]
    words = ["--model", spec, "--checkpoint", str(data_folder() / "weights" / file), "--device", options.device]
    networks = argparse.ArgumentParser()
    add_network(networks)
    model = load_model(networks.parse_args(words))
    methods = choose(options.methods, options.compare)
    if options.rise:
        methods.append(rise_method(options.rise))
    plan = Plan(
        measures=("sanity",) if options.only_sanity else Plan().measures,
        steps=options.steps,
        author_compatible=options.author_compatible,
        sanity_images=options.sanity_images,
        batch_size=options.batch_size,
    )
    with tempfile.TemporaryDirectory() as folder:
        items = photographs(Path(folder), options.sanity_images if options.only_sanity else options.images)
        setup = Setup.of(model.network, first_image(model, items, {}))
        fixed = {"weights": fingerprint(model.network), "layer": setup.layer, "classes": "labels", "device": options.device}
        results = ResultsFile(rows, {**fixed, **plan.settings()}, restart=options.restart)
        outcome = evaluate(model, setup, items, methods, plan, results)
    figures = figures_of(items, methods, results)
    told = f"{model.description}, layer {setup.layer}; {len(items)} ImageNet photographs, their labels; {plan.description()}"
    write_files(rows, make_record(figures, {}, methods, results, outcome, told, setup))
    told_shortly = {
        "network": f"{spec}, ImageNet",
        "layer": setup.layer,
        "images": len(items),
        **{f"left out, {key}": reason for key, reason in outcome.left_out.items()},
    }
    if options.only_sanity:
        table = [sanity_row(method.name, results.sanity[method.key]) for method in methods if method.key in results.sanity]
        header = ["method", "first stage", "all layers", "two photographs", "maps left, first stage", "maps left, end", "verdict"]
        report(filed(name, setting.device), conditions(setting.device, **told_shortly), header, table)
        return
    steps = "the authors'" if plan.author_compatible else plan.steps
    sanity = {f"sanity of {key}": verdict(results.sanity[key]["sanity"]) for key in results.sanity}
    table = [list(row(own, name).values()) for name, own in figures.items()]
    told_whole = conditions(setting.device, **told_shortly, steps=steps, ordering=ordering(figures), **sanity)
    report(filed(name, setting.device), told_whole, list(row({})), table)


def photographs(folder: Path, limit: int) -> list[Item]:
    """The ImageNet sample, unpacked, with its labels."""
    with zipfile.ZipFile(data_folder() / "imagenet_sample.zip") as archive:
        archive.extractall(folder)
        for part in archive.infolist():  # rows are kept for a file of this size and time
            when = datetime.datetime(*part.date_time, tzinfo=datetime.timezone.utc).timestamp()
            os.utime(folder / part.filename, (when, when))
    with (folder / "imagenet_sample" / "labels.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    count = min(limit, len(rows))
    picked = [rows[i * len(rows) // count] for i in range(count)]
    return [Item(r["file"], folder / "imagenet_sample" / r["file"], (int(r["class_index"]),), r["name"]) for r in picked]


def ordering(figures: dict[str, Any]) -> str:
    """Whether ours > centred blob > random cells > inverted holds for the means, and who is not shown above the blob."""
    means = {own["key"]: own["overall"]["mean"] for own in figures.values() if own.get("overall")}
    ours = {own["key"]: own for own in figures.values() if own["kind"] == "ours" and own.get("overall")}
    if not ours or not {"centre", "cells", "inverted"} <= set(means):
        return "not all methods were measured"
    holds = min(means[key] for key in ours) > means["centre"] > means["cells"] > means["inverted"]
    unsure = [own["key"] for own in ours.values() if own.get("to_centre", {}).get("verdict") != "above"]
    told = "ours > centred blob > random cells > inverted " + ("holds" if holds else "FAILS")
    return told + (f"; not shown above the blob: {', '.join(unsure)}" if unsure else "; all of ours shown above the blob")


def verdict(sanity: dict[str, Any]) -> str:
    return f"{sanity['spearman'][-1]:.2f} of {sanity['floors']['other_image']:.2f}, {sanity['undefined'][-1]:.0%} without a map"


def sanity_row(name: str, line: dict[str, Any]) -> list[Any]:
    """Likeness to the original maps at both ends, of two photographs' maps, how many maps are left, and what follows."""
    sanity, count = line["sanity"], len(line["files"])
    ends = [sanity["spearman"][i] if sanity["undefined"][i] < 1 else None for i in (0, -1)]
    left = [f"{round((1 - sanity['undefined'][i]) * count)} of {count}" for i in (0, -1)]
    said = {True: "passed", False: "**failed**", None: "none"}[sanity["passed"]]
    return [name, *ends, sanity["floors"]["other_image"], *left, said]


def row(own: dict[str, Any], name: str = "") -> dict[str, Any]:
    def mean(key: str, value: str = "mean") -> float | None:
        return own[key][value] if own.get(key) else None

    def interval(key: str) -> str | None:
        return "[{:.3f}, {:.3f}]".format(*own[key]["interval"]) if (own.get(key) or {}).get("interval") else None

    return {
        "method": name,
        "insertion": mean("insertion", "auc"),
        "insertion, 95 %": interval("insertion"),
        "deletion": mean("deletion", "auc"),
        "deletion, 95 %": interval("deletion"),
        "over-all": mean("overall"),
        "over-all, 95 %": interval("overall"),
        "less Grad-CAM's": mean("to_gradcam"),
        "less Grad-CAM's, 95 %": interval("to_gradcam"),
        "average drop": mean("drop"),
        "no map": own.get("undefined"),
        "ms per image": mean("milliseconds", "median"),
        "passes": own.get("passes"),
    }


if __name__ == "__main__":
    main()
