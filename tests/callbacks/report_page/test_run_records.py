"""What is read of a run's folder, and what is not."""

import json
import os

import pytest
import records

from groupcam_aug.callbacks.report_page.checks import findings
from groupcam_aug.callbacks.report_page.run_records import current_run, higher_is_better, main_metric, read_records, series
from groupcam_aug.files import add_line


def test_records_of_an_earlier_run_in_the_same_folder_are_not_this_runs(tmp_path):
    records.augmentation(tmp_path, no_map=90)
    records.evaluation(tmp_path, spearman=(0.9, 0.8))
    records.run(tmp_path, epochs=9)
    records.stamp(tmp_path, "first")
    assert read_records(tmp_path).augmentation_epochs and len(findings(read_records(tmp_path))) >= 2
    records.run(tmp_path)
    records.stamp(tmp_path, "second")
    found = read_records(tmp_path)
    assert len(found.epochs) == 6 and not found.mixed
    assert not (found.augmentation_epochs or found.augmentation or found.sample_grids or found.evaluation)
    (note,) = findings(found)
    assert note.level == "note" and "records of other runs in this folder are left out" in note.text


def test_no_clock_decides_what_belongs_to_a_run(tmp_path):
    records.full_run(tmp_path)
    records.stamp(tmp_path, "only")
    for path in tmp_path.rglob("*.json*"):
        os.utime(path, (0, 0))
    found = read_records(tmp_path)
    assert len(found.epochs) == len(found.probings) == len(found.augmentation_epochs) == 6 and found.evaluation
    assert not found.others and found.sample_grids


def test_a_resumed_run_has_the_records_of_those_before_it(tmp_path):
    records.run(tmp_path, epochs=4)
    records.stamp(tmp_path, "first")
    for epoch in (2, 3, 4):
        add_line(tmp_path, "run", {"epoch": epoch, "val/acc": 1.0})
    records.stamp(tmp_path, "second", epoch=2)
    assert [line.get("run") for line in read_records(tmp_path).epochs] == ["first", "first", "second", "second", "second"]
    assert current_run(tmp_path) == "second" and not read_records(tmp_path).others


def test_what_was_recorded_before_runs_had_ids_is_read(tmp_path):
    records.full_run(tmp_path)
    assert len(read_records(tmp_path).epochs) == 6 and current_run(tmp_path) is None
    add_line(tmp_path, "runs", {"run": "new", "epoch": 6})  # resumed
    add_line(tmp_path, "run", {"run": "new", "epoch": 6})
    assert len(read_records(tmp_path).epochs) == 7
    add_line(tmp_path, "runs", {"run": "anew", "epoch": 0})
    add_line(tmp_path, "run", {"run": "anew", "epoch": 0})
    found = read_records(tmp_path)
    assert len(found.epochs) == 1 and not found.probings and found.evaluation, "that may have been copied there"


def test_two_runs_that_write_at_the_same_time_are_noticed(tmp_path):
    for run in ("one", "two"):
        add_line(tmp_path, "runs", {"run": run, "epoch": 0})
    for epoch in range(3):
        for run in ("two", "one"):
            add_line(tmp_path, "run", {"run": run, "epoch": epoch, "val/acc": 1.0 if run == "two" else 0.0})
    found = read_records(tmp_path)
    assert [line["val/acc"] for line in found.epochs] == [1.0] * 3 and found.mixed and found.others == 3
    assert findings(found)[0] == ("warning", "Another run wrote into this folder at the same time.", findings(found)[0].why)


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


@pytest.mark.parametrize("name", ["run", "monitor", "augmentation", "evaluation", "gallery/epoch_00000"])
@pytest.mark.parametrize(
    ("content", "message"),
    [("", "is no JSON"), ('{"broken', "is no JSON"), ("[]", "holds list"), ("\udcff", "is no JSON"), ("[" * 10**5, "is no JSON")],
)
def test_a_broken_file_is_named_and_the_rest_is_read(tmp_path, name, content, message):
    records.full_run(tmp_path)
    (tmp_path / f"{name}.json").write_bytes(content.encode(errors="surrogateescape"))
    found = read_records(tmp_path)
    (problem,) = found.problems.values()
    assert problem.startswith(f"{name}.json {message}")
    assert len(found.epochs) == len(found.probings) == len(found.augmentation_epochs) == 6
    first = findings(found)[0]
    assert first.level == "warning" and "could not be read" in first.text and problem in first.why


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("run", "lr", "lr is 'x'"),
        ("run", "epoch", "epoch is 'x'"),
        ("monitor", "change", "change is 'x'"),
        ("augmentation", "drawn", "drawn is 'x'"),
        ("augmentation", "per_class", "per_class is 'x'"),
    ],
)
def test_a_line_that_is_not_what_it_should_be_is_left_out_and_its_file_named(tmp_path, name, value, words):
    records.full_run(tmp_path)
    path = tmp_path / f"{name}.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[2][value] = "x"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    found = read_records(tmp_path)
    (problem,) = found.problems.values()
    assert problem.startswith(f"{name}.jsonl has a line not as it should be ({words}")
    kept = {"run": found.epochs, "monitor": found.probings, "augmentation": found.augmentation_epochs}[name]
    assert [line["epoch"] for line in kept] == [0, 1, 3, 4, 5]


@pytest.mark.parametrize("name", ["run.json", "run.jsonl", "runs.jsonl", "evaluation.json", "gallery/epoch_00000.json"])
def test_a_link_that_leaves_the_folder_is_not_read(tmp_path, name):
    records.full_run(tmp_path / "groupcam")
    (tmp_path / "private.json").write_text('{"status": "secret", "epoch": 0}\n')
    (tmp_path / "groupcam" / name).unlink(missing_ok=True)
    (tmp_path / "groupcam" / name).symlink_to(tmp_path / "private.json")
    found = read_records(tmp_path / "groupcam")
    (problem,) = found.problems.values()
    assert problem.startswith(f"{name} cannot be read") and "is a link that leaves the folder" in problem
    assert found.run.get("status") != "secret" and found.probings


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


def test_classes_have_the_names_that_the_monitor_was_told_or_the_runs_or_the_augmentations_or_numbers(tmp_path):
    records.run(tmp_path)
    assert read_records(tmp_path).class_name(1) == "class 1"
    (tmp_path / "augmentation.json").write_text(json.dumps({"class_names": ["x", "y"]}))
    assert read_records(tmp_path).class_name(1) == "y"
    records.run(tmp_path, names=["cat", "dog"])
    assert [read_records(tmp_path).class_name(label) for label in (1, 2, None)] == ["dog", "class 2", ""]
    records.monitor(tmp_path, names=["ant", "bee"])
    assert read_records(tmp_path).class_name("1") == "bee"


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
