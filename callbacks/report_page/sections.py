"""The sections of a report: from a run's records to what the page shows, in words, charts and tables."""

from __future__ import annotations

from typing import Any

from groupcam_aug.callbacks.report_page.charts import Line, bars, lines
from groupcam_aug.callbacks.report_page.checks import overhead, watching_share, worst_classes
from groupcam_aug.callbacks.report_page.run_records import RunRecords, higher_is_better, main_metric, series

__all__ = ["augmentation", "cards", "cost", "curves", "facts", "faithfulness", "headline"]

CLASSES = 20  # rows of the table of classes
PALETTE = ("blue", "orange", "green", "violet", "red", "grey")
FLOORS = {"other_image": "another image's map", "zero": "an unrelated map"}
MASKS = {
    "saliency": "the image's own map",
    "other": "another image's mask",
    "centre": "centre disc",
    "whole": "whole image",
    "inverse": "inverted mask",
}


def headline(records: RunRecords) -> str:
    """The run in one line: how it ended, how long it took."""
    status = str(records.run.get("status") or "recorded").partition(":")[0]  # without an error's message
    count = len(records.epochs) or len(records.augmentation_epochs) or len(records.probings)
    seconds = sum(line.get("seconds") or 0 for line in records.epochs)
    text = f"{status[:1].upper()}{status[1:]}: {count} epoch{'' if count == 1 else 's'}"
    return text + (f" in {duration(seconds)}" if seconds else "")


def cards(records: RunRecords) -> list[dict[str, str]]:
    """The numbers to see first: `value`, `name`, `note`."""
    result = []

    def add(value: str, name: str, note: str) -> None:
        result.append({"value": value, "name": name, "note": note})

    metric = main_metric(records.epochs)
    if metric is not None:
        epochs, values = series(records.epochs, metric)
        best = (max if higher_is_better(metric) else min)(range(len(values)), key=values.__getitem__)
        add(_score(metric, values[-1]), metric, f"best {_score(metric, values[best])}, epoch {epochs[best]:g}")
    if records.probings:
        last = records.probings[-1]
        settled, compared = last.get("converged_epoch"), records.compared
        note = f"settled by epoch {settled:g}" if settled is not None else "0 = unchanged, 1 = unrelated"
        add(_number(compared[-1].get("change") if compared else None), "change of the maps", note)
        noise = last.get("noise")
        add(_percent(last.get("alive")), "probes with a map", "" if noise is None else f"their noise: {noise:.2f}")
    if records.drawn_epochs:
        last = records.drawn_epochs[-1]
        rest = "the rest blurred" if records.augmentation.get("fill", "blur") == "blur" else "the rest replaced"
        add(_percent(last.get("keep_fraction")), "of the pixels kept", rest)
        add(_percent(last["no_map"] / last["drawn"]), "images without a map", "trained on unchanged")
    share = overhead(records.augmentation_epochs[-1]) if records.augmentation_epochs else None
    if share is not None:
        add(f"+{share:.0%}", "time per step", "for the augmentation")
    return result


