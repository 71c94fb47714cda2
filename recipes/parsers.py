"""The options of the commands, apart from what they do: help and completion wait for no torch."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from typing import Any

__all__ = [
    "Renamed",
    "add_activation",
    "add_network",
    "completion",
    "demo",
    "explain",
    "export",
    "fidelity",
    "name_units",
    "recipes",
    "report",
]

EXPLAIN = """examples:
  groupcam-aug explain photo.jpg --checkpoint last.ckpt
  groupcam-aug explain photos/ --model torchvision/squeezenet1_1 --checkpoint squeezenet.safetensors --top 3
  groupcam-aug explain photo.jpg --model timm/resnet50 --pretrained --target "tabby" --method gradcam --style raw
  groupcam-aug explain photo.jpg --checkpoint last.ckpt --target "tabby" --target "boxer" --methods gradcam,gradcam-against
  groupcam-aug explain photo.jpg --checkpoint last.ckpt --methods groupcam,gradcam,gradcam++,scorecam --curve"""
REPORT = """examples:
  groupcam-aug report lightning_logs/version_3
  groupcam-aug report                            # the newest run below the working directory
  groupcam-aug report runs/ --out newest.html --open

RUN_DIR is a run's log directory, its folder `groupcam`, a checkpoint in it, or a folder of runs, of which the newest is taken."""
DEMO = """Does Group-CAM augmentation keep a network from leaning on backgrounds? The smallest `groupcam-aug trial`.

A small network is trained on drawn objects whose background gives the class away 95 times in 100: without augmentation, with it,
and with another image's mask, the control that keeps the area and the blur but not the place. Each arm has the same data, start,
order and epochs, on every seed. All are tested on the same objects with kept and with swapped backgrounds."""
FIDELITY = """Which cheap preset keeps the masks of `paper`, on your own network and your own images.

Compares the masks of every mode with those of `paper`, sets them against the method's own noise, and names the cheapest mode
that is as good. Classes are the network's own first choice; a folder with a sub-folder for each class gives its own."""
NAME_UNITS = """What the units (channels) of a layer detect, by network dissection (Bau et al. 2017) on drawn objects.

A unit gets the name of the concept (a colour, a shape, a texture) whose pixels its strongest responses overlap best, if they
overlap enough; the overlap on other drawings is reported beside it. `groupcam-aug explain --words` then says which named units
spoke for a class, and which against it."""
COMPLETION = """examples:
  eval "$(groupcam-aug completion bash)"                                        # in this shell; in ~/.bashrc for all
  groupcam-aug completion zsh > ~/.zsh/completions/_groupcam-aug                # a folder in $fpath
  groupcam-aug completion tcsh > ~/.groupcam-aug.csh                            # and source it"""
WEIGHTS = "importance weights of the maps: none as in the presets, or gradient, specific to the class (default: %(default)s)"
WORDS = "say which named units speak for the class: a table of name-units for this network (default: the one beside --checkpoint)"
MODES = (
    "presets (balanced, fast), or where masks are applied: stage, target, or a layer's name, with ', zero' against zeros; "
    "any with ', bf16-mixed' in half precision; beside paper, which they are compared with (default: all of %(default)s)"
)


