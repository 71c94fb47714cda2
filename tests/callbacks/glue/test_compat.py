"""`pytorch_lightning` and `lightning.pytorch` are two packages: the callback serves the Trainer of either, whichever is there.

scripts/two_names.sh runs this file with both installed and with `lightning` alone.
"""

import importlib
import os
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location

import pytest
import torch
from models import PooledNet
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from groupcam_aug.callbacks import GroupCAMAugmentation
from groupcam_aug.callbacks.glue import compat as host


def is_here(name):
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


HERE = [name for name in ("pytorch_lightning", "lightning.pytorch") if is_here(name)]
each = pytest.mark.parametrize("name", HERE)


def make(name):
    """The package, a module of its own class, and batches."""
    package = importlib.import_module(name)

    class Lit(package.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(7)
            self.net, self.seen = PooledNet(), []

        def training_step(self, batch, batch_idx):
            self.seen.append(batch[0].clone())
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.05)

    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(8, 3, 24, 20, generator=generator), torch.randint(5, (8,), generator=generator)
    return package, Lit(), DataLoader(TensorDataset(images, labels), 4), images


def fit(package, module, train, callbacks):
    trainer = package.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    trainer.fit(module, train)
    return trainer


def test_the_expected_packages_are_here():
    """Guards the script: an environment that lacks a package would pass everything below by testing nothing."""
    assert os.environ.get("TWO_NAMES", " ".join(HERE)).split() == HERE and HERE


@each
@pytest.mark.parametrize("alone", [False, True])
def test_augments_in_a_list_and_alone(name, alone):
    package, module, train, images = make(name)
    callback = GroupCAMAugmentation(preset="paper", network="net", groups=4)
    assert isinstance(callback, package.Callback)
    trainer = fit(package, module, train, callback if alone else [callback])
    assert len(module.seen) == 2
    assert all(not torch.equal(seen, raw) for seen, raw in zip(module.seen, images.split(4)))
    assert 0 < trainer.callback_metrics["groupcam/keep_fraction"] <= 1
    assert "batch_to_device" not in vars(trainer.strategy)


@each
def test_errors_are_of_the_trainers_own_package(name):
    package, module, train, _ = make(name)
    expected = importlib.import_module(f"{name}.utilities.exceptions").MisconfigurationException
    for other in HERE:
        if other != name:
            assert importlib.import_module(f"{other}.utilities.exceptions").MisconfigurationException is not expected
    with pytest.raises(expected, match="no network 'model'"):
        fit(package, module, train, [GroupCAMAugmentation(preset="paper", network="model")])
    with pytest.raises(expected, match="network="):
        fit(package, module, train, [GroupCAMAugmentation(preset="paper")])
    assert not module.seen


@each
def test_one_callback_may_serve_trainers_of_both(name):
    """A callback built once, used with one package and then with the other, as notebooks do."""
    callback, runs = GroupCAMAugmentation(preset="paper", network="net", groups=4), []
    for current in dict.fromkeys([name, *HERE]):
        package, module, train, _ = make(current)
        fit(package, module, train, [callback])
        runs.append(module.seen)
    assert all(torch.equal(a, b) for run in runs for a, b in zip(runs[0], run, strict=True))


@pytest.mark.skipif("lightning.pytorch" in HERE, reason="the real package would be found")
def test_a_folder_called_lightning_is_no_package(tmp_path, monkeypatch):
    """Beside the script that trains, as users have it: for Python it is an (empty) namespace package."""
    (tmp_path / "lightning").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    spec = spec_from_file_location("host_again", host.__file__)
    again = module_from_spec(spec)
    try:
        spec.loader.exec_module(again)
    finally:
        sys.modules.pop("lightning", None)
    assert again._NAMES == ["pytorch_lightning"]
