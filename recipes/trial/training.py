"""A plain training loop on tensors held in memory: what every run of a study shares, and where an arm comes in.

Batches follow from (seed, epoch) alone, so runs with the same seed see the same images in the same order with the same crops and
flips, whatever is done to them afterwards.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Fitted", "Machine", "Schedule", "Split", "digest", "fit", "logits_of", "normalise", "seeded", "shuffled"]


class Split(NamedTuple):
    """Labelled images in memory."""

    images: Tensor  # (N, 3, H, W) uint8
    labels: Tensor  # (N,) int64
    masks: Tensor | None = None  # (N, H, W) bool, true on the object
    groups: Tensor | None = None  # (N,) int64, what a regime tells test samples apart by

    def part(self, index: Tensor | slice) -> Split:
        """The samples at `index`."""
        return Split(*(None if tensor is None else tensor[index] for tensor in self))  # type: ignore[arg-type]

    def to(self, device: torch.device) -> Split:
        """The same on a device."""
        return Split(*(None if tensor is None else tensor.to(device) for tensor in self))  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a network is trained: SGD with momentum 0.9, and how batches are made.

    Args:
        epochs: passes over the training images.
        batch: images per step; what is left over in an epoch is left out.
        lr: at the start.
        weight_decay: of all parameters.
        anneal: "cosine" (to 0, after a linear start over the first 5 % of the steps) or "step" (a tenth from 75 % on).
        flip: horizontal flips.
        pad: black pixels added on each side before a random crop to the old size.
        mean: per channel, subtracted from images in [0, 1].
        std: per channel, divides.
    """

    epochs: int
    batch: int
    lr: float
    weight_decay: float = 5e-4
    anneal: Literal["cosine", "step"] = "cosine"
    flip: bool = True
    pad: int = 0
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of step 0 to steps - 1."""
        if self.anneal == "step":
            return self.lr * (0.1 if step >= 0.75 * steps else 1.0)
        rise = max(1, round(0.05 * steps))
        return self.lr * min((step + 1) / rise, 0.5 * (1 + float(np.cos(np.pi * step / steps))))


@dataclass(frozen=True)
class Machine:
    """Where runs happen: a device, and the precision of network passes ("float32", or "bfloat16" = autocast)."""

    device: str = "cpu"
    precision: str = "float32"

    def passes(self) -> Any:
        """The context of network passes."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16)

    def wait(self) -> None:
        """Until the device has done all it was given."""
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize(self.device)


