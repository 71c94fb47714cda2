"""What the network gets wrong, by the labelled probes: accuracy per class, and which classes are taken for which."""

from __future__ import annotations

from collections import Counter
from typing import Any

from groupcam_aug.callbacks.report_page.run_records import RunRecords

__all__ = ["mistakes"]

CLASSES = 20  # rows of the table of accuracies
PAIRS = 8  # rows of the table of confusions


def mistakes(records: RunRecords) -> dict[str, Any] | None:
    """The last probing in counts: no image is classified for this that is not one of the monitor's probes.

    Args:
        records: of the run.

    Returns:
        `summary` (of what, and how many images), `classes` (worst first: `name`, `right`, `count`, `share`, `width`), `more`
        (classes left out), `pairs` (most frequent first: `name`, `taken_for`, `times`, `count`) and `more_pairs`; None without
        labels.
    """
    line = records.probings[-1] if records.probings else {}
    labels, chosen = records.monitor.get("labels") or [], line.get("probe_chosen") or []
    if not records.monitor.get("labelled") or not labels or len(chosen) != len(labels):
        return None
    counts, right = Counter(labels), Counter(label for label, choice in zip(labels, chosen, strict=True) if label == choice)
    worst = sorted(counts, key=lambda label: (right[label] / counts[label], -counts[label], label))
    classes = [
        {
            "name": records.class_name(label),
            "right": right[label],
            "count": counts[label],
            "share": f"{right[label] / counts[label]:.0%}",
            "width": round(100 * right[label] / counts[label]),
        }
        for label in worst[:CLASSES]
    ]
    wrong = Counter((label, choice) for label, choice in zip(labels, chosen, strict=True) if label != choice)
    frequent = sorted(wrong, key=lambda pair: (-wrong[pair], pair))
    pairs = [
        {
            "name": records.class_name(label),
            "taken_for": records.class_name(choice),
            "times": wrong[label, choice],
            "count": counts[label],
        }
        for label, choice in frequent[:PAIRS]
    ]
    total, correct = len(labels), sum(right.values())
    origin = records.monitor.get("origin")
    summary = (
        f"Of the {total} probes{f', from {origin},' if origin else ''} {correct} are classified as labelled after epoch "
        f"{line['epoch']:g}: {correct / total:.0%}. So few images say little of a single class; "
        "SaliencyMonitor(num_images=...) takes more."
    )
    more = {"more": len(worst) - len(classes), "more_pairs": len(frequent) - len(pairs)}
    return {"summary": summary, "classes": classes, "pairs": pairs, **more}
