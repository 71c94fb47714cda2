"""Which folder a run's records go to, and when to none."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.logger import DummyLogger

from groupcam_aug.callbacks.records.folder import open_folder, record_folder


def trainer(folder, **options):
    options = {"logger": False, **options}
    return pl.Trainer(
        accelerator="cpu", devices=1, default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False, **options
    )


class Elsewhere(DummyLogger):
    """A logger with a folder for all runs, as W&B and MLflow have."""

    def __init__(self, save_dir, name="shoes", version="abc"):
        super().__init__()
        self._save_dir, self._name, self._version = save_dir, name, version

    save_dir = property(lambda self: self._save_dir)
    name = property(lambda self: self._name)
    version = property(lambda self: self._version)


def test_the_folder_is_that_of_the_logger(tmp_path):
    assert record_folder(trainer(tmp_path)) == tmp_path / "groupcam"
    for kind in (CSVLogger, TensorBoardLogger):
        for number in range(2):
            logger = kind(tmp_path, name=kind.__name__, version=number)
            assert record_folder(trainer(tmp_path, logger=logger)) == tmp_path / kind.__name__ / f"version_{number}" / "groupcam"
    assert not list(tmp_path.rglob("groupcam")), "made only when something is written"


def test_runs_of_other_loggers_share_no_folder(tmp_path):
    folder = record_folder(trainer(tmp_path, logger=Elsewhere(tmp_path)))
    assert folder == tmp_path / "shoes" / "abc" / "groupcam"
    assert record_folder(trainer(tmp_path, logger=Elsewhere(tmp_path, version=3))) == tmp_path / "shoes/version_3/groupcam"
    assert record_folder(trainer(tmp_path, logger=Elsewhere(None))) == tmp_path / "groupcam"


def test_logs_in_a_bucket_leave_records_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    near = trainer(tmp_path, logger=Elsewhere("s3://bucket/runs", name=None))
    assert record_folder(near) == tmp_path / "groupcam"


@pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"barebones": True}])
def test_nothing_is_recorded_in_trial_runs(tmp_path, options):
    options = {**options, "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": tmp_path}
    assert record_folder(pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options)) is None


def test_other_ranks_have_no_folder_and_ask_for_no_broadcast(tmp_path):
    other = SimpleNamespace(is_global_zero=False)  # has nothing else to be asked for
    assert record_folder(other) is None
    first = SimpleNamespace(is_global_zero=True, fast_dev_run=False, barebones=False, loggers=[], default_root_dir=str(tmp_path))
    assert record_folder(first) == tmp_path / "groupcam"  # no strategy, no log_dir


def test_a_run_that_is_to_leave_nothing_has_no_open_folder(tmp_path):
    bare = trainer(tmp_path, enable_checkpointing=False)
    assert record_folder(bare) == tmp_path / "groupcam" and open_folder(bare) is None
    (tmp_path / "groupcam").mkdir()  # as a SaliencyReport does
    assert open_folder(bare) == tmp_path / "groupcam"


def test_a_run_with_a_logger_or_checkpoints_has_an_open_folder(tmp_path):
    assert open_folder(trainer(tmp_path, enable_checkpointing=True)) == tmp_path / "groupcam"
    logged = trainer(tmp_path, logger=CSVLogger(tmp_path, name="csv", version=0), enable_checkpointing=False)
    assert open_folder(logged) == tmp_path / "csv" / "version_0" / "groupcam"
    assert not list(tmp_path.rglob("groupcam")), "made only when something is written"
    assert open_folder(SimpleNamespace(is_global_zero=False)) is None
