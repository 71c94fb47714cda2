"""The figures of ``groupcam-aug evaluate`` for readers: a table for the terminal, one in Markdown, and pictures."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from groupcam_aug.recipes.markdown import markdown_table
from groupcam_aug.recipes.terminal import say
from groupcam_aug.recipes.written_files import WrittenFiles
from groupcam_aug.sanity import LEAST

__all__ = ["ablation_picture", "curves_picture", "files_in", "markdown", "rich_table", "show", "write_files"]

_NAMES = ("evaluation.json", "evaluation.md", "curves.png", "ablation.png")

_TITLES = {
    "groups": "Number of groups (the paper's table 2; theta=70)",
    "denoise": "Denoising threshold (the paper's figure 5; G=32)",
}
# What a narrower terminal does without, step by step, and the columns that keep their intervals.
_AREAS = {"insertion ↑", "deletion ↓", "over-all ↑", "to Grad-CAM", "to blob"}
_BARE = {"to blob", "increase % ↑"}
_TIGHTER: tuple[tuple[set[str], set[str]], ...] = (
    (set(), {*_AREAS, "pointing % ↑", "energy % ↑", "drop % ↓"}),
    (_BARE, {"over-all ↑", "to Grad-CAM", "pointing % ↑", "energy % ↑"}),
    ({*_BARE, "to Grad-CAM"}, {"over-all ↑", "pointing % ↑"}),
    ({*_BARE, "to Grad-CAM", "passes"}, set()),
    ({*_BARE, "to Grad-CAM", "passes", "drop % ↓"}, set()),
)
_NOTES = """\
- insertion, deletion: area under the probability of the class as the most salient pixels are shown, or removed; over-all:
  insertion less deletion. Figures of other steps and substrates do not compare. *to X*: difference of over-all to X on the same
  images.
- drop: relative loss of confidence when only what the map shows is left; increase: share of images where it grows. A map of ones
  has no drop: read the two beside the curves.
- Brackets: 95 % intervals over images (Student's t; shares: Wilson's; pointing as mean over classes: bootstrap); none where there
  are too few. A method is *shown above* another if both Student's interval and its correction for skewness leave zero out, each
  comparison by itself, from 20 images on.
- occlusion ρ: rank correlation of what hiding a window takes from the class's probability with the map's mean in the window
  (Grad-CAM, section 5.3). box error: share of images whose map's box (the largest part above 15 % of its maximum) overlaps none
  of the class's boxes by half; with class: or whose class is not the network's first choice (Grad-CAM, section 4.1).
- no map: images for which the method's map is constant. They are in no mean of any method (but misses of the pointing game), so
  that all are compared on the same images.
