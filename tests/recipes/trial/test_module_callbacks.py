import own_project
import pytest
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

from groupcam_aug.callbacks import GroupCAMAugmentation
from groupcam_aug.recipes.trial.arms import read_arms
from groupcam_aug.recipes.trial.configured import read_config, resolve
from groupcam_aug.recipes.trial.run import Run, rehearse, run_arm


@pytest.fixture
def run(tmp_path):
    config, arms_file = own_project.write(tmp_path)
    tree, (arm,) = read_config(config, ["--trainer.max_epochs", "4"]), read_arms(["none"], arms_file)
    resolve(tree, arm, tmp_path / "out" / "arms")
    return Run(arm, 0, tmp_path / "out", {"image_key": "image", "target_key": "label"})


def test_what_ends_a_training_or_writes_is_left_out_of_a_modules_own_and_that_is_said(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    own = lambda self: [EarlyStopping("val_loss", patience=0, min_delta=9), ModelCheckpoint(monitor="val_loss")]  # noqa: E731
    monkeypatch.setattr(own_project.Mine, "configure_callbacks", own)
    rehearse(run)  # in which nothing is validated, so that it would find no val_loss
    record = run_arm(run)
    assert record["train"]["epochs"] == record["train"]["planned"] == 4
    assert record["warnings"] == ["left out of every arm, as of configs: EarlyStopping, ModelCheckpoint of configure_callbacks"]
    assert not list(tmp_path.rglob("*.ckpt"))


def test_what_arms_differ_in_cannot_come_from_the_module(run, monkeypatch):
    own = lambda self: GroupCAMAugmentation(image_key="image", target_key="label")  # noqa: E731
    monkeypatch.setattr(own_project.Mine, "configure_callbacks", own)
    with pytest.raises(ValueError, match="configure_callbacks of Mine adds GroupCAMAugmentation to every arm"):
        rehearse(run)
