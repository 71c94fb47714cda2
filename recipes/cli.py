"""The command line, ``groupcam-aug``; what a command needs is imported when it runs. A new command is a row of `COMMANDS`."""

from __future__ import annotations

import argparse
import dis
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from groupcam_aug.printable import printable
from groupcam_aug.recipes.unknown_names import nearest

__all__ = ["COMMANDS", "Command", "Refused", "device_of", "main", "nearest", "parser_of", "refusing", "table"]


@dataclass(frozen=True)
class Command:
    """One subcommand: its name, its line in the help, and two functions, each as ``package.module:function``.

    `run` takes the name of the command and its arguments (list of str) and returns the exit status. `parser` takes the name and
    returns the parser (default: the function of that name in `parsers`); its module imports no torch, so that help comes at once.
    """

    name: str
    help: str
    run: str
    parser: str = ""


_R = "groupcam_aug.recipes"
_PARSERS = f"{_R}.parsers"
_TRAINING = f"{_R}.training_options"
COMMANDS = (
    Command("demo", "train on drawn shapes with and without Group-CAM, compare, write panels.png", f"{_R}.demo:run"),
    Command("fit", "train or fine-tune a classifier", f"{_TRAINING}:run", f"{_TRAINING}:build_parser"),
    Command("validate", "loss and accuracy on the validation data", f"{_TRAINING}:run", f"{_TRAINING}:build_parser"),
    Command("test", "loss and accuracy on the test data", f"{_TRAINING}:run", f"{_TRAINING}:build_parser"),
    Command("predict", "class probabilities for the test data", f"{_TRAINING}:run", f"{_TRAINING}:build_parser"),
    Command("explain", "draw what in an image speaks for a class", f"{_R}.explain:run"),
    Command(
        "name-units", "what the units of a layer detect, for explain --words", f"{_R}.unit_names:run", f"{_PARSERS}:name_units"
    ),
    Command("fidelity", "which cheap mode keeps the masks, on your network and images", f"{_R}.fidelity:run"),
    Command(
        "evaluate",
        "how good maps are: insertion, deletion, sanity, time, beside controls",
        f"{_R}.evaluation.command:run",
        f"{_R}.evaluation.options:build_parser",
    ),
    Command("report", "write the report of a run again, from its records alone", f"{_R}.report:run"),
    Command(
        "trial",
        "does it help on your data? arms compared over paired seeds",
        f"{_R}.trial.command:run",
        f"{_R}.trial.command:build_parser",
    ),
    Command("recipes", "list, show or copy the configs that come with the package", f"{_R}.shipped_configs:run"),
    Command("export", "write a checkpoint's network as a plain state dict", f"{_R}.export:run"),
    Command("completion", "print the script by which a shell completes all this", f"{_R}.completion:run"),
)

EXAMPLES = """examples:
  groupcam-aug demo --quick
  groupcam-aug recipes list
  groupcam-aug recipes copy resnet50_folder
  groupcam-aug fit --config resnet50_folder.yaml --data.root my_photographs
  groupcam-aug explain photo.jpg --checkpoint last.ckpt
  groupcam-aug name-units last.ckpt
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
        command, rest = commands[words[0]], words[1:]
        if "--version" in rest:
            return _version()
        try:
            if {"-h", "--help"} & set(rest):
                parser_of(command).parse_args(rest)
            return int(_function(command.run)(command.name, rest))
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
        description="Saliency-guided training augmentation.\n\ncommands:\n" + table([(row.name, row.help) for row in COMMANDS]),
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
    return _version() if options.version else 0


def parser_of(command: Command) -> argparse.ArgumentParser:
    """The parser of a command, with ``--version``, which all have."""
    parser: argparse.ArgumentParser = _function(command.parser or f"{_PARSERS}:{command.name}")(command.name)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    return parser


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


def _version() -> int:
    from importlib.metadata import PackageNotFoundError, version

    try:
        print(version("groupcam-aug"))
    except PackageNotFoundError:
        print("unknown: groupcam-aug is not installed but run from its folder")
    return 0


def _function(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def table(rows: list[tuple[str, str]]) -> str:
    """Names and a line each, in two columns."""
    width = max((len(name) for name, _ in rows), default=0) + 2
    return "\n".join(f"  {name:<{width}}{text}" for name, text in rows)


def _failed(message: str, status: int = 1) -> int:
    print(f"groupcam-aug: {printable(message)}", file=sys.stderr)
    return status


if __name__ == "__main__":
    from groupcam_aug.recipes.cli import main  # so that `Refused` is one class, whichever way this module was started

    raise SystemExit(main())
