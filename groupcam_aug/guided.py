"""Guided Grad-CAM: Grad-CAM times guided backpropagation (Selvaraju et al. 2017, section 3.2; Springenberg et al. 2014)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from groupcam_aug.borrow import as_found
from groupcam_aug.cam import Output, check_images
from groupcam_aug.saliency import GradCAM
from groupcam_aug.targets import Targets

__all__ = ["guided_grad_cam"]


def guided_grad_cam(
    model: nn.Module,
    images: Tensor,
    targets: Targets = None,
    layer: str | None = None,
    *,
    output: Output = None,
    preprocess: Callable[[Tensor], Tensor] | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Guided Grad-CAM: fine detail inside the region that Grad-CAM marks.

    Guided backpropagation is the gradient of y (the logit) with respect to the image, where each ReLU passes back only
    positive gradients at positive activations. ReLUs are met as they are called, as modules or functions: no module of the
    network is exchanged.

    Args:
        model: a classifier whose only activations are ReLUs.
        images: (N, C, H, W), floating point.
        targets: as for `GradCAM`.
        layer: the Grad-CAM layer. None: see `layers.find_layer`.
        output: where the logits are in what the network returns.
        preprocess: applied to images before the network sees them.
        chunk: most images per pass; see `GroupCAM`.

    Returns:
        (N, C, H, W) signed, float32 (float64 for float64 images): the map times the guided gradient, not rescaled.

    Raises:
        ValueError: the network uses no ReLU, or another activation beside it, for which guided backpropagation is undefined.
    """
    cam = GradCAM(model, layer, output=output, preprocess=preprocess, chunk=chunk)
    (maps,) = cam.per_layer(images, targets)
    plain = check_images(images, targets)

    def gradient(part: slice, _chunk: int) -> Tensor:
        pixels = plain[part].clone().requires_grad_()
        with torch.enable_grad(), _GuidedReLUs(type(cam.network).__name__) as guided:
            logits = cam.logits(pixels)
            value = cam.target(targets, part, logits, maps.dtype, "sigmoid").value(logits.to(maps.dtype)).sum()
        if not guided.met:
            raise ValueError(f"{guided.name} calls no ReLU, so guided backpropagation is not defined for it; use grad_cam")
        return torch.autograd.grad(value, pixels)[0].to(maps.dtype)

    with as_found(cam.network, plain.device):
        gradients = cam.in_parts(plain, gradient)
    return maps[:, None] * torch.cat(gradients) if gradients else maps[:, None].expand(-1, plain.shape[1], -1, -1)


class _GuidedReLU(torch.autograd.Function):
    """ReLU that passes back only positive gradients at positive activations."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        active = values.clamp(min=0)
        ctx.save_for_backward(active)
        return active

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (active,) = ctx.saved_tensors
        return gradient.clamp(min=0) * (active > 0)


_RELUS = {F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
_OTHERS = {F.gelu, F.silu, F.hardswish, F.hardtanh, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.mish, F.prelu, F.softplus}


class _GuidedReLUs(TorchFunctionMode):
    """Inside, every ReLU is a guided one, and any other activation of the kind is refused."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.met = name, 0

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func in _OTHERS:
            raise ValueError(
                f"{self.name} uses {func.__name__}: guided backpropagation is defined for networks of ReLUs only; use grad_cam"
            )
        if func in _RELUS:
            self.met += 1
            return _GuidedReLU.apply(args[0] if args else (kwargs or {})["input"])
        return func(*args, **(kwargs or {}))
