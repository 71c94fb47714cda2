"""The moving average of a network in training, which maps may come from in its place."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

__all__ = ["moving_average"]


def moving_average(network: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of `network` that is warm from the start; `update_parameters` follows a step.

    The n-th update keeps min(decay, (n + 1) / (n + 10)) of the average: with a fixed 0.999 it would be the starting weights for
    the first thousand steps, beside normalisation statistics of later ones (those are averaged by no one).
    """
    return _Average(network, decay)


class _Average(AveragedModel):
    """Its own `update_parameters` sends the counter to the device and back, two waits a step."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        n = int(self.n_averaged)  # on the CPU, wherever the network is
        averages, values = ([p.detach() for p in network.parameters()] for network in (self.module, model))
        values = [new.to(old.device, non_blocking=True) for old, new in zip(averages, values, strict=True)]
        keep = min(self.decay, (n + 1) / (n + 10)) if n else 0.0
        get_ema_multi_avg_fn(keep)(averages, values, n)
        for average, network in zip(self.module.modules(), model.modules(), strict=True):
            for name, new in network._buffers.items():
                old = average._buffers.get(name)
                if new is None or old is None or old.shape != new.shape:  # made by the first pass, or resized
                    average._buffers[name] = (
                        None if new is None else new.detach().to((new if old is None else old).device, copy=True)
                    )
                else:
                    old.copy_(new, non_blocking=True)
        self.n_averaged += 1