- ms/image: median over batches, all methods in turn on the same batch, device synchronised. passes: the arithmetic of a map in
  forward passes of the network."""


def files_in(out: Path) -> WrittenFiles:
    """The files of the command in a folder, also of a version that kept no list of them.

    Raises:
        FileExistsError: one of them is none of the command's, and would be overwritten.
    """
    files = WrittenFiles(out, "evaluation")
    files.adopt(_NAMES, {"methods": {...: object}, "ablations": {...: object}, "reading": object})
    files.check(_NAMES)
    return files


def write_files(out: Path, record: Mapping[str, Any]) -> list[str]:
    """evaluation.json, evaluation.md and the pictures; their names. Raises as `files_in` does."""
    written = files_in(out)
    methods, ablations = record["methods"], record["ablations"]
    files = {"evaluation.json": json.dumps(record, indent=1) + "\n", "evaluation.md": _page(record)}
    contents = {name: text.encode(errors="surrogateescape") for name, text in files.items()}
    if any(figures.get("insertion") for figures in methods.values()):
        contents["curves.png"] = curves_picture(methods)
    if any(ablations.values()):
        contents["ablation.png"] = ablation_picture(ablations)
    for name, content in contents.items():
        written.put(name, content)
    return list(contents)


def show(console: Console, record: Mapping[str, Any]) -> None:
    """The tables on the terminal, and a line on how to read them."""
    if record["methods"]:
        console.print(rich_table(record["methods"], console.width))
        say(console, record["reading"])
    for kind, rows in record["ablations"].items():
        table = Table(title=_TITLES[kind], title_justify="left", header_style="bold")
        header, lines = _ablation(kind, rows)
        for name in header:
            table.add_column(name, justify="right")
        for line in lines:
            table.add_row(*line)
        console.print(table)
        if missing := _without(rows):
            say(console, missing)
    for sanity in record["sanity_of"].values():
        say(console, _sanity(sanity))
    for note in [*record["notes"], *(f"left out: {name}: {reason}" for name, reason in record["left_out"].items())]:
        say(console, note)


def rich_table(methods: Mapping[str, dict[str, Any]], width: int) -> Table:
    """The table for a terminal of `width` columns, with as much as there is room for; evaluation.md has all of it."""
    console = Console(width=10_000)
    for dropped, intervals in _TIGHTER:
        table = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False)
        columns = [column for column in _columns(methods) if column[0] not in dropped]
        table.add_column("method", no_wrap=True)
        for name, *_ in columns:
            head, _, arrow = name.rpartition(" ")
            table.add_column(f"{head}\n{arrow}" if arrow in "↑↓" else name, justify="right", no_wrap=True)
        kind = ""
        for name, figures in methods.items():
            if kind and figures["kind"] != kind:
                table.add_section()
            kind = figures["kind"]
            table.add_row(name, *(_short(show(figures, heading in intervals), heading) for heading, show in columns))
        if console.measure(table).maximum <= width:
            break
    return table


def markdown(methods: Mapping[str, dict[str, Any]]) -> str:
    """The same as a Markdown table with all intervals."""
    columns = _columns(methods)
    return _figures_table(
        ["method", *(name for name, _ in columns)],
        [[name, *(show(figures, True) for _, show in columns)] for name, figures in methods.items()],
    )


def curves_picture(methods: Mapping[str, dict[str, Any]]) -> bytes:
    """Mean insertion and deletion curves with 95 % bands, a panel for each method, the centred blob behind it; PNG."""
    from matplotlib.figure import Figure

    drawn = {name: figures for name, figures in methods.items() if figures.get("insertion")}
    blob = next((figures for figures in drawn.values() if figures["key"] == "centre"), None)
    columns = min(4, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    figure = Figure(figsize=(1.2 + 2.9 * max(columns, 2), 0.9 + 2.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    handles: dict[str, Any] = {}
    for axis, (name, figures) in zip(axes, drawn.items(), strict=False):
        for kind, better, colour in (("insertion", "higher", "#2f7fc1"), ("deletion", "lower", "#d9791f")):
            curve, label = figures[kind], f"{kind} ({better} is better)"
            if blob is not None and figures is not blob:
                (handles["centred blob"],) = axis.plot(
                    blob[kind]["fractions"], blob[kind]["mean"], color="#9a9a9a", linestyle=":", linewidth=1.3
                )
            (handles[label],) = axis.plot(curve["fractions"], curve["mean"], color=colour, linewidth=1.8)
            if curve["band"] is not None:
                axis.fill_between(curve["fractions"], *curve["band"], color=colour, alpha=0.16, linewidth=0)
        axis.set_title(f"{name}  {figures['overall']['mean']:.3f}", loc="left", fontsize=9)
        axis.set(xlim=(0, 1), ylim=(0, None))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)
    for axis in axes[len(drawn) :]:
        axis.set_visible(False)
    figure.supxlabel("share of the pixels shown, or removed; most salient first", fontsize=10)
    figure.supylabel("probability of the class", fontsize=10)
    order = sorted(handles, key=lambda label: label == "centred blob")
    figure.legend(
        [handles[label] for label in order],
        order,
        loc="outside upper center",
        ncols=2 if columns < 3 else 4,
        frameon=False,
        fontsize=9,
        title="beside the names: over-all (area of insertion less area of deletion)",
        title_fontsize=9,
    )
    return _png(figure)


def ablation_picture(ablations: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """Insertion, deletion and over-all over the number that varies, with 95 % intervals, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(ablations), 3.8), layout="constrained")
    axes = figure.subplots(1, len(ablations), squeeze=False)[0]
    handles: dict[str, Any] = {}
    for axis, (kind, rows) in zip(axes, ablations.items(), strict=True):
        for name, mark in (("overall", "o"), ("insertion", "^"), ("deletion", "v")):
            points = [(row["value"], row[name]["mean"], row[name]["interval"] or [math.nan] * 2) for row in rows if row.get(name)]
            if points:
                x, mean, ends = zip(*points, strict=True)
                (line,) = axis.plot(x, mean, marker=mark)
                handles["over-all" if name == "overall" else name] = line
                axis.fill_between(x, *zip(*ends, strict=True), alpha=0.15, color=line.get_color(), linewidth=0)
        if kind == "groups":
            axis.set_xscale("log", base=2)
            axis.set_xticks([row["value"] for row in rows], [f"{row['value']:g}" for row in rows])
        axis.set(xlabel="groups G" if kind == "groups" else "denoising threshold theta (percentile)", ylabel="area")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3, frameon=False)
    return _png(figure)


