"""What in a run's records deserves a look, in plain words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from groupcam_aug.callbacks.records.augmentation_stats import CLASSES
from groupcam_aug.callbacks.report_page.run_records import RunRecords, higher_is_better, main_metric, series
from groupcam_aug.cam import COARSE

__all__ = ["Finding", "findings", "overhead", "verdict", "watching_share", "worst_classes"]

ENOUGH = 20  # images of a class, below which its share without a map says little
UNEVEN = 0.3  # by which the share of a class that is augmented may differ from that of all
MISSING = 0.2  # share of a class without a map from which it is reported
FALL = 0.05  # of a validation score below its best
SETTLED = 0.05  # change up to which maps hardly move, where the monitor does not say
CONTROLS = ("centre", "random", "inverted")  # beginnings of the names of what every method must beat
CUT = 0.3  # of the highest learning rate: below it the rate counts as cut
MONITOR_SHARE = 0.02  # of the training time that watching may take
NOTICEABLE = 0.5  # seconds of a probing, below which its share does not matter


class Finding(NamedTuple):
    """One sentence for the top of the report, and what it means."""

    level: Literal["warning", "note"]
    text: str
    why: str


def findings(records: RunRecords) -> list[Finding]:
    """Everything that deserves a look, warnings first, or is good to know.

    Args:
        records: of the run.
    """
    parts = (_files, _run, _score, _blocks, _maps, _augmentation, _cost, _evaluation)
    every = [finding for part in parts for finding in part(records)]
    return sorted(every, key=lambda finding: finding.level != "warning")


def verdict(findings: list[Finding]) -> str:
    """How many warnings there are, in a sentence."""
    count = sum(finding.level == "warning" for finding in findings)
    if not count:
        return "Nothing stands out."
    return "One thing deserves a look." if count == 1 else f"{count} things deserve a look."


def worst_classes(line: dict[str, Any]) -> list[tuple[str, float, float]]:
    """(label, drawn, share without a map) of one epoch's `per_class`, worst share first, then the larger class."""
    rows = [(label, drawn, missing / drawn) for label, (drawn, missing) in (line.get("per_class") or {}).items() if drawn > 0]
    return sorted(rows, key=lambda row: (-row[2], -row[1], int(row[0])))


def overhead(line: dict[str, Any]) -> float | None:
    """Share that the augmentation adds to a training step, over all steps of an epoch; None where it was not timed."""
    seconds, plain, steps = line.get("seconds"), line.get("plain_seconds"), line.get("steps")
    if not seconds or not plain or not steps:
        return None
    return seconds * line.get("augmented_steps", steps) / (plain * steps)


def _files(records: RunRecords) -> Iterator[Finding]:
    if records.problems:
        count = len(records.problems)
        files = "A file of the records" if count == 1 else f"{count} files of the records"
        some = "; ".join(list(records.problems.values())[:5]) + (f"; and {count - 5} more" if count > 5 else "")
        yield Finding("warning", f"{files} could not be read as a whole.", f"This page does without: {some}.")
    if records.mixed:
        yield Finding(
            "warning",
            "Another run wrote into this folder at the same time.",
            f"{records.others} of its records are left out; pictures may be its. Give each run another log directory, by its "
            "logger's name or version, or by default_root_dir.",
        )
    elif records.others:
        text = f"{records.others} records of other runs in this folder are left out."
        yield Finding("note", text, "The run that began last is shown, with those that it resumes.")


def _run(records: RunRecords) -> Iterator[Finding]:
    status = str(records.run.get("status", ""))
    if status.startswith("stopped"):
        yield Finding("warning", f"The run did not finish: {status}.", "What follows is what it had recorded until then.")
    for name in ("train/loss", "train_loss", "loss", "val/loss", "val_loss"):
        lines = [line for line in records.epochs if name in line]
        if lines and lines[-1][name] is None:
            finite = max((i for i, line in enumerate(lines) if line[name] is not None), default=-1)
            since = lines[finite + 1]["epoch"]
            yield Finding("warning", f"{name} is not a finite number since epoch {since}.", "Training has diverged.")
            return


