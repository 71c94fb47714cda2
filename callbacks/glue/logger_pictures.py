"""Pictures in the loggers that take them, and as files beside the figures of those that do not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from groupcam_aug.callbacks.glue.compat import logged_step
from groupcam_aug.draw import png
from groupcam_aug.files import put_file

__all__ = ["send_picture"]


def send_picture(trainer: Any, tag: str, picture: Image.Image) -> None:
    """Show a picture in every logger, at the step of its scalars.

    By the interface that each has: Weights & Biases, TensorBoard, MLflow and Comet take pictures. For a logger that takes none
    but has a folder (CSV), it is a file there, `groupcam/pictures/saliency_maps/step_000120.png` for the tag "saliency/maps"; on
    a bucket, and for others, none.

    Args:
        trainer: on rank zero.
        tag: a name with one slash, such as "saliency/maps".
        picture: to be shown.
    """
    step = logged_step(trainer)
    for logger in trainer.loggers:
        experiment = logger.experiment
        if hasattr(logger, "log_image"):  # Weights & Biases
            logger.log_image(key=tag, images=[picture], step=step)
        elif hasattr(experiment, "add_image"):  # TensorBoard
            experiment.add_image(tag, pil_to_tensor(picture), step)
        elif hasattr(experiment, "log_image") and hasattr(logger, "run_id"):  # MLflow, whose client serves any run
            experiment.log_image(logger.run_id, picture, key=tag, step=step)
        elif hasattr(experiment, "log_image"):  # Comet
            experiment.log_image(picture, name=tag, step=step)
        elif (folder := getattr(logger, "log_dir", None)) and "://" not in os.fspath(folder):
            put_file(Path(folder), f"groupcam/pictures/{tag.replace('/', '_')}/step_{step:06d}.png", png(picture))
