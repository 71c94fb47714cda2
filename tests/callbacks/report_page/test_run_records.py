"""What is read of a run's folder, and what is not."""

import json
import os
from datetime import datetime

import pytest
import records

from groupcam_aug.callbacks.report_page.checks import findings
from groupcam_aug.callbacks.report_page.run_records import higher_is_better, main_metric, read_records, series


def test_records_of_an_earlier_run_in_the_same_folder_are_not_this_runs(tmp_path):
    records.run(tmp_path)
    records.augmentation(tmp_path, no_map=90)
    records.evaluation(tmp_path, spearman=(0.9, 0.8))
    assert read_records(tmp_path).augmentation_epochs and len(findings(read_records(tmp_path))) >= 2
    began = json.loads((tmp_path / "run.json").read_text())["started"]
    before = datetime.fromisoformat(began).timestamp() - 60
    for path in [*tmp_path.glob("augmentation.*"), *tmp_path.glob("gallery/*"), tmp_path / "evaluation.json"]:
        os.utime(path, (before, before))
    found = read_records(tmp_path)
    assert found.epochs and not (found.augmentation_epochs or found.augmentation or found.sample_grids or found.evaluation)
    assert not findings(read_records(tmp_path))


def test_the_main_metric_is_the_validation_score():
    assert main_metric([{"epoch": 0, "train/acc": 0.5, "val/loss": 1.0, "val/acc": 0.5, "lr": 0.1}]) == "val/acc"
    assert main_metric([{"train_loss": 1.0, "valid_auroc": 0.5}]) == "valid_auroc"
    assert main_metric([{"train_loss": 1.0, "val_loss": 2.0, "train_acc": 0.1}]) == "val_loss"
    assert main_metric([{"train_loss_step": 1.0, "train_acc": 0.1, "groupcam/keep_fraction": 0.3}]) == "train_acc"
    assert main_metric([{"saliency/change": 0.5, "epoch": 1}]) is None
    assert higher_is_better("val/acc") and not higher_is_better("val/loss")


def test_a_folder_without_files_is_empty(tmp_path):
    assert read_records(tmp_path).is_empty
    records.evaluation(tmp_path)
    assert not read_records(tmp_path).is_empty


@pytest.mark.parametrize(("content", "message"), [('{"broken', r"monitor\.json is no JSON"), ("[]", r"monitor\.json holds list")])
def test_a_broken_file_is_named(tmp_path, content, message):
    (tmp_path / "monitor.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_records(tmp_path)


def test_a_change_counts_once_it_has_a_reference(tmp_path):
    records.monitor(tmp_path, epochs=4)
    assert [line["epoch"] for line in read_records(tmp_path).compared] == [1, 2, 3], "the first has nothing before it"
    facts = json.loads((tmp_path / "monitor.json").read_text())
    (tmp_path / "monitor.json").write_text(json.dumps({**facts, "warmup_epochs": 3}))
    assert [line["epoch"] for line in read_records(tmp_path).compared] == [3]
    records.monitor(tmp_path, epochs=4, alive=0.4)
    assert read_records(tmp_path).compared == [], "too few maps"
    records.monitor(tmp_path, epochs=4, counted=0)
    assert read_records(tmp_path).compared == [], "no pair"


def test_classes_have_the_runs_names_or_the_monitors_or_numbers(tmp_path):
    records.run(tmp_path)
    assert read_records(tmp_path).class_name(1) == "class 1"
    records.monitor(tmp_path, names=["ant", "bee"])
    assert read_records(tmp_path).class_name("1") == "bee"
    records.run(tmp_path, names=["cat", "dog"])
    assert [read_records(tmp_path).class_name(label) for label in (1, 2, None)] == ["dog", "class 2", ""]


def test_series_leave_out_what_is_no_number():
    lines = [
        {"epoch": 0, "a": 1},
        {"epoch": 1, "a": None},
        {"epoch": 2},
        {"epoch": 3, "a": True},
        {"a": 5},
        {"epoch": 4, "a": 0.5},
    ]
    assert series(lines, "a") == ([0.0, 4.0], [1.0, 0.5])