def _score(records: RunRecords) -> Iterator[Finding]:
    """A validation score, in [0, 1], that ends far below its best."""
    name = main_metric(records.epochs)
    if name is None or "val" not in name.lower() or not higher_is_better(name):
        return
    epochs, values = series(records.epochs, name)
    best = max(range(len(values)), key=values.__getitem__)
    if not 0 <= min(values) <= values[best] <= 1 or values[best] - values[-1] < FALL:
        return
    first = records.drawn_epochs[0]["epoch"] if records.drawn_epochs else -1
    yield Finding(
        "warning",
        f"{name} ended at {values[-1]:.1%}, after {values[best]:.1%} in epoch {epochs[best]:g}.",
        "Take the best checkpoint, not the last. "
        + (
            f"The augmentation began in epoch {first}, after the best one: a run without it tells whether it is the cause "
            "(groupcam-aug trial)."
            if first > epochs[best]
            else "Overfitting, too high a learning rate, or few validation images."
        ),
    )


def _maps(records: RunRecords) -> Iterator[Finding]:
    if not records.probings:
        return
    last = records.probings[-1]
    alive, noise = last.get("alive"), last.get("noise")
    enough = records.min_alive
    if alive is not None and alive < enough:
        yield Finding(
            "warning",
            f"Only {alive:.0%} of the probes have a map.",
            "Change and noise are means over few images, and say little. Grad-CAM (the monitor's default) leaves fewer images "
            "without a map than Group-CAM does.",
        )
    cut = _cut(records)
    epochs, change = series(records.compared, "change")
    trusted = len(change) >= 3 and (alive is None or alive >= enough)
    if cut is not None:
        before, at, after = cut
        yield Finding(
            "warning",
            "Change fell with the learning rate, not before it.",
            f"It was {before:.2f} at epoch {at}, before the rate fell below {CUT:.0%} of its maximum, and is "
            f"{after:.2f} now. A network that hardly moves keeps its maps, finished or not.",
        )
    elif last.get("converged_epoch") is not None:
        yield Finding(
            "note",
            f"The maps had settled by epoch {last['converged_epoch']:g}.",
            "The learning rate was not cut by then. Stable explanations are necessary for a finished network, not sufficient.",
        )
    elif trusted and change[-1] > 0.3 and str(records.run.get("status")) == "finished":
        yield Finding(
            "note",
            f"The maps still change: {change[-1]:.2f} at the last probing (epoch {epochs[-1]:g}).",
            "0 = the maps of the probing before, 1 = unrelated ones. The network has not made up its mind where to look.",
        )
    if noise is not None and noise > 0.5 and trusted:
        yield Finding(
            "warning",
            f"The maps are noisy: {noise:.2f}.",
            "An image and its mirror image are explained by different places. Expected early on, with random labels, and where "
            "mirroring changes the class.",
        )
    flip, right = last.get("flip_rate"), last.get("probe_right")
    correct = sum(right) / len(right) if right else None  # `correct` of the line is the share right at both probings
    if correct is not None and correct < 0.5:
        yield Finding(
            "note",
            f"Only {correct:.0%} of the probes are classified correctly.",
            "For a wrong one the map of its label shows what little speaks for it."
            + (f" {flip:.0%} changed their predicted class since the probing before." if flip else ""),
        )


def _cut(records: RunRecords) -> tuple[float, int, float] | None:
    """Change at the last probing before the rate was cut, its epoch, and change now; None unless it fell with the rate."""
    rates = dict(zip(*series([*records.probings, *records.epochs], "lr"), strict=True))
    epochs, change = series(records.compared, "change")
    points = [(epoch, value, rates[epoch]) for epoch, value in zip(epochs, change, strict=True) if epoch in rates]
    if len(points) < 3 or not (highest := max(rates.values())):
        return None
    peak = max(epoch for epoch, rate in rates.items() if rate == highest)  # before it the rate is low because it is rising
    high = [(epoch, value) for epoch, value, rate in points if rate >= CUT * highest or epoch <= peak]
    low = [value for epoch, value, rate in points if rate < CUT * highest and epoch > peak]
    if not high or not low or high[-1][0] > points[-1 - len(low)][0]:  # the rate rose again: nothing is said about now
        return None
    at, before = high[-1]
    return (before, int(at), low[-1]) if before > records.monitor.get("threshold", SETTLED) and low[-1] <= before / 2 else None


