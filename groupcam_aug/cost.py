"""What maps cost, counted: floating-point operations, in forward passes of the bare network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from groupcam_aug.borrow import as_found
from groupcam_aug.cam import CAM
from groupcam_aug.extra import Extras, read_extra
from groupcam_aug.saliency import GroupCAM
from groupcam_aug.targets import Targets

__all__ = ["bare_pass", "cost_in_forwards", "count_flops"]


def count_flops(call: Callable[[], Any]) -> int:
    """Floating-point operations of the convolutions, matrix products and attention in a call, backward passes included."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def bare_pass(cam: CAM, images: Tensor, targets: Targets = None, extra: Extras = None) -> Tensor:
    """(N, classes) logits of (N, C, H, W) images by the network as it is, in eval mode, in passes as large as the maps' own."""
    with as_found(cam.network, images.device), cam.passing(read_extra(extra, images), targets):
        return torch.cat(cam.in_parts(images, lambda part, _: cam.logits(images[part])))


def cost_in_forwards(cam: GroupCAM, images: Tensor, targets: Targets = None, extra: Extras = None) -> float:
    """What the map of an image costs, in forward passes of the bare network; see `count_flops`.

    Args:
        cam: after its first call, which also looks for layers.
        images: (N, C, H, W), at least one; a blank image that the whole batch shares counts for its Nth part.
        targets: as for a call.
        extra: as for a call.

    Returns:
        18.0 for exact maps of 16 groups; NaN for a network without any operation that is counted.
    """
    with torch.no_grad():
        forward = count_flops(lambda: bare_pass(cam, images, targets, extra))
    return count_flops(lambda: cam(images, targets, extra)) / forward if forward else math.nan
