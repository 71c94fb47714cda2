"""Accuracy and confusions of the labelled probes, against counting by hand."""

import json

import pytest
import records

from groupcam_aug.callbacks.report_page.mistakes import CLASSES, PAIRS, mistakes
from groupcam_aug.callbacks.report_page.run_records import read_records
from groupcam_aug.files import add_line


def read(folder, labels, chosen, names=None, /, **facts):
    records.monitor(folder, epochs=1, probes=len(labels), names=names, pictures=False)
    path = folder / "monitor.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "labels": labels, **facts}))
    add_line(folder, "monitor", {"epoch": 3, "step": 30, "probe_chosen": chosen})
    return read_records(folder)


def test_classes_and_pairs_by_hand(tmp_path):
    found = mistakes(read(tmp_path, [0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 0, 2], ["cat", "dog", "owl"], origin="the validation data"))
    assert found["summary"].startswith(
        "Of the 6 probes, from the validation data, 3 are classified as labelled after epoch 3: 50%."
    ), "of the last probing"
    assert [(row["name"], row["right"], row["count"], row["share"], row["width"]) for row in found["classes"]] == [
        ("cat", 1, 3, "33%", 33), ("dog", 1, 2, "50%", 50), ("owl", 1, 1, "100%", 100),
    ]  # fmt: skip
    assert [(row["name"], row["taken_for"], row["times"], row["count"]) for row in found["pairs"]] == [
        ("cat", "dog", 2, 3), ("dog", "cat", 1, 2),
    ]  # fmt: skip
    assert found["more"] == found["more_pairs"] == 0


def test_of_many_classes_the_worst_are_shown(tmp_path):
    labels = list(range(CLASSES + 5))
    found = mistakes(read(tmp_path, labels, [label + 1 if label < PAIRS + 3 else label for label in labels]))
    assert len(found["classes"]) == CLASSES and found["more"] == 5 and found["classes"][0]["name"] == "class 0"
    assert len(found["pairs"]) == PAIRS and found["more_pairs"] == 3


@pytest.mark.parametrize(
    ("chosen", "facts"), [([0, 1], {"labelled": False}), ([0], {}), ([0, 1], {"labels": []}), ([0, 1], {"labelled": "yes"})]
)
def test_without_labels_nothing_is_counted(tmp_path, chosen, facts):
    assert mistakes(read(tmp_path, [0, 1], chosen, **facts)) is None
    assert mistakes(read_records(tmp_path / "nowhere")) is None
