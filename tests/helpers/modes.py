"""Every public mode of `GroupCAMAugmentation`: what it is given, and how its batches look. Generic tests run over all of them."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lit
import torch
from models import PooledNet
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, default_collate

from groupcam_aug import compiled
from groupcam_aug.callbacks import GroupCAMAugmentation

compiled.BACKEND = "aot_eager"  # traced as ever, but without minutes of a C++ compiler: test_compiled runs that one

NAMES = {"images": "pixel_values", "labels": "labels"}


class TwoHeads(nn.Module):
    """Returns more than logits."""

    def __init__(self):
        super().__init__()
        self.inner = PooledNet()

    def forward(self, x):
        return {"scores": self.inner(x), "extra": x.mean()}


class Weighed(nn.Module):
    """Takes a number beside each image, if it is given one."""

    def __init__(self):
        super().__init__()
        self.inner = PooledNet()

    def forward(self, x, weight=None):
        return self.inner(x) if weight is None else self.inner(x) * weight[:, None]


class Module(lit.Lit):
    """Trains on whatever form of batch and network a mode has."""

    def __init__(self, mode):
        torch.manual_seed(7)
        network = mode.network()
        super().__init__(network)
        self.mode = mode
        for part in self.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0  # its random numbers are not in a checkpoint
        if mode.attribute != "net":
            del self.net
            self.model = nn.Module()
            self.model.backbone = network

    def forward(self, x):
        output = (self.net if self.mode.attribute == "net" else self.model.backbone)(self.mode.normalise(x))
        return output["scores"] if isinstance(output, dict) else output

    def training_step(self, batch, batch_idx):
        x, y = self.mode.read(batch)
        self.seen.append(x.detach().clone())
        y = torch.zeros(len(x), dtype=torch.long) if y is None else y
        return F.cross_entropy(self(x), y)


def as_pair(x, y):
    return [x, y]


def read_pair(batch):
    return batch


def as_dict(x, y):
    return {"labels": y, "pixel_values": x}


def read_dict(batch):
    return batch["pixel_values"], batch["labels"]


def as_nested(x, y):
    return {"inputs": (x, 0), "labels": y}


def read_nested(batch):
    return batch["inputs"][0], batch["labels"]


def as_images(x, y):
    return x


def read_images(batch):
    return batch, None


def as_masked(x, y):
    mask = torch.zeros(len(x), 12, 10, dtype=torch.bool)
    mask[:, 3:9, 2:7] = True
    return [x, y, mask]


def as_masked_dict(x, y):
    return {**as_dict(x, y), "mask": as_masked(x, y)[2][:, None].float()}


def as_weighed(x, y):
    return [x, y, 1 + torch.arange(len(x)) / len(x)]


def read_first_two(batch):
    return batch[0], batch[1]


def get_third(batch):
    return batch[2]


def set_third(batch, third):
    return [*batch[:2], third]


def get_images(batch):
    return batch["inputs"][0]


def set_images(batch, images):
    return {**batch, "inputs": (images, 0)}


def get_labels(batch):
    return batch["labels"]


def as_found(x):
    return x


def normalise(x):
    return (x - 0.5) / 0.25


def darken(x):
    return x * 0.1


def keep_left(images, targets):
    keep = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool)
    keep[..., : images.shape[3] // 2] = True
    return keep


def scores_of(output):
    return output["scores"]


def teacher(classes=5):
    """A network with other weights; the global random numbers stay."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return PooledNet(classes=classes)


_FOLDER = tempfile.TemporaryDirectory()
CHECKPOINT = str(Path(_FOLDER.name) / "teacher.ckpt")
torch.save({"state_dict": {f"net.{name}": value for name, value in teacher().state_dict().items()}}, CHECKPOINT)


@dataclass
class Mode:
    """One mode: arguments of the callback beside layer and groups, and what the user's side looks like."""

    arguments: dict[str, Any]
    build: Any = as_pair
    read: Any = read_pair
    network: Any = PooledNet
    attribute: str = "net"
    normalise: Any = as_found
    quiet: bool = False  # switched off by its own arguments: nothing may change
    common: dict[str, Any] = field(
        default_factory=lambda: {"preset": "paper", "network": "net", "layer": "relu2", "groups": 4, "p": 1.0}
    )

    def callback(self):
        return GroupCAMAugmentation(**{**self.common, **self.arguments})

    def module(self):
        return Module(self)

    def loader(self, epochs=1):
        # Two batches of six, so that some drawn image of each has a map; batches stand as they are, in every epoch.
        batches = [self.build(*pair) for pair in DataLoader(lit.Pictures(12), 6, collate_fn=default_collate)]
        return DataLoader(batches, batch_size=None)


