"""Object masks that a batch carries: read and brought to the images' size; how much of object and background a step kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from groupcam_aug.augment import Augmented
from groupcam_aug.callbacks.glue.batch import BatchKey, describe, get_item
from groupcam_aug.callbacks.glue.compat import misconfigured

__all__ = ["count_kept", "kept_shares", "read_masks"]


def read_masks(trainer: Any, batch: Any, mask_key: BatchKey, images: Tensor, who: str, *, check: bool = True) -> Tensor:
    """The batch's object masks, as maps.

    Args:
        trainer: of the fit.
        batch: as `training_step` would get it.
        mask_key: where the masks are: (N, h, w) or (N, 1, h, w), bool, integers 0 and 1, or floating point in [0, 1].
        images: (N, C, H, W).
        who: the callback's name, for messages.
        check: look at the values, which waits for an accelerator. Default: True.

    Returns:
        (N, H, W) float32 in [0, 1] on the images' device. Floating-point masks are resized bilinearly, others stay 0 and 1.

    Raises:
        MisconfigurationException: nothing under the key, or something else than masks; the message says what the batch holds.
    """
    try:
        masks = get_item(batch, mask_key)
    except KeyError as error:
        raise misconfigured(trainer, f"{error.args[0]}. Name the object masks: {who}(mask_key=...)") from None
    wanted = f"object masks ({len(images)}, H, W) or ({len(images)}, 1, H, W), bool or in [0, 1]"
    shaped = isinstance(masks, Tensor) and (masks.ndim == 3 or (masks.ndim == 4 and masks.shape[1] == 1))
    if not shaped or len(masks) != len(images) or not masks.numel() or masks.is_complex():
        raise misconfigured(
            trainer, f"mask_key={mask_key!r} gives {describe(masks)}, not {wanted}; the batch holds {describe(batch)}"
        )
    masks = masks.as_subclass(Tensor).detach().to(images.device, non_blocking=True)
    soft = masks.is_floating_point()
    # "not inside" catches NaN, too.
    if check and masks.dtype != torch.bool and not bool(((masks >= 0) & (masks <= 1)).all()):
        remedy = "divide by their maximum" if soft else "use masks > 0, or masks / 255"
        raise misconfigured(
            trainer,
            f"mask_key={mask_key!r} gives {describe(masks)} with values outside [0, 1], not {wanted}: {remedy}. The batch holds "
            f"{describe(batch)}",
        )
    masks = masks.reshape(len(masks), 1, *masks.shape[-2:]).float()
    size = images.shape[-2:]
    if masks.shape[-2:] != size:
        how: dict[str, Any] = {"mode": "bilinear", "antialias": True} if soft else {"mode": "nearest-exact"}
        masks = F.interpolate(masks, size, **how)
    return masks[:, 0].clamp(0, 1)


def count_kept(masks: Tensor, done: Augmented) -> Tensor:
    """Pixels of objects and backgrounds, of the drawn images that have a map and a mask (a pixel of at least .5).

    Args:
        masks: (N, H, W) in [0, 1], of the whole batch.
        done: what was done to the batch.

    Returns:
        (4,) int64 on the masks' device: pixels of objects that are kept, of objects, of backgrounds that are kept, of
        backgrounds.
    """
    drawn = masks.index_select(0, done.drawn.to(masks.device, non_blocking=True)) >= 0.5
    counts = drawn.any(dim=(1, 2)) & ~done.no_map
    here, ground = drawn & counts[:, None, None], ~drawn & counts[:, None, None]
    return torch.stack([(here & done.keep).sum(), here.sum(), (ground & done.keep).sum(), ground.sum()])


def kept_shares(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Shares in [0, 1] of the object's and of the background's pixels that are kept, of `count_kept`'s (4,); NaN of none."""
    return counts[0] / counts[1], counts[2] / counts[3]
