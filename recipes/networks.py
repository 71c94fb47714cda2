"""Networks by name, or by ``class_path`` as a config gives them, and a local checkpoint to start them from.

``CIFARResNet`` is the small residual network of He et al. 2016 (arXiv 1512.03385, section 4.2) for images of 32 pixels or so.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groupcam_aug.checkpoints import read_state_dict
from groupcam_aug.printable import printable
from groupcam_aug.recipes.unknown_names import RENAMED, nearest

__all__ = ["BasicBlock", "CIFARResNet", "build_network", "check_size", "head_name", "load_checkpoint", "pretrained_network"]


def load_checkpoint(network: nn.Module, checkpoint: str | Path | Mapping[str, Tensor]) -> list[str]:
    """Load a state dict into ``network`` strictly, except for a head of another number of classes, which stays fresh.

    Args:
        network: changed in place.
        checkpoint: a file as in `groupcam_aug.checkpoints.read_state_dict`, or the state dict itself.

    Returns:
        The parameters left as they are: the head's, when its shape differs (the names are then printed), else none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names are missing or unexpected, or a tensor that is not the last layer's has another shape.
    """
    state = dict(checkpoint) if isinstance(checkpoint, Mapping) else read_state_dict(checkpoint)
    source = "the state dict" if isinstance(checkpoint, Mapping) else f"checkpoint {str(checkpoint)!r}"
    own = network.state_dict()
    # Converted files lack BatchNorm's step counters, which nothing here reads.
    state |= {name: own[name] for name in own.keys() - state.keys() if name.endswith("num_batches_tracked")}
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unexpected:
        raise ValueError(
            f"{source} does not fit {type(network).__name__}: {len(missing)} names missing {_first(missing)}, "
            f"{len(unexpected)} unexpected {_first(unexpected)}; choose the network that it was saved from"
        )
    head = head_name(network) + "."
    fresh = [name for name in own if own[name].shape != state[name].shape]
    wrong = [name for name in fresh if not name.startswith(head)]
    if wrong:
        shapes = f"{tuple(state[wrong[0]].shape)} in the file, {tuple(own[wrong[0]].shape)} in the network"
        raise ValueError(f"{source}: {wrong[0]!r} has shape {shapes}; only the last layer ({head[:-1]}) may differ")
    if fresh:
        classes = f"{state[fresh[0]].shape[0]} classes there, {own[fresh[0]].shape[0]} here"
        print(printable(f"{source}: {classes}, so the head ({', '.join(fresh)}) starts fresh"))
        state |= {name: own[name] for name in own if name.startswith(head)}
    network.load_state_dict(state)
    return fresh


def check_size(network: nn.Module, size: int, name: str) -> None:
    """Refuse a size of images that the network cannot take, by one forward of a black image in eval mode.

    Args:
        network: for images (N, 3, size, size); its modes and the random numbers come back as they were.
        size: in pixels.
        name: of the network, for the message.

    Raises:
        ValueError: the network fails on such an image.
    """
    modes = {module: module.training for module in network.modules()}
    parameter = next(network.parameters())
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            network.eval()(torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype))
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        usual = (getattr(network, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))[-1]
        raise ValueError(
            f"{name} cannot take images of {size} x {size} px ({reason}): give another size (it was made for {usual}), "
            "or another network"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training


def head_name(network: nn.Module) -> str:
    """Name of the layer that gives the logits: the one that owns the last parameter (``fc``, ``linear``, ``classifier.6``)."""
    return [name for name, _ in network.named_parameters()][-1].rpartition(".")[0]


def build_network(spec: str | Mapping[str, Any], num_classes: int, pretrained: bool | str = False) -> nn.Module:
    """A network for images (N, 3, H, W) with ``num_classes`` logits.

    Args:
        spec: "timm/<name>", "torchvision/<name>", a bare name (timm's first, then torchvision's), or a mapping
            ``{"class_path": "package.module.Class", "init_args": {...}}``, which is given ``num_classes`` if it takes it.
        num_classes: outputs; a pretrained head of another size is replaced by a fresh one.
        pretrained: True for the library's default weights, or the name of torchvision weights ("IMAGENET1K_V1"). Default: False.

    Raises:
        ValueError: no such network (near names are suggested), an unknown argument, or ``pretrained`` with a ``class_path``.
        TypeError: ``class_path`` names no `torch.nn.Module`.
    """
    if not isinstance(spec, str):
        if pretrained:
            raise ValueError(
                f"pretrained={pretrained!r} has no meaning for class_path={spec.get('class_path')!r}; use checkpoint=<file>"
            )
        return _from_class_path(spec, num_classes)
    library, _, name = spec.rpartition("/")
    if library not in ("", "timm", "torchvision"):
        raise ValueError(f"network={spec!r}: the library must be timm or torchvision, as in timm/resnet50")
    import timm
    from torchvision import models

    if library in ("", "timm") and timm.is_model(name):
        if isinstance(pretrained, str):
            raise ValueError(
                f"pretrained={pretrained!r} names torchvision weights; write timm/{name}.<tag>, or torchvision/{name}"
            )
        with _fetching(spec, pretrained):
            return timm.create_model(name, pretrained=pretrained, num_classes=num_classes)
    if library in ("", "torchvision") and name in models.list_models():
        network = models.get_model(name, num_classes=num_classes)
        if pretrained:
            choices = models.get_model_weights(name)
            entry = "DEFAULT" if pretrained is True else pretrained
            if entry not in choices.__members__:
                raise ValueError(f"pretrained={pretrained!r} is none of {', '.join(choices.__members__)} for torchvision/{name}")
            with _fetching(spec, pretrained):
                weights = choices[entry].get_state_dict(progress=True)
            load_checkpoint(network, weights)
        return network
    known = (timm.list_models() if library != "torchvision" else []) + (models.list_models() if library != "timm" else [])
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    raise ValueError(
        f"network={spec!r} is unknown to {library or 'timm and torchvision'}; near names: {', '.join(near) or 'none'}"
    )


@contextmanager
def _fetching(spec: str, pretrained: bool | str) -> Iterator[None]:
    """Where published weights cannot be fetched, say what to do without them."""
    try:
        yield
    except OSError as error:  # of urllib, requests, httpx and the hub's client
        if not pretrained:
            raise
        raise OSError(
            f"the published weights of {spec} could not be fetched ({' '.join(str(error).split()):.200}). Without a network give "
            "a local file: --model.pretrained false --model.checkpoint FILE (pretrained=False, checkpoint=FILE)"
        ) from error


def pretrained_network(name: str, checkpoint: str | None = None, num_classes: int = 1000) -> nn.Module:
    """A network with the head that it was trained with, to make maps for another (`source=`, with `source_target="top1"`).

    In a config: ``source: {class_path: groupcam_aug.recipes.networks.pretrained_network, init_args: {name: timm/resnet50}}``.

    Args:
        name: as in `build_network`.
        checkpoint: a local state dict, which must have a head of that size. Default: None, the library's weights (a download).
        num_classes: outputs. Default: 1000, those of ImageNet.

    Raises:
        ValueError: no such network, or a checkpoint that does not fit it.
    """
    # Weights that are drawn here are all replaced: the random numbers of the network in training stay those of its seed.
    with torch.random.fork_rng(devices=[]):
        network = build_network(name, num_classes, pretrained=checkpoint is None)
    if checkpoint is not None and (fresh := load_checkpoint(network, checkpoint)):
        raise ValueError(f"checkpoint {checkpoint!r} has a head of another size than num_classes={num_classes}: {_first(fresh)}")
    return network


class CIFARResNet(nn.Module):
    """Residual network for small images: 3x3 stem, three stages of basic blocks, parameter-free (option A) shortcuts.

    Takes images (N, 3, H, W), any size from 8 pixels (published for 32), gives logits (N, num_classes). A 32-pixel image leaves
    the last stage, ``layer3``, as (N, 4 width, 8, 8). Parameter names are those of the common PyTorch port (conv1, bn1,
    layer1.0.conv1, ..., linear), so its published weights load as they are.

    Args:
        depth: number of weighted layers, 6 n + 2 for n blocks a stage: 8, 14, 20, 32, 44, 56, 110. Default: 20.
        num_classes: outputs of the last layer. Default: 10.
        width: channels of the first stage; the others have 2 and 4 times as many. Default: 16, as published.
        checkpoint: a local ``.safetensors`` / ``.pt`` / ``.pth`` state dict to start from; when its number of classes differs
            the head stays fresh, and this is said. Default: None, He initialisation.

    Raises:
        ValueError: ``depth`` is not 6 n + 2, or a number is not positive.
    """

    def __init__(self, depth: int = 20, num_classes: int = 10, width: int = 16, checkpoint: str | None = None) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth={depth} is not 6 n + 2; the nearest possible is {max(8, round((depth - 2) / 6) * 6 + 2)}")
        if num_classes < 1 or width < 1:
            raise ValueError(f"num_classes={num_classes} and width={width} must be at least 1")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks, stride=1)
        self.layer2 = _stage(width, 2 * width, blocks, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.linear = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)
        if checkpoint is not None:
            load_checkpoint(self, checkpoint)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, 3, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; where the shape changes: every second pixel, new channels zero (option A)."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.new_channels = stride, channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, H, W) -> (N, channels, ceil(H / stride), ceil(W / stride))."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            half = self.new_channels // 2  # as published weights expect: zeros on both sides
            x = F.pad(x, (0, 0, 0, 0, half, self.new_channels - half))
        return F.relu(out + x)


def _from_class_path(spec: Mapping[str, Any], num_classes: int) -> nn.Module:
    if not isinstance(spec.get("class_path"), str):
        raise ValueError(f"network={dict(spec)!r}: expected class_path: package.module.Class, and init_args: its arguments")
    # Arguments beside class_path are meant as init_args: so a command line that sets them one by one arrives here.
    beside = {key: value for key, value in spec.items() if key not in ("class_path", "init_args")}
    path, arguments = spec["class_path"], {**(spec.get("init_args") or {}), **beside}
    module, _, name = path.rpartition(".")
    try:
        network_class = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"network.class_path={path!r} cannot be imported ({error}); give package.module.Class") from error
    # A checkpoint may hold this mapping: nothing but a network is ever called.
    if not (isinstance(network_class, type) and issubclass(network_class, nn.Module)):
        raise TypeError(f"network.class_path={path!r} is a {type(network_class).__name__}, not a torch.nn.Module class")
    parameters = inspect.signature(network_class).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for key in arguments:
        if key not in parameters and not open_ended:
            raise ValueError(
                f"network.init_args: {path} takes no {key!r}{nearest(key, parameters, RENAMED)} "
                f"(it takes {', '.join(parameters) or 'nothing'})"
            )
    if "num_classes" in parameters:
        arguments.setdefault("num_classes", num_classes)
    return network_class(**arguments)


def _stage(channels_in: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(channels_in, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(blocks - 1)))


def _first(names: list[str]) -> str:
    return f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else "(none)"