def _short(cell: str, heading: str) -> str:
    """Areas without the zero in front of the point."""
    return re.sub(r"(?<!\d)0\.", ".", cell) if heading in _AREAS else cell


def _page(record: Mapping[str, Any]) -> str:
    """evaluation.md."""
    parts = ["# Evaluation of saliency maps", record["told"] + "."]
    if record["methods"]:
        parts += [markdown(record["methods"]), record["reading"], _NOTES]
    for kind, rows in record["ablations"].items():
        parts += [f"## {_TITLES[kind]}", _figures_table(*_ablation(kind, rows)), *filter(None, [_without(rows)])]
    if record["sanity_of"]:
        parts.append("## Sanity check")
        for sanity in record["sanity_of"].values():
            columns = zip(sanity["stages"], sanity["spearman"], sanity["undefined"], strict=True)
            stages = [[stage, "–" if gone == 1 else f"{rho:.2f}", f"{gone:.0%}"] for stage, rho, gone in columns]
            parts += [_sanity(sanity), _figures_table(["randomised", "rank correlation", "no map"], stages)]
    if record["left_out"] or record["not_read"] or record["notes"]:
        parts.append("## Notes")
        lines = [*record["notes"], *(f"left out: {name}: {reason}" for name, reason in record["left_out"].items())]
        lines += [f"not read: {path}: {reason}" for path, reason in record["not_read"].items()]
        parts.append("\n".join(f"- {line}" for line in lines))
    parts.append(", ".join(f"{key} {value}" for key, value in record["conditions"].items()))
    return "\n\n".join(parts) + "\n"


def _figures_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of figures, whose first column is text."""
    return markdown_table(header, rows, right=range(1, len(header)))


def _ablation(kind: str, rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Heading and cells."""
    header = ["G" if kind == "groups" else "theta", "insertion ↑", "deletion ↓", "over-all ↑", "no map"]
    cells = []
    for row in rows:
        figures = []
        for name in ("insertion", "deletion", "overall"):
            interval = (row.get(name) or {}).get("interval")
            ends = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
            figures.append(f"{row[name]['mean']:.3f}{ends}" if row.get(name) else "–")
        cells.append([f"{row['value']:g}", *figures, f"{row['undefined']} of {row['images']}" if row["undefined"] else "0"])
    return header, cells


