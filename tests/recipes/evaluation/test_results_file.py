"""Rows on disk: what is read again, what is refused, and rows of former names."""

import pytest
import torch
from evaluations import evaluate, lines, record

from groupcam_aug.files import add_line, put_file
from groupcam_aug.recipes.evaluation.datasets import Item
from groupcam_aug.recipes.evaluation.methods import METHODS, RENAMED
from groupcam_aug.recipes.evaluation.results_file import Plan, ResultsFile

ROW = {
    "file": "x",
    "stamp": "",
    "method": "m",
    "class": 0,
    "label": "cat",
    "undefined": False,
    "insertion": 0.5,
    "deletion": 0.25,
}
SANITY = {"mode": "cascading", "stages": ["fc"], "spearman": [0.1], "undefined": [0.0], "floors": {}, "passed": True}


def test_rows_of_other_settings_are_not_mixed(pictures, checkpoint, tmp_path, capsys):
    out, few = tmp_path / "out", ["--methods", "centre", "--measures", "curves", "--limit", 2]
    assert evaluate(pictures, *few, "--steps", 2, "--out", out, checkpoint=checkpoint) == 0
    assert evaluate(pictures, *few, "--steps", 3, "--out", out, checkpoint=checkpoint) == 1
    assert "steps: 2 there, 3 now" in capsys.readouterr().err
    torch.manual_seed(5)
    content = torch.load(checkpoint, weights_only=False)
    content["state_dict"]["network.linear.bias"] += 1
    torch.save(content, tmp_path / "last.ckpt")
    assert evaluate(pictures, *few, "--steps", 2, "--out", out, checkpoint=tmp_path / "last.ckpt") == 1
    assert "weights: " in capsys.readouterr().err
    content = torch.load(checkpoint, weights_only=False)
    content["hyper_parameters"]["mean"] = [0.4] * 3
    torch.save(content, tmp_path / "other.ckpt")
    assert evaluate(pictures, *few, "--steps", 2, "--out", out, checkpoint=tmp_path / "other.ckpt") == 1
    assert "preprocessing: " in capsys.readouterr().err
    put_file(tmp_path, "names", "dog\ncat\ntvmonitor\n")
    assert evaluate(pictures, *few, "--steps", 2, "--out", out, "--classes", tmp_path / "names", checkpoint=checkpoint) == 1
    assert "preprocessing: " in capsys.readouterr().err
    # More methods and images are welcome: what is there is kept.
    more = ["--methods", "centre,pixels", "--measures", "curves", "--steps", 2]
    assert evaluate(pictures, *more, "--out", out, checkpoint=checkpoint) == 0
    assert len({(line["file"], line["method"]) for line in lines(out) if "file" in line}) == 12
    assert evaluate(pictures, *few, "--steps", 3, "--out", out, "--restart", checkpoint=checkpoint) == 0
    assert lines(out)[0]["settings"]["steps"] == 3 and len([line for line in lines(out) if "file" in line]) == 2
    put_file(tmp_path / "foreign", "images.jsonl", '{"mine": 1}\n')
    assert evaluate(pictures, *few, "--out", tmp_path / "foreign", checkpoint=checkpoint) == 1
    assert "does not begin with the settings of this command" in capsys.readouterr().err


def test_a_results_file_is_read_as_it_was_written(tmp_path):
    results = ResultsFile(tmp_path, {"a": (1, 2)})
    results.add({**ROW, "insertion": 0.75})
    add_line(tmp_path, "images", {**ROW, "insertion": 1.0})
    assert ResultsFile(tmp_path, {"a": [1, 2]}).rows["x", "m"]["insertion"] == 1.0, "the later row holds"
    with pytest.raises(ValueError, match=r"a: \[1, 2\] there, None now; b: None there, 1 now"):
        ResultsFile(tmp_path, {"b": 1})


def test_rows_under_former_keys_of_methods_are_read_under_those_of_now(tmp_path):
    known = {method.key: method for method in METHODS}
    assert set(RENAMED.values()) <= set(known) and not set(RENAMED) & set(known)
    results = ResultsFile(tmp_path, {})
    for former in RENAMED:
        results.add({**ROW, "method": former})
        add_line(tmp_path, "images", {"method": former, "cost": 3.0})
        add_line(tmp_path, "images", {"method": former, "files": ["x"], "sanity": SANITY})
    again, item = ResultsFile(tmp_path, {}), Item("x", tmp_path / "gone")
    for now in RENAMED.values():
        assert again.todo([item], known[now]) == [] and again.costs[now] == 3.0 and again.sanity[now]["sanity"]["passed"]
    assert {key for _, key in again.rows} == set(RENAMED.values()) == {key for _, key in results.rows}


def test_a_run_of_before_the_keys_goes_on(pictures, checkpoint, tmp_path):
    """Its rows are not made again, and not mixed under two names."""
    out, words = tmp_path / "out", ["--measures", "curves", "--steps", 2, "--limit", 2]
    assert evaluate(pictures, *words, "--methods", "paper", "--out", out, checkpoint=checkpoint) == 0
    text = (out / "images.jsonl").read_text()
    (out / "images.jsonl").write_text(text.replace('"method":"paper"', '"method":"training"'))
    before = record(out)["methods"]["paper"]["insertion"]
    assert evaluate(pictures, *words, "--methods", "paper,centre", "--out", out, checkpoint=checkpoint) == 0
    assert record(out)["methods"]["paper"]["insertion"] == before
    made = [line["method"] for line in lines(out) if "file" in line]
    assert sorted(made) == ["centre"] * 2 + ["training"] * 2


@pytest.mark.parametrize(
    "damage",
    [
        {"insertion": "abc"},
        {"deletion": None},
        {"undefined": 3},
        {"insertion_curve": [0.5, 0.5]},
        {"insertion_curve": [0.5, "x", 0.5]},
        {"method": ["m"]},
        {"file": None},
    ],
)
def test_damaged_rows_are_measured_again(tmp_path, damage):
    results = ResultsFile(tmp_path, {"a": 1})
    curves = {"insertion_curve": [0.5, 0.5, 0.5], "deletion_curve": [0.5, 0.5, 0.5]}
    results.add({"fractions": [0.0, 0.5, 1.0]})
    results.add({**ROW, **curves})
    add_line(tmp_path, "images", {**ROW, **curves, "file": "y", **damage})
    again = ResultsFile(tmp_path, {"a": 1})
    assert list(again.rows) == [("x", "m")] and again.damaged == 1


def test_a_plan_says_what_it_measures_and_what_that_takes():
    assert Plan().passes == 2 * 28 + 2 and Plan(author_compatible=True).passes == 2 * 112 + 1 + 2
    assert Plan(measures=("pointing",)).passes == 0 and "tolerance of 15 pixels" in Plan(measures=("pointing",)).description()
    assert "28 steps, substrate blur" in Plan().description() and not {"batch_size", "sanity_images"} & set(Plan().settings())
