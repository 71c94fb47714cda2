"""``groupcam-aug evaluate``: how good are the maps, beside controls that know nothing and beside other methods?

Insertion, deletion and their difference (over-all), average drop, the sanity check of randomised weights and the time of a map,
with 95 % intervals, on your network and your images. Classes are the network's own first choice; a folder with a sub-folder
for each class gives its own. With --voc or --coco the pointing game is played on the data's boxes instead.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from torchvision.transforms import v2

from groupcam_aug.callbacks.report import current_run, render
from groupcam_aug.files import put_file
from groupcam_aug.recipes.cli import Renamed, refusing
from groupcam_aug.recipes.data import normalised
from groupcam_aug.recipes.evaluation.datasets import Item, coco_items, evenly, folder_items, read_class_map, voc_items
from groupcam_aug.recipes.evaluation.map_method import Method, Setup
from groupcam_aug.recipes.evaluation.methods import ABLATIONS, METHODS, ablation, choose
from groupcam_aug.recipes.evaluation.results_file import Outcome, Plan, ResultsFile
from groupcam_aug.recipes.evaluation.runner import estimate, fingerprint, first_image, measure, preprocessing_of
from groupcam_aug.recipes.evaluation.statistics import ablation_rows, figures_of, make_record
from groupcam_aug.recipes.evaluation.tables_and_plots import files_in, show, write_files
from groupcam_aug.recipes.image_files import find_images, shown
from groupcam_aug.recipes.model_loading import LoadedModel, add_arguments, load_model
from groupcam_aug.recipes.report import find_records
from groupcam_aug.recipes.terminal import say

__all__ = ["evaluate", "run"]

EPILOG = """examples:
  groupcam-aug evaluate photos/ --checkpoint last.ckpt --limit 100
  groupcam-aug evaluate photos/ --model timm/resnet50 --pretrained --compare --dry-run
  groupcam-aug evaluate photos/ --checkpoint last.ckpt --run lightning_logs/version_3     # into that run's report
  groupcam-aug evaluate photos/ --checkpoint last.ckpt --methods none --ablate groups,denoise
  groupcam-aug evaluate --voc data/ --year 2007 --checkpoint voc.ckpt --methods groupcam,gradcam,centre

