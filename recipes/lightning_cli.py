"""``fit``, ``validate``, ``test`` and ``predict``: LightningCLI with our defaults, and checkpoints that need no config."""

from __future__ import annotations

import argparse
import inspect
import json
import re
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import pytorch_lightning as pl
import yaml
from jsonargparse import Namespace, get_loader, set_loader
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor

import groupcam_aug.callbacks  # noqa: F401 - so that configs may name the callbacks by their classes alone
from groupcam_aug.files import put_file
from groupcam_aug.printable import printable
from groupcam_aug.recipes.checkpoint_options import CLASSIFIER, check_same, from_checkpoint
from groupcam_aug.recipes.class_help import without_marks
from groupcam_aug.recipes.classifier import Classifier
from groupcam_aug.recipes.cli import Refused, refusing
from groupcam_aug.recipes.named_tests import run_tests
from groupcam_aug.recipes.next_steps import next_steps
from groupcam_aug.recipes.predictions import check_top, write_predictions
from groupcam_aug.recipes.shipped_configs import with_recipes
from groupcam_aug.recipes.unknown_names import RENAMED, imported_class, names_class, unknown_names

__all__ = ["GroupCAMCLI", "run"]

IMAGE_DATA = "groupcam_aug.recipes.data.ImageData"
USUAL = {"model": CLASSIFIER, "data": IMAGE_DATA}
_YAML = "yaml of any version"  # jsonargparse's name for our way of reading it
LINKED = ("num_classes", "class_names", "mean", "std", "size")  # the data knows them, the model keeps them