def curves(records: RunRecords) -> list[dict[str, Any]]:
    """Charts of the maps, the learning rate and the network's score: `title`, `chart`, `caption`."""
    charts: list[dict[str, Any]] = []
    of_maps = [
        Line("change", *series(records.compared, "change"), "blue"),
        Line("noise", *series(records.probings, "noise"), "orange"),
        Line("share with a map", *series(records.probings, "alive"), "green"),
    ]
    of_maps = [line for line in of_maps if line.x]
    if of_maps:
        ends = ", ".join(f"{line.name} {line.y[-1]:.2f}" for line in of_maps)
        chart = lines(f"Maps of the probes by epoch; at the end {ends}.", of_maps, possible=(0, 1))
        caption = (
            "Change: 0 = the same maps as at the probing before, 1 = unrelated ones. Noise: how much the map of the mirrored "
            "image differs, 0 = not at all. Change says something only while the learning rate is high."
        )
        charts.append({"title": "Maps of the probes", "chart": chart, "caption": caption})
    epochs, rates = series(records.epochs, "lr")
    if epochs:
        positive = [rate for rate in rates if rate > 0]
        log = len(positive) == len(rates) and max(rates) / min(rates) >= 8
        alt = f"Learning rate from {rates[0]:.3g} to {rates[-1]:.3g}, at most {max(rates):.3g}."
        chart = lines(alt, [Line("learning rate", epochs, rates, "violet")], log=log)
        caption = f"The highest of all groups of parameters, last step of each epoch{', on a logarithmic scale' if log else ''}."
        charts.append({"title": "Learning rate", "chart": chart, "caption": caption})
    name = main_metric(records.epochs)
    if name is not None:
        epochs, values = series(records.epochs, name)
        chart = lines(f"{name} by epoch, {values[-1]:.3g} at the end.", [Line(name, epochs, values, "blue")])
        caption = "Higher is better." if higher_is_better(name) else "Lower is better."
        charts.append({"title": name, "chart": chart, "caption": caption})
    losses = _losses(records)
    if losses and [line.name for line in losses] != [name]:
        alt = "; ".join(f"{line.name} {line.y[-1]:.3g} at the end" for line in losses)
        both = len(losses) > 1
        caption = "A widening gap is overfitting." if both else "Only this loss was logged: none to compare it with."
        charts.append({"title": "Loss" if both else losses[0].name, "chart": lines(alt, losses), "caption": caption})
    return charts


def augmentation(records: RunRecords) -> dict[str, Any] | None:
    """The augmentation in charts, and the classes without maps: `summary`, `charts`, `classes`, `more`, `epoch`."""
    drawn_epochs = records.drawn_epochs
    if not drawn_epochs:
        return None
    first, last = drawn_epochs[0], drawn_epochs[-1]
    charts = []
    histograms = {
        f"epoch {line['epoch']}": _shares(line.get("keep_histogram")) for line in ([first, last] if last is not first else [last])
    }
    histograms = {name: values for name, values in histograms.items() if values}
    if histograms:
        alt = f"Histogram of the share of pixels kept per image, {' and '.join(histograms)}."
        chart = bars(alt, histograms, x_label="share of an image's pixels that is kept", y_label="% of the images")
        caption = "Each image has its own threshold. A heap at 0 or 1 is a collapsed mask; images without a map do not count."
        charts.append({"title": "How much is kept", "chart": chart, "caption": caption})
    epochs = [float(line["epoch"]) for line in drawn_epochs]
    if len(epochs) > 1:
        pair = [
            Line("pixels kept", *series(drawn_epochs, "keep_fraction"), "blue"),
            Line("images without a map", epochs, [line["no_map"] / line["drawn"] for line in drawn_epochs], "red"),
        ]
        alt = f"Share of pixels kept, and of images without a map, which ends at {pair[1].y[-1]:.0%}."
        chart = lines(alt, [line for line in pair if line.x], possible=(0, 1))
        charts.append({"title": "Over the run", "chart": chart, "caption": "Shares. Few maps at the start are usual."})
    worst = worst_classes(last)
    classes = [
        {"name": records.class_name(label), "drawn": f"{drawn:,.0f}", "share": f"{share:.0%}", "width": round(100 * share)}
        for label, drawn, share in worst[:CLASSES]
    ]
    facts = records.augmentation
    summary = f"{last['drawn']:,} of {last['images']:,} images were drawn in epoch {last['epoch']}"
    summary += f" (rank zero of {facts['world_size']}: its share)." if facts.get("world_size", 1) > 1 else "."
    object_kept, ground_kept = last.get("object_kept"), last.get("ground_kept")
    if object_kept is not None and ground_kept is not None:
        summary += (
            f" By the object masks in the batches {object_kept:.0%} of the objects' pixels and {ground_kept:.0%} of the "
            "backgrounds' are kept: masks that follow the objects keep much more of these, masks placed at random equal shares."
        )
    more = len(worst) - len(classes)
    about = {"summary": summary, "plan": facts.get("plan"), "epoch": last["epoch"]}
    return {**about, "charts": charts, "classes": classes, "more": more}


