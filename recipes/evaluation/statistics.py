"""Figures of ``groupcam-aug evaluate`` from its rows: means, bootstrap intervals, paired differences, and what they say."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torchvision

from groupcam_aug.metrics.intervals import bootstrap_interval
from groupcam_aug.recipes.evaluation.datasets import Item
from groupcam_aug.recipes.evaluation.map_method import Method, Setup
from groupcam_aug.recipes.evaluation.results_file import Outcome, ResultsFile

__all__ = ["ablation_rows", "figures_of", "make_record", "reading"]

RESAMPLES = 2000
REFERENCES = ("gradcam", "centre")  # keys of the methods that all others are compared with, image by image


def figures_of(
    items: Sequence[Item], methods: Sequence[Method], results: ResultsFile, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Figures of every method over the images that have rows, keyed by the method's name.

    Means are over images with a map ("undefined" counts the others); a figure that no image has is left out. Differences to
    the methods of `REFERENCES` are over images where both have a map.

    Args:
        items: what was measured; those without rows are passed over.
        methods: in the order of the table.
        results: the rows.
        seed: of the bootstrap.
    """
    by_method = {}
    for method in methods:
        rows = _rows(items, results, method.key)
        if not rows:
            continue
        figures: dict[str, Any] = {"key": method.key, "kind": method.kind, "told": method.description, "images": len(rows)}
        figures["undefined"] = sum(row["undefined"] for row in rows.values())
        for name in ("insertion", "deletion"):
            if curves := _values(rows, f"{name}_curve"):
                figures[name] = _curve(curves, _values(rows, name), results.fractions, seed)
        overall = _overall(rows)
        columns = {"overall": list(overall.values()), **{name: _values(rows, name) for name in ("drop", "increase", "energy")}}
        figures |= {name: _mean(values, seed) for name, values in columns.items() if values}
        if _values(rows, "hit"):
            figures["pointing"] = _pointing(rows, seed)
        for reference in REFERENCES:
            other = _overall(_rows(items, results, reference))
            differences = [overall[key] - other[key] for key in overall if key in other]
            if differences and reference != method.key:
                figures[f"to_{reference}"] = {**_mean(differences, seed), "images": len(differences)}
        if method.kind != "control":
            figures["passes"] = results.costs.get(method.key)
            seconds = _values({key: row for key, row in rows.items() if row.get("warm")}, "seconds") or _values(rows, "seconds")
            if seconds:
                quartiles = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
                low, median, high = quartiles
                figures["milliseconds"] = {"median": round(1000 * median, 4), "iqr": round(1000 * (high - low), 4)}
        by_method[method.name] = figures
    return by_method


def reading(methods: Mapping[str, dict[str, Any]]) -> str:
    """One line under the table: who leads, and who is surely above the centred blob."""
    scored = {name: figures["overall"]["mean"] for name, figures in methods.items() if figures.get("overall")}
    if not scored:
        pointed = {name: figures["pointing"]["macro"] for name, figures in methods.items() if figures.get("pointing")}
        if not pointed:
            return ""
        best = max(pointed, key=lambda name: pointed[name])
        return f"{best} points best ({pointed[best]:.1%} of a class's images, mean over classes)."
    best = max(scored, key=lambda name: scored[name])
    sentences = [f"{best} has the highest over-all ({round(scored[best], 3) + 0:.3f})"]
    verdicts: dict[str, list[str]] = {"surely above": [], "surely below": [], "not surely either": []}
    for name, figures in methods.items():
        if figures["kind"] != "control" and figures.get("to_centre"):
            low, high = figures["to_centre"]["interval"]
            verdicts["surely above" if low > 0 else "surely below" if high < 0 else "not surely either"].append(name)
    if any(verdicts.values()):
        parts = [f"{verdict}: {', '.join(names)}" for verdict, names in verdicts.items() if names]
        sentences.append("beside the centred blob, image by image at 95 %, " + "; ".join(parts))
    if any(figures["undefined"] for figures in methods.values()):
        sentences.append("images without a map are counted in their column and left out of that method's means")
    return "; ".join(sentences) + "."


def ablation_rows(
    rows: Mapping[float, Method], items: Sequence[Item], results: ResultsFile, seed: int = 0
) -> list[dict[str, Any]]:
    """Areas and their intervals for each value of the number that varies."""
    table = []
    for value, method in rows.items():
        for figures in figures_of(items, [method], results, seed).values():
            measured = [name for name in ("insertion", "deletion") if name in figures]
            areas: dict[str, Any] = {
                name: {"mean": figures[name]["auc"], "interval": figures[name]["interval"]} for name in measured
            }
            areas |= {"overall": figures["overall"]} if "overall" in figures else {}
            table.append({"value": value, **areas, "undefined": figures["undefined"], "images": figures["images"]})
    return table


