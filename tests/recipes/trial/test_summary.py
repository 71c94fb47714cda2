import json
import math

import pytest
from trial_records import logged, record, trial

from groupcam_aug.recipes.trial.summary import results_in, summarise, write_results

THREE = {"none": [0.90, 0.91, 0.92], "fast": [0.91, 0.93, 0.95]}  # one, two and three points more


def test_three_seeds_by_hand():
    summary = summarise(trial(THREE))
    assert (summary["unit"], summary["margin"], summary["metric"]) == ("points", 1.0, "accuracy")
    fast = summary["test_sets"]["kept"]["arms"]["fast"]
    assert fast["n"] == 3 and summary["test_sets"]["kept"]["sizes"] == [300]
    assert fast["metrics"]["accuracy"] == {
        "mean": pytest.approx(93),
        "error": pytest.approx(2 / math.sqrt(3)),
        "values": pytest.approx({"0": 91, "1": 93, "2": 95}),
    }
    one, half = fast["to_reference"]["accuracy"], 4.3027 / math.sqrt(3)  # Student's quantile, two degrees of freedom
    assert (one["mean"], one["low"], one["high"]) == pytest.approx((2, 2 - half, 2 + half), abs=1e-4)
    assert (one["n"], one["p"], one["wins"], one["other"], one["seeds"], one["paired"]) == (3, 0.25, 3, "none", [0, 1, 2], True)
    assert fast["to_reference"]["worst_class_accuracy"]["mean"] == pytest.approx(2)
    assert "worst_group_accuracy" not in fast["to_reference"] and fast["to_control"] == {}
    assert summary["test_sets"]["kept"]["arms"]["none"]["to_reference"] == {}
    json.dumps(summary, allow_nan=False)


def test_accuracies_are_in_percent_and_logged_metrics_as_logged():
    metrics = summarise(trial({"none": [0.9]}, groups={"a": [1, 2]}))["test_sets"]["kept"]["arms"]["none"]["metrics"]
    means = {key: of["mean"] for key, of in metrics.items()}
    assert means == pytest.approx(
        {
            "accuracy": 90,
            "mean_class_accuracy": 90,
            "worst_class_accuracy": 80,
            "worst_group_accuracy": 70,
            "test/acc": 0.9,
            "test/loss": 0.1,
        }
    )
    assert metrics["accuracy"]["error"] is None


def test_control_cost_and_maps():
    accuracies = THREE | {"fast-other": [0.90, 0.93, 0.93]}
    summary = summarise(trial(accuracies, controls={"fast": "fast-other"}, groups={"a": [1, 2]}))
    control = summary["test_sets"]["kept"]["arms"]["fast"]["to_control"]
    assert control["accuracy"]["mean"] == pytest.approx(1) and control["accuracy"]["other"] == "fast-other"
    assert control["worst_group_accuracy"]["mean"] == pytest.approx(1)
    fast, none = summary["arms"]["fast"], summary["arms"]["none"]
    assert fast["cost"] == 2.0 and none["cost"] == 1.0 and fast["seconds"]["mean"] == 20  # as the records are made
    assert fast["keep_fraction"]["mean"] == pytest.approx(0.46) and fast["object_kept"]["mean"] == pytest.approx(0.7)
    assert none["keep_fraction"] is None and none["seeds"] == [0, 1, 2]


def test_a_control_that_is_the_reference_is_compared_once():
    arms = summarise(trial(THREE, controls={"fast": "none"}))["test_sets"]["kept"]["arms"]
    assert arms["fast"]["to_reference"] and arms["fast"]["to_control"] == {}


def test_only_shared_seeds_are_compared():
    arms = summarise(trial({"none": {0: 0.9, 1: 0.8}, "fast": {1: 0.82, 2: 0.99}}))["test_sets"]["kept"]["arms"]
    one = arms["fast"]["to_reference"]["accuracy"]
    assert (one["seeds"], one["n"], one["low"]) == ([1], 1, None) and one["mean"] == pytest.approx(2)
    nothing = summarise(trial({"none": {0: 0.9}, "fast": {1: 0.82}}))["test_sets"]["kept"]["arms"]["fast"]
    assert nothing["to_reference"] == {}


def test_each_test_set_is_on_its_own():
    records = [record(arm, 0, {"kept": 0.9, "shifted": low}) for arm, low in (("none", 0.5), ("fast", 0.6))]
    sets = summarise(records)["test_sets"]
    assert list(sets) == ["kept", "shifted"]
    assert sets["kept"]["arms"]["fast"]["to_reference"]["accuracy"]["mean"] == 0
    assert sets["shifted"]["arms"]["fast"]["to_reference"]["accuracy"]["mean"] == pytest.approx(10)


def test_a_metric_where_lower_is_better():
    runs = {"none": [0.5, 0.4], "fast": [0.3, 0.5]}
    records = [logged(arm, seed, value) for arm, values in runs.items() for seed, value in enumerate(values)]
    summary = summarise(records, metric="test/loss", mode="min")
    one = summary["test_sets"]["kept"]["arms"]["fast"]["to_reference"]["test/loss"]
    assert one["mean"] == pytest.approx(-0.05) and one["wins"] == 1 and (summary["unit"], summary["margin"]) == ("", 0.01)
    best = summarise(trial({"none": [0.5, 0.4], "fast": [0.6, 0.5]}), metric="test/loss", mode="min")
    assert best["test_sets"]["kept"]["arms"]["fast"]["to_reference"]["test/loss"]["wins"] == 2