def _without(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many images an ablation leaves out, in a line; empty if none."""
    total, compared = (max((row[name] for row in rows), default=0) for name in ("images", "compared"))
    if total == compared:
        return ""
    return f"Means are over the {compared} of {total} images that have a map with every value, {total - compared} left out."


def _sanity(sanity: Mapping[str, Any]) -> str:
    """The check of one method in a line."""
    stages = list(zip(sanity["spearman"], sanity["undefined"], strict=True))
    independent = sanity["mode"] == "independent"
    unsaid = f"no verdict with fewer than {LEAST} maps left (take more images)" if stages[-1][1] < 1 else "no verdict"
    if independent:
        unsaid = (
            f"no verdict (fewer than {LEAST} maps left, or above that at some stage, but not beyond chance: take more images)"
        )
    kept = ", ".join(sanity.get("standing", ()))
    failed = f"FAILED: maps stay above that when these alone are drawn anew: {kept}" if independent and kept else "FAILED"
    verdict = {True: "passed", False: failed, None: unsaid}[sanity["passed"]]
    ends = [f"{rho:.2f} ({gone:.0%} without a map)" if gone < 1 else "no map left" for rho, gone in (stages[0], stages[-1])]
    last = "after the last alone" if independent else "at the end"
    return (
        f"Sanity of {sanity['method']}, {sanity['mode']}, {sanity['images']} images: likeness to the original maps {ends[0]} "
        f"after the first stage, {ends[1]} {last} (another image's map: {sanity['floors']['other_image']:.2f}): {verdict}."
    )


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _columns(methods: Mapping[str, dict[str, Any]]) -> list[tuple[str, Callable[[dict[str, Any], bool], str]]]:
    """Headings, and (figures of a method, with interval) -> cell; columns that no method fills are left out."""

    def figure(key: str, value: str = "mean", digits: int = 3, scale: float = 1.0, sign: str = "") -> Any:
        def number(of: float) -> str:
            return f"{round(scale * of, digits) + 0:{sign}.{digits}f}"  # + 0: no -0.000

        def show(figures: dict[str, Any], full: bool) -> str:
            entry = figures.get(key)
            if not entry:
                return "–"
            full = full and entry["interval"] is not None
            return f"{number(entry[value])} [{', '.join(map(number, entry['interval']))}]" if full else number(entry[value])

        return show

    def time(figures: dict[str, Any], _full: bool) -> str:
        entry = figures.get("milliseconds")
        return f"{entry['median']:,.{max(0, 2 - math.floor(math.log10(max(entry['median'], 0.01))))}f}" if entry else "–"

    def count(figures: dict[str, Any], _full: bool) -> str:
        return f"{figures['undefined']} of {figures['images']}" if figures["undefined"] else "0"

    def cost(figures: dict[str, Any], _full: bool) -> str:
        return f"{figures['passes']:.1f}" if figures.get("passes") is not None else "–"

    known = [
        ("insertion ↑", figure("insertion", "auc"), "insertion"),
        ("deletion ↓", figure("deletion", "auc"), "deletion"),
        ("over-all ↑", figure("overall"), "overall"),
        ("to Grad-CAM", figure("to_gradcam", sign="+"), "to_gradcam"),
        ("to blob", figure("to_centre", sign="+"), "to_centre"),
        ("drop % ↓", figure("drop", digits=1, scale=100), "drop"),
        ("increase % ↑", figure("increase", digits=1, scale=100), "increase"),
        ("pointing % ↑", figure("pointing", "macro", 1, 100), "pointing"),
        ("energy % ↑", figure("energy", digits=1, scale=100), "energy"),
        ("occlusion ρ ↑", figure("occlusion"), "occlusion"),
        ("box error % ↓", figure("box_error", digits=1, scale=100), "box_error"),
        ("with class % ↓", figure("top1_error", digits=1, scale=100), "top1_error"),
        ("no map", count, ""),
        ("ms/image", time, "milliseconds"),
        ("passes", cost, "passes"),
    ]
    return [
        (name, show) for name, show, key in known if not key or any(figures.get(key) is not None for figures in methods.values())
    ]
