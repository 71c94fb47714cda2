"""``fit``, ``validate``, ``test`` and ``predict``: LightningCLI with our defaults, and checkpoints that need no config."""

from __future__ import annotations

import csv
import inspect
import io
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import pytorch_lightning as pl
import torch
import yaml
from jsonargparse import get_loader, set_loader
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

import groupcam_aug.callbacks  # noqa: F401 - so that configs may name the callbacks by their classes alone
from groupcam_aug.checkpoints import read_checkpoint
from groupcam_aug.files import put_file
from groupcam_aug.printable import printable
from groupcam_aug.recipes.classifier import Classifier, kept_choices, read_classifier
from groupcam_aug.recipes.cli import Refused, find_recipe, refusing
from groupcam_aug.recipes.named_tests import run_tests
from groupcam_aug.recipes.spreadsheet import harmless
from groupcam_aug.recipes.unknown_names import RENAMED, given_options, imported_class, names_class, unknown_names

__all__ = ["GroupCAMCLI", "run"]

CLASSIFIER = "groupcam_aug.recipes.classifier.Classifier"
IMAGE_DATA = "groupcam_aug.recipes.data.ImageData"
USUAL = {"model": CLASSIFIER, "data": IMAGE_DATA}
_YAML = "yaml of any version"  # jsonargparse's name for our way of reading it
LINKED = ("num_classes", "class_names", "mean", "std", "size")  # the data knows them, the model keeps them


class _Parser(LightningArgumentParser):
    """Adds to a message the names that nothing here has, each with the nearest that there is."""

    words: Sequence[str] = ()

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
    """

    def __init__(self, args: list[str]) -> None:
        self._words = args
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
        for link in self._links:
            parser.link_arguments("data", f"model.init_args.{link.name}", compute_fn=link, apply_on="instantiate")

    def instantiate_classes(self) -> None:
        """Make data, model and Trainer; what they refuse is told without a traceback."""
        for link in self._links:
            link.heed(self._get(self.config, "model"))
        try:
            super().instantiate_classes()
        except (OSError, ValueError, TypeError) as error:
            # jsonargparse wraps what a class raised in a message about types; the cause is what helps.
            raise Refused(str(error.__cause__ or error)) from error
        if self.subcommand in ("test", "predict") and (reason := getattr(self.datamodule, "untestable", None)):
            raise Refused(reason)
        path, here = self._get(self.config, "ckpt_path"), getattr(self.datamodule, "class_names", None)
        # Only ours are looked into: checkpoints of other modules may hold what is not read without trust.
        if path and here and type(self.model) is Classifier and Path(path).expanduser().is_file():
            with refusing():
                content = read_checkpoint(path)
            kept = content.get("hyper_parameters", {}).get("class_names") if isinstance(content, dict) else None
            if kept and list(kept) != list(here):
                raise Refused(
                    f"{path!r} was trained on the classes {_few(kept)}; the data have {_few(here)}: give data of the same classes"
                )

    def test(self, model: pl.LightningModule, datamodule: pl.LightningDataModule, **arguments: Any) -> None:
        """Test, on each data set by itself where the data have several by name."""
        run_tests(self.trainer, model, datamodule, before=_announce, **arguments)

    def predict(self, **arguments: Any) -> None:
        """Predict, and write ``predictions.csv`` (file or index, class, probability) to the log folder."""
        if self.trainer.world_size > 1:  # each process would have a part of the samples, in an order of its own
            raise Refused(f"predict writes the file of one process, not of {self.trainer.world_size}: add --trainer.devices 1")
        batches: Any = self.trainer.predict(**arguments)
        if batches and all(isinstance(batch, Tensor) and batch.ndim == 2 for batch in batches):
            file = write_predictions(Path(self.trainer.log_dir or "."), batches, self.datamodule, self.model)
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
        words = with_recipes(words)
        if command != "fit":
            words = from_checkpoint(words)
    with warnings.catch_warnings():
        if command != "fit":  # advice for going on with a training: its callbacks and folders do not matter any more
            warnings.filterwarnings("ignore", message="The dirpath has changed from")
            warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
        GroupCAMCLI([command, *words])
    return 0


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


def _few(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''} ({len(names)})"


def with_recipes(words: list[str]) -> list[str]:
    """Replace the value of ``--config`` by its absolute path: of the file, or of the shipped recipe of that name."""
    words = list(words)
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag not in ("--config", "-c"):
            continue
        if equals:
            words[i] = f"{flag}={find_recipe(value).absolute()}"
        elif i + 1 < len(words):
            words[i + 1] = str(find_recipe(words[i + 1]).absolute())
    return words


def from_checkpoint(words: list[str]) -> list[str]:
    """Add model, size, normalisation and split from ``--ckpt_path``, where neither model nor config is given."""
    given = dict(given_options(words))
    path = given.get("--ckpt_path")
    if not path or path in ("best", "last") or any(flag in ("--config", "-c") or flag.startswith("--model") for flag in given):
        return words
    checkpoint = read_classifier(path)
    arguments = dict(checkpoint["hyper_parameters"])
    if arguments["network"] is None:
        raise ValueError(f"{path!r} was trained around a live module, which it cannot describe; give --model or --config")
    linked = {name: arguments.pop(name) for name in LINKED}
    model = ["--model", json.dumps({"class_path": CLASSIFIER, "init_args": arguments})]
    data, kind = [], given.get("--data", IMAGE_DATA).rpartition(".")[2]
    known = {name: linked[name] for name in ("size", "mean", "std")} if kind in ("ImageData", "ShapesDataModule") else {}
    if kind == "ImageData":
        known |= kept_choices(checkpoint)
        if given.keys() & {"--data.size", "--data.init_args.size"}:
            known.pop("resize", None)  # belongs to the other size
    for name, value in known.items():
        if value is not None and not given.keys() & {f"--data.{name}", f"--data.init_args.{name}"}:
            data += [f"--data.{name}", json.dumps(value)]
    return [*words, *data, *model]


def write_predictions(folder: Path, batches: Sequence[Tensor], data: Any, model: Any) -> Path:
    """One line per sample: file (or index), predicted class, its probability.

    Args:
        folder: where ``predictions.csv`` goes; made if missing.
        batches: probabilities (N, num_classes) in the order of the data's ``test_set``.
        data: its ``test_set.samples``, or those of the data sets that it is a part or a sequence of, give the files, where it
            has them.
        model: its ``class_names``, where it has them, name the classes.
    """
    probability, label = torch.cat(list(batches)).max(dim=1)
    files = _files(getattr(data, "test_set", None))
    names = getattr(model, "class_names", None)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["file" if files else "index", "class", "probability"])
    for i, (which, share) in enumerate(zip(label.tolist(), probability.tolist(), strict=True)):
        file, name = files[i] if files else i, names[which] if names else which
        writer.writerow([harmless(file), harmless(name), f"{share:.4f}"])
    put_file(folder, "predictions.csv", text.getvalue())
    return folder / "predictions.csv"


def _files(dataset: Any) -> list[str] | None:
    """The file of each sample; None where a data set does not say."""
    if isinstance(dataset, ConcatDataset):
        parts = [_files(part) for part in dataset.datasets]
        return None if None in parts else [file for part in parts for file in part or ()]
    if isinstance(dataset, Subset):
        files = _files(dataset.dataset)
        return None if files is None else [files[i] for i in dataset.indices]
    samples = getattr(dataset, "samples", None)
    return None if samples is None else [sample[0] for sample in samples]
