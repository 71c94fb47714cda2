"""A folder like the one with the real CIFAR-10 and weights, with a few coloured squares in it."""

import io
import zipfile

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from groupcam_aug.recipes.networks import CIFARResNet
from groupcam_aug.recipes.trial.cifar import CLASSES


def make_folder(folder, per_class=8, weights=True):
    draw = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "cifar10.zip", "w") as archive:
        for part in ("train", "test"):
            for label, name in enumerate(CLASSES):
                for i in range(per_class):
                    content = io.BytesIO()
                    pixels = np.clip(draw.normal(25 * label, 20, size=(32, 32, 3)), 0, 255).astype(np.uint8)
                    Image.fromarray(pixels).save(content, format="PNG")
                    archive.writestr(f"cifar10/{part}/{name}/{i:04d}.png", content.getvalue())
    if weights:
        (folder / "weights").mkdir()
        for depth in (20, 56):
            torch.manual_seed(depth)
            state = dict(CIFARResNet(depth).state_dict())
            save_file(state, folder / "weights" / f"resnet{depth}_cifar10.safetensors")
    return folder
