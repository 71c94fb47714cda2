"""What the finished runs of a trial add up to, as plain values, and the files that say so. Nothing is trained here."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from groupcam_aug.recipes.trial.metrics import ACCURACIES, Mode
from groupcam_aug.recipes.trial.notes import are_paired, distinct, notes, unpaired_seeds
from groupcam_aug.recipes.trial.page import render_markdown, render_page
from groupcam_aug.recipes.trial.plots import forest_png
from groupcam_aug.recipes.trial.statistics import compare, mean_and_error
from groupcam_aug.recipes.trial.verdict import verdict
from groupcam_aug.recipes.written_files import WrittenFiles

__all__ = ["results_in", "summarise", "write_results"]

RESULTS = ("results.json", "results.md", "index.html", "forest.png")
WORST = ("worst_class_accuracy", "worst_group_accuracy")  # compared beside the primary metric
MAPS = ("keep_fraction", "no_map", "object_kept", "ground_kept", "augmented")

Record = Mapping[str, Any]


def results_in(folder: Path) -> WrittenFiles:
    """The results in a trial's folder, also of a version that kept no list of them.

    Raises:
        FileExistsError: one of the files is none of a trial's, and would be overwritten.
    """
    files = WrittenFiles(folder, "trial")
    files.adopt(RESULTS, {"verdict": {"conclusion": str}, "failures": [object], "summary": {"arms": {...: object}}})
    files.check(RESULTS)
    return files


def write_results(
    folder: Path,
    records: Sequence[Record],
    *,
    metric: str = "accuracy",
    mode: Mode = "max",
    reference: str = "none",
    margin: float = 0.01,
    failures: Sequence[Mapping[str, Any]] = (),
    planned: Mapping[str, int] | None = None,
    title: str = "",
    command: str = "",
    sheets: Mapping[str, bytes] | None = None,
    show: Callable[[Mapping[str, Any]], None] = lambda results: None,
) -> list[Path]:
    """Write `results.json`, `results.md`, `index.html` and, where arms can be compared, `forest.png` into `folder`.

    Args:
        folder: of the trial; the page links to the files of its runs that are there.
        records: of the finished runs; none is fine, the results then say what failed.
        metric: primary metric, see `summarise`; likewise mode, reference and margin.
        mode: "max" where higher is better, "min" where lower is.
        reference: the arm that others are compared with.
        margin: within which a difference counts as none, in the metric's unit (0.01 of an accuracy is one point).
        failures: `{"arm", "seed", "error"}` of each run that failed.
        planned: number of seeds of each arm, in the order in which arms are shown. Default: what finished.
        title: of the page. Default: the folder's name.
        command: that wrote the results.
        sheets: a PNG of sample images for each arm that has one.
        show: called with the results before they are written: a full disk takes no figures away.

    Returns:
        The files written.

    Raises:
        ValueError: see `summarise`.
        FileExistsError: see `results_in`.
    """
    order = list(planned or {})
    records = sorted(records, key=lambda record: order.index(record["arm"]) if record["arm"] in order else len(order))
    summary = summarise(records, metric=metric, mode=mode, reference=reference, margin=margin)
    results = {
        "title": title or folder.resolve().name,
        "command": command,
        "verdict": verdict(summary),
        "failures": [dict(failure) for failure in failures],
        "missing": _missing(summary, failures, planned or {}),
        "summary": summary,
    }
    show(results)
    files = results_in(folder)
    plot = forest_png(summary)
    texts = {
        "results.json": json.dumps(_plain(results | {"records": records}), indent=1, allow_nan=False) + "\n",
        "results.md": render_markdown(results, plot="forest.png" if plot else None),
        "index.html": render_page(results, folder=folder, sheets=sheets or {}),
    }
    contents = {name: text.encode(errors="surrogateescape") for name, text in texts.items()}
    if plot is not None:
        contents["forest.png"] = plot
    else:
        files.remove("forest.png")  # of earlier results, which these replace
    for name, content in contents.items():
        files.put(name, content)
    return [folder / name for name in contents]


def summarise(
    records: Sequence[Record],
    *,
    metric: str = "accuracy",
    mode: Mode = "max",
    reference: str = "none",
    margin: float = 0.01,
) -> dict[str, Any]:
    """All numbers of a trial, as plain values.

    Args:
        records: of finished runs. A reference, a control or a metric that none of them has leaves out what it is needed for.
        metric: what arms are compared in, beside their worst class and group: a name among the metrics of the records.
        mode: "max" where higher is better, "min" where lower is.
        reference: the arm that others are compared with.
        margin: within which a difference counts as none, in the metric's unit.

    Returns:
        `arms` by name (seeds, cost, what the maps kept), `test_sets` by name and in them `arms` (metrics, `to_reference` and
        `to_control` by metric, classes, groups), `unpaired` and `notes` as sentences. The accuracy metrics of the classifier
        (`ACCURACIES`) are in percent, their differences and the margin in points; logged metrics are as logged.

    Raises:
        ValueError: two configs of one arm, two runs of one arm and seed, an unknown mode, a margin that is not positive.
    """
    if mode not in ("max", "min"):
        raise ValueError(f'mode must be "max" or "min", got {mode!r}')
    if not margin > 0:
        raise ValueError(f"margin must be positive, got {margin}")
    runs = _by_arm(records)
    test_sets = {}
    for name in dict.fromkeys(name for record in records for name in record["tests"]):
        tests = {arm: {seed: run["tests"][name] for seed, run in of.items() if name in run["tests"]} for arm, of in runs.items()}
        values = {arm: _values(of) for arm, of in tests.items() if of}
        arms = {}
        for arm, of_metrics in values.items():
            control = next(iter(runs[arm].values()))["control"]
            others = {"to_reference": reference, "to_control": None if control == reference else control}
            arms[arm] = {
                "n": len(tests[arm]),
                "metrics": {key: _summed(of) for key, of in of_metrics.items()},
                **{key: _compared(values, arm, other, runs, name, metric, mode, margin) for key, other in others.items()},
                "classes": _counted(tests[arm], "classes"),
                "groups": _counted(tests[arm], "groups"),
            }
        sizes = {test["n"] for of in tests.values() for test in of.values()}
        test_sets[name] = {"sizes": sorted(sizes, key=lambda size: size or 0), "arms": arms}
    return {
        "metric": metric,
        "mode": mode,
        "unit": "points" if metric in ACCURACIES else "",
        "reference": reference,
        "margin": _scale(metric) * margin,
        "arms": {arm: _arm(of, runs.get(reference, {})) for arm, of in runs.items()},
        "test_sets": test_sets,
        "unpaired": unpaired_seeds(records),
        "notes": notes(records),
        "devices": distinct(records, "device"),
        "precisions": distinct(records, "precision"),
        "versions": distinct(records, "versions"),
    }


def _by_arm(records: Sequence[Record]) -> dict[str, dict[int, Record]]:
    runs: dict[str, dict[int, Record]] = {}
    for record in records:
        arm, seed = record["arm"], record["seed"]
        of = runs.setdefault(arm, {})
        if seed in of:
            raise ValueError(f"two runs of arm {arm!r}, seed {seed}: {of[seed]['folder']}, {record['folder']}; delete one")
        of[seed] = record
        first = next(iter(of.values()))
        if first["hash"] != record["hash"]:
            raise ValueError(
                f"runs of arm {arm!r} come from two configs: {first['hash']} (seed {first['seed']}), {record['hash']} "
                f"(seed {seed}); delete the runs of one, or write into another folder"
            )
    return {arm: dict(sorted(of.items())) for arm, of in runs.items()}


def _values(tests: Mapping[int, Record]) -> dict[str, dict[int, float]]:
    """By metric and seed, in the unit shown; what is no finite number is left out, `notes` says so."""
    values: dict[str, dict[int, float]] = {}
    for seed, test in tests.items():
        for key, value in test["metrics"].items():
            if _is_finite(value):
                values.setdefault(key, {})[seed] = _scale(key) * value
    return values


def _compared(
    values: Mapping[str, Mapping[str, Mapping[int, float]]],
    arm: str,
    other: str | None,
    runs: Mapping[str, Mapping[int, Record]],
    test_set: str,
    metric: str,
    mode: Mode,
    margin: float,
) -> dict[str, dict[str, Any]]:
    """By metric, the arm minus the other over the seeds that both have."""
    compared: dict[str, dict[str, Any]] = {}
    if other is None or other == arm or other not in values:
        return compared
    for key in dict.fromkeys((metric, *WORST)):
        ours, theirs = values[arm].get(key, {}), values[other].get(key, {})
        if seeds := sorted(ours.keys() & theirs.keys()):
            pair = [ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]
            one = compare(*pair, margin=_scale(key) * margin)._asdict()
            if mode == "min" and key == metric:  # a win is the better value
                one["wins"] = compare(*reversed(pair), margin=_scale(key) * margin).wins
            paired = all(are_paired(runs[arm][seed], runs[other][seed], test_set) for seed in seeds)
            compared[key] = one | {"other": other, "seeds": seeds, "paired": paired}
    return compared


def _arm(runs: Mapping[int, Record], reference: Mapping[int, Record]) -> dict[str, Any]:
    first = next(iter(runs.values()))
    seconds = {seed: run["train"]["seconds"] for seed, run in runs.items() if _is_finite(run["train"].get("seconds"))}
    base = {seed: run["train"]["seconds"] for seed, run in reference.items() if _is_finite(run["train"].get("seconds"))}
    shared = seconds.keys() & base.keys()
    whole = sum(base[seed] for seed in shared)
    trained = {key: {seed: run["train"].get(key) for seed, run in runs.items()} for key in ("loss", *MAPS)}
    finite = {key: {seed: value for seed, value in of.items() if _is_finite(value)} for key, of in trained.items()}
    return {
        **{key: first[key] for key in ("about", "control", "hash")},
        "seeds": list(runs),
        "seconds": _summed(seconds) if seconds else None,
        "cost": sum(seconds[seed] for seed in shared) / whole if whole else None,  # training time in that of the reference
        **{key: _summed(of) if of else None for key, of in finite.items()},
        "folders": {str(seed): run["folder"] for seed, run in runs.items()},
        "warnings": [{"seed": seed, "text": text} for seed, run in runs.items() for text in run["warnings"]],
    }


def _missing(
    summary: Mapping[str, Any], failures: Sequence[Mapping[str, Any]], planned: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Arms with fewer finished runs than planned."""
    finished = {arm: len(of["seeds"]) for arm, of in summary["arms"].items()}
    failed = {arm: sum(one["arm"] == arm for one in failures) for arm in planned}
    return [
        {"arm": arm, "planned": n, "finished": finished.get(arm, 0), "failed": failed[arm]}
        for arm, n in planned.items()
        if finished.get(arm, 0) < n
    ]


def _counted(tests: Mapping[int, Record], key: str) -> dict[str, dict[str, Any]]:
    """Right answers of all seeds together, by class or group, with their share in percent."""
    counted: dict[str, dict[str, Any]] = {}
    for test in tests.values():
        for name, (right, n) in (test.get(key) or {}).items():
            one = counted.setdefault(name, {"right": 0, "n": 0})
            one["right"], one["n"] = one["right"] + right, one["n"] + n
    return {name: one | {"share": 100 * one["right"] / one["n"] if one["n"] else None} for name, one in counted.items()}


def _summed(values: Mapping[int, float]) -> dict[str, Any]:
    mean, error = mean_and_error(list(values.values()))
    return {"mean": mean, "error": error, "values": {str(seed): value for seed, value in values.items()}}


def _scale(metric: str) -> int:
    return 100 if metric in ACCURACIES else 1


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _plain(value: Any) -> Any:
    """As JSON has it: names as text, null for what is no finite number."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
