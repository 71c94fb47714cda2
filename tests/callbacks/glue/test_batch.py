"""Reaching into batches of every kind, and rebuilding them."""

import types
from collections import UserDict, namedtuple
from dataclasses import dataclass, field

import pytest
import torch

from groupcam_aug.callbacks.glue.batch import describe, get_item, replace_item

Pair = namedtuple("Pair", ["image", "label"])


@dataclass
class Sample:
    image: torch.Tensor
    label: torch.Tensor
    extra: list = field(default_factory=list)


@dataclass(frozen=True)
class Frozen:
    image: torch.Tensor


X, Y, NEW = torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]), torch.ones(2, 3, 4, 4)


def get_deep(batch):
    return batch["deep"][1]


def set_deep(batch, value):
    return {**batch, "deep": (batch["deep"][0], value)}


CASES = {
    "list": ([X, Y], 0),
    "tuple": ((X, Y), 0),
    "negative index": ([Y, X], -1),
    "dict": ({"image": X, "label": Y}, "image"),
    "dict with int keys": ({0: X, 1: Y}, 0),
    "UserDict": (UserDict(image=X, label=Y), "image"),
    "namedtuple by name": (Pair(X, Y), "image"),
    "namedtuple by index": (Pair(X, Y), 0),
    "dataclass": (Sample(X, Y), "image"),
    "object": (types.SimpleNamespace(image=X, label=Y), "image"),
    "bare tensor": (X, 0),
    "nested": ([{"a": (X, Y)}, Y], [0, "a", 0]),
    "nested in an object": ({"in": Sample(X, Y)}, ["in", "image"]),
    "getter and setter": ({"deep": (Y, X)}, (get_deep, set_deep)),
}


@pytest.mark.parametrize("case", CASES)
def test_get_and_replace(case):
    batch, key = CASES[case]
    assert get_item(batch, key) is X
    result = replace_item(batch, key, NEW)
    assert get_item(result, key) is NEW and type(result) is type(batch)
    assert get_item(batch, key) is X, "the old batch still holds the old images"
    assert X.eq(0).all()


def test_setter_that_works_in_place():
    batch = types.SimpleNamespace(image=X)
    assert replace_item(batch, (lambda b: b.image, lambda b, v: setattr(b, "image", v)), NEW).image is NEW


@pytest.mark.parametrize(
    "batch, key", [([X], 1), ({"a": X}, "image"), (Sample(X, Y), "picture"), ({"a": X}, 0), (X, 1), ([X], "a")]
)
def test_missing_key_tells_what_is_there(batch, key):
    with pytest.raises(KeyError, match="not in the batch, which holds"):
        get_item(batch, key)


def test_what_cannot_be_replaced_says_so():
    with pytest.raises(TypeError, match="image_key=\\(getter, setter\\)"):
        replace_item(Frozen(X), "image", NEW)


def test_describe():
    assert describe({"image": X, "name": "a"}) == "{'image': float32 tensor (2, 3, 4, 4), 'name': str}"
    assert describe(Pair(X, 3)) == "Pair(image: float32 tensor (2, 3, 4, 4), label: int)"
    assert describe([X]) == "[0: float32 tensor (2, 3, 4, 4)]" and describe(Y) == "a int64 tensor (2,)"
    assert "image" in describe(types.SimpleNamespace(image=X)) and describe(3) == "int"
