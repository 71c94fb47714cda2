"""Study *finetune*: the paper in miniature with the control it lacks, and a network from scratch, trained long on few images.

Pretrained CIFAR ResNets (or any network a user has) are trained on with the paper's recipe shape, on all of CIFAR-10, on 500 and
on 50 images a class. The regimes ``scratch-*`` start from nothing, so that there is something to regularise, and ``bare-*`` do
without crops and flips as well: there the positive control (CutMix, RandomErasing) should gain, and where it does not the regime
cannot tell whether saliency helps.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from torchmetrics.functional.classification import multiclass_calibration_error

from groupcam_aug.recipes.data import IMAGENET_MEAN, IMAGENET_STD
from groupcam_aug.recipes.networks import CIFARResNet, build_network, load_weights
from groupcam_aug.recipes.trial.cifar import CLASSES, cifar10, find_cifar10
from groupcam_aug.recipes.trial.corruptions import BLURS, CORRUPTIONS, SEVERITIES, corrupt
from groupcam_aug.recipes.trial.regimes import Data, Metric, Plan, Regime
from groupcam_aug.recipes.trial.stock import Stock
from groupcam_aug.recipes.trial.training import Machine, Split, logits_of, seeded

__all__ = ["Finetune", "plans", "regimes"]


@dataclass(frozen=True, kw_only=True)
class Finetune(Regime):
    """CIFAR-10, or a part of it.

    Args:
        per_class: training images of each class, drawn by the seed; 0 = all.
        test: test images; 0 = all.
        depth: of the `CIFARResNet`.
        width: of its first stage.
        network: another network, as `build_network` names it; then depth and width do not count.
        weights: file to start from, within the data folder or a path. Empty: from scratch.
        teacher: likewise, of a `CIFARResNet` of depth `teacher_depth`, for the source "teacher". Empty: none.
        teacher_depth: see there.
        corrupted: test images that are corrupted; 0 = all.
        corruptions: how many of the corruptions other than blurs are measured.
        blurs: how many of the blurs.
        pool: images a class that are read at all; 0 = all.
    """

    study: ClassVar[str] = "finetune"
    primary: ClassVar[str] = "top1"
    clean: ClassVar[str] = "top1"
    second: ClassVar[str] = "robust"
    keeps_data: ClassVar[bool] = False  # a choice among the decoded images, which are kept once for all seeds
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("top1", "top-1"),
        Metric("nll", "NLL", scale=1, digits=3),
        Metric("ece", "ECE"),
        Metric("robust", "corrupted"),
        Metric("robust_blur", "blurred"),
        Metric("fit", "training images"),
    )

    per_class: int = 500
    test: int = 0
    depth: int = 20
    width: int = 16
    network: str = ""
    weights: str = ""
    teacher: str = ""
    teacher_depth: int = 56
    corrupted: int = 0
    corruptions: int = 6
    blurs: int = 3
    pool: int = 0

    @property
    def classes(self) -> int:
        """Ten."""
        return len(CLASSES)

    @property
    def sources(self) -> tuple[str, ...]:
        """A larger pretrained network, where one is named."""
        return ("teacher",) if self.teacher else ()

    @property
    def pretrained(self) -> bool:
        """Whether there are weights to start from."""
        return bool(self.weights)

    def check(self, stock: Stock) -> None:
        """Images and weights must be there."""
        find_cifar10(stock)
        for name in (self.weights, self.teacher):
            if name:
                stock.file(name, f"{self.study} {self.name}")

    def make_data(self, seed: int, stock: Stock) -> Data:
        """The seed's choice of training images, as many of each class, and the test images."""
        train, test = cifar10(stock, self.pool or None)
        if self.per_class:
            draw = seeded(seed, 3)
            chosen = []
            for label in range(self.classes):
                own = (train.labels == label).nonzero()[:, 0]
                if len(own) < self.per_class:
                    raise ValueError(f"per_class={self.per_class}, but class {CLASSES[label]} has only {len(own)} images")
                chosen.append(own[torch.randperm(len(own), generator=draw)[: self.per_class]])
            train = train.part(torch.cat(chosen))
        if self.test:
            test = test.part(_spread(len(test.labels), self.test))
        return Data(train, {"test": test})

    def make_network(self, seed: int, stock: Stock) -> nn.Module:
        """Pretrained, or fresh from the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeded(seed, 0).initial_seed())
            if self.network:
                network = build_network(self.network, self.classes)
            else:
                network = CIFARResNet(self.depth, self.classes, self.width)
        if self.weights:
            load_weights(network, stock.file(self.weights, f"{self.study} {self.name}"))
        return network

    def make_source(self, source: str, seed: int, stock: Stock, machine: Machine, data: Data) -> nn.Module:
        """The teacher, as it is read."""
        teacher = CIFARResNet(self.teacher_depth, self.classes)
        load_weights(teacher, stock.file(self.teacher, f"teacher of {self.study} {self.name}"))
        return teacher

    def measure(self, network: nn.Module, data: Data, machine: Machine, seed: int) -> dict[str, float]:
        """Top-1, negative log-likelihood, calibration error over 15 bins, accuracy on corrupted and on training images."""
        test = data.tests["test"]
        logits = logits_of(network, test.images, self, machine)
        some = test if not self.corrupted else test.part(_spread(len(test.labels), self.corrupted))
        names = [name for name in CORRUPTIONS if name not in BLURS][: self.corruptions]
        known = data.train.part(_spread(len(data.train.labels), min(500, len(data.train.labels))))
        return {
            "top1": _share_right(logits, test),
            "nll": float(F.cross_entropy(logits, test.labels)),
            "ece": float(multiclass_calibration_error(logits.softmax(dim=1), test.labels, self.classes, n_bins=15)),
            "robust": self._robust(network, some, names, machine),
            "robust_blur": self._robust(network, some, list(BLURS)[: self.blurs], machine),
            "fit": _share_right(logits_of(network, known.images, self, machine), known),
        }

    def _robust(self, network: nn.Module, split: Split, names: list[str], machine: Machine) -> float:
        """Mean accuracy over corruptions and severities; the same noise for every run."""
        shares = []
        for name in names:
            for severity in range(1, SEVERITIES + 1):
                images = corrupt(name, split.images, severity, seeded(0, 4, list(CORRUPTIONS).index(name), severity))
                shares.append(_share_right(logits_of(network, images, self, machine), split))
        return sum(shares) / len(shares)


def regimes(size: str) -> dict[str, Finetune]:
    """The regimes of that size by name."""
    paper: dict[str, Any] = {"lr": 1e-3, "weight_decay": 1e-4, "anneal": "step"}
    scratch: dict[str, Any] = {"lr": 0.1, "weight_decay": 5e-4, "anneal": "cosine"}
    common: dict[str, Any] = {"size": size, "pad": 4, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    if size == "smoke":
        common |= {"test": 20, "corrupted": 10, "corruptions": 1, "blurs": 1, "pool": 8}
    elif size == "cpu":
        common |= {"corrupted": 250, "corruptions": 4, "blurs": 2}
    make = functools.partial(Finetune, **common)
    # Wide at full size (about a WRN-14-4); on a CPU no wider than others, but trained on few images until it knows them all.
    fresh: dict[str, Any] = {"depth": 14, "width": 64} if size == "full" else {"depth": 8, "width": 16}
    # name: network, milliseconds of a CPU core for an image and epoch
    nets: dict[str, tuple[dict[str, Any], float]] = {
        "resnet20": ({"depth": 20, "weights": RESNET20, "teacher": RESNET56}, 4.5),
        "resnet56": ({"depth": 56, "weights": RESNET56}, 13.0),
        "own": ({"weights": "weights.safetensors"}, 4.5),  # see `with_own`
        "scratch": ({"teacher": RESNET56} | fresh, 30.0 if size == "full" else 2.0),
        "bare": ({"teacher": RESNET56, "pad": 0, "flip": False} | fresh, 30.0 if size == "full" else 2.0),
    }
    # amount: images a class, batch and epochs of fine-tuning, batch and epochs from scratch
    amounts = {
        "20": (20, 20, 50, 25, 140),
        "50": (50, 50, 30, 25, 80),
        "500": (500, 125, 5, 125, 60),
        "full": (0, 250, 5, 250, 60),
    }
    found: dict[str, Finetune] = {}
    for amount, (per_class, *few) in amounts.items():
        for name, (net, cost) in nets.items():
            fresh_one = name in ("scratch", "bare")
            batch, epochs = few[2:] if fresh_one else few[:2]
            recipe = {"epochs": epochs, "warmup": epochs // 10} | scratch if fresh_one else {"epochs": epochs} | paper
            rest = {
                "per_class": per_class,
                "batch": batch,
                "seconds": cost / 1000 * (10 * per_class or 50_000) * recipe["epochs"],
            }
            if size == "smoke":
                rest = {"per_class": 4, "batch": 20, "seconds": 1.0}
                recipe |= {"epochs": 2, "warmup": 1} if fresh_one else {"epochs": 1}
                net = net | {"depth": 8, "width": 4} if fresh_one else net
            label = f"{name}-{amount}"
            found[label] = make(**{"name": label} | recipe | rest | net)
    return found


def plans(size: str) -> tuple[Plan, ...]:
    """What the study runs by default."""
    arms = ("none", "fast", "fast-weights", "fast-other", "whole", "cutmix", "fast,fill=other")
    if size == "smoke":
        return (Plan(("resnet20-50",), ("none", "fast"), 2),)
    if size == "cpu":
        sources = ("teacher", "teacher,fill=other", "teacher,fill=other,mask=other", "ema,fill=other")
        variants: tuple[str, ...] = (
            "fast-centre",
            "fast,fill=other,mask=other",
            "fast-weights,mask=other",
            "fast-weights,fill=other",
        )
        variants += tuple(f"fast-weights,source={source}" for source in sources)
        variants += ("fast,strength=0.5", "fast,clean_last=0.2", "fast,p=1", "fast,warmup=0")
        # A fifth of the pixels, about as many as RandomErasing takes: the least salient, another image's, the most salient.
        gentle: tuple[str, ...] = tuple(f"fast,threshold=q0.2{fill}" for fill in ("", ",fill=mean", ",fill=other"))
        gentle += tuple(f"fast-other,threshold=q0.2,fill={fill}" for fill in ("mean", "other"))
        gentle += (
            "fast-inverse",
            "fast-inverse,threshold=q0.8",
            "fast-inverse,threshold=q0.8,fill=mean",
            "fast-inverse,threshold=q0.6,fill=mean",
        )
        gentle += ("fast-inverse,threshold=q0.8,fill=mean,p=1",)
        mixed = tuple(
            f"{arm},fill=other,labels=mixed" for arm in ("fast", "fast-other", "fast-weights", "fast-weights,source=teacher")
        )
        return (
            Plan(("resnet20-50", "resnet20-500"), ("frozen", *arms, *ERASE), 5),
            Plan(("bare-50",), ("none", "fast", "fast-other", "cutmix", ERASE[1], *gentle, *mixed), 5),
            Plan(("scratch-20",), (*arms, *ERASE, *variants), 4),
            Plan(("resnet20-50", "resnet20-500"), ("paper",), 2),
        )
    every: tuple[str, ...] = (
        "frozen",
        "none",
        "paper",
        "balanced",
        "fast",
        "paper-weights",
        "balanced-weights",
        "fast-weights",
        "gradcam",
        "fast-other",
    )
    every += ("fast-shifted", "whole", "fast-inverse", *ERASE, "cutmix", "fast,fill=other", "fast-weights,fill=other")
    sizes = ("50", "500", "full")
    return (
        Plan(tuple(f"{net}-{amount}" for net in ("resnet20", "resnet56") for amount in sizes), every, 5),
        Plan(tuple(f"scratch-{amount}" for amount in ("20", *sizes)), every[1:], 5),
    )


def with_own(regime: Regime, network: str | None, pretrained: str | None) -> Regime:
    """A regime ``own-*`` with the user's network and its pretrained state dict.

    Raises:
        ValueError: they are not given for such a regime, or given for another.
    """
    own = regime.name.startswith("own-")
    if own != (network is not None) or own != (pretrained is not None):
        raise ValueError(
            f"--network and --pretrained belong to the regimes own-20, own-50, own-500 and own-full, and both; got {regime.name}"
        )
    if not isinstance(regime, Finetune) or not network or not pretrained:
        return regime
    return dataclasses.replace(regime, network=network, weights=str(Path(pretrained).expanduser().absolute()))


ERASE = ("erase", "erase,area=0.18")
RESNET20, RESNET56 = "weights/resnet20_cifar10.safetensors", "weights/resnet56_cifar10.safetensors"


def _spread(count: int, some: int) -> torch.Tensor:
    """So many indices, evenly over all: images are sorted by class."""
    return torch.linspace(0, count - 1, min(some, count)).round().long()


def _share_right(logits: torch.Tensor, split: Split) -> float:
    return float((logits.argmax(dim=1) == split.labels).float().mean())
