"""Fidelity: how far the masks of the cheaper presets are from those of `paper`, on the user's own network and images."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from groupcam_aug.arguments import check_seed, check_whole
from groupcam_aug.augment import has_map, keep_mask, read_threshold
from groupcam_aug.cam import check_images
from groupcam_aug.cost import bare_pass, count_flops
from groupcam_aug.metrics.stability import map_change
from groupcam_aug.presets import mode_name, scoring_of
from groupcam_aug.saliency import GroupCAM
from groupcam_aug.targets import Targets, targets_of

__all__ = ["Fidelity", "FidelityRow", "measure_fidelity", "wait_for"]

Maps = Callable[[Tensor, Any], Tensor]
PAPER = "paper"  # whose masks the others are compared with
MISSING = 0.05  # share of the images, by which a recommended mode may lack more maps than `paper`
SLACK = 0.02  # below the floor: within it a mode is no further from the masks of `paper` than the method is from itself


class FidelityRow(NamedTuple):
    """One mode against the masks of `paper`. Means are over images that have both maps; NaN where none has."""

    mode: str  # a preset's name where the mode is one ("paper", "balanced", "fast")
    iou: float  # of the binary masks, 0 to 1
    iou_error: float  # standard error of that mean
    spearman: float  # of the maps on at most 14 x 14 cells, -1 to 1
    no_map: float  # share of images that the mode finds no map for
    cost: float  # of a call, in forward passes of the bare network (F), counted in multiply-adds
    time: float  # of a call, in F: median of interleaved calls
    unavailable: str = ""  # why this network cannot be mapped in this mode: all figures are NaN


@dataclass(frozen=True)
class Fidelity:
    """The result of `measure_fidelity`; `print` it for a Markdown table."""

    rows: tuple[FidelityRow, ...]  # `paper` first, then the others as they were asked for
    floor: float  # IoU of the masks of `paper` with themselves under random regrouping of the channels
    floor_error: float
    recommended: str  # the name of the cheapest mode whose IoU is at least the floor - 0.02; "" where there is no floor
    images: int
    layer: str
    groups: int
    weights: str

    def __getitem__(self, mode: str) -> FidelityRow:
        for row in self.rows:
            if row.mode in (mode, mode_name(mode)):
                return row
        raise KeyError(f"no mode {mode!r}; measured were {[row.mode for row in self.rows]}")

    def __str__(self) -> str:
        lines = ["| mode | IoU with paper | Spearman | no map | cost in F | time in F |", "|---|---|---|---|---|---|"]
        lines += [
            f"| {row.mode} | {row.iou:.3f} ± {row.iou_error:.3f} | {row.spearman:.3f} | {row.no_map:.1%} | {row.cost:.2f} "
            f"| {row.time:.2f} |"
            if not row.unavailable
            else f"| {row.mode} | unavailable | | | | |"
            for row in self.rows
        ]
        return "\n".join(
            [
                *lines,
                "",
                f"{self.images} images, layer {self.layer}, G={self.groups}, importance weights: {self.weights}; "
                "F = one forward pass",
                f"noise floor: {self.floor:.3f} ± {self.floor_error:.3f} (paper against itself, channels regrouped)",
                f"cheapest mode within {SLACK} of the floor: {self.recommended or 'none, for no image has a map to compare'}",
                *[f"{row.mode} is unavailable: {row.unavailable}" for row in self.rows if row.unavailable],
            ]
        )


def measure_fidelity(
    model: nn.Module,
    images: Tensor,
    targets: Targets = None,
    *,
    layer: str | nn.Module | None = None,
    groups: int = 16,
    modes: Sequence[str] | Mapping[str, str | Maps] = ("balanced", "target", "fast"),
    weights: Literal["none", "gradient"] = "none",
    threshold: float | str = "mean",
    regroupings: int = 3,
    repeats: int = 5,
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[Sequence[slice]], Iterable[slice]] = iter,
    **options: Any,
) -> Fidelity:
    """How far the masks of cheaper modes are from those of `paper`, beside the method's own noise and the cost of each.

    Which channels fall into one group is arbitrary. How far a mask of `paper` moves when they are regrouped at random is the
    noise floor: a mode that stays within it loses nothing that the method has.

    Args:
        model: a classifier, trained (maps of an untrained network are noise).
        images: (N, C, H, W), as the network takes them; some hundreds.
        targets: (N,) labels or (N, classes) soft rows; None explains each image's top-1 class.
        layer: target layer. None: found.
        groups: G. Default: 16.
        modes: what to compare with `paper`. Each is a preset's name ("balanced", "fast") or a `mask_at` of `GroupCAM`
            ("stage", "target", a layer's name), with ", zero" behind it for `baseline="zero"`; rows are named by the preset
            where a mode is one ("paper" among them changes nothing: it is always measured). A mapping gives modes names of
            your own, and may hold other map methods, `maps(images, targets) -> (n, H, W)` in [0, 1].
        weights: importance weights of every mode, "none" or "gradient".
        threshold: of the masks; see `keep_mask`.
        regroupings: random regroupings behind the noise floor, each as costly as `paper`. Default: 3.
        repeats: timed calls of each mode, on the first batch, one mode after the other. Default: 5; 0 leaves times NaN.
        batch_size: images per call. Default: 32.
        seed: of the regroupings.
        progress: wraps the list of batches, `rich.progress.track` for instance.
        **options: of `GroupCAM.for_training`: `activation`, `output`, `preprocess`, `chunk`.

    Returns:
        `Fidelity`: a row for each mode, the floor, the recommendation. A mode whose place this network does not have (see
        `GroupCAM`) is marked as unavailable, with the reason, and the others are measured.

    Raises:
        ValueError: no image; regroupings < 1; another mode that is called "paper".
    """
    images = check_images(images, targets)
    if not len(images):
        raise ValueError("images holds no image: give at least one")
    for name, value, least in (("regroupings", regroupings, 1), ("repeats", repeats, 0), ("batch_size", batch_size, 1)):
        check_whole(name, value, least)
    check_seed(seed)
    read_threshold(threshold)

    def cam(mode: str) -> GroupCAM:
        return GroupCAM.for_training(model, layer, groups=groups, weights=weights, **scoring_of(mode), **options)

    named = modes if isinstance(modes, Mapping) else {mode_name(mode): mode for mode in modes if mode_name(mode) != PAPER}
    if PAPER in named:
        raise ValueError(f"modes holds a method called {PAPER!r}, the maps that all are compared with; choose another name")
    paper = cam(PAPER)
    methods: dict[str, Maps] = {PAPER: paper}
    methods.update({name: cam(mode) if isinstance(mode, str) else mode for name, mode in named.items()})
    device = next((p.device for p in paper.network.parameters()), images.device)
    generator = torch.Generator().manual_seed(seed)
    tallies: dict[str | None, _Tally] = {name: _Tally() for name in (None, *methods)}
    unavailable: dict[str, str] = {}
    parts = [slice(start, start + batch_size) for start in range(0, len(images), batch_size)]
    orders: list[Tensor] = []
    for part in progress(parts):
        batch = images[part].to(device)
        labels = targets_of(targets, part, len(images))
        reference = paper(batch, labels)
        tallies[PAPER].add(reference, threshold, reference)
        orders = orders or [torch.randperm(paper.layer_shape[0], generator=generator) for _ in range(regroupings)]
        regrouped = []
        for order in orders:
            paper.channels = order
            regrouped.append(paper(batch, labels))
        paper.channels = None
        tallies[None].add(reference, threshold, *regrouped)
        for name, method in [*methods.items()][1:]:
            try:
                maps = method(batch, labels)
            except (RuntimeError, ValueError) as error:
                # Of a mode, whose place may be no place in this network: `paper` has just mapped the same batch. Other methods
                # are the caller's, and memory says nothing about a mode.
                if not isinstance(named[name], str) or isinstance(error, torch.OutOfMemoryError):
                    raise
                unavailable[name] = str(error)
                del methods[name]
                continue
            tallies[name].add(reference, threshold, maps)
    first = images[parts[0]].to(device)
    labels = targets_of(targets, parts[0], len(images))
    calls = {name: (lambda method=method: method(first, labels)) for name, method in methods.items()}
    flops, seconds = _prices(paper, first, calls, repeats)
    rows = tuple(
        FidelityRow(name, math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, unavailable[name])
        if name in unavailable
        else FidelityRow(name, *tallies[name].iou(), tallies[name].spearman(), tallies[name].no_map(), flops[name], seconds[name])
        for name in (PAPER, *named)
    )
    floor, floor_error = tallies[None].iou()
    # IoU is a mean over images that both modes map, so a mode without maps for many others is as bad as it looks good.
    most = rows[0].no_map + MISSING
    within = [row for row in rows if row.mode == PAPER or (row.iou >= floor - SLACK and row.no_map <= most)]
    recommended = "" if math.isnan(floor) else min(within, key=lambda row: row.cost).mode
    return Fidelity(rows, floor, floor_error, recommended, len(images), str(paper.layer), groups, weights)


class _Tally:
    """Sums over the images of one mode."""

    def __init__(self) -> None:
        self.ious: list[Tensor] = []  # (n, R), of R measurements of the same images; NaN where one of two has no map
        self.rhos: list[Tensor] = []
        self.missing: list[Tensor] = []

    def add(self, reference: Tensor, threshold: float | str, *measured: Tensor) -> None:
        expected = keep_mask(reference, threshold)
        columns = []
        for maps in measured:
            keep = keep_mask(maps, threshold)
            iou = (expected & keep).sum(dim=(1, 2)) / (expected | keep).sum(dim=(1, 2)).clamp(min=1)
            columns.append(iou.where(has_map(maps) & has_map(reference), torch.nan))
            change = map_change(reference, maps)
            self.rhos.append(change.spearman[change.both].cpu())
            self.missing.append((~has_map(maps)).float().cpu())
        self.ious.append(torch.stack(columns, dim=1).cpu())

    def iou(self) -> tuple[float, float]:
        """Mean, and its standard error: measurements of one image count as one, for they move together."""
        values = torch.cat(self.ious).double()
        counts, sums = (~values.isnan()).sum(dim=1), values.nansum(dim=1)
        mean, images = sums.sum() / counts.sum(), int((counts > 0).sum())
        if images < 2:
            return float(mean), float("nan")
        return float(mean), float((sums - mean * counts).norm() / counts.sum()) * (images / (images - 1)) ** 0.5

    def spearman(self) -> float:
        return float(torch.cat(self.rhos).mean())

    def no_map(self) -> float:
        return float(torch.cat(self.missing).mean())


def _prices(
    paper: GroupCAM, images: Tensor, calls: Mapping[str, Callable[[], Tensor]], repeats: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Cost and time of each call, in forward passes of the bare network on the same images."""
    timed: dict[str, Callable[[], Tensor]] = {"": lambda: bare_pass(paper, images), **calls}
    flops = {name: count_flops(call) for name, call in timed.items()}
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(repeats):
        for name, call in timed.items():
            wait_for(images.device)
            start = time.perf_counter()
            call()
            wait_for(images.device)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) if times else float("nan") for name, times in seconds.items()}
    return (
        {name: flops[name] / flops[""] if flops[""] else float("nan") for name in calls},
        {name: medians[name] / medians[""] for name in calls},
    )


def wait_for(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "mps":
        torch.mps.synchronize()  # there is but one
    elif device.type != "cpu":
        torch.get_device_module(device).synchronize(device)
