"""Which network the maps come from: the one in training, its moving average, or a teacher."""

from __future__ import annotations

import copy
from pathlib import Path

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from groupcam_aug.borrow import unwrap
from groupcam_aug.checkpoints import state_dict_of
from groupcam_aug.moving_average import moving_average

__all__ = ["DECAY", "Source", "read_weights"]

DECAY = 0.999  # of the moving average, per optimiser step, once it is warm


class Source:
    """The network that is mapped, for one fit.

    A teacher is a copy, held here and nowhere else: no optimiser, checkpoint or DDP bucket knows it, and the user's own object
    stays where it was.

    Args:
        choice: "self", "ema", a network with the same classes, or the path of a checkpoint of the network in training.
        network: the network in training.
    """

    def __init__(self, choice: str | Path | nn.Module, network: nn.Module) -> None:
        self.training = unwrap(network)
        self.average: AveragedModel | None = None
        if choice == "self":
            self.mapped = self.training
        elif choice == "ema":
            self.average = moving_average(self.training, DECAY)
            self.mapped = self.average.module
        elif isinstance(choice, nn.Module):
            self.mapped = copy.deepcopy(unwrap(choice))
        else:
            self.mapped = copy.deepcopy(self.training)
            self.mapped.load_state_dict(read_weights(choice, self.mapped))

    def follow(self, images: Tensor) -> None:
        """Go where the images are, in their precision if the network in training is in it too."""
        own = next(self.training.parameters(), None)
        if self.mapped is not self.training and own is not None:
            self.mapped.to(device=images.device, dtype=own.dtype)

    def update(self) -> None:
        """Move the average; after an optimiser step."""
        if self.average is not None:
            self.average.update_parameters(self.training)


def read_weights(path: str | Path, network: nn.Module) -> dict[str, Tensor]:
    """The state dict of `network` in a checkpoint: a plain one, or one under "state_dict" or "model", with any prefix.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the checkpoint does not hold every tensor of the network.
    """
    if not Path(path).expanduser().is_file():
        raise FileNotFoundError(f"source={str(path)!r} is neither 'self', 'ema' nor a file")
    return state_dict_of(network, path)
