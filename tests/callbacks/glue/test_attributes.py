"""What users' objects say of their data, in whatever kind they say it."""

import numpy as np
import pytest
import torch

from groupcam_aug.callbacks.glue.attributes import attribute, class_names


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
