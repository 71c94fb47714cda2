"""What the studies of shortcuts share: backgrounds that give the class away, and networks whose maps can be trusted more."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from groupcam_aug.recipes.trial.regimes import Data, Regime, alignment, kept_network, piece_name
from groupcam_aug.recipes.trial.stock import Stock
from groupcam_aug.recipes.trial.training import Machine, Split, fit

__all__ = ["Shortcut"]


@dataclass(frozen=True, kw_only=True)
class Shortcut(Regime):
    """A regime with a shortcut; objects and their exact masks are known.

    Args:
        train: training images.
        test: images of each test split, the same objects in all.
        maps: test images that the network's own maps are measured on.
        clean_images: images with backgrounds that say nothing, for the source "few".
    """

    has_masks: ClassVar[bool] = True

    train: int
    test: int
    maps: int = 200
    clean_images: int

    @property
    def sources(self) -> tuple[str, ...]:
        """A teacher trained where backgrounds say nothing, and the trained network itself after a little clean data."""
        return ("teacher", "few")

    @abstractmethod
    def draw_clean(self, split: str, count: int, seed: int, stock: Stock) -> Split:
        """Images of "train" (the very objects of the training set) or "val" with backgrounds that say nothing."""

    def make_source(self, source: str, seed: int, stock: Stock, machine: Machine, data: Data) -> nn.Module:
        """Teacher: the same start and objects, clean. Few: trained as without augmentation, then fine-tuned on clean images."""
        where = torch.device(machine.device)

        def teacher(network: nn.Module) -> Any:
            fit(network, self.draw_clean("train", self.train, seed, stock).to(where), self, seed, machine)

        def few(network: nn.Module) -> Any:
            fit(network, data.train, self, seed, machine)
            little = self.draw_clean("val", self.clean_images, seed, stock).to(where)
            batch = min(self.batch, 32, self.clean_images)
            fit(network, little, dataclasses.replace(self, batch=batch, lr=self.lr / 5), seed, machine)

        train = teacher if source == "teacher" else few
        return kept_network(stock, piece_name(self, seed, source, machine), self.make_network(seed, stock), train, machine)

    def measure_maps(self, network: nn.Module, split: Split, machine: Machine) -> dict[str, float]:
        """``alignment`` and ``no_map`` of the network's maps on the first test images, ``alignment_weights`` with weights."""
        some = split.part(slice(self.maps))
        own, weighted = (alignment(network, some, self, machine, weights) for weights in ("none", "gradient"))
        return own | {"alignment_weights": weighted["alignment"]}
