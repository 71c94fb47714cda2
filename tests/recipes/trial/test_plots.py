import base64
import io
import re

import pytest
from page import check_svg
from PIL import Image
from trial_records import logged, record, trial

from groupcam_aug.recipes.trial.plots import forest_charts, forest_png
from groupcam_aug.recipes.trial.summary import summarise

THREE = {"none": [0.90, 0.91, 0.92], "fast": [0.91, 0.93, 0.95], "fast-other": [0.90, 0.93, 0.93]}


def svg_of(address):
    text = base64.b64decode(address.removeprefix("data:image/svg+xml;base64,")).decode()
    check_svg(text)
    return text


def size_of(png):
    return Image.open(io.BytesIO(png)).size


def test_a_chart_for_light_and_one_for_dark():
    (chart,) = forest_charts(summarise(trial(THREE, controls={"fast": "fast-other"})))
    light, dark = svg_of(chart.light), svg_of(chart.dark)
    assert "#1c2129" in light and "#e6e8eb" not in light and "#e6e8eb" in dark and "#1c2129" not in dark
    for word in ("fast", "fast-other", "over none", "over its control", "difference in points, Student"):
        assert f">{word}" in light, word
    assert "(higher is better)<" in light
    assert chart.test_set == "kept"
    assert chart.alt == "Differences to none, kept: fast +2.0 [-0.5, +4.5] points; fast-other +1.0 [-1.5, +3.5] points"


def test_what_is_drawn_where():
    """The axes themselves: places, intervals, markers."""
    from matplotlib.figure import Figure

    from groupcam_aug.recipes.trial.plots import BLUE, ORANGE, _draw

    panel = Figure().subplots()
    _draw(panel, summarise(trial(THREE, controls={"fast": "fast-other"})), "kept", "#000000")
    assert [label.get_text() for label in panel.get_yticklabels()] == ["fast-other", "fast"], "drawn upwards: the first is on top"
    intervals = [
        (line.get_color(), *line.get_xdata(), line.get_ydata()[0]) for line in panel.lines if line.get_color() in (BLUE, ORANGE)
    ]
    half = 4.3027 / 3**0.5
    assert [one[0] for one in intervals] == [BLUE, BLUE, ORANGE]
    assert intervals[0][1:] == pytest.approx((2 - half, 2 + half, 1.14), abs=1e-3)
    assert intervals[1][3] == 0 and intervals[2][3] == pytest.approx(0.86)
    points = [tuple(dots.get_offsets()[0]) for dots in panel.collections if len(dots.get_offsets())]
    assert points == [pytest.approx(one) for one in ((2, 1.14), (1, 0), (1, 0.86))]
    (band,) = panel.patches
    assert (band.get_x(), band.get_width()) == (-1, 2)


def test_what_shows_nothing_is_hollow():
    from matplotlib.figure import Figure

    from groupcam_aug.recipes.trial.plots import _draw

    records = trial(THREE)
    records[4]["pairing"]["start"] = "another"  # of fast
    panel = Figure().subplots()
    _draw(panel, summarise(records), "kept", "#000000")
    faces = [len(dots.get_facecolor()) for dots in panel.collections if len(dots.get_offsets())]
    assert faces == [0, 1]


def test_size_follows_arms_and_test_sets():
    two = forest_png(summarise(trial({"none": [0.9, 0.8], "fast": [0.91, 0.84]})))
    twelve = {f"arm {i}": [0.9 + i / 1000, 0.8, 0.85] for i in range(12)} | {"none": [0.9, 0.8, 0.81]}
    many = [
        record(arm, seed, dict.fromkeys(("a", "b", "c", "d"), one)) for arm, of in twelve.items() for seed, one in enumerate(of)
    ]
    wide = forest_png(summarise(many))
    assert size_of(wide)[0] == 2 * size_of(two)[0] and size_of(wide)[1] > 4 * size_of(two)[1]
    assert len(forest_charts(summarise(many))) == 4


def test_nothing_to_compare_draws_nothing():
    for records in ([], trial({"none": [0.9, 0.8]}), [logged("none", 0, 1.0), logged("fast", 0, 2.0)]):
        assert forest_png(summarise(records)) is None and forest_charts(summarise(records)) == []


def test_one_seed_and_a_loss_are_drawn():
    records = [logged(arm, 0, value) for arm, value in (("none", 0.5), ("fast", 0.4))]
    (chart,) = forest_charts(summarise(records, metric="test/loss", mode="min"))
    assert "difference in test/loss, Student's 95 % (lower is better)" in svg_of(chart.light)
    assert chart.alt.endswith("fast -0.1")


def test_names_are_text():
    evil = ["<script>alert(1)</script>", "$\\frac{1}{2}$ & [/red]", "x" * 200, "猫"]
    records = [record(arm, 0, {"<b>": 0.9}) for arm in ("none", *evil)]
    (chart,) = forest_charts(summarise(records))
    text = re.sub("<!--.*?-->", "", svg_of(chart.light), flags=re.DOTALL)  # comments repeat the texts
    assert (
        "<script" not in text
        and "x" * 30 not in text
        and "&lt;script&gt;alert(1)" in text
        and ">$\\frac{1}{2}$ &amp; [/red]<" in text
    )
    assert forest_png(summarise(records)).startswith(b"\x89PNG")
