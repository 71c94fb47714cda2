"""The probes and the method that maps them: whose maps these are, and one look at all of them on all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from groupcam_aug.borrow import as_found
from groupcam_aug.callbacks.monitoring.map_stats import Reading, pack, read_maps, unpack
from groupcam_aug.callbacks.monitoring.probes import Probes
from groupcam_aug.saliency import GradCAM, GroupCAM
from groupcam_aug.targets import Activation

__all__ = ["ProbeMapper"]


class ProbeMapper:
    """Maps the probes with the network as it is at the moment.

    Args:
        trainer: of the fit.
        network: to be mapped, bare.
        probes: to map.
        borrow: lends the network for a stretch of code, see `glue.network.borrowed_network`.
        method: "gradcam" or "groupcam".
        layer: target layer. None: found here, with one probe.
        output: where the logits are in what the network returns.
        preprocess: applied to images before the network sees them.
        chunk: most images per forward pass.
        groups: G, of "groupcam".
        mask_at: likewise.
        activation: "softmax" or "sigmoid".
        grid: most cells along a side of the maps that are kept.

    Raises:
        ValueError: a layer that does not exist, more groups than channels, and so on: see `GroupCAM` and `GradCAM`.
    """

    def __init__(
        self,
        trainer: Any,
        network: nn.Module,
        probes: Probes,
        *,
        borrow: Callable[[], AbstractContextManager[None]],
        method: Literal["gradcam", "groupcam"] = "gradcam",
        layer: str | None = None,
        output: int | str | Callable[[Any], Tensor] | None = None,
        preprocess: Callable[[Tensor], Tensor] | None = None,
        chunk: int | None = None,
        groups: int = 32,
        mask_at: str = "input",
        activation: Activation = "softmax",
        grid: int = 14,
    ) -> None:
        self.probes, self.borrow, self._trainer = probes, borrow, trainer
        self._activation, self._grid = activation, grid
        self._device: torch.device = trainer.strategy.root_device
        common: dict[str, Any] = {"output": output, "preprocess": preprocess, "chunk": chunk}
        self.cam: GradCAM | GroupCAM
        if method == "gradcam":
            self.cam, self.name = GradCAM(network, layer, **common), "Grad-CAM"
            settings: dict[str, Any] = {}
        else:
            settings = {"groups": groups, "mask_at": mask_at}
            self.cam = GroupCAM(network, layer, activation=activation, **settings, **common)
            self.name = f"Group-CAM (G={groups})"
        if self.cam.layer is None:
            with borrow(), as_found(self.cam.network, self._device):
                self.cam.layer = self.cam.find(self.images([0]))
        # What must be the same for readings to be comparable.
        self.identity = {"probes": probes.fingerprint(), "method": method, "layer": self.cam.layer, "grid": grid, **settings}

    def look(self, targets: Tensor | None) -> Reading:
        """Map the probes: each rank its share, one gather, the same reading on every rank.

        Args:
            targets: what to explain, one row per probe; None: each probe's first choice.
        """
        rank, world, total = self._trainer.global_rank, self._trainer.world_size, len(self.probes)
        # Rank r has the probes r, r + world, ...; all ranks map equally many, the surplus is dropped.
        rows = [(rank + world * i) % total for i in range(math.ceil(total / world))]
        explained = None if targets is None else targets[rows]
        with self.borrow():
            share = read_maps(self.cam, self.images(rows), explained, self._activation, self._grid)
        packed = pack(share)
        if world > 1:
            packed = self._trainer.strategy.all_gather(packed).transpose(0, 1).flatten(0, 1)[:total]
        return unpack(packed, tuple(share.maps.shape[1:]))

    def images(self, rows: list[int] | None = None) -> Tensor:
        """Probes on the device, in the Trainer's precision; all of them by default."""
        images = self.probes.images if rows is None else self.probes.images[rows]
        return self._trainer.precision_plugin.convert_input(images.to(self._device))

    def synchronize(self) -> None:
        """Wait for what is still queued on the device, so that a clock does not take it for the probing's time."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
