"""What a reader of a trial's numbers has to know besides: runs that are not paired, mixed versions, equal configs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["are_paired", "distinct", "notes", "unpaired_seeds"]

PAIRING = {"start": "initial weights", "batches": "training batches"}

Record = Mapping[str, Any]


def are_paired(record: Record, other: Record, test_set: str = "") -> bool:
    """Whether two runs of one seed had the same start, batches and test images; what a run does not know is taken as equal."""
    digests = [(record["pairing"].get(what), other["pairing"].get(what)) for what in PAIRING]
    digests.append((_test_digest(record, test_set), _test_digest(other, test_set)))
    return all(one == two or None in (one, two) for one, two in digests)


def unpaired_seeds(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Seeds whose arms did not have the same start, batches or test images, as `{"seed", "what", "arms", "text"}`.

    Args:
        records: of finished runs.
    """
    unpaired = []
    for seed in sorted({record["seed"] for record in records}):
        of_seed = [record for record in records if record["seed"] == seed]
        kinds = {what: (words, [record["pairing"].get(what) for record in of_seed]) for what, words in PAIRING.items()}
        for name in _test_sets(of_seed):
            kinds[f"test {name}"] = f"test images of {name}", [_test_digest(record, name) for record in of_seed]
        for what, (words, digests) in kinds.items():
            groups = _grouped(digests, [record["arm"] for record in of_seed])
            if len(groups) > 1:
                sides = " / ".join(", ".join(side) for side in groups)
                text = f"Seed {seed}: not all arms had the same {words} ({sides}). Differences between these arms are not paired."
                unpaired.append({"seed": seed, "what": what, "arms": groups, "text": text})
    return unpaired


def notes(records: Sequence[Record]) -> list[str]:
    """Sentences about equal configs, data that differ, mixed devices and versions, lost numbers, trainings that ended early.

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
    texts += _without_effect(records)
    if unknown := list(dict.fromkeys(record["arm"] for record in records if record["pairing"].get("batches") is None)):
        texts.append(f"It could not be checked whether these arms had the same batches as the others: {', '.join(unknown)}.")
    for key, words in (("device", "devices"), ("precision", "precisions"), ("versions", "versions")):
        if len(mixed := distinct(records, key)) > 1:
            texts.append(f"The runs had different {words}: {'; '.join(mixed)}.")
    texts += _other_data(records) + _other_lengths(records)
    for name in _test_sets(records):
        sizes = {record["tests"][name]["n"] for record in records if name in record["tests"]} - {None}
        if len(sizes) > 1:
            texts.append(f"{name}: the runs were tested on different numbers of images ({', '.join(map(str, sorted(sizes)))}).")
        if left_out := max(record["tests"].get(name, {}).get("unlabelled", 0) for record in records):
            texts.append(f"{name}: {left_out} images have a negative label, which is no class; they are not counted.")
    for record in records:
        for name, test in record["tests"].items():
            if test.get("not_finite"):
                run, count = f"{record['arm']}, seed {record['seed']}, {name}", test["not_finite"]
                texts.append(f"{run}: the logits of {count} images are not finite, the network diverged; no accuracy is counted.")
            if broken := [key for key, value in test["metrics"].items() if not _is_finite(value)]:
                texts.append(
                    f"{record['arm']}, seed {record['seed']}, {name}: no number in {', '.join(broken)}; left out of the means."
                )
    return texts


def distinct(records: Sequence[Record], key: str) -> list[str]:
    """The different values of a key, as words."""
    return list(dict.fromkeys(_words(record[key]) for record in records))


def _without_effect(records: Sequence[Record]) -> list[str]:
    """Arms of different configs that ended with the same weights on every seed."""
    configs = {record["arm"]: record["hash"] for record in records}
    weights: dict[str, dict[int, str]] = {arm: {} for arm in configs}
    for record in records:
        if record.get("weights"):  # older records do not know them
            weights[record["arm"]][record["seed"]] = record["weights"]
    alike: dict[frozenset[tuple[int, str]], list[str]] = {}
    for arm, of in weights.items():
        if of:
            alike.setdefault(frozenset(of.items()), []).append(arm)
    return [
        f"{' and '.join(arms)} ended with the same weights on every seed: what tells them apart had no effect (an augmentation "
        "that begins after the last epoch, for instance)."
        for arms in alike.values()
        if len({configs[arm] for arm in arms}) > 1
    ]


def _other_data(records: Sequence[Record]) -> list[str]:
    """What seeds did not have in common, which may be meant."""
    digests = {"training data": [record["pairing"].get("data") for record in records]}
    digests |= {f"test images of {name}": [_test_digest(record, name) for record in records] for name in _test_sets(records)}
    found: dict[str, list[str]] = {}
    for words, of in digests.items():
        groups = _grouped(of, [str(record["seed"]) for record in records])
        if len(groups) > 1 and len({tuple(seeds) for seeds in groups}) > 1:  # not only the arms of a seed
            of_each = [f"seed{'s' * (len(seeds) > 1)} {', '.join(sorted(seeds, key=int))}" for seeds in groups]
            all_differ = max(map(len, groups)) == 1
            between = "from seed to seed" if all_differ else f"between seeds ({' and '.join(of_each)})"
            found.setdefault(between, []).append(words)
    what = {between: " and ".join(words) for between, words in found.items()}
    return [
        f"{words[:1].upper()}{words[1:]} differ {between}: drawn by the seed, or changed in between."
        for between, words in what.items()
    ]


def _other_lengths(records: Sequence[Record]) -> list[str]:
    """Runs that were not trained as long as planned, or as the other arms of their seed."""
    short: dict[str, list[str]] = {}
    differing: dict[str, list[str]] = {}
    for record in records:
        epochs, planned = record["train"].get("epochs"), record["train"].get("planned")
        if epochs is not None and planned is not None and epochs < planned:
            short.setdefault(f"the training was ended in epoch {epochs} of {planned}", []).append(
                f"{record['arm']}, seed {record['seed']}"
            )
    for seed in sorted({record["seed"] for record in records}):
        steps = {record["arm"]: record["train"].get("steps") for record in records if record["seed"] == seed}
        if len(set(steps.values()) - {None}) > 1:
            differing.setdefault(", ".join(f"{arm} {count}" for arm, count in steps.items()), []).append(str(seed))
    texts = [f"{'; '.join(runs)}: {text}." for text, runs in short.items()]
    return texts + [f"The arms had different numbers of steps ({text}; seed {', '.join(of)})." for text, of in differing.items()]


def _grouped(digests: Sequence[str | None], names: Sequence[str]) -> list[list[str]]:
    """Names of those that have the same digest, each once; who knows none is in no group."""
    groups: dict[str, list[str]] = {}
    for digest, name in zip(digests, names, strict=True):
        if digest is not None and name not in groups.setdefault(digest, []):
            groups[digest].append(name)
    return list(groups.values())


def _test_sets(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record["tests"]))


def _test_digest(record: Record, test_set: str) -> str | None:
    digest: str | None = record["tests"].get(test_set, {}).get("digest")
    return digest


def _words(value: Any) -> str:
    return ", ".join(f"{name} {one}" for name, one in value.items()) if isinstance(value, Mapping) else str(value)


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
