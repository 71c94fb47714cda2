"""Measures of saliency maps: plain functions, each with the torchmetrics class on top of it in the same module."""

from groupcam_aug.metrics.average_drop import Drop, average_drop
from groupcam_aug.metrics.boxes import LocalisationError, box_masks, boxes_from_maps, localisation_error
from groupcam_aug.metrics.insertion_deletion import (
    Curves,
    DeletionAUC,
    InsertionAUC,
    InsertionDeletion,
    deletion_auc,
    insertion_auc,
    insertion_deletion,
)
from groupcam_aug.metrics.localisation import (
    EnergyPointingGame,
    Located,
    MaskIoU,
    PointingGame,
    energy_pointing_game,
    mask_iou,
    pointing_game,
)
from groupcam_aug.metrics.stability import Change, MapChange, Noise, map_change, map_floor, map_noise, spearman

__all__ = [
    "Change",
    "Curves",
    "DeletionAUC",
    "Drop",
    "EnergyPointingGame",
    "InsertionAUC",
    "InsertionDeletion",
    "LocalisationError",
    "Located",
    "MapChange",
    "MaskIoU",
    "Noise",
    "PointingGame",
    "average_drop",
    "box_masks",
    "boxes_from_maps",
    "deletion_auc",
    "energy_pointing_game",
    "insertion_auc",
    "insertion_deletion",
    "localisation_error",
    "map_change",
    "map_floor",
    "map_noise",
    "mask_iou",
    "pointing_game",
    "spearman",
]
