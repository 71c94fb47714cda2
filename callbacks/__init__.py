"""Lightning callbacks: thin glue around the core."""

from groupcam_aug.callbacks.augmentation import GroupCAMAugmentation
from groupcam_aug.callbacks.early_stopping import SaliencyEarlyStopping
from groupcam_aug.callbacks.monitor import SaliencyMonitor
from groupcam_aug.callbacks.report import SaliencyReport

__all__ = ["GroupCAMAugmentation", "SaliencyEarlyStopping", "SaliencyMonitor", "SaliencyReport"]
