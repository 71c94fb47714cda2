"""What a regime is: data, network, schedule and metrics of one part of a study; and what is made once and shared by its arms."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from groupcam_aug.recipes.trial.stock import Stock
from groupcam_aug.recipes.trial.training import Machine, Schedule, Split, digest, logits_of, normalise
from groupcam_aug.saliency import GroupCAM

__all__ = [
    "PROTOCOL",
    "SOURCES",
    "Data",
    "Metric",
    "Plan",
    "Regime",
    "Start",
    "accuracy",
    "alignment",
    "digest_of",
    "kept_network",
    "piece_name",
    "prepare",
    "settings_hash",
]

PROTOCOL = 1  # of a study's runs, and of all that they call: raised when the same settings would give other numbers
SOURCES = ("teacher", "few")  # networks that are trained or read apart from the runs


class Metric(NamedTuple):
    """How a number of a run is told."""

    name: str  # key in a run's metrics
    title: str
    scale: float = 100.0  # shares are told in percent, their differences in points
    digits: int = 1


class Plan(NamedTuple):
    """A part of what a study runs by default."""

    regimes: tuple[str, ...]
    arms: tuple[str, ...]
    seeds: int


class Data(NamedTuple):
    """One seed's data."""

    train: Split
    tests: dict[str, Split]


class Start(NamedTuple):
    """One seed's data, its starting network and the networks that maps may come from; all arms get the same."""

    data: Data
    network: nn.Module
    sources: dict[str, nn.Module]
    digests: dict[str, str]  # of "data", "start" and each source


