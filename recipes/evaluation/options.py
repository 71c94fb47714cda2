"""The options of ``groupcam-aug evaluate``, without torch."""

from __future__ import annotations

import argparse
from typing import Any

from groupcam_aug.recipes.parsers import Renamed, add_activation, add_network

__all__ = ["build_parser", "check"]

DESCRIPTION = """How good are the maps, beside controls that know nothing and beside other methods?

Insertion, deletion and their difference (over-all), average drop, the sanity check of randomised weights and the time of a map,
with 95 % intervals, on your network and your images. Classes are the network's own first choice; a folder with a sub-folder
for each class (or ImageNet's WordNet ids) gives its own. With --voc or --coco the pointing game is played on the data's boxes
instead, on whole pictures squashed to the network's size.
"""
EPILOG = """examples:
  groupcam-aug evaluate photos/ --checkpoint last.ckpt --limit 100
  groupcam-aug evaluate photos/ --model timm/resnet50 --pretrained --compare --dry-run
  groupcam-aug evaluate photos/ --checkpoint last.ckpt --run lightning_logs/version_3     # into that run's report
  groupcam-aug evaluate photos/ --checkpoint last.ckpt --methods none --ablate groups,denoise
  groupcam-aug evaluate val/ --model timm/vgg16 --pretrained --resize squash --methods groupcam,rise --measures curves,occlusion
  groupcam-aug evaluate --voc data/ --year 2007 --checkpoint voc.ckpt --methods groupcam,gradcam,centre

Stopped (Ctrl-C, a kill, a full disk), the same command goes on where it was: finished rows are in OUT/images.jsonl."""


def build_parser(command: str) -> argparse.ArgumentParser:
    """The command's parser."""
    parser = argparse.ArgumentParser(
        prog=f"groupcam-aug {command}",
        usage=f"groupcam-aug {command} IMAGE ... (--checkpoint FILE | --model NAME ...) [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files, or folders of them")
    add_network(parser).add_argument("--weights", action=Renamed, now="--checkpoint FILE")
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
    ablate = _words(("groups", "denoise"))
    group.add_argument("--ablate", metavar="KINDS", type=ablate, default=(), help="groups,denoise: table 2, figure 5")
    group.add_argument("--layer", help="target layer (default: found, and named)")
    group = parser.add_argument_group("measures")
    known = ("curves", "drop", "sanity", "occlusion", "pointing", "localisation")
    group.add_argument(
        "--measures",
        metavar="KINDS",
        type=_words(known),
        help="of curves,drop,sanity,occlusion and, with boxes, pointing,localisation (default: curves,drop,sanity; with boxes "
        "pointing)",
    )
    add_activation(group)
    group.add_argument("--steps", type=int, help="intervals of a curve (default: 28); figures of other steps do not compare")
    group.add_argument("--substrate", choices=("blur", "zeros", "mean"), default="blur", help="(default: %(default)s)")
    group.add_argument("--author-compatible", action="store_true", help="the authors' code: 112 steps, blur and zeros")
    group.add_argument("--sanity-mode", choices=("cascading", "independent"), default="cascading", help="(default: %(default)s)")
    group.add_argument("--sanity-images", type=int, default=8, metavar="N", help="(default: %(default)s)")
    pictures = "maps of a few images while layers are re-initialised, in both modes, for each method: OUT/sanity_METHOD.png"
    group.add_argument("--sanity-pictures", action="store_true", help=pictures)
    group = parser.add_argument_group("run")
    limit = "at most N images, evenly picked, or all; the default is a first look (default: %(default)s)"
    group.add_argument("--limit", type=_limit, metavar="N", default=20, help=limit)
    group.add_argument("--batch-size", type=int, default=16, help="(default: %(default)s)")
    group.add_argument("--seed", type=int, default=0, help="of random controls, resampling, new weights (default: %(default)s)")
    group.add_argument("--dry-run", action="store_true", help="say what would be done and how long it would take; write nothing")
    group.add_argument("--restart", action="store_true", help="drop the rows in OUT instead of going on")
    group.add_argument("--out", default="groupcam_evaluation", metavar="DIR", help="folder to write to (default: %(default)s)")
    group.add_argument("--run", metavar="RUN_DIR", help="put the result into this training run's report, too")
    return parser


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Exit with status 2 where options are out of range or exclude each other; `measures` is filled in."""
    boxes = bool(options.voc) + bool(options.coco)
    if bool(options.images) + boxes != 1:
        parser.error("give images or folders of them, or --voc DIR, or --coco IMAGES ANNOTATIONS")
    for name in ("limit", "steps", "batch_size", "sanity_images"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value}: give at least 1")
    if options.measures is None:
        options.measures = ("pointing",) if boxes else ("curves", "drop", "sanity")
    if not options.measures:
        parser.error("--measures is empty")
    if not boxes and (needy := [name for name in options.measures if name in ("pointing", "localisation")]):
        names = {"pointing": "the pointing game", "localisation": "localisation"}
        parser.error(f"--measures: {names[needy[0]]} needs --voc or --coco")
    if boxes:
        options.resize = "squash"  # what is cut off could not be pointed at
    if options.author_compatible and (options.steps is not None or options.substrate != "blur"):
        parser.error("--author-compatible fixes --steps and --substrate")


def _words(known: Any) -> Any:
    def read(text: str) -> tuple[str, ...]:
        words = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
        for word in words:
            if word not in known:
                raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(known)}")
        return words

    return read


def _limit(text: str) -> int | None:
    try:
        return None if text == "all" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor all") from None