def _augmentation(records: RunRecords) -> Iterator[Finding]:
    if not records.augmentation_epochs:
        return
    if not records.drawn_epochs:
        yield Finding(
            "warning",
            "No image has been augmented.",
            "p is 0, the epoch to start with has not come, or the run was too short for a drawn image.",
        )
        return
    line = records.drawn_epochs[-1]
    missing = line["no_map"] / line["drawn"]
    yield from _uneven(records, line)
    if records.augmentation.get("source") == "masks":
        if missing >= 0.3:
            yield Finding(
                "warning",
                f"{missing:.0%} of the drawn images had an empty object mask in epoch {line['epoch']} and were left as they are.",
                "The object masks come with the batches: see which of them are all zero.",
            )
        return
    if missing >= 0.3:
        yield Finding(
            "warning",
            f"{missing:.0%} of the drawn images had no map in epoch {line['epoch']} and were left as they are.",
            "No group of channels raised the score of their class above that of the blurred image. Usual in the first epochs, "
            "and for classes that a blurred image resembles; importance weights (weights='gradient') help.",
        )
    blind = [row for row in worst_classes(line) if row[2] >= MISSING and row[1] >= ENOUGH and row[2] > 1.2 * missing][:3]
    if blind:
        shares = " and ".join(f"{share:.0%} of {_class_and_name(records, label)}" for label, _, share in blind)
        yield Finding(
            "warning",
            f"{shares} have no map.",
            f"Epoch {line['epoch']}, {' and '.join(f'{drawn:,.0f}' for _, drawn, _ in blind)} images drawn. They are trained on "
            "unchanged: a class that its blurred image resembles is invisible to this method.",
        )
    others = (line.get("other_classes") or [0])[0]
    if others:
        yield Finding(
            "note",
            f"{others:,.0f} of the images drawn in epoch {line['epoch']} have labels that are not counted by class.",
            f"Labels from 0 to {CLASSES - 1:,} are.",
        )
    keep = line.get("keep_fraction")
    thresholded = records.augmentation.get("mask_from", "saliency") in ("saliency", "other", "centre", "inverse")
    if keep is not None and thresholded and not 0.1 <= keep <= 0.9:
        effect = "nearly everything is blurred" if keep < 0.1 else "nearly nothing is changed"
        yield Finding(
            "warning",
            f"{keep:.0%} of the pixels are kept: {effect}.",
            "Masks have collapsed. Look at the samples below; threshold='q0.5' keeps half of every image.",
        )


def _blocks(records: RunRecords) -> Iterator[Finding]:
    """Maps of a few cells, those of the augmentation first."""
    used, watched = records.augmentation, records.monitor
    for grid, layer, effect in (
        ((used.get("layer_shape") or [])[-2:], used.get("layer"), "whole blocks are kept or blurred"),
        (watched.get("cells") or [], watched.get("layer"), "they can only pick blocks, not follow an object"),
    ):
        if len(grid) == 2 and min(grid) < COARSE:
            yield Finding(
                "warning",
                f"Maps have {grid[0]} x {grid[1]} cells.",
                f"Layer {layer} is that coarse for images of this size: {effect}. Use larger images, or an earlier layer with "
                "layer=.",
            )
            return


