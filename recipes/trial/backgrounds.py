"""Study *backgrounds*: drawn objects whose background gives the class away as often as rho says, textures or photographs."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groupcam_aug.recipes.drawing import CLASSES, NUMBERS, draw_shapes
from groupcam_aug.recipes.networks import CIFARResNet
from groupcam_aug.recipes.shapes import Shapes
from groupcam_aug.recipes.trial.cifar import cifar10, find_cifar10
from groupcam_aug.recipes.trial.regimes import Data, Metric, Plan, accuracy
from groupcam_aug.recipes.trial.shortcut import Shortcut
from groupcam_aug.recipes.trial.stock import Stock
from groupcam_aug.recipes.trial.training import Machine, Split, seeded

__all__ = ["Backgrounds", "plans", "regimes"]

SPLITS = ("kept", "swapped", "object_free")


@dataclass(frozen=True, kw_only=True)
class Backgrounds(Shortcut):
    """Six classes of drawn objects, trained from scratch.

    Args (and see `Shortcut`):
        rho: how often a training background is that of the object's class; else it is another's.
        photos: photographs of CIFAR-10 behind the objects, of one of six classes, instead of drawn textures.
        pixels: a side.
        width: of the network's first stage (`CIFARResNet` of depth 8).
    """

    study: ClassVar[str] = "backgrounds"
    primary: ClassVar[str] = "swapped"
    clean: ClassVar[str] = "kept"
    second: ClassVar[str] = "kept"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("kept", "kept"),
        Metric("swapped", "swapped"),
        Metric("gap", "gap"),
        Metric("worst", "worst group"),
        Metric("object_free", "object-free"),
        Metric("alignment", "alignment", scale=1, digits=2),
        Metric("alignment_weights", "alignment, weights", scale=1, digits=2),
    )

    rho: float = 0.95
    photos: bool = False
    train: int = 2000
    test: int = 1000
    pixels: int = 32
    width: int = 12
    clean_images: int = 120

    def __post_init__(self) -> None:
        if not 0 <= self.rho <= 1:
            raise ValueError(f"rho must be in [0, 1], got {self.rho:g}")

    @property
    def classes(self) -> int:
        """Six."""
        return len(CLASSES)

    def check(self, stock: Stock) -> None:
        """Photographs, if any, must be there."""
        if self.photos:
            find_cifar10(stock)

    def make_data(self, seed: int, stock: Stock) -> Data:
        """Training images with rho, and the three test splits."""
        tests = {split: self._draw(split, self.test, self.rho, seed, stock) for split in SPLITS}
        return Data(self._draw("train", self.train, self.rho, seed, stock), tests)

    def make_network(self, seed: int, stock: Stock) -> nn.Module:
        """Fresh."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeded(seed, 0).initial_seed())
            return CIFARResNet(8, self.classes, self.width)

    def draw_clean(self, split: str, count: int, seed: int, stock: Stock) -> Split:
        """All backgrounds equally often."""
        return self._draw(split, count, 1 / 6, seed, stock)

    def measure(self, network: nn.Module, data: Data, machine: Machine, seed: int) -> dict[str, float]:
        """Accuracy with kept and swapped backgrounds, the worst of class x background, agreement with the background alone."""
        right = {name: accuracy(network, split, self, machine) for name, split in data.tests.items()}
        labels = data.tests["kept"].labels.cpu()
        groups = [right[name][labels == label].float().mean() for name in SPLITS[:2] for label in range(self.classes)]
        shares = {name: float(hits.float().mean()) for name, hits in right.items()}
        return {
            **shares,
            "gap": shares["kept"] - shares["swapped"],
            "worst": float(min(groups)),
        } | self.measure_maps(network, data.tests["kept"], machine)

    def _draw(self, split: str, count: int, rho: float, seed: int, stock: Stock) -> Split:
        if self.photos:
            return _on_photographs(split, count, rho, seed, self.pixels, stock, 4 if self.size == "smoke" else None)
        images, labels, masks = Shapes(split, count, size=self.pixels, rho=rho, seed=seed).tensors()
        return Split((images * 255).round().to(torch.uint8), labels, masks)


def regimes(size: str) -> dict[str, Backgrounds]:
    """The regimes of that size by name."""
    common: dict[str, Any] = {
        "smoke": {
            "epochs": 2,
            "warmup": 1,
            "batch": 32,
            "lr": 0.1,
            "train": 96,
            "test": 24,
            "width": 4,
            "maps": 12,
            "clean_images": 24,
        },
        "cpu": {"epochs": 16, "warmup": 3, "batch": 64, "lr": 0.1, "width": 8, "seconds": 33.0},
        "full": {"epochs": 20, "warmup": 3, "batch": 128, "lr": 0.1, "train": 12000, "test": 6000, "width": 16, "maps": 1000}
        | {"clean_images": 600, "seconds": 600.0},
    }[size]
    make = functools.partial(Backgrounds, size=size, **common)
    textures = {f"rho{rho:g}": make(name=f"rho{rho:g}", rho=rho) for rho in (0.5, 0.8, 0.95)}
    more: dict[str, Any] = {} if size != "cpu" else {"train": 3600, "seconds": 60.0}
    return textures | {
        f"photos{rho:g}": dataclasses.replace(make(name=f"photos{rho:g}", rho=rho, photos=True), **more)
        for rho in (0.5, 0.8, 0.95)
    }


