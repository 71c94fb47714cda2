"""What a trial's numbers say, in plain words, and no more than they say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["difference_text", "judge", "margin_text", "number_text", "verdict"]

Summary = Mapping[str, Any]

FEW = 5  # seeds; up to here the exact sign-flip p cannot be below 0.05, which is said
SHOWN = 0.05  # of the equivalence test's p
WORDS = {
    "gain": "gain shown",
    "loss": "loss shown",
    "equal": "no difference beyond ±{margin}",
    "open": "no gain shown",
    "one seed": "one seed, so nothing can be said",
    "no spread": "the same difference on every seed, no spread to judge it by, so nothing is shown",
    "not paired": "the runs are not paired, so nothing is shown",
}
AGAINST_CONTROL = {
    "gain": "the place of the mask counts",
    "loss": "worse than without knowing the place",
    "equal": "the same augmentation elsewhere does as well",
    "open": "no evidence that the place of the mask counts",
}


def judge(comparison: Mapping[str, Any], *, mode: str = "max") -> str:
    """What one comparison of a summary shows.

    Args:
        comparison: with low, high, equivalence, n and paired, as `summarise` makes it.
        mode: "max" where higher is better, "min" where lower is.

    Returns:
        "gain" or "loss" (Student's interval is on one side of zero), "equal" (within the margin, by two one-sided t tests, p <
        0.05), "open" (none of these), or why nothing can be shown: "one seed", "no spread", "not paired".
    """
    if not comparison["paired"]:
        return "not paired"
    if comparison["n"] < 2:
        return "one seed"
    if comparison["low"] is None:
        return "no spread"
    better, worse = comparison["low"] > 0, comparison["high"] < 0
    if mode == "min":
        better, worse = worse, better
    if better or worse:
        return "gain" if better else "loss"
    return "equal" if comparison["equivalence"] < SHOWN else "open"


def verdict(summary: Summary) -> dict[str, Any]:
    """A trial's conclusion and a sentence for each arm and test set, as plain values.

    Args:
        summary: of `summarise`.

    Returns:
        `conclusion`: one line for each thing there is to say. `sentences`: a list of `{"arm", "test_set", "kind", "control",
        "text"}`, kinds as `judge` has them, None where the arm is not compared with the reference or a control. `caveats`: what
        to keep in mind, a list of sentences. `comparisons`: number of intervals behind it all.
    """
    sentences = [
        _sentence(summary, name, arm, of["to_reference"].get(summary["metric"]), of["to_control"].get(summary["metric"]))
        for name, test_set in summary["test_sets"].items()
        for arm, of in test_set["arms"].items()
        if arm != summary["reference"]
    ]
    sentences = [sentence for sentence in sentences if sentence]
    return {
        "conclusion": _conclusion(summary, sentences),
        "sentences": sentences,
        "caveats": _caveats(summary),
        "comparisons": len([one for one in _all_comparisons(summary) if one["low"] is not None]),
    }


def difference_text(comparison: Mapping[str, Any], unit: str) -> str:
    """A difference with its interval: "+0.3 [-0.4, +1.0] points"; without an interval where there is none.

    Args:
        comparison: with mean, low and high.
        unit: "points", or nothing for metrics as they were logged.
    """
    values = [comparison["mean"], *(one for one in (comparison["low"], comparison["high"]) if one is not None)]
    # A bound just beside zero must not read as zero.
    digits = 1 if all(round(abs(value), 1) > 0 for value in values[1:]) else 2
    mean, *bounds = [f"{value:+.{digits}f}" if unit else f"{value:+.3g}" for value in values]
    interval = f"{mean} [{', '.join(bounds)}]" if bounds else mean
    return f"{interval} {unit}".strip()


def number_text(value: float | None, unit: str) -> str:
    """A number without sign: one decimal for percent and points, three digits otherwise; a dash for none."""
    if value is None:
        return "–"
    return f"{value:.1f}" if unit else f"{value:.3g}"


def _sentence(
    summary: Summary, test_set: str, arm: str, over: Mapping[str, Any] | None, control: Mapping[str, Any] | None
) -> dict[str, Any]:
    if over is None and control is None:
        return {}
    parts: list[str] = []
    kinds: list[str | None] = []
    what = "" if summary["metric"] == "accuracy" else f", {summary['metric']}"
    lower = " (lower is better)" if summary["mode"] == "min" else ""
    for one, name in ((over, summary["reference"]), (control, f"its control {control['other']}" if control else "")):
        if one is None:
            kinds.append(None)
            continue
        kind = judge(one, mode=summary["mode"])
        words = "shown to be worse" if kind == "loss" and lower else WORDS[kind].format(margin=margin_text(summary))
        if one is control:
            words = AGAINST_CONTROL.get(kind, words)
        elif kind in ("gain", "loss") and one["equivalence"] < SHOWN:
            words += f", smaller than {margin_text(summary)}"
        kinds.append(kind)
        seeds = f"{one['n']} seed{'s' * (one['n'] != 1)}"
        where = "" if parts else f" on {seeds}, {test_set}{what}{lower}"
        parts.append(f"{difference_text(one, summary['unit'])} over {name}{where}: {words}.")
    return {"arm": arm, "test_set": test_set, "kind": kinds[0], "control": kinds[1], "text": f"{arm}: {' '.join(parts)}"}


def _conclusion(summary: Summary, sentences: list[dict[str, Any]]) -> str:
    reference = summary["reference"]
    if not summary["arms"]:
        return "No run finished: nothing can be said."
    if reference not in summary["arms"]:
        return f"No run of the reference {reference} finished: no gain over it can be shown."
    measured = dict.fromkeys(key for one in summary["test_sets"].values() for of in one["arms"].values() for key in of["metrics"])
    if summary["metric"] not in measured:
        known = ", ".join(measured) or "nothing"
        return f"No run measured {summary['metric']}, so no arms are compared. Measured: {known}."
    judged = [sentence for sentence in sentences if sentence["kind"]]
    if not judged:
        return f"No arm shares a seed with {reference}: nothing is compared."
    kinds = {sentence["kind"] for sentence in judged}
    if kinds == {"one seed"}:
        return f"Every arm has one seed in common with {reference}: there is no interval, so nothing can be said. Run more seeds."
    if gains := _where(judged, "gain"):
        parts = [f"Shown gain over {reference}: {_list(gains)}.", *(_gaining(summary, arm, judged) for arm in gains)]
    else:
        parts = [f"No arm has a shown gain over {reference}."]
    for kind, words in (("loss", "Shown to lose"), ("equal", f"Shown to lie within ±{margin_text(summary)}")):
        if where := _where(judged, kind):
            parts.append(f"{words}: {_list(where)}.")
    if "not paired" in kinds:
        parts.append(
            "Some arms did not start alike, or did not have the same batches or test images: nothing is called shown for them."
        )
    if kinds & {"open", "no spread"} and not kinds & {"gain"}:
        parts.append("A gain that is not shown may still be there: more seeds make the intervals narrower.")
    return "\n".join(parts)


def _where(judged: list[dict[str, Any]], kind: str) -> dict[str, list[str]]:
    """By arm, the test sets on which it was judged so."""
    where: dict[str, list[str]] = {}
    for one in judged:
        if one["kind"] == kind:
            where.setdefault(one["arm"], []).append(one["test_set"])
    return where


def _list(where: Mapping[str, list[str]]) -> str:
    return ", ".join(f"{arm} ({', '.join(test_sets)})" for arm, test_sets in where.items())


def _gaining(summary: Summary, arm: str, judged: list[dict[str, Any]]) -> str:
    """By how much an arm gains, whether its control does as well, what it costs and where it loses."""
    gains = [one for one in judged if one["arm"] == arm and one["kind"] == "gain"]
    text = f"{arm}: {', '.join(_over(summary, arm, one['test_set'], summary['metric']) for one in gains)}"
    cost, control = summary["arms"][arm]["cost"], summary["arms"][arm]["control"]
    text += f", at {cost:.2f} times the training time." if cost else "."
    if control and control != summary["reference"]:
        text += " " + _against_control(control, {one["control"] for one in gains})
    losses = [
        _over(summary, arm, name, metric)
        for name, test_set in summary["test_sets"].items()
        for metric, one in test_set["arms"].get(arm, {"to_reference": {}})["to_reference"].items()
        if judge(one, mode=summary["mode"] if metric == summary["metric"] else "max") == "loss"
    ]
    if losses:
        text += f" It has a shown loss: {', '.join(losses)}."
    if others := [one["test_set"] for one in judged if one["arm"] == arm and one["kind"] not in ("gain", "loss")]:
        text += f" No gain is shown on {', '.join(others)}."
    return text


def _against_control(control: str, kinds: set[str | None]) -> str:
    if kinds == {"gain"}:
        return f"It is also above its control {control}: the place of the mask counts."
    if kinds == {None}:
        return f"Its control {control} was not compared: whether saliency is what helps is open."
    if "gain" in kinds:
        return f"It is above its control {control} on some of them only: little evidence that saliency is what helps."
    if kinds <= {"equal", "loss"}:
        return f"The same augmentation elsewhere ({control}) does as well: no evidence that saliency is what helps."
    return f"It is not shown to be above its control {control}: no evidence that saliency is what helps."


def _caveats(summary: Summary) -> list[str]:
    compared = list(_all_comparisons(summary))
    caveats = [one["text"] for one in summary["unpaired"]] + list(summary["notes"])
    if seeds := sorted({one["n"] for one in compared if 2 <= one["n"] <= FEW}):
        least = min(seeds)
        caveats.append(
            f"{least} seeds are few: intervals are wide, and the exact sign-flip p cannot be below {2 / 2**least:.3g}, whatever "
            "the differences."
        )
    if count := len([one for one in compared if one["low"] is not None]):
        caveats.append(
            f"{count} comparison{'s were' if count > 1 else ' was'} made and none is corrected for their number: about one in "
            f"twenty would exclude zero by chance alone, here {count / 20:.2g}."
        )
    for arm, of in summary["arms"].items():
        control = of["control"]
        if control and control not in summary["arms"]:
            caveats.append(f"{control}, the control of {arm}, has no finished run: whether the place of the mask counts is open.")
    return caveats


def _all_comparisons(summary: Summary) -> list[Mapping[str, Any]]:
    arms = [of for test_set in summary["test_sets"].values() for of in test_set["arms"].values()]
    return [one for of in arms for key in ("to_reference", "to_control") for one in of[key].values()]


def _over(summary: Summary, arm: str, test_set: str, metric: str) -> str:
    """A difference to the reference with its place, and whether it is a small one."""
    one = summary["test_sets"][test_set]["arms"][arm]["to_reference"][metric]
    is_primary = metric == summary["metric"]
    words = difference_text(one, summary["unit"] if is_primary else "points")
    if not is_primary:
        words += f" for the {metric.removesuffix('_accuracy').replace('_', ' ')}"
    small = f" (smaller than {margin_text(summary)})" if is_primary and one["equivalence"] < SHOWN else ""
    return f"{words} on {test_set}{small}"


def margin_text(summary: Summary) -> str:
    """The difference that does not matter, with its unit."""
    one = summary["margin"] == 1
    return f"{summary['margin']:g} {summary['unit'].removesuffix('s') if one else summary['unit']}".strip()
