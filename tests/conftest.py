"""Fixtures shared by the tests: tiny networks, a snapshot of all that must come back as found, real data if it is there."""

import os
from pathlib import Path

import pytest
import torch
from models import PooledNet

torch.set_num_threads(1)  # tiny networks: a second thread costs more than it brings, and the tests share the cores


@pytest.fixture
def net():
    torch.manual_seed(1)  # whose maps for class 1 and `images` are not empty
    return PooledNet().double()


@pytest.fixture
def images():
    return torch.randn(3, 3, 24, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def data_folder():
    folder = os.environ.get("GROUPCAM_DATA")
    if not folder:
        pytest.skip("GROUPCAM_DATA is unset: real photographs and pretrained weights are not here")
    return Path(folder)


@pytest.fixture(scope="session")
def squeezenet(data_folder):
    from safetensors.torch import load_file
    from torchvision.models import squeezenet1_1

    network = squeezenet1_1()
    network.load_state_dict(load_file(data_folder / "weights" / "squeezenet1_1_imagenet.safetensors"))
    return network.eval()


@pytest.fixture(scope="session")
def photographs(data_folder):
    """(n) -> images (n, 3, 224, 224) normalised, and their ImageNet labels."""
    import csv
    import io
    import zipfile

    from PIL import Image
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.Resize(256, antialias=True),
            v2.CenterCrop(224),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )

    def read(count, start=0):
        with zipfile.ZipFile(data_folder / "imagenet_sample.zip") as archive:
            rows = list(csv.DictReader(io.TextIOWrapper(archive.open("imagenet_sample/labels.csv"))))[start : start + count]
            pictures = [Image.open(archive.open("imagenet_sample/" + row["file"])).convert("RGB") for row in rows]
        batch = torch.stack([transform(picture).as_subclass(torch.Tensor) for picture in pictures])
        return batch, torch.tensor([int(row["class_index"]) for row in rows])

    return read