WITHOUT_P = {"network": "net", "layer": "relu2", "groups": 4}
MODES = {
    "preset paper": Mode({"preset": "paper"}, common=WITHOUT_P),
    "preset balanced": Mode({"preset": "balanced", "seed": 1}, common=WITHOUT_P),
    "preset fast": Mode({"preset": "fast", "seed": 1}, common=WITHOUT_P),
    "mask_at input": Mode({"mask_at": "input"}),
    "baseline blur": Mode({"mask_at": "target", "baseline": "blur"}),
    "baseline zero": Mode({"baseline": "zero"}),
    "mask_at stage": Mode({"mask_at": "stage"}),
    "mask_at target": Mode({"mask_at": "target"}),
    "mask_at a layer": Mode({"mask_at": "relu1"}),
    "network None": Mode({"network": None, "layer": "net.relu2"}),
    "network under another name": Mode({"network": "model.backbone"}, attribute="model.backbone"),
    "layer None": Mode({"layer": None}),
    "groups": Mode({"groups": 8}),
    "weights none": Mode({"weights": "none"}),
    "weights gradient": Mode({"weights": "gradient"}),
    "p": Mode({"p": 0.5, "seed": 1}),
    "p of nobody": Mode({"p": 0.0}, quiet=True),
    "strength": Mode({"strength": 0.5}),
    "strength of nothing": Mode({"strength": 0.0}, quiet=True),
    "threshold mean": Mode({"threshold": "mean"}),
    "threshold level": Mode({"threshold": 0.4}),
    "threshold quantile": Mode({"threshold": "q0.6"}),
    "fill blur": Mode({"fill": "blur"}),
    "fill mean": Mode({"fill": "mean"}),
    "fill noise": Mode({"fill": "noise"}),
    "fill other": Mode({"fill": "other"}),
    "fill callable": Mode({"fill": darken}),
    "labels own": Mode({"labels": "own"}),
    "labels mixed": Mode({"labels": "mixed", "fill": "other"}),
    "mask_from saliency": Mode({"mask_from": "saliency"}),
    "mask_from other": Mode({"mask_from": "other"}),
    "mask_from other, fill other": Mode({"mask_from": "other", "fill": "other"}),
    "mask_from centre": Mode({"mask_from": "centre"}),
    "mask_from whole": Mode({"mask_from": "whole"}),
    "mask_from inverse": Mode({"mask_from": "inverse"}),
    "mask_from callable": Mode({"mask_from": keep_left}),
    "start_epoch": Mode({"start_epoch": 1}),
    "stop_epoch": Mode({"stop_epoch": 1}),
    "every_n_steps": Mode({"every_n_steps": 2}),
    "image_key and target_key, names": Mode({"image_key": NAMES["images"], "target_key": NAMES["labels"]}, as_dict, read_dict),
    "image_key nested": Mode({"image_key": ["inputs", 0], "target_key": "labels"}, as_nested, read_nested),
    "image_key getter and setter": Mode(
        {"image_key": (get_images, set_images), "target_key": (get_labels, set_images)}, as_nested, read_nested
    ),
    "target_key None": Mode({"target_key": None}, as_images, read_images),
    "activation softmax": Mode({"activation": "softmax"}),
    "activation sigmoid": Mode({"activation": "sigmoid"}),
    "output key": Mode({"output": "scores", "layer": "inner.relu2"}, network=TwoHeads),
    "output callable": Mode({"output": scores_of, "layer": "inner.relu2"}, network=TwoHeads),
    "preprocess": Mode({"preprocess": normalise}, normalise=normalise),
    "source self": Mode({"source": "self"}),
    "source ema": Mode({"source": "ema"}),
    "source network": Mode({"source": teacher()}),
    "source_target label": Mode({"source_target": "label"}),
    "source_target top1": Mode({"source": teacher(7), "source_target": "top1"}),
    "source checkpoint": Mode({"source": CHECKPOINT}),
    "source masks": Mode({"source": "masks", "mask_key": 2}, as_masked, read_first_two),
    "mask_key alone": Mode(
        {"mask_key": "mask", "image_key": NAMES["images"], "target_key": NAMES["labels"]}, as_masked_dict, read_dict
    ),
    "mask_key getter and setter": Mode({"mask_key": (get_third, set_third)}, as_masked, read_first_two),
    "mask_key beside maps": Mode({"source": "self", "mask_key": 2}, as_masked, read_first_two),
    "mask_key, labels mixed": Mode({"mask_key": 2, "fill": "other", "labels": "mixed"}, as_masked, read_first_two),
    "extra_keys": Mode({"extra_keys": [2], "layer": "inner.relu2"}, as_weighed, read_first_two, network=Weighed),
    "extra_keys by name": Mode(
        {"extra_keys": {"weight": 2}, "layer": "inner.relu2"}, as_weighed, read_first_two, network=Weighed
    ),
    "extra_keys getter and setter": Mode(
        {"extra_keys": [(get_third, set_third)], "layer": "inner.relu2"}, as_weighed, read_first_two, network=Weighed
    ),
    "chunk": Mode({"chunk": 4}),
    "compile": Mode({"compile": True}),
    "precision": Mode({"precision": "bf16-mixed"}),
    "seed": Mode({"seed": 3, "p": 0.5}),
    "record": Mode({"record": False}),
    "log_images": Mode({"log_images": False}),
}
