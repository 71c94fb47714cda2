"""Saliency maps: Group-CAM (Zhang et al. 2021, arXiv 2103.13859) and Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391).

Images in, maps out: every call borrows the network in evaluation mode and gives it back as it was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groupcam_aug.blur import blur
from groupcam_aug.borrow import as_found, capture, unwrap
from groupcam_aug.layers import find_layer, find_stage, get_layer, read_grid, spatial_layers
from groupcam_aug.tail import Tail
from groupcam_aug.targets import Activation, Target, Targets, read_target, select_output

__all__ = ["GradCAM", "GroupCAM", "check_images", "grad_cam", "group_cam", "minmax", "percentile"]

Output = str | int | Callable[[Any], Tensor] | None
# Masks (n, c, u, v), and the same upsampled and scaled (n, c, H, W) -> logits (c n, classes), group by group.
_Scorer = Callable[[Tensor, Tensor], Tensor]
_CHUNK = 64  # images per forward pass: enough to fill a GPU, far below what training the same network needs
_CPU_PIXELS = 400_000  # on a CPU larger batches leave the caches: ResNet-50 at 224 pixels took .15 s an image in 8, .25 in 64


def group_cam(model: nn.Module, images: Tensor, targets: Targets = None, layer: str | None = None, **options: Any) -> Tensor:
    """Group-CAM maps in one call; `options` are those of the class `GroupCAM`.

    Returns:
        (N, H, W) float32 (float64 for float64 images) in [0, 1] on the images' device; zeros where an image has no map.
    """
    return GroupCAM(model, layer, **options)(images, targets)


def grad_cam(model: nn.Module, images: Tensor, targets: Targets = None, layer: str | None = None, **options: Any) -> Tensor:
    """Grad-CAM maps in one call; `options` are those of the class `GradCAM`.

    Returns:
        (N, H, W) float32 (float64 for float64 images) in [0, 1] on the images' device; zeros where an image has no map.
    """
    maps = GradCAM(model, layer, **options)(images, targets)
    assert isinstance(maps, Tensor)  # for the type checker: one layer in, one tensor out
    return maps


class _CAM:
    """What both methods share: the borrowed network, its output, the parts of a batch, one observed forward pass."""

    def __init__(
        self, model: nn.Module, output: Output, preprocess: Callable[[Tensor], Tensor] | None, chunk: int | None
    ) -> None:
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk must be at least 1 image per forward pass, got {chunk}")
        self.network = unwrap(model)
        self.output, self.preprocess, self.chunk = output, preprocess, chunk
        self.recheck = True  # look at the values of targets on an accelerator at the next call (it waits for the device)

    def logits(self, images: Tensor) -> Tensor:
        """Logits of the network in the caller's precision, whatever they are wrapped in."""
        return select_output(self.network(images if self.preprocess is None else self.preprocess(images)), self.output)

    def passes(self, images: Tensor) -> int:
        """Most images per forward pass."""
        if self.chunk is not None:
            return self.chunk
        if images.device.type != "cpu":
            return _CHUNK
        return max(1, min(_CHUNK, _CPU_PIXELS // (images.shape[-2] * images.shape[-1])))

    def parts(self, images: Tensor) -> Iterator[slice]:
        """The batch in parts of at most `chunk` images."""
        chunk = self.passes(images)
        return (slice(start, start + chunk) for start in range(0, len(images), chunk))

    def _observe(
        self, images: Tensor, layers: Sequence[str], *, slopes: bool = False, tail: Tail | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """One pass: the outputs of `layers`, and the logits. With `slopes` the graph begins at the first of the layers."""
        # The hook behind `_leaf` switches gradients on in the middle of the pass; leaving this block switches them off again.
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if tail is not None:
                stack.enter_context(tail.recording())
            seen = {
                name: stack.enter_context(capture(self.network.get_submodule(name), name, replace=_leaf if slopes else None))
                for name in dict.fromkeys(layers)
            }
            logits = self.logits(images)
        silent = [name for name, layer in seen.items() if not layer.calls]
        if silent:
            fired = spatial_layers(self.network, self.logits, images)
            raise RuntimeError(
                f"layer {silent[0]!r} never fired during the forward pass: nothing calls it in eval mode. "
                f"Layers that did, the last ones: {fired[-6:]}"
            )
        return {name: layer.one() for name, layer in seen.items()}, logits

    def target(self, targets: Targets, part: slice, logits: Tensor, dtype: torch.dtype, activation: Activation) -> Target:
        """The targets of one part, checked against its logits."""
        own = targets[part] if isinstance(targets, Tensor | list | tuple) else targets
        return read_target(own, logits.detach().to(dtype), activation, check=self.recheck)


class GroupCAM(_CAM):
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
        layer: name of the target layer as in `model.named_modules()`. None: see `layers.find_layer`; the choice is in
            `.layer` after the first call.
        groups: G, 1 to the number of channels of the layer. Default: 32.
        weights: "gradient" (the paper's explanation form) or "none" (its training form).
        denoise: theta in [0, 100], or None for no denoising. Default: 70.
        variant: "paper", or "head" = the authors' later code: no denoising, alpha_l clipped at 0, sum over unscaled maps.
        mask_at: where the masks are applied for scoring: "input" (the paper; G + 2 forward passes), a layer's name (the
            features of x and blur(x) there are mixed by M'_l resized to their grid, only the rest of the network runs per
            group), "target" (the target layer), or "stage" (`layers.find_stage`).
        activation: what turns logits into p: "softmax" or "sigmoid" (multi-label and single-logit heads). Never guessed.
        output: where the logits are in what the network returns: key, index, attribute or callable.
        preprocess: applied to images before the network sees them, for modules that normalise inside.
        chunk: most images per forward pass. Default: 64; on a CPU at most 400,000 pixels.

    Raises:
        ValueError: an argument out of range; more groups than channels; a layer without a grid.
        TypeError: a ScriptModule, or images that are not a floating-point tensor.

    Example::

        cam = GroupCAM(model)                        # layer found at the first call
        maps = cam(images, targets)                  # (N, C, H, W), (N,) -> (N, H, W) in [0, 1]
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | None = None,
        *,
        groups: int = 32,
        weights: Literal["gradient", "none"] = "gradient",
        denoise: float | None = 70.0,
        variant: Literal["paper", "head"] = "paper",
        mask_at: str = "input",
        activation: Activation = "softmax",
        output: Output = None,
        preprocess: Callable[[Tensor], Tensor] | None = None,
        chunk: int | None = None,
    ) -> None:
        super().__init__(model, output, preprocess, chunk)
        _check_choice("weights", weights, ("gradient", "none"))
        _check_choice("variant", variant, ("paper", "head"))
        _check_choice("activation", activation, ("softmax", "sigmoid"))
        if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
            raise ValueError(f"groups must be a positive integer, got {groups!r}")
        if denoise is not None and not 0 <= denoise <= 100:
            raise ValueError(f"denoise is a percentile, 0 to 100 or None, got {denoise}")
        self.layer, self.groups, self.weights, self.variant, self.activation = layer, groups, weights, variant, activation
        self.denoise = None if variant == "head" else denoise
        if layer is not None:
            get_layer(self.network, layer)
        if mask_at not in ("input", "stage", "target"):
            get_layer(self.network, mask_at)
        self.mask_at = mask_at
        self.layer_shape: tuple[int, ...] = ()  # (K, u, v) of the target layer, after the first call
        self.place = mask_at  # the layer that "stage" and "target" stand for, after the first call
        self._split_checked: set[str] = set()

    @classmethod
    def for_training(
        cls,
        model: nn.Module,
        layer: str | None = None,
        *,
        groups: int = 16,
        weights: Literal["gradient", "none"] = "none",
        mask_at: str = "input",
        **options: Any,
    ) -> GroupCAM:
        """The paper's training form (its section 5): gradient-free, 16 groups, no denoising; G + 2 forward passes."""
        return cls(model, layer, groups=groups, weights=weights, denoise=None, mask_at=mask_at, **options)

    def __call__(self, images: Tensor, targets: Targets = None) -> Tensor:
        """Maps of a batch.

        Args:
            images: (N, C, H, W), floating point, as the network takes them; the shorter side at least 3.
            targets: what to explain (see `targets.read_target`): int, (N,) class indices, (N, classes) weights, a callable
                on the logits (called with parts of the batch, so it must treat rows alike), or None = each image's top-1.

        Returns:
            (N, H, W) in [0, 1], float32 (float64 for float64 images), on the images' device.
        """
        return minmax(self.raw(images, targets))

    def raw(self, images: Tensor, targets: Targets = None) -> Tensor:
        """The maps before they are scaled to [0, 1]: ReLU(sum of alpha_l M'_l), (N, H, W); arguments as for a call."""
        images = check_images(images, targets)
        with as_found(self.network, images.device):
            images = _usable(images)
            maps = [self._maps(images[part], targets, part) for part in self.parts(images)]
        self.recheck = False
        return torch.cat(maps) if maps else images.new_zeros(images[:, 0].shape, dtype=_arithmetic(images))

    def _maps(self, images: Tensor, targets: Targets, part: slice) -> Tensor:
        """Maps of one part of the batch; inside `as_found`."""
        if self.layer is None:
            self.layer = find_layer(self.network, self.logits, images)
        if self.mask_at == "input":
            outputs, logits = self._observe(images, [self.layer], slopes=self.weights == "gradient")
        else:
            if self.place in ("stage", "target"):
                self.place = self.layer if self.place == "target" else find_stage(self.network, self.layer)
            tail = Tail(self.network, self.place, self.logits)
            outputs, logits = self._observe(images, [self.layer, self.place], slopes=self.weights == "gradient", tail=tail)
        target = self.target(targets, part, logits, _arithmetic(images), self.activation)
        masks = self._group_masks(images, outputs[self.layer], logits, target)
        if self.mask_at == "input":
            return self._combine(images, masks, target, *self._score_images(images))
        return self._combine(
            images, masks, target, *self._score_features(images, outputs[self.place].detach(), logits.detach(), tail)
        )

    def _group_masks(self, images: Tensor, output: Tensor, logits: Tensor, target: Target) -> Tensor:
        """M_l of every group on the layer's own grid, denoised: (n, G, u, v)."""
        assert self.layer is not None  # for the type checker
        grid = read_grid(output, (images.shape[-2], images.shape[-1]), self.layer)
        activations = grid.read(output.detach()).to(_arithmetic(images))
        self.layer_shape = tuple(activations.shape[1:])
        if self.groups > activations.shape[1]:
            raise ValueError(f"groups={self.groups}, but layer {self.layer!r} has only {activations.shape[1]} channels")
        if self.weights == "gradient":
            slope = _slopes(target.value, logits, [output], [self.layer])[0]
            activations = activations * grid.read(slope).to(activations.dtype).mean(dim=(2, 3), keepdim=True)
        masks = torch.stack([group.sum(dim=1) for group in activations.tensor_split(self.groups, dim=1)], dim=1).relu()
        if self.denoise is None:
            return masks
        return masks * (masks > percentile(masks.flatten(2), self.denoise)[..., None])

    def _score_images(self, images: Tensor) -> tuple[Tensor, _Scorer, int]:
        """Logits of the blurred images, the scorer of masked images, and how many groups go into one pass."""
        dtype = _arithmetic(images)
        blurred = blur(images)
        kept, base = images.to(dtype), blurred.to(dtype)

        def score(_raw: Tensor, masks: Tensor) -> Tensor:
            mixed = [torch.lerp(base, kept, mask[:, None]).to(images.dtype) for mask in masks.unbind(dim=1)]
            return self.logits(torch.cat(mixed) if len(mixed) > 1 else mixed[0])

        return self.logits(blurred), score, max(1, self.passes(images) // len(images))

    def _score_features(self, images: Tensor, kept: Tensor, logits: Tensor, tail: Tail) -> tuple[Tensor, _Scorer, int]:
        """The same behind a layer: features of the images (`kept`) and of the blurred images are mixed, the tail scores them."""
        grid = read_grid(kept, (images.shape[-2], images.shape[-1]), tail.name)
        if tail.name not in self._split_checked:
            tail.check(images, kept, logits)
            self._split_checked.add(tail.name)
        base = self._observe(blur(images), [tail.name])[0][tail.name]

        def score(raw: Tensor, masks: Tensor) -> Tensor:
            if tail.name == self.layer:
                small = minmax(raw)
            else:
                small = F.interpolate(masks, (grid.height, grid.width), mode="bilinear", antialias=True)
            return tail.run(images, grid.mix(kept, base, small))

        return tail.run(images, base), score, 1

    def _combine(self, images: Tensor, masks: Tensor, target: Target, baseline: Tensor, score: _Scorer, step: int) -> Tensor:
        """Steps 4 to 6: upsample and scale each mask, score it, add it up with its gain; `step` groups at a time."""
        count, size = len(images), images.shape[-2:]
        base = target.score(baseline.to(masks.dtype))
        total = masks.new_zeros(count, *size)
        for raw in masks.split(step, dim=1):
            upsampled = F.interpolate(raw, size, mode="bilinear", align_corners=False)
            scaled = minmax(upsampled)
            logits = score(raw, scaled).to(masks.dtype)
            scores = target.part(slice(None), copies=raw.shape[1]).score(logits)
            gain = scores.view(-1, count).t() - base[:, None]
            if self.variant == "head":
                gain = gain.relu()
            gain = torch.where(scaled.amax(dim=(2, 3)) > 0, gain, torch.zeros_like(gain))  # a dead group has weight 0
            total += (gain[..., None, None] * (upsampled if self.variant == "head" else scaled)).sum(dim=1)
        return total.relu()


class GradCAM(_CAM):
    """Grad-CAM: minmax(upsample(ReLU(sum_k w_k A_k))), w_k = mean over positions of dy/dA_k, y the logit before softmax.

    Only what follows the layer is differentiated; parameters and `.grad` stay untouched, and frozen networks work.

    Args:
        model: any classifier; compiled, DDP and DataParallel wrappers are looked through.
        layer: name of the target layer, several names (one pass, one map each), or None (see `layers.find_layer`).
        sign: 1 explains what speaks for the target, -1 what speaks against it (counterfactual, weights from -dy/dA_k).
        output: where the logits are in what the network returns: key, index, attribute or callable.
        preprocess: applied to images before the network sees them.
        chunk: most images per forward pass. Default: 64; on a CPU at most 400,000 pixels.

    Raises:
        ValueError: an argument out of range; a layer without a grid, or one that the logits do not depend on.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | Sequence[str] | None = None,
        *,
        sign: Literal[1, -1] = 1,
        output: Output = None,
        preprocess: Callable[[Tensor], Tensor] | None = None,
        chunk: int | None = None,
    ) -> None:
        super().__init__(model, output, preprocess, chunk)
        if sign not in (1, -1):
            raise ValueError(f"sign must be 1 or -1, got {sign!r}")
        for name in [] if layer is None else [layer] if isinstance(layer, str) else layer:
            get_layer(self.network, name)
        if layer is not None and not isinstance(layer, str) and not layer:
            raise ValueError("layer is an empty list; give at least one name, or None to have one found")
        self.layer: str | list[str] | None = layer if layer is None or isinstance(layer, str) else list(layer)
        self.sign = sign

    def __call__(self, images: Tensor, targets: Targets = None) -> Tensor | list[Tensor]:
        """Maps of a batch, arguments as for `GroupCAM`.

        Returns:
            (N, H, W) in [0, 1], float32 (float64 for float64 images), on the images' device; a list of them, in order, if
            `layer` is a list.
        """
        raw, size = self.raw(images, targets), images.shape[-2:]
        if isinstance(raw, Tensor):
            return _enlarged(raw, size)
        return [_enlarged(maps, size) for maps in raw]

    def raw(self, images: Tensor, targets: Targets = None) -> Tensor | list[Tensor]:
        """ReLU(sum_k w_k A_k) on the layer's own grid, (N, u, v), not scaled; arguments and lists as for a call."""
        images = check_images(images, targets)
        with as_found(self.network, images.device):
            images = _usable(images)
            maps = [self._maps(images[part], targets, part) for part in self.parts(images)]
        self.recheck = False
        names = self.layer if isinstance(self.layer, list) else [self.layer]
        empty = images.new_zeros(images[:, 0].shape, dtype=_arithmetic(images))
        joined = [torch.cat([part[i] for part in maps]) if maps else empty for i in range(len(names))]
        return joined if isinstance(self.layer, list) else joined[0]

    def _maps(self, images: Tensor, targets: Targets, part: slice) -> list[Tensor]:
        if self.layer is None:
            self.layer = find_layer(self.network, self.logits, images)
        names = [self.layer] if isinstance(self.layer, str) else self.layer
        size = (images.shape[-2], images.shape[-1])
        outputs, logits = self._observe(images, names, slopes=True)
        grids = {name: read_grid(output, size, name) for name, output in outputs.items()}
        target = self.target(targets, part, logits, _arithmetic(images), "sigmoid")
        slopes = dict(zip(outputs, _slopes(target.value, logits, list(outputs.values()), list(outputs)), strict=True))
        maps = []
        for name in names:
            weights = self.sign * grids[name].read(slopes[name]).to(_arithmetic(images)).mean(dim=(2, 3), keepdim=True)
            maps.append((weights * grids[name].read(outputs[name].detach())).sum(dim=1).relu())
        return maps


def _enlarged(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Raw maps (N, u, v) as maps (N, H, W) in [0, 1]."""
    return minmax(F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False))[:, 0]


def minmax(maps: Tensor) -> Tensor:
    """Each map of (..., H, W) rescaled to [0, 1] by itself; a constant map, or one with NaN or infinity, becomes zeros."""
    low, high = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    spread = high - low
    usable = (spread > 0) & torch.isfinite(spread)
    scaled = (maps - low) / torch.where(usable, spread, torch.ones_like(spread))
    return torch.where(usable, scaled, torch.zeros_like(scaled))


def check_images(images: Tensor, targets: Targets = None) -> Tensor:
    """`images` as a plain detached tensor, if they are a floating-point batch (N, C, H, W) and `targets` are as many.

    Raises:
        TypeError: no tensor, or integers (uint8 pixels not yet scaled and normalised).
        ValueError: another number of dimensions, or a list or tensor of targets of another length.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor (N, C, H, W), got {type(images).__name__}")
    if not images.is_floating_point():
        raise TypeError(
            f"images must be floating point as the network takes them, got {images.dtype}. Scale and normalise them first "
            "(torchvision.transforms.v2.ToDtype(torch.float32, scale=True), then Normalize)"
        )
    if images.ndim != 4:
        raise ValueError(f"images must be a batch (N, C, H, W), got the shape {tuple(images.shape)}")
    count = targets.shape[0] if isinstance(targets, Tensor) and targets.ndim else None
    count = len(targets) if isinstance(targets, list | tuple) else count
    if count is not None and count != len(images):
        raise ValueError(f"{count} targets for {len(images)} images: give one target per image, or a single int for all")
    return images.as_subclass(Tensor).detach()


def _usable(images: Tensor) -> Tensor:
    """Outside inference mode, so that autograd may start from what the network makes of them."""
    return images.clone() if images.is_inference() else images


def _arithmetic(images: Tensor) -> torch.dtype:
    return torch.float64 if images.dtype == torch.float64 else torch.float32


def _leaf(output: Tensor) -> Tensor:
    """A capture's replacement that starts a graph at its layer, unless one has already started at an earlier layer."""
    torch.set_grad_enabled(True)
    return output if output.requires_grad else output.detach().requires_grad_()


def _slopes(value: Callable[[Tensor], Tensor], logits: Tensor, outputs: list[Tensor], names: list[str]) -> list[Tensor]:
    """dy/dA for each captured output; rows do not mix in eval mode, so one backward pass over the sum serves the batch."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    slopes: tuple[Tensor | None, ...] = (None,) * len(outputs)
    if logits.requires_grad:
        with torch.enable_grad():
            total = value(logits.to(dtype)).sum()
        slopes = torch.autograd.grad(total, outputs, allow_unused=True)
    for name, slope in zip(names, slopes, strict=True):
        if slope is None:
            raise ValueError(
                f"the logits do not depend on layer {name!r}, or the network detaches what follows it: no gradient there. "
                "Choose another layer, or weights='none'"
            )
    return [slope for slope in slopes if slope is not None]


def percentile(values: Tensor, theta: float) -> Tensor:
    """The theta-percentile over the last dimension, kept, with linear interpolation as `numpy.percentile`.

    Not `torch.quantile`, which refuses more than 16 million elements.
    """
    ordered = values.sort(dim=-1).values
    position = theta / 100 * (values.shape[-1] - 1)
    below = int(position)
    above = min(below + 1, values.shape[-1] - 1)
    return torch.lerp(ordered[..., below : below + 1], ordered[..., above : above + 1], position - below)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")