def cost(records: RunRecords) -> list[tuple[str, str, str]]:
    """What augmentation and watching cost: (what, how much, explanation)."""
    rows = []
    timed = [line for line in records.augmentation_epochs if line.get("seconds")]
    if timed and (share := overhead(timed[-1])) is not None:
        line = timed[-1]
        rows.append(("Augmentation of a batch", _seconds(line["seconds"]), "median: forward passes, maps, masks and blur"))
        rows.append(
            ("Training step without it", _seconds(line["plain_seconds"]), "median, from the batch's arrival on the device")
        )
        part = (
            "" if line["augmented_steps"] == line["steps"] else f", {line['augmented_steps']} of {line['steps']} steps augmented"
        )
        rows.append(("Added to a training step", f"+{share:.0%}", f"epoch {line['epoch']}{part}; waiting for data not counted"))
    probings = [line["seconds"] for line in records.probings if line.get("seconds")]
    if probings:
        rows.append(("A probing of the maps", _seconds(sum(probings) / len(probings)), f"mean of {len(probings)}"))
        if (share := watching_share(records)) is not None:
            rows.append(("Added to the training time", f"+{share:.1%}", "by watching; meant to stay below 2%"))
    seconds = [line["seconds"] for line in records.epochs if line.get("seconds")]
    if seconds:
        rows.append(
            ("An epoch", duration(sum(seconds) / len(seconds)), f"mean of {len(seconds)}, with validation and all callbacks")
        )
    return rows


def faithfulness(records: RunRecords) -> dict[str, Any] | None:
    """Insertion and deletion curves, their areas, and the sanity check: `summary`, `charts`, `methods`."""
    methods, sanity = records.evaluation.get("methods") or {}, records.evaluation.get("sanity") or {}
    if not methods and not sanity:
        return None
    charts: list[dict[str, Any]] = []
    table = []
    for kind, better in (("insertion", "Higher is better"), ("deletion", "Lower is better")):
        rows = [(name, method[kind]) for name, method in methods.items() if method.get(kind)]
        # Eight lines can be told apart: the control that every method must beat is among them.
        shown = sorted(rows, key=lambda row: not row[0].startswith("centre"))[:8]
        drawn = [
            Line(name, curve["fractions"], curve["mean"], PALETTE[i % len(PALETTE)], i >= len(PALETTE), filled=len(rows) == 1)
            for i, (name, curve) in enumerate(shown)
            if curve.get("fractions")
        ]
        if drawn:
            areas = "; ".join(f"{name}: area {curve['auc']:.3f}" for name, curve in rows)
            axis = "share of the pixels " + ("restored" if kind == "insertion" else "removed")
            chart = lines(f"{kind}. {areas}.", drawn, x_label=axis, y_label="probability", possible=(0, 1))
            charts.append(
                {
                    "title": kind.capitalize(),
                    "chart": chart,
                    "caption": f"Mean probability of the class, the most salient pixels first. {better}.",
                }
            )
    for name, method in methods.items():
        cells: dict[str, Any] = {kind: _area(method.get(kind)) for kind in ("insertion", "deletion")}
        both = all(method.get(kind) for kind in cells)
        over_all = f"{method['insertion']['auc'] - method['deletion']['auc']:.3f}" if both else "–"
        table.append({"name": name, **cells, "over_all": over_all})
    if sanity.get("spearman"):
        charts.append(_sanity(sanity))
    return {"summary": records.evaluation.get("told", ""), "charts": charts, "methods": table}


