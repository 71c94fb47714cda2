"""A study's summary as Markdown tables."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from groupcam_aug.recipes.markdown import markdown_table
from groupcam_aug.recipes.trial.regimes import Metric, Regime

__all__ = ["as_markdown", "metrics_of", "regime_class"]


def as_markdown(summary: Mapping[str, Any], plots: Sequence[str] = ()) -> str:
    """The summary as Markdown: a section per regime with two tables, then what was not run."""
    metrics = metrics_of(summary["study"])
    class_of = regime_class(summary["study"])
    lines = [f"# Study {summary['study']}", ""]
    told = "; ".join(", ".join(f"{name} {version}" for name, version in one.items()) for one in summary["versions"])
    lines += [
        f"Mean ± standard error over seeds. Differences are paired by seed (arm minus `{summary['reference']}`), with 95 % "
        "percentile bootstrap intervals over seeds (too narrow: they hold the mean in about 80 % of the cases with 4 seeds, 84 % "
        "with 5, 89 % with 8), then Student's (right for differences that are about normal) and two-sided exact sign-flip p "
        "values; nothing is corrected for the number of arms. *Null* = "
        f"shown to lie within ±{summary['margin']:g} points (two one-sided t tests, p < 0.05). Recovered = share of the "
        "gain of `masks` (same fill), told where that gain's interval is above zero. Cost = training time in runs without "
        "augmentation.",
        "",
        f"Run with {told}." + (" **Runs of several versions are mixed.**" if len(summary["versions"]) > 1 else ""),
        "",
        *(f"![{Path(name).stem}]({name})" for name in plots),
    ]
    for group in summary["regimes"]:
        shown = [m for m in metrics if any(m.name in arm["metrics"] for arm in group["arms"])]
        lines += ["", f"## {group['name']} ({group['size']} size, {group['device']})", "", _told_settings(group), ""]
        lines += [_told_control(group["control"]), ""]
        head = ["arm", "n", *(f"{m.title}{' %' if m.scale == 100 else ''}" for m in shown), "cost"]
        rows = [
            [
                f"`{arm['name']}`",
                str(arm["n"]),
                *(_cell(arm["metrics"].get(m.name), m) for m in shown),
                _number(arm["cost"], 2, "×"),
            ]
            for arm in group["arms"]
        ]
        lines.append(_table(head, rows))
        if len(group["arms"]) < 2:
            continue
        names = list(dict.fromkeys((class_of.primary, class_of.second)))
        chosen = [next(m for m in metrics if m.name == name) for name in names]
        head = ["arm", *(part for m in chosen for part in (f"Δ {m.title}", "Student", "p", "null"))]
        head += ["recovered"]
        rows = []
        for arm in group["arms"]:
            if arm["name"] == summary["reference"] or not arm["difference"]:
                continue
            row = [f"`{arm['name']}`"]
            for m in chosen:
                row += _difference(arm["difference"].get(m.name), m)
            rows.append([*row, _recovered(arm["recovered"].get(class_of.primary))])
        lines += ["", _table(head, rows)]
        lines += _against_controls(group, chosen[0]) + _masks(group)
    if summary["not_run"]:
        lines += ["", "## Not run", "", "Of the study's own plan:", ""]
        lines += [f"- {one['regime']} ({one['size']}): `{one['arm']}`, {one['seeds']} seeds" for one in summary["not_run"]]
    return "\n".join(lines) + "\n"


def regime_class(study: str) -> type[Regime]:
    """The class of a study's regimes."""
    module = importlib.import_module(f"groupcam_aug.recipes.trial.{study}")
    return type(next(iter(module.regimes("smoke").values())))


def metrics_of(study: str) -> tuple[Metric, ...]:
    """What a study measures, in the order it is told."""
    return regime_class(study).metrics


