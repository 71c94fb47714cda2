"""Lightning callbacks: thin glue around the core."""

from groupcam_aug.callbacks.augmentation import GroupCAMAugmentation

__all__ = ["GroupCAMAugmentation"]
