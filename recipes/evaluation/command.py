"""``groupcam-aug evaluate``: how good are the maps, beside controls that know nothing and beside other methods?"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from groupcam_aug.callbacks.report import current_run, render
from groupcam_aug.checkpoints import fingerprint
from groupcam_aug.files import put_file
from groupcam_aug.recipes.cli import refusing
from groupcam_aug.recipes.evaluation.datasets import Item, coco_items, evenly, folder_items, read_class_map, voc_items
from groupcam_aug.recipes.evaluation.map_method import Method, Setup
from groupcam_aug.recipes.evaluation.methods import METHODS, ablation, choose
from groupcam_aug.recipes.evaluation.options import build_parser, check
from groupcam_aug.recipes.evaluation.results_file import Outcome, Plan, ResultsFile
from groupcam_aug.recipes.evaluation.runner import STAGES, estimate, first_image, measure, preprocessing_of
from groupcam_aug.recipes.evaluation.sanity_pictures import pictured, sanity_pictures
from groupcam_aug.recipes.evaluation.statistics import ablation_rows, figures_of, make_record
from groupcam_aug.recipes.evaluation.tables_and_plots import files_in, show, write_files
from groupcam_aug.recipes.image_files import find_images, shown
from groupcam_aug.recipes.model_loading import LoadedModel, load_model
from groupcam_aug.recipes.report import find_records
from groupcam_aug.recipes.terminal import say

__all__ = ["evaluate", "run"]

WIDE = 160  # columns of a log or a pipe, where nothing should be cut


def run(command: str, words: list[str]) -> int:
    """The command; exit status 1 if a file could not be read or a method was left out."""
    parser = build_parser(command)
    options = parser.parse_args(words)
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    if options.list:
        console.print(_list(), soft_wrap=True)
        return 0
    check(parser, options)
    out, records = Path(options.out), None
    with refusing():
        methods = choose(options.methods, options.compare)
        if options.methods is not None:
            for method in choose(options.methods, False):
                if reason := method.missing():
                    raise ValueError(f"{method.key}: {reason}")
        if options.run is not None:
            records = find_records(options.run)
        if options.sanity_pictures and not pictured(methods):
            raise ValueError("--sanity-pictures is for methods that look at the network: add one to --methods, such as gradcam")
        files_in(out).check([f"sanity_{method.key}.png" for method in pictured(methods) if options.sanity_pictures])
        model = load_model(options)
        items, classes, data = _items(options, model)
        plan = _plan(options)
        failed: dict[Path, str] = {}
        image = first_image(model, items, failed)
        setup = Setup.of(model.network, image, options.layer, options.activation)
        ablations = {kind: ablation(kind, setup.channels) for kind in options.ablate}
        every = list(dict.fromkeys([*methods, *(method for rows in ablations.values() for method in rows.values())]))
        if not every:
            raise ValueError("nothing to do: --methods none without --ablate; --list shows the methods")
        fixed: dict[str, Any] = {
            "weights": fingerprint(model.network),
            "preprocessing": preprocessing_of(model),
            "layer": setup.layer,
        }
        fixed |= {"size": list(image.shape[-2:]), "classes": classes}
        results = ResultsFile(out, {**fixed, **plan.settings()}, restart=options.restart)
    description = f"{model.description}, layer {setup.layer}; {data}; {plan.description()}"
    say(console, description)
    if results.damaged:
        say(console, f"damaged lines of {shown(out)}/images.jsonl, which are left out: {results.damaged}")
    for method in every:
        if reason := method.missing():
            say(console, f"{method.name}: {reason}", mark="left out:", style="yellow")
    with refusing():
        costs = estimate(model, setup, items, every, plan)
    if options.sanity_pictures:
        images = 2 * STAGES * min(plan.sanity_images, len(items))
        passes = images * sum(costs["maps"].get(method.key, 0.0) for method in pictured(methods))
        say(console, f"sanity pictures: {passes:,.0f} passes, about {_duration(passes * costs['seconds'])}, beside those below")
    if options.dry_run:
        _dry_run(console, costs, items, every, plan, results, out)
        return 0
    say(console, f"{_expected(costs, items, every, plan, results)}; less by --limit, --methods or --measures")
    try:
        with refusing():
            outcome = evaluate(model, setup, items, every, plan, results)
    except KeyboardInterrupt:
        kept = f"{len(results.rows)} maps are kept in {out}/images.jsonl; the same command goes on from there"
        say(console, kept)
        raise
    figures = figures_of(items, methods, results, plan.seed)
    tables = {kind: ablation_rows(rows, items, results, plan.seed) for kind, rows in ablations.items()}
    record = make_record(figures, tables, every, results, outcome, description, setup)
    show(console, record)  # before it is written: a full disk takes no figures away
    for path, reason in outcome.failed.items():
        say(console, f"{shown(path)}: {reason}", mark="not read:")
    more = ""
    with refusing():
        files = write_files(out, record)
        if options.sanity_pictures:
            pictures = sanity_pictures(model, setup, items, methods, plan, outcome, lambda line: say(console, line))
            for name, content in pictures.items():
                files_in(out).put(name, content)
            files += pictures
            for key, reason in outcome.left_out.items():
                if f"sanity_{key}.png" not in pictures:
                    say(console, f"{key}: {reason}", mark="no sanity pictures:", style="yellow")
        if records is not None:
            run = current_run(records)
            of_run = record if run is None else {"run": run, **record}
            put_file(records, "evaluation.json", json.dumps(of_run, indent=1) + "\n")
            put_file(records, "report.html", render(records))
            more = f", and evaluation.json, report.html to {shown(records)}/"
    say(console, f"wrote {', '.join(files)} to {shown(out)}/{more}")
    return 1 if outcome.failed or outcome.left_out else 0


def evaluate(
    model: LoadedModel, setup: Setup, items: Sequence[Item], methods: Sequence[Method], plan: Plan, results: ResultsFile
) -> Outcome:
    """`runner.measure` with a progress bar on standard error."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("remaining"),
        TimeRemainingColumn(),
    )
    # The stream itself: libraries whose own progress bars are silenced must not silence this one.
    with Progress(*columns, console=Console(file=sys.stderr), speed_estimate_period=600) as progress:
        return measure(model, setup, items, methods, plan, results, progress)


