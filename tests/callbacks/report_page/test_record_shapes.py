"""Records in which a value was changed: the page is written all the same, and names the file."""

import json
import random
import warnings

import pytest
import records

from groupcam_aug.callbacks.report_page import charts
from groupcam_aug.callbacks.report_page.page import render_records
from groupcam_aug.callbacks.report_page.record_shapes import FACTS, LINES, curve_misfit, line_misfit
from groupcam_aug.callbacks.report_page.run_records import read_records

VALUES = (None, "x", "", -1, 0, 7, 1.5, 10**30, float("nan"), float("inf"), True, [], ["x"], {}, {"x": "y"}, [[1]])


def places(value, way=()):
    """Ways to everything in a value, but for the later members of long lists."""
    yield way
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, one in items:
        yield from places(one, (*way, key))


def changed(content, way, value):
    """A copy with another value there; `...`: without it."""
    content = json.loads(json.dumps(content))
    inner = content
    for key in way[:-1]:
        inner = inner[key]
    if value is ...:
        inner.pop(way[-1])
    else:
        inner[way[-1]] = value
    return content


def mutations(folder):
    """(file, its text) of every single change."""
    for path in sorted([*folder.glob("*.json"), *folder.glob("gallery/*.json"), *folder.glob("*.jsonl")]):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for way in places(lines[-1]):
            for value in (*VALUES, ...) if way else ():
                texts = [json.dumps(line) for line in (*lines[:-1], changed(lines[-1], way, value))]
                yield path, "\n".join(texts), (way, value)


def verify(folder, cases, monkeypatch):
    monkeypatch.setattr(charts, "_pictures", lambda figure: ("", ""))
    errors = []
    for path, text, what in cases:
        before = path.read_text()
        path.write_text(text)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                found = read_records(folder)
                page = render_records(found)
            except Exception as error:
                errors.append(f"{path.name}, {what}: {error!r}")
        path.write_text(before)
        assert all(problem.startswith(path.relative_to(folder).as_posix()[:9]) for problem in found.problems.values()), what
        assert not found.problems or "could not be read as a whole" in page
    assert not errors, "\n".join(errors)


@pytest.fixture
def small(tmp_path):
    records.run(tmp_path, epochs=2, names=["a", "b", "c"])
    records.monitor(tmp_path, epochs=2, pictures=False)
    records.augmentation(tmp_path, epochs=2, size=4, galleries=(1,))
    records.evaluation(tmp_path)
    return tmp_path


def test_no_change_of_a_value_ends_in_an_error(small, monkeypatch):
    verify(small, random.Random(0).sample(list(mutations(small)), 60), monkeypatch)


@pytest.mark.slow
def test_no_change_of_many_values_ends_in_an_error(small, monkeypatch):
    """Of some 2,600."""
    verify(small, random.Random(1).sample(list(mutations(small)), 1000), monkeypatch)


def test_what_the_callbacks_write_fits(small):
    assert not read_records(small).problems
    assert line_misfit("run", {"epoch": 0, "val/acc": None, "lr": None}) is None
    line = json.loads((small / "augmentation.jsonl").read_text().splitlines()[0])
    assert line_misfit("augmentation", line) is None
    assert line_misfit("augmentation", {**line, "per_class": {"cat": [1, 0]}}) == "per_class has the class 'cat', not a number"
    assert set(LINES) < set(FACTS)


@pytest.mark.parametrize("part", ["fractions", "mean"])
def test_a_curve_without_a_point_is_not_drawn(small, part):
    content = json.loads((small / "evaluation.json").read_text())
    assert curve_misfit(content) is None
    content["methods"]["Group-CAM"]["insertion"][part].pop()
    (small / "evaluation.json").write_text(json.dumps(content))
    (problem,) = read_records(small).problems.values()
    assert problem.startswith("evaluation.json is not what it should be (methods.Group-CAM.insertion has 2")
