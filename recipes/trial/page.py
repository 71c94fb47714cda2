"""A trial's results as one HTML page that reads offline, and as Markdown."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from groupcam_aug.printable import printable
from groupcam_aug.recipes.markdown import markdown_table
from groupcam_aug.recipes.trial.plots import forest_charts
from groupcam_aug.recipes.trial.verdict import difference_text, margin_text, number_text

__all__ = ["Table", "main_table", "render_markdown", "render_page"]

Results = Mapping[str, Any]

HOW_TO_READ = (
    "Mean ± standard error over seeds. Differences are paired by seed, with Student's 95% interval; p is the exact two-sided "
    "sign-flip test. Accuracies are in percent, their differences in points. A control is the same augmentation that knows "
    "nothing of the place."
)
MAPS = {
    "keep_fraction": "pixels kept %",
    "no_map": "images without a map %",
    "object_kept": "of the object kept %",
    "ground_kept": "of the background kept %",
}


class Table(NamedTuple):
    """A table with names in its first column."""

    columns: list[str]
    rows: list[list[tuple[str, str]]]  # of cells: text, and a note in small letters below it


def render_page(results: Results, *, folder: Path, sheets: Mapping[str, bytes] | None = None) -> str:
    """One page without scripts and without anything from outside it, but for links to files in the trial's folder.

    Args:
        results: `title`, `command`, `verdict` (of `verdict`), `summary` (of `summarise`), `failures` and `missing`.
        folder: of the trial; files of its runs that are there are linked.
        sheets: a PNG of sample images by arm.
    """
    summary = results["summary"]
    charts = {chart.test_set: chart for chart in forest_charts(summary)}
    sets = [
        {
            "name": name,
            "images": " or ".join(map(str, test_set["sizes"])),
            "sentences": [one for one in results["verdict"]["sentences"] if one["test_set"] == name],
            "table": main_table(summary, test_set),
            "chart": charts.get(name),
            "details": [
                ("All metrics", _metrics_table(test_set)),
                ("Accuracy by class, all seeds together", _counts_table(test_set, "classes")),
                ("Accuracy by group, all seeds together", _counts_table(test_set, "groups")),
            ],
        }
        for name, test_set in summary["test_sets"].items()
    ]
    return _template().render(
        results=results,
        verdict=results["verdict"],
        summary=summary,
        how_to_read=HOW_TO_READ,
        sets=sets,
        maps=_maps_table(summary),
        sheets=[(arm, f"data:image/png;base64,{base64.b64encode(png).decode()}") for arm, png in (sheets or {}).items()],
        runs=[_run_row(arm, of, folder) for arm, of in summary["arms"].items()],
        facts=_facts(results),
    )


def render_markdown(results: Results, *, plot: str | None = None) -> str:
    """The same as text: conclusion, sentences and tables.

    Args:
        results: as for `render_page`.
        plot: file name of the forest plot. Default: none is shown.
    """
    summary, said = results["summary"], results["verdict"]
    lines = [f"# {_plain(results['title'])}", ""]
    first, *rest = said["conclusion"].splitlines()
    lines += [f"**{_plain(first)}**", "", *_bullets(rest)]
    if said["caveats"]:
        lines += ["Keep in mind:", "", *_bullets(said["caveats"])]
    if plot:
        lines += [f"![Differences to {_plain(summary['reference'])}]({plot})", ""]
    if summary["arms"]:
        lines += [HOW_TO_READ, ""]
    for name, test_set in summary["test_sets"].items():
        lines += [f"## {_plain(name)} ({' or '.join(map(str, test_set['sizes']))} images)", ""]
        lines += _bullets(one["text"] for one in said["sentences"] if one["test_set"] == name)
        lines += [_markdown(main_table(summary, test_set)), ""]
    if (maps := _maps_table(summary)).rows:
        lines += ["## What the maps kept", "", _markdown(maps), ""]
    if results["failures"] or results["missing"]:
        lines += ["## Runs that are missing", ""]
        lines += _bullets(_missing_text(one) for one in results["missing"])
        lines += _bullets(f"{one['arm']}, seed {one['seed']} failed: {one['error']}" for one in results["failures"])
    if warnings := _warnings(summary):
        lines += ["## Warnings of runs", "", *_bullets(warnings)]
    lines += ["## The trial", "", *_bullets(f"{key}: {value}" for key, value in _facts(results))]
    return "\n".join(lines).rstrip() + "\n"


def main_table(summary: Mapping[str, Any], test_set: Mapping[str, Any]) -> Table:
    """A row for each arm: the primary metric, what it is more than the reference and the control, the worst class, the cost."""
    metric, reference = summary["metric"], summary["reference"]
    worst = [
        (key, title)
        for key, title in (("worst_class_accuracy", "worst class"), ("worst_group_accuracy", "worst group"))
        if key != metric and any(key in of["metrics"] for of in test_set["arms"].values())
    ]
    columns = ["arm", metric, f"minus {reference}", "p", "minus control", *(title for _, title in worst), "training time"]
    rows = []
    for arm, of in test_set["arms"].items():
        over, control = of["to_reference"].get(metric), of["to_control"].get(metric)
        n = f"{of['n']} seed{'s' * (of['n'] != 1)}"
        row = [(arm, n), (_mean(of["metrics"].get(metric), metric), ""), _difference(over, summary["unit"])]
        row += [("–" if over is None or over["p"] is None else f"{over['p']:.3g}", "")]
        row += [_difference(control, summary["unit"], control["other"] if control else "")]
        for key, _ in worst:
            against = of["to_reference"].get(key)
            row.append((_mean(of["metrics"].get(key), key), _difference(against, "points")[0] if against else ""))
        cost, seconds = (summary["arms"][arm][key] for key in ("cost", "seconds"))
        time = "" if seconds is None else f"{number_text(seconds['mean'], '')} s a run"
        rows.append([*row, ("–" if cost is None else f"× {cost:.2f}", time)])
    return Table(columns, rows)


def _metrics_table(test_set: Mapping[str, Any]) -> Table:
    names = list(dict.fromkeys(key for of in test_set["arms"].values() for key in of["metrics"]))
    rows = [[(arm, ""), *((_mean(of["metrics"].get(key), key), "") for key in names)] for arm, of in test_set["arms"].items()]
    return Table(["arm", *names], rows)


def _counts_table(test_set: Mapping[str, Any], key: str) -> Table:
    """A row for each class or group, a column for each arm."""
    arms = test_set["arms"]
    names = list(dict.fromkeys(name for of in arms.values() for name in of[key]))
    rows = []
    for name in names:
        counts = [of[key].get(name) for of in arms.values()]
        cells = [
            ("–", "") if one is None else (number_text(one["share"], "%"), f"{one['right']} of {one['n']}") for one in counts
        ]
        rows.append([(name, ""), *cells])
    return Table(["class" if key == "classes" else "group", *arms], rows)


def _maps_table(summary: Mapping[str, Any]) -> Table:
    shown = {key: title for key, title in MAPS.items() if any(of[key] for of in summary["arms"].values())}
    rows = [
        [(arm, ""), *((number_text(100 * of[key]["mean"], "%") if of[key] else "–", "") for key in shown)]
        for arm, of in summary["arms"].items()
        if any(of[key] for key in shown)
    ]
    return Table(["arm", *shown.values()], rows)


def _run_row(arm: str, of: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What is known of an arm's runs, with links to their files that are there."""
    links = [("config", f"arms/{arm}.yaml")]
    for seed, run in of["folders"].items():
        links += [(f"seed {seed}", f"{run}.json"), (f"report of seed {seed}", f"{run}/groupcam/report.html")]
    return {
        "arm": arm,
        "about": of["about"],
        "seconds": "–" if of["seconds"] is None else f"{of['seconds']['mean']:.0f} s",
        "loss": number_text(of["loss"]["mean"] if of["loss"] else None, ""),
        "links": [(name, quote(path)) for name, path in links if not Path(path).is_absolute() and (folder / path).is_file()],
    }


