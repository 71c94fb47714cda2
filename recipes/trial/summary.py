"""What finished runs say: JSON with everything, Markdown tables to be read, plots. Nothing is trained here."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from groupcam_aug.files import put_file
from groupcam_aug.recipes.trial.arms import read_arm
from groupcam_aug.recipes.trial.regimes import Metric
from groupcam_aug.recipes.trial.run import read_record
from groupcam_aug.recipes.trial.statistics import compare, mean_and_error, positive_control, recovered
from groupcam_aug.recipes.trial.tables import as_markdown, metrics_of, regime_class
from groupcam_aug.recipes.trial.training import Machine

__all__ = ["MARGIN", "summarise", "write_summary"]

MARGIN = 0.3  # points within which a difference counts as none
CONTROLS = ("cutmix", "erase", "erase,area=0.18")  # the last: about the area that RandomErasing is published with
CONTROL_MASKS: dict[str, Literal["other", "centre"]] = {"to_other": "other", "to_centre": "centre"}
Planned = Callable[[str, str, Machine, Path], list[tuple[str, str, int]]]


def write_summary(folder: Path, study: str, reference: str, *, planned: Planned | None = None) -> list[Path]:
    """Write ``STUDY.json``, ``STUDY.md`` and plots of the finished runs in `folder`/runs, beside them.

    Args:
        folder: of the study.
        study: its name.
        reference: name of the arm that others are compared with.
        planned: says what the study's own plan has and `folder` has not, for the list of what was not run.

    Returns:
        The files written; none without a finished run.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a broken record, or runs that should be paired and are not.
    """
    from groupcam_aug.recipes.trial.plots import forest, gains_by_alignment

    if not folder.is_dir():
        raise FileNotFoundError(f"{str(folder)!r} is no folder of a study")
    paths = sorted((folder / "runs").glob(f"{study}__*.json"))
    records = [read_record(path) for path in paths]
    if not records:
        return []
    summary = summarise(records, reference)
    if planned is not None:
        for size, machine in dict.fromkeys((group["size"], Machine(**group["machine"])) for group in summary["regimes"]):
            missing = planned(study, size, machine, folder)
            told = [{"regime": regime, "arm": arm, "seeds": seeds} for regime, arm, seeds in missing]
            summary["not_run"] += [{"size": size, "device": machine.device} | one for one in told]
    plots = {f"{study}_forest.png": forest(summary), f"{study}_alignment.png": gains_by_alignment(summary)}
    contents: dict[str, bytes | str] = {name: content for name, content in plots.items() if content is not None}
    contents[f"{study}.md"] = as_markdown(summary, [name for name in contents if name.endswith(".png")])
    contents[f"{study}.json"] = json.dumps(summary, indent=1, allow_nan=False) + "\n"
    for name in plots.keys() - contents.keys():
        (folder / name).unlink(missing_ok=True)  # of an earlier summary, against another reference
    for name, content in contents.items():
        put_file(folder, name, content)
    return [folder / name for name in contents]


def summarise(records: Sequence[Mapping[str, Any]], reference: str = "none") -> dict[str, Any]:
    """All numbers of a study, as plain values in the units they are told in (shares in percent, differences in points).

    Args:
        records: of finished runs of one study.
        reference: the arm that others are compared with.

    Raises:
        ValueError: runs of one seed that did not have the same data, start or batches; a reference that was not run.
    """
    arms = dict.fromkeys(record["arm"] for record in records)
    if reference != "none" and reference not in arms:
        raise ValueError(f"no run of the reference {reference!r}; there are {', '.join(arms)}")
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        settings = record["settings"]
        key = json.dumps([settings["regime"], settings["machine"], settings["protocol"]], sort_keys=True)
        groups.setdefault(key, []).append(record)
    study = records[0]["study"]
    regimes = [_of_regime(own, metrics_of(study), reference) for own in groups.values()]
    versions = sorted({json.dumps(record["versions"], sort_keys=True) for record in records})
    return {
        "study": study,
        "reference": reference,
        "margin": MARGIN,
        "regimes": sorted(regimes, key=lambda group: _in_order(group["name"])),
        "not_run": [],
        "versions": [json.loads(one) for one in versions],
    }


def _of_regime(records: Sequence[Mapping[str, Any]], metrics: Sequence[Metric], reference: str) -> dict[str, Any]:
    first = records[0]
    _check_pairing(records)
    by_arm: dict[str, dict[int, Mapping[str, Any]]] = {}
    for record in records:
        other = by_arm.setdefault(record["arm"], {}).setdefault(record["seed"], record)
        if other["hash"] != record["hash"]:
            raise ValueError(
                f"{record['study']} {record['regime']}: two runs of {record['arm']}, seed {record['seed']}, with other settings "
                f"({other['hash']}, {record['hash']}); delete one"
            )
    values = {
        arm: {
            m.name: {seed: m.scale * one["metrics"][m.name] for seed, one in runs.items() if _is_there(one, m)} for m in metrics
        }
        for arm, runs in by_arm.items()
    }
    class_of = regime_class(first["study"])
    timed = "cpu_seconds" if first["settings"]["machine"]["device"] == "cpu" else "seconds"
    arms = []
    for name in sorted(by_arm, key=_in_table):
        runs = by_arm[name]
        difference, shares = {}, {}
        controls: dict[str, dict[str, Any]] = {key: {} for key in CONTROL_MASKS}
        for m in metrics:
            own, base = values[name][m.name], values.get(reference, {}).get(m.name, {})
            if name != reference and (pair := _paired(own, base)):
                difference[m.name] = _compared(pair, m)
            for key, mask in CONTROL_MASKS.items():
                if (twin := _twin(name, mask, by_arm)) and (pair := _paired(own, values[twin][m.name])):
                    controls[key][m.name] = _compared(pair, m)
            best = values.get(_ceiling(name, by_arm) or "", {}).get(m.name, {})
            if name != reference and (three := _paired(own, base, best)) and (share := recovered(*three)):
                shares[m.name] = dict(zip(("share", "low", "high"), map(_finite, share), strict=True))
        cost = _paired({s: r[timed] for s, r in runs.items()}, {s: r[timed] for s, r in by_arm.get("none", {}).items()})
        arms.append(
            {
                "name": name,
                "n": len(runs),
                "seeds": sorted(runs),
                "metrics": {m.name: _summed(values[name][m.name]) for m in metrics if values[name][m.name]},
                "difference": difference,
                **controls,
                "ceiling": _ceiling(name, by_arm),
                "recovered": shares,
                "cost": sum(cost[0]) / sum(cost[1]) if cost and sum(cost[1]) else None,
                "seconds": sum(run["seconds"] for run in runs.values()) / len(runs),
                "facts": {key: _summed(of) for key in _FACTS if (of := _facts(runs, key))},
            }
        )
    clean = {arm: of[class_of.clean] for arm, of in values.items()}
    control = positive_control(clean, "none", CONTROLS, margin=MARGIN)
    return {
        "name": first["regime"],
        "size": first["size"],
        "device": first["device"],
        "machine": first["settings"]["machine"],
        "settings": first["settings"]["regime"],
        "protocol": first["settings"]["protocol"],
        "seeds": sorted({record["seed"] for record in records}),
        "primary": class_of.primary,
        "control": {
            "works": control.works,
            "by": control.by,
            "metric": class_of.clean,
            "difference": None if control.comparison is None else _plain(control.comparison),
        },
        "arms": arms,
    }


def _check_pairing(records: Sequence[Mapping[str, Any]]) -> None:
    seen: dict[tuple[int, str], tuple[str, str]] = {}
    for record in records:
        for key, value in record["pairing"].items():
            if value is None:
                continue
            before, arm = seen.setdefault((record["seed"], key), (value, record["arm"]))
            if value != before:
                raise ValueError(
                    f"{record['study']} {record['regime']}, seed {record['seed']}: arms {arm} and {record['arm']} did not have "
                    f"the same {key}: they cannot be compared (other library versions, or other files?); delete the runs of one"
                )


def _twin(name: str, mask: Literal["other", "centre"], known: Mapping[str, Any]) -> str | None:
    """The very same arm with that control mask, if it has been run. Arms that hide what is salient have none."""
    arm = read_arm(name)
    if arm.kind != "map" or arm.mask in (mask, "whole", "inverse") or arm.inverse_share or arm.other_share:
        return None
    own = arm.twin(mask).name
    return own if own in known else None


def _ceiling(name: str, known: Mapping[str, Any]) -> str | None:
    """Object masks with the same fill, or with blur."""
    arm = read_arm(name)
    if arm.kind != "map" or arm.map == "oracle":
        return None
    ceiling = "masks" if arm.fill == "blur" else f"masks,fill={arm.fill}"
    return ceiling if ceiling in known else "masks" if "masks" in known else None


def _in_table(name: str) -> tuple[int, str]:
    from groupcam_aug.recipes.trial.arms import ARMS

    return list(ARMS).index(name.split(",")[0]), name


def _in_order(name: str) -> tuple[str, ...]:
    """Numbers in names sort as numbers: rho0.5 before rho0.95, 50 before 500."""
    import re

    return tuple(part.zfill(8) if part.isdigit() else part for part in re.split(r"(\d+)", name))


def _paired(*values: Mapping[int, float]) -> tuple[list[float], ...] | None:
    """The values over the seeds that all have."""
    seeds = sorted(set.intersection(*(set(one) for one in values)))
    return tuple([one[seed] for seed in seeds] for one in values) if seeds else None


def _is_there(record: Mapping[str, Any], metric: Metric) -> bool:
    return record["metrics"].get(metric.name) is not None


_FACTS = ("replaced", "no_map", "object_kept", "ground_replaced", "alignment", "loss")


def _facts(runs: Mapping[int, Mapping[str, Any]], key: str) -> dict[int, float]:
    if key == "alignment":  # of the masks, where they were counted: records have that of the maps, soft ones and hard ones
        kept, replaced = _facts(runs, "object_kept"), _facts(runs, "replaced")
        if kept:
            return {seed: share / (1 - replaced[seed]) for seed, share in kept.items() if replaced.get(seed, 1.0) < 1}
    return {seed: run["facts"][key] for seed, run in runs.items() if run["facts"].get(key) is not None}


def _summed(values: Mapping[int, float]) -> dict[str, Any]:
    mean, error = mean_and_error(list(values.values()))
    return {"mean": mean, "error": error, "values": {str(seed): value for seed, value in sorted(values.items())}}


def _compared(pair: Sequence[list[float]], metric: Metric) -> dict[str, Any]:
    """A comparison as plain values; the margin of equivalence is in points, so only shares have one."""
    found = _plain(compare(*pair, margin=MARGIN))
    return found if metric.scale == 100 else found | {"equivalence": None}


def _plain(comparison: Any) -> dict[str, Any]:
    return {key: _finite(value) for key, value in comparison._asdict().items()}


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None