def _plan(options: argparse.Namespace) -> Plan:
    return Plan(
        measures=options.measures,
        steps=options.steps or 28,
        substrate=options.substrate,
        author_compatible=options.author_compatible,
        tolerance=options.tolerance,
        sanity_mode=options.sanity_mode,
        sanity_images=options.sanity_images,
        seed=options.seed,
        batch_size=options.batch_size,
        activation=options.activation,
    )


def _items(options: argparse.Namespace, model: LoadedModel) -> tuple[list[Item], Any, str]:
    """What is measured, what its classes depend on, and both in words."""
    names = model.class_names
    if options.images:
        paths = evenly(find_images(options.images, Path(options.out)), options.limit)
        items, named = folder_items(paths, names)
        source = "of their folders" if named else "of the network's first choice"
        return items, source, f"{len(items)} images, classes {source}"
    classes = None if options.class_map is None else read_class_map(options.class_map, names)
    if options.voc:
        part = options.part or ("test" if options.year == "2007" else "val")
        items, strangers = voc_items(options.voc, options.year, part, options.limit, names, classes)
        data = f"VOC {options.year} {part}"
    else:
        items, strangers = coco_items(options.coco[0], options.coco[1], options.limit, names, classes)
        data = f"COCO {Path(options.coco[1]).stem}"
    text = f"{data}, {len({item.path for item in items})} images, {len(items)} classes in them"
    return items, classes or data, text + (f" ({strangers} more are no classes of the network)" if strangers else "")


def _list() -> Table:
    table = Table("", "key", "method", "what it is", title="* = measured by default; peers by --compare", title_justify="left")
    kind = ""
    for method in METHODS:
        if kind and method.kind != kind:
            table.add_section()
        kind = method.kind
        table.add_row("*" if method.default and kind != "peer" else "", method.key, method.name, method.description)
    return table


def _expected(costs: dict[str, Any], items: Sequence[Item], methods: Sequence[Method], plan: Plan, results: ResultsFile) -> str:
    """What is left to do, in passes and in time."""
    left = sum(cost for key, cost in costs["sanity"].items() if key not in results.sanity)
    for method in methods:
        if method.key in costs["maps"]:
            left += len(results.todo(items, method)) * (costs["maps"][method.key] + plan.passes)
    left += costs["shared"] * len({item.key for method in methods for item in results.todo(items, method)})
    if not left:
        return "nothing left to measure"
    per_pass = f"{1000 * costs['seconds']:.3g} ms each (one batch timed)"
    return f"{left:,.0f} passes, about {_duration(left * costs['seconds'])} at {per_pass}"


def _dry_run(
    console: Console,
    costs: dict[str, Any],
    items: Sequence[Item],
    methods: Sequence[Method],
    plan: Plan,
    results: ResultsFile,
    out: Path,
) -> None:
    table = Table("method", title="forward passes of one image", title_justify="left")
    for heading in ("map", "scores", "to do"):
        table.add_column(heading, justify="right")
    for method in methods:
        if method.key in costs["maps"]:
            todo, cost = len(results.todo(items, method)), costs["maps"][method.key]
            table.add_row(method.name, f"{cost:.1f}", str(plan.passes), f"{todo} of {len(items)}")
    console.print(table)
    expected = _expected(costs, items, methods, plan, results)
    say(console, f"{expected}. Nothing is written; without --dry-run {shown(out)}/ would be.")
    for key, reason in costs["left_out"].items():
        say(console, f"left out: {key}: {reason}")


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
