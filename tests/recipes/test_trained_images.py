"""Testing on what was trained on is refused, and what is tested is said."""

import logging
import shutil

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from groupcam_aug.recipes.classifier import Classifier
from groupcam_aug.recipes.data import ImageData
from groupcam_aug.recipes.trained_images import TrainedOn, check_untrained, describe, image_ids, sample_names

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def photos(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (9, 9), (10 * i, 0, 0)).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def make(root, **options):
    return ImageData(str(root), size=8, batch_size=8, num_workers=0, **options)


def classifier():
    return Classifier(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)), num_classes=2)


def fit(data, path=None, epochs=1):
    trainer = pl.Trainer(max_epochs=epochs, enable_checkpointing=False, **QUIET)
    trainer.fit(classifier(), datamodule=data, ckpt_path=path)
    return trainer


@pytest.fixture
def checkpoint(photos, tmp_path):
    fit(make(photos)).save_checkpoint(tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_a_checkpoint_holds_what_was_trained_on_as_plain_values(photos, checkpoint):
    state = torch.load(checkpoint, weights_only=True)["ImageData"]
    assert torch.equal(state["trained"], image_ids(make(photos).train_set).unique())
    assert len(state["trained"]) + len(make(photos).val_set) == 24


def run(command, data, path):
    return getattr(pl.Trainer(**QUIET), command)(classifier(), datamodule=data, ckpt_path=path)


def test_the_held_out_images_are_tested_on_wherever_the_folder_lies(photos, checkpoint, tmp_path):
    assert run("test", make(photos), checkpoint) and run("validate", make(photos), checkpoint)
    shutil.copytree(photos, tmp_path / "elsewhere" / "photos")
    assert run("test", make(tmp_path / "elsewhere" / "photos"), checkpoint)


def test_photographs_more_or_less_do_not_bring_training_images_into_the_test(photos, checkpoint):
    before, every = set(held_out(make(photos))), {f"{name}/{i}.png" for name in ("ant", "bee") for i in range(12)}
    for name in ("ant", "bee"):
        for i in range(12, 17):
            Image.new("RGB", (9, 9), (10 * i, 0, 0)).save(photos / name / f"{i}.png")
    (photos / sorted(every - before)[0]).unlink()
    data = make(photos)
    assert set(held_out(data)) & every <= before and set(held_out(data)) - every
    assert run("test", data, checkpoint)


def held_out(data):
    return [data.val_set.dataset.names[i] for i in data.val_set.indices]


@pytest.mark.parametrize("options", [{"seed": 1}, {"val_fraction": 0.6}, {"test": "."}, {"test": {"all": "."}}])
def test_other_images_than_were_held_out_are_refused(photos, checkpoint, options):
    with pytest.raises(TrainedOn, match=r"\d+ of the \d+ images to test on were trained on, '(ant|bee)/\d+.png' the first"):
        run("test", make(photos, **options), checkpoint)
    if "test" not in options:
        with pytest.raises(TrainedOn, match="images to validate on were trained on"):
            run("validate", make(photos, **options), checkpoint)
        with pytest.raises(TrainedOn, match="images to validate on were trained on"):
            fit(make(photos, **options), checkpoint, epochs=2)
    assert run("predict", make(photos, **options), checkpoint), "predictions are no figure"


def test_a_part_of_the_training_folder_is_known_by_itself(photos, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(photos, root / "train")
    shutil.copytree(photos, root / "val")  # the same names, sizes and pixels, but another folder: the user's matter
    fit(make(root)).save_checkpoint(tmp_path / "parts.ckpt")
    assert run("test", make(root), tmp_path / "parts.ckpt")
    with pytest.raises(TrainedOn, match=r"\d+ of the \d+ images to test on were trained on"):
        run("test", make(root / "train"), tmp_path / "parts.ckpt")
    with pytest.raises(TrainedOn, match="24 of the 24 images"):
        run("test", make(root, test="train"), tmp_path / "parts.ckpt")


def test_other_photographs_of_the_same_names_may_be_tested_on(photos, checkpoint, tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / "new" / "photos" / name).mkdir(parents=True)
        for i in range(12):
            Image.effect_noise((20 + i, 30), 90).save(tmp_path / "new" / "photos" / name / f"{i}.png")
    assert run("test", make(tmp_path / "new" / "photos", test="."), checkpoint)


def test_what_was_trained_on_in_this_process_counts_too(photos):
    data = make(photos, test=".")
    trainer = fit(data)
    with pytest.raises(TrainedOn):
        trainer.test(classifier(), datamodule=data)


def test_a_resumed_training_remembers_the_images_of_before(photos, checkpoint, tmp_path):
    shutil.move(photos / "ant" / "0.png", photos / "ant" / "renamed.png")
    shutil.move(photos / "ant" / "3.png", photos / "ant" / "other.png")
    trainer = fit(make(photos), checkpoint, epochs=2)
    trainer.save_checkpoint(tmp_path / "next.ckpt")
    before, after = (torch.load(path, weights_only=True)["ImageData"]["trained"] for path in (checkpoint, tmp_path / "next.ckpt"))
    assert set(before.tolist()) <= set(after.tolist())


def test_a_checkpoint_of_a_former_version_does_not_say(photos, checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=False)
    del content["ImageData"]["trained"], content["ImageData"]["order_seed"]
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.raises(TrainedOn, match="does not say which images were trained on.* to test, give images"):
        run("test", make(photos), tmp_path / "old.ckpt")
    assert run("test", make(photos, test="."), tmp_path / "old.ckpt"), "a folder that is named is the user's matter"


def test_the_order_goes_on_with_the_seed_of_the_checkpoint(photos, checkpoint, monkeypatch, tmp_path):
    first = torch.load(checkpoint, weights_only=True)["ImageData"]["order_seed"]
    monkeypatch.setenv("PL_GLOBAL_SEED", "77")
    fit(make(photos), checkpoint, epochs=2).save_checkpoint(tmp_path / "next.ckpt")
    assert torch.load(tmp_path / "next.ckpt", weights_only=True)["ImageData"]["order_seed"] == first
    data = make(photos)
    fit(data)
    assert data.state_dict()["order_seed"] == 77


def test_what_is_tested_is_said(photos, checkpoint, caplog):
    count = len(make(photos).val_set)
    with caplog.at_level(logging.INFO):
        run("test", make(photos), checkpoint)
        run("predict", make(photos, test={"all": "."}), checkpoint)
    said = [record.message for record in caplog.records if str(photos) in record.message]
    assert said[0].startswith(
        f"test: {count} of the 24 images in '{photos}', held out from training by val_fraction=0.2 and seed=0"
    )
    assert said[0].endswith("test='.' (--data.test .) takes all of them") and said[1] == f"predict: 24 images in '{photos}'"


def test_parts_of_sets_of_torchvision_are_known_by_number():
    class Numbers(torch.utils.data.Dataset):
        def __len__(self):
            return 4

    whole = Numbers()
    part = torch.utils.data.Subset(whole, [1, 3])
    assert sample_names(whole) == ["0", "1", "2", "3"] and describe(whole, None, "") == "4 images of Numbers"
    assert len(image_ids(whole)) == 0 and len(image_ids(part)) == 2
    with pytest.raises(TrainedOn, match="1 of the 2 images to validate on were trained on, '3' the first"):
        check_untrained(part, image_ids(torch.utils.data.Subset(whole, [0, 3])), "validate")
    check_untrained(whole, image_ids(part), "test")


def test_a_refusal_leaves_data_loaders_as_they_were(photos, checkpoint):
    """Lightning wraps `DataLoader.__init__` while it asks for loaders, and an error there would leave the wrapping behind."""
    before = DataLoader.__init__
    for stage in ("test", "validate"):
        data = make(photos, test=".") if stage == "test" else make(photos, seed=1)
        with pytest.raises(TrainedOn):
            getattr(pl.Trainer(**QUIET), stage)(classifier(), datamodule=data, ckpt_path=str(checkpoint), weights_only=False)
        assert DataLoader.__init__ is before
