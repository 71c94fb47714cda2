"""Reaching into batches of every kind, and rebuilding them."""

import types
from collections import UserDict, namedtuple
from dataclasses import dataclass, field

import pytest
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer

from groupcam_aug.callbacks.glue.batch import check_extra_keys, describe, get_item, read_batch_extra, replace_item

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


def test_further_inputs_of_a_batch():
    batch = {"image": X, "text": {"ids": torch.arange(6).view(2, 3), "lengths": torch.tensor([3, 2])}}
    ids = ["text", "ids"]
    assert not read_batch_extra(None, batch, None, X, "Who") and not read_batch_extra(None, batch, [], X, "Who")
    one = read_batch_extra(None, batch, [ids, lambda_pair()], X, "Who")
    assert torch.equal(one.args[0], batch["text"]["ids"]) and one.args[1].tolist() == [3, 2] and not one.kwargs
    named = read_batch_extra(None, batch, {"question": ids, "text": "text"}, X, "Who")
    assert not named.args and named.kwargs["text"]["lengths"].tolist() == [3, 2]


def lambda_pair():
    return (lambda batch: batch["text"]["lengths"], lambda batch, value: batch)


@pytest.mark.parametrize(
    "keys, words",
    [
        (["question"], r"'question' is not in the batch, which holds .*'text'.*Who\(extra_keys=\.\.\.\)"),
        (["words"], r"extra_keys=\['words'\]: extra\[0\] has the shape \(3,\) for 2 images.*The batch holds"),
        ({"t": "text"}, r"extra\['t'\] is a str"),
    ],
)
def test_further_inputs_that_are_not_there(keys, words):
    batch = {"image": X, "text": "what is it", "words": torch.arange(3)}
    with pytest.raises(MisconfigurationException, match=words):
        read_batch_extra(Trainer(logger=False, accelerator="cpu"), batch, keys, X, "Who")


@pytest.mark.parametrize("keys", ["question", 2, [None], [1.5], {1: "a"}, {"a": None}, {"a": 2.5}, [["a", None]]])
def test_keys_of_further_inputs_of_the_wrong_kind(keys):
    with pytest.raises(TypeError, match="extra_keys"):
        check_extra_keys(keys)


def test_keys_of_further_inputs():
    for keys in (None, [], [2], ["a", ["b", 0]], {"question": 2, "x": ["b", 0]}, [lambda_pair()]):
        check_extra_keys(keys)
