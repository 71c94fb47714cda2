"""Guided backpropagation (Springenberg et al. 2014); guided Grad-CAM (Selvaraju et al. 2017, section 3.2)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from groupcam_aug.borrow import as_found
from groupcam_aug.cam import CAM, Output, arithmetic, check_images
from groupcam_aug.extra import Extras, read_extra
from groupcam_aug.relus import is_clamp_at_zero, is_relu
from groupcam_aug.restore import ending_blocks
from groupcam_aug.saliency import GradCAM
from groupcam_aug.targets import Targets, targets_of

__all__ = ["guided_backprop", "guided_grad_cam"]


def guided_grad_cam(
    model: nn.Module,
    images: Tensor,
    targets: Targets = None,
    layer: str | nn.Module | None = None,
    *,
    extra: Extras = None,
    output: Output = None,
    preprocess: Callable[[Tensor], Tensor] | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Guided Grad-CAM: fine detail inside the region that Grad-CAM marks.

    Args:
        model: a classifier whose only activations are ReLUs.
        images: (N, C, H, W), floating point.
        targets: as for `GradCAM`.
        layer: the Grad-CAM layer. None: see `layers.find_layer`.
        extra: what the network takes beside images, one row per image; see `GroupCAM`.
        output: where the logits are in what the network returns.
        preprocess: applied to images before the network sees them.
        chunk: most images per pass; see `GroupCAM`.

    Returns:
        (N, C, H, W) signed, float32 (float64 for float64 images): the map times `guided_backprop`, not rescaled.

    Raises:
        ValueError: the network uses no ReLU, or another activation beside it, for which guided backpropagation is undefined.
    """
    cam = GradCAM(model, layer, output=output, preprocess=preprocess, chunk=chunk)
    _refuse_scripted(cam.network)
    (maps,) = cam.per_layer(images, targets, extra)
    return maps[:, None] * _gradients(cam, images, targets, extra)


def guided_backprop(
    model: nn.Module,
    images: Tensor,
    targets: Targets = None,
    *,
    extra: Extras = None,
    output: Output = None,
    preprocess: Callable[[Tensor], Tensor] | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Guided backpropagation: fine detail, of the whole image.

    The gradient of y (the logit) with respect to the image, where each ReLU passes back only positive gradients at positive
    activations. ReLUs are met as they are called, as modules or functions: no module of the network is exchanged. It hardly
    depends on the class, nor on the upper layers' weights (Adebayo et al. 2018): read it beside a map that does.

    Args:
        model: a classifier whose only activations are ReLUs.
        images: (N, C, H, W), floating point.
        targets: as for `GradCAM`.
        extra: what the network takes beside images, one row per image; see `GroupCAM`.
        output: where the logits are in what the network returns.
        preprocess: applied to images before the network sees them.
        chunk: most images per pass; see `GroupCAM`.

    Returns:
        (N, C, H, W) signed, float32 (float64 for float64 images), not rescaled.

    Raises:
        ValueError: the network uses no ReLU, or another activation beside it, for which guided backpropagation is undefined.
    """
    cam = CAM(model, output, preprocess, chunk)
    _refuse_scripted(cam.network)
    return _gradients(cam, images, targets, extra)


def _refuse_scripted(network: nn.Module) -> None:
    scripted = next((name for name, part in network.named_modules() if isinstance(part, torch.jit.ScriptModule)), None)
    if scripted is not None:
        raise ValueError(f"{scripted!r} is a ScriptModule, whose ReLUs cannot be seen, so guided backpropagation is not defined")


def _gradients(cam: CAM, images: Tensor, targets: Targets, extra: Extras) -> Tensor:
    """The guided gradients of a batch, (N, C, H, W), by the network that `cam` borrows."""
    plain, further = check_images(images, targets), read_extra(extra, images)
    dtype = arithmetic(plain)

    def gradient(part: slice, _chunk: int) -> Tensor:
        pixels = plain[part].clone().requires_grad_()
        with torch.enable_grad(), ending_blocks(), _GuidedReLUs(type(cam.network).__name__) as guided:
            logits = cam.logits(pixels)
            target = cam.target(targets_of(targets, part, len(plain)), plain[part], logits, dtype, "sigmoid")
            value = target.value(logits.to(dtype)).sum()
        if not guided.met:
            raise ValueError(f"{guided.name} calls no ReLU, so guided backpropagation is not defined for it; use grad_cam")
        slope = torch.autograd.grad(value, pixels, allow_unused=True)[0] if value.requires_grad else None
        if slope is None:
            raise ValueError(
                f"no gradient of {guided.name} reaches the images: its forward, or preprocess, switches gradients off (no_grad, "
                "detach) in front of some layer; use grad_cam with a layer behind that"
            )
        return slope.to(dtype)

    with as_found(cam.network, plain.device), cam.passing(further.usable(), targets):
        gradients = cam.mapped(plain, gradient)
    return torch.cat(gradients) if gradients else plain.to(dtype)


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


# Any other activation, in each of its forms: torch.nn.functional.elu, elu_, torch.tanh, Tensor.tanh_ and so on.
_NAMES = re.findall(
    r"\w+",
    "celu elu expit gelu glu hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish prelu relu6 rrelu selu sigmoid "
    "silu softplus softshrink softsign tanh tanhshrink threshold",
)
_HOMES = (F, torch, torch.special, Tensor)
_FORMS = (getattr(home, name + end, None) for home in _HOMES for name in _NAMES for end in ("", "_"))
_OTHERS = {form for form in _FORMS if form is not None}


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
        if is_clamp_at_zero(func, args, kwargs or {}):
            raise ValueError(f"{self.name} uses {func.__name__} as a ReLU, which is no guided one; use grad_cam, or F.relu")
        if is_relu(func):
            self.met += 1
            return _GuidedReLU.apply(args[0] if args else (kwargs or {})["input"])
        return func(*args, **(kwargs or {}))
