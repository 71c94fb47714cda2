"""From a config of ``fit`` to what an arm is, and from that to a Trainer, a module and its data."""

from __future__ import annotations

import hashlib
import json
import secrets
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml

from groupcam_aug.files import put_file
from groupcam_aug.recipes.lightning_cli import GroupCAMCLI
from groupcam_aug.recipes.shipped_configs import with_recipes
from groupcam_aug.recipes.trial.arms import Arm, with_arm
from groupcam_aug.recipes.trial.module_callbacks import ModuleCallbacks

__all__ = ["PreparedFit", "prepare", "read_config", "resolve", "settings_hash"]


class _Parsed(GroupCAMCLI):
    """Reads ``fit``'s command line and stops before anything is made."""

    def _set_seed(self) -> None:
        """Nothing is drawn."""

    def instantiate_classes(self) -> None:
        """Nothing is made."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing is run."""

    def text(self) -> str:
        """The complete config, as ``fit`` saves it."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"\s*skip_none parameter")  # another name since 4.49, which older ones lack
            dumped: str = self._parser("fit").dump(self.config["fit"], skip_none=False)
        return dumped


class PreparedFit(GroupCAMCLI):
    """Everything that ``fit`` makes of a config, but nothing is run; in a folder of the trial's, without checkpoints and bars.

    Args:
        words: of ``fit``.
        folder: where the Trainer writes.
        observers: callbacks that come before the config's.
        trainer: further arguments of the Trainer.
    """

    def __init__(
        self, words: Sequence[str], folder: Path, observers: Sequence[pl.Callback], trainer: Mapping[str, Any] | None = None
    ) -> None:
        self._folder, self._observers, self._changes = folder, list(observers), dict(trainer or {})
        super().__init__(["fit", *words])

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The config's Trainer."""
        self.save_config_callback = None
        found = self._get(self.config_init, "trainer")
        of_module = ModuleCallbacks()
        found["callbacks"] = [of_module, *self._observers, *(found["callbacks"] or [])]
        settings = {"logger": _logger(self._folder), "default_root_dir": str(self._folder), "enable_checkpointing": False}
        settings |= {"enable_progress_bar": False, "enable_model_summary": False}
        trainer: Any = super().instantiate_trainer(**(kwargs | settings | self._changes))
        of_module.given = tuple(trainer.callbacks)
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing is run."""


def read_config(config: str, words: Sequence[str]) -> dict[str, Any]:
    """The complete config of a ``fit`` command line.

    Args:
        config: file, or name of a recipe.
        words: options of ``fit`` that change it.

    Raises:
        SystemExit: the parser refuses it (status 2, after its message).
        FileNotFoundError: no such config.
        ValueError: it goes on from a checkpoint.
    """
    tree = _parse([*with_recipes(["--config", config]), *words])
    if tree.pop("ckpt_path", None):
        raise ValueError(
            "a trial trains every arm from the start: leave ckpt_path out (a network's weights are the model's matter)"
        )
    return tree


def resolve(config: Mapping[str, Any], arm: Arm, folder: Path) -> Path:
    """Write the complete config of an arm, which ``fit --config`` takes as it is, as ``folder/ARM.yaml``.

    Raises:
        SystemExit: the parser refuses it (status 2, after its message).
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{arm.name}.yaml"
    part = folder / f".{arm.name}.{secrets.token_hex(8)}.part.yaml"
    try:
        put_file(folder, part.name, _as_yaml(with_arm(config, arm), arm))
        # The parser knows what a dotted key means, and whether it fits.
        words = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in arm.set.items()]
        tree = _parse(["--config", str(part), *words])
        tree.pop("ckpt_path", None)
        put_file(folder, path.name, _as_yaml(tree, arm))
    finally:
        part.unlink(missing_ok=True)
    return path


def settings_hash(path: Path) -> str:
    """16 hexadecimal digits that tell arms apart by all but their seed."""
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    tree.pop("seed_everything", None)
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()[:16]


def prepare(
    path: Path, seed: int, folder: Path, observers: Sequence[pl.Callback] = (), trainer: Mapping[str, Any] | None = None
) -> PreparedFit:
    """What ``fit --config PATH --seed_everything SEED`` makes, before it trains.

    Raises:
        Refused: what data, model or Trainer refuse.
        ValueError: a Trainer of several devices.
    """
    made = PreparedFit(["--config", str(path), "--seed_everything", str(seed)], folder, observers, trainer)
    if made.trainer.world_size > 1:
        raise ValueError(
            f"a run of a trial has one device, the config asks for {made.trainer.world_size}: add --trainer.devices 1 "
            "--trainer.strategy auto (--jobs N does N runs at a time)"
        )
    return made


def _parse(words: Sequence[str]) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load(_Parsed(["fit", *words]).text())
    return tree


def _as_yaml(tree: Mapping[str, Any], arm: Arm) -> str:
    about = f": {arm.about}" if arm.about else ""
    return f"# arm {arm.name}{about}\n" + yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True)


def _logger(folder: Path) -> Any:
    """Curves of the run in its folder."""
    from lightning_utilities.core.imports import RequirementCache
    from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

    kind: Any = TensorBoardLogger if RequirementCache("tensorboard") or RequirementCache("tensorboardX") else CSVLogger
    return kind(str(folder), name="", version="")
