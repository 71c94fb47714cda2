"""What deserves a look: each warning has its reason, and nothing is said where the numbers do not say it."""

import json

import pytest
import records
from page import check

from groupcam_aug.callbacks.report_page.checks import (
    Finding,
    findings,
    overhead,
    verdict,
    watching_share,
    worst_classes,
)
from groupcam_aug.callbacks.report_page.page import render
from groupcam_aug.callbacks.report_page.run_records import read_records
from groupcam_aug.files import add_line, put_file


def warnings_of(folder):
    return [finding.text for finding in findings(read_records(folder))]


def test_nothing_stands_out_of_a_good_run(tmp_path):
    records.full_run(tmp_path)
    assert warnings_of(tmp_path) == [] and "Nothing stands out" in render(tmp_path)


def test_classes_without_maps_are_named(tmp_path):
    records.augmentation(tmp_path, per_class={"3": [100, 41], "1": [100, 4], "2": [10, 10], "0": [100, 0]})
    assert warnings_of(tmp_path) == ["41% of class 3 have no map."]
    assert "41% of class 3 have no map." in check(render(tmp_path)).words()
    records.run(tmp_path, names=["a", "b", "c", "owl"])
    assert warnings_of(tmp_path) == ["41% of class 3 (owl) have no map."]


@pytest.mark.parametrize(
    ("per_class", "unlabelled", "expected"),
    [
        (
            {"0": [200, 40], "1": [200, 60]},
            [400, 400],
            "80% of class 0 and 0% of the images without any label and 70% of class 1, 38% of all.",
        ),
        ({"0": [100, 90], "1": [100, 80], "2": [50, 0]}, [0, 0], "100% of class 2, 32% of all."),
        ({"0": [100, 20], "1": [100, 40]}, [100, 30], None),
        ({"0": [19, 19], "1": [100, 0]}, [15, 15], None),  # too few to say
        ({"0": [30, 24], "1": [30, 12]}, [0, 0], None),  # 20 points from the mean
    ],
)
def test_classes_that_are_augmented_unequally_are_named(tmp_path, per_class, unlabelled, expected):
    records.augmentation(tmp_path, per_class=per_class, unlabelled=unlabelled)
    found = [text for text in warnings_of(tmp_path) if "depends on its class" in text]
    assert found == ([] if expected is None else [f"Whether an image is augmented depends on its class: {expected}"])
    if expected:
        assert expected in check(render(tmp_path)).words()


@pytest.mark.parametrize(
    ("name", "values", "begins", "expected"),
    [
        ("val/acc", [0.5, 0.778, 0.333], 2, "The augmentation began in epoch 2"),
        ("val/acc", [0.5, 0.778, 0.333], 0, "Overfitting"),
        ("val/acc", [0.5, 0.778, 0.333], None, "Overfitting"),
        ("val/acc", [0.5, 0.77, 0.73], 2, None),  # hardly
        ("val/acc", [50.0, 77.8, 33.3], 2, None),  # of which the scale is not known
        ("val/loss", [0.5, 0.2, 0.9], 2, None),
        ("train/acc", [0.5, 0.778, 0.333], 2, None),
    ],
)
def test_a_score_that_ends_far_below_its_best_is_named_first(tmp_path, name, values, begins, expected):
    put_file(tmp_path, "run.json", json.dumps({"status": "finished"}))
    for epoch, value in enumerate(values):
        add_line(tmp_path, "run", {"epoch": epoch, "step": epoch, name: value})
    if begins is not None:
        records.augmentation(tmp_path, epochs=3)
        lines = (tmp_path / "augmentation.jsonl").read_text().splitlines()
        put_file(tmp_path, "augmentation.jsonl", "".join(f"{line}\n" for line in lines[begins:]))
    found = [finding for finding in findings(read_records(tmp_path)) if "ended at" in finding.text]
    if expected is None:
        assert not found
    else:
        assert [finding.text for finding in found] == ["val/acc ended at 33.3%, after 77.8% in epoch 1."]
        assert expected in found[0].why and findings(read_records(tmp_path))[0] == found[0]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [([512, 2, 3], "Maps have 2 x 3 cells."), ([64, 4, 9], "Maps have 4 x 9 cells."), ([64, 5, 5], None), (None, None)],
)
def test_maps_of_a_few_cells_are_named_on_top(tmp_path, shape, expected):
    records.augmentation(tmp_path)
    facts = json.loads((tmp_path / "augmentation.json").read_text())
    put_file(tmp_path, "augmentation.json", json.dumps(facts | {"layer_shape": shape}))
    assert warnings_of(tmp_path) == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    ("cells", "expected"), [([2, 3], ["Maps have 2 x 3 cells."]), ([4, 14], ["Maps have 4 x 14 cells."]), ([5, 5], []), ([3], [])]
)
def test_watched_maps_of_a_few_cells_are_named_where_nothing_is_augmented(tmp_path, cells, expected):
    records.monitor(tmp_path)
    facts = json.loads((tmp_path / "monitor.json").read_text())
    put_file(tmp_path, "monitor.json", json.dumps(facts | {"cells": cells}))
    assert [text for text in warnings_of(tmp_path) if "cells" in text] == expected


