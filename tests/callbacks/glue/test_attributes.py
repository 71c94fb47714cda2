import numpy as np
import pytest
import torch

from groupcam_aug.callbacks.glue.attributes import attribute, class_names


class Data:
    mean = (0.5,)

    @property
    def class_names(self):
        raise RuntimeError("setup() comes first")


def test_attributes_that_are_missing_or_cannot_be_read_are_none():
    assert attribute(Data(), "mean") == (0.5,) and attribute(Data(), "std") is None
    with pytest.warns(UserWarning, match=r"Data\.class_names cannot be read \(RuntimeError: setup\(\) comes first\)"):
        assert attribute(Data(), "class_names") is None


@pytest.mark.parametrize(
    "value, names",
    [
        (["ant", "bee"], ["ant", "bee"]),
        (("ant", 7), ["ant", "7"]),
        (np.array(["ant", "bee"]), ["ant", "bee"]),
        (torch.tensor([3, 4]), ["3", "4"]),
        ({1: "bee", 0: "ant"}, ["ant", "bee"]),
        *((value, None) for value in (None, 10, torch.tensor(10), np.float32(1), "ants", [], {"ant": 0}, {"ant", "bee"}, [None])),
    ],
)
def test_names_of_every_form(value, names):
    assert class_names(value) == names