class Treats(Protocol):
    """What an arm must offer the loop; see `treatment.Treatment`."""

    def apply(self, images: Tensor, labels: Tensor, masks: Tensor | None, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """The batch to train on: normalised images, and labels (N,) or rows of class weights (N, classes)."""

    def after_step(self) -> None:
        """The optimiser has made a step."""


class Fitted(NamedTuple):
    """What a training took."""

    batches: str  # digest of order, flips and crops
    steps: int
    seconds: float
    cpu_seconds: float
    loss: float  # mean over the last epoch


def fit(
    network: nn.Module, split: Split, schedule: Schedule, seed: int, machine: Machine, treatment: Treats | None = None
) -> Fitted:
    """Train `network` in place, all of it.

    Args:
        network: on the machine's device.
        split: training images, on the machine's device.
        schedule: what is done.
        seed: of order, flips and crops.
        machine: where.
        treatment: what an arm does to the batches. None: nothing.

    Raises:
        ValueError: fewer images than one batch.
        FloatingPointError: the loss is no longer a finite number.
    """
    per_epoch = len(split.labels) // schedule.batch
    if not per_epoch:
        raise ValueError(f"{len(split.labels)} images are fewer than one batch of {schedule.batch}")
    steps = schedule.epochs * per_epoch
    optimizer = torch.optim.SGD(network.parameters(), lr=schedule.lr, momentum=0.9, weight_decay=schedule.weight_decay)
    seen, total, step = hashlib.sha256(), torch.zeros((), device=machine.device), 0
    network.train()
    machine.wait()
    start, start_cpu = time.perf_counter(), time.process_time()
    for epoch in range(schedule.epochs):
        total.zero_()
        for batch in shuffled(split, schedule, seed, epoch, seen):
            images, targets = normalise(batch.images, schedule), batch.labels
            with machine.passes():
                if treatment is not None:
                    images, targets = treatment.apply(images, targets, batch.masks, epoch, step)
                logits = network(images)
            loss = F.cross_entropy(logits.float(), targets)
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(step, steps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if treatment is not None:
                treatment.after_step()
            total += loss.detach()
            step += 1
        if not bool(total.isfinite()):
            raise FloatingPointError(
                f"the loss is {float(total)} in epoch {epoch + 1}: the learning rate {schedule.lr} is too high"
            )
    machine.wait()
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    return Fitted(seen.hexdigest()[:16], steps, seconds, cpu, float(total) / per_epoch)


def shuffled(split: Split, schedule: Schedule, seed: int, epoch: int, seen: Any = None) -> Iterator[Split]:
    """The batches of one epoch, flipped and cropped (masks alike), still uint8.

    Args:
        split: training images.
        schedule: batch size, flips and crops.
        seed: of the run.
        epoch: from 0.
        seen: a `hashlib` object that is told order, flips and crops.
    """
    count, size = len(split.labels) // schedule.batch * schedule.batch, split.images.shape[-2:]
    draw = seeded(seed, 1, epoch)
    order = torch.randperm(len(split.labels), generator=draw)[:count]
    flips = torch.rand(count, generator=draw) < (0.5 if schedule.flip else 0.0)
    shifts = torch.randint(2 * schedule.pad + 1, (count, 2), generator=draw)
    if seen is not None:
        for drawn in (order, flips, shifts):
            seen.update(drawn.numpy().tobytes())
    device = split.images.device
    order, flips, shifts = (drawn.to(device, non_blocking=True) for drawn in (order, flips, shifts))
    rows, columns = (torch.arange(length, device=device) for length in size)
    for part in torch.arange(count).split(schedule.batch):
        at = slice(int(part[0]), int(part[-1]) + 1)
        batch, turn = split.part(order[at]), flips[at]
        images, masks = _flipped(batch.images, turn), None if batch.masks is None else _flipped(batch.masks[:, None], turn)
        if schedule.pad:
            y, x = (shifts[at, axis, None] + places for axis, places in ((0, rows), (1, columns)))
            images = _cropped(images, y, x, schedule.pad)
            masks = None if masks is None else _cropped(masks.byte(), y, x, schedule.pad).bool()
        yield batch._replace(images=images, masks=None if masks is None else masks[:, 0])


def normalise(images: Tensor, schedule: Schedule) -> Tensor:
    """(N, 3, H, W) uint8 -> float32, as the network takes them, channels last."""
    mean, std = (torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in (schedule.mean, schedule.std))
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def logits_of(network: nn.Module, images: Tensor, schedule: Schedule, machine: Machine, batch: int = 200) -> Tensor:
    """Logits (N, classes) float32 of uint8 images in evaluation mode, which the network is left in."""
    network.eval()
    size = batch if torch.device(machine.device).type == "cpu" else 10 * batch
    with machine.passes():
        parts = [network(normalise(part, schedule)).float() for part in images.split(size)]
    return torch.cat(parts)


def seeded(*numbers: int) -> torch.Generator:
    """A CPU generator that follows from the numbers: (seed, stream, position)."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def digest(*tensors: Tensor | None) -> str:
    """16 hexadecimal digits that tell tensors apart by dtype, shape and content."""
    seen = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None:
            seen.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            seen.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()[:16]


def _flipped(images: Tensor, flips: Tensor) -> Tensor:
    return torch.where(flips[:, None, None, None], images.flip(3), images)


def _cropped(images: Tensor, y: Tensor, x: Tensor, pad: int) -> Tensor:
    """Rows y (N, H) and columns x (N, W) of the padded images."""
    padded = F.pad(images, (pad, pad, pad, pad))
    at = torch.arange(len(images), device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[at, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)
