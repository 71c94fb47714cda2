"""Plots of a study: differences with their intervals, and gains against how well the masks sat on the objects."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from groupcam_aug.recipes.trial.arms import read_arm
from groupcam_aug.recipes.trial.tables import metrics_of, regime_class

__all__ = ["forest", "gains_by_alignment"]

BLUE, ORANGE, GREY, INK = "#2f7fc1", "#d9791f", "#8a8f98", "#222222"
COLUMNS = 3  # regimes side by side


def forest(summary: Mapping[str, Any]) -> bytes | None:
    """A PNG: for each regime and arm the difference to the reference in two metrics, with Student's 95 % intervals.

    None if no arm can be compared.
    """
    groups = [group for group in summary["regimes"] if any(arm["difference"] for arm in group["arms"])]
    if not groups:
        return None
    class_of, titles = regime_class(summary["study"]), {m.name: m.title for m in metrics_of(summary["study"])}
    series = list(dict.fromkeys(((class_of.primary, BLUE, "o"), (class_of.second, ORANGE, "D"))))
    columns, rows = min(COLUMNS, len(groups)), math.ceil(len(groups) / COLUMNS)
    # Regimes side by side share the list of arms, so that a line is one arm throughout.
    names = [_names(groups[row * columns : (row + 1) * columns]) for row in range(rows)]
    heights = [1.2 + 0.3 * len(own) for own in names]
    figure = Figure(figsize=(2.2 + 3.6 * columns, sum(heights) + 0.3), dpi=130, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey="row", gridspec_kw={"height_ratios": heights})
    panels = grid.flatten()
    for position, (panel, group) in enumerate(zip(panels, groups, strict=False)):
        order = names[position // columns][::-1]
        for offset, (metric, colour, marker) in zip((0.14, -0.14), series, strict=False):
            arms = {arm["name"]: arm["difference"][metric] for arm in group["arms"] if metric in arm["difference"]}
            found = [(i + offset, arms[name]) for i, name in enumerate(order) if name in arms]
            for y, one in found:
                if one["t_low"] is not None:
                    panel.plot([one["t_low"], one["t_high"]], [y, y], color=colour, linewidth=1.6, zorder=2)
            x = [one["mean"] for _, one in found]
            panel.scatter(x, [y for y, _ in found], color=colour, marker=marker, s=22, zorder=3, label=titles[metric])
        panel.axvline(0, color=INK, linewidth=0.9, zorder=1)
        panel.axvspan(-summary["margin"], summary["margin"], color=GREY, alpha=0.18, linewidth=0, zorder=0)
        for i in range(len(order)):
            panel.axhline(i, color=GREY, alpha=0.15, linewidth=0.6, zorder=0)
        panel.set_yticks(range(len(order)), [_short(name) for name in order])
        panel.set_ylim(-0.7, len(order) - 0.3)
        panel.set_title(f"{group['name']} ({group['size']}, {len(group['seeds'])} seeds)", fontsize=9.5, loc="left")
        panel.set_xlabel(f"points more than {summary['reference']} (Student's 95 %)", fontsize=8.5)
        _tidy(panel, "x")
    for panel in panels[len(groups) :]:
        panel.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), fontsize=8.5, frameon=False)
    return _png(figure)


def gains_by_alignment(summary: Mapping[str, Any]) -> bytes | None:
    """A PNG: per regime, each run's gain in the primary metric against the alignment of the masks it was trained with.

    Alignment is the maps' energy on the object over its area, during training; 1 says nothing. An arm's control, the same with
    another image's mask, is a hollow dot joined to it. None where objects are not known.
    """
    titles = {m.name: (m.title, m.scale) for m in metrics_of(summary["study"])}
    groups = []
    for group in summary["regimes"]:
        base = next((arm for arm in group["arms"] if arm["name"] == summary["reference"]), None)
        if base is not None and (arms := [arm for arm in group["arms"] if _points(arm, base, group["primary"])]):
            groups.append((group, base, arms))
    if not groups:
        return None
    columns, rows = min(COLUMNS, len(groups)), math.ceil(len(groups) / COLUMNS)
    height = max(4.2, 0.6 + 0.2 * max(len(arms) - len(_twins(arms)) for _, _, arms in groups))
    figure = Figure(figsize=(6.4 * columns, height * rows), dpi=130, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, (group, base, arms) in zip(panels, groups, strict=False):
        points = {arm["name"]: _points(arm, base, group["primary"]) for arm in arms}
        means = {name: (fmean(x for x, _ in own), fmean(y for _, y in own)) for name, own in points.items()}
        twins = _twins(arms)
        for name, own in points.items():
            colour = ORANGE if "fill=other" in name else BLUE
            face, edge = ("white", colour) if name in twins.values() else (colour, "white")
            panel.scatter(*zip(*own, strict=True), s=9, color=colour, alpha=0.25, linewidth=0, zorder=2)
            panel.scatter(*means[name], s=30, color=face, edgecolor=edge, linewidth=1.2 if face == "white" else 0.6, zorder=4)
            if name in twins:
                panel.plot(*zip(means[name], means[twins[name]], strict=True), color=colour, linewidth=1.2, zorder=3)
        panel.axhline(0, color=INK, linewidth=0.9, zorder=1)
        panel.axvline(1, color=INK, linewidth=0.9, linestyle=":", zorder=1)
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if round(value, 1) in _TICKS else "")
        panel.tick_params(axis="x", which="minor", labelsize=7.5)
        panel.margins(0.06, 0.08)
        _label(panel, {name: mean for name, mean in means.items() if name not in twins.values()})
        panel.set_title(f"{group['name']} ({group['size']}, {len(group['seeds'])} seeds)", fontsize=9.5, loc="left")
        panel.set_xlabel("alignment of the masks in training (1 = says nothing)", fontsize=8.5)
        panel.set_ylabel(f"{titles[group['primary']][0]}: points more than {summary['reference']}", fontsize=8.5)
        _tidy(panel, "both")
    for panel in panels[len(groups) :]:
        panel.set_visible(False)
    for name, face, edge in (("blurred (or as named)", BLUE, BLUE), ("fill=other", ORANGE, ORANGE), (_HOLLOW, "white", BLUE)):
        panels[0].scatter([], [], s=30, color=face, edgecolor=edge, label=name)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=3, fontsize=8.5, frameon=False)
    return _png(figure)


_TICKS = (0.5, 0.7, 2.0, 3.0, 4.0, 5.0)
_HOLLOW = "the same with another image's mask"


def _twins(arms: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """For each arm that has it: the name of the very same with another image's mask."""
    known = {arm["name"]: read_arm(arm["name"]) for arm in arms}
    found = {name: arm.twin("other").name for name, arm in known.items() if arm.kind == "map" and arm.mask == "saliency"}
    return {name: twin for name, twin in found.items() if twin in known}