def test_classes_and_groups_are_counted_over_seeds():
    runs = [record("none", seed, classes={"a": [right, 10]}, groups={"a, b": [right, 4]}) for seed, right in ((0, 1), (1, 3))]
    none = summarise(runs)["test_sets"]["kept"]["arms"]["none"]
    assert none["classes"] == {"a": {"right": 4, "n": 20, "share": 20.0}}
    assert none["groups"] == {"a, b": {"right": 4, "n": 8, "share": 50.0}}


def test_runs_that_are_not_paired_are_flagged():
    records = trial(THREE | {"whole": [0.9, 0.9, 0.9]})
    records[4]["pairing"]["batches"] = "others"  # fast, seed 1
    summary = summarise(records)
    arms = summary["test_sets"]["kept"]["arms"]
    assert not arms["fast"]["to_reference"]["accuracy"]["paired"] and arms["whole"]["to_reference"]["accuracy"]["paired"]
    assert [(one["seed"], one["what"]) for one in summary["unpaired"]] == [(1, "batches")]


def test_other_test_images_of_one_test_set_unpair_that_one():
    records = [record(arm, seed, {"kept": 0.9, "shifted": 0.5}) for seed in (0, 1) for arm in ("none", "fast")]
    for one in records:
        one["tests"]["shifted"]["digest"] = one["arm"] if one["seed"] else "same"
    sets = summarise(records)["test_sets"]
    paired = {name: sets[name]["arms"]["fast"]["to_reference"]["accuracy"]["paired"] for name in sets}
    assert paired == {"kept": True, "shifted": False}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_what_is_no_number_is_left_out_and_noted(value):
    records = [logged("none", 0, 0.5), logged("none", 1, value)]
    summary = summarise(records, metric="test/loss", mode="min")
    assert summary["test_sets"]["kept"]["arms"]["none"]["metrics"]["test/loss"]["values"] == {"0": 0.5}
    assert summary["notes"] == ["none, seed 1, kept: no number in test/loss; left out of the means."]


def test_wrong_input_says_the_way_out():
    with pytest.raises(ValueError, match=r"two configs: a \(seed 0\), b \(seed 1\); delete the runs of one"):
        summarise([record(seed=0, hash="a"), record(seed=1, hash="b")])
    with pytest.raises(ValueError, match="two runs of arm 'none', seed 0"):
        summarise([record(), record()])
    with pytest.raises(ValueError, match='"max" or "min", got \'best\''):
        summarise([], mode="best")
    with pytest.raises(ValueError, match="margin must be positive, got 0"):
        summarise([], margin=0)


def test_results_are_written_whole(tmp_path):
    records = trial(THREE)
    records[0]["tests"]["kept"]["metrics"]["test/loss"] = float("nan")
    planned = {"fast": 4, "none": 3, "paper": 3}
    failures = [{"arm": "fast", "seed": 3, "error": "RuntimeError: no memory"}]
    paths = write_results(tmp_path, records, failures=failures, planned=planned, title="Trees", command="groupcam-aug trial x")
    assert {path.name for path in paths} == {"results.json", "results.md", "index.html", "forest.png"}
    assert {path.name for path in tmp_path.iterdir()} == {".trial.jsonl", *(path.name for path in paths)}
    results = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert list(results["summary"]["arms"]) == ["fast", "none"], "in the planned order"
    assert results["missing"] == [
        {"arm": "fast", "planned": 4, "finished": 3, "failed": 1},
        {"arm": "paper", "planned": 3, "finished": 0, "failed": 0},
    ]
    assert results["failures"] == failures and len(results["records"]) == 6 and results["title"] == "Trees"
    assert next(one for one in results["records"] if one["arm"] == "none")["tests"]["kept"]["metrics"]["test/loss"] is None
    assert results["verdict"]["sentences"][0]["arm"] == "fast"
    for name in ("results.md", "index.html"):
        text = (tmp_path / name).read_text()
        assert (
            "Trees" in text and "no memory" in text and "paper: 0 of 3 runs finished" in text and "groupcam-aug trial x" in text
        )


def test_files_that_are_no_results_of_a_trial_stay(tmp_path):
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(FileExistsError, match=r"index\.html' is there"):
        write_results(tmp_path, trial(THREE))
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"] and (tmp_path / "index.html").read_text() == "mine"
    (tmp_path / "results.json").write_text('{"summary": {}}')
    with pytest.raises(FileExistsError, match=r"results\.json' is there"):
        results_in(tmp_path)


def test_failures_only(tmp_path):
    results_in(tmp_path).put("forest.png", b"of earlier results")
    paths = write_results(tmp_path, [], failures=[{"arm": "none", "seed": 0, "error": "OSError: no images"}], planned={"none": 1})
    assert {path.name for path in paths} == {"results.json", "results.md", "index.html"} and not (
        tmp_path / "forest.png"
    ).exists()
    for path in paths:
        text = path.read_text()
        assert "No run finished: nothing can be said." in text and "OSError: no images" in text
    assert json.loads((tmp_path / "results.json").read_text())["summary"]["arms"] == {}
