"""Figures of ``groupcam-aug evaluate`` from its rows: means, intervals, paired differences, and what they say."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torchvision

from groupcam_aug.metrics.intervals import LEAST_IMAGES, bootstrap_interval, paired_verdict, student_interval
from groupcam_aug.recipes.evaluation.datasets import Item
from groupcam_aug.recipes.evaluation.map_method import Method, Setup
from groupcam_aug.recipes.evaluation.results_file import Outcome, ResultsFile

__all__ = ["ablation_rows", "figures_of", "left_out_images", "make_record", "reading"]

DIGITS = 6  # after the point; rounding must make no difference of what is equal
RESAMPLES = 2000
REFERENCES = ("gradcam", "centre")  # keys of the methods that all others are compared with, image by image


def figures_of(
    items: Sequence[Item], methods: Sequence[Method], results: ResultsFile, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Figures of every method over the images that have rows, keyed by the method's name.

    Means are over the images for which all of the methods have a map ("compared" counts them, "undefined" those where this one
    has none); the pointing game, energy and boxes are over all images, where no map is a miss. A figure that no image has is
    left out. Differences to the methods of `REFERENCES` come with a verdict, see `paired_verdict`.

    Args:
        items: what was measured; those without rows are passed over.
        methods: in the order of the table; one without any map is no reason to leave an image out.
        results: the rows.
        seed: of the bootstrap.
    """
    measured = {method: rows for method in methods if (rows := _rows(items, results, method.key))}
    mapped = [{key for key, row in rows.items() if not row["undefined"]} for rows in measured.values()]
    common = set[str].intersection(*some) if (some := [keys for keys in mapped if keys]) else set()
    by_method = {}
    for method, every in measured.items():
        rows = {key: row for key, row in every.items() if key in common and not row["undefined"]}
        figures: dict[str, Any] = {"key": method.key, "kind": method.kind, "told": method.description, "images": len(every)}
        figures |= {"undefined": sum(row["undefined"] for row in every.values()), "compared": len(rows)}
        for name in ("insertion", "deletion"):
            if curves := _values(rows, f"{name}_curve"):
                figures[name] = _curve(curves, _values(rows, name), results.fractions)
        overall = _overall(rows)
        columns = {
            "overall": list(overall.values()),
            "drop": _values(rows, "drop"),
            "occlusion": _values(rows, "occlusion"),
            "energy": _values(every, "energy"),
        }
        figures |= {name: _mean(values) for name, values in columns.items() if values}
        shares = {name: _values(every, name) for name in ("box_error", "top1_error")}
        shares["increase"] = _values(rows, "increase")
        figures |= {name: _share(values) for name, values in shares.items() if values}
        if _values(every, "hit"):
            figures["pointing"] = _pointing(every, seed)
        for reference in REFERENCES:
            other = _overall(_rows(items, results, reference))
            differences = [round(overall[key] - other[key], DIGITS) for key in overall if key in other]
            if differences and reference != method.key:
                told = {"images": len(differences), "verdict": paired_verdict(differences)}
                figures[f"to_{reference}"] = {**_mean(differences), **told}
        if method.kind != "control":
            figures["passes"] = results.costs.get(method.key)
            warm = {key: row for key, row in every.items() if row.get("warm")}
            if seconds := _values(warm, "seconds") or _values(every, "seconds"):
                quartiles = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
                low, median, high = quartiles
                figures["milliseconds"] = {"median": round(1000 * median, 4), "iqr": round(1000 * (high - low), 4)}
        by_method[method.name] = figures
    return by_method


def reading(methods: Mapping[str, dict[str, Any]]) -> str:
    """One line under the table: who leads, and who is shown to be above the centred blob."""
    scored = {name: figures["overall"]["mean"] for name, figures in methods.items() if figures.get("overall")}
    if not scored:
        return _reading_of_boxes(methods) or _reading_without_curves(methods)
    leaders, most = _leaders(scored, 3)
    verb = "have the same" if len(leaders) == len(scored) > 1 else "have the highest" if len(leaders) > 1 else "has the highest"
    who = "All methods" if len(leaders) == len(scored) > 1 else _listed(leaders)
    compared = _number(max(figures["compared"] for figures in methods.values()), "image")
    sentences = [f"{who} {verb} over-all ({most:.3f}) on {compared}"]
    verdicts: dict[str, list[str]] = {"above": [], "below": [], "open": [], "few": []}
    for name, figures in methods.items():
        if figures["kind"] != "control" and (to_centre := figures.get("to_centre")):
            verdicts[to_centre["verdict"]].append(name)
    told = {"above": "shown above", "below": "shown below", "open": "no difference shown"}
    if parts := [f"{words}: {', '.join(verdicts[verdict])}" for verdict, words in told.items() if verdicts[verdict]]:
        sentences.append("beside the centred blob, image by image, each at 95 % by itself, " + "; ".join(parts))
    if verdicts["few"]:
        fewest = min(figures["to_centre"]["images"] for figures in methods.values() if figures.get("to_centre"))
        sentences.append(
            f"no verdict beside the centred blob from {_number(fewest, 'image')}: at least {LEAST_IMAGES} are needed (--limit)"
        )
    if missing := left_out_images(methods):
        sentences.append(missing)
    return "; ".join(sentences) + "."


