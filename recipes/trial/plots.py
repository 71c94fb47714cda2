"""Forest plots of a trial: each arm's difference to the reference and to its control, with Student's intervals."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from groupcam_aug.recipes.trial.verdict import difference_text

__all__ = ["Chart", "forest_charts", "forest_png"]

BLUE, ORANGE, GREY = "#2f7fc1", "#d9791f", "#8a8f98"  # readable on white and on black, by colour-blind readers too
SERIES = (("to_reference", BLUE, "o", 0.14), ("to_control", ORANGE, "D", -0.14))  # last: above or below the arm's line
INKS = {"light": "#1c2129", "dark": "#e6e8eb"}  # the page's colours of text
WIDTH = 4.9  # inches of a panel, of 72 points: the size at which a phone shows it
_INK = "#010203"  # stands for the colour of text: drawn once, written in both


class Chart(NamedTuple):
    """The panel of one test set, as a page carries it inside itself."""

    test_set: str
    light: str  # data address of the picture
    dark: str  # the same, for dark screens
    alt: str  # the numbers, for those who do not see it


def forest_png(summary: Mapping[str, Any]) -> bytes | None:
    """One picture with a panel per test set; None if no arms can be compared.

    Args:
        summary: of `summarise`.
    """
    names = _compared_sets(summary)
    if not names:
        return None
    columns = min(2, len(names))
    rows = [names[i : i + columns] for i in range(0, len(names), columns)]
    heights = [max(_height(summary, name) for name in row) for row in rows]
    figure = _figure(WIDTH * columns, sum(heights))
    figure.set_facecolor("white")
    panels = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": heights}).flatten()
    for panel, name in zip(panels, names, strict=False):
        _draw(panel, summary, name, INKS["light"])
        panel.set_title(_words(name), fontsize=10, loc="left", color=INKS["light"], pad=22)  # above the legend
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    return _saved(figure, "png")


def forest_charts(summary: Mapping[str, Any]) -> list[Chart]:
    """A picture of each test set in which arms can be compared, for light and for dark screens.

    Args:
        summary: of `summarise`.
    """
    charts = []
    for name in _compared_sets(summary):
        figure = _figure(WIDTH, _height(summary, name))
        _draw(figure.subplots(), summary, name, _INK)
        svg = _saved(figure, "svg").decode()
        alt = f"Differences to {summary['reference']}, {name}: " + "; ".join(
            f"{arm} {difference_text(one, summary['unit'])}" for arm, one in _differences(summary, name, "to_reference").items()
        )
        light, dark = (_address(svg.replace(_INK, ink)) for ink in INKS.values())
        charts.append(Chart(name, light, dark, alt))
    return charts


def _draw(panel: Any, summary: Mapping[str, Any], name: str, ink: str) -> None:
    order = _arms(summary, name)[::-1]
    labels = {"to_reference": f"over {summary['reference']}", "to_control": "over its control"}
    both = _differences(summary, name, "to_reference").keys() & _differences(summary, name, "to_control").keys()
    for key, colour, marker, offset in SERIES:
        of = _differences(summary, name, key)
        for arm, one in of.items():
            y = order.index(arm) + (offset if arm in both else 0)
            if one["low"] is not None:
                panel.plot([one["low"], one["high"]], [y, y], color=colour, linewidth=1.8, zorder=2, solid_capstyle="butt")
            # Hollow where nothing can be shown: one seed, or runs that are not paired.
            face = colour if one["low"] is not None and one["paired"] else "none"
            panel.scatter([one["mean"]], [y], s=26, marker=marker, facecolor=face, edgecolor=colour, linewidth=1.2, zorder=3)
        if of:
            panel.scatter([], [], s=26, marker=marker, color=colour, label=_words(labels[key]))
    panel.axvline(0, color=ink, linewidth=0.9, zorder=1)
    panel.axvspan(-summary["margin"], summary["margin"], color=GREY, alpha=0.2, linewidth=0, zorder=0, label="margin")
    panel.set_yticks(range(len(order)), [_words(arm) for arm in order])
    panel.set_ylim(-0.6, len(order) - 0.4)
    better = "lower is better" if summary["mode"] == "min" else "higher is better"
    what = summary["unit"] if summary["metric"] == "accuracy" else _words(f"{summary['metric']} {summary['unit']}".strip())
    panel.set_xlabel(f"difference in {what}, Student's 95 % ({better})", fontsize=8.5, color=ink)
    panel.legend(loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=3, fontsize=8, frameon=False, labelcolor=ink, borderpad=0.1)
    panel.tick_params(labelsize=8.5, length=0, colors=ink)
    panel.grid(axis="x", color=GREY, alpha=0.3, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[:].set_visible(False)


def _compared_sets(summary: Mapping[str, Any]) -> list[str]:
    return [name for name in summary["test_sets"] if _arms(summary, name)]


def _arms(summary: Mapping[str, Any], name: str) -> list[str]:
    """The arms that have a difference in the primary metric, in their order."""
    of = [_differences(summary, name, key) for key, *_ in SERIES]
    return [arm for arm in summary["test_sets"][name]["arms"] if any(arm in one for one in of)]


def _differences(summary: Mapping[str, Any], name: str, key: str) -> dict[str, Mapping[str, Any]]:
    arms = summary["test_sets"][name]["arms"]
    return {arm: of[key][summary["metric"]] for arm, of in arms.items() if summary["metric"] in of[key]}


def _height(summary: Mapping[str, Any], name: str) -> float:
    return 1.15 + 0.34 * len(_arms(summary, name))


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # an object of its own: no pyplot, no window, no state of the user's

    return Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="none")


def _words(text: str) -> str:
    """Text as it stands: no formulas in dollars, nothing that leaves no room for the plot."""
    return (text if len(text) <= 28 else text[:27] + "…").replace("$", r"\$")


def _saved(figure: Any, kind: str) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "", "text.usetex": False}
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type")) if kind == "svg" else {}
    for axes in figure.axes:
        axes.set_facecolor("none")
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the reader's fonts have what matplotlib's lacks
        figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


def _address(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
