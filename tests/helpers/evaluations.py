"""``groupcam-aug evaluate`` as tests call it, and what it left."""

import json

import torch
from PIL import Image

from groupcam_aug.recipes.cli import main
from groupcam_aug.recipes.evaluation.datasets import Item
from groupcam_aug.recipes.evaluation.methods import METHODS
from groupcam_aug.recipes.evaluation.results_file import ResultsFile

NAMES = ["cat", "dog", "tvmonitor"]
QUICK = ["--steps", 3, "--sanity-images", 2]


def draw(path, seed, size=(40, 48)):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = torch.rand(1, 3, 5, 6, generator=torch.Generator().manual_seed(seed))
    pixels = torch.nn.functional.interpolate(coarse, size, mode="bilinear")[0].mul(255).byte().permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).save(path)


def evaluate(*words, checkpoint):
    return main(["evaluate", *map(str, words), "--checkpoint", str(checkpoint), "--device", "cpu"])


def record(out):
    return json.loads((out / "evaluation.json").read_text())


def lines(out):
    return [json.loads(line) for line in (out / "images.jsonl").read_text().splitlines()]


def without_times(found):
    methods = {name: {k: v for k, v in own.items() if k != "milliseconds"} for name, own in found["methods"].items()}
    return {**found, "methods": methods}


def results_by_hand(folder):
    """(items, methods, results): five items, of which the last could not be read, and three methods with simple scores."""
    chosen = [method for method in METHODS if method.key in ("groupcam", "gradcam", "centre")]
    results, items = ResultsFile(folder, {}), [Item(str(i), folder / "gone") for i in range(5)]
    areas = {"groupcam": [0.9, 0.8, None, 0.7], "gradcam": [0.5, None, 0.6, 0.4], "centre": [0.2, 0.2, 0.2, 0.2]}
    for key, own in areas.items():
        for i, area in enumerate(own):  # and nothing for the fifth item, which could not be read
            curves = {"insertion_curve": area and [0.0, area], "deletion_curve": area and [area, 0.0]}
            score = {"insertion": area, "deletion": area and 0.1, "undefined": area is None, **curves}
            place = {"hit": i != 1, "energy": 0.25 * i, "label": "dog" if i == 3 else "cat"}
            results.add(
                {"file": str(i), "stamp": "", "method": key, **score, **place, "seconds": [9.0, 1.0, 3.0, 2.0][i], "warm": i > 0}
            )
    results.add({"fractions": [0.0, 1.0]})
    return items, chosen, ResultsFile(folder, {})
