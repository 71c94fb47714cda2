"""The table of predictions: files, classes and their probabilities in order."""

import csv
import os
from types import SimpleNamespace

import torch
from torch.utils.data import Subset

from groupcam_aug.recipes.predictions import write_predictions


def test_predictions_are_the_likeliest_classes_in_the_order_of_the_files(tmp_path):
    batches = [torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([[0.4, 0.6]])]
    files = SimpleNamespace(samples=[(f"{i}.png", 0) for i in range(5)])
    model = SimpleNamespace(class_names=["ant", "bee"])
    for data, names in ((SimpleNamespace(samples=files.samples[:3]), "012"), (Subset(files, [4, 1, 0]), "410")):
        path = write_predictions(tmp_path, batches, SimpleNamespace(test_set=data), model)
        lines = list(csv.reader(path.open()))
        assert lines[1:] == [
            [f"{name}.png", *said] for name, said in zip(names, (("ant", "0.9000"), ("bee", "0.8000"), ("bee", "0.6000")))
        ]
    odd = SimpleNamespace(samples=[(os.fsdecode(b"caf\xe9.png"), 0), ("b", 0), ("c", 0)])
    assert b"caf\xe9.png,ant" in write_predictions(tmp_path, batches, SimpleNamespace(test_set=odd), model).read_bytes()
    path = write_predictions(tmp_path, batches, SimpleNamespace(), SimpleNamespace())
    assert path.read_text().split() == ["index,class,probability", "0,0,0.9000", "1,1,0.8000", "2,1,0.6000"]


def test_names_that_a_spreadsheet_would_run_are_text(tmp_path):
    batches = [torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([[0.4, 0.6]])]
    wicked = SimpleNamespace(samples=[("=cmd|' /C calc'!A0.png", 0), ("b", 0), ("c", 0)])
    path = write_predictions(tmp_path, batches, SimpleNamespace(test_set=wicked), SimpleNamespace(class_names=["@SUM(1)", "-1"]))
    assert [line[:2] for line in csv.reader(path.open())][1:] == [
        ["'=cmd|' /C calc'!A0.png", "'@SUM(1)"],
        ["b", "-1"],
        ["c", "-1"],
    ]