@dataclass(frozen=True, kw_only=True)
class Regime(Schedule, ABC):
    """Data, network, schedule and metrics of one part of a study. All fields decide the results and enter the settings' hash.

    Args:
        name: as in the study's table, with the changes to that row.
        size: "smoke", "cpu" or "full".
        warmup: first epochs that no arm augments.
        seconds: rough time of a run without augmentation on one CPU core, for estimates; no part of the settings.
    """

    study: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    primary: ClassVar[str]  # the metric that the study is about
    clean: ClassVar[str]  # accuracy on clean test images, for the positive control
    second: ClassVar[str]  # told beside the primary one
    has_masks: ClassVar[bool] = False
    keeps_data: ClassVar[bool] = True  # whether a seed's data are worth a file

    name: str
    size: str
    warmup: int = 0
    seconds: float = 30.0

    @property
    @abstractmethod
    def classes(self) -> int:
        """Number of classes."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Which of `SOURCES` there are."""
        return ()

    @property
    def pretrained(self) -> bool:
        """Whether the starting network has been trained before."""
        return False

    def check(self, stock: Stock) -> None:
        """See that files this regime needs are there, before anything starts.

        Raises:
            FileNotFoundError: one is not.
        """

    @abstractmethod
    def make_data(self, seed: int, stock: Stock) -> Data:
        """Training images and test splits of one seed."""

    @abstractmethod
    def make_network(self, seed: int, stock: Stock) -> nn.Module:
        """The starting network of one seed."""

    def make_source(self, source: str, seed: int, stock: Stock, machine: Machine, data: Data) -> nn.Module:
        """A network that maps may come from, one of `sources`; trained ones are kept in the stock (see `kept_network`)."""
        raise ValueError(f"{self.study} {self.name} has no {source!r} network")

    @abstractmethod
    def measure(self, network: nn.Module, data: Data, machine: Machine, seed: int) -> dict[str, float]:
        """The metrics of a trained network, shares in [0, 1]; `data` is on the machine's device."""

    def settings(self) -> dict[str, Any]:
        """All that decides the results, apart from arm, seed and machine."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "seconds"}
        return {"study": self.study} | {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}

    @property
    def options(self) -> tuple[str, ...]:
        """Fields that ``NAME,key=value`` may change."""
        fixed = ("name", "size", "seconds", "mean", "std")
        return tuple(field.name for field in dataclasses.fields(self) if field.name not in fixed)


def prepare(regime: Regime, seed: int, sources: tuple[str, ...], stock: Stock, machine: Machine) -> Start:
    """Everything that the arms of one seed share, from files where it has been made before.

    Args:
        regime: what for.
        seed: which.
        sources: networks besides the starting one, of `SOURCES`.
        stock: where files are kept.
        machine: where networks are trained. Networks are returned there, data too.
    """
    device = torch.device(machine.device)
    if regime.keeps_data:
        piece = stock.get(piece_name(regime, seed, "data"), lambda: _pack(regime.make_data(seed, stock)))
        data, data_digest = _unpack(piece), piece["digest"]
    else:
        data = regime.make_data(seed, stock)
        data_digest = _digest_data(data)
    data = Data(data.train.to(device), {name: split.to(device) for name, split in data.tests.items()})

    network = _placed(regime.make_network(seed, stock), device)
    digests = {"data": data_digest, "start": digest_of(network)}
    networks = {source: _placed(regime.make_source(source, seed, stock, machine, data), device) for source in sources}
    return Start(data, network, networks, digests | {source: digest_of(found) for source, found in networks.items()})


def kept_network(stock: Stock, name: str, network: nn.Module, train: Callable[[nn.Module], Any], machine: Machine) -> nn.Module:
    """`network` as `train` leaves it on the machine, from the stock if it has been trained before."""

    def make() -> dict[str, Any]:
        train(_placed(network, torch.device(machine.device)))
        return {key: tensor.cpu().contiguous() for key, tensor in network.state_dict().items()}

    network.load_state_dict(stock.get(name, make))
    return network


def piece_name(regime: Regime, seed: int, piece: str, machine: Machine | None = None) -> str:
    """The name of a piece in the stock: another for other settings and protocols, and for networks trained on another machine."""
    extra = "" if machine is None else f"-{torch.device(machine.device).type}-{machine.precision}"
    label = regime.name.replace(",", "_").replace("=", "")
    return f"{regime.study}-{label}-{regime.size}-{settings_hash(regime.settings())[:8]}-p{PROTOCOL}-s{seed}-{piece}{extra}"


def settings_hash(settings: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that tell settings apart."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def digest_of(network: nn.Module) -> str:
    """16 hexadecimal digits that tell weights apart."""
    return digest(*network.state_dict().values())


def accuracy(network: nn.Module, split: Split, schedule: Schedule, machine: Machine) -> Tensor:
    """(N,) bool on the CPU: which samples are classified rightly."""
    return (logits_of(network, split.images, schedule, machine).argmax(dim=1) == split.labels).cpu()


def alignment(network: nn.Module, split: Split, schedule: Schedule, machine: Machine, weights: Any = "none") -> dict[str, float]:
    """How much of the network's own maps lies on the object, for the maps of the fast form.

    Args:
        network: whose maps.
        split: with masks.
        schedule: for the normalisation.
        machine: where.
        weights: "none" or "gradient".

    Returns:
        ``alignment`` = mean share of the map's energy on the object over the mean share of the image that it covers (1 for a
        map that says nothing), and ``no_map`` = share of images without a map, which do not count.
    """
    assert split.masks is not None  # for the type checker
    cam = GroupCAM.for_training(network, mask_at="target", baseline="zero", weights=weights)
    inside, area, missing = 0.0, 0.0, 0
    for images, labels, masks in zip(split.images.split(200), split.labels.split(200), split.masks.split(200), strict=True):
        with machine.passes():
            maps = cam(normalise(images, schedule), labels)
        energy = maps.sum(dim=(1, 2))
        alive = energy > 0
        inside += float(((maps * masks).sum(dim=(1, 2))[alive] / energy[alive]).sum())
        area += float(masks[alive].float().mean(dim=(1, 2)).sum())
        missing += int((~alive).sum())
    return {"alignment": inside / area if area else float("nan"), "no_map": missing / len(split.labels)}


def _placed(network: nn.Module, device: torch.device) -> nn.Module:
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _pack(data: Data) -> dict[str, Any]:
    splits = {"train": data.train, **data.tests}
    packed = {name: {k: v for k, v in split._asdict().items() if v is not None} for name, split in splits.items()}
    return {"splits": packed, "digest": _digest_data(data)}


def _unpack(piece: dict[str, Any]) -> Data:
    splits = {name: Split(**tensors) for name, tensors in piece["splits"].items()}
    return Data(splits.pop("train"), splits)


def _digest_data(data: Data) -> str:
    return digest(*data.train, *(tensor for name in sorted(data.tests) for tensor in data.tests[name]))
