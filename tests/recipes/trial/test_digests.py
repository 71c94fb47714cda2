import numpy as np
import torch
from own_project import Mine, Squares
from torch.utils.data import Subset, TensorDataset

from groupcam_aug.recipes.trial.digests import BatchDigest, digest_of, digest_of_data


class Listed:
    """A data set as torchvision's folders are."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)


def test_weights():
    one = Mine()
    before = digest_of(one)
    assert before == digest_of(one) and len(before) == 16
    with torch.no_grad():
        one.head.bias += 1
    assert digest_of(one) != before


def test_batches_are_told_apart_by_any_of_their_tensors():
    def digest(*batches):
        found = BatchDigest()
        for batch in batches:
            found.add(batch)
        return found.text

    one, two = {"x": torch.zeros(3, 2), "name": "a"}, {"x": torch.ones(3, 2), "name": "a"}
    assert digest(one, two) == digest(one, two) != digest(two, one)
    assert digest([torch.tensor([True])]) != digest([torch.tensor([False])])
    assert digest() is None and digest({"name": "a"}) is None


def test_data_are_told_apart_without_loading_a_sample(tmp_path):
    def listed(root, size=3, label=0):
        path = tmp_path / root / "cat" / "a.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
        return digest_of_data(Listed([(str(path), label)]))

    assert listed("one") == listed("two"), "the folder may lie elsewhere"
    assert len({listed("one"), listed("one", size=4), listed("one", label=1)}) == 3
    assert digest_of_data(Squares(9, 0)) != digest_of_data(Squares(10, 0))
    arrays = [np.zeros((2000, 3), dtype=np.uint8), np.ones((2000, 3), dtype=np.uint8)]
    assert len({digest_of_data(TensorDataset(torch.from_numpy(array))) for array in arrays}) == 2
    held = [type("Held", (), {})() for _ in arrays]
    for one, array in zip(held, arrays, strict=True):
        one.data = array
    assert digest_of_data(held[0]) != digest_of_data(held[1])


def test_a_part_stands_for_the_whole_and_what_tells_nothing_has_none():
    whole = Squares(9, 0)
    assert digest_of_data(Subset(whole, [0, 4])) == digest_of_data(Subset(whole, [1])) == digest_of_data(whole)
    assert digest_of_data(iter([])) is None and digest_of_data(None) is None

    class Odd:
        samples = None

        def __init__(self):
            self.samples = [object()]

    assert digest_of_data(Odd()) is None, "an address would differ from run to run"
