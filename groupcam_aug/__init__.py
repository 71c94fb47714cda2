"""Saliency-guided training augmentation with Group-CAM, for PyTorch and PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from groupcam_aug.augment import SaliencyBlur
    from groupcam_aug.fidelity import measure_fidelity
    from groupcam_aug.guided import guided_backprop, guided_grad_cam
    from groupcam_aug.saliency import GradCAM, GroupCAM, grad_cam, group_cam

__all__ = [
    "GradCAM",
    "GroupCAM",
    "SaliencyBlur",
    "grad_cam",
    "group_cam",
    "guided_backprop",
    "guided_grad_cam",
    "measure_fidelity",
]
__version__ = "0.1.0"

_HOMES = {
    "GradCAM": "saliency",
    "GroupCAM": "saliency",
    "SaliencyBlur": "augment",
    "grad_cam": "saliency",
    "group_cam": "saliency",
    "guided_backprop": "guided",
    "guided_grad_cam": "guided",
    "measure_fidelity": "fidelity",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: the command line's help should not wait for torch."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "callbacks", "metrics", "recipes", "sanity"])
