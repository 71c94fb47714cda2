"""Records of a run as the callbacks leave them, made up: for tests of what reads them."""

import json

import torch
from PIL import Image

from groupcam_aug import draw
from groupcam_aug.augment import Augmented
from groupcam_aug.files import add_line, put_file

SIDE = 112


def png(width, height, seed=0):
    """Noise, the picture that is hardest to make small."""
    pixels = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return draw.png(Image.fromarray(pixels.numpy()))


def run(folder, epochs=6, names=None, lr=lambda epoch: 0.1, status="finished", **more):
    """As SaliencyReport leaves it."""
    facts = {"status": status, "model": "Lit", "network": "Net", "parameters": 1234567, "class_names": names, "device": "cpu"}
    facts = {
        **facts,
        "versions": {"torch": "2.9"},
        "command": "train.py --lr 0.1",
        "started": "2026-01-01 10:00:00+00:00",
        **more,
    }
    put_file(folder, "run.json", json.dumps(facts))
    for epoch in range(epochs):
        scores = {"train/loss": 2 / (epoch + 1), "val/loss": 3 / (epoch + 1), "val/acc": 1 - 0.5 / (epoch + 1)}
        add_line(folder, "run", {**scores, "epoch": epoch, "step": 10 * epoch, "lr": lr(epoch), "seconds": 60.0})


def monitor(
    folder, epochs=6, probes=3, names=None, change=lambda epoch: 0.5 / (epoch + 1), pictures=True, min_alive=0.5, **values
):
    """As SaliencyMonitor leaves it."""
    shown = list(range(min(probes, 12)))
    facts = {"method": "gradcam", "layer": "layer4", "num_probes": probes, "labels": [i % 3 for i in range(probes)]}
    put_file(
        folder,
        "monitor.json",
        json.dumps(
            {**facts, "class_names": names, "shown": shown, "every_n_epochs": 1, "min_alive": min_alive, "labelled": True}
        ),
    )
    for epoch in range(epochs):
        numbers = {"change": change(epoch), "noise": 0.1, "alive": 1.0, "correct": 0.9, "flip_rate": 0.0, "seconds": 0.2}
        add_line(
            folder,
            "monitor",
            {
                "epoch": epoch,
                "step": 10 * epoch,
                **numbers,
                "probe_alive": [True] * probes,
                "probe_right": [True] * probes,
                "probe_chosen": facts["labels"],
                **values,
            },
        )
        if pictures:
            put_file(folder, f"monitor/epoch_{epoch:05d}.png", png(SIDE, SIDE * len(shown), epoch))
    if pictures:
        put_file(folder, "monitor/probes.png", png(SIDE, SIDE * len(shown), 1000))


def errors(folder, rows=({"label": 0, "chosen": 2, "confidence": 0.9, "score": 0.05, "has_map": True},), epoch=5, side=SIDE):
    """As SaliencyMonitor leaves the probes that are taken for another class."""
    facts = {"epoch": epoch, "cell": [side, side], "wrong": len(rows), "rows": list(rows)}
    put_file(folder, "monitor/errors.json", json.dumps(facts))
    put_file(folder, "monitor/errors.png", png(2 * side, side * len(rows), 7))


def augmentation(folder, epochs=6, per_class=None, size=32, galleries=(0, 5), mask_from="saliency", **values):
    """As GroupCAMAugmentation leaves it."""
    per_class = {"0": [50, 2], "1": [50, 3], "2": [50, 5]} if per_class is None else per_class
    facts = {"preset": "paper", "groups": 16, "layer": "layer4", "layer_shape": [512, 7, 7], "mask_at": "input", "p": 1.0}
    put_file(
        folder, "augmentation.json", json.dumps({**facts, "mask_from": mask_from, "plan": "Group-CAM: layer4", "world_size": 1})
    )
    for epoch in range(epochs):
        numbers = {"steps": 5, "augmented_steps": 5, "images": 150, "drawn": 150, "no_map": 10, "keep_fraction": 0.45}
        numbers |= {"keep_histogram": [0] * 8 + [100, 40] + [0] * 10, "per_class": per_class}
        numbers |= {"seconds": 0.03, "step_seconds": 0.13, "plain_seconds": 0.1, **values}
        add_line(folder, "augmentation", {"epoch": epoch, "step": 10 * epoch, **numbers})
    kinds = ["smallest", "smallest", "largest", "largest", "no map", "no map", "ordinary", "ordinary"]
    rows = [{"kind": kind, "keep": 0.1 * i, "label": i % 3, "step": i} for i, kind in enumerate(kinds)]
    for epoch in galleries:
        put_file(folder, f"gallery/epoch_{epoch:05d}.png", png(4 * size, len(rows) * size, epoch))
        facts = {"epoch": epoch, "cell": [size, size], "columns": ["image", "map", "kept pixels", "augmented"], "rows": rows}
        put_file(folder, f"gallery/epoch_{epoch:05d}.json", json.dumps(facts))


def evaluation(folder, areas=None, spearman=(0.8, 0.4, 0.1), floor=0.2, passed="by the numbers", **more):
    """As `groupcam-aug evaluate` leaves it."""
    areas = {"Group-CAM": (0.5, 0.1), "random cells": (0.2, 0.2)} if areas is None else areas
    fractions = [i / 28 for i in range(29)]
    methods = {
        name: {
            "insertion": {"fractions": fractions, "mean": [insertion] * 29, "auc": insertion, "interval": [insertion, insertion]},
            "deletion": {"fractions": fractions, "mean": [deletion] * 29, "auc": deletion},
        }
        for name, (insertion, deletion) in areas.items()
    }
    sanity = {"mode": "cascading", "stages": [f"layer{i}" for i in range(len(spearman))], "spearman": list(spearman)}
    sanity |= {"undefined": [0.0] * len(spearman), "floors": {"other_image": floor, "zero": 0.0}}
    sanity["passed"] = spearman[-1] <= floor if passed == "by the numbers" else passed
    sanity |= more
    put_file(folder, "evaluation.json", json.dumps({"methods": methods, "sanity": sanity, "told": "24 photographs"}))


def full_run(folder, **options):
    """All of it."""
    names = options.pop("names", ["cat", "dog", "owl"])
    run(folder, names=names, **options)
    monitor(folder, names=names)
    augmentation(folder)
    evaluation(folder)


def stamp(folder, run, epoch=0):
    """Say of all that has no run yet that it is of this one, which began with `epoch`."""
    add_line(folder, "runs", {"run": run, "epoch": epoch, "began": "2026-01-01 10:00:00+00:00"})
    for path in [*folder.glob("*.json"), *folder.glob("*/*.json"), *folder.glob("*.jsonl")]:
        lines = path.read_text().splitlines()
        made = [json.dumps({"run": run, **json.loads(line)}) for line in lines]
        path.write_text("".join(f"{line}\n" for line in made))


def augmented_batch(fractions, size=10, drawn=None, batch=None):
    """A batch in which image i keeps `fractions[i]` of its pixels; None: it has no map."""
    count = len(fractions)
    drawn = torch.arange(count) if drawn is None else torch.tensor(drawn)
    keep = torch.zeros(count, size * size, dtype=torch.bool)
    for row, fraction in zip(keep, fractions, strict=True):
        row[: round((1 if fraction is None else fraction) * size * size)] = True
    keep = keep.view(count, size, size)
    no_map = torch.tensor([fraction is None for fraction in fractions])
    images = torch.rand(batch or count, 3, size, size, generator=torch.Generator().manual_seed(0))
    return Augmented(images * 0.5, drawn, keep.float() * ~no_map[:, None, None], keep, no_map), images
