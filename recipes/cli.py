"""The command line, ``groupcam-aug``; what a command needs is imported when it runs. A new command is a row of `COMMANDS`."""

from __future__ import annotations

import argparse
import dis
import importlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groupcam_aug.printable import printable
from groupcam_aug.recipes.unknown_names import nearest

__all__ = [
    "COMMANDS",
    "Command",
    "Refused",
    "Renamed",
    "device_of",
    "find_recipe",
    "main",
    "nearest",
    "recipe_names",
    "refusing",
    "shipped_arms",
]


@dataclass(frozen=True)
class Command:
    """One subcommand: its name, its line in the help, and the function, as ``package.module:function``.

    The function takes the name of the command and its arguments (list of str) and returns the exit status.
    """

    name: str
    help: str
    run: str


COMMANDS = (
    Command(
        "demo", "train on drawn shapes with and without Group-CAM, compare, write panels.png", "groupcam_aug.recipes.demo:run"
    ),
    Command("fit", "train or fine-tune a classifier", "groupcam_aug.recipes.lightning_cli:run"),
    Command("validate", "loss and accuracy on the validation data", "groupcam_aug.recipes.lightning_cli:run"),
    Command("test", "loss and accuracy on the test data", "groupcam_aug.recipes.lightning_cli:run"),
    Command("predict", "class probabilities for the test data", "groupcam_aug.recipes.lightning_cli:run"),
    Command("explain", "draw what in an image speaks for a class", "groupcam_aug.recipes.explain:run"),
    Command("fidelity", "which cheap mode keeps the masks, on your network and images", "groupcam_aug.recipes.fidelity:run"),
    Command(
        "evaluate",
        "how good maps are: insertion, deletion, sanity, time, beside controls",
        "groupcam_aug.recipes.evaluation.command:run",
    ),
    Command("report", "write the report of a run again, from its records alone", "groupcam_aug.recipes.report:run"),
    Command("trial", "does it help on your data? arms compared over paired seeds", "groupcam_aug.recipes.trial.command:run"),
    Command("recipes", "list, show or copy the configs that come with the package", "groupcam_aug.recipes.cli:run_recipes"),
    Command("export", "write a checkpoint's network as a plain state dict", "groupcam_aug.recipes.cli:run_export"),
)

EXAMPLES = """examples:
  groupcam-aug demo --quick
  groupcam-aug recipes list
  groupcam-aug recipes copy resnet50_folder
  groupcam-aug fit --config resnet50_folder.yaml --data.root my_photographs
  groupcam-aug explain photo.jpg --checkpoint last.ckpt
  groupcam-aug fidelity my_photographs --checkpoint last.ckpt
  groupcam-aug evaluate my_photographs --checkpoint last.ckpt --limit 100
  groupcam-aug test --ckpt_path last.ckpt --data.root my_photographs
  groupcam-aug report lightning_logs/version_3 --open
  groupcam-aug trial resnet50_folder --data.root my_photographs --arms none fast fast-other --seeds 5
  groupcam-aug export last.ckpt network.safetensors

`groupcam-aug COMMAND --help` tells more of one command."""


def main(argv: list[str] | None = None) -> int:
    """Run a command and return the exit status: 0 good, 1 failed, 2 wrongly called.

    Args:
        argv: the words after ``groupcam-aug``. Default: those of the process.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    commands = {command.name: command for command in COMMANDS}
    if words and words[0] in commands:
        module, _, function = commands[words[0]].run.partition(":")
        run: Callable[[str, list[str]], int] = getattr(importlib.import_module(module), function)
        try:
            return run(words[0], words[1:])
        except SystemExit as stop:  # argparse and jsonargparse have said what was wrong
            return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else _failed(str(stop.code))
        except KeyboardInterrupt:
            return _failed("stopped", 130)
        except Refused as refusal:
            return _failed(str(refusal), refusal.status)
        except Exception as error:
            if (told := _by_loading_process(error)) is not None:
                return _failed(told)
            if not _on_purpose(error):
                raise
            return _failed(str(error))
    parser = argparse.ArgumentParser(
        prog="groupcam-aug",
        description="Saliency-guided training augmentation.\n\ncommands:\n" + _table([(row.name, row.help) for row in COMMANDS]),
        epilog=EXAMPLES,
        usage="groupcam-aug COMMAND ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    if not words:
        parser.print_help()
        return 2
    if not words[0].startswith("-"):
        return _failed(f"no command {words[0]!r}{nearest(words[0], commands)}; `groupcam-aug --help` lists the commands", 2)
    try:
        options = parser.parse_args(words)
    except SystemExit as stop:
        return int(stop.code or 0)
    if options.version:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(version("groupcam-aug"))
        except PackageNotFoundError:
            print("unknown: groupcam-aug is not installed but run from its folder")
    return 0


class Refused(Exception):
    """A command refuses to go on. The message is shown without a traceback.

    Args:
        message: what was wrong, and the way out.
        status: of the process. Default: 1.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


@contextmanager
def refusing() -> Iterator[None]:
    """Turn the errors that wrong input raises (OSError, ValueError, TypeError) into `Refused`; for checks, not for training."""
    try:
        yield
    except (OSError, ValueError, TypeError) as error:
        raise Refused(str(error)) from error


