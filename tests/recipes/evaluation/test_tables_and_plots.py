"""The figures as a table for terminals of any width, in Markdown, and as pictures."""

import io

import pytest
from evaluations import results_by_hand
from PIL import Image
from rich.console import Console

from groupcam_aug.recipes.evaluation.statistics import ablation_rows, figures_of
from groupcam_aug.recipes.evaluation.tables_and_plots import ablation_picture, curves_picture, markdown, rich_table


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
