"""Charts as pictures for light and for dark screens."""

import base64
import re

import pytest
from page import check_svg

from groupcam_aug.callbacks.report_page import charts
from groupcam_aug.callbacks.report_page.charts import COLOURS, INKS, Key, Line, bars, lines


def svg(address):
    kind, content = address.split(",")
    assert kind == "data:image/svg+xml;base64"
    return base64.b64decode(content).decode()


def both():
    levels = {"zero": 0.0}
    yield lines("alt", [Line("a", [0, 1], [1, 2]), Line("$b$", [0], [1], "red")], levels=levels, ticks=["x", "$y$"], y_label="&")
    yield bars("alt", {"first": [1, 2], "last": [2, 1]}, x_label="share")


def test_each_picture_stands_alone():
    for chart in both():
        for address in (chart.light, chart.dark):
            check_svg(svg(address))
        assert chart.alt == "alt"


def test_light_and_dark_differ_in_the_colour_of_text_alone():
    for chart in both():
        light, dark = svg(chart.light), svg(chart.dark)
        assert INKS["light"] in light and INKS["dark"] in dark and light != dark
        assert light.replace(INKS["light"], INKS["dark"]) == dark
        assert "#000000" not in light and "#ffffff" not in light, "neither ink nor paper of its own"


def test_text_is_text_and_no_formula():
    chart, _ = both()
    assert "$y$</text>" in svg(chart.light) and "&amp;</text>" in svg(chart.light)
    long = lines("alt", [Line("a", [0, 1], [0, 1])], x_label="a" * 60)
    assert f"{'a' * 49}…</text>" in svg(long.light)


def test_legends_name_several_curves():
    several, histogram = both()
    blue, red, grey = (COLOURS[name] for name in ("blue", "red", "grey"))
    assert several.legend == [Key(blue, "solid", "a"), Key(red, "solid", "$b$"), Key(grey, "dotted", "zero")]
    assert histogram.legend == [Key(grey, "solid", "first"), Key(blue, "filled", "last")]
    dashed = lines("alt", [Line("a", [0], [1]), Line("b", [0], [1], dashed=True)]).legend
    assert [key.style for key in dashed] == ["solid", "dashed"]
    assert lines("alt", [Line("a", [0], [1])]).legend == bars("alt", {"a": [1]}).legend == []


def test_axes_are_those_asked_for():
    line = [Line("a", [0, 1, 2], [0.3, 0.35, 0.4])]
    close, shares, log = (svg(lines("alt", line, **options).light) for options in ({}, {"possible": (0, 1)}, {"log": True}))
    for picture in (close, shares):
        assert ">0.40</text>" in picture and ">1.0</text>" not in picture, "where the curves are"
    assert log not in (close, shares) and ">0.3</text>" in log and "×" not in log, "plain numbers"


@pytest.mark.parametrize(
    ("values", "bottom", "top"),
    [([0, 1], -0.04, 1.04), ([0.76, 0.78], 0.712, 0.828), ([0.9, 1.0], 0.892, 1.004), ([0, 0], -0.004, 0.058)],
)
def test_an_axis_lies_where_the_values_are_and_not_beyond_what_there_can_be(values, bottom, top):
    assert charts._around(values, 0.0, 1.0) == pytest.approx((bottom, top))


def test_areas_and_levels_lie_inside_the_plot():
    filled = lines("alt", [Line("a", [0, 1], [0.8, 0.9], filled=True)], possible=(0, 1))
    assert ">0.0</text>" in svg(filled.light), "an area begins at zero"
    level = lines("alt", [Line("a", [0, 1], [0.8, 0.9])], possible=(0, 1), levels={"floor": 0.1})
    assert ">0.2</text>" in svg(level.light) and "floor" not in svg(level.light), "named in the legend"
    assert [key.name for key in level.legend] == ["a", "floor"]


def test_labels_are_not_cut(monkeypatch):
    """As matplotlib measures them."""
    from matplotlib.figure import Figure

    cut, save = [], Figure.savefig

    def look(figure, *args, **options):
        save(figure, *args, **options)
        (axes,) = figure.axes
        box = axes.get_tightbbox(figure._get_renderer())
        cut.append(min(box.x0, box.y0, figure.bbox.width - box.x1, figure.bbox.height - box.y1) < -0.5)

    monkeypatch.setattr(Figure, "savefig", look)
    lines("alt", [Line("a", [0, 1], [0, 1])], ticks=["layer4.0.downsample.1", "layer3.1.conv2"], y_label="rank correlation")
    lines("alt", [Line("a", [0, 1], [1e-7, 123_456_789])], y_label="loss")
    lines("alt", [Line("a", [0, 1, 2], [0.02, 0.01, 0.0015])], log=True, y_label="learning rate")
    bars("alt", {"a": [100, 2]}, x_label="share", y_label="%")
    lines("alt", [Line("a", [0, 1], [0.701, 0.712])], possible=(0, 1), y_label="probability")
    assert cut == [False] * 5


def test_every_text_of_a_logarithmic_axis_has_the_ink_of_the_page():
    picture = svg(lines("alt", [Line("a", [0, 1, 2], [0.02, 0.01, 0.0015])], log=True).dark)
    texts = re.findall(r"<text ([^>]*)>", picture)
    assert texts and all(INKS["dark"] in text for text in texts), texts


def test_the_same_chart_is_the_same_text_and_matplotlib_is_left_as_it_was():
    import matplotlib

    before = dict(matplotlib.rcParams)
    assert list(both()) == list(both())
    assert dict(matplotlib.rcParams) == before