def _facts(results: Results) -> list[tuple[str, str]]:
    summary = results["summary"]
    better = "lower" if summary["mode"] == "min" else "higher"
    facts = [
        ("Compared in", f"{summary['metric']} ({better} is better), margin ±{margin_text(summary)}"),
        ("Device", "; ".join(summary["devices"])),
        ("Precision", "; ".join(summary["precisions"])),
        ("Versions", "; ".join(summary["versions"])),
        ("Command", results["command"]),
    ]
    return [(key, value) for key, value in facts if value]


def _missing_text(one: Mapping[str, Any]) -> str:
    failed = f", {one['failed']} failed" if one["failed"] else ""
    return f"{one['arm']}: {one['finished']} of {one['planned']} runs finished{failed}"


def _warnings(summary: Mapping[str, Any]) -> list[str]:
    """Warnings of runs, each once for an arm."""
    seeds: dict[tuple[str, str], list[str]] = {}
    for arm, of in summary["arms"].items():
        for one in of["warnings"]:
            seeds.setdefault((arm, one["text"]), []).append(str(one["seed"]))
    return [f"{arm}, seed {', '.join(of)}: {text}" for (arm, text), of in seeds.items()]


def _mean(of: Mapping[str, Any] | None, metric: str) -> str:
    if of is None:
        return "–"
    unit = "%" if metric == "accuracy" or metric.endswith("_accuracy") else ""
    error = "" if of["error"] is None else f" ± {number_text(of['error'], unit)}"
    return f"{number_text(of['mean'], unit)}{error}"


def _difference(one: Mapping[str, Any] | None, unit: str, name: str = "") -> tuple[str, str]:
    if one is None:
        return "–", ""
    notes = [name] if name else []
    notes += [] if one["paired"] else ["not paired"]
    notes += [f"{one['wins']} of {one['n']} better"]
    return difference_text(one, unit).removesuffix(f" {unit}" if unit else ""), ", ".join(notes)


def _markdown(table: Table) -> str:
    rows = [[f"{_plain(text)} ({_plain(note)})" if note else _plain(text) for text, note in row] for row in table.rows]
    return markdown_table([_plain(column) for column in table.columns], rows, right=range(1, len(table.columns)))


def _bullets(texts: Iterable[str]) -> list[str]:
    lines = [f"- {_plain(text)}" for text in texts]
    return [*lines, ""] if lines else []


def _plain(text: str) -> str:
    """Text of one line that Markdown does not read as HTML."""
    return printable(" ".join(str(text).split())).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


@lru_cache(maxsize=1)
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    text = files("groupcam_aug.recipes.trial").joinpath("index.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(missing_text=_missing_text, warnings_of=_warnings)
    return environment.from_string(text)