def make_record(
    figures: dict[str, Any],
    ablations: dict[str, Any],
    methods: Sequence[Method],
    results: ResultsFile,
    outcome: Outcome,
    description: str,
    setup: Setup,
) -> dict[str, Any]:
    """What evaluation.json holds; `methods`, `sanity` and `told` are what the report reads.

    Args:
        figures: of `figures_of`.
        ablations: kind -> `ablation_rows`.
        methods: all that were asked for.
        results: the rows, costs and sanity checks.
        outcome: what could not be done.
        description: what was evaluated, in a line.
        setup: network and layer.
    """
    names = {method.key: method.name for method in methods}
    sanity = {
        name: {**results.sanity[key]["sanity"], "method": name, "images": len(results.sanity[key]["files"])}
        for key, name in names.items()
        if key in results.sanity
    }
    device = next(setup.network.parameters()).device
    threads = f"{device.type}, {torch.get_num_threads()} threads"
    return {
        "methods": figures,
        **({"sanity": next(iter(sanity.values()))} if sanity else {}),
        "told": description,
        "reading": reading(figures),
        "sanity_of": sanity,
        "ablations": ablations,
        "left_out": {names[key]: reason for key, reason in outcome.left_out.items()},
        "not_read": {str(path): reason for path, reason in outcome.failed.items()},
        "notes": [f"G={setup.channels} in place of {G}: the layer has no more channels" for G in (16, 32) if setup.channels < G],
        "settings": results.settings,
        "conditions": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else threads,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
    }


def _curve(curves: list[list[float]], areas: list[float], fractions: list[float], seed: int) -> dict[str, Any]:
    low, high = bootstrap_interval(np.array(curves), seed=seed, resamples=RESAMPLES)
    area = _mean(areas, seed)
    return {
        "fractions": fractions,
        "mean": _rounded(np.mean(curves, axis=0)),
        "band": [_rounded(low), _rounded(high)],
        "auc": area["mean"],
        "interval": area["interval"],
    }


def _mean(values: Sequence[float], seed: int) -> dict[str, Any]:
    return {
        "mean": round(float(np.mean(values)), 6),
        "interval": _rounded(bootstrap_interval(values, seed=seed, resamples=RESAMPLES)),
    }


def _pointing(rows: Mapping[str, dict[str, Any]], seed: int) -> dict[str, Any]:
    """Accuracy as mean over the classes seen (as the paper reports it) and over all trials."""
    labels, classes = np.unique([row["label"] for row in rows.values()], return_inverse=True)
    hits = np.array([float(row["hit"]) for row in rows.values()])

    def by_class(trials: np.ndarray) -> np.ndarray:
        """Share of hits in each class for numbers of trials (..., n) -> (..., classes); NaN without a trial."""
        table = trials.astype(int).reshape(-1, trials.shape[-1])
        cells = classes[table] + len(labels) * np.arange(len(table))[:, None]
        size = len(labels) * len(table)
        with np.errstate(invalid="ignore"):
            share = np.bincount(cells.ravel(), hits[table].ravel(), size) / np.bincount(cells.ravel(), minlength=size)
        return share.reshape(*trials.shape[:-1], len(labels))

    def macro(trials: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.nanmean(by_class(trials), axis=axis)

    trials = np.arange(len(hits))
    micro = _mean(hits.tolist(), seed)
    return {
        "macro": round(float(macro(trials)), 6),
        "interval": _rounded(bootstrap_interval(trials, macro, seed=seed, resamples=RESAMPLES)),
        "micro": micro["mean"],
        "micro_interval": micro["interval"],
        "classes": dict(zip(labels.tolist(), _rounded(by_class(trials)), strict=True)),
    }


def _rows(items: Sequence[Item], results: ResultsFile, key: str) -> dict[str, dict[str, Any]]:
    """The rows of a method, by the item's key."""
    return {item.key: row for item in items if (row := results.row(item, key)) is not None}


def _overall(rows: Mapping[str, dict[str, Any]]) -> dict[str, float]:
    return {key: row["insertion"] - row["deletion"] for key, row in rows.items() if row.get("insertion") is not None}


def _values(rows: Mapping[str, dict[str, Any]], name: str) -> list[Any]:
    return [row[name] for row in rows.values() if row.get(name) is not None]


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(float(value), 6) for value in values]
