"""The pictures of a report: which epochs, which cells, and in what form."""

import base64
import io

import pytest
import records
from page import check
from PIL import Image

from groupcam_aug.callbacks.report_page.images import NARROW, SIDE, errors, film_strip, log_spaced, samples
from groupcam_aug.callbacks.report_page.page import render
from groupcam_aug.callbacks.report_page.run_records import read_records


def picture(address):
    kind, content = address.split(",")
    return kind.removeprefix("data:image/").removesuffix(";base64"), Image.open(io.BytesIO(base64.b64decode(content)))


def test_the_film_strip_has_a_row_per_probe_and_a_column_per_epoch(tmp_path):
    records.monitor(tmp_path, epochs=3, probes=4, names=["ant", "bee", "cow"], alive=0.5)
    strip = film_strip(read_records(tmp_path))
    assert strip["rows"] == ["ant", "bee", "cow", "ant"]
    assert [(column["title"], column["note"]) for column in strip["columns"]] == [
        ("image", ""), ("epoch 0", "50%"), ("epoch 1", "50%"), ("epoch 2", "50%"),
    ]  # fmt: skip
    for column in strip["columns"]:
        kind, image = picture(column["src"])
        assert kind == "jpeg" and image.size == (records.SIDE, 4 * records.SIDE) and column["alt"]
    assert [column["title"] for column in film_strip(read_records(tmp_path), columns=2)["columns"]] == [
        "image",
        "epoch 0",
        "epoch 2",
    ]
    (tmp_path / "monitor" / "probes.png").unlink()
    assert film_strip(read_records(tmp_path)) is None


def test_a_phone_shows_the_first_epochs_and_the_last(tmp_path):
    records.monitor(tmp_path, epochs=9, probes=2)
    columns = film_strip(read_records(tmp_path))["columns"]
    shown = [column["title"] for column in columns if not column["spare"]]
    assert len(shown) == NARROW and shown[:2] == ["image", "epoch 0"] and shown[-1] == "epoch 8"


def test_mistakes_are_cut_from_their_sheet(tmp_path):
    records.monitor(tmp_path, names=["cat", "dog", "owl"])
    wrong = {"label": 1, "chosen": 2, "confidence": None, "score": 0.25, "has_map": False}
    records.errors(tmp_path, [{**wrong, "label": 0, "confidence": 0.9}, wrong], side=32)
    first, second = errors(read_records(tmp_path))
    assert (first["name"], first["taken_for"], first["confidence"]) == ("cat", "owl", 0.9) and second["confidence"] is None
    assert second["name"] == "dog" and second["has_map"] is False and second["tiny"]
    sheet = Image.open(tmp_path / "monitor" / "errors.png").convert("RGB")
    assert picture(second["map"])[1].convert("RGB").tobytes() == sheet.crop((32, 32, 64, 64)).tobytes()
    assert picture(first["image"])[1].convert("RGB").tobytes() == sheet.crop((0, 0, 32, 32)).tobytes()


def test_mistakes_of_another_epoch_or_a_damaged_sheet_are_left_out(tmp_path):
    records.monitor(tmp_path)
    assert errors(read_records(tmp_path)) == []
    records.errors(tmp_path, epoch=2)
    assert errors(read_records(tmp_path)) == [], "of an epoch that is not the last"
    records.errors(tmp_path)
    assert len(errors(read_records(tmp_path))) == 1
    Image.new("RGB", (8, 8)).save(tmp_path / "monitor" / "errors.png")
    found = read_records(tmp_path)
    assert errors(found) == [] and "errors.png has 8 x 8 pixels" in str(found.problems)
    (tmp_path / "monitor" / "errors.json").write_text('{"epoch": 5, "rows": 3}')
    assert "errors.json is not what it should be" in str(read_records(tmp_path).problems)


@pytest.mark.parametrize(("size", "kind", "shown"), [(32, "png", 32), (100, "jpeg", 100), (200, "jpeg", SIDE)])
def test_samples_are_cut_from_their_sheet(tmp_path, size, kind, shown):
    records.augmentation(tmp_path, size=size)
    last, first = samples(read_records(tmp_path))
    assert (last["epoch"], first["epoch"]) == (5, 0) and last["tiny"] == (size == 32)
    assert [row["kind"] for row in last["rows"]][:3] == ["smallest", "smallest", "largest"]
    for row in last["rows"]:
        assert len(row["cells"]) == 4
        for cell in row["cells"]:
            found, image = picture(cell["src"])
            assert (found, image.size) == (kind, (shown, shown))
    if kind == "png":
        sheet = Image.open(tmp_path / "gallery" / "epoch_00005.png")
        _, image = picture(last["rows"][2]["cells"][1]["src"])
        assert image.tobytes() == sheet.crop((32, 64, 64, 96)).tobytes()


def test_pictures_of_a_run_that_was_started_again_are_left_out(tmp_path):
    records.monitor(tmp_path, epochs=6)
    records.monitor(tmp_path, epochs=2)
    records.augmentation(tmp_path, epochs=6, galleries=(0, 5))
    records.augmentation(tmp_path, epochs=2, galleries=(0,))
    words = check(render(tmp_path)).words()
    assert "epoch 1" in words and "epoch 2" not in words and "epoch 5" not in words


@pytest.mark.parametrize("count", [1, 2, 3, 16])
def test_log_spacing(count):
    for length in (1, 2, 3, 15, 16, 17, 18, 30, 100, 1000):
        numbers = list(range(5, 5 + length))
        chosen = log_spaced(numbers, count)
        assert len(chosen) == min(count, length) == len(set(chosen)) and chosen == sorted(chosen)
        assert chosen[-1] == numbers[-1] and (count == 1 or chosen[0] == numbers[0])