class _Parser(LightningArgumentParser):
    """Adds to a message the names that nothing here has, each with the nearest that there is; its help is plain text."""

    words: Sequence[str] = ()

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Help without the lists of every class that is imported, and without the marks of reStructuredText."""
        text = re.sub(r",\s+known\s+subclasses:[^)]*\)", ")", super().format_help(*args, **kwargs))
        return without_marks(text)

    def error(self, message: str, *args: Any, **kwargs: Any) -> NoReturn:
        """Exit with status 2 after the message."""
        options: list[str] = []
        for action in self._actions:
            parsers = action.choices.values() if isinstance(action.choices, dict) else ()
            options += [action.dest, *(option.dest for parser in parsers for option in parser._actions)]
        super().error(message + "".join(dict.fromkeys(unknown_names(self.words, options, USUAL))), *args, **kwargs)
        raise SystemExit(2)


class GroupCAMCLI(LightningCLI):
    """LightningCLI for any model and data class by ``class_path``; by default `Classifier` on `ImageData`.

    Number and names of the classes, normalisation and image size go from the data to the model if it takes them. To a model other
    than `Classifier` the first two go unless the config says otherwise, the rest only where it has no default either.

    Args:
        args: command and words.
        restored: the model, in place of what the words say of one. Default: None.
        top: as in `write_predictions`. Default: None.
    """

    def __init__(self, args: list[str], restored: Classifier | None = None, top: int | None = None) -> None:
        self._words, self._restored, self._top = args, restored, top
        if str(Path.cwd()) not in sys.path:  # behind all else, so that nothing there hides an installed package
            sys.path.append(str(Path.cwd()))
        self._links = [_Attribute(name) for name in LINKED]  # for the parsers of all commands
        super().__init__(
            pl.LightningModule,
            pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            # A config is code: what a checkpoint from elsewhere says must not become one.
            save_config_callback=SaveConfigCallback if restored is None else None,
            args=args,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Lightning's parser with our message for unknown names."""
        parser = super().init_parser(**kwargs)
        parser.__class__ = _Parser  # older Lightning has no argument for it
        cast(_Parser, parser).words = self._words
        set_loader(_YAML, _load, (yaml.YAMLError,))
        parser.parser_mode = _YAML
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """The words we are given are the process's, with recipes found: no reason for a warning."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            super().parse_arguments(parser, args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Defaults and links."""
        # Not beside another class: the parser would hand it the values of arguments that both have.
        usual = {part: path for part, path in USUAL.items() if not names_class(self._words, part)}
        parser.set_defaults({part: {"class_path": path} for part, path in usual.items()})
        for link in self._links if self._restored is None else ():
            parser.link_arguments("data", f"model.init_args.{link.name}", compute_fn=link, apply_on="instantiate")

    def instantiate_classes(self) -> None:
        """Make data, model and Trainer; what they refuse is told without a traceback."""
        for link in self._links if self._restored is None else ():
            link.heed(self._get(self.config, "model"))
        if self._restored is not None:
            # The parser wants a model: an empty one.
            self.config[self.subcommand]["model"] = Namespace(
                class_path="pytorch_lightning.LightningModule", init_args=Namespace()
            )
        try:
            super().instantiate_classes()
        except (OSError, ValueError, TypeError) as error:
            # jsonargparse wraps what a class raised in a message about types; the cause is what helps.
            raise Refused(str(error.__cause__ or error)) from error
        self.model = self._restored or self.model
        if self.subcommand in ("test", "predict") and (reason := getattr(self.datamodule, "untestable", None)):
            raise Refused(reason)
        limit = {"validate": "limit_val_batches", "test": "limit_test_batches", "predict": "limit_predict_batches"}.get(
            str(self.subcommand)
        )
        if limit is not None and getattr(self.trainer, limit) == 0:
            raise Refused(f"--trainer.{limit} 0 leaves nothing to {self.subcommand}: give 1 or more, or leave it out")
        self._check_checkpoint()

    def _check_checkpoint(self) -> None:
        """What `from_checkpoint` cannot know before there are model, data and Trainer."""
        path = self._get(self.config, "ckpt_path")
        if path == "best":
            raise Refused(f"--ckpt_path best names the best of a training in the same process: give its file{self._newest()}")
        if path == "last":
            folders = [getattr(callback, "dirpath", None) for callback in self.trainer.checkpoint_callbacks]
            found = [file for folder in folders if folder for file in Path(folder).glob("last*.ckpt")]
            if not found:
                raise Refused(
                    "--ckpt_path last finds no checkpoint: no ModelCheckpoint of the config has a dirpath with a last.ckpt; give "
                    f"its file{self._newest()}"
                )
            path = str(max(found, key=lambda file: file.stat().st_mtime))
            self.config_init[self.subcommand]["ckpt_path"] = path
        if not path or path == "hpc" or "://" in path:
            return
        if not Path(path).exists():
            raise Refused(f"checkpoint {path!r}: no such file{self._newest()}")
        # Only ours are looked into: checkpoints of other modules may hold what is not read without trust.
        if type(self.model) is Classifier and Path(path).is_file():
            with refusing():
                check_same(path, self.model, self.datamodule)

    def _newest(self) -> str:
        files = Path(self.trainer.default_root_dir).glob("lightning_logs/*/checkpoints/*.ckpt")
        newest = max(files, key=lambda file: file.stat().st_mtime, default=None)
        return "" if newest is None else f"; the newest here is {str(newest)!r}"

    def _run_subcommand(self, subcommand: str) -> None:
        """Say how a run goes on that was stopped, with the usual exit status: 130 for Ctrl-C, 143 for SIGTERM."""
        try:
            super()._run_subcommand(subcommand)
        except SIGTERMException as error:
            raise Refused(f"ended by SIGTERM{self._going_on()}", 143) from error
        except SystemExit as error:
            if not isinstance(error.__context__, KeyboardInterrupt):
                raise
            raise Refused(f"stopped{self._going_on()}", 130) from error

    def _going_on(self) -> str:
        if self.subcommand != "fit":
            return ""
        paths = [
            getattr(c, name, "") for c in self.trainer.checkpoint_callbacks for name in ("last_model_path", "best_model_path")
        ]
        files = [Path(path) for path in paths if path and Path(path).is_file()]
        config = Path(self.trainer.log_dir or ".") / "config.yaml"
        if not files or not config.is_file():
            return "; no checkpoint was written yet"
        newest = max(files, key=lambda file: file.stat().st_mtime)
        return f"; go on with: {shlex.join(['groupcam-aug', 'fit', '--config', str(config), '--ckpt_path', str(newest)])}"

    def test(self, model: pl.LightningModule, datamodule: pl.LightningDataModule, **arguments: Any) -> None:
        """Test, on each data set by itself where the data have several by name; write ``test.json`` to the log folder."""
        results = run_tests(self.trainer, model, datamodule, before=_announce, **arguments)
        folder = Path(self.trainer.log_dir or ".")  # which all processes agree on
        if self.trainer.is_global_zero:
            record = {"checkpoint": arguments.get("ckpt_path"), "results": results}
            put_file(folder, "test.json", json.dumps(record, indent=1) + "\n")
            print(printable(f"wrote {folder / 'test.json'}"))

    def after_fit(self) -> None:
        """Say where the run is and what comes next."""
        lines = next_steps(self.trainer, self.model, self.datamodule)  # in all processes, which agree on the folder
        for line in lines if self.trainer.is_global_zero else ():
            print(printable(line))

    def predict(self, **arguments: Any) -> None:
        """Predict, and write ``predictions.csv`` to the log folder (`write_predictions`)."""
        if self.trainer.world_size > 1:  # each process would have a part of the samples, in an order of its own
            raise Refused(f"predict writes the file of one process, not of {self.trainer.world_size}: add --trainer.devices 1")
        if (count := getattr(self.model, "num_classes", None)) is not None:
            with refusing():
                check_top(self._top, count)
        batches: Any = self.trainer.predict(**arguments)
        if batches and all(isinstance(batch, Tensor) and batch.ndim == 2 for batch in batches):
            with refusing():
                file = write_predictions(Path(self.trainer.log_dir or "."), batches, self.datamodule, self.model, self._top)
            print(printable(f"wrote {file}"))

    def _parse_ckpt_path(self) -> None:
        """Newer Lightning merges a checkpoint's hyper-parameters into the config; here `from_checkpoint` does, or nothing."""