def _against_controls(group: Mapping[str, Any], metric: Metric) -> list[str]:
    """Arms beside the very same arms with control masks."""
    kinds = {"to_other": "another image's mask", "to_centre": "a centre disc"}
    rows = []
    for arm in group["arms"]:
        found = [arm[key].get(metric.name) for key in kinds]
        if any(found):
            rows.append([f"`{arm['name']}`", *(part for one in found for part in _difference(one, metric)[:3])])
    head = [f"arm, {metric.title}", *(part for told in kinds.values() for part in (f"Δ to {told}", "Student", "p"))]
    return ["", _table(head, rows)] if rows else []


def _masks(group: Mapping[str, Any]) -> list[str]:
    """What was done to the augmented images, in training."""
    columns = {
        "replaced": ("pixels replaced %", 100, 0),
        "object_kept": ("of the object kept %", 100, 0),
        "ground_replaced": ("of the background replaced %", 100, 0),
        "alignment": ("alignment of masks", 1, 2),
        "no_map": ("no map %", 100, 0),
        "loss": ("loss at the end", 1, 2),
    }
    shown = {key: told for key, told in columns.items() if any(key in arm["facts"] for arm in group["arms"])}
    rows = []
    for arm in group["arms"]:
        means = [arm["facts"][key]["mean"] if key in arm["facts"] else None for key in shown]
        if any(mean is not None for mean in means):
            told = zip(means, shown.values(), strict=True)
            cells = [_number(None if mean is None else scale * mean, digits, "") for mean, (_, scale, digits) in told]
            rows.append([f"`{arm['name']}`", *cells])
    head = ["arm, in training", *(title for title, _, _ in shown.values())]
    return ["", _table(head, rows)] if rows else []


def _told_settings(group: Mapping[str, Any]) -> str:
    hidden = ("study", "name", "size", "mean", "std")
    return "Settings: " + ", ".join(
        f"{key} {value}" for key, value in group["settings"].items() if key not in hidden and value != ""
    )


def _told_control(control: Mapping[str, Any]) -> str:
    if control["works"] is None:
        return "Positive control: not run (no CutMix or RandomErasing over two seeds)."
    found = control["difference"]
    gain = f"`{control['by']}` {found['mean']:+.2f} [{found['t_low']:+.2f}, {found['t_high']:+.2f}] points on {control['metric']}"
    if control["works"]:
        return f"Positive control: passed ({gain}): a gain in clean accuracy can show here."
    return f"Positive control: **failed** ({gain}): this regime cannot show a gain in clean accuracy, and says nothing about one."


def _cell(value: Mapping[str, Any] | None, metric: Metric) -> str:
    if value is None:
        return "-"
    error = "" if value["error"] is None else f" ± {value['error']:.{metric.digits}f}"
    return f"{value['mean']:.{metric.digits}f}{error}"


def _number(value: float | None, digits: int, unit: str) -> str:
    return "-" if value is None else f"{value:.{digits}f}{unit}"


def _difference(found: Mapping[str, Any] | None, metric: Metric) -> list[str]:
    """Mean and bootstrap interval, Student's interval, p, whether shown to be null."""
    if found is None:
        return ["-"] * 4
    digits = metric.digits + 1
    bootstrap, student = (
        "" if found[low] is None else f"[{found[low]:+.{digits}f}, {found[high]:+.{digits}f}]"
        for low, high in (("low", "high"), ("t_low", "t_high"))
    )
    null = "-" if found["equivalence"] is None else "yes" if found["equivalence"] < 0.05 else "no"
    p = "-" if found["p"] is None else f"{found['p']:.3f}"
    return [f"{found['mean']:+.{digits}f} {bootstrap}".strip(), student or "-", p, null]


def _recovered(found: Mapping[str, Any] | None) -> str:
    """Nothing where the ceiling's own gain may be none: a share of it would be any number."""
    if found is None or found["low"] is None or found["high"] is None:
        return "-"
    return f"{100 * found['share']:.0f} % [{100 * found['low']:.0f}, {100 * found['high']:.0f}]"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown_table(head, rows, right=range(1, len(head)))