def test_coarse_maps_of_augmentation_and_monitor_are_one_warning(tmp_path):
    records.augmentation(tmp_path)
    records.monitor(tmp_path)
    for name, facts in (("augmentation", {"layer_shape": [64, 3, 3]}), ("monitor", {"cells": [2, 2]})):
        put_file(tmp_path, f"{name}.json", json.dumps(json.loads((tmp_path / f"{name}.json").read_text()) | facts))
    assert [text for text in warnings_of(tmp_path) if "cells" in text] == ["Maps have 3 x 3 cells."]


def test_empty_object_masks_are_no_failure_of_the_method(tmp_path):
    records.augmentation(tmp_path, no_map=90, keep_fraction=0.05)
    facts = json.loads((tmp_path / "augmentation.json").read_text())
    put_file(tmp_path, "augmentation.json", json.dumps({**facts, "source": "masks"}))
    assert warnings_of(tmp_path) == ["60% of the drawn images had an empty object mask in epoch 5 and were left as they are."]


@pytest.mark.parametrize(
    ("lr", "change", "expected"),
    [
        (lambda e: 0.1 if e < 4 else 0.001, lambda e: 0.4 if e < 4 else 0.05, True),  # the maps stop when the rate is cut
        (lambda e: 0.1 * 0.5**e, lambda e: 0.8 * 0.6**e, True),  # both decay together
        (lambda e: 0.1 if e < 4 else 0.001, lambda e: 0.5 * 0.4**e, False),  # the maps had settled before
        (lambda e: 0.1, lambda e: 0.5 * 0.5**e, False),  # no cut
        (lambda e: 0.1 if e < 4 else 0.001, lambda e: 0.4, False),  # a cut that changed nothing
        (lambda e: 0.001 if e < 2 else 0.1, lambda e: 0.5 / (e + 1), False),  # a warm-up is no cut
    ],
)
def test_a_change_that_fell_with_the_learning_rate(tmp_path, lr, change, expected):
    records.run(tmp_path, epochs=8, lr=lr)
    records.monitor(tmp_path, epochs=8, change=change)
    assert ("Change fell with the learning rate, not before it." in warnings_of(tmp_path)) == expected


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda f: records.monitor(f, alive=0.3), "Only 30% of the probes have a map."),
        (lambda f: records.monitor(f, noise=0.7), "The maps are noisy: 0.70."),
        (lambda f: records.monitor(f, probes=5, probe_right=[True] + 4 * [False]), "Only 20% of the probes are classified"),
        (lambda f: records.monitor(f, converged_epoch=3), "The maps had settled by epoch 3."),
        (lambda f: (records.run(f), records.monitor(f, change=lambda e: 0.6)), "The maps still change: 0.60 at the last probing"),
        (lambda f: (records.run(f), records.monitor(f, seconds=9.0)), "Watching the probes takes 17.6% of the training time."),
        (lambda f: records.augmentation(f, no_map=90), "60% of the drawn images had no map in epoch 5"),
        (lambda f: records.augmentation(f, drawn=0), "No image has been augmented."),
        (lambda f: records.augmentation(f, keep_fraction=0.03), "3% of the pixels are kept: nearly everything is blurred."),
        (
            lambda f: records.augmentation(f, keep_fraction=0.03, mask_from="centre"),
            "3% of the pixels are kept: nearly everything",
        ),
        (lambda f: records.augmentation(f, keep_fraction=0.97), "97% of the pixels are kept: nearly nothing is changed."),
        (lambda f: records.augmentation(f, seconds=0.6), "The augmentation makes a training step 7.0 times as long."),
        (lambda f: records.run(f, status="stopped by ValueError in epoch 2"), "The run did not finish: stopped by ValueError"),
        (lambda f: records.evaluation(f, spearman=(0.9, 0.8)), "The maps survive a network of random weights"),
        (
            lambda f: records.evaluation(f, spearman=(0.9, 0.1), passed=False, mode="independent", standing=["layer0"]),
            "The maps survive new weights of layer0.",
        ),
        (lambda f: records.evaluation(f, {"A": (0.3, 0.2), "random cells": (0.3, 0.1)}), "A finds what matters no better than"),
    ],
)
def test_each_warning_has_its_reason(tmp_path, make, expected):
    make(tmp_path)
    assert [text for text in warnings_of(tmp_path) if text.startswith(expected)], warnings_of(tmp_path)


