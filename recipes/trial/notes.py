"""What a reader of a trial's numbers has to know besides: runs that are not paired, mixed versions, equal configs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["are_paired", "distinct", "notes", "unpaired_seeds"]

PAIRING = {"start": "initial weights", "batches": "training batches"}

Record = Mapping[str, Any]


def are_paired(record: Record, other: Record) -> bool:
    """Whether two runs of one seed had the same start and batches; what a run does not know is taken as equal."""
    both = record["pairing"], other["pairing"]
    return all(len({of.get(what) for of in both} - {None}) < 2 for what in PAIRING)


def unpaired_seeds(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Seeds whose arms did not have the same start or batches, as `{"seed", "what", "arms", "text"}`.

    Args:
        records: of finished runs.
    """
    unpaired = []
    for seed in sorted({record["seed"] for record in records}):
        for what, words in PAIRING.items():
            groups: dict[str, list[str]] = {}
            for record in records:
                if record["seed"] == seed and (value := record["pairing"].get(what)) is not None:
                    groups.setdefault(value, []).append(record["arm"])
            if len(groups) > 1:
                arms = list(groups.values())
                sides = " / ".join(", ".join(side) for side in arms)
                text = f"Seed {seed}: not all arms had the same {words} ({sides}). Differences between these arms are not paired."
                unpaired.append({"seed": seed, "what": what, "arms": arms, "text": text})
    return unpaired


def notes(records: Sequence[Record]) -> list[str]:
    """Sentences about arms with equal configs, batches that could not be checked, mixed devices and versions, lost numbers.

    Args:
        records: of finished runs.
    """
    texts = []
    arms_of: dict[str, list[str]] = {}
    for arm, config in dict.fromkeys((record["arm"], record["hash"]) for record in records):
        arms_of.setdefault(config, []).append(arm)
    texts += [
        f"{' and '.join(arms)} are the same config: no difference between them means anything."
        for arms in arms_of.values()
        if len(arms) > 1
    ]
    if unknown := list(dict.fromkeys(record["arm"] for record in records if record["pairing"].get("batches") is None)):
        texts.append(f"It could not be checked whether these arms had the same batches as the others: {', '.join(unknown)}.")
    for key, words in (("device", "devices"), ("precision", "precisions"), ("versions", "versions")):
        if len(mixed := distinct(records, key)) > 1:
            texts.append(f"The runs had different {words}: {'; '.join(mixed)}.")
    for name in dict.fromkeys(name for record in records for name in record["tests"]):
        sizes = {record["tests"][name]["n"] for record in records if name in record["tests"]} - {None}
        if len(sizes) > 1:
            texts.append(f"{name}: the runs were tested on different numbers of images ({', '.join(map(str, sorted(sizes)))}).")
    for record in records:
        for name, test in record["tests"].items():
            if broken := [key for key, value in test["metrics"].items() if not _is_finite(value)]:
                texts.append(
                    f"{record['arm']}, seed {record['seed']}, {name}: no number in {', '.join(broken)}; left out of the means."
                )
    return texts


def distinct(records: Sequence[Record], key: str) -> list[str]:
    """The different values of a key, as words."""
    return list(dict.fromkeys(_words(record[key]) for record in records))


def _words(value: Any) -> str:
    return ", ".join(f"{name} {one}" for name, one in value.items()) if isinstance(value, Mapping) else str(value)


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
