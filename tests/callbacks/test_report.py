"""The callback: a run leaves its report, whatever happens, and does not notice it."""

import copy
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import lit
import pytest
import pytorch_lightning as pl
import torch
from page import check
from processes import HELPERS, environment, free_port
from pytorch_lightning.loggers import CSVLogger
from torch.nn import functional as F

from groupcam_aug.callbacks import GroupCAMAugmentation, SaliencyReport, report
from groupcam_aug.files import read_lines
from groupcam_aug.recipes.cli import main


class Scored(lit.Lit):
    """Logs as users do."""

    class_names = ("ant", "<bee>")

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", F.cross_entropy(self(batch[0]), batch[1]))


class Ends(pl.Callback):
    """Ends the process, or raises, at the start of an epoch."""

    def __init__(self, epoch, error):
        self.epoch, self.error = epoch, error

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.current_epoch == self.epoch:
            raise self.error


def augmentation():
    return GroupCAMAugmentation(preset="paper", network="net", layer="relu2", groups=4)


def fit(tmp_path, callbacks, epochs=3, module=None, **options):
    options = {"logger": CSVLogger(tmp_path, version=0), "log_every_n_steps": 1, **options}
    return lit.fit(module or Scored(), callbacks, val=lit.loader(4), max_epochs=epochs, num_sanity_val_steps=0, **options)


FOLDER = "lightning_logs/version_0/groupcam"


@pytest.mark.parametrize("order", [1, -1])
def test_a_run_leaves_its_report(tmp_path, order, caplog):
    reporter = SaliencyReport()
    with caplog.at_level("INFO"):
        fit(tmp_path, [reporter, augmentation()][::order])
    folder = tmp_path / FOLDER
    assert reporter.path == folder / "report.html" and f"Saliency report: {folder / 'report.html'}" in caplog.text
    words = check((folder / "report.html").read_text(encoding="utf-8")).words()
    assert "Finished: 3 epochs" in words and "Scored" in words and "PooledNet" in words and "val/loss" in words
    assert "Samples of epoch 2" in words, "the last epoch of the other callbacks is in it, whatever their order"
    assert "<bee>" in words or "ant" in words
    lines = read_lines(folder, "run")
    assert [line["epoch"] for line in lines] == [0, 1, 2] and [line["step"] for line in lines] == [3, 6, 9]
    for line in lines:
        assert line["lr"] == 0.05 and line["seconds"] > 0
        assert line["train/loss"] > 0 and line["val/loss"] > 0 and line["groupcam/keep_fraction"] > 0
    assert len({line["train/loss"] for line in lines}) == 3, "each epoch's own mean"
    facts = json.loads((folder / "run.json").read_text())
    assert facts["status"] == "finished" and facts["model"] == "Scored" and facts["class_names"] == ["ant", "<bee>"]
    assert facts["parameters"] == sum(p.numel() for p in Scored().parameters()) and "torch" in facts["versions"]


def test_the_report_is_written_while_the_run_goes_on(tmp_path):
    class Looks(pl.Callback):
        seen = []

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            path = tmp_path / FOLDER / "report.html"
            self.seen.append((trainer.current_epoch, check(path.read_text()).words() if path.is_file() else None))

    looks = Looks()
    fit(tmp_path, [SaliencyReport(), looks], epochs=2)
    assert looks.seen[0] == (0, None)
    assert "Running: 1 epoch" in looks.seen[-1][1]