Stopped (Ctrl-C, a kill, a full disk), the same command goes on where it was: finished rows are in OUT/images.jsonl."""

WIDE = 160  # columns of a log or a pipe, where nothing should be cut


def run(command: str, words: list[str]) -> int:
    """The command; exit status 1 if a file could not be read or a method was left out."""
    parser = _parser(command)
    options = parser.parse_args(words)
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    if options.list:
        console.print(_list(), soft_wrap=True)
        return 0
    _check(parser, options)
    out, records = Path(options.out), None
    with refusing():
        methods = choose(options.methods, options.compare)
        if options.methods is not None:
            for method in choose(options.methods, False):
                if reason := method.missing():
                    raise ValueError(f"{method.key}: {reason}")
        if options.run is not None:
            records = find_records(options.run)
        files_in(out)
        model = load_model(options)
        items, classes, data = _items(options, model)
        model = _whole(model) if options.voc or options.coco else model
        plan = _plan(options)
        failed: dict[Path, str] = {}
        image = first_image(model, items, failed)
        setup = Setup.of(model.network, image, options.layer)
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
    if options.dry_run:
        _dry_run(console, estimate(model, setup, items, every, plan), items, every, plan, results, out)
        return 0
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


def _parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"groupcam-aug {command}",
        usage=f"groupcam-aug {command} IMAGE ... (--checkpoint FILE | --model NAME ...) [options]",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files, or folders of them")
    add_arguments(parser).add_argument("--weights", action=Renamed, now="--checkpoint FILE")
    group = parser.add_argument_group("data with boxes, in place of images (read through torchvision)")
    group.add_argument("--voc", metavar="DIR", help="the folder that holds VOCdevkit")
    group.add_argument("--year", default="2007", help="of VOC (default: %(default)s)")
    group.add_argument("--part", help="of VOC: train, val, trainval, test (default: test for 2007, else val)")
    group.add_argument("--coco", nargs=2, metavar=("IMAGES", "ANNOTATIONS"), help="folder and file; needs pycocotools")
    group.add_argument(
        "--class-map", metavar="FILE", help='JSON, the data\'s classes to the network\'s: {"dog": ["beagle", 163]}'
    )
    group.add_argument("--tolerance", type=float, default=15.0, help="pixels of the file (default: %(default)g)")
    group = parser.add_argument_group("methods")
    group.add_argument("--methods", metavar="KEYS", help="comma-separated; none (default: those that --list marks)")
    group.add_argument("--list", action="store_true", help="show all methods and stop")
    group.add_argument(
        "--compare", action="store_true", help="other libraries' methods, too (pip install 'groupcam-aug[compare]')"
    )
    group.add_argument("--ablate", metavar="KINDS", type=_words(ABLATIONS), default=(), help="groups,denoise: table 2, figure 5")
    group.add_argument("--layer", help="target layer (default: found, and named)")
    group = parser.add_argument_group("measures")
    known = ("curves", "drop", "sanity", "pointing")
    group.add_argument(
        "--measures",
        metavar="KINDS",
        type=_words(known),
        help="of curves,drop,sanity,pointing (default: curves,drop,sanity; with boxes pointing)",
    )
    group.add_argument("--steps", type=int, help="intervals of a curve (default: 28); figures of other steps do not compare")
    group.add_argument("--substrate", choices=("blur", "zeros", "mean"), default="blur", help="(default: %(default)s)")
    group.add_argument("--author-compatible", action="store_true", help="the authors' code: 112 steps, blur and zeros")
    group.add_argument("--sanity-mode", choices=("cascading", "independent"), default="cascading", help="(default: %(default)s)")
    group.add_argument("--sanity-images", type=int, default=8, metavar="N", help="(default: %(default)s)")
    group = parser.add_argument_group("run")
    group.add_argument("--limit", type=int, metavar="N", help="at most N images, evenly picked")
    group.add_argument("--batch-size", type=int, default=16, help="(default: %(default)s)")
    group.add_argument("--seed", type=int, default=0, help="of random controls, resampling, new weights (default: %(default)s)")
    group.add_argument("--dry-run", action="store_true", help="say what would be done and how long it would take; write nothing")
    group.add_argument("--restart", action="store_true", help="drop the rows in OUT instead of going on")
    group.add_argument("--out", default="groupcam_evaluation", metavar="DIR", help="folder to write to (default: %(default)s)")
    group.add_argument("--run", metavar="RUN_DIR", help="put the result into this training run's report, too")
    return parser


def _words(known: Any) -> Any:
    def read(text: str) -> tuple[str, ...]:
        words = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
        for word in words:
            if word not in known:
                raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(known)}")
        return words

    return read


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    boxes = bool(options.voc) + bool(options.coco)
    if bool(options.images) + boxes != 1:
        parser.error("give images or folders of them, or --voc DIR, or --coco IMAGES ANNOTATIONS")
    for name in ("limit", "steps", "batch_size", "sanity_images"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value}: give at least 1")
    if options.measures is None:
        options.measures = ("pointing",) if boxes else ("curves", "drop", "sanity")
    if not options.measures or ("pointing" in options.measures and not boxes):
        parser.error("--measures: the pointing game needs --voc or --coco" if options.measures else "--measures is empty")
    if options.author_compatible and (options.steps is not None or options.substrate != "blur"):
        parser.error("--author-compatible fixes --steps and --substrate")


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


def _whole(model: LoadedModel) -> LoadedModel:
    """The model with whole pictures squeezed to its size: what is cut off could not be pointed at."""
    size = model.transform(Image.new("RGB", (64, 64))).shape[-1]
    shape = v2.Compose([v2.Resize((size, size), antialias=True), normalised(model.mean, model.std)])
    return dataclasses.replace(model, transform=lambda picture: shape(picture).as_subclass(torch.Tensor))


def _list() -> Table:
    table = Table("", "key", "method", "what it is", title="* = measured by default; peers by --compare", title_justify="left")
    kind = ""
    for method in METHODS:
        if kind and method.kind != kind:
            table.add_section()
        kind = method.kind
        table.add_row("*" if method.default and kind != "peer" else "", method.key, method.name, method.description)
    return table


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
    left = 0.0
    for method in methods:
        if method.key in costs["maps"]:
            todo, cost = len(results.todo(items, method)), costs["maps"][method.key]
            left += todo * (cost + plan.passes)
            table.add_row(method.name, f"{cost:.1f}", str(plan.passes), f"{todo} of {len(items)}")
    console.print(table)
    left += sum(cost for key, cost in costs["sanity"].items() if key not in results.sanity)
    text = f"{left:,.0f} passes, about {_duration(left * costs['seconds'])} at {1000 * costs['seconds']:.3g} ms each"
    say(console, f"{text} (one batch timed). Nothing is written; without --dry-run {shown(out)}/ would be.")
    for key, reason in costs["left_out"].items():
        say(console, f"left out: {key}: {reason}")


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
