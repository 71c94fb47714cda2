"""Saliency maps: Group-CAM (Zhang et al. 2021, arXiv 2103.13859) and Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391).

Images in, maps out: every call borrows the network in evaluation mode and gives it back as it was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groupcam_aug.arguments import check_choice, check_flag, check_number, check_whole
from groupcam_aug.blur import blur
from groupcam_aug.borrow import as_found, half_precision, plain_arithmetic
from groupcam_aug.cam import CAM, Output, arithmetic, check_images, slopes_of, usable
from groupcam_aug.compiled import CompiledForward, rows_of_a_pass
from groupcam_aug.extra import Extras, read_extra
from groupcam_aug.layers import is_read, layer_name, spatial_layers
from groupcam_aug.map_ops import enlarge, minmax, percentile, scale_as_enlarged
from groupcam_aug.memory import is_out_of_memory
from groupcam_aug.partial_forward import Tail, TailKind, structure
from groupcam_aug.stages import find_stage
from groupcam_aug.targets import Activation, Target, Targets, targets_of

__all__ = ["GradCAM", "GroupCAM", "grad_cam", "group_cam"]


def group_cam(
    model: nn.Module,
    images: Tensor,
    targets: Targets = None,
    layer: str | nn.Module | None = None,
    *,
    extra: Extras = None,
    **options: Any,
) -> Tensor:
    """Group-CAM maps in one call; `extra` as for a call of the class `GroupCAM`, whose are the other `options`.

    Returns:
        (N, H, W) float32 (float64 for float64 images) in [0, 1] on the images' device; zeros where an image has no map.
    """
    return GroupCAM(model, layer, **options)(images, targets, extra)


def grad_cam(
    model: nn.Module,
    images: Tensor,
    targets: Targets = None,
    layer: str | nn.Module | None = None,
    *,
    extra: Extras = None,
    **options: Any,
) -> Tensor:
    """Grad-CAM maps in one call; `extra` as for a call of the class `GroupCAM`, other `options` are those of `GradCAM`.

    Returns:
        (N, H, W) float32 (float64 for float64 images) in [0, 1] on the images' device; zeros where an image has no map.
    """
    return GradCAM(model, layer, **options).per_layer(images, targets, extra)[0]


class GroupCAM(CAM):
    """Group-CAM: masks from groups of feature maps, each scored by how much of the class it preserves.

    1. w_k = mean over positions of dy_c/dA_k (`weights="gradient"`), or 1 (`weights="none"`, no backward pass).
    2. The K channels fall into G consecutive groups (as `torch.tensor_split`); M_l = ReLU(sum over the group of w_k A_k).
    3. `denoise`: values of M_l not strictly above its theta-percentile (linear interpolation) become 0, per image and group.
    4. M'_l = M_l upsampled bilinearly to the image, then scaled to [0, 1]. A constant map is dead: mask 0, weight 0.
    5. alpha_l = p_c(x M'_l + blur(x) (1 - M'_l)) - p_c(blur(x)).
    6. S = ReLU(sum of alpha_l M'_l), scaled to [0, 1]; an image with nothing positive gets a map of zeros.

    Readings of the paper: upsampling comes before the scaling (as the authors' code; the text has it the other way), and the
    sum runs over M'_l. Network passes run in the caller's precision (autocast included), saliency arithmetic in float32
    (float64 for float64 images). Maps of images do not depend on each other, and memory does not grow with `groups`.

    Args:
        model: any classifier; compiled, DDP and DataParallel wrappers are looked through.
        layer: the target layer: a module, or its name as in `model.named_modules()`. None: see `layers.find_layer`; the
            choice is in `.layer` after the first call. If it goes into nothing but a ReLU (torchvision's DenseNet calls one as
            a function), the result of that is mapped, and `.rectified` names it. A layer that is named is mapped as it is.
        groups: G, 1 to the number of channels of the layer. Default: 32.
        weights: importance weights: "gradient" (the paper, for explaining) or "none" (the paper, for training).
        denoise: theta in [0, 100], or None for no denoising. Default: 70.
        variant: "paper", or "head" = the authors' later code: no denoising, alpha_l clipped at 0, sum over unscaled maps.
        mask_at: where the masks are applied for scoring: "input" (the paper; G + 2 forward passes), a layer or its name (the
            features of x and blur(x) there are mixed by M'_l resized to their grid, only the rest of the network runs per
            group), "target" (the target layer), or "stage" (`stages.find_stage`).
        baseline: what masks uncover: "blur" (the paper), or "zero" (ours: zeros in place of the blurred image, or of its
            features behind a layer, which saves their forward pass).
        activation: what turns logits into p: "softmax" or "sigmoid" (multi-label and single-logit heads). Never guessed; outputs
            that are probabilities already are taken as they are, with a warning.
        output: where the logits are in what the network returns: key, index, attribute or callable.
        preprocess: applied to images before the network sees them, for modules that normalise inside.
        grid: (rows, columns) or (rows, columns, tokens in front) of the patches in outputs whose shape does not say it; taken as
            it is. None: found, and checked by changing patches of an image, at the first call.
        chunk: most images per forward pass. Default: the batch, but 64 to 256, fewer where memory is short; on a CPU at most
            400,000 pixels. Out of memory, halved until it fits.
        compile: run the passes of masked images through `torch.compile`, for `mask_at="input"`; they are filled up to passes of
            one size. Compiling takes half a minute or more at the first call; where it fails, passes are eager, with a warning.
            Default: False.
        precision: None (default) = the caller's, or "bf16-mixed" = passes in bfloat16 by autocast, of a network in float32, for
            the maps alone. Saliency arithmetic stays in float32; how far masks move: docs/evidence.md.

    Raises:
        ValueError: an argument out of range; more groups than channels; a layer without a grid; compile=True with masks
            elsewhere; precision="bf16-mixed" for float64 images.
        TypeError: a ScriptModule, or images that are not a floating-point tensor.

    Example::

        cam = GroupCAM(model)                        # layer found at the first call
        maps = cam(images, targets)                  # (N, C, H, W), (N,) -> (N, H, W) in [0, 1]
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Module | None = None,
        *,
        groups: int = 32,
        weights: Literal["gradient", "none"] = "gradient",
        denoise: float | None = 70.0,
        variant: Literal["paper", "head"] = "paper",
        mask_at: str | nn.Module = "input",
        baseline: Literal["blur", "zero"] = "blur",
        activation: Activation = "softmax",
        output: Output = None,
        preprocess: Callable[[Tensor], Tensor] | None = None,
        chunk: int | None = None,
        grid: Sequence[int] | None = None,
        compile: bool = False,
        precision: Literal["bf16-mixed"] | None = None,
    ) -> None:
        super().__init__(model, output, preprocess, chunk, grid)
        check_flag("compile", compile)
        check_choice("precision", precision, (None, "bf16-mixed"))
        check_choice("weights", weights, ("gradient", "none"))
        check_choice("variant", variant, ("paper", "head"))
        check_choice("baseline", baseline, ("blur", "zero"))
        check_choice("activation", activation, ("softmax", "sigmoid"))
        check_whole("groups", groups, 1)
        check_number("denoise", denoise, 0, 100, optional=True)
        self.layer = None if layer is None else layer_name(self.network, layer)
        self.groups, self.weights, self.variant, self.activation = groups, weights, variant, activation
        self.denoise = None if variant == "head" else denoise
        if mask_at not in ("input", "stage", "target"):
            mask_at = layer_name(self.network, mask_at)
        if compile and mask_at != "input":
            raise ValueError(
                f"compile=True is for masks on the input, whose passes run the whole network; mask_at={mask_at!r} makes none "
                "(the presets 'fast' and 'balanced' neither)"
            )
        self.mask_at, self.baseline, self.compile, self.precision = mask_at, baseline, compile, precision
        self.compiled = CompiledForward(self.network, self.forward) if compile else None
        self.layer_shape: tuple[int, ...] = ()  # (K, u, v) of the target layer, after the first call
        self.place = mask_at  # the layer that "stage" and "target" stand for, after the first call
        self.channels: Tensor | None = None  # another order of the channels before they are grouped (see `measure_fidelity`)
        self._tails: dict[str, TailKind] = {}  # by the layer, with how further inputs are nested behind its name
        self._structure: list[Any] = []  # of the network whose tails these are

    @classmethod
    def for_training(
        cls,
        model: nn.Module,
        layer: str | nn.Module | None = None,
        *,
        groups: int = 16,
        weights: Literal["gradient", "none"] = "none",
        mask_at: str | nn.Module = "input",
        **options: Any,
    ) -> GroupCAM:
        """As the paper maps in training (its section 5): gradient-free, 16 groups, no denoising; G + 2 forward passes."""
        return cls(model, layer, groups=groups, weights=weights, denoise=None, mask_at=mask_at, **options)

    def __call__(self, images: Tensor, targets: Targets = None, extra: Extras = None) -> Tensor:
        """Maps of a batch.

        Args:
            images: (N, C, H, W), floating point, as the network takes them; the shorter side at least 3.
            targets: what to explain (see `targets.read_target`): int, (N,) class indices, (N, classes) soft rows, None = each
                image's top-1, or a callable on the outputs, of any shape (n, ...), that gives one value per row, (n,). It is
                called with parts of the batch and masked copies, so it must treat rows alike; one with two arguments is
                also given the (n,) int64 indices of the rows' images in the batch, and may hold a thing per image.
            extra: what the network takes beside images, with one row per image on their device, cut and repeated with them: a
                tensor, a tuple or list of positional arguments, or a dict of keyword ones; see `extra.read_extra`.

        Returns:
            (N, H, W) in [0, 1], float32 (float64 for float64 images), on the images' device.
        """
        return minmax(self.raw(images, targets, extra))

    def raw(self, images: Tensor, targets: Targets = None, extra: Extras = None) -> Tensor:
        """The maps before they are scaled to [0, 1]: ReLU(sum of alpha_l M'_l), (N, H, W); arguments as for a call."""
        images, further = check_images(images, targets), read_extra(extra, images)
        if self.precision and images.dtype == torch.float64:
            raise ValueError(f"precision={self.precision!r} is for images and networks in float32, got {images.dtype}")
        with as_found(self.network, images.device), half_precision(images.device) if self.precision else nullcontext():
            images = usable(images)
            with self.passing(further.usable(), targets):
                maps = self.mapped(
                    images, lambda part, chunk: self._maps(images[part], targets_of(targets, part, len(images)), chunk)
                )
        self.recheck = False
        return torch.cat(maps) if maps else images.new_zeros(images[:, 0].shape, dtype=arithmetic(images))

    def _maps(self, images: Tensor, targets: Targets, chunk: int) -> Tensor:
        """Raw maps of one part of the batch; inside `as_found`."""
        if self.layer is None:
            self.layer = self.find(images)
        leaves = [self.layer] if self.weights == "gradient" else []
        if self.mask_at == "input":
            tail = None
            outputs, logits = self._observe(images, [self.layer], leaves=leaves)
        else:
            if self.place in ("stage", "target"):
                place = find_stage(self.network, self.layer, self.probed, images, self.stated) if self.place == "stage" else ""
                self.place = place or self.layer
            if self._structure != (now := structure(self.network)):
                self._structure, self._tails = now, {}
            tail = Tail(self.network, self.place, self.logits, self._tails.get(self.place + self.extra.kind), bool(self.extra))
            outputs, logits = self._observe(images, [self.layer, self.place], leaves=leaves, tail=tail)
            look = tail.kind == "pooled" and (self.recheck or images.device.type == "cpu")
            if look and not tail.still_pooled(images, outputs[self.place].detach(), logits.detach()):
                self._tails = {}
                return self._maps(images, targets, chunk)
        target = self.target(targets, images, logits, arithmetic(images), self.activation)
        masks = self._group_masks(images, outputs[self.layer], logits, target)
        scaled, alive = scale_as_enlarged(masks, images.shape[-2:])
        if tail is None:
            gains = self._gains_of_images(images, scaled, target, chunk)
        else:
            kept = outputs[self.place].detach()
            gains = self._gains_of_features(images, kept, logits.detach(), masks, scaled, target, tail, chunk)
        return self._sum(masks, scaled, alive, gains, images.shape[-2:])

    def _group_masks(self, images: Tensor, output: Tensor, logits: Tensor, target: Target) -> Tensor:
        """M_l of every group on the layer's own grid, denoised: (n, G, u, v)."""
        layer = str(self.layer)
        grid = self.grid(layer, output, images, matters=self.weights == "gradient")
        activations = grid.read(output.detach()).to(arithmetic(images))
        self.layer_shape = tuple(activations.shape[1:])
        if self.groups > activations.shape[1]:
            raise ValueError(f"groups={self.groups}, but layer {layer!r} has only {activations.shape[1]} channels")
        if self.weights == "gradient":
            slope = slopes_of(target.value, logits, [output], [layer])[0]
            activations = activations * grid.read(slope).to(activations.dtype).mean(dim=(2, 3), keepdim=True)
        if self.channels is not None:
            activations = activations.index_select(1, self.channels.to(activations.device))
        masks = torch.stack([group.sum(dim=1) for group in activations.tensor_split(self.groups, dim=1)], dim=1).relu()
        if self.denoise is None:
            return masks
        return masks * (masks > percentile(masks.flatten(2), self.denoise)[..., None])

    def _gains_of_images(self, images: Tensor, scaled: Tensor, target: Target, chunk: int) -> Tensor:
        """alpha_l of every group, (n, G), from masked images; as many groups per pass as `chunk` images hold."""
        dtype, count = scaled.dtype, len(images)
        # A blank image serves the whole batch, unless its logits depend on what comes with an image.
        blurred = blur(images) if self.baseline == "blur" else torch.zeros_like(images if self.extra else images[:1])
        kept, base = images.to(dtype), blurred.to(dtype)

        def masked(part: Tensor) -> list[Tensor]:
            masks = enlarge(part, images.shape[-2:]).unbind(dim=1)
            return [torch.lerp(base, kept, mask[:, None]).to(images.dtype) for mask in masks]

        if self.compiled is not None:
            rows = rows_of_a_pass(chunk, self.groups * count + len(blurred))
            logits = self._compiled_logits(blurred, (masked(part)[0] for part in scaled.split(1, dim=1)), rows).to(dtype)
            baseline = target.score(_for_each(logits[: len(blurred)], count))
            return _by_group(target, logits[len(blurred) :], count) - baseline[:, None]
        baseline = target.score(_for_each(self.logits(blurred).to(dtype), count))
        scores = []
        for part in scaled.split(max(1, chunk // count), dim=1):
            mixed = masked(part)
            logits = self.logits(torch.cat(mixed) if len(mixed) > 1 else mixed[0])
            scores.append(_by_group(target, logits.to(dtype), count))
        return torch.cat(scores, dim=1) - baseline[:, None]

    def _compiled_logits(self, first: Tensor, others: Iterable[Tensor], rows: int) -> Tensor:
        """Logits of `first` and then `others`, batches of images, in compiled passes of exactly `rows` images."""
        logits: list[Tensor] = []
        waiting, count, layout = first, len(first), torch.contiguous_format

        def run(images: Tensor, done: int) -> Tensor:
            """Logits of the rows behind the first `done`, which are whole copies of the batch, one after the other."""
            images = images.contiguous(memory_format=layout)
            if not self.extra:
                return self.logits(images, self.compiled)
            at = torch.arange(done, done + len(images), device=images.device) % self.extra.count
            with self.passing(self.extra[at]):
                return self.logits(images, self.compiled)

        for images in others:
            if images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous():
                layout = torch.channels_last  # one for all passes: another is another graph
            waiting, count = torch.cat([waiting, images]), count + len(images)
            while len(waiting) >= rows:
                logits.append(run(waiting[:rows], rows * len(logits)))
                waiting = waiting[rows:]
        if len(waiting):
            filled = torch.cat([waiting, waiting[-1:].expand(rows - len(waiting), -1, -1, -1)])
            logits.append(run(filled, rows * len(logits)))
        return torch.cat(logits)[:count]

    def _gains_of_features(
        self,
        images: Tensor,
        kept: Tensor,
        logits: Tensor,
        masks: Tensor,
        scaled: Tensor,
        target: Target,
        tail: Tail,
        chunk: int,
    ) -> Tensor:
        """The same behind a layer: features of the images (`kept`) are mixed with the baseline's, and the tail scores them."""
        dtype, count = scaled.dtype, len(images)
        grid = self.grid(tail.name, kept, images, matters=True)
        base, baseline = torch.zeros_like(kept), None
        if self.baseline == "blur":
            outputs, baseline = self._observe(blur(images), [tail.name])
            base = outputs[tail.name]
        known = tail.name + self.extra.kind
        if known not in self._tails:
            if not is_read(self.network, self.probed, images, tail.name):
                raise ValueError(
                    f"nothing that leads to the logits reads layer {tail.name!r}: maps of masks there would be empty"
                )
            self._tails[known] = self._check_tail(tail, images, kept, logits, base, grid.layout == "channels first")
        if baseline is None or tail.kind == "recorded":
            baseline = tail.run(images, base)
        lowest = target.score(baseline.to(dtype))[:, None]
        if tail.kind == "pooled" and tail.name == self.layer:
            # The mean of a mixed grid is the mean of the baseline's and the masks' share of the difference.
            with plain_arithmetic(images.device):
                shares = minmax(masks).flatten(2) / (grid.height * grid.width)
                change = torch.einsum("ncp,ngp->gnc", (kept.to(dtype) - base.to(dtype)).flatten(2), shares)
                means = (base.to(dtype).mean(dim=(2, 3)) + change).flatten(0, 1)[..., None, None]
            return _by_group(target, tail.run(images, means.to(kept.dtype)).to(dtype), count) - lowest
        step = 1 if tail.kind == "recorded" else max(1, 4 * chunk * images[0].numel() // kept.numel())
        scores = []
        for raw, part in zip(masks.split(step, dim=1), scaled.split(step, dim=1), strict=True):
            if tail.name == self.layer:
                small = minmax(raw)
            else:
                large = enlarge(part, images.shape[-2:])
                small = F.interpolate(large, (grid.height, grid.width), mode="bilinear", antialias=True)
            mixed = torch.cat([grid.mix(kept, base, mask[:, None]) for mask in small.unbind(dim=1)])
            scores.append(_by_group(target, tail.run(images, mixed).to(dtype), count))
        return torch.cat(scores, dim=1) - lowest

    def _check_tail(self, tail: Tail, images: Tensor, kept: Tensor, logits: Tensor, base: Tensor, grid: bool) -> TailKind:
        try:
            return tail.check(images, kept, logits, base, grid=grid)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            works = []
            for name in spatial_layers(self.network, self.probed, images)[-8:]:
                other = Tail(self.network, name, self.logits, nested=bool(self.extra))
                outputs, logits = self._observe(images, [name], tail=other)
                try:
                    other.check(images, outputs[name], logits, outputs[name], grid=False)
                except RuntimeError as refusal:
                    if is_out_of_memory(refusal):
                        raise
                    continue
                works.append(name)
            raise RuntimeError(
                f"{error}. Mask at "
                + (f"another layer, one of {works}, or at the input" if works else "the input: no late layer of it can be used")
            ) from error

    def _sum(self, masks: Tensor, scaled: Tensor, alive: Tensor, gains: Tensor, size: torch.Size) -> Tensor:
        """ReLU of the sum of the masks with their gains: (n, H, W)."""
        if self.variant == "head":
            gains, scaled = gains.relu(), torch.where(alive[..., None, None], masks, torch.zeros_like(masks))
        total = enlarge((gains[..., None, None] * scaled).sum(dim=1, keepdim=True), size)[:, 0].relu()
        # What is left of gains that cancel, or of masks that are zero there, is rounding: not a map.
        rounding = 16 * torch.finfo(total.dtype).eps * (gains.abs() * scaled.abs().amax(dim=(2, 3))).sum(dim=1)
        return torch.where((total.amax(dim=(1, 2)) > rounding)[:, None, None], total, torch.zeros_like(total))


class GradCAM(CAM):
    """Grad-CAM: minmax(upsample(ReLU(sum_k w_k A_k))), w_k = mean over positions of dy/dA_k, y the logit before softmax.

    Only what follows the layer is differentiated; parameters and `.grad` stay untouched, and frozen networks work.

    Args:
        model: any classifier; compiled, DDP and DataParallel wrappers are looked through.
        layer: the target layer, by name or as a module; a list of several (one pass, one map each); or None, as for
            `GroupCAM`.
        sign: 1 explains what speaks for the target, -1 what speaks against it (counterfactual, weights from -dy/dA_k).
        output: where the logits are in what the network returns: key, index, attribute or callable.
        preprocess: applied to images before the network sees them.
        grid: (rows, columns) or (rows, columns, tokens in front) of the patches in outputs whose shape does not say it; taken as
            it is. None: found, and checked by changing patches of an image, at the first call.
        chunk: most images per forward pass. Default: the batch, but 64 to 256, fewer where memory is short; on a CPU at most
            400,000 pixels. Out of memory, halved until it fits.

    Raises:
        ValueError: an argument out of range; a layer without a grid, or one that the logits do not depend on.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Module | Sequence[str | nn.Module] | None = None,
        *,
        sign: Literal[1, -1] = 1,
        output: Output = None,
        preprocess: Callable[[Tensor], Tensor] | None = None,
        chunk: int | None = None,
        grid: Sequence[int] | None = None,
    ) -> None:
        super().__init__(model, output, preprocess, chunk, grid)
        check_choice("sign", sign, (1, -1))
        self.layer: str | list[str] | None
        if layer is None:
            self.layer = None
        elif isinstance(layer, str | nn.Module):
            self.layer = layer_name(self.network, layer)
        elif layer:
            self.layer = [layer_name(self.network, one) for one in layer]
        else:
            raise ValueError("layer is an empty list; give at least one name, or None to have one found")
        self.sign = sign

    def __call__(self, images: Tensor, targets: Targets = None, extra: Extras = None) -> Tensor | list[Tensor]:
        """Maps of a batch, arguments as for `GroupCAM`.

        Returns:
            (N, H, W) in [0, 1], float32 (float64 for float64 images), on the images' device; a list of them, in order, if
            `layer` is a list.
        """
        maps = self.per_layer(images, targets, extra)
        return maps if isinstance(self.layer, list) else maps[0]

    def per_layer(self, images: Tensor, targets: Targets = None, extra: Extras = None) -> list[Tensor]:
        """Maps of a batch, one tensor (N, H, W) a layer; arguments as for a call."""
        return [minmax(enlarge(raw[:, None], images.shape[-2:])[:, 0]) for raw in self._raw_per_layer(images, targets, extra)]

    def raw(self, images: Tensor, targets: Targets = None, extra: Extras = None) -> Tensor | list[Tensor]:
        """ReLU(sum_k w_k A_k) on the layer's own grid, (N, u, v), not scaled; arguments and lists as for a call."""
        maps = self._raw_per_layer(images, targets, extra)
        return maps if isinstance(self.layer, list) else maps[0]

    def weights(self, images: Tensor, targets: Targets = None, extra: Extras = None) -> Tensor | list[Tensor]:
        """The neuron importance weights w_k, times `sign`; arguments and lists as for a call.

        ReLU(sum over k of w_k A_k) is the map (`raw`); the A_k are `activations`.

        Returns:
            (N, K), float32 (float64 for float64 images), of any size and sign.
        """
        weights = self._per_layer(lambda part, rows, names: self._weigh(part, rows, names)[0], images, targets, extra)
        if not weights:
            raise ValueError("images holds no image: give at least one")
        return weights if isinstance(self.layer, list) else weights[0]

    def activations(self, images: Tensor, extra: Extras = None) -> Tensor | list[Tensor]:
        """The activations A_k of the layer on its own grid, (N, K, u, v), as the map is made of them; lists as for a call."""

        def read(part: Tensor, _targets: Targets, names: list[str]) -> list[Tensor]:
            outputs, _ = self._observe(part, names)
            return [self.grid(name, outputs[name], part, matters=True).read(outputs[name]) for name in names]

        activations = self._per_layer(read, images, None, extra)
        if not activations:
            raise ValueError("images holds no image: give at least one")
        return activations if isinstance(self.layer, list) else activations[0]

    def _raw_per_layer(self, images: Tensor, targets: Targets, extra: Extras) -> list[Tensor]:
        def work(part: Tensor, of_part: Targets, names: list[str]) -> list[Tensor]:
            weighed = zip(*self._weigh(part, of_part, names), strict=True)
            return [(weights[..., None, None] * activations).sum(dim=1).relu() for weights, activations in weighed]

        maps = self._per_layer(work, images, targets, extra)
        empty = images.new_zeros(images[:, 0].shape, dtype=arithmetic(images))
        return maps or [empty] * (len(self.layer) if isinstance(self.layer, list) else 1)

    def _per_layer(
        self, work: Callable[[Tensor, Targets, list[str]], list[Tensor]], images: Tensor, targets: Targets, extra: Extras
    ) -> list[Tensor]:
        """`work(images, their targets, layers)`, a tensor a layer, on parts of the batch that fit into a pass; put together."""
        images, further = check_images(images, targets), read_extra(extra, images)
        with as_found(self.network, images.device):
            images = usable(images)

            def on(rows: slice, _chunk: int) -> list[Tensor]:
                if self.layer is None:
                    self.layer = self.find(images[rows])
                names = [self.layer] if isinstance(self.layer, str) else self.layer
                return work(images[rows], targets_of(targets, rows, len(images)), names)

            with self.passing(further.usable(), targets):
                results = self.mapped(images, on)
        self.recheck = False
        return [torch.cat(parts) for parts in zip(*results, strict=True)]

    def _weigh(self, images: Tensor, targets: Targets, names: list[str]) -> tuple[list[Tensor], list[Tensor]]:
        """Weights (n, K) and activations (n, K, u, v) of each layer; inside `as_found`."""
        outputs, logits = self._observe(images, names, leaves=names)
        grids = {name: self.grid(name, output, images, matters=True) for name, output in outputs.items()}
        target = self.target(targets, images, logits, arithmetic(images), "sigmoid")
        slopes = dict(zip(outputs, slopes_of(target.value, logits, list(outputs.values()), list(outputs)), strict=True))
        weights = [self.sign * grids[name].read(slopes[name]).to(arithmetic(images)).mean(dim=(2, 3)) for name in names]
        return weights, [grids[name].read(outputs[name].detach()) for name in names]


def _for_each(logits: Tensor, count: int) -> Tensor:
    """Logits (n, ...) of each image, from those of as many or of one that stands for all."""
    return logits.expand(count, *logits.shape[1:])


def _by_group(target: Target, logits: Tensor, count: int) -> Tensor:
    """Scores (n, groups) from logits (groups n, classes), group by group."""
    copies = len(logits) // count
    return target.part(slice(None), copies=copies).score(logits).view(copies, count).t()
