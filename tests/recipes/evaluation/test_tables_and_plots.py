"""The figures as a table for terminals of any width, in Markdown, and as pictures."""

import io

import pytest
from evaluations import results_by_hand
from PIL import Image
from rich.console import Console

from groupcam_aug.recipes.evaluation.statistics import ablation_rows, figures_of
from groupcam_aug.recipes.evaluation.tables_and_plots import ablation_picture, curves_picture, markdown, rich_table, show


@pytest.fixture
def found(tmp_path):
    return figures_of(*results_by_hand(tmp_path))


def drawn(table, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_a_terminal_gets_what_it_has_room_for_and_the_page_all(found):
    group = found["Group-CAM"]
    wide, narrow = (drawn(rich_table(found, width), width) for width in (220, 80))
    low, high = group["overall"]["interval"]
    assert f".700 [{low:.3f}, {high:.3f}]".replace("0.", ".") in wide
    assert "2,000" in wide and "+.350" in wide and "83.3" in wide and "1 of 4" in wide
    assert ".700" in narrow and "2,000" in narrow and "[" not in narrow and max(map(len, narrow.splitlines())) <= 80
    assert f"| 0.700 [{low:.3f}, {high:.3f}] |" in markdown(found)
    assert markdown(found).splitlines()[1].startswith("| --- | ---: | ---:")


def test_columns_that_no_method_fills_are_left_out(found):
    for figures in found.values():
        figures.pop("to_centre", None)
    assert "to blob" not in markdown(found) and "to Grad-CAM" in markdown(found)


def test_pictures(found, tmp_path):
    sheet = Image.open(io.BytesIO(curves_picture(found)))
    assert sheet.format == "PNG" and sheet.width > 1000
    items, chosen, results = results_by_hand(tmp_path / "again")
    rows = ablation_rows({1.0: chosen[0], 2.0: chosen[1]}, items, results)
    one, two = (
        Image.open(io.BytesIO(ablation_picture(kinds))) for kinds in ({"groups": rows}, {"groups": rows, "denoise": rows})
    )
    assert two.width > 1.8 * one.width


def test_of_one_image_there_are_figures_and_pictures_without_intervals(tmp_path):
    items, chosen, results = results_by_hand(tmp_path)
    found = figures_of(items[:1], chosen, results)
    assert all(found["Group-CAM"][name]["interval"] is None for name in ("overall", "insertion", "energy", "to_centre"))
    assert found["Group-CAM"]["insertion"]["band"] is None and "| 0.800 |" in markdown(found) and "nan" not in markdown(found)
    rows = ablation_rows({1.0: chosen[0]}, items[:1], results)
    for content in (curves_picture(found), ablation_picture({"groups": rows})):
        assert Image.open(io.BytesIO(content)).format == "PNG"


def shown(**more):
    record = {"methods": {}, "ablations": {}, "sanity_of": {}, "notes": [], "left_out": {}, **more}
    console = Console(width=400, record=True, file=io.StringIO())
    show(console, record)
    return console.export_text()


def test_an_ablation_says_how_many_images_it_leaves_out(tmp_path):
    items, chosen, results = results_by_hand(tmp_path)
    told = shown(ablations={"groups": ablation_rows({1.0: chosen[0], 2.0: chosen[1]}, items, results)})
    assert "Means are over the 2 of 4 images that have a map with every value, 2 left out." in told


def test_the_independent_sanity_check_names_the_stages_that_maps_survive():
    sanity = {"method": "Grad-CAM", "mode": "independent", "images": 8, "stages": ["fc", "conv2", "conv1"]}
    sanity |= {"spearman": [0.9, 0.1, 0.0], "undefined": [0.0, 0.0, 0.25], "floors": {"other_image": 0.3}}
    told = shown(sanity_of={"Grad-CAM": {**sanity, "passed": False, "standing": ["fc"]}})
    assert "FAILED: maps stay above that when these alone are drawn anew: fc." in told and "after the last alone" in told
    assert ": passed." in shown(sanity_of={"Grad-CAM": {**sanity, "passed": True, "standing": []}})
    assert "no verdict (fewer than 5 maps left, or above that at some stage, but not beyond chance" in shown(
        sanity_of={"Grad-CAM": {**sanity, "passed": None, "standing": []}}
    )
