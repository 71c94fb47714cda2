"""A tiny checkpoint, a folder of pictures, and one whole evaluation of both."""

import pytest
import torch
from evaluations import NAMES, QUICK, draw, evaluate


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """CIFAR-ResNet-8 with 16 channels at the target layer, whose class "cat" has no Grad-CAM map anywhere."""
    import pytorch_lightning as pl
    from lit import SILENT

    from groupcam_aug.recipes.classifier import Classifier

    torch.manual_seed(0)
    network = {"class_path": "groupcam_aug.recipes.networks.CIFARResNet", "init_args": {"depth": 8, "width": 4}}
    module = Classifier(network, num_classes=3, class_names=NAMES, mean=[0.5] * 3, std=[0.5] * 3, size=32)
    with torch.no_grad():
        module.network.linear.weight[0] = 0
        module.network.linear.weight[1:] *= 20
        images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        module.network.eval().linear.bias -= module.network(images).mean(dim=0)  # opinions that differ from image to image
    path = tmp_path_factory.mktemp("fit") / "last.ckpt"
    trainer = pl.Trainer(**SILENT, max_steps=0)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i, name in enumerate(["cat/a.png", "dog/b.png", "dog/c.png", "dog/d.jpg", "tvmonitor/e.png", "tvmonitor/f.png"]):
        draw(folder / name, i)
    return folder


@pytest.fixture(scope="session")
def evaluated(pictures, checkpoint, tmp_path_factory):
    """An uninterrupted run with all default methods."""
    out = tmp_path_factory.mktemp("whole")
    assert evaluate(pictures, *QUICK, "--out", out, checkpoint=checkpoint) == 0
    return out