def plans(size: str) -> tuple[Plan, ...]:
    """What the study runs by default."""
    if size == "smoke":
        return (Plan(("rho0.95",), ("none", "fast", "fast-other", "masks", "cutmix"), 2),)
    paper = ("none", "paper", "balanced", "fast", "paper-weights", "balanced-weights", "fast-weights", "gradcam")
    controls: tuple[str, ...] = (
        "fast-other",
        "fast-centre",
        "fast-shifted",
        "whole",
        "fast-inverse",
        "masks",
        "erase",
        "erase,area=0.18",
        "cutmix",
    )
    filled = tuple(f"{arm},fill=other" for arm in ("fast", "fast-weights", "fast-inverse", "masks"))
    sources = tuple(f"fast-weights,source={source}{fill}" for source in ("teacher", "few") for fill in ("", ",fill=other"))
    twins = (
        "balanced",
        "gradcam",
        "fast-weights",
        "fast,fill=other",
        "fast-weights,fill=other",
        "masks",
        "masks,fill=other",
        *sources,
    )
    taught = (*sources, "fast-weights,source=ema,fill=other", "frozen,source=teacher", "frozen,source=few")
    controls += tuple(f"{arm},mask=other" for arm in twins)
    changes = (
        "inverse_share=0.3",
        "other_share=0.5",
        "strength=0.5",
        "p_ramp=1",
        "threshold=q0.8",
        "p=1",
        "warmup=0",
        "warmup=8",
    )
    variants = ("fast-weights,source=early", "fast-weights,source=ema", *(f"fast,{change}" for change in changes))
    photographs: tuple[str, ...] = ("none", "fast", "fast-other", "fast-centre", "masks", "cutmix", "masks,fill=other")
    photographs += tuple(
        f"{arm}{mask}" for arm in ("fast-weights,fill=other", sources[1], sources[3]) for mask in ("", ",mask=other")
    )
    return (
        Plan(("rho0.95",), (*paper, *controls, *filled, *taught), 8),
        Plan(("rho0.8", "rho0.5"), ("none", "fast", "fast-other", "masks,fill=other", sources[1], f"{sources[1]},mask=other"), 8),
        Plan(("rho0.95",), variants, 4 if size == "cpu" else 8),
        Plan(("photos0.95",), photographs, 4 if size == "cpu" else 8),
    )


def _on_photographs(split: str, count: int, rho: float, seed: int, pixels: int, stock: Stock, per_class: int | None) -> Split:
    """Objects over photographs; label, object and place do not depend on rho or on the background."""
    pool = cifar10(stock, per_class)[0 if split in ("train", "val") else 1]
    draw = seeded(seed, 3, ("train", "val").index(split) if split in ("train", "val") else 2)
    numbers, chance = torch.rand(count, NUMBERS, generator=draw), torch.rand(count, 5, generator=draw)
    labels = torch.arange(count) % len(CLASSES)
    agree = {"kept": 1.0, "object_free": 1.0, "swapped": 0.0}.get(split, rho)
    others = 1 + (chance[:, 1] * (len(CLASSES) - 1)).long().clamp(max=len(CLASSES) - 2)
    families = torch.where(chance[:, 0] < agree, labels, (labels + others) % len(CLASSES))
    ground = torch.empty(count, 3, pixels, pixels)
    for family in range(len(CLASSES)):  # the first six of the ten classes stand for the six families
        of_family, own = (families == family).nonzero()[:, 0], (pool.labels == family).nonzero()[:, 0]
        picked = own[(chance[of_family, 2] * len(own)).long().clamp(max=len(own) - 1)]
        photographs = pool.images[picked].float()
        ground[of_family] = photographs if pixels == 32 else F.interpolate(photographs, pixels, mode="bilinear", antialias=True)
    if split == "object_free":
        return Split(ground.round().to(torch.uint8), labels, torch.zeros(count, pixels, pixels, dtype=torch.bool))
    images, masks = ground, torch.zeros(count, pixels, pixels, dtype=torch.bool)
    side = round(pixels * 9 / 16)  # of the square an object is drawn in: objects are a third to a half of the image wide
    corner = (chance[:, 3:] * (pixels - side + 1)).long().clamp(max=pixels - side)
    # Drawn twice as large before an unrelated texture, cut out, and shrunk: edges come out soft, with no fringe worth mentioning.
    texture = torch.zeros(count, dtype=torch.int64)
    for part in torch.arange(count).split(200):
        large, mask = draw_shapes(numbers[part], labels[part], texture[part], 2 * side)
        alpha, figure = _halved(mask[:, None].float()), _halved(large.float() * mask[:, None])
        rows, columns = (corner[part, axis, None] + torch.arange(side) for axis in (0, 1))
        at = part[:, None, None], rows[:, :, None], columns[:, None, :]
        behind = images.permute(0, 2, 3, 1)  # a view: what is written there is written to the images
        behind[at] = (figure + (1 - alpha) * behind[at].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        masks[at] = alpha[:, 0] >= 0.5
    return Split(images.round().clamp(0, 255).to(torch.uint8), labels, masks)


def _halved(planes: Tensor) -> Tensor:
    return F.avg_pool2d(planes, 2)
