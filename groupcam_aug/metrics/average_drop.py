"""Average drop: how much confidence is lost when only what the map shows is left (Chattopadhay et al. 2018)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from groupcam_aug.scoring import Scorer, Substrate, check_maps, make_substrate
from groupcam_aug.targets import Targets

__all__ = ["Drop", "average_drop"]


class Drop(NamedTuple):
    """What `average_drop` gives, each of shape (N,)."""

    drop: Tensor  # relu(p - p') / p, 0 to 1, lower is better; 0 where undefined
    increase: Tensor  # bool: p' > p
    activation: Tensor  # mean of the map: a map of ones has no drop, so read the two together
    undefined: Tensor  # bool: no map (zeros), not finite, or a callable target that is negative on the image: a share of what?


def average_drop(
    model: nn.Module, images: Tensor, maps: Tensor, targets: Targets = None, *, substrate: Substrate = "zeros", **options: Any
) -> Drop:
    """Drop and increase of confidence when only what the map shows is left: x' = S x + (1 - S) substrate; two passes an image.

    Args:
        model: as for `insertion_deletion`.
        images: (N, C, H, W), as there.
        maps: (N, H, W) in [0, 1].
        targets: as there.
        substrate: what stands where nothing is shown. Default: "zeros".
        options: `activation`, `chunk`, `output`, `preprocess`, `extra` of `insertion_deletion`.

    Returns:
        `Drop`, each of shape (N,).

    Raises:
        ValueError: as there, and for maps outside [0, 1] (looked for on the CPU only).
    """
    scorer = Scorer(model, images, targets, **options)
    maps = check_maps(maps, scorer.images)
    if maps.device.type == "cpu" and bool(((maps < 0) | (maps > 1)).any()):
        raise ValueError(f"maps must lie in [0, 1], got {maps.min().item():.4g} to {maps.max().item():.4g}")
    finite = maps.isfinite().all(dim=(1, 2))
    maps = torch.where(finite[:, None, None], maps, torch.zeros_like(maps)).to(scorer.dtype)
    before = shown = maps.new_zeros(0)
    if len(maps):
        with scorer.borrowed():
            kept, base = scorer.images.to(scorer.dtype), make_substrate(scorer.images, substrate).to(scorer.dtype)
            mixed = torch.lerp(base, kept, maps[:, None]).to(scorer.images.dtype)
            before, shown = scorer.clean, scorer.scores(mixed)
    undefined = ~(finite & (maps.amax(dim=(1, 2)) > 0) & before.isfinite() & shown.isfinite() & (before >= 0))
    drop = (before - shown).relu() / before.clamp(min=torch.finfo(scorer.dtype).tiny)
    return Drop(torch.where(undefined, 0.0, drop), (shown > before) & ~undefined, maps.mean(dim=(1, 2)), undefined)
