"""Scoring altered copies of a batch: what the probability of each image's class becomes, chunk by chunk."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from groupcam_aug.arguments import check_choice
from groupcam_aug.blur import blur
from groupcam_aug.borrow import as_found
from groupcam_aug.cam import CAM, Output, arithmetic, check_images
from groupcam_aug.extra import Extras, read_extra
from groupcam_aug.targets import Activation, Target, Targets

__all__ = ["Output", "Scorer", "Substrate", "check_maps", "make_substrate"]

_log = logging.getLogger(__name__)

Substrate = Literal["blur", "zeros", "mean"] | Callable[[Tensor], Tensor]


class Scorer:
    """One batch and the borrowed network: what the class's probability becomes when the images are altered.

    Arguments as for `metrics.insertion_deletion`. On a CPU float32 images go in channels_last, until the network turns out not
    to take that layout.
    """

    target: Target
    clean: Tensor  # (N,) probability of the class on the images as they are

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        targets: Targets,
        activation: Activation = "softmax",
        chunk: int | None = None,
        output: Output = None,
        preprocess: Callable[[Tensor], Tensor] | None = None,
        extra: Extras = None,
    ) -> None:
        check_choice("activation", activation, ("softmax", "sigmoid"))
        self.cam = CAM(model, output, preprocess, chunk)
        self.images, self.targets, self.activation = check_images(images, targets), targets, activation
        self.extra = read_extra(extra, self.images)
        self.dtype = arithmetic(self.images)
        self.chunk = self.cam.passes(self.images)
        on_cpu = images.device.type == "cpu" and images.dtype == torch.float32
        self.format = torch.channels_last if on_cpu else torch.preserve_format

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """The network in eval mode, with `target` and `clean` known."""
        with as_found(self.cam.network, self.images.device), self.cam.passing(self.extra.usable(), self.targets):
            logits = self._of_images()
            if self.cam.mixes_rows(self.images):
                self.chunk = 1
                logits = self._of_images()
            self.target = self.cam.target(self.targets, self.images, logits, self.dtype, self.activation)
            self.clean = self.target.score(logits)
            yield

    def _of_images(self) -> Tensor:
        return torch.cat([self.logits(self.images[part], part) for part in self.parts(len(self.images))])

    def parts(self, count: int) -> Iterator[slice]:
        """`count` images in parts of at most `chunk`."""
        return (slice(start, start + self.chunk) for start in range(0, count, self.chunk))

    def logits(self, images: Tensor, which: slice | Tensor) -> Tensor:
        """(n, classes) logits of altered copies, in any layout, of the images `which`, in one pass; float32 or wider."""
        with self.cam.passing(self.cam.extra[which]):
            return self._logits(images)

    def _logits(self, images: Tensor) -> Tensor:
        if self.format == torch.channels_last:
            try:
                return self.cam.logits(_laid_out(images, self.format)).to(self.dtype)
            except RuntimeError as error:  # a view() in the network needs the plain layout; any other error comes again there
                _log.debug("%s does not take channels_last: %s", type(self.cam.network).__name__, error)
                self.format = torch.contiguous_format
        return self.cam.logits(_laid_out(images, self.format)).to(self.dtype)

    def scores(self, images: Tensor) -> Tensor:
        """(N,) probability of each image's class on `images`, (N, C, H, W) altered ones."""
        return torch.cat([self.target.part(part).score(self.logits(images[part], part)) for part in self.parts(len(images))])

    def scores_of(self, which: Tensor, images: Tensor) -> Tensor:
        """(n,) probability of the class of image `which[i]` on `images[i]`; in one pass, so at most `chunk` of them."""
        return self.target.part(which).score(self.logits(images, which))


def make_substrate(images: Tensor, substrate: Substrate) -> Tensor:
    """What stands where nothing of the image is shown: (N, C, H, W), like `images`.

    Raises:
        ValueError: another name, or a callable that returns another shape.
    """
    check_choice("substrate", substrate, ("blur", "zeros", "mean"), or_callable=True)
    if callable(substrate):
        made = substrate(images)
        if not isinstance(made, Tensor) or made.shape != images.shape:
            kind = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise ValueError(f"substrate must return images of shape {tuple(images.shape)}, got {kind}")
        return made.detach().to(device=images.device, dtype=images.dtype)
    if substrate == "blur":
        return blur(images)
    if substrate == "zeros":
        return torch.zeros_like(images)
    dtype = torch.promote_types(images.dtype, torch.float32)
    return images.to(dtype).mean(dim=(2, 3), keepdim=True).to(images.dtype).expand_as(images)


def check_maps(maps: Tensor, images: Tensor) -> Tensor:
    """`maps` on the images' device, if there is one of its size for each image."""
    if not isinstance(maps, Tensor) or not maps.is_floating_point():
        raise TypeError(f"maps must be a floating-point tensor, got {getattr(maps, 'dtype', type(maps).__name__)}")
    size = (len(images), *images.shape[2:])
    if tuple(maps.shape) != size:
        raise ValueError(
            f"maps must have the images' size, {size}; got {tuple(maps.shape)}. Upsample maps of a layer's own grid first "
            "(torch.nn.functional.interpolate), as calling GradCAM or GroupCAM does"
        )
    return maps.detach().to(images.device)


def _laid_out(images: Tensor, memory_format: torch.memory_format) -> Tensor:
    return images if memory_format == torch.preserve_format else images.contiguous(memory_format=memory_format)