def _uneven(records: RunRecords, line: dict[str, Any]) -> Iterator[Finding]:
    """Classes augmented far more or less often than all images together, by more than the chance of so many draws."""
    rows = [(_class_and_name(records, label), drawn, 1 - empty) for label, drawn, empty in worst_classes(line)]
    drawn, empty = line.get("unlabelled") or (0, 0)
    rows += [("the images without any label", drawn, 1 - empty / drawn)] if drawn else []
    share = sum(count * part for _, count, part in rows) / (sum(count for _, count, _ in rows) or 1)
    far = [
        (abs(part - share), name, part)
        for name, count, part in rows
        if count >= ENOUGH and abs(part - share) > max(UNEVEN, 3 * (share * (1 - share) / count) ** 0.5)
    ]
    if far:
        named = " and ".join(f"{part:.0%} of {name}" for _, name, part in sorted(far, reverse=True)[:3])
        yield Finding(
            "warning",
            f"Whether an image is augmented depends on its class: {named}, {share:.0%} of all.",
            f"Shares of the images drawn in epoch {line['epoch']} that had a map. Where they differ that much the blur itself "
            "tells the network the class. target_key=None (each image's first choice) and mask_from='other' do not depend on it.",
        )


def _class_and_name(records: RunRecords, label: str) -> str:
    name = records.class_name(label)
    return name if name == f"class {label}" else f"class {label} ({name})"


def _cost(records: RunRecords) -> Iterator[Finding]:
    share = overhead(records.augmentation_epochs[-1]) if records.augmentation_epochs else None
    if share is not None and share > 1:
        yield Finding(
            "note",
            f"The augmentation makes a training step {1 + share:.1f} times as long.",
            "Expected of the preset `paper` (G + 2 forward passes per image); `fast` costs a small part of that.",
        )
    watching = watching_share(records)
    seconds = [line.get("seconds") or 0 for line in records.probings]
    if watching is not None and watching > MONITOR_SHARE and sum(seconds) / len(seconds) >= NOTICEABLE:
        yield Finding(
            "warning",
            f"Watching the probes takes {watching:.1%} of the training time.",
            "Fewer probes (num_images=) or fewer probings (every_n_epochs=) bring it down.",
        )


def watching_share(records: RunRecords) -> float | None:
    """Share of the training time that the monitor's probings took; None where either was not timed."""
    total = sum(line.get("seconds") or 0 for line in records.epochs)
    spent = sum(line.get("seconds") or 0 for line in records.probings)
    return spent / (total - spent) if spent and total > spent else None


def _evaluation(records: RunRecords) -> Iterator[Finding]:
    methods = records.evaluation.get("methods") or {}
    over_all = {
        name: method["insertion"]["auc"] - method["deletion"]["auc"]
        for name, method in methods.items()
        if method.get("insertion") and method.get("deletion")
    }
    controls = [name for name in over_all if name.startswith(CONTROLS)]
    best = max(controls, key=lambda name: over_all[name], default=None)
    beaten = [name for name in over_all if best is not None and name not in controls and over_all[name] <= over_all[best]]
    if best is not None and beaten:
        yield Finding(
            "warning",
            f"{' and '.join(beaten)} find{'s' if len(beaten) == 1 else ''} what matters no better than a {best} does.",
            f"Insertion less deletion: {', '.join(f'{name} {over_all[name]:.3f}' for name in [*beaten, best])}. Such maps say "
            "little about what the network needs.",
        )
    sanity = records.evaluation.get("sanity") or {}
    values = [value for value in sanity.get("spearman") or [] if value is not None]
    floor = (sanity.get("floors") or {}).get("other_image")
    standing = ", ".join(sanity.get("standing") or ())
    if sanity.get("mode") == "independent" and sanity.get("passed") is False and standing and floor is not None:
        yield Finding(
            "warning",
            f"The maps survive new weights of {standing}.",
            f"With these alone drawn anew, maps stay liker to the original ones than two images' maps ({floor:.2f}).",
        )
    elif sanity.get("passed") is False and values and floor is not None and values[-1] > max(floor, 0.0) + 0.05:
        yield Finding(
            "warning",
            f"The maps survive a network of random weights: rank correlation {values[-1]:.2f} with the original ones.",
            f"Maps of two different images correlate at {floor:.2f}. A map that does not depend on the weights explains nothing.",
        )
