"""Charts as SVG pictures that a page carries inside itself, one for light and one for dark screens."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["COLOURS", "Chart", "Line", "bars", "lines"]

# Told apart by colour-blind readers too, and readable on white and on black.
COLOURS = {"blue": "#2f7fc1", "orange": "#d9791f", "green": "#2f9a6c", "violet": "#9468c4", "red": "#d0504f", "grey": "#8a8f98"}
INKS = {"light": "#1c2129", "dark": "#e6e8eb"}  # the page's colours of text
WIDTH, HEIGHT = 4.9, 2.5  # inches of 72 points, the size at which a phone shows a chart
_INK = "#010203"  # stands for the colour of text: drawn once, written in both


class Line(NamedTuple):
    """One curve."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = "blue"
    dashed: bool = False
    filled: bool = False  # down to zero: for areas under curves


class Chart(NamedTuple):
    """A chart, and what its page has to say beside it."""

    light: str  # data address of the picture
    dark: str  # the same, for dark screens
    alt: str  # what is to be seen, for those who do not see it
    legend: list[tuple[str, str]]  # (colour, name) of each curve; empty where there is but one


def lines(
    alt: str,
    curves: Sequence[Line],
    *,
    x_label: str = "epoch",
    y_label: str = "",
    y_range: tuple[float, float] | None = None,
    log: bool = False,
    levels: Mapping[str, float] | None = None,
    ticks: Sequence[str] | None = None,
) -> Chart:
    """Curves over a common axis.

    Args:
        alt: what is to be seen, for those who do not see it.
        curves: the curves; single points are drawn as dots.
        x_label: of the horizontal axis.
        y_label: of the vertical axis, with its unit.
        y_range: of the vertical axis. None: what the values need.
        log: logarithmic vertical axis.
        levels: horizontal lines to compare with, name to value.
        ticks: names along the horizontal axis, at 0, 1, 2 and so on.
    """
    figure, axes = _axes()
    for curve in curves:
        style = {"color": COLOURS[curve.colour], "linewidth": 1.8, "linestyle": "--" if curve.dashed else "-"}
        marker = {"marker": "o", "markersize": 3.5 if len(curve.x) < 25 else 0}
        axes.plot(curve.x, curve.y, **style, **marker)
        if curve.filled:
            axes.fill_between(curve.x, curve.y, color=COLOURS[curve.colour], alpha=0.15, linewidth=0)
    for level_name, level in (levels or {}).items():
        axes.axhline(level, color=COLOURS["grey"], linewidth=1, linestyle=":")
        axes.annotate(
            _words(level_name), (1, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8, color=_INK
        )
    if log:
        axes.set_yscale("log")
    if y_range is not None:
        margin = 0.03 * (y_range[1] - y_range[0])
        axes.set_ylim(y_range[0] - margin, y_range[1] + margin)
    elif not log:
        axes.margins(y=0.12)
    if ticks is not None:
        axes.set_xticks(range(len(ticks)), [_words(tick) for tick in ticks], rotation=30, ha="right", fontsize=8)
    elif x_label == "epoch":
        axes.xaxis.get_major_locator().set_params(integer=True)
        _pad_single(axes, curves)
    axes.set_xlabel(_words(x_label))
    axes.set_ylabel(_words(y_label))
    legend = [(COLOURS[curve.colour], curve.name) for curve in curves] if len(curves) > 1 else []
    return Chart(*_pictures(figure), alt, legend)


def bars(
    alt: str,
    groups: Mapping[str, Sequence[float]],
    *,
    x_range: tuple[float, float] = (0.0, 1.0),
    x_label: str = "",
    y_label: str = "",
) -> Chart:
    """Histograms over a common range; the last group in colour, those before as grey outlines.

    Args:
        alt: what is to be seen, for those who do not see it.
        groups: name to the heights of equally wide bars.
        x_range: of the bars together.
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
    """
    figure, axes = _axes()
    legend = []
    for place, heights in enumerate(groups.values()):
        low, high = x_range
        edges = [low + (high - low) * i / len(heights) for i in range(len(heights) + 1)]
        is_last = place == len(groups) - 1
        colour = COLOURS["blue" if is_last else "grey"]
        axes.stairs(heights, edges, color=colour, fill=is_last, alpha=0.75 if is_last else 1, linewidth=1.4)
        legend.append((colour, list(groups)[place]))
    axes.set_xlim(*x_range)
    axes.set_xlabel(_words(x_label))
    axes.set_ylabel(_words(y_label))
    return Chart(*_pictures(figure), alt, legend if len(legend) > 1 else [])


def _axes() -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # an object of its own: no pyplot, no window, no state of the user's

    figure = Figure(figsize=(WIDTH, HEIGHT), facecolor="none")
    figure.subplots_adjust(left=0.13, right=0.97, bottom=0.2, top=0.965)  # a layout engine would take half of the time
    axes = figure.add_subplot(facecolor="none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(COLOURS["grey"])
    axes.tick_params(colors=_INK, length=3, labelsize=9)
    axes.grid(axis="y", color=COLOURS["grey"], alpha=0.25, linewidth=0.8)
    axes.set_axisbelow(True)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=_INK, fontsize=9)
    return figure, axes


def _pad_single(axes: Any, curves: Sequence[Line]) -> None:
    values = {value for curve in curves for value in curve.x}
    if len(values) == 1:
        (only,) = values
        axes.set_xlim(only - 1, only + 1)


def _words(text: str) -> str:
    """Text as it stands: no formulas in dollars, nothing that runs out of the picture."""
    return (text if len(text) <= 50 else text[:49] + "…").replace("$", r"\$")


def _pictures(figure: Any) -> tuple[str, str]:
    """The data addresses of a figure for light and for dark screens."""
    import matplotlib

    buffer = io.StringIO()
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "", "text.usetex": False, "svg.image_inline": True}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the reader's fonts have what matplotlib's lacks
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    light, dark = (buffer.getvalue().replace(_INK, ink).encode() for ink in INKS.values())
    return _address(light), _address(dark)


def _address(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
