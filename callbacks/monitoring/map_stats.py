"""One reading of the probes' maps, and what it says beside the one before: the numbers of the saliency monitor."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from groupcam_aug.borrow import as_found
from groupcam_aug.metrics import map_change, map_floor, map_noise
from groupcam_aug.saliency import GradCAM, GroupCAM
from groupcam_aug.targets import Activation, Target, first_choice

__all__ = ["UNKNOWN", "Reading", "alive", "map_statistics", "pack", "read_maps", "unpack"]

# What is logged, with the value before anything is known: the worst, so that nothing stops on it.
UNKNOWN: dict[str, float] = {
    "change": 1.0,
    "spearman": 0.0,
    "mass_shift": 1.0,
    "noise": 1.0,
    "alive": 0.0,
    "floor": 0.0,
    "change_correct": 1.0,
    "spearman_correct": 0.0,
    "mass_shift_correct": 1.0,
    "noise_correct": 1.0,
    "alive_correct": 0.0,
    "counted": 0.0,
    "counted_correct": 0.0,
    "correct": 0.0,
    "flip_rate": 0.0,
}


class Reading(NamedTuple):
    """The probes at one moment, on the CPU, in the probes' order."""

    maps: Tensor  # (P, u, v) float16 on the monitor's grid, each scaled to a maximum of 1; zeros: no map
    mirrored: Tensor  # the same of the mirrored images, mirrored back
    chosen: Tensor  # (P,) int64, the network's first choice
    right: Tensor  # (P,) bool, whether that is what the map explains
    score: Tensor  # (P,) float32, softmax or sigmoid of what is explained
    confidence: Tensor = torch.empty(0)  # (P,) float32, the same of the first choice; empty in a reading out of a checkpoint


def read_maps(cam: GradCAM | GroupCAM, images: Tensor, targets: Tensor | None, activation: Activation, grid: int) -> Reading:
    """Map images and their mirror images once.

    Args:
        cam: with a layer that is known.
        images: (n, C, H, W) on their device.
        targets: (n,) class indices or (n, classes) soft rows; None: each image's first choice.
        activation: "softmax" or "sigmoid".
        grid: most cells along a side of the maps that are kept.

    Returns:
        A `Reading` on the images' device, maps not yet scaled: see `pack` and `unpack`.
    """
    with as_found(cam.network, images.device):
        logits = torch.cat(cam.in_parts(images, lambda part, _: cam.logits(images[part]))).float()
        target = cam.target(targets, images, logits, logits.dtype, activation)
        score, chosen = target.score(logits), first_choice(logits, target.activation)
        confidence = Target(chosen, target.activation).score(logits)
    rows: Any = target.rows  # a tensor: no callable is the target of a probe
    if rows.ndim == 1:
        right = rows == chosen
    elif rows.shape[1] == 1:
        right = (rows[:, 0] > 0.5) == chosen.bool()
    else:
        right = rows.gather(1, chosen[:, None])[:, 0] == rows.amax(dim=1)
    maps = _on_grid(cam, images, rows, grid)
    mirrored = _on_grid(cam, images.flip(-1), rows, grid).flip(-1)
    return Reading(maps, mirrored, chosen, right, score, confidence)


def pack(reading: Reading) -> Tensor:
    """A reading as one (n, 2 u v + 4) float32 tensor, to be gathered from all ranks in one go."""
    columns = (reading.chosen.float(), reading.right.float(), reading.score.float(), reading.confidence.float())
    return torch.cat([reading.maps.flatten(1).float(), reading.mirrored.flatten(1).float(), torch.stack(columns, dim=1)], dim=1)


def unpack(packed: Tensor, size: tuple[int, ...]) -> Reading:
    """The reading in (P, 2 u v + 4), maps scaled and rounded to float16, as a checkpoint keeps them.

    The comparison runs on the rounded maps in any case, so that a resumed run and one that never stopped agree.
    """
    packed = packed.cpu()
    cells = size[0] * size[1]
    maps, mirrored = (packed[:, i * cells : (i + 1) * cells].unflatten(1, size) for i in (0, 1))
    chosen, right, score, confidence = packed[:, 2 * cells :].unbind(dim=1)
    return Reading(_rounded(maps), _rounded(mirrored), chosen.long(), right > 0.5, score, confidence)


def map_statistics(before: Reading | None, now: Reading, *, grid: int, min_alive: float, warm: bool) -> dict[str, float]:
    """What is logged of a reading; `SaliencyMonitor` says what each number means.

    Args:
        before: the reading before; None: only what one reading tells is known.
        now: this one.
        grid: of `map_change`.
        min_alive: share of probes with a map below which the change is not trusted, and 1.
        warm: whether the reading before is a reference; if not, the change is 1.

    Returns:
        Every key of `UNKNOWN`, finite.
    """
    values = dict(UNKNOWN)
    pair = map_change(now.maps if before is None else before.maps, now.maps, grid=grid)
    noise = map_noise(now.maps, now.mirrored, grid=grid)
    right = now.right if before is None else before.right & now.right
    counted, both, has_noise = pair.counted, pair.both, noise.counted
    for suffix, among in (("", torch.ones_like(right)), ("_correct", right)):
        values[f"alive{suffix}"] = _mean(pair.alive_after, among, 0.0)
        values[f"noise{suffix}"] = _mean(noise.noise, has_noise & among, 1.0)
        if before is None:
            continue
        values[f"change{suffix}"] = _mean(pair.change, counted & among, 1.0)
        values[f"spearman{suffix}"] = _mean(pair.spearman, both & among, 0.0)
        values[f"mass_shift{suffix}"] = _mean(pair.mass_shift, counted & among, 1.0)
        values[f"counted{suffix}"] = float((counted & among).sum())
    values["floor"] = float(map_floor(now.maps, grid=grid))
    values["correct"] = float(now.right.double().mean())
    if before is not None:
        values["flip_rate"] = float((before.chosen != now.chosen).float().mean())
    if not warm or values["alive"] < min_alive:
        values["change"] = values["change_correct"] = 1.0
    return values


def alive(reading: Reading, grid: int) -> list[bool]:
    """Per probe, whether it has a map."""
    return map_change(reading.maps, reading.maps, grid=grid).alive_after.tolist()


def _on_grid(cam: GradCAM | GroupCAM, images: Tensor, targets: Tensor, grid: int) -> Tensor:
    raw: Any = cam.raw(images, targets)  # a tensor: the maps of one layer
    rows, columns = cam.layer_shape[-2:] if isinstance(cam, GroupCAM) else raw.shape[-2:]
    return F.adaptive_avg_pool2d(raw[:, None], (min(grid, rows), min(grid, columns)))[:, 0]


def _rounded(maps: Tensor) -> Tensor:
    usable = maps.isfinite().all(dim=2).all(dim=1)
    maps = torch.where(usable[:, None, None], maps, torch.zeros_like(maps))
    top = maps.amax(dim=(1, 2), keepdim=True)
    return (maps / torch.where(top > 0, top, torch.ones_like(top))).half()


def _mean(values: Tensor, among: Tensor, otherwise: float) -> float:
    """The mean over the probes in `among`, in float64 and so the same in any order; `otherwise` if there are none."""
    return float(values.double()[among].mean()) if bool(among.any()) else otherwise