def _reading_of_boxes(methods: Mapping[str, dict[str, Any]]) -> str:
    """Who points or places boxes best; empty if neither was measured."""
    trials = _number(max((figures["images"] for figures in methods.values()), default=0), "trial")
    if pointed := {name: 100 * figures["pointing"]["macro"] for name, figures in methods.items() if figures.get("pointing")}:
        leaders, share = _leaders(pointed, 1)
        what = f"({share:.1f}% of a class's images, mean over classes) in {trials}"
        if len(leaders) == len(pointed) > 1:
            return f"All point equally well {what}."
        return f"{_listed(leaders)} point{'' if len(leaders) > 1 else 's'} best {what}."
    placed = {name: -100 * figures["box_error"]["mean"] for name, figures in methods.items() if figures.get("box_error")}
    if not placed:
        return ""
    leaders, share = _leaders(placed, 1)
    who, verb = ("All", "have") if len(leaders) == len(placed) > 1 else (_listed(leaders), "have" if len(leaders) > 1 else "has")
    return f"{who} {verb} the fewest wrong boxes ({0 - share:.1f}%) in {trials}."


def _reading_without_curves(methods: Mapping[str, dict[str, Any]]) -> str:
    missing = left_out_images(methods)
    compared = max((figures["compared"] for figures in methods.values()), default=0)
    return missing and missing[0].upper() + missing[1:] + ("." if compared else ": compare fewer methods by --methods.")


def left_out_images(methods: Mapping[str, dict[str, Any]]) -> str:
    """How many images are in no mean because not all methods have a map for them, and for whom; empty if all are in."""
    total = max((figures["images"] for figures in methods.values()), default=0)
    compared = max((figures["compared"] for figures in methods.values()), default=0)
    whose = [
        f"{name} for {figures['undefined']}" for name, figures in methods.items() if 0 < figures["undefined"] < figures["images"]
    ]
    if compared == total or not whose:
        return ""
    return (
        f"means are over the {compared} of {_number(total, 'image')} for which every method has a map, "
        f"{total - compared} left out (without one: {', '.join(whose)})"
    )


def ablation_rows(
    rows: Mapping[float, Method], items: Sequence[Item], results: ResultsFile, seed: int = 0
) -> list[dict[str, Any]]:
    """Areas and their intervals for each value of the number that varies, over the images that have a map with all of them."""
    table, figures_by_name = [], figures_of(items, list(rows.values()), results, seed)
    for value, method in rows.items():
        if figures := figures_by_name.get(method.name):
            measured = [name for name in ("insertion", "deletion") if name in figures]
            areas: dict[str, Any] = {
                name: {"mean": figures[name]["auc"], "interval": figures[name]["interval"]} for name in measured
            }
            areas |= {"overall": figures["overall"]} if "overall" in figures else {}
            counts = {name: figures[name] for name in ("undefined", "images", "compared")}
            table.append({"value": value, **areas, **counts})
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


def _curve(curves: list[list[float]], areas: list[float], fractions: list[float]) -> dict[str, Any]:
    band, area = student_interval(np.array(curves)), _mean(areas)
    return {
        "fractions": fractions,
        "mean": _rounded(np.mean(curves, axis=0)),
        "band": None if band is None else [_rounded(end) for end in band],
        "auc": area["mean"],
        "interval": area["interval"],
    }


def _mean(values: Sequence[float]) -> dict[str, Any]:
    """The mean, and Student's interval; None where there is none."""
    interval = student_interval(values)
    return {"mean": round(float(np.mean(values)), 6), "interval": None if interval is None else _rounded(interval)}


def _share(values: Sequence[bool]) -> dict[str, Any]:
    """The share of true values, and Wilson's interval, which has a width even if all are alike."""
    from scipy.stats import binomtest

    ends = binomtest(sum(values), len(values)).proportion_ci(method="wilson")
    return {"mean": round(sum(values) / len(values), 6), "interval": _rounded(ends)}


def _leaders(scores: Mapping[str, float], digits: int) -> tuple[list[str], float]:
    """All names with the highest figure, rounded as tables show it, and the figure."""
    rounded = {name: round(score, digits) + 0 for name, score in scores.items()}
    most = max(rounded.values())
    return [name for name, score in rounded.items() if score == most], most


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


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
    micro = _share([bool(hit) for hit in hits])
    ends = bootstrap_interval(trials, macro, seed=seed, resamples=RESAMPLES) if len(hits) >= LEAST_IMAGES else (0.0, 0.0)
    return {
        "macro": round(float(macro(trials)), 6),
        "interval": _rounded(ends) if ends[0] < ends[1] else None,  # of few trials, or all alike, the bootstrap knows nothing
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
