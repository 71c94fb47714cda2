"""Map methods of other libraries (the extra `compare`): grad-cam, torchcam and captum, called as their pages show."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from groupcam_aug.borrow import as_found
from groupcam_aug.grid import read_grid
from groupcam_aug.map_ops import enlarge, minmax
from groupcam_aug.recipes.evaluation.map_method import Maps, Method, Setup

__all__ = ["EXTERNAL_METHODS"]

Attribute = Callable[[Any, nn.Module, Tensor, Tensor], Tensor]
"""captum.attr, the network, an image (1, 3, H, W), its class (1,) -> attributions (1, 3, H, W)."""
SAMPLES, NOISE = 25, 0.15  # of SmoothGrad: noisy copies, and their noise as a share of the image's range
STEPS = 50  # of integrated gradients
_OTHER_ACTIVATIONS = (nn.GELU, nn.SiLU, nn.Hardswish, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.Mish, nn.PReLU, nn.Softplus)


def grad_cam_library(kind: str) -> Callable[[Setup], Maps]:
    """A method of pytorch-grad-cam, called as its pages show: on the logit of the class."""

    def make(setup: Setup) -> Maps:
        library = importlib.import_module("pytorch_grad_cam")
        target = importlib.import_module("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
        network = setup.copied
        layer = network.get_submodule(setup.layer)

        def maps(images: Tensor, classes: Tensor, _seeds: Sequence[int]) -> Tensor:
            size = (images.shape[-2], images.shape[-1])

            def grid(output: Tensor) -> Tensor:  # of tokens, too
                return read_grid(output, size, setup.layer).read(output)

            maps_made = []
            # Image by image: Score-CAM holds a masked copy of every image for every channel. Its progress bars are not ours.
            with as_found(network, images.device), torch.enable_grad(), contextlib.redirect_stderr(io.StringIO()):
                with getattr(library, kind)(model=network, target_layers=[layer], reshape_transform=grid) as cam:
                    for image, label in zip(images, classes.tolist(), strict=True):
                        maps_made.append(torch.from_numpy(cam(input_tensor=image[None], targets=[target(label)])))
                network.zero_grad(set_to_none=True)
            return minmax(torch.cat(maps_made).to(images))

        return maps

    return make


def captum_method(attribute: Attribute) -> Callable[[Setup], Maps]:
    """A method of captum. Attributions (1, 3, H, W) become a map as the sum of their absolute values over the channels."""

    def make(setup: Setup) -> Maps:
        library, network = importlib.import_module("captum.attr"), setup.copied

        def maps(images: Tensor, classes: Tensor, seeds: Sequence[int]) -> Tensor:
            maps_made = []
            with as_found(network, images.device), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it tells of hooks that it sets and takes away again
                for i, seed in enumerate(seeds):
                    torch.manual_seed(seed)  # inside `as_found`, which puts the generators back
                    given = attribute(library, network, images[i : i + 1].clone(), classes[i : i + 1])
                    maps_made.append(given.detach().abs().sum(dim=1))
            return minmax(torch.cat(maps_made).to(images.dtype))

        return maps

    return make


def integrated(library: Any, network: nn.Module, image: Tensor, label: Tensor) -> Tensor:
    """Integrated gradients (Sundararajan et al. 2017) from mean grey."""
    return library.IntegratedGradients(network).attribute(image, target=label, n_steps=STEPS, internal_batch_size=16)


def smooth(library: Any, network: nn.Module, image: Tensor, label: Tensor) -> Tensor:
    """SmoothGrad (Smilkov et al. 2017)."""
    tunnel = library.NoiseTunnel(library.Saliency(network))
    spread = NOISE * float(image.max() - image.min())
    how = {"nt_samples": SAMPLES, "nt_samples_batch_size": 5, "stdevs": spread, "nt_type": "smoothgrad"}
    return tunnel.attribute(image, target=label, abs=False, **how)  # mean of the signed gradients, as in the paper


def guided(library: Any, network: nn.Module, image: Tensor, label: Tensor) -> Tensor:
    """Guided backpropagation (Springenberg et al. 2014); refused where it is not defined."""
    others = {type(module).__name__ for module in network.modules() if isinstance(module, _OTHER_ACTIVATIONS)}
    if others or not any(isinstance(module, nn.ReLU) for module in network.modules()):
        seen = f"it uses {', '.join(sorted(others))}" if others else "it has no nn.ReLU module"
        raise ValueError(f"guided backpropagation is defined for networks of nn.ReLU modules, and {seen}")
    return library.GuidedBackprop(network).attribute(image, target=label)


def smooth_grad_cam(setup: Setup) -> Maps:
    """SmoothGrad-CAM++ of torchcam, called as its pages show: on the logits, with its default copies and noise."""
    library, network = importlib.import_module("torchcam.methods"), setup.copied

    def maps(images: Tensor, classes: Tensor, seeds: Sequence[int]) -> Tensor:
        maps_made = []
        with as_found(network, images.device), torch.enable_grad():
            for image, label, seed in zip(images, classes.tolist(), seeds, strict=True):
                torch.manual_seed(seed)  # inside `as_found`, which puts the generators back
                with library.SmoothGradCAMpp(network, setup.layer) as cam:
                    (grid,) = cam(label, network(image[None].clone().requires_grad_()))
                maps_made.append(enlarge(grid.detach().float()[:, None], tuple(image.shape[-2:]))[:, 0])
            network.zero_grad(set_to_none=True)
        return minmax(torch.cat(maps_made).to(images))

    return maps


def _cam(key: str, name: str, kind: str, more: str = "") -> Method:
    return Method(key, name, "peer", f"grad-cam{more}", grad_cam_library(kind), "pytorch_grad_cam")


EXTERNAL_METHODS: tuple[Method, ...] = (
    _cam("scorecam", "Score-CAM", "ScoreCAM", "; a pass for every channel"),
    _cam("gradcam++", "Grad-CAM++", "GradCAMPlusPlus"),
    _cam("layercam", "LayerCAM", "LayerCAM"),
    _cam("hirescam", "HiResCAM", "HiResCAM"),
    _cam("xgradcam", "XGradCAM", "XGradCAM"),
    _cam("eigencam", "EigenCAM", "EigenCAM", "; the same for all classes"),
    _cam("ablationcam", "Ablation-CAM", "AblationCAM", "; a pass of the layer's head for every channel"),
    Method("smoothgradcam++", "SmoothGrad-CAM++", "peer", "torchcam; 4 noisy copies", smooth_grad_cam, "torchcam.methods"),
    Method(
        "integrated",
        "integrated gradients",
        "peer",
        f"captum; {STEPS} steps from mean grey, absolute sum over channels",
        captum_method(integrated),
        "captum.attr",
    ),
    Method(
        "smoothgrad",
        "SmoothGrad",
        "peer",
        f"captum; {SAMPLES} copies, noise {NOISE:.0%} of the range, absolute sum over channels",
        captum_method(smooth),
        "captum.attr",
    ),
    Method("guided", "guided backprop", "peer", "captum; absolute sum over channels", captum_method(guided), "captum.attr"),
)