@pytest.mark.parametrize(("interval", "expected"), [("epoch", [0.1, 0.01, 0.001]), ("step", [1e-3, 1e-6, 1e-9])])
def test_the_learning_rate_is_that_of_the_epoch(tmp_path, interval, expected):
    class Decays(Scored):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD([{"params": self.parameters(), "lr": 0.1}])
            return [optimizer], [{"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1), "interval": interval}]

    fit(tmp_path, [SaliencyReport()], module=Decays())
    assert [line["lr"] for line in read_lines(tmp_path / FOLDER, "run")] == pytest.approx(expected)


def test_training_is_the_same_with_and_without(tmp_path):
    states = []
    for callbacks in ([], [SaliencyReport()]):
        module = Scored()
        fit(tmp_path / str(len(callbacks)), callbacks, module=module)
        states.append(lit.state(module))
    assert lit.same(*states)


@pytest.mark.parametrize("error", [ValueError("<oh> no"), KeyboardInterrupt()])
def test_an_error_leaves_the_last_report_and_says_so(tmp_path, error):
    with pytest.raises(SystemExit if isinstance(error, KeyboardInterrupt) else ValueError):
        fit(tmp_path, [augmentation(), SaliencyReport(), Ends(2, error)], epochs=4)
    words = check((tmp_path / FOLDER / "report.html").read_text()).words()
    assert f"Stopped by {type(error).__name__} in epoch 2" in words
    assert [line["epoch"] for line in read_lines(tmp_path / FOLDER, "run")] == [0, 1]


@pytest.mark.slow
def test_a_killed_process_leaves_a_whole_report(tmp_path):
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import lit, test_report as t, pytorch_lightning as pl
class Dies(pl.Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.current_epoch == 2:
            os._exit(9)
import pathlib
t.report.PATIENCE = 0
t.fit(pathlib.Path({str(tmp_path)!r}), [t.SaliencyReport(), t.augmentation(), Dies()], epochs=4)
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.returncode == 9, done.stderr[-2000:]
    folder = tmp_path / FOLDER
    words = check((folder / "report.html").read_text()).words()
    assert "Running: 2 epochs" in words and not list(folder.rglob("*.part"))
    assert main(["report", str(tmp_path)]) == 0  # and from the records alone
    assert "Running: 2 epochs" in check((folder / "report.html").read_text()).words()


def test_a_resumed_run_goes_on_in_the_same_report(tmp_path):
    reporter = SaliencyReport()
    fit(tmp_path, [reporter, augmentation()], epochs=2).save_checkpoint(tmp_path / "two.ckpt")
    started = json.loads((tmp_path / FOLDER / "run.json").read_text())["started"]
    options = {**lit.SILENT, "max_epochs": 4, "logger": False, "default_root_dir": tmp_path / "lightning_logs" / "version_0"}
    trainer = pl.Trainer(**options, callbacks=[SaliencyReport(), augmentation()])
    trainer.fit(Scored(), lit.loader(), lit.loader(4), ckpt_path=tmp_path / "two.ckpt")
    assert [line["epoch"] for line in read_lines(tmp_path / FOLDER, "run")] == [0, 1, 2, 3]
    facts = json.loads((tmp_path / FOLDER / "run.json").read_text())
    assert facts["started"] == started and facts["resumed"] == [2]
    assert "Finished: 4 epochs" in check((tmp_path / FOLDER / "report.html").read_text()).words()


def test_two_runs_in_one_folder_are_not_mixed(tmp_path):
    options = {"logger": False, "default_root_dir": tmp_path}
    fit(tmp_path, [SaliencyReport(), augmentation()], epochs=4, **options)
    fit(tmp_path, [SaliencyReport(), augmentation()], epochs=2, **options)
    assert [line["epoch"] for line in read_lines(tmp_path / "groupcam", "run")] == [0, 1]
    words = check((tmp_path / "groupcam" / "report.html").read_text()).words()
    assert "Finished: 2 epochs" in words and "epoch 3" not in words


def test_fitting_again_with_the_same_objects_goes_on(tmp_path):
    reporter, module = SaliencyReport(), Scored()
    trainer = fit(tmp_path, [reporter], epochs=1, module=module)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, lit.loader())
    assert [line["epoch"] for line in read_lines(tmp_path / FOLDER, "run")] == [0, 1, 2]


def test_a_folder_and_a_name_of_ones_own(tmp_path):
    fit(tmp_path, [SaliencyReport(str(tmp_path / "deep" / "er"), "mine.htm")], epochs=1)
    check((tmp_path / "deep" / "er" / "mine.htm").read_text())
    assert not (tmp_path / FOLDER / "report.html").exists()
    with pytest.raises(ValueError, match="plain file name"):
        SaliencyReport(filename="a/b.html")
    with pytest.raises(ValueError, match="filename must be a plain file name, got '..'"):
        SaliencyReport(filename="..")


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
@pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"barebones": True, "logger": False}])
def test_trial_runs_write_nothing(tmp_path, options):
    options = {**lit.SILENT, **options}
    for name in ("enable_checkpointing", "enable_progress_bar", "enable_model_summary"):
        options.pop(name) if options.get("barebones") else None
    reporter = SaliencyReport()
    pl.Trainer(**options, max_epochs=1, callbacks=[reporter], default_root_dir=tmp_path).fit(Scored(), lit.loader())
    assert reporter.path is None and not list(tmp_path.iterdir())


