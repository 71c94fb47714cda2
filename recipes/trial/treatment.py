"""What an arm does to the batches of one run, with the very `SaliencyBlur` and `GroupCAM` that the callback uses."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision.transforms import v2

from groupcam_aug import GradCAM, GroupCAM, SaliencyBlur
from groupcam_aug.augment import Augmented, MaskFrom, keep_mask
from groupcam_aug.moving_average import moving_average
from groupcam_aug.recipes.trial.arms import Arm
from groupcam_aug.recipes.trial.training import seeded

__all__ = ["Treatment"]

SPREAD = 0.1  # of the erased share around its mean, like the kept shares of masks (standard deviation about 0.1)


class Treatment:
    """An arm at work. Draws follow from (seed, step) alone, so arms with the same `p` augment the same images.

    Args:
        arm: any but "none" and "frozen".
        network: the one in training; never changed.
        seed: of the arm's draws.
        epochs: of the run.
        per_epoch: steps of an epoch.
        warmup: epochs before augmentation starts, unless the arm says otherwise.
        classes: number of classes.
        sources: frozen networks by name ("teacher", "few").

    Raises:
        ValueError: augmentation would never start, or the arm's source is not there.
    """

    def __init__(
        self,
        arm: Arm,
        network: nn.Module,
        *,
        seed: int,
        epochs: int,
        per_epoch: int,
        warmup: int,
        classes: int,
        sources: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.arm, self.network, self.seed, self.per_epoch = arm, network, seed, per_epoch
        self.first = warmup if arm.warmup is None else arm.warmup
        self.last = epochs - (max(1, round(arm.clean_last * epochs)) if arm.clean_last else 0)
        if self.first >= self.last:
            raise ValueError(f"arm {arm.name}: no epoch of {epochs} is left to augment from {self.first} to before {self.last}")
        self.average: AveragedModel | None = None
        self.mapped: nn.Module | None = network if arm.source == "self" else None
        if arm.kind == "map" and arm.mask != "whole" and arm.map != "oracle":
            self._find_source(sources or {})
        self.cam: Any = None
        self.labels = self.masks = torch.empty(0)
        form: dict[str, Any] = {"strength": arm.strength, "threshold": arm.threshold, "fill": arm.fill}
        kinds: tuple[MaskFrom, ...] = ("saliency", "other", "centre", "whole", "inverse")
        self.forms: dict[Any, SaliencyBlur] = {kind: SaliencyBlur(self._map, mask_from=kind, **form) for kind in kinds}
        self.classes = classes
        self.cutmix = v2.CutMix(alpha=arm.alpha, num_classes=classes)
        self.share = arm.area or 0.0  # to be erased
        self.sums: dict[str, Tensor] = {}

    def apply(self, images: Tensor, labels: Tensor, masks: Tensor | None, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """The batch to train on.

        Args:
            images: (N, 3, H, W), normalised.
            labels: (N,) int64.
            masks: (N, H, W) bool, true on the object, or None.
            epoch: from 0.
            step: from 0, over the whole run.

        Returns:
            Images, and labels (N,), or rows (N, classes) that sum to 1 (CutMix, labels="mixed").
        """
        if not self.first <= epoch < self.last:
            return images, labels
        p = self.arm.p
        if self.arm.p_ramp:
            done = (step - self.first * self.per_epoch) / (self.arm.p_ramp * (self.last - self.first) * self.per_epoch)
            p *= min(1.0, done)
        draw = seeded(self.seed, 2, step)
        if self.arm.kind == "cutmix":
            return self._mix(images, labels, p, draw)
        if self.arm.kind == "erase":
            if self.arm.area is None and step == epoch * self.per_epoch:
                self._match_area(images, labels)
            return self._erase(images, p, draw), labels
        if self.arm.source == "early" and self.mapped is None:
            self.mapped = _frozen(self.network)
        return self._replace(images, labels, masks, p, draw)

    def after_step(self) -> None:
        """Let an average follow."""
        if self.average is not None:
            self.average.update_parameters(self.network)

    def facts(self) -> dict[str, float | None]:
        """Means over all augmented images of the run.

        ``augmented`` (images), ``replaced`` (share of the pixels), ``no_map`` (share of the images), and where objects are known
        ``object_kept`` and ``ground_replaced`` (shares of object and background pixels) and ``alignment`` (map energy on the
        object over the object's area; 1 = a map that says nothing).
        """
        sums = {name: float(total) for name, total in self.sums.items()}
        count = sums.get("images", 0.0)
        facts: dict[str, float | None] = {"augmented": count}
        if count and "pixels" in sums:
            facts["replaced"] = sums["replaced"] / sums["pixels"]
            facts["no_map"] = sums.get("no_map", 0.0) / count
        if count and "object" in sums:
            facts["object_kept"] = sums["object_kept"] / sums["object"] if sums["object"] else None
            facts["ground_replaced"] = sums["ground_replaced"] / (sums["pixels"] - sums["object"])
            facts["alignment"] = sums["inside"] / sums["area"] if sums["area"] else None
        return facts

    def _find_source(self, sources: Mapping[str, nn.Module]) -> None:
        arm = self.arm
        if arm.source == "ema":
            self.average = moving_average(self.network, arm.decay)
            self.mapped = self.average.module
        elif arm.source == "start":
            self.mapped = _frozen(self.network)
        elif arm.source in ("teacher", "few"):
            if arm.source not in sources:
                raise ValueError(f"arm {arm.name}: this regime has no {arm.source!r} network")
            self.mapped = _frozen(sources[arm.source])
        elif arm.source == "early" and not self.first:
            raise ValueError(f"arm {arm.name}: source=early without warm-up epochs is source=start; give warmup=1 or more")

    def _replace(
        self, images: Tensor, labels: Tensor, masks: Tensor | None, p: float, draw: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        arm, count = self.arm, len(images)
        index = (torch.rand(count, generator=draw) < p).nonzero()[:, 0]  # as `SaliencyBlur.draw`, for a p that may grow
        if not len(index):
            return images, labels
        if arm.map == "oracle" and masks is None:
            raise ValueError(f"arm {arm.name}: this regime knows no object masks")
        self.labels, self.masks = labels, labels if masks is None else masks
        positions = torch.arange(count, device=images.device)  # in place of targets: `_map` looks labels and masks up itself
        kind = "saliency" if arm.mask == "shifted" else arm.mask
        if not arm.inverse_share and not arm.other_share:
            done = self.forms[kind].apply(images, positions, index, draw)
            self._count(done, images, masks)
            return done.images, self.forms[kind].mixed_labels(labels, done, self.classes) if arm.labels == "mixed" else labels
        chance, result = torch.rand(len(index), generator=draw), images.clone()
        inverse, other = chance < arm.inverse_share, chance >= 1 - arm.other_share
        for part, form in ((~inverse & ~other, "saliency"), (inverse, "inverse"), (other, "other")):
            if part.any():
                done = self.forms[form].apply(images, positions, index[part], draw)
                at = index[part].to(images.device)
                result[at] = done.images[at]
                self._count(done, images, masks)
        return result, labels

    def _map(self, images: Tensor, positions: Tensor) -> Tensor:
        """Maps (n, H, W) in [0, 1] for the images at these positions of the batch."""
        if self.arm.map == "oracle":
            maps = self.masks[positions].float()
        else:
            if self.cam is None:
                self.cam = self._make_cam()
            maps = self.cam(images, self.labels[positions])
        if self.arm.mask == "shifted":
            maps = maps.roll((maps.shape[1] // 2, maps.shape[2] // 2), dims=(1, 2))
        return maps

    def _make_cam(self) -> Any:
        arm = self.arm
        assert self.mapped is not None  # for the type checker: found at construction or when augmentation started
        if arm.map == "gradcam":
            return GradCAM(self.mapped)
        return GroupCAM.for_training(self.mapped, groups=arm.groups, weights=arm.weights, mask_at=arm.at, baseline=arm.baseline)

    def _match_area(self, images: Tensor, labels: Tensor) -> None:
        """The share to erase in this epoch: what the fast form's masks would replace in its first batch."""
        if self.cam is None:
            self.cam = GroupCAM.for_training(self.network, mask_at="target", baseline="zero")
        self.share = 1 - float(keep_mask(self.cam(images, labels)).float().mean())

    def _erase(self, images: Tensor, p: float, draw: torch.Generator) -> Tensor:
        index = (torch.rand(len(images), generator=draw) < p).nonzero()[:, 0].tolist()
        height, width = images.shape[-2:]
        share = min(max(self.share, 0.03), 0.8)
        spread = min(SPREAD, share - 0.02, 0.82 - share)
        low, high = share - spread, share + spread
        # Only shapes that fit: those that do not are left out by RandomErasing, and small areas with them.
        widest = max(1.0, min(3.3, (min(height, width) - 1) ** 2 / (high * height * width)))
        erasing = v2.RandomErasing(p=1.0, scale=(low, high), ratio=(1 / widest, widest), value=0)
        result = images.clone()
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.manual_seed(draw.initial_seed())
            for i in index:
                result[i] = erasing(images[i])
        if index:
            gone = (result[index] != images[index]).any(dim=1).sum(dtype=torch.float64)
            self._add(images=len(index), replaced=gone, pixels=len(index) * height * width)
        return result

    def _mix(self, images: Tensor, labels: Tensor, p: float, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        if float(torch.rand((), generator=draw)) >= p:
            return images, labels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw.initial_seed())
            mixed, rows = self.cutmix(images, labels)
        self._add(images=len(images))
        return mixed, rows

    def _count(self, done: Augmented, images: Tensor, masks: Tensor | None) -> None:
        keep, pixels = done.keep, done.keep.numel()
        self._add(images=len(keep), replaced=(~keep).sum(), pixels=pixels, no_map=done.no_map.sum())
        if masks is None:
            return
        own = masks[done.drawn.to(images.device)]
        self._add(object=own.sum(), object_kept=(own & keep).sum(), ground_replaced=(~own & ~keep).sum())
        # A map that was meant for another image is judged on the image it was used for.
        energy, alive = done.maps.sum(dim=(1, 2)), done.maps.amax(dim=(1, 2)) > 0
        inside = (done.maps * own).sum(dim=(1, 2)) / torch.where(alive, energy, 1.0)
        self._add(inside=inside[alive].sum(), area=own[alive].float().mean(dim=(1, 2)).sum())

    def _add(self, **amounts: Any) -> None:
        """Sums stay on the device until the run is over."""
        for name, amount in amounts.items():
            value = torch.as_tensor(amount)
            value = value.to(torch.float32 if value.device.type == "mps" else torch.float64)
            self.sums[name] = value if name not in self.sums else self.sums[name].to(value.device) + value


def _frozen(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).eval().requires_grad_(False)
