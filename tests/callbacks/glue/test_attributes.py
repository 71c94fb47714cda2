"""What users' objects say of their data, in whatever kind they say it."""

import numpy as np
import pytest
import torch

from groupcam_aug.callbacks.glue.attributes import attribute, check_style, class_names


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (["a", "b"], ["a", "b"]),
        (("a", 1), ["a", "1"]),
        (np.array(["a", "b"]), ["a", "b"]),
        (torch.tensor([3, 4]), ["3", "4"]),
        ({1: "b", 0: "a"}, ["a", "b"]),
        ({"a": 0, "b": 1}, None),
        ({"a", "b"}, None),
        (torch.tensor(4), None),
        (np.array(4), None),
        (np.array([["a"], ["b"]]), None),
        (4, None),
        ("ab", None),
        ([], None),
        ([b"a"], None),
        (iter("ab"), None),
        (len, None),
        (None, None),
    ],
)
def test_names_of_any_kind(value, names):
    assert class_names(value) == names


def test_a_property_that_fails_is_warned_of():
    class Data:
        mean = 0.5

        @property
        def class_names(self):
            raise RuntimeError("call setup() first")

    assert attribute(Data(), "mean") == 0.5 and attribute(Data(), "std") is None and attribute(None, "mean") is None
    with pytest.warns(UserWarning, match=r"Data.class_names cannot be read \(RuntimeError: call setup\(\) first\)"):
        assert attribute(Data(), "class_names") is None


@pytest.mark.parametrize(
    "values", [(None, None, None), (["a"], 0.5, 0.2), (np.array(["a", "b"]), torch.zeros(3), np.ones(3))], ids=str
)
def test_arguments_of_any_kind_of_number(values):
    check_style(*values)


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ((4, None, None), TypeError, "class_names must be a list of names, one per class, got 4"),
        ((iter("ab"), None, None), TypeError, "class_names must be"),
        (([1, 2], None, None), TypeError, r"got \[1, 2\]"),
        (("ab", None, None), TypeError, "got 'ab'"),
        ((None, 0.5, None), ValueError, "both mean and std"),
        ((None, "half", 1), ValueError, "mean must be numbers, one per channel or one for all; got 'half'"),
        ((None, float("nan"), 1), ValueError, "mean must be numbers"),
        ((None, (0, 0, 0), (1, 0, 1)), ValueError, r"std must be numbers above 0, .*got \(1, 0, 1\)"),
        ((None, 0, {"red": 1}), ValueError, "std must be numbers"),
    ],
    ids=["count", "iterator", "numbers", "word", "no std", "word as mean", "nan", "std of 0", "mapping"],
)
def test_arguments_that_say_nothing_are_refused(values, kind, message):
    with pytest.raises(kind, match=message):
        check_style(*values)