def test_a_page_that_fails_is_no_reason_to_stop(tmp_path, monkeypatch):
    def fail(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "render", fail)
    with pytest.warns(UserWarning, match=r"SaliencyReport could not write its report: OSError: .*No space"):
        trainer = fit(tmp_path, [SaliencyReport()], epochs=2)
    assert trainer.current_epoch == 2
    assert len(read_lines(tmp_path / FOLDER, "run")) == 2, "the records are there all the same"


def test_a_damaged_record_is_named_and_the_page_goes_on(tmp_path):
    class Spoils(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            (tmp_path / FOLDER / "evaluation.json").write_text('{"methods": {"A": {"insertion": {}, "deletion": 5}}}')
            (tmp_path / FOLDER / "run.json").write_text('{"half')

    trainer = fit(tmp_path, [SaliencyReport(), augmentation(), Spoils()], epochs=2)
    assert trainer.current_epoch == 2 and len(read_lines(tmp_path / FOLDER, "run")) == 2
    words = check((tmp_path / FOLDER / "report.html").read_text()).words()
    assert "Finished: 2 epochs" in words and "evaluation.json is not what it should be" in words
    assert json.loads((tmp_path / FOLDER / "run.json").read_text())["status"] == "finished"


def test_what_nobody_foresaw_is_no_reason_to_stop(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(report, "render", lambda folder: {}["nothing"])
    trainer = fit(tmp_path, [SaliencyReport()], epochs=2)
    assert trainer.current_epoch == 2 and len(read_lines(tmp_path / FOLDER, "run")) == 2
    (first, *_) = [record for record in caplog.records if record.name == report.__name__]
    assert "could not write its report" in first.message and first.exc_info, "with its traceback"


@pytest.mark.parametrize("content", ["", '{"started": "2026', "[]", '{"started": 5, "resumed": "x"}', None])
def test_a_damaged_run_json_does_not_stop_a_resumed_run_nor_lose_its_begin(tmp_path, content):
    options = {"logger": False, "default_root_dir": tmp_path}
    fit(tmp_path, [SaliencyReport()], epochs=1, **options).save_checkpoint(tmp_path / "one.ckpt")
    path = tmp_path / "groupcam" / "run.json"
    started = json.loads(path.read_text())["started"]
    path.unlink() if content is None else path.write_text(content)
    trainer = pl.Trainer(**{**lit.SILENT, "max_epochs": 2, **options}, callbacks=[SaliencyReport()])
    trainer.fit(Scored(), lit.loader(), lit.loader(4), ckpt_path=tmp_path / "one.ckpt")
    facts = json.loads(path.read_text())
    assert facts["started"] == started and facts["resumed"] == [1] and facts["status"] == "finished"
    assert "Finished: 2 epochs" in check((path.parent / "report.html").read_text()).words()


def test_a_disk_that_is_full_at_the_start_stops_nothing_and_may_be_emptied(tmp_path, monkeypatch):
    put_file = report.put_file

    def full(folder, name, content):
        raise OSError(28, "No space left on device", str(folder / name))

    class Empties(pl.Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                monkeypatch.setattr(report, "put_file", put_file)

    monkeypatch.setattr(report, "put_file", full)
    with pytest.warns(UserWarning, match=r"SaliencyReport could not write its report: OSError: .*No space.*run\.json"):
        fit(tmp_path, [SaliencyReport(), Empties()], epochs=3)
    assert "Finished: 3 epochs" in check((tmp_path / FOLDER / "report.html").read_text()).words()


@pytest.mark.parametrize("shift", [-86_400 * 365, 86_400 * 365])
def test_a_clock_that_is_set_changes_nothing(tmp_path, shift):
    """What file systems say of times is worth nothing then."""

    class Sets(pl.Callback):
        def on_train_epoch_start(self, trainer, module):
            for path in (tmp_path / FOLDER).rglob("*"):
                os.utime(path, (time.time() + shift,) * 2)

    fit(tmp_path, [SaliencyReport(), augmentation(), Sets()], epochs=2)
    words = check((tmp_path / FOLDER / "report.html").read_text()).words()
    assert "Finished: 2 epochs" in words and "images were drawn in epoch 1" in words
    for path in (tmp_path / FOLDER).rglob("*"):
        os.utime(path, (0, 0))
    assert "images were drawn in epoch 1" in check(report.render(tmp_path / FOLDER)).words()


def test_a_second_run_in_the_folder_is_noticed(tmp_path):
    options = {"logger": False, "default_root_dir": tmp_path}

    class Starts(pl.Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                fit(tmp_path, [SaliencyReport(), augmentation()], epochs=2, **options)

    with pytest.warns(UserWarning, match="another run has begun to write its records into"):
        fit(tmp_path, [SaliencyReport(), augmentation(), Starts()], epochs=3, **options)
    words = check((tmp_path / "groupcam" / "report.html").read_text()).words()
    assert "Another run wrote into this folder at the same time." in words
    epochs = [line["epoch"] for line in report.read_records(tmp_path / "groupcam").epochs]
    assert epochs == [0, 1], "of the second alone"


def test_a_folder_that_cannot_be_made_is_no_reason_to_stop(tmp_path):
    (tmp_path / "groupcam").write_text("in the way")
    with pytest.warns(UserWarning, match="SaliencyReport could not write its report: FileExistsError"):
        trainer = fit(tmp_path, [SaliencyReport()], epochs=2, logger=False, default_root_dir=tmp_path)
    assert trainer.current_epoch == 2


def test_nothing_of_a_fit_is_kept_but_the_path(tmp_path):
    reporter = SaliencyReport()
    assert reporter.path is None
    fit(tmp_path / "a", [reporter], epochs=1)
    assert reporter._fit is None and reporter.path == tmp_path / "a" / FOLDER / "report.html"
    with pytest.raises(ValueError, match="no"):
        fit(tmp_path / "b", [reporter, Ends(0, ValueError("no"))], epochs=1)
    assert reporter._fit is None and reporter.path == tmp_path / "b" / FOLDER / "report.html"
    assert copy.deepcopy(reporter).path == pickle.loads(pickle.dumps(reporter)).path == reporter.path


def test_short_epochs_are_not_spent_on_writing(tmp_path, monkeypatch):
    written = []
    original = report.render

    def slow(folder):
        written.append(time.perf_counter())
        time.sleep(0.2)
        return original(folder)

    monkeypatch.setattr(report, "render", slow)
    fit(tmp_path, [SaliencyReport()], epochs=6)
    assert len(written) == 2, "after the first epoch and at the end"
    assert len(read_lines(tmp_path / FOLDER, "run")) == 6
    monkeypatch.setattr(report, "PATIENCE", 0)
    written.clear()
    fit(tmp_path / "again", [SaliencyReport()], epochs=3)
    assert len(written) == 3


def test_secrets_are_not_told(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--api_key=abc", "--url", "https://me:s3cret@host/x"])
    with pytest.raises(ValueError, match="s3cret"):
        fit(tmp_path, [SaliencyReport(), Ends(0, ValueError("no answer of https://me:s3cret@host/x"))], epochs=1)
    texts = [path.read_text() for path in (tmp_path / FOLDER).iterdir()]
    assert any("train.py --api_key=*** --url https://***@host/x" in text for text in texts)
    assert any("no answer of https://***@host/x" in text for text in texts)
    assert not any("s3cret" in text or "abc" in text for text in texts)


@pytest.mark.slow
def test_other_ranks_write_nothing(tmp_path):
    """Two processes, each with a folder of its own; epoch means that all ranks reduce together, so a rank alone would hang."""
    port = free_port()
    running = []
    for rank in range(2):
        place = environment(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, NODE_RANK=str(rank))
        call = [sys.executable, str(HELPERS / "record_ranks.py"), str(tmp_path)]
        running.append(subprocess.Popen(call, env=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    try:
        outputs = [process.communicate(timeout=120)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert all(process.returncode == 0 for process in running), "\n".join(text[-3000:] for text in outputs)
    assert not (tmp_path / "1").exists()
    folder = tmp_path / "0" / "groupcam"
    lines = read_lines(folder, "run")
    assert [line["rank"] for line in lines] == [0.5, 0.5], "of both ranks"
    assert [line["drawn"] for line in read_lines(folder, "augmentation")] == [8, 8], "rank zero's share"
    assert "rank zero of 2: its share" in check((folder / "report.html").read_text()).words()
    assert all(torch.equal(a, b) for a, b in zip(*(torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)), strict=True))
