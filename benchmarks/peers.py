"""Milliseconds per map against other libraries and against loops, on the same photographs, network and process.

All have the same network, images, memory format and precision, but for the libraries, which get fp32. The two loops take one
image at a time and leave out groups without activation. "As the authors' code works": hooks and a full backward pass into the
parameters, one forward pass per group. "Loop, paper": the preset as a plain loop. pytorch-grad-cam, torch-cam (whose maps stay
as small as the layer) and captum (`pip install grad-cam torchcam captum`) are called as their pages show, batched where they
batch.
"""

from __future__ import annotations

import argparse
import importlib.metadata
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from common import Setting, add_device_options, batch, conditions, filed, photographs, relative, report, spread, squeezenet
from torch import Tensor, nn
from torch.nn import functional as F

from groupcam_aug import GradCAM, GroupCAM
from groupcam_aug.blur import blur

QUICKER: dict[str, dict[str, Any]] = {
    "ours, paper, compiled": {"compile": True},
    "ours, paper, bf16-mixed": {"precision": "bf16-mixed"},
    "ours, paper, bf16-mixed, compiled": {"precision": "bf16-mixed", "compile": True},
}


def as_the_authors(network: nn.Module, layer: nn.Module, images: Tensor, labels: Tensor, groups: int) -> list[Tensor]:
    """Their loop: image by image, group by group, gradients of everything (written anew; Zhang et al. 2021's repository)."""
    maps = []
    for image, label in zip(images[:, None], labels.tolist(), strict=True):
        kept: dict[str, Any] = {}
        hooks = [
            layer.register_forward_hook(lambda _m, _i, out, kept=kept: kept.update(activation=out)),
            layer.register_full_backward_hook(lambda _m, _i, out, kept=kept: kept.update(gradient=out[0])),
        ]
        network.zero_grad()
        network(image)[0, label].backward(retain_graph=True)
        for hook in hooks:
            hook.remove()
        weights = kept["gradient"].mean(dim=(2, 3), keepdim=True)
        maps.append(_scored(network, image, label, (weights * kept["activation"]).detach(), groups))
    return maps


def gradient_free(network: nn.Module, layer: nn.Module, images: Tensor, labels: Tensor, groups: int) -> list[Tensor]:
    """The preset `paper`, one image and one group at a time."""
    maps = []
    for image, label in zip(images[:, None], labels.tolist(), strict=True):
        kept: dict[str, Any] = {}
        hook = layer.register_forward_hook(lambda _m, _i, out, kept=kept: kept.update(activation=out))
        with torch.no_grad():
            network(image)
        hook.remove()
        maps.append(_scored(network, image, label, kept["activation"], groups))
    return maps


def _scored(network: nn.Module, image: Tensor, label: int, weighted: Tensor, groups: int) -> Tensor:
    with torch.no_grad():
        blurred = blur(image)
        lowest = network(blurred).softmax(1)[0, label]
        total = torch.zeros_like(image[0, 0])
        for group in weighted.chunk(groups, 1):
            mask = F.interpolate(group.sum(1, keepdim=True).relu(), image.shape[-2:], mode="bilinear", align_corners=False)
            if mask.max() > mask.min():
                mask = (mask - mask.min()) / (mask.max() - mask.min())
                gain = network(image * mask + blurred * (1 - mask)).softmax(1)[0, label] - lowest
                total += gain * mask[0, 0]
        total = total.relu()
        return (total - total.min()) / (total.max() - total.min()).clamp(min=1e-12)


