"""The augmentation: keep the salient pixels, move the others toward a blurred copy (Zhang et al. 2021, section 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groupcam_aug.arguments import changed_options, check_choice, check_flag, check_number, check_whole
from groupcam_aug.blur import blur, check_blur
from groupcam_aug.cam import check_images
from groupcam_aug.extra import Extra, Extras, read_extra
from groupcam_aug.map_ops import percentile
from groupcam_aug.targets import IGNORED, Targets, targets_of

__all__ = ["Augmented", "Fill", "MaskFrom", "SaliencyBlur", "blend", "keep_mask", "read_threshold"]

Fill = Literal["blur", "mean", "noise", "other"] | Callable[[Tensor], Tensor]
MaskFrom = Literal["saliency", "other", "centre", "whole", "inverse"] | Callable[[Tensor, Any], Tensor]


def keep_mask(maps: Tensor, threshold: float | str = "mean") -> Tensor:
    """Which pixels stay: those at or above the threshold of their own map.

    Args:
        maps: (N, H, W) in [0, 1].
        threshold: "mean" = each map's own mean (the paper), a number in [0, 1], or "q0.6" = that quantile of each map.

    Returns:
        (N, H, W) bool. An image without a map (all zeros) keeps everything.

    Raises:
        ValueError: another threshold.
    """
    kind, level = read_threshold(threshold)
    if kind == "mean":
        bound: Tensor | float = maps.mean(dim=(1, 2), keepdim=True)
    elif kind == "quantile":
        bound = percentile(maps.flatten(1), 100 * level)[..., None]
    else:
        bound = level
    return (maps >= bound) | ~has_map(maps)[:, None, None]


def has_map(maps: Tensor) -> Tensor:
    """(N,) bool: whether an image's map (N, H, W) holds anything."""
    return maps.amax(dim=(1, 2)) > 0


def blend(images: Tensor, keep: Tensor, fill: Tensor, strength: float = 1.0) -> Tensor:
    """`images` where `keep` is set, elsewhere moved toward `fill`: x + strength (fill - x).

    Args:
        images: (N, C, H, W).
        keep: (N, H, W) bool.
        fill: (N, C, H, W), what the non-salient pixels move toward.
        strength: 0 (nothing changes) to 1 (replaced, the paper).

    Returns:
        (N, C, H, W); kept pixels are those of `images`, bit for bit.
    """
    moved = fill if strength == 1 else torch.lerp(images, fill, strength)
    return torch.where(keep[:, None], images, moved)


class Augmented(NamedTuple):
    """What one application of `SaliencyBlur` gave."""

    images: Tensor  # (N, C, H, W), like the input
    drawn: Tensor  # (n,) int64 on the CPU: which images were augmented
    maps: Tensor  # (n, H, W) in [0, 1], as used for each drawn image
    keep: Tensor  # (n, H, W) bool
    no_map: Tensor  # (n,) bool: left untouched: no map, no other image to take one from, or the label -100


