"""Saliency-guided training augmentation with Group-CAM, for PyTorch and PyTorch Lightning."""

from groupcam_aug.augment import SaliencyBlur
from groupcam_aug.guided import guided_grad_cam
from groupcam_aug.saliency import GradCAM, GroupCAM, grad_cam, group_cam

__all__ = ["GradCAM", "GroupCAM", "SaliencyBlur", "grad_cam", "group_cam", "guided_grad_cam"]
__version__ = "0.1.0"