def falling(epoch):
    return 0.4 if epoch < 3 or epoch == 5 else 0.1


@pytest.mark.parametrize(
    ("make", "unsaid"),
    [
        # without a verdict: one stage alone, or too few maps left
        (lambda f: records.evaluation(f, spearman=(0.9, 0.8), passed=None), "The maps survive"),
        # right at both of the last probings is not what counts
        (lambda f: records.monitor(f, correct=0.1), "Only"),
        # with too few maps change is 1 and noise may be, by convention
        (lambda f: (records.run(f), records.monitor(f, alive=0.7, min_alive=0.8, change=lambda e: 1.0)), "The maps still change"),
        (lambda f: records.monitor(f, alive=0.0, noise=1.0), "The maps are noisy"),
        # a rate that rises again after it was cut
        (lambda f: (records.run(f, lr=lambda e: (1, 1, 1, 0.1, 0.1, 0.5)[e]), records.monitor(f, change=falling)), "Change fell"),
    ],
)
def test_nothing_is_said_where_numbers_do_not_say_it(tmp_path, make, unsaid):
    make(tmp_path)
    assert not [text for text in warnings_of(tmp_path) if text.startswith(unsaid)], warnings_of(tmp_path)


def test_a_loss_that_was_finite_in_between_is_lost_since_the_last_time(tmp_path):
    records.run(tmp_path, epochs=0)
    for epoch, loss in enumerate((1.0, float("nan"), 1.0, float("nan"), float("nan"))):
        add_line(tmp_path, "run", {"train/loss": loss, "epoch": epoch, "step": epoch, "seconds": 1.0})
    assert "train/loss is not a finite number since epoch 3." in warnings_of(tmp_path)


def test_the_verdict_counts_the_warnings():
    warning, note = Finding("warning", "a", "b"), Finding("note", "a", "b")
    assert [verdict(each) for each in ([], [note], [warning, note], [warning, warning])] == [
        "Nothing stands out.", "Nothing stands out.", "One thing deserves a look.", "2 things deserve a look.",
    ]  # fmt: skip


def test_warnings_come_first(tmp_path):
    records.monitor(tmp_path, converged_epoch=3)
    records.evaluation(tmp_path, spearman=(0.9, 0.8))
    levels = [finding.level for finding in findings(read_records(tmp_path))]
    assert levels == sorted(levels, key=["warning", "note"].index) and set(levels) == {"warning", "note"}


def test_worst_classes_by_share_then_by_size_then_by_number():
    line = {"per_class": {"10": [4, 2], "2": [8, 4], "3": [4, 2], "4": [5, 5], "5": [0, 0]}}
    assert worst_classes(line) == [("4", 5, 1.0), ("2", 8, 0.5), ("3", 4, 0.5), ("10", 4, 0.5)]
    assert worst_classes({}) == []


def test_shares_of_time(tmp_path):
    line = {"seconds": 0.03, "plain_seconds": 0.1, "steps": 10, "augmented_steps": 5}
    assert overhead(line) == pytest.approx(0.15), "over all steps, augmented or not"
    assert overhead({**line, "seconds": None}) is overhead({}) is None
    records.run(tmp_path, epochs=2)
    assert watching_share(read_records(tmp_path)) is None, "nothing watched"
    records.monitor(tmp_path, epochs=2, seconds=6.0)
    assert watching_share(read_records(tmp_path)) == pytest.approx(12 / 108)
