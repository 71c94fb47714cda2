"""One run of a study: a regime, an arm and a seed in, one record of plain values out."""

from __future__ import annotations

import copy
import json
import math
import platform
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision

from groupcam_aug import __version__
from groupcam_aug.files import put_file
from groupcam_aug.recipes.trial.arms import RENAMED, Arm
from groupcam_aug.recipes.trial.regimes import PROTOCOL, Regime, Start, settings_hash
from groupcam_aug.recipes.trial.training import Machine, fit
from groupcam_aug.recipes.trial.treatment import Treatment

__all__ = ["Trial", "check_trial", "read_record", "run_trial"]


class Trial(NamedTuple):
    """What is run."""

    regime: Regime
    arm: Arm
    seed: int
    machine: Machine

    def settings(self) -> dict[str, Any]:
        """All that decides the result, apart from the seed."""
        machine = {"device": torch.device(self.machine.device).type, "precision": self.machine.precision}
        return {"protocol": PROTOCOL, "regime": self.regime.settings(), "arm": self.arm.settings(), "machine": machine}

    def path(self, folder: Path) -> Path:
        """The file of its record: another for other settings, so that they are never mixed."""
        names = (self.regime.study, self.regime.name, self.regime.size, self.arm.name)
        told = "__".join(re.sub(r"[^\w.+-]+", "_", name)[:60] for name in names)
        return folder / "runs" / f"{told}__s{self.seed}__{settings_hash(self.settings())}.json"

    @property
    def source(self) -> str | None:
        """The network besides the one in training that its maps come from, if that is made apart."""
        source = self.arm.settings().get("source")
        return source if source in ("teacher", "few") else None


def check_trial(trial: Trial) -> None:
    """See that an arm and a regime go together.

    Raises:
        ValueError: they do not; the message says why.
    """
    regime, arm = trial.regime, trial.arm
    where = f"arm {arm.name} in {regime.study} {regime.name}"
    if trial.source is not None and trial.source not in regime.sources:
        raise ValueError(f"{where}: there is no {trial.source!r} network (there are: {', '.join(regime.sources) or 'none'})")
    if arm.kind == "map" and arm.map == "oracle" and not regime.has_masks:
        raise ValueError(f"{where}: the objects' exact masks are not known")
    if arm.kind == "frozen" and arm.source not in ("self", *regime.sources):
        raise ValueError(f"{where}: {arm.source!r} is not there before training")
    if arm.kind == "frozen" and arm.source == "self" and not regime.pretrained:
        raise ValueError(f"{where}: the starting network is untrained")
    if arm.kind not in ("none", "frozen"):
        _treatment(trial, torch.nn.Identity(), 1, {name: torch.nn.Identity() for name in regime.sources})


def run_trial(trial: Trial, start: Start) -> dict[str, Any]:
    """Train and measure.

    Args:
        trial: what is run.
        start: from `regimes.prepare`, on the trial's machine; not changed.

    Returns:
        The record: ``metrics`` (shares in [0, 1]) after the last epoch, ``facts`` of what the arm did, ``pairing`` (digests that
        are the same for all arms of a seed), ``seconds`` and ``cpu_seconds`` of training, ``total_seconds`` with measuring,
        settings and versions.
    """
    regime, arm, seed, machine = trial
    begin = time.perf_counter()
    lone = arm.kind == "frozen" and arm.source != "self"
    network = copy.deepcopy(start.sources[arm.source] if lone else start.network)
    facts: dict[str, Any] = {}
    pairing: dict[str, str | None] = {"data": start.digests["data"], "start": start.digests["start"], "batches": None}
    seconds = cpu_seconds = 0.0
    if arm.kind != "frozen":
        per_epoch = len(start.data.train.labels) // regime.batch
        treatment = None if arm.kind == "none" else _treatment(trial, network, per_epoch, start.sources)
        done = fit(network, start.data.train, regime, seed, machine, treatment)
        facts = {"loss": done.loss, "steps": done.steps} | ({} if treatment is None else treatment.facts())
        pairing["batches"], seconds, cpu_seconds = done.batches, done.seconds, done.cpu_seconds
    if trial.source is not None:
        facts["source"] = start.digests[trial.source]
    settings, metrics = trial.settings(), regime.measure(network, start.data, machine, seed)
    return {
        "study": regime.study,
        "regime": regime.name,
        "size": regime.size,
        "arm": arm.name,
        "seed": seed,
        "metrics": metrics,
        "facts": facts,
        "pairing": pairing,
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds, 3),
        "total_seconds": round(time.perf_counter() - begin, 3),
        "settings": settings,
        "hash": settings_hash(settings),
        "device": _told(machine),
        "versions": {
            "groupcam-aug": __version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "python": platform.python_version(),
        },
    }


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record in one piece; numbers that are not finite become null."""
    put_file(path.parent, path.name, json.dumps(_finite(record), indent=1, allow_nan=False) + "\n")


def read_record(path: Path) -> dict[str, Any]:
    """A record as written, its arm by the name of today.

    Raises:
        ValueError: the file is no record, or its settings are not those its hash was made from.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        whole = record["hash"] == settings_hash(record["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is no record of a run ({error}); delete it, and it is run again") from error
    if not whole:
        raise ValueError(f"{str(path)!r}: settings and hash do not belong together; delete it, and it is run again")
    base, comma, changes = record["arm"].partition(",")
    return record | {"arm": RENAMED.get(base, base) + comma + changes}


def _treatment(trial: Trial, network: torch.nn.Module, per_epoch: int, sources: dict[str, torch.nn.Module]) -> Treatment:
    regime = trial.regime
    return Treatment(
        trial.arm,
        network,
        seed=trial.seed,
        epochs=regime.epochs,
        per_epoch=per_epoch,
        warmup=regime.warmup,
        classes=regime.classes,
        sources=sources,
    )


def _told(machine: Machine) -> str:
    device = torch.device(machine.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return name if machine.precision == "float32" else f"{name}, {machine.precision}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
