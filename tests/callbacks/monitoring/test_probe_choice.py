"""Which samples of a data set become probes."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler, TensorDataset

from groupcam_aug.callbacks.monitoring.probe_choice import choose, spread, stratified


def test_stratified_takes_every_class_in_turn():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    assert stratified(labels, 3) == [0, 4, 6] and stratified(labels, 5) == [0, 4, 6, 1, 5] and len(stratified(labels, 99)) == 7
    one, other = (stratified(labels, 5, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert one != other and sorted(labels[one].tolist()) == [0, 0, 1, 1, 2]
    assert stratified(labels, 5, torch.Generator().manual_seed(1)) == one
    assert spread(5, 9) == [0, 1, 2, 3, 4] and spread(100, 3) == [0, 50, 99] and spread(7, 1) == [0]


class Boxes(Sampler):
    """Indices as data sets of maps have them."""

    def __init__(self, count=40):
        self.boxes = [SimpleNamespace(at=i) for i in range(count)]

    def __len__(self):
        return len(self.boxes)

    def __iter__(self):
        return iter(self.boxes)


class Pairs(Sampler):
    """Batches of pairs of index and size."""

    def __len__(self):
        return 20

    def __iter__(self):
        return iter([[(2 * i, 32), (2 * i + 1, 32)] for i in range(20)])


class Asked(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        raise AssertionError("no sample is loaded")


def test_indices_that_are_no_numbers_are_those_of_the_users_sampler():
    boxes = Boxes()
    assert choose(DataLoader(Asked(), 4, sampler=boxes), True, 3, 0) == boxes.boxes[:12]
    assert choose(DataLoader(Asked(), 4, sampler=boxes), False, 3, 0) == boxes.boxes[:3]
    assert choose(DataLoader(Asked(), batch_sampler=Pairs()), False, 3, 0) == [(0, 32), (1, 32), (2, 32)]


def test_stock_samplers_are_not_begun_and_numbers_are_drawn_from_all():
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    sampler = RandomSampler(Asked(), generator=generator)
    chosen = choose(DataLoader(Asked(), 4, sampler=sampler), False, 5, 0)
    assert torch.equal(generator.get_state(), state) and len(set(chosen)) == 5 and max(chosen) > 4
    numbers = DataLoader(Asked(), batch_sampler=type("Own", (BatchSampler,), {})(range(40), 4, False))
    assert choose(numbers, False, 5, 0) == chosen


@pytest.mark.parametrize("ignored", [[0, 1], range(8)])
def test_samples_to_be_ignored_are_not_chosen_where_others_are(ignored):
    labels = torch.arange(8) // 4
    labels[list(ignored)] = -100
    chosen = choose(DataLoader(TensorDataset(torch.zeros(8, 1), labels), 4), True, 4, 0)
    assert (set(chosen) & set(ignored) == set() and len(chosen) == 4) or len(ignored) == 8
    assert sorted(labels[chosen].tolist()) == [0, 0, 1, 1] or len(ignored) == 8
