"""Figures of ``groupcam-aug evaluate`` from its rows: means, bootstrap intervals, paired differences, and what they say."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor

from groupcam_aug.recipes.evaluation.datasets import Item
from groupcam_aug.recipes.evaluation.methods import Method, Setup
from groupcam_aug.recipes.evaluation.results_file import Book, Outcome

__all__ = ["ablation_rows", "bootstrap", "figures_of", "make_record", "reading"]

RESAMPLES = 2000
REFERENCES = ("gradcam", "centre")  # keys of the methods that all others are compared with, image by image
_HELD = 4_000_000  # numbers at a time while resampling


def bootstrap(
    values: Tensor, figure: Callable[[Tensor], Tensor] | None = None, *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[Tensor, Tensor]:
    """95 % interval over images: percentiles of the figure when the images are drawn again with replacement.

    Args:
        values: (n, ...), n images.
        figure: (r, n) counts, how often each image was drawn, one row a resample -> (r, ...). None: the mean of `values`.
        seed: of the resampling; equal seeds draw equal images, so that methods meet the same ones.
        resamples: how often. Default: 2000.

    Returns:
        Lower and upper end, float64, each of the shape of the figure.
    """
    count, flat = len(values), values.double().reshape(len(values), -1)
    generator, step, found = torch.Generator().manual_seed(seed), max(1, _HELD // max(1, len(values))), []
    for start in range(0, resamples, step):
        drawn = torch.randint(count, (min(step, resamples - start), count), generator=generator)
        ones = torch.ones(drawn.shape, dtype=torch.float64)
        times = torch.zeros_like(ones).scatter_add_(1, drawn, ones)
        found.append((times @ flat / count).reshape(-1, *values.shape[1:]) if figure is None else figure(times))
    low, high = torch.cat(found).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    return low, high


def figures_of(items: Sequence[Item], methods: Sequence[Method], book: Book, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Figures of every method over the images that have rows, keyed by the method's name.

    Means are over images with a map ("undefined" counts the others); a figure that no image has is left out. Differences to
    the methods of `REFERENCES` are over images where both have a map.

    Args:
        items: what was measured; those without rows are passed over.
        methods: in the order of the table.
        book: the rows.
        seed: of the bootstrap.
    """
    result = {}
    for method in methods:
        rows = {item.key: row for item in items if (row := book.row(item, method.key)) is not None}
        if not rows:
            continue
        found: dict[str, Any] = {"key": method.key, "kind": method.kind, "told": method.told, "images": len(rows)}
        found["undefined"] = sum(row["undefined"] for row in rows.values())
        for name in ("insertion", "deletion"):
            if curves := _there(rows, f"{name}_curve"):
                found[name] = _curve(curves, _there(rows, name), book.fractions, seed)
        overall = _overall(rows)
        columns = {"overall": list(overall.values()), **{name: _there(rows, name) for name in ("drop", "increase", "energy")}}
        found |= {name: _mean(values, seed) for name, values in columns.items() if values}
        if _there(rows, "hit"):
            found["pointing"] = _pointing(rows, seed)
        for reference in REFERENCES:
            own = {item.key: row for item in items if (row := book.row(item, reference)) is not None}
            other = _overall(own)
            both = [overall[key] - other[key] for key in overall if key in other]
            if both and reference != method.key:
                found[f"to_{reference}"] = {**_mean(both, seed), "images": len(both)}
        if method.kind != "control":
            found["passes"] = book.costs.get(method.key)
            seconds = _there({key: row for key, row in rows.items() if row.get("warm")}, "seconds") or _there(rows, "seconds")
            if seconds:
                ends = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
                found["milliseconds"] = {"median": round(1000 * ends[1], 4), "iqr": round(1000 * (ends[2] - ends[0]), 4)}
        result[method.name] = found
    return result


def reading(methods: Mapping[str, dict[str, Any]]) -> str:
    """One line under the table: who leads, and who is surely above the centred blob."""
    scored = {name: found["overall"]["mean"] for name, found in methods.items() if found.get("overall")}
    if not scored:
        pointed = {name: found["pointing"]["macro"] for name, found in methods.items() if found.get("pointing")}
        if not pointed:
            return ""
        best = max(pointed, key=lambda name: pointed[name])
        return f"{best} points best ({pointed[best]:.1%} of a class's images, mean over classes)."
    best = max(scored, key=lambda name: scored[name])
    told = [f"{best} has the highest over-all ({round(scored[best], 3) + 0:.3f})"]
    judged: dict[str, list[str]] = {"surely above": [], "surely below": [], "not surely either": []}
    for name, found in methods.items():
        if found["kind"] != "control" and found.get("to_centre"):
            low, high = found["to_centre"]["interval"]
            judged["surely above" if low > 0 else "surely below" if high < 0 else "not surely either"].append(name)
    if any(judged.values()):
        parts = [f"{verdict}: {', '.join(names)}" for verdict, names in judged.items() if names]
        told.append("beside the centred blob, image by image at 95 %, " + "; ".join(parts))
    if any(found["undefined"] for found in methods.values()):
        told.append("images without a map are counted in their column and left out of that method's means")
    return "; ".join(told) + "."


