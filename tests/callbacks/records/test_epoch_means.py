"""Means over the steps of an epoch."""

import torch

from groupcam_aug.callbacks.records.epoch_means import EpochMeans


def test_means_are_weighted_and_begin_anew():
    means = EpochMeans()
    for value, weight in ((0.5, 1), (0.25, 3)):
        means.add({"a": torch.tensor(value), "b": torch.tensor(1.0)}, weight)
    means.add({"seconds": torch.tensor(2.0, dtype=torch.float64)}, 1)
    assert means.take() == {"a": (0.5 + 0.75) / 4, "b": 1.0, "seconds": 2.0}
    assert means.take() == {}
    means.add({"a": torch.tensor(1.0)}, 2)
    assert means.take() == {"a": 1.0}


def test_what_is_not_known_does_not_count():
    means, nan = EpochMeans(), float("nan")
    for a, b in ((nan, nan), (0.5, nan)):
        means.add({"a": torch.tensor(a), "b": torch.tensor(b)}, 2)
    assert means.take() == {"a": 0.5}


def test_integers_are_numbers_too():
    means = EpochMeans()
    means.add({"a": torch.tensor(3)}, 0)
    assert means.take() == {}, "a step without images"
