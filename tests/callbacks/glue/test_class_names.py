"""Class names, from whoever knows them."""

import json
from types import SimpleNamespace

import lit
import pytest
import pytorch_lightning as pl
from torch.utils.data import ConcatDataset, DataLoader, Subset

from groupcam_aug.callbacks import GroupCAMAugmentation, SaliencyMonitor, SaliencyReport
from groupcam_aug.callbacks.glue.class_names import class_name, flattened, known_class_names

NAMES = ["ant", "bee", "cat", "dog", "eel"]


class Named(lit.Pictures):
    """As a data set of torchvision."""

    classes, target_transform = NAMES, None


def trainer_of(train=None, val=None, data=None):
    return SimpleNamespace(datamodule=data, train_dataloader=train, val_dataloaders=val)


def test_a_class_in_words():
    assert class_name(NAMES, 1) == "bee" and class_name(NAMES, 5) == "class 5" and class_name(NAMES, -1) == "class -1"
    assert class_name(None, 0) == "class 0"


def test_the_data_module_is_asked_first_then_the_module_then_what_a_checkpoint_keeps():
    data, module = SimpleNamespace(class_names=["a"]), SimpleNamespace(class_names=["b"], hparams={})
    loader = DataLoader(Named())
    assert known_class_names(trainer_of(loader, data=data), module) == ["a"]
    assert known_class_names(trainer_of(loader), module) == ["b"]
    kept = SimpleNamespace(class_names=None, hparams=SimpleNamespace(class_names=("c",)))
    assert known_class_names(trainer_of(loader), kept) == ["c"]
    assert known_class_names(trainer_of(loader), SimpleNamespace()) == NAMES


@pytest.mark.parametrize(
    ("wrap", "names"),
    [
        (lambda named: named, NAMES),
        (lambda named: Subset(named, [1, 0]), NAMES),
        (lambda named: Subset(Subset(named, [1, 0]), [0]), NAMES),
        (lambda named: ConcatDataset([named, Subset(named, [0])]), NAMES),
        (lambda named: ConcatDataset([named, lit.Pictures()]), None),
        (lambda named: lit.Pictures(), None),
    ],
)
def test_a_data_set_behind_the_loaders_names_its_classes(wrap, names):
    loader = DataLoader(wrap(Named()))
    for trainer in (trainer_of(loader), trainer_of(val=loader), trainer_of({"a": [DataLoader(lit.Pictures()), loader]})):
        assert known_class_names(trainer, None) == names


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"target_transform": lambda label: 0}, None),  # its labels are no longer those of the names
        ({"classes": [("tench", "Tinca tinca"), ("goldfish", "Carassius auratus")]}, ["tench", "goldfish"]),
        ({"classes": [3, 4]}, None),  # may be a label for each sample
        ({"classes": 5}, None),
        ({"classes": []}, None),
        ({"classes": [()]}, None),
    ],
)
def test_what_a_data_set_says_of_its_classes(changed, names):
    named = Named()
    vars(named).update(changed)
    assert known_class_names(trainer_of(DataLoader(named)), None) == names


def test_loaders_as_deep_as_they_lie():
    assert list(flattened({"a": 1, "b": [2, (3, {"c": 4})]})) == [1, 2, 3, 4] and list(flattened(None)) == [None]


def test_all_records_of_a_run_have_them(tmp_path):
    trainer = pl.Trainer(
        **{**lit.SILENT, "max_epochs": 1, "default_root_dir": tmp_path},
        callbacks=[GroupCAMAugmentation(network="net", groups=4), SaliencyMonitor(network="net", num_images=4), SaliencyReport()],
    )
    trainer.fit(lit.Lit(), DataLoader(Named(), 4), DataLoader(Named(), 4))
    for name in ("run", "monitor", "augmentation"):
        assert json.loads((tmp_path / "groupcam" / f"{name}.json").read_text())["class_names"] == NAMES, name
    page = (tmp_path / "groupcam" / "report.html").read_text()
    assert "class 1" not in page and "class 2" not in page and any(name in page for name in NAMES)