def _points(arm: Mapping[str, Any], base: Mapping[str, Any], metric: str) -> list[tuple[float, float]]:
    """(alignment, gain) of the seeds that have both."""
    known = arm["facts"].get("alignment", {}).get("values", {})
    own, other = (one["metrics"].get(metric, {}).get("values", {}) for one in (arm, base))
    return [(known[seed], own[seed] - other[seed]) for seed in known if seed in own and seed in other and known[seed] > 0]


def _label(panel: Any, points: Mapping[str, tuple[float, float]]) -> None:
    """Names in a column at the right, as high as what they name or as near as they fit, with a thin line to it."""
    means = sorted(((name, *point) for name, point in points.items()), key=lambda one: one[2])
    low, high = panel.get_ylim()
    gap = min(1 / 22, 1 / len(means))
    heights = [(y - low) / (high - low) for _, _, y in means]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    top = 1.0
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], top)
        top = heights[i] - gap
    for (name, x, y), height in zip(means, heights, strict=True):
        panel.annotate(
            _short(name),
            (x, y),
            (1.03, height),
            textcoords="axes fraction",
            fontsize=7,
            va="center",
            color=INK,
            arrowprops={
                "arrowstyle": "-",
                "color": GREY,
                "alpha": 0.7,
                "linewidth": 0.5,
                "shrinkA": 0,
                "shrinkB": 2,
                "relpos": (0, 0.5),
            },
        )


def _names(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """The arms of several regimes, in the order of the one with the most."""
    lists = [[arm["name"] for arm in group["arms"] if arm["difference"]] for group in groups]
    return list(dict.fromkeys(name for one in sorted(lists, key=len, reverse=True) for name in one))


def _short(name: str) -> str:
    return name.replace("source=", "").replace(",", ", ")


def _tidy(panel: Any, axis: str) -> None:
    panel.grid(axis=axis, color=GREY, alpha=0.3, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=8, length=0)
    for side in ("top", "right", "left", "bottom"):
        panel.spines[side].set_visible(False)
    panel.tick_params(axis="y", labelsize=7.5)


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
