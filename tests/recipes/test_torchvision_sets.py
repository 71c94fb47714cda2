"""Data sets of torchvision by name, as `ImageData` reads them."""

import pickle

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from groupcam_aug.recipes.data import ImageData


def make(root, **options):
    return ImageData(str(root), **({"size": 32, "batch_size": 4, "num_workers": 0} | options))


@pytest.mark.parametrize("name", ["CIFAR10", "imagenette", "flowers102", "oxfordiiitpet", "imagenet"])
def test_a_torchvision_set_that_is_not_there_is_said(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"is not in root=.*(set download|give root)"):
        make(tmp_path, dataset=name)


def test_a_torchvision_set_is_read(tmp_path):
    for part in ("train", "val"):
        for wnid in ("n01440764", "n02102040", "n02979186", "n03000684", "n03028079"):
            folder = tmp_path / "imagenette2" / part / wnid
            folder.mkdir(parents=True)
            turned = Image.Exif()
            turned[0x0112] = 6
            Image.new("RGB", (60, 40)).save(folder / f"{wnid}_0.JPEG", exif=turned)
    data = make(tmp_path, dataset="imagenette")
    assert data.test_set is data.val_set
    assert data.num_classes == len(data.class_names) >= 5 and all(isinstance(name, str) for name in data.class_names)
    assert data.train_set[0][0].shape == (3, 32, 32)
    assert data.train_set.loader(data.train_set._samples[0][0]).size == (40, 60), "upright, as its EXIF says"


def test_a_set_with_an_official_test_part_is_validated_on_held_out_training_images(tmp_path, monkeypatch):
    """CIFAR-10 as torchvision keeps it: what chooses the checkpoint must not be what the test reports."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        pixels = np.full((20, 3072), 200 if name == "test_batch" else 50, dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [i % 10 for i in range(20)]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"c{i}" for i in range(10)]}))
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *_: True)
    data = make(tmp_path, dataset="cifar10", mean=(0, 0, 0), std=(1, 1, 1))
    assert len(data.train_set) == 80 and len(data.val_set) == 20 and len(data.test_set) == 20 and data.num_classes == 10
    assert [round(part[0][0].max().item() * 255) for part in (data.train_set, data.val_set, data.test_set)] == [50, 50, 200]
    assert set(data.train_set.indices).isdisjoint(data.val_set.indices)
