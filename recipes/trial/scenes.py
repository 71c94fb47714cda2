"""Study *scenes*: photographs of CIFAR-10 set into procedural scenes whose family goes with the class as often as rho says.

In the regime ``texture`` the family is a texture, which a strong blur takes away; in ``colour`` it is a hue, which no blur can:
there blurring must fail, and only other pixels can help.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groupcam_aug.recipes.networks import BasicBlock, CIFARResNet
from groupcam_aug.recipes.trial.cifar import cifar10, find_cifar10
from groupcam_aug.recipes.trial.regimes import Data, Metric, Plan, accuracy
from groupcam_aug.recipes.trial.scenery import draw_scenes
from groupcam_aug.recipes.trial.shortcut import Shortcut
from groupcam_aug.recipes.trial.stock import Stock
from groupcam_aug.recipes.trial.training import Machine, Split, seeded

__all__ = ["FourStages", "Scenes", "plans", "regimes"]

KINDS = (0, 1, 6, 7, 8, 4, 2, 9, 3, 5)  # of CIFAR-10's classes, those that small networks tell apart first


@dataclass(frozen=True, kw_only=True)
class Scenes(Shortcut):
    """Photographs in scenes, trained from scratch.

    Args (and see `Shortcut`):
        shortcut: what tells the families of scenes apart, "texture" or "colour".
        rho: how often a training scene is of the class's own family; else it is of another.
        pixels: a side of the scene; objects have 7/16 to 10/16 of it.
        kinds: number of classes, the first of `KINDS`.
        width: of the network's first stage.
        stages: 3 = `CIFARResNet` of depth 8, 4 = `FourStages` (the shape of a ResNet-18).
        pool: CIFAR-10 images a class that are read at all; 0 = all.
    """

    study: ClassVar[str] = "scenes"
    primary: ClassVar[str] = "worst"
    clean: ClassVar[str] = "same"
    second: ClassVar[str] = "rand"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("id", "ID"),
        Metric("same", "Mixed-Same"),
        Metric("rand", "Mixed-Rand"),
        Metric("gap", "gap"),
        Metric("worst", "worst group"),
        Metric("alignment", "alignment", scale=1, digits=2),
        Metric("alignment_weights", "alignment, weights", scale=1, digits=2),
    )

    shortcut: Literal["texture", "colour"] = "texture"
    rho: float = 0.95
    train: int = 1600
    test: int = 800
    pixels: int = 48
    kinds: int = 2
    width: int = 12
    stages: int = 3
    clean_images: int = 160
    pool: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rho <= 1 or not 2 <= self.kinds <= 10 or self.stages not in (3, 4):
            raise ValueError(f"need rho in [0, 1], kinds 2 to 10, stages 3 or 4; got {self.rho:g}, {self.kinds}, {self.stages}")

    @property
    def classes(self) -> int:
        """As many as asked for."""
        return self.kinds

    def check(self, stock: Stock) -> None:
        """The photographs must be there."""
        find_cifar10(stock)

    def make_data(self, seed: int, stock: Stock) -> Data:
        """Training images with rho; the same test objects in scenes of their own family and of any."""
        tests = {
            "same": self._draw("test", self.test, 1.0, seed, stock),
            "rand": self._draw("test", self.test, None, seed, stock),
        }
        return Data(self._draw("train", self.train, self.rho, seed, stock), tests)

    def make_network(self, seed: int, stock: Stock) -> nn.Module:
        """Fresh."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeded(seed, 0).initial_seed())
            return CIFARResNet(8, self.kinds, self.width) if self.stages == 3 else FourStages(self.kinds, self.width)

    def draw_clean(self, split: str, count: int, seed: int, stock: Stock) -> Split:
        """Scenes of any family."""
        return self._draw(split, count, None, seed, stock)

    def measure(self, network: nn.Module, data: Data, machine: Machine, seed: int) -> dict[str, float]:
        """Accuracy by scene; the worst of class x {own family, another's}; in distribution = both mixed as in training."""
        right = {name: accuracy(network, split, self, machine) for name, split in data.tests.items()}
        labels, families = data.tests["rand"].labels.cpu(), data.tests["rand"].groups
        assert families is not None  # for the type checker: drawn with the scenes
        conflict = families.cpu() != labels
        groups = [right["same"][labels == label] for label in range(self.kinds)]
        groups += [right["rand"][conflict & (labels == label)] for label in range(self.kinds)]
        same, rand = (float(right[name].float().mean()) for name in ("same", "rand"))
        against = float(right["rand"][conflict].float().mean())
        return {
            "id": self.rho * same + (1 - self.rho) * against,
            "same": same,
            "rand": rand,
            "gap": same - rand,
            "worst": min(float(group.float().mean()) for group in groups if len(group)),
        } | self.measure_maps(network, data.tests["same"], machine)

    def _draw(self, split: str, count: int, rho: float | None, seed: int, stock: Stock) -> Split:
        """`rho=None`: families at random, the own one included."""
        pool = cifar10(stock, self.pool or None)[1 if split == "test" else 0]
        draw = seeded(seed, 3, ("train", "val", "test").index(split))
        labels, chance = torch.arange(count) % self.kinds, torch.rand(count, 2, generator=draw)
        others = (labels + 1 + (chance[:, 1] * (self.kinds - 1)).long().clamp(max=self.kinds - 2)) % self.kinds
        anywhere = (chance[:, 1] * self.kinds).long().clamp(max=self.kinds - 1)
        families = anywhere if rho is None else torch.where(chance[:, 0] < rho, labels, others)
        photographs = torch.empty(count, 3, 32, 32)
        for label in range(self.kinds):
            mine, own = (labels == label).nonzero()[:, 0], (pool.labels == KINDS[label]).nonzero()[:, 0]
            # Training and clean images are other photographs, the first four fifths of a class and the rest.
            edge = max(1, len(own) * 4 // 5)
            own = own if split == "test" else own[:edge] if split == "train" else own[edge:]
            own = own[torch.randperm(len(own), generator=draw)]
            photographs[mine] = pool.images[own[torch.arange(len(mine)) % len(own)]].float()
        images, masks = draw_scenes(photographs, families, self.kinds, self.pixels, self.shortcut, draw)
        return Split(images, labels, masks, families)


class FourStages(nn.Module):
    """The shape of a ResNet-18 for small images: 3x3 stem, four stages of two basic blocks, parameter-free shortcuts.

    Takes images (N, 3, H, W); the last stage, ``layer4``, has an eighth of their size.

    Args:
        num_classes: outputs.
        width: channels of the first stage (64 in a ResNet-18); the others have 2, 4 and 8 times as many.
    """

    def __init__(self, num_classes: int, width: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        for i in range(4):
            first = BasicBlock(width * 2 ** max(0, i - 1), width * 2**i, 2 if i else 1)
            setattr(self, f"layer{i + 1}", nn.Sequential(first, BasicBlock(width * 2**i, width * 2**i)))
        self.linear = nn.Linear(8 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        for i in range(4):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.linear(x.mean(dim=(2, 3)))


def regimes(size: str) -> dict[str, Scenes]:
    """The regimes of that size by name."""
    common: dict[str, Any] = {
        "smoke": {"epochs": 2, "warmup": 1, "batch": 16, "lr": 0.1, "train": 48, "test": 24, "pixels": 32, "width": 4}
        | {"maps": 12, "clean_images": 24, "pool": 8},
        "cpu": {"epochs": 8, "warmup": 2, "batch": 64, "lr": 0.1, "rho": 0.9, "seconds": 40.0},
        "full": {"epochs": 15, "warmup": 3, "batch": 512, "lr": 0.4, "train": 20000, "test": 5000, "pixels": 64, "kinds": 10}
        | {"width": 32, "stages": 4, "maps": 1000, "clean_images": 1000, "seconds": 9000.0},
    }[size]
    # Textures tell classes apart by their direction, which a flip would turn into another's.
    make = functools.partial(Scenes, size=size, **common)
    return {"texture": make(name="texture", flip=False), "colour": make(name="colour", shortcut="colour")}


def plans(size: str) -> tuple[Plan, ...]:
    """What the study runs by default."""
    if size == "smoke":
        return (Plan(("texture",), ("none", "fast"), 2),)
    arms: tuple[str, ...] = (
        "none",
        "fast",
        "fast-weights",
        "fast-other",
        "whole",
        "fast-inverse",
        "masks",
        "erase",
        "cutmix",
        "fast,fill=other",
    )
    arms += (
        "fast-centre",
        "fast-weights,mask=other",
        "masks,fill=other",
        "fast-weights,source=ema",
        "masks,fill=other,mask=other",
        "fast-weights,source=teacher",
        "fast-weights,source=teacher,mask=other",
        "fast-weights,source=teacher,fill=other",
        "fast-weights,source=teacher,fill=other,mask=other",
        "frozen,source=teacher",
    )
    if size == "full":
        arms += ("paper", "balanced", "gradcam", "fast-shifted", "fast-weights,source=few,fill=other")
    return (Plan(("texture", "colour"), arms, 4 if size == "cpu" else 5),)
