"""Testing on several data sets by name: a Trainer tests on each alone, so that no ``test_step`` needs to know of the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl

__all__ = ["named_loaders", "run_tests"]


def run_tests(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    *,
    before: Callable[[str, Any], None] = lambda name, loader: None,
    **arguments: Any,
) -> dict[str, dict[str, float]]:
    """Test on every data set that ``data.test_dataloader()`` gives, one after the other.

    Args:
        trainer: tests the module as it is, or from ``ckpt_path``.
        module: to be tested.
        data: its ``test_dataloader`` gives a loader, a list of them, or a mapping from names.
        before: called with the name and the loader of each data set before it is tested on.
        arguments: for ``trainer.test``.

    Returns:
        What the module logged, by the name of the data set: "test" for a lone loader, "test 0", "test 1" for a list.

    Raises:
        ValueError: the Trainer asks for no loader.
    """
    original = data.test_dataloader
    loaders: dict[str, Any] = {}
    results: dict[str, dict[str, float]] = {}

    def test_dataloader() -> Any:
        if not loaders:  # only here, for `setup` comes before
            loaders.update(named_loaders(original()))
        name = next(name for name in loaders if name not in results)
        before(name, loaders[name])
        return loaders[name]

    vars(data)["test_dataloader"] = test_dataloader  # on the instance, so that its other hooks stay those of a test
    try:
        while not loaders or len(results) < len(loaders):
            # Each time with the arguments: a checkpoint that is named is loaded again, which changes nothing.
            logged = trainer.test(module, datamodule=data, **arguments)
            if not loaders:
                raise ValueError(
                    f"the Trainer tested on nothing, by limit_test_batches={trainer.limit_test_batches!r}: give 1 or more, or "
                    "leave it out"
                )
            name = next(name for name in loaders if name not in results)
            results[name] = {key: float(value) for key, value in logged[0].items()} if logged else {}
    finally:
        del vars(data)["test_dataloader"]
    return results


def named_loaders(loaders: Any) -> dict[str, Any]:
    """Loaders by name.

    Raises:
        ValueError: there is none.
    """
    if isinstance(loaders, Mapping):
        named = {str(name): loader for name, loader in loaders.items()}
    elif isinstance(loaders, list | tuple):
        named = {f"test {i}": loader for i, loader in enumerate(loaders)} if len(loaders) != 1 else {"test": loaders[0]}
    else:
        named = {"test": loaders}
    if not named:
        raise ValueError("test_dataloader() of the data module gives no loader: there is nothing to test on")
    return named