class Renamed(argparse.Action):
    """An option that has another name now: not in the help, and whoever gives it is told the new one (status 2)."""

    def __init__(self, option_strings: Sequence[str], dest: str, now: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs="?", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        self.now = now

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Refuse."""
        parser.error(f"{option_string} is called {self.now} now")


def add_network(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The options by which a command is given its network, for `model_loading.load_model`; returns their group."""
    group = parser.add_argument_group("network (a file of `groupcam-aug fit` or `export` alone, or a name with its state dict)")
    group.add_argument(
        "--checkpoint",
        "--ckpt_path",
        "--ckpt",
        metavar="FILE",
        help="alone: a .ckpt of `groupcam-aug fit`, or a .safetensors of `groupcam-aug export`; with --model: a state dict "
        "(.safetensors, .pt, .pth)",
    )
    group.add_argument(
        "--trust", action="store_true", help="make a network of any class that the file names, which may run any code"
    )
    group.add_argument("--model", metavar="NAME", help="timm/<name>, torchvision/<name>, or a bare name")
    group.add_argument("--pretrained", action="store_true", help="fetch --model's published weights, in place of --checkpoint")
    group.add_argument("--classes", metavar="FILE", help="class names, one a line (default: those that come with the network)")
    group.add_argument("--size", type=int, help="pixels a side (default: the network's own)")
    crop = "crop: shorter side, then the centre, as in validation; squash: the whole picture, as papers on maps do"
    group.add_argument("--resize", choices=("crop", "squash"), default="crop", help=f"{crop} (default: %(default)s)")
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: cuda if there is one, else cpu)")
    return group


def add_activation(group: argparse._ArgumentGroup) -> None:
    """`--activation`: of commands that read probabilities from logits."""
    how = "what makes probabilities of logits; sigmoid: networks of several labels an image"
    group.add_argument("--activation", choices=("softmax", "sigmoid"), default="softmax", help=f"{how} (default: %(default)s)")


def demo(command: str) -> argparse.ArgumentParser:
    """``groupcam-aug demo``."""
    parser = _parser(command, DEMO)
    parser.add_argument(
        "--quick", action="store_true", help="under a minute: shows that everything runs; the numbers mean little"
    )
    parser.add_argument("--out", metavar="DIR", help="folder to write to (default: groupcam_demo; quick: groupcam_demo_quick)")
    parser.add_argument("--seeds", type=int, help="paired repetitions (default: 3; quick: 2)")
    parser.add_argument("--jobs", type=int, help="runs at a time (default: one per core, at most 4; quick: 1)")
    return parser


def explain(command: str) -> argparse.ArgumentParser:
    """``groupcam-aug explain``."""
    parser = _parser(command, "Draw what in an image speaks for a class, by Group-CAM or Grad-CAM.", EXPLAIN)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    add_network(parser).add_argument("--weights", action=Renamed, now="--checkpoint FILE")
    group = parser.add_argument_group("map")
    methods = ("groupcam", "gradcam", "gradcam-against", "guided-gradcam", "guided-backprop")
    group.add_argument("--method", choices=methods, help="(default: groupcam)")
    several = "several side by side, comma-separated: these, and those of `groupcam-aug evaluate --list`"
    group.add_argument("--methods", metavar="KEYS", help=several)
    group.add_argument("--against", action="store_true", help="what speaks against the class: --method gradcam-against")
    group.add_argument("--layer", help="name of the layer (default: found, and named)")
    group.add_argument(
        "--target", action="append", help="class name or number; several times: side by side (default: each image's first choice)"
    )
    group.add_argument("--top", type=int, metavar="K", help="the K first choices, side by side (default: 1)")
    group.add_argument("--groups", type=int, help="groups of Group-CAM (default: 32, or as many as the layer has channels)")
    group.add_argument("--mask-at", help="of Group-CAM: input, stage, target or a layer's name (default: input)")
    add_activation(group)
    group.add_argument("--words", nargs="?", const="", metavar="FILE", help=WORDS)
    group = parser.add_argument_group("output")
    group.add_argument("--style", choices=("overlay", "heatmap", "raw"), default="overlay", help="raw: .npy, (classes, H, W)")
    group.add_argument(
        "--curve", action="store_true", help="insertion and deletion of each map, with altered images: NAME_curves.png"
    )
    group.add_argument("--out", default="explained", metavar="DIR", help="folder to write to (default: explained)")
    group.add_argument("--batch-size", type=int, default=16, help="images per call (default: %(default)s)")
    return parser


