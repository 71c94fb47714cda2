"""Charts as pictures for light and for dark screens."""

import base64

from page import check_svg

from groupcam_aug.callbacks.report_page.charts import COLOURS, INKS, Line, bars, lines


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
    assert "$y$</text>" in svg(chart.light) and ">zero</text>" in svg(chart.light) and "&amp;</text>" in svg(chart.light)
    long = lines("alt", [Line("a", [0, 1], [0, 1])], x_label="a" * 60)
    assert f"{'a' * 49}…</text>" in svg(long.light)


def test_legends_name_several_curves():
    several, histogram = both()
    assert several.legend == [(COLOURS["blue"], "a"), (COLOURS["red"], "$b$")]
    assert histogram.legend == [(COLOURS["grey"], "first"), (COLOURS["blue"], "last")]
    assert lines("alt", [Line("a", [0], [1])]).legend == bars("alt", {"a": [1]}).legend == []


def test_axes_are_those_asked_for():
    line = [Line("a", [0, 1, 2], [0.3, 0.35, 0.4])]
    close, whole, log = (svg(lines("alt", line, **options).light) for options in ({}, {"y_range": (0, 1)}, {"log": True}))
    assert ">0.40</text>" in close and ">1.0</text>" not in close
    assert ">0.0</text>" in whole and ">1.0</text>" in whole
    assert log not in (close, whole) and ">0.40</text>" not in log


def test_the_same_chart_is_the_same_text_and_matplotlib_is_left_as_it_was():
    import matplotlib

    before = dict(matplotlib.rcParams)
    assert list(both()) == list(both())
    assert dict(matplotlib.rcParams) == before
