"""Charts as SVG pictures that a page carries inside itself, one for light and one for dark screens."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

__all__ = ["COLOURS", "Chart", "Key", "Line", "bars", "lines"]

# Told apart by colour-blind readers too, and readable on white and on black.
COLOURS = {"blue": "#2f7fc1", "orange": "#d9791f", "green": "#2f9a6c", "violet": "#9468c4", "red": "#d0504f", "grey": "#8a8f98"}
INKS = {"light": "#1c2129", "dark": "#e6e8eb"}  # the page's colours of text
WIDTH, HEIGHT = 4.9, 2.5  # inches of 72 points, the size at which a phone shows a chart
LEVELS = ("grey", "green", "violet", "red")  # colours of horizontal lines to compare with
LEAST = 0.1  # of the values that are possible: an axis shows no less, or noise would fill it
_INK = "#010203"  # stands for the colour of text: drawn once, written in both


class Line(NamedTuple):
    """One curve."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = "blue"
    dashed: bool = False
    filled: bool = False  # down to zero: for areas under curves


class Key(NamedTuple):
    """What a curve, a level or a histogram looks like."""

    colour: str
    style: Literal["solid", "dashed", "dotted", "filled"]
    name: str


class Chart(NamedTuple):
    """A chart, and what its page has to say beside it."""

    light: str  # data address of the picture
    dark: str  # the same, for dark screens
    alt: str  # what is to be seen, for those who do not see it
    legend: list[Key]  # empty where there is but one curve


def lines(
    alt: str,
    curves: Sequence[Line],
    *,
    x_label: str = "epoch",
    y_label: str = "",
    possible: tuple[float, float] | None = None,
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
        possible: lowest and highest value that there can be; the vertical axis lies where the curves are, not beyond. None: any.
        log: logarithmic vertical axis.
        levels: horizontal lines to compare with, name to value.
        ticks: names along the horizontal axis, at 0, 1, 2 and so on.
    """
    figure, axes = _axes(fitted=possible is None or log or ticks is not None)
    for curve in curves:
        style = {"color": COLOURS[curve.colour], "linewidth": 1.8, "linestyle": "--" if curve.dashed else "-"}
        marker = {"marker": "o", "markersize": 3.5 if len(curve.x) < 25 else 0}
        axes.plot(curve.x, curve.y, **style, **marker)
        if curve.filled:
            axes.fill_between(curve.x, curve.y, color=COLOURS[curve.colour], alpha=0.15, linewidth=0)
    for level, colour in zip((levels or {}).values(), LEVELS, strict=False):
        axes.axhline(level, color=COLOURS[colour], linewidth=1.8, linestyle=":")
    if log:
        _plain_log(axes)
    if possible is not None:
        values = [value for curve in curves for value in curve.y] + [0.0 for curve in curves if curve.filled]
        axes.set_ylim(*_around([*values, *(levels or {}).values()], *possible))
    elif not log:
        axes.margins(y=0.12)
    if ticks is not None:
        axes.set_xticks(
            range(len(ticks)),
            [_words(tick if len(tick) <= 22 else f"…{tick[-21:]}") for tick in ticks],
            rotation=30,
            ha="right",
            fontsize=8,
        )
    elif x_label == "epoch":
        axes.xaxis.get_major_locator().set_params(integer=True)
        _pad_single(axes, curves)
    axes.set_xlabel(_words(x_label))
    axes.set_ylabel(_words(y_label))
    keys = [Key(COLOURS[curve.colour], "dashed" if curve.dashed else "solid", curve.name) for curve in curves]
    keys += [Key(COLOURS[colour], "dotted", name) for name, colour in zip(levels or {}, LEVELS, strict=False)]
    return Chart(*_pictures(figure), alt, keys if len(keys) > 1 else [])


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
    legend: list[Key] = []
    for place, heights in enumerate(groups.values()):
        low, high = x_range
        edges = [low + (high - low) * i / len(heights) for i in range(len(heights) + 1)]
        is_last = place == len(groups) - 1
        colour = COLOURS["blue" if is_last else "grey"]
        axes.stairs(heights, edges, color=colour, fill=is_last, alpha=0.75 if is_last else 1, linewidth=1.4)
        legend.append(Key(colour, "filled" if is_last else "solid", list(groups)[place]))
    axes.set_xlim(*x_range)
    axes.set_xlabel(_words(x_label))
    axes.set_ylabel(_words(y_label))
    return Chart(*_pictures(figure), alt, legend if len(legend) > 1 else [])


def _axes(*, fitted: bool = False) -> tuple[Any, Any]:
    """An empty plot; `fitted`: with room for labels of any length, which takes twice as long to draw."""
    from matplotlib.figure import Figure  # an object of its own: no pyplot, no window, no state of the user's

    figure = Figure(figsize=(WIDTH, HEIGHT), facecolor="none", layout="constrained" if fitted else None)
    if not fitted:
        figure.subplots_adjust(left=0.13, right=0.97, bottom=0.2, top=0.965)
    axes = figure.add_subplot(facecolor="none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(COLOURS["grey"])
    axes.tick_params(which="both", colors=_INK, length=3, labelsize=9)
    axes.grid(axis="y", color=COLOURS["grey"], alpha=0.25, linewidth=0.8)
    axes.set_axisbelow(True)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=_INK, fontsize=9)
    return figure, axes


def _around(values: list[float], low: float, high: float) -> tuple[float, float]:
    """Where an axis begins and ends that shows these values, between the lowest and the highest that are possible."""
    least = LEAST * (high - low)
    bottom, top = max(low, min(values)), min(high, max(values))
    missing = max(0.0, least - (top - bottom)) / 2
    margin = 0.08 * max(top - bottom, least)
    # Half a margin beyond what is possible, or a curve at 0 or 1 would lie on the edge.
    bottom, top = max(low - margin / 2, bottom - missing - margin), min(high + margin / 2, top + missing + margin)
    return bottom, top


def _plain_log(axes: Any) -> None:
    """A logarithmic axis whose labels are plain numbers."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(Plain())
    axes.yaxis.set_minor_formatter(Plain(labelOnlyBase=False))


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