def name_units(command: str) -> argparse.ArgumentParser:
    """``groupcam-aug name-units``."""
    parser = _parser(command, NAME_UNITS)
    parser.add_argument("file", nargs="?", metavar="CHECKPOINT", help="a .ckpt of `groupcam-aug fit`; the same as --checkpoint")
    add_network(parser)
    parser.add_argument("--layer", help="whose units (default: found, as by `groupcam-aug explain`)")
    parser.add_argument("--images", type=int, default=600, help="drawings to learn from; as many check (default: %(default)s)")
    parser.add_argument(
        "--share", type=float, default=0.005, help="of a unit's responses that are its map (default: %(default)s)"
    )
    parser.add_argument("--iou", type=float, default=0.04, help="least overlap of a name (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the drawings (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=50, help="images per call (default: %(default)s)")
    parser.add_argument("--out", metavar="FILE", help="JSON to write (default: CHECKPOINT.units.json)")
    return parser


def fidelity(command: str) -> argparse.ArgumentParser:
    """``groupcam-aug fidelity``."""
    parser = _parser(command, FIDELITY)
    parser.add_argument("paths", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    add_network(parser)
    parser.add_argument("--layer", help="target layer (default: found)")
    parser.add_argument("--groups", type=int, default=16, help="G (default: %(default)s)")
    parser.add_argument("--weights", type=_weights, default="none", metavar="{none,gradient}", help=WEIGHTS)
    parser.add_argument("--importance", action=Renamed, now="--weights {none,gradient}")
    parser.add_argument("--modes", nargs="+", metavar="MODE", default=["balanced", "target", "fast"], help=MODES)
    parser.add_argument("--limit", type=int, default=100, help="most images, evenly picked (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="images per call (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    return parser


def report(command: str) -> argparse.ArgumentParser:
    """``groupcam-aug report``."""
    description = (
        "Write the report of a run again, from what SaliencyReport, SaliencyMonitor, GroupCAMAugmentation and "
        "`groupcam-aug evaluate` left in its folder. No network and no data are needed."
    )
    parser = _parser(command, description, REPORT)
    parser.add_argument("run_dir", nargs="?", default=".", metavar="RUN_DIR", help="(default: the working directory)")
    parser.add_argument("--out", metavar="FILE", help="file to write (default: report.html beside the records)")
    parser.add_argument("--open", action="store_true", help="show it in the web browser")
    return parser


def recipes(command: str) -> argparse.ArgumentParser:
    """``groupcam-aug recipes``."""
    parser = _parser(command, "The configs that come with the package.")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="names, one line each")
    show = actions.add_parser("show", help="print a config")
    copy = actions.add_parser("copy", help="copy a config here, to be edited")
    for action in (show, copy):
        action.add_argument("name", help="as in `groupcam-aug recipes list`, or arms: those of `groupcam-aug trial`")
    copy.add_argument("destination", nargs="?", default=".", help="file or folder (default: the working directory)")
    copy.add_argument("--force", action="store_true", help="overwrite")
    return parser


def export(command: str) -> argparse.ArgumentParser:
    """``groupcam-aug export``."""
    description = (
        "Write a checkpoint's network as a plain state dict. In a .safetensors file its metadata say which network it is, its "
        "class names, image size and normalisation; `groupcam-aug explain --checkpoint FILE` needs no more."
    )
    parser = _parser(command, description)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a .ckpt that `groupcam-aug fit` wrote")
    parser.add_argument("out", metavar="FILE", help="file to write: .safetensors, .pt or .pth")
    return parser


def completion(command: str) -> argparse.ArgumentParser:
    """``groupcam-aug completion``."""
    description = "Print the script by which a shell completes commands, options and files."
    parser = _parser(command, description, COMPLETION)
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    return parser


def _parser(command: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"groupcam-aug {command}",
        description=description if "\n" in description else textwrap.fill(description, 100),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _weights(text: str) -> str:
    if text not in ("none", "gradient"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither none nor gradient; a file of network weights is a --checkpoint")
    return text
