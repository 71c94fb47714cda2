"""What a map method of ``groupcam-aug evaluate`` is: a row of the table, made for a network and called with each batch."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar

from torch import Tensor, nn

from groupcam_aug.saliency import GradCAM, GroupCAM
from groupcam_aug.targets import Activation

__all__ = ["Maps", "Method", "Setup"]

Maps = Callable[[Tensor, Tensor, Sequence[int]], Tensor]
"""Images (n, 3, H, W), classes (n,) and a seed for each image -> maps (n, H, W) in [0, 1]."""
_Cam = TypeVar("_Cam", GroupCAM, GradCAM)
EXTRA = "pip install 'groupcam-aug[compare]'"


@dataclass(frozen=True)
class Setup:
    """What methods are made for: a network, and the layer whose maps are taken."""

    network: nn.Module
    layer: str
    channels: int  # of that layer
    rectified: frozenset[str] = frozenset()  # that layer, if it was found and is read behind the network's ReLU: `CAM.rectified`
    activation: Activation = "softmax"

    @classmethod
    def of(cls, network: nn.Module, images: Tensor, layer: str | None = None, activation: Activation = "softmax") -> Setup:
        """Find the layer (None) or check it, and count its channels, with one image (1, 3, H, W)."""
        cam = GroupCAM(network, layer, groups=1, weights="none", denoise=None, activation=activation)
        cam(images, 0)
        return cls(network, str(cam.layer), cam.layer_shape[0], frozenset(cam.rectified), activation)

    def as_found(self, cam: _Cam) -> _Cam:
        """`cam` of the layer by its name, so that it does not pay for the search, but reading it as it was found."""
        cam.rectified |= self.rectified
        return cam

    def groups(self, wanted: int) -> int:
        """G, at most as many as there are channels."""
        return min(wanted, self.channels)

    @cached_property
    def copied(self) -> nn.Module:
        """A copy for libraries that write into what they are given."""
        return copy.deepcopy(self.network).eval()


@dataclass(frozen=True)
class Method:
    """A row of the table. `make` is called once and may raise; what it returns is called with each batch."""

    key: str  # as --methods takes it
    name: str  # in tables and pictures
    kind: Literal["ours", "control", "peer"]
    description: str
    make: Callable[[Setup], Maps]
    needs: str = ""  # a module of an extra
    default: bool = True
    of: str = ""  # key of the method whose maps it alters, so that they are made once
    alter: Callable[[Tensor], Tensor] | None = None
    passes: Callable[[tuple[int, int]], int] | None = field(default=None, compare=False)  # for (H, W), where that is known
    cam: Callable[[Setup], Any] | None = field(default=None, compare=False)  # for the sanity check

    def missing(self) -> str | None:
        """Why it cannot be made here, or None."""
        if not self.needs:
            return None
        try:
            importlib.import_module(self.needs)
        except ImportError as error:
            return f"{self.needs} cannot be imported ({error}): {EXTRA}"
        return None