def facts(records: RunRecords) -> list[tuple[str, str]]:
    """The run in pairs of name and value, for the table at the end."""
    run, used, watched = records.run, records.augmentation, records.monitor
    parameters = run.get("parameters")
    shape = used.get("layer_shape")
    settings = ("preset", "groups", "mask_at", "p", "strength", "weights", "threshold", "fill", "mask_from", "source")
    versions = run.get("versions") or {}
    pairs = [
        ("Status", run.get("status")),
        ("Model", run.get("model")),
        ("Network", run.get("network")),
        ("Parameters", f"{parameters:,}" if isinstance(parameters, int) else None),
        ("Classes", len(run["class_names"]) if run.get("class_names") else None),
        ("Augmentation layer", used.get("layer") and f"{used['layer']}" + (f", {' x '.join(map(str, shape))}" if shape else "")),
        ("Augmentation settings", ", ".join(f"{name}={used[name]}" for name in settings if name in used)),
        ("Kept pixels chosen by", _chooser(used)),
        ("Maps watched with", watched.get("method") and f"{watched['method']}, layer {watched.get('layer')}"),
        ("Probes", watched.get("num_probes") and f"{watched['num_probes']}, every {_epochs(watched.get('every_n_epochs', 1))}"),
        ("Device", run.get("device")),
        ("Precision", run.get("precision")),
        ("Processes", run.get("world_size")),
        ("Begun", run.get("started")),
        ("Resumed", ", ".join(f"epoch {epoch}" for epoch in run.get("resumed") or [])),
        ("Last record", run.get("updated")),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("Command", run.get("command")),
        ("Working directory", run.get("directory")),
        ("Records", str(records.folder)),
    ]
    return [(name, str(value)) for name, value in pairs if value not in (None, "")]


def duration(seconds: float) -> str:
    """Seconds in words: "3 h 2 min", "41 s"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _losses(records: RunRecords) -> list[Line]:
    """The training loss and the validation loss, whatever they are called."""
    names = {name: None for line in records.epochs for name in line if "loss" in name.lower() and not name.endswith("_step")}
    training = [name for name in names if "val" not in name.lower() and "test" not in name.lower()]
    validation = [name for name in names if "val" in name.lower()]
    chosen = [*zip(training[:1], ["grey"], strict=False), *zip(validation[:1], ["blue"], strict=False)]
    losses = [Line(name, *series(records.epochs, name), colour) for name, colour in chosen]
    return [line for line in losses if line.x]


def _sanity(sanity: dict[str, Any]) -> dict[str, Any]:
    stages = [str(stage).rpartition(" .. ")[2] for stage in sanity.get("stages") or []]  # of several modules the last
    points = [(i, value) for i, value in enumerate(sanity["spearman"]) if value is not None]
    curve = Line("rank correlation", [i for i, _ in points], [value for _, value in points], "orange")
    floors = {FLOORS.get(name, name): value for name, value in (sanity.get("floors") or {}).items() if value is not None}
    undefined = [value for value in sanity.get("undefined") or [] if value]
    alt = f"Rank correlation with the original maps as layers are randomised: {', '.join(f'{y:.2f}' for _, y in points)}."
    chart = lines(
        alt, [curve], x_label="", y_label="rank correlation", levels=floors,
        ticks=stages if len(stages) <= 12 else None,
    )  # fmt: skip
    mode = str(sanity.get("mode", "")).capitalize()
    caption = f"{mode} randomisation of the layers. Maps must lose their likeness, down to the dotted lines."
    if undefined:
        caption += f" Up to {max(undefined):.0%} of the maps are gone altogether and do not count."
    return {"title": "Sanity check", "chart": chart, "caption": caption}


def _area(curve: dict[str, Any] | None) -> tuple[str, str]:
    """An area, and its interval in words."""
    if not curve:
        return "–", ""
    interval = curve.get("interval")
    return f"{curve['auc']:.3f}", f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else ""


def _shares(counts: list[int] | None) -> list[float]:
    total = sum(counts or [])
    return [100 * count / total for count in counts or []] if total else []


def _chooser(used: dict[str, Any]) -> str | None:
    """What says which pixels are kept, in words."""
    if used.get("source") == "masks" and used.get("mask_from") == "saliency":
        return "object mask"
    return MASKS.get(str(used.get("mask_from")), used.get("mask_from"))


def _epochs(count: int) -> str:
    return "epoch" if count == 1 else f"{count} epochs"


def _score(name: str, value: float) -> str:
    return f"{value:.1%}" if higher_is_better(name) and 0 <= value <= 1 else f"{value:.3g}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _seconds(value: float) -> str:
    return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"
