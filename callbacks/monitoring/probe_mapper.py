"""The probes and the method that maps them, for one fit: whose maps these are, and one look at all of them on all ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from groupcam_aug.borrow import as_found
from groupcam_aug.callbacks.glue.network import borrowed_network
from groupcam_aug.callbacks.monitoring.map_stats import Reading, look, pack, unpack
from groupcam_aug.callbacks.monitoring.probes import Probes
from groupcam_aug.layers import find_layer
from groupcam_aug.saliency import GradCAM, GroupCAM

__all__ = ["Watch"]


class Watch:
    """Maps the probes of a `SaliencyMonitor` with the network as it is at the moment.

    Args:
        trainer: of the fit.
        monitor: whose settings hold.
        network: to be mapped, bare.
        probes: to map.

    Raises:
        ValueError: a layer that does not exist, more groups than channels, and so on: see `GroupCAM` and `GradCAM`.
    """

    def __init__(self, trainer: Any, monitor: Any, network: nn.Module, probes: Probes) -> None:
        self.trainer, self.monitor, self.probes = trainer, monitor, probes
        self.device: torch.device = trainer.strategy.root_device
        common: dict[str, Any] = {"output": monitor.output, "preprocess": monitor.preprocess, "chunk": monitor.chunk}
        self.cam: GradCAM | GroupCAM
        if monitor.method == "gradcam":
            self.cam = GradCAM(network, monitor.layer, **common)
        else:
            more = {"groups": monitor.groups, "mask_at": monitor.mask_at, "activation": monitor.activation}
            self.cam = GroupCAM(network, monitor.layer, **more, **common)
        if self.cam.layer is None:
            with self.borrowed(), as_found(self.cam.network, self.device):
                self.cam.layer = find_layer(self.cam.network, self.cam.logits, self.images([0]))

    @property
    def name(self) -> str:
        """Of the method, for people."""
        return "Grad-CAM" if self.monitor.method == "gradcam" else f"Group-CAM (G={self.monitor.groups})"

    def identity(self) -> dict[str, Any]:
        """What must be the same for readings to be comparable."""
        monitor = self.monitor
        identity = {
            "probes": self.probes.fingerprint(),
            "method": monitor.method,
            "network": monitor.network,
            "layer": self.cam.layer,
            "grid": monitor.grid,
        }
        return identity | ({"groups": monitor.groups, "mask_at": monitor.mask_at} if monitor.method == "groupcam" else {})

    def look(self, targets: Tensor | None) -> Reading:
        """Map the probes: each rank its share, one gather, the same reading on every rank.

        Args:
            targets: what to explain, one row per probe; None: each probe's first choice.
        """
        rank, world, total = self.trainer.global_rank, self.trainer.world_size, len(self.probes)
        # Rank r has the probes r, r + world, ...; all ranks map equally many, the surplus is dropped.
        rows = [(rank + world * i) % total for i in range(math.ceil(total / world))]
        with self.borrowed():
            own = None if targets is None else targets[rows]
            mine = look(self.cam, self.images(rows), own, self.monitor.activation, self.monitor.grid)
        packed = pack(mine)
        if world > 1:
            packed = self.trainer.strategy.all_gather(packed).transpose(0, 1).flatten(0, 1)[:total]
        return unpack(packed, tuple(mine.maps.shape[1:]))

    def images(self, rows: list[int] | None = None) -> Tensor:
        """Probes on the device, in the Trainer's precision; all of them by default."""
        images = self.probes.images if rows is None else self.probes.images[rows]
        return self.trainer.precision_plugin.convert_input(images.to(self.device))

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """The network ready to be run on the monitor's account."""
        self.monitor.in_extra_forward = True
        try:
            with borrowed_network(self.trainer, self.cam.network, type(self.monitor).__name__):
                yield
        finally:
            self.monitor.in_extra_forward = False