def run(command: str, words: list[str]) -> int:
    """Run one of the four commands.

    Args:
        command: fit, validate, test or predict.
        words: the rest of the command line.

    Returns:
        The exit status, 0. A wrong command line raises SystemExit(2) after its message.
    """
    with refusing():
        ours, words = _ours(command).parse_known_args(words)
        words, restored = from_checkpoint(with_recipes(words), command, ours.trust)
    with warnings.catch_warnings():
        if command != "fit":  # advice for going on with a training: its callbacks and folders do not matter any more
            warnings.filterwarnings("ignore", message="The dirpath has changed from")
            warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
        GroupCAMCLI([command, *words], restored, ours.top)
    return 0


def _ours(command: str) -> argparse.ArgumentParser:
    """The options that are not Lightning's."""
    parser = argparse.ArgumentParser(prog=f"groupcam-aug {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("--trust", action="store_true")
    parser.set_defaults(top=None)
    if command == "predict":
        parser.add_argument("--top", type=int)
    return parser


class _Attribute:
    """Reads one attribute of the data module for the model (picklable and named, unlike a lambda)."""

    def __init__(self, name: str) -> None:
        self.name, self.__name__ = name, f"data.{name}"
        self.given: Any = None  # what the config says
        self.open = True  # whether the data may say otherwise

    def heed(self, model: Any) -> None:
        """Look at the model's config, which a link would overwrite."""
        found = imported_class(model.class_path)
        self.given = (model.get("init_args") or {}).get(self.name)
        if not (isinstance(found, type) and issubclass(found, Classifier)):
            known = None if found is None else inspect.signature(found).parameters.get(self.name)
            default = None if known is None or known.default is known.empty else known.default
            # What classes there are is a fact of the data, whatever a model takes for ordinary; the rest may mean other things.
            about_classes = self.name in ("num_classes", "class_names")
            self.open = self.given in (None, default) and (about_classes or default is None)

    def __call__(self, data: pl.LightningDataModule) -> Any:
        return getattr(data, self.name, self.given) if self.open else self.given


def _load(text: str) -> Any:
    """YAML, without what earlier versions saved of arguments that are called otherwise now and were not given."""
    return _without_former_nulls(get_loader("yaml")(text))


def _without_former_nulls(tree: Any) -> Any:
    if isinstance(tree, list):
        return [_without_former_nulls(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    ours = str(tree.get("class_path")).startswith("groupcam_aug.recipes.")
    arguments = tree.get("init_args")
    if ours and isinstance(arguments, dict):
        tree = {**tree, "init_args": {k: v for k, v in arguments.items() if v is not None or k not in RENAMED}}
    return {key: _without_former_nulls(value) for key, value in tree.items()}


def _announce(name: str, loader: Any) -> None:
    if name != "test":  # a lone one needs no name
        print(printable(f"test data: {name}"))
