"""The table of predictions: files, classes and their probabilities in order."""

import csv
import os
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import ConcatDataset, Subset

from groupcam_aug.recipes.predictions import write_predictions

BATCHES = [torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([[0.4, 0.6]])]


def lines_of(path):
    return list(csv.reader(path.open()))


def test_predictions_are_the_likeliest_classes_in_the_order_of_the_files(tmp_path):
    files = SimpleNamespace(samples=[(f"{i}.png", 0) for i in range(5)])
    model = SimpleNamespace(class_names=["ant", "bee"])
    for data, names in ((SimpleNamespace(samples=files.samples[:3]), "012"), (Subset(files, [4, 1, 0]), "410")):
        lines = lines_of(write_predictions(tmp_path, BATCHES, SimpleNamespace(test_set=data), model))
        assert lines[0] == ["file", "class", "probability", "ant", "bee"]
        said = (("ant", "0.9000"), ("bee", "0.8000"), ("bee", "0.6000"))
        assert [line[:3] for line in lines[1:]] == [[f"{name}.png", *rest] for name, rest in zip(names, said)]
        assert [line[3:] for line in lines[1:]] == [["0.9000", "0.1000"], ["0.2000", "0.8000"], ["0.4000", "0.6000"]]
    odd = SimpleNamespace(samples=[(os.fsdecode(b"caf\xe9.png"), 0), ("b", 0), ("c", 0)])
    assert b"caf\xe9.png,ant" in write_predictions(tmp_path, BATCHES, SimpleNamespace(test_set=odd), model).read_bytes()
    lines = lines_of(write_predictions(tmp_path, BATCHES, SimpleNamespace(), SimpleNamespace()))
    assert lines[:2] == [["index", "class", "probability", "0", "1"], ["0", "0", "0.9000", "0.9000", "0.1000"]]


def test_labels_are_named_where_the_data_know_them(tmp_path):
    model = SimpleNamespace(class_names=["ant", "bee"])
    whole = SimpleNamespace(samples=[(f"{i}.png", i % 2) for i in range(4)], targets=[0, 1, 0, 1])
    parts = ConcatDataset([Subset(whole, [3]), Subset(whole, [0, 1])])
    lines = lines_of(write_predictions(tmp_path, BATCHES, SimpleNamespace(test_set=parts), model))
    assert lines[0][:3] == ["file", "label", "class"]
    assert [line[:3] for line in lines[1:]] == [["3.png", "bee", "ant"], ["0.png", "ant", "bee"], ["1.png", "bee", "bee"]]


def test_only_the_likeliest_on_request(tmp_path):
    batches = [torch.tensor([[0.2, 0.5, 0.3]])]
    model = SimpleNamespace(class_names=["ant", "bee", "cat"])
    lines = lines_of(write_predictions(tmp_path, batches, SimpleNamespace(), model, top=2))
    assert lines == [
        ["index", "class", "probability", "class 2", "probability 2"],
        ["0", "bee", "0.5000", "cat", "0.3000"],
    ]
    assert lines_of(write_predictions(tmp_path, batches, SimpleNamespace(), model, top=1))[1] == ["0", "bee", "0.5000"]
    for top in (0, 4):
        with pytest.raises(ValueError, match=f"--top {top}: give a number from 1 to 3"):
            write_predictions(tmp_path, batches, SimpleNamespace(), model, top=top)


def test_names_that_a_spreadsheet_would_run_are_text(tmp_path):
    wicked = SimpleNamespace(samples=[("=cmd|' /C calc'!A0.png", 0), ("b", 0), ("c", 0)])
    path = write_predictions(tmp_path, BATCHES, SimpleNamespace(test_set=wicked), SimpleNamespace(class_names=["@SUM(1)", "-1"]))
    assert [line[:2] for line in csv.reader(path.open())][1:] == [
        ["'=cmd|' /C calc'!A0.png", "'@SUM(1)"],
        ["b", "-1"],
        ["c", "-1"],
    ]
