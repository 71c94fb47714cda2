"""A callback that is nothing but its arguments: repr, copies, pickles, subclasses."""

import copy
import pickle

import pytest
import torch

from groupcam_aug.callbacks.glue.arguments import ConfiguredCallback, plain_values


class Plain(ConfiguredCallback):
    _hidden = ("images",)

    def __init__(self, *, rate=0.5, name="a", images=None, key=None):
        super().__init__()
        self.rate, self.key, self.built = rate, key, None


class More(Plain):
    def __init__(self, extra, **arguments):
        super().__init__(**arguments)
        self.extra = extra


def test_repr_shows_what_is_not_a_default_and_makes_it_again():
    assert repr(Plain()) == "Plain()" and repr(Plain(rate=0.5, name="b")) == "Plain(name='b')"
    assert repr(More(3, rate=1.0)) == "More(3, rate=1.0)"
    assert repr(eval(repr(More(extra=3, name="a", rate=1.0)))) == "More(extra=3, name='a', rate=1.0)"
    assert repr(Plain(rate=True)) == "Plain(rate=True)" and repr(Plain(images=torch.zeros(2))) == "Plain(images=...)"


class Anything(Plain):
    def __init__(self, first, /, *args, cls="x", **kwargs):
        super().__init__(*args, **kwargs)
        self.first, self.cls = first, cls


def test_signatures_of_any_kind():
    callback = pickle.loads(pickle.dumps(copy.deepcopy(Anything(1, cls="y", rate=2))))
    assert (callback.first, callback.cls, callback.rate) == (1, "y", 2) and repr(callback) == "Anything(1, cls='y', rate=2)"


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda callback: pickle.loads(pickle.dumps(callback))])
def test_only_arguments_travel(again):
    callback = More(3, rate=1.0)
    callback.built = torch.zeros(2)
    other = again(callback)
    assert type(other) is More and (other.extra, other.rate, other.built) == (3, 1.0, None)


def test_a_deep_copy_shares_no_argument():
    callback = Plain(key=[1, 2])
    assert copy.deepcopy(callback).key == [1, 2] and copy.deepcopy(callback).key is not callback.key


def test_a_wrong_argument_is_the_constructors_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'rat'"):
        Plain(rat=1)


def test_arguments_as_json_holds_them():
    plain = plain_values({"rate": 2, "name": "a", "images": torch.zeros(1), "key": torch.relu, "layer": None})
    assert plain == {"rate": 2, "name": "a", "images": "Tensor", "key": "relu", "layer": None}