def ablation_rows(rows: Mapping[float, Method], items: Sequence[Item], book: Book, seed: int = 0) -> list[dict[str, Any]]:
    """Areas and their intervals for each value of the number that varies."""
    found = []
    for value, method in rows.items():
        for own in figures_of(items, [method], book, seed).values():
            there = [name for name in ("insertion", "deletion") if name in own]
            areas: dict[str, Any] = {name: {"mean": own[name]["auc"], "interval": own[name]["interval"]} for name in there}
            areas |= {"overall": own["overall"]} if "overall" in own else {}
            found.append({"value": value, **areas, "undefined": own["undefined"], "images": own["images"]})
    return found


def make_record(
    figures: dict[str, Any],
    ablations: dict[str, Any],
    methods: Sequence[Method],
    book: Book,
    outcome: Outcome,
    told: str,
    setup: Setup,
) -> dict[str, Any]:
    """What evaluation.json holds; `methods`, `sanity` and `told` are what the report reads.

    Args:
        figures: of `figures_of`.
        ablations: kind -> `ablation_rows`.
        methods: all that were asked for.
        book: the rows, costs and sanity checks.
        outcome: what could not be done.
        told: what was evaluated, in a line.
        setup: network and layer.
    """
    names = {method.key: method.name for method in methods}
    sanity = {
        name: {**book.sanity[key]["sanity"], "method": name, "images": len(book.sanity[key]["files"])}
        for key, name in names.items()
        if key in book.sanity
    }
    device = next(setup.network.parameters()).device
    threads = f"{device.type}, {torch.get_num_threads()} threads"
    return {
        "methods": figures,
        **({"sanity": next(iter(sanity.values()))} if sanity else {}),
        "told": told,
        "reading": reading(figures),
        "sanity_of": sanity,
        "ablations": ablations,
        "left_out": {names[key]: reason for key, reason in outcome.left_out.items()},
        "not_read": {str(path): reason for path, reason in outcome.failed.items()},
        "notes": [f"G={setup.channels} in place of {G}: the layer has no more channels" for G in (16, 32) if setup.channels < G],
        "settings": book.settings,
        "conditions": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else threads,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
    }


def _curve(curves: list[list[float]], areas: list[float], fractions: list[float], seed: int) -> dict[str, Any]:
    values = torch.tensor(curves, dtype=torch.float64)
    low, high = bootstrap(values, seed=seed)
    area = _mean(areas, seed)
    return {
        "fractions": fractions,
        "mean": _rounded(values.mean(dim=0)),
        "band": [_rounded(low), _rounded(high)],
        "auc": area["mean"],
        "interval": area["interval"],
    }


def _mean(values: Sequence[float], seed: int) -> dict[str, Any]:
    own = torch.tensor([float(value) for value in values], dtype=torch.float64)
    low, high = bootstrap(own, seed=seed)
    return {"mean": round(float(own.mean()), 6), "interval": [round(float(low), 6), round(float(high), 6)]}


def _pointing(rows: Mapping[str, dict[str, Any]], seed: int) -> dict[str, Any]:
    """Accuracy as mean over the classes seen (as the paper reports it) and over all trials."""
    labels = sorted({row["label"] for row in rows.values()})
    hits = torch.tensor([float(row["hit"]) for row in rows.values()], dtype=torch.float64)
    which = torch.tensor([labels.index(row["label"]) for row in rows.values()])
    belongs = torch.nn.functional.one_hot(which, len(labels)).double()
    by_class = (belongs * hits[:, None]).sum(dim=0) / belongs.sum(dim=0)
    low, high = bootstrap(hits, lambda times: ((times @ (belongs * hits[:, None])) / (times @ belongs)).nanmean(dim=1), seed=seed)
    micro = _mean(hits.tolist(), seed)
    return {
        "macro": round(float(by_class.mean()), 6),
        "interval": [round(float(low), 6), round(float(high), 6)],
        "micro": micro["mean"],
        "micro_interval": micro["interval"],
        "classes": {label: round(float(value), 6) for label, value in zip(labels, by_class, strict=True)},
    }


def _overall(rows: Mapping[str, dict[str, Any]]) -> dict[str, float]:
    return {key: row["insertion"] - row["deletion"] for key, row in rows.items() if row.get("insertion") is not None}


def _there(rows: Mapping[str, dict[str, Any]], name: str) -> list[Any]:
    return [row[name] for row in rows.values() if row.get(name) is not None]


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]