def device_of(name: str) -> str:
    """The device that `--device` names, "auto" resolved: cuda if there is one, else cpu.

    Raises:
        ValueError: no such device on this machine.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.empty(0, device=name).is_meta:
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError, ImportError) as error:  # the last two where torch was built without it
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return name


class Renamed(argparse.Action):
    """An option that has another name now: not in the help, and whoever gives it is told the new one (status 2)."""

    def __init__(self, option_strings: Sequence[str], dest: str, now: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs="?", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        self.now = now

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Refuse."""
        parser.error(f"{option_string} is called {self.now} now")


def recipe_names() -> list[str]:
    """Names of the configs in the package, without ``.yaml``, sorted; those in a subfolder as ``folder/name``."""
    root = _configs()
    paths = [path for path in root.rglob("*.yaml") if path != shipped_arms()]
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in paths)


def shipped_arms() -> Path:
    """The file of arms for `groupcam-aug trial`, which is no recipe."""
    return _configs() / "arms.yaml"


def find_recipe(name: str) -> Path:
    """Path of a config: a file if there is one, else the shipped recipe of that name, with or without ``.yaml``.

    Raises:
        FileNotFoundError: neither; near names are suggested.
    """
    if Path(name).is_file():
        return Path(name)
    bare = name.removesuffix(".yaml")
    if bare in recipe_names():
        return _configs() / f"{bare}.yaml"
    raise FileNotFoundError(
        f"no file and no recipe {name!r}{nearest(bare, recipe_names())} (recipes: {', '.join(recipe_names())})"
    )


def run_recipes(command: str, words: list[str]) -> int:
    """``recipes list | show NAME | copy NAME [DEST]``."""
    parser = argparse.ArgumentParser(prog=f"groupcam-aug {command}", description="The configs that come with the package.")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="names, one line each")
    show = actions.add_parser("show", help="print a config")
    copy = actions.add_parser("copy", help="copy a config here, to be edited")
    for action in (show, copy):
        action.add_argument("name", help="as in `groupcam-aug recipes list`, or arms: those of `groupcam-aug trial`")
    copy.add_argument("destination", nargs="?", default=".", help="file or folder (default: the working directory)")
    copy.add_argument("--force", action="store_true", help="overwrite")
    options = parser.parse_args(words)
    if options.action == "list":
        print(_table([(name, _claim(_configs() / f"{name}.yaml")) for name in recipe_names()]))
        return 0
    with refusing():
        source = shipped_arms() if options.name in ("arms", "arms.yaml") else find_recipe(options.name)
    if options.action == "show":
        print(source.read_text(encoding="utf-8"), end="")
        return 0
    from groupcam_aug.files import put_file

    target = Path(options.destination)
    target = target / source.name if target.is_dir() or not target.suffix else target
    if target.exists() and not options.force:
        return _failed(f"{str(target)!r} exists; give another destination, or --force to overwrite it")
    with refusing():
        put_file(target.parent, target.name, source.read_bytes())
    print(f"wrote {target}")
    return 0


def run_export(command: str, words: list[str]) -> int:
    """``export CKPT OUT``."""
    parser = argparse.ArgumentParser(
        prog=f"groupcam-aug {command}", description="Write a checkpoint's network as a plain state dict."
    )
    parser.add_argument("checkpoint", help="a .ckpt that `groupcam-aug fit` wrote")
    parser.add_argument("out", help="file to write: .safetensors, .pt or .pth")
    options = parser.parse_args(words)
    from groupcam_aug.recipes.classifier import export_state_dict

    with refusing():
        print(f"wrote {export_state_dict(options.checkpoint, options.out)}")
    return 0


def _on_purpose(error: Exception) -> bool:
    """Whether an error is a refusal: Lightning's of a wrong set-up, or one that a `raise` of this package made."""
    if type(error).__name__ == "MisconfigurationException":
        return True
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    if step is None or not isinstance(error, (ValueError, TypeError, RuntimeError, OSError)):
        return False
    ours = str(step.tb_frame.f_globals.get("__name__")).startswith("groupcam_aug.")
    # A line of ours may also fail in a library's C code, which is a fault and needs its traceback.
    return ours and step.tb_frame.f_code.co_code[step.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _by_loading_process(error: Exception) -> str | None:
    """What a `raise` of this package said in a loading process, from the traceback that torch made its message; else None."""
    told = str(error)
    frames = list(re.finditer(r'^  File "(.+)", line \d+, in .+\n    (.*)', told, re.MULTILINE))
    if not told.startswith("Caught ") or "in DataLoader worker process" not in told.partition("\n")[0] or not frames:
        return None
    file, line = frames[-1].groups()
    ours = {getattr(module, "__file__", None) for name, module in sys.modules.items() if name.startswith("groupcam_aug.")}
    if file not in ours or not line.startswith("raise "):
        return None
    return told.rstrip().splitlines()[-1].partition(": ")[2]


def _configs() -> Path:
    from importlib.resources import files

    return Path(str(files("groupcam_aug.recipes").joinpath("configs")))


def _claim(path: Path) -> str:
    """The first comment line of a config: what it is."""
    with path.open(encoding="utf-8") as lines:
        return next(lines, "").lstrip("# ").rstrip()


def _table(rows: list[tuple[str, str]]) -> str:
    width = max((len(name) for name, _ in rows), default=0) + 2
    return "\n".join(f"  {name:<{width}}{text}" for name, text in rows)


def _failed(message: str, status: int = 1) -> int:
    print(f"groupcam-aug: {printable(message)}", file=sys.stderr)
    return status


if __name__ == "__main__":
    from groupcam_aug.recipes.cli import main  # so that `Refused` is one class, whichever way this module was started

    raise SystemExit(main())