def libraries(network: nn.Module, layer: nn.Module, images: Tensor, labels: Tensor, dear: bool) -> dict[str, Callable[[], Any]]:
    """Calls of the other libraries; `dear` ones need a forward pass for every channel."""
    import pytorch_grad_cam
    import torchcam.methods
    from captum.attr import LayerAttribution, LayerGradCam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    targets = [ClassifierOutputTarget(label) for label in labels.tolist()]

    def with_grad_cam(kind: Any) -> Callable[[], Any]:
        def call() -> Any:
            with kind(model=network, target_layers=[layer]) as cam:
                return cam(input_tensor=images, targets=targets)

        return call

    def with_torchcam(kind: Any) -> Callable[[], Any]:
        def call() -> Any:
            with kind(network, layer) as cam:
                scores = network(images)
                return cam(labels.tolist(), scores)

        return call

    def captum_grad_cam() -> Tensor:
        maps = LayerGradCam(network, layer).attribute(images, target=labels, relu_attributions=True)
        return LayerAttribution.interpolate(maps, tuple(images.shape[-2:]), "bilinear")

    calls = {
        "captum GradCAM": captum_grad_cam,
        "pytorch-grad-cam GradCAM": with_grad_cam(pytorch_grad_cam.GradCAM),
        "torch-cam GradCAM": with_torchcam(torchcam.methods.GradCAM),
    }
    if dear:
        calls |= {
            "pytorch-grad-cam ScoreCAM": with_grad_cam(pytorch_grad_cam.ScoreCAM),
            "pytorch-grad-cam AblationCAM": with_grad_cam(pytorch_grad_cam.AblationCAM),
            "torch-cam ScoreCAM": with_torchcam(torchcam.methods.ScoreCAM),
        }
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_device_options(parser)
    parser.add_argument("--network", default="squeezenet", help="squeezenet (pretrained), or one of torchvision's (random)")
    parser.add_argument("--layer", help="target layer (default: found)")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--groups", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-dear", action="store_true", help="leave out methods with a forward pass for every channel")
    options = parser.parse_args()
    setting = Setting(options)
    torch.manual_seed(0)
    plain = squeezenet() if options.network == "squeezenet" else torchvision.models.get_model(options.network).eval()
    plain = plain.to(setting.device)
    pictures, classes = photographs()
    images, labels = batch(pictures[: options.images]).to(setting.device), torch.tensor(classes[: options.images])
    finder = GradCAM(plain, options.layer)
    finder(images[:1])
    name = str(finder.layer)
    mine, laid = setting.put(plain), setting.put(images)
    theirs = mine.get_submodule(name)
    labels = labels.to(setting.device)

    def looped(loop: Callable[..., Any]) -> Callable[[], Any]:
        def call() -> Any:
            with setting.passes():
                return loop(mine, theirs, laid, labels, options.groups)

        return call

    def ours(**how: Any) -> Callable[[], Any]:
        cam = GroupCAM(mine, name, groups=options.groups, **how)

        def call() -> Any:
            with setting.passes():
                return cam(laid, labels)

        return call

    def our_grad_cam() -> Any:
        with setting.passes():
            return GradCAM(mine, name)(laid, labels)

    free: dict[str, Any] = {"weights": "none", "denoise": None}
    calls: dict[str, Callable[[], Any]] = {
        "loop as the authors' code works": looped(as_the_authors),
        "loop, paper": looped(gradient_free),
        "ours, Grad-CAM": our_grad_cam,
        "ours, paper with importance weights": ours(denoise=None),
        "ours, paper": ours(**free),
        "ours, balanced": ours(mask_at="stage", **free),
        "ours, target layer, blurred image behind": ours(mask_at="target", **free),
        "ours, target layer with importance weights": ours(mask_at="target", denoise=None),
        "ours, fast": ours(mask_at="target", baseline="zero", **free),
        **({name: ours(**how, **free) for name, how in QUICKER.items()} if not setting.half else {}),
        **libraries(mine, theirs, laid, labels, not options.no_dear),
    }
    taken = setting.seconds(calls, options.repeats)
    loops = [taken[name] for name in list(calls)[:2]]
    rows = []
    for method, seconds in taken.items():
        times = [relative(loop, seconds) for loop in loops]
        rows.append([method, 1000 * spread(seconds)[0] / len(images), *(figure for one in times for figure in one)])
    told = conditions(
        setting.device,
        network=options.network + ("" if options.network == "squeezenet" else ", random weights"),
        layer=name,
        images=len(images),
        groups=options.groups,
        repeats=options.repeats,
        threads=torch.get_num_threads(),
        **{package: importlib.metadata.version(package) for package in ("grad-cam", "torchcam", "captum")},
        **setting.told,
    )
    header = [
        "method",
        "ms per image",
        "x faster than the authors' loop",
        "IQR",
        "x faster than the paper loop",
        "its IQR",
    ]
    kind = f"{options.network}_{options.precision}" + ("_channels_last" if options.channels_last else "")
    report(filed(f"peers_{kind}", setting.device), told, header, rows)


if __name__ == "__main__":
    main()
