"""Pictures in the loggers that take them."""

from __future__ import annotations

from typing import Any

from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from groupcam_aug.callbacks.glue.compat import logged_step

__all__ = ["send_picture"]


def send_picture(trainer: Any, tag: str, picture: Image.Image) -> None:
    """Show a picture in every logger that can: `log_image` (Weights & Biases), or `add_image` (TensorBoard). Others get none."""
    for logger in trainer.loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(key=tag, images=[picture], step=logged_step(trainer))
        elif hasattr(logger.experiment, "add_image"):
            logger.experiment.add_image(tag, pil_to_tensor(picture), logged_step(trainer))
