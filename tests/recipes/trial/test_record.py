"""Records of runs: what is one, and what is named and run again."""

import json

import pytest
import trial_records

from groupcam_aug.recipes.trial.record import read_record


def test_a_record_is_read_as_it_was_written(tmp_path):
    record = trial_records.record("fast", 1, control="fast-other", groups={"cat, indoors": [3, 4]})
    (tmp_path / "x.json").write_text(json.dumps(record))
    assert read_record(tmp_path / "x.json") == record


@pytest.mark.parametrize("text", ["", "{", "[]", '{"arm": "none"}', "[" * 100_000, "\x00", '"text"'])
def test_damaged_records_name_their_file(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json' is no record of a run \(.+\)"):
        read_record(tmp_path / "x.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"tests": {"kept": {"n": "many", "metrics": {}, "classes": {}, "groups": {}}}},
        {"tests": {"kept": {"n": 3, "metrics": {"accuracy": "high"}, "classes": {}, "groups": {}}}},
        {"tests": {"kept": {"n": 3, "metrics": {}, "classes": {"cat": [1]}, "groups": {}}}},
        {"train": {}},
        {"train": {"seconds": None}},
        {"seed": "0"},
        {"warnings": None},
        {"versions": []},
        {"pairing": {"start": 5}},
    ],
)
def test_records_that_were_changed_are_none(tmp_path, changes):
    record = {**trial_records.record(), **changes}
    (tmp_path / "x.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=rf"is no record of a run \(.*{next(iter(changes))}"):
        read_record(tmp_path / "x.json")
