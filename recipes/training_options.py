"""What fit, validate, test and predict show for ``--help``: the options that people set, without waiting for torch.

All others are Lightning's, by way of `lightning_cli`, which reads these, too.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable

from groupcam_aug.recipes.class_help import CLASSES, class_parser
from groupcam_aug.recipes.cli import refusing
from groupcam_aug.recipes.shipped_configs import with_recipes
from groupcam_aug.recipes.unknown_names import given_options, stated

__all__ = ["OPTIONS", "build_parser", "run"]

ALL = ("fit", "validate", "test", "predict")
USE = ("validate", "test", "predict")
# Option, metavar, default (of the classes; a config's own come first), the commands that have it, what it is.
OPTIONS = (
    ("--config", "FILE", None, ALL, "a config, or the name of one in `groupcam-aug recipes list`"),
    ("--data.root", "DIR", "data", ALL, "folder of class folders, or of train/, val/ and test/ with class folders"),
    ("--data.test", "DIR", None, ("test", "predict"), "another folder of class folders, in place of root's test/"),
    ("--data.size", "PIXELS", 224, ALL, "height and width of the images the network sees"),
    ("--data.batch_size", "N", 32, ALL, "images per batch and device"),
    ("--data.num_workers", "N", None, ALL, "loading processes (default: one per CPU core, at most 4)"),
    ("--model.network", "NAME", "timm/resnet50", ("fit",), "timm/<name>, torchvision/<name>, or a bare name"),
    ("--model.pretrained", "BOOL", False, ("fit",), "true: start from the library's published weights"),
    ("--model.checkpoint", "FILE", None, ("fit",), "start from a state dict: .safetensors, .pt, .pth"),
    ("--model.lr", "RATE", 1e-3, ("fit",), "learning rate of SGD"),
    ("--model.freeze_epochs", "N", 0, ("fit",), "for so many first epochs only the head learns"),
    ("--trainer.max_epochs", "N", None, ("fit",), "when to end (default: the config's, or 1000)"),
    ("--trainer.callbacks.preset", "PRESET", None, ("fit",), "of the config's GroupCAMAugmentation: fast, balanced or paper"),
    ("--trainer.accelerator", "KIND", "auto", USE, "cpu, gpu, mps, ..."),
    ("--trainer.devices", "N", "auto", ALL, "how many, or which: [0,1]"),
    ("--trainer.precision", "PRECISION", None, ALL, "32-true, bf16-mixed, ... (default: 32-true)"),
    ("--trainer.default_root_dir", "DIR", None, ALL, "where lightning_logs/ goes (default: the working directory)"),
    ("--seed_everything", "SEED", 0, ("fit",), "of weights, order and crops"),
    ("--ckpt_path", "FILE", None, ("fit",), "go on from this checkpoint, with the config of its training"),
    ("--ckpt_path", "FILE", None, USE, "a .ckpt that `groupcam-aug fit` wrote: network, classes, size, normalisation"),
    ("--top", "K", None, ("predict",), "only the K likeliest classes of each image (default: the probability of every class)"),
    ("--trust", None, False, USE, "make a network of any class that the checkpoint names, which may run any code"),
)
EXAMPLES = {
    "fit": """examples:
  groupcam-aug fit --config resnet50_folder --data.root my_photographs
  groupcam-aug fit --config resnet50_folder --data.root my_photographs --model.lr 0.01 --trainer.max_epochs 5
  groupcam-aug fit --config lightning_logs/version_0/config.yaml --ckpt_path lightning_logs/version_0/checkpoints/last.ckpt""",
    "validate": "examples:\n  groupcam-aug validate --ckpt_path last.ckpt --data.root my_photographs",
    "test": """tests on test/ in --data.root, or --data.test; where there is none, on the images held out from training. Writes
test.json to the run's folder

examples:
  groupcam-aug test --ckpt_path last.ckpt --data.root my_photographs
  groupcam-aug test --ckpt_path last.ckpt --data.root my_photographs --data.test other_photographs""",
    "predict": """writes predictions.csv to the run's folder: file, label where it is known, predicted class, probabilities

examples:
  groupcam-aug predict --ckpt_path last.ckpt --data.root my_photographs""",
}


def build_parser(command: str) -> argparse.ArgumentParser:
    """The parser whose help is shown; it takes what it does not know, too, for `lightning_cli` reads the words."""
    parser = argparse.ArgumentParser(
        prog=f"groupcam-aug {command}",
        usage=f"groupcam-aug {command} {'--config' if command == 'fit' else '--ckpt_path'} FILE [options]",
        epilog=EXAMPLES[command],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    group = parser.add_argument_group("options that one sets")
    for flag, metavar, default, commands, text in OPTIONS:
        if command not in commands:
            continue
        if metavar is None:
            group.add_argument(flag, action="store_true", help=text)
        else:
            shown = "" if default is None else f" (default: {str(default).lower() if default is False else default})"
            group.add_argument(flag, metavar=metavar, help=text + shown)
    group = parser.add_argument_group("all others")
    group.add_argument("--data.help", metavar="CLASS", nargs="?", help="those of ImageData, or of another class")
    group.add_argument("--model.help", metavar="CLASS", nargs="?", help="those of Classifier, or of another class")
    group.add_argument("--trainer.help", action="store_true", help="those of Lightning's Trainer")
    group.add_argument("--trainer.callbacks.help", metavar="CLASS", help="those of a callback, as GroupCAMAugmentation")
    group.add_argument("--print_config", action="store_true", help="show the config that these words make, and exit")
    group.add_argument("--help-all", action="store_true", help="show every option there is, which takes a while")
    return parser


def run(command: str, words: list[str]) -> int:
    """Run one of the four commands, or show the options of the usual model, data or Trainer.

    Returns:
        The exit status.
    """
    for part in CLASSES:
        flag = f"--{part}.help"
        if (flag, "") not in [(given, "" if value.startswith("-") else value) for given, value in given_options(words)]:
            continue
        with refusing():
            named = stated(with_recipes(words), part).get("class_path", (None, False))[0] if part != "trainer" else None
        if named is None or str(named).rpartition(".")[2] == CLASSES[part][2]:
            class_parser(command, part).print_help()
            return 0
        words = [f"{flag}={named}" if word == flag else word for word in words]
    words = ["--help" if word == "--help-all" else word for word in words]
    # Imported here: Lightning takes seconds.
    train: Callable[[str, list[str]], int] = importlib.import_module("groupcam_aug.recipes.lightning_cli").run
    return train(command, words)