class SaliencyBlur(nn.Module):
    """Group-CAM augmentation of a batch, for hand-written loops and Fabric: `augment(images, targets) -> images`.

    Per image: S = saliency map, keep = S >= mean(S), x_hat = keep x + (1 - keep) blur(x). An image without a map, or with the
    label -100 (which losses ignore), is returned as it is. Only the images drawn with probability `p` are mapped, so p=0.5
    halves the cost.

    A module without parameters or state, so that it can stand in a `Sequential` or in a module of yours; the network behind
    `cam` is not one of its children. It augments in both modes: leave it out where you evaluate. With `pairs=True` it takes
    and returns (images, labels), as the batch transforms of torchvision (`CutMix`, `MixUp`) do.

    Args:
        cam: maps of a batch, `cam(images, targets) -> (N, H, W)` in [0, 1], such as `GroupCAM.for_training(model)`.
        p: probability of an image to be augmented, 0 to 1. Default: 1.
        strength: how far non-salient pixels move toward the fill, 0 to 1. Default: 1.
        threshold: "mean" (default), a number in [0, 1], or "q0.6" for a quantile; see `keep_mask`.
        fill: "blur" (default), "mean" (each image's own mean colour), "noise" (normal, the batch's mean and standard deviation
            per channel), "other" (the pixels of sample i + 1; a single image is left as it is, and counted), or a callable
            `images -> images`.
        kernel_size: of the blur, odd, pixels. Default: scaled with the image, 51 at 224.
        sigma: of the blur, pixels. Default: scaled with the image, 50 at 224.
        mask_from: "saliency" (default); the controls "other" (sample i takes the mask of sample i + 1; with fill="other", whose
            pixels come from there, that of sample i + 2; a batch too small for that is left as it is, and counted), "centre" (a
            disc in the middle, of as many pixels as the image's own mask keeps), "whole" (blur everything, no network pass),
            "inverse" (blur the salient pixels); or a callable `(images, targets) -> (n, H, W) bool` giving the pixels to keep.
        generator: CPU generator for the draws. Default: torch's global one, used only if 0 < p < 1 or fill="noise".
        pairs: return (images, labels) in place of images. Default: False.
        labels: of pairs: "own" (default), or "mixed" with fill="other", see `mixed_labels`.
        num_classes: for labels="mixed"; 1 = binary.

    Raises:
        ValueError: an argument out of range, or images and targets that do not fit together.
        TypeError: images that are not floating point.

    Example::

        augment = SaliencyBlur(GroupCAM.for_training(model, mask_at="target", baseline="zero"), p=0.5)  # the preset `fast`
        loss = loss_function(model(augment(images, labels)), labels)

        augment = SaliencyBlur(cam, fill="other", labels="mixed", num_classes=10, pairs=True)
        images, labels = augment(images, labels)
    """

    cam: Callable[..., Tensor]
    fill: Fill
    mask_from: MaskFrom

    def __init__(
        self,
        cam: Callable[..., Tensor],
        *,
        p: float = 1.0,
        strength: float = 1.0,
        threshold: float | str = "mean",
        fill: Fill = "blur",
        kernel_size: int | None = None,
        sigma: float | None = None,
        mask_from: MaskFrom = "saliency",
        generator: torch.Generator | None = None,
        pairs: bool = False,
        labels: Literal["own", "mixed"] = "own",
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        check_number("p", p, 0, 1)
        check_number("strength", strength, 0, 1)
        check_choice("fill", fill, get_args(get_args(Fill)[0]), or_callable=True)
        check_choice("mask_from", mask_from, get_args(get_args(MaskFrom)[0]), or_callable=True)
        check_blur(kernel_size, sigma)
        read_threshold(threshold)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator or None, got {type(generator).__name__}")
        check_flag("pairs", pairs)
        check_choice("labels", labels, ("own", "mixed"))
        check_whole("num_classes", num_classes, 1, optional=True)
        if labels == "mixed" and (fill != "other" or not pairs or num_classes is None):
            raise ValueError(
                "labels='mixed' needs fill='other', pairs=True and num_classes=, got "
                f"fill={fill!r}, pairs={pairs}, num_classes={num_classes}"
            )
        # Beside nn.Module's register: the network that is mapped, or a fill's, is nobody's child here.
        vars(self).update(cam=cam, fill=fill, mask_from=mask_from)
        self.p, self.strength, self.threshold, self.kernel_size, self.sigma = p, strength, threshold, kernel_size, sigma
        self.generator, self.pairs, self.labels, self.num_classes = generator, pairs, labels, num_classes

    def forward(self, images: Tensor, targets: Targets = None, extra: Extras = None) -> Tensor | tuple[Tensor, Targets]:
        """Augmented images.

        Args:
            images: (N, C, H, W), floating point, as the network takes them.
            targets: as for the map method: (N,) labels, (N, classes) soft rows, or None = the network's own first choice.
            extra: what the network takes beside images, one row per image; see `GroupCAM`. Then `cam(images, targets, extra)` is
                called, with the rows of the images that are mapped.

        Returns:
            (N, C, H, W), a new tensor of the same dtype, device, memory format and tensor subclass; `images` itself, if no
            image was drawn. With `pairs` also the targets: as they came, or mixed.
        """
        done = self.augment_at(images, targets, self.draw(len(images)), extra=extra)
        if not self.pairs:
            return done.images
        if self.labels == "own" or self.num_classes is None:
            return done.images, targets
        if not isinstance(targets, Tensor):
            raise ValueError(f"labels='mixed' needs labels as a tensor, got {type(targets).__name__}")
        return done.images, self.mixed_labels(targets, done, self.num_classes)

    def extra_repr(self) -> str:
        """The options that differ from their defaults."""
        return ", ".join([repr(self.cam), *changed_options(type(self).__init__, vars(self))])

    def draw(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """(n,) int64 on the CPU: which of `count` images to augment."""
        if self.p in (0, 1):
            return torch.arange(count if self.p else 0)
        return (torch.rand(count, dtype=torch.float32, generator=generator or self.generator) < self.p).nonzero()[:, 0]

    def augment_at(
        self,
        images: Tensor,
        targets: Targets,
        index: Tensor,
        generator: torch.Generator | None = None,
        maps: Tensor | None = None,
        extra: Extras = None,
    ) -> Augmented:
        """Augment the images at `index`, an (n,) int64 CPU tensor; arguments otherwise as for a call.

        Args:
            images: as for a call.
            targets: as for a call.
            index: (n,) int64 on the CPU, which images to augment.
            generator: CPU generator for the noise. Default: the one given at construction.
            maps: (N, H, W) in [0, 1] of the whole batch, on its device, in place of `cam`'s: object masks, say. Default: None.
            extra: as for a call.

        Returns:
            `Augmented`: the batch, and what was done to it.

        Raises:
            ValueError: images, targets and maps that do not fit together.
        """
        plain = check_images(images, targets)
        further = read_extra(extra, plain)
        if isinstance(targets, list | tuple) and targets and all(type(target) is int for target in targets):
            targets = torch.tensor(targets)
        if maps is not None and maps.shape != (len(plain), *plain.shape[2:]):
            raise ValueError(f"maps must be ({len(plain)}, H, W) like the images {tuple(plain.shape)}, got {tuple(maps.shape)}")
        empty = plain.new_zeros(0, *plain.shape[2:], dtype=torch.float32)
        if not len(index) or not self.strength:
            return Augmented(images, index[:0], empty, empty.bool(), empty[:, 0, 0].bool())
        everything = len(index) == len(plain)
        at = index.to(plain.device, non_blocking=True)
        drawn = plain if everything else plain.index_select(0, at)
        with torch.no_grad():
            used, keep, no_map = self._masks(plain, targets, index, at, maps, further)
            if isinstance(targets, Tensor) and targets.ndim == 1 and not targets.is_floating_point():
                ignored = targets.to(plain.device, non_blocking=True).index_select(0, at) == IGNORED
                keep, no_map = keep | ignored[:, None, None], no_map | ignored
            augmented = blend(drawn, keep, self._fill(plain, drawn, at, generator), self.strength)
            if not everything:
                augmented = plain.index_copy(0, at, augmented)
        return Augmented(_like(augmented, images), index, used, keep, no_map)

    def mixed_labels(self, labels: Tensor, done: Augmented, classes: int) -> Tensor:
        """Labels for `fill="other"`, mixed as CutMix does (Yun et al. 2019): sample i + 1 counts for its share of the pixels.

        Args:
            labels: of the whole batch: (N,) integers in [0, classes) or -100, (N, C) soft or multi-hot rows, or (N,) binary ones.
            done: what `augment_at` gave.
            classes: number of classes; 1 = binary.

        Returns:
            (N, classes) float32 rows for class indices, else the shape of `labels` (and their dtype, if floating point), on
            their device.

        Raises:
            ValueError: another fill, or labels of another form.
        """
        if self.fill != "other":
            raise ValueError(f"labels are mixed with fill='other', which takes pixels of another sample; got fill={self.fill!r}")
        if not isinstance(labels, Tensor) or labels.ndim not in (1, 2) or len(labels) != len(done.images):
            kind = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            raise ValueError(f"labels must be ({len(done.images)},) class indices or ({len(done.images)}, C) rows, got {kind}")
        indices = labels.ndim == 1 and classes > 1 and not labels.is_floating_point()
        rows = labels
        if indices:  # a row of zeros counts nothing in a cross-entropy
            labels = labels.long()
            rows = F.one_hot(labels.where(labels != IGNORED, 0), classes) * (labels != IGNORED)[:, None]
        rows = rows if rows.is_floating_point() else rows.float()
        share = torch.zeros(len(rows), dtype=torch.float32, device=rows.device)  # of the pixels that come from the next sample
        replaced = (~done.keep).float().mean(dim=(1, 2)).to(rows.device)
        share[done.drawn.to(rows.device, non_blocking=True)] = self.strength * replaced
        return torch.lerp(rows, rows.roll(-1, dims=0), share.to(rows.dtype).reshape(-1, *[1] * (rows.ndim - 1)))

    def _masks(
        self, images: Tensor, targets: Targets, index: Tensor, at: Tensor, given: Tensor | None, extra: Extra
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Maps (n, H, W), keep masks (n, H, W) and the missing maps (n,) of the drawn images."""
        count, size = len(index), images.shape[2:]
        nothing = torch.zeros(count, *size, dtype=torch.float32, device=images.device)
        # How many samples further on the mask is from: past the one whose pixels fill in, or the mask would hide just those.
        shift = (1 + (self.fill == "other")) if self.mask_from == "other" else 0
        if len(images) <= max(shift, self.fill == "other"):
            return nothing, ~nothing.bool(), ~nothing[:, 0, 0].bool()
        if self.mask_from == "whole":
            return nothing, nothing.bool(), nothing[:, 0, 0].bool()
        if shift:
            index, at = (index + shift) % len(images), (at + shift) % len(images)
        whole = torch.equal(index, torch.arange(len(images)))
        chosen = images if whole else images.index_select(0, at)
        if not whole:
            near = isinstance(targets, Tensor) and targets.device == at.device
            targets, extra = targets_of(targets, at if near else index, len(images)), extra[at]
        if callable(self.mask_from):
            keep = self.mask_from(chosen, targets)
            if keep.shape != nothing.shape or keep.dtype != torch.bool:
                raise ValueError(
                    f"mask_from must return bool masks of shape {tuple(nothing.shape)}, got {keep.dtype} {tuple(keep.shape)}"
                )
            return keep.float(), keep, nothing[:, 0, 0].bool()
        if given is not None:
            maps = given.index_select(0, at).float()
        else:
            maps = self.cam(chosen, targets, extra.given()) if extra else self.cam(chosen, targets)
        keep, no_map = keep_mask(maps, self.threshold), ~has_map(maps)
        if self.mask_from == "inverse":
            keep = ~keep | no_map[:, None, None]
        elif self.mask_from == "centre":
            keep = _centred(keep)
            maps = (keep & ~no_map[:, None, None]).float()
        return maps, keep, no_map

    def _fill(self, images: Tensor, drawn: Tensor, at: Tensor, generator: torch.Generator | None) -> Tensor:
        """What the pixels that are not kept move toward, like `drawn`."""
        if callable(self.fill):
            filled = self.fill(drawn)
            if filled.shape != drawn.shape:
                raise ValueError(f"fill must return images of shape {tuple(drawn.shape)}, got {tuple(filled.shape)}")
            return filled.to(drawn.dtype)
        if self.fill == "mean":
            return drawn.float().mean(dim=(2, 3), keepdim=True).to(drawn.dtype).expand_as(drawn)
        if self.fill == "noise":
            # Drawn on the CPU, so that a run repeats whatever device it is on.
            noise = torch.randn(drawn.shape, dtype=torch.float32, generator=generator or self.generator).to(
                drawn.device, non_blocking=True
            )
            spread, centre = torch.std_mean(images.float(), dim=(0, 2, 3), keepdim=True, correction=0)
            return (noise * spread + centre).to(drawn.dtype)
        if self.fill == "other":
            return images.index_select(0, (at + 1) % len(images))
        return blur(drawn, self.kernel_size, self.sigma)


def _centred(keep: Tensor) -> Tensor:
    """For each mask (n, H, W) one of as many pixels, those nearest to the centre."""
    height, width = keep.shape[1:]
    rows, columns = (2 * torch.arange(length, device=keep.device) - (length - 1) for length in (height, width))  # exact
    rank = (rows[:, None] ** 2 + columns**2).flatten().argsort(stable=True).argsort()
    return (rank < keep.sum(dim=(1, 2))[:, None]).reshape(keep.shape)


def _like(result: Tensor, images: Tensor) -> Tensor:
    """`result` in the memory format and tensor subclass of `images`."""
    if images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous():
        result = result.contiguous(memory_format=torch.channels_last)
    if type(images) is Tensor:
        return result
    from torchvision import tv_tensors

    if isinstance(images, tv_tensors.TVTensor):
        return tv_tensors.wrap(result, like=images)
    return result.as_subclass(type(images))


def read_threshold(threshold: float | str) -> tuple[Literal["mean", "quantile", "level"], float]:
    """Kind and level of a threshold, see `keep_mask`."""
    if threshold == "mean":
        return "mean", 0.0
    try:
        level = float(threshold[1:] if isinstance(threshold, str) and threshold.startswith("q") else threshold)
    except (ValueError, TypeError):
        level = -1.0
    if isinstance(threshold, bool) or not 0 <= level <= 1:
        raise ValueError(f"threshold must be 'mean', a number in [0, 1], or a quantile such as 'q0.6'; got {threshold!r}")
    return ("quantile" if isinstance(threshold, str) and threshold.startswith("q") else "level"), level
