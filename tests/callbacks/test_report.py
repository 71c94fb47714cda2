"""The report: what is in it, that it stands alone, and that a run leaves it whatever happens."""

import json
import os
import re
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import lit
import pytest
import pytorch_lightning as pl
import records
import torch
from page import check
from processes import HELPERS, environment, free_port
from pytorch_lightning.loggers import CSVLogger
from torch.nn import functional as F

from groupcam_aug.callbacks import GroupCAMAugmentation, SaliencyReport, report
from groupcam_aug.callbacks.report import render
from groupcam_aug.callbacks.report_page.charts import Line, bars, lines
from groupcam_aug.callbacks.report_page.checks import findings
from groupcam_aug.callbacks.report_page.images import log_spaced
from groupcam_aug.callbacks.report_page.run_records import higher_is_better, main_metric, read_journal
from groupcam_aug.files import add_line, read_lines
from groupcam_aug.recipes.cli import main

EVIL = ['<script>alert("1")</script>', "</style><b>&amp;", "'\"><img src=x onerror=alert(1)>"]


def full(folder, **options):
    names = options.pop("names", ["cat", "dog", "owl"])
    records.run(folder, names=names, **options)
    records.monitor(folder, names=names)
    records.augmentation(folder)
    records.evaluation(folder)


def told(folder):
    return [finding.text for finding in findings(read_journal(folder))]


# The page


def test_a_full_report_stands_alone_and_shows_everything(tmp_path):
    full(tmp_path)
    page = check(render(tmp_path))
    words = page.words()
    for expected in (
        "Finished: 6 epochs in 6 min",
        "val/acc 91.7%",
        "cat",
        "owl",
        "1,234,567",
        "layer4, 512 x 7 x 7",
        "train.py --lr 0.1",
    ):
        assert expected in words, expected
    for title in ("Maps of the probes", "Learning rate", "How much is kept", "Insertion", "Deletion", "Sanity check", "+30%"):
        assert title in words, title
    pictures = [given["src"] for tag, given in page.tags if tag == "img"]
    assert len(pictures) == 7 + 2 * 8 * 4, "the probes and six epochs; two epochs of eight samples"
    assert [tag for tag, _ in page.tags].count("svg") == 9


def test_rendering_is_a_function_of_the_folder(tmp_path):
    full(tmp_path)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    assert render(tmp_path) == render(str(tmp_path))
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before, "nothing is written"


def test_names_and_paths_are_escaped(tmp_path):
    folder = tmp_path / '<b>run & "co"' / "groupcam"
    full(folder, names=EVIL, command=f"train.py {EVIL[0]}", status=f"stopped by Error in epoch 3: {EVIL[1]}")
    add_line(folder, "run", {"epoch": 6, "lr": 0.1, "val/acc<script>": 0.5, "train/loss</svg>": 1.0})
    (folder / "augmentation.json").write_text(json.dumps({"plan": EVIL[2], "layer": EVIL[0], "fill": EVIL[1]}))
    evil = {"methods": {EVIL[0]: {"insertion": {"fractions": [0, 1], "mean": [0, 1], "auc": 0.5}}}, "told": EVIL[1]}
    evil["sanity"] = {"mode": EVIL[2], "stages": EVIL, "spearman": [1, 0.5, 0.1], "floors": {EVIL[0]: 0.1}}
    (folder / "evaluation.json").write_text(json.dumps(evil))
    text = render(folder)
    page = check(text)
    assert "<script" not in text and "onerror=alert(1)>" not in text.replace("&gt;", "") and "<b>" not in text
    for name in EVIL:
        assert name in page.words()


def test_a_long_run_with_many_probes_and_classes_stays_small(tmp_path):
    names = [f"class number {i} with a name that goes on and on" for i in range(1000)]
    records.run(tmp_path, epochs=300, names=names)
    records.monitor(tmp_path, epochs=40, probes=12, names=names)
    records.augmentation(tmp_path, 40, {str(i): [30, i % 30] for i in range(1000)}, 112, galleries=(0, 1, 8, 39))
    start = time.perf_counter()
    text = render(tmp_path)
    assert time.perf_counter() - start < 20
    page = check(text)
    assert len([1 for tag, _ in page.tags if tag == "img"]) == 17 + 3 * 32, "sixteen epochs of forty, three of the samples"
    assert "980 more classes" in page.words()


def test_pictures_get_smaller_where_they_would_not_fit(tmp_path, monkeypatch):
    full(tmp_path)
    usual = len(render(tmp_path).encode())
    monkeypatch.setattr(report, "LIMIT", usual - 1)
    assert len(render(tmp_path).encode()) < usual


@pytest.mark.parametrize("parts", [["run"], ["monitor"], ["augmentation"], ["evaluation"], ["run", "augmentation"]])
def test_chapters_without_records_say_what_would_fill_them(tmp_path, parts):
    for part in parts:
        getattr(records, part)(tmp_path)
    words = check(render(tmp_path)).words()
    for part, hint in {
        "run": "SaliencyReport() among",
        "monitor": "No probes were watched",
        "augmentation": "No augmented image was recorded",
        "evaluation": "Not evaluated",
    }.items():
        assert (hint in words) == (part not in parts), hint


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no records"):
        render(tmp_path)
    (tmp_path / "monitor.json").write_text('{"broken')
    with pytest.raises(ValueError, match=r"monitor\.json is no JSON"):
        render(tmp_path)


def test_odd_numbers_are_no_trouble(tmp_path):
    records.run(tmp_path, epochs=1, names=["$x_1$", "_hidden", ""])
    add_line(tmp_path, "run", {"epoch": 1, "lr": None, "train/loss": float("nan"), "_$\\frac{": 1.0, "val/acc": True})
    records.monitor(tmp_path, epochs=1, pictures=False, noise=None, alive=None, change=lambda epoch: None)
    add_line(tmp_path, "augmentation", {"epoch": 0, "drawn": 3, "no_map": 3, "images": 3, "keep_fraction": None, "per_class": {}})
    assert "train/loss is not a finite number since epoch 1" in check(render(tmp_path)).words()


def test_pictures_of_a_run_that_was_started_again_are_left_out(tmp_path):
    records.monitor(tmp_path, epochs=6)
    records.monitor(tmp_path, epochs=2)
    records.augmentation(tmp_path, epochs=6, galleries=(0, 5))
    records.augmentation(tmp_path, epochs=2, galleries=(0,))
    words = check(render(tmp_path)).words()
    assert "epoch 1" in words and "epoch 2" not in words and "epoch 5" not in words


@pytest.mark.parametrize("count", [1, 2, 3, 16])
def test_log_spacing(count):
    for length in (1, 2, 3, 15, 16, 17, 18, 30, 100, 1000):
        numbers = list(range(5, 5 + length))
        chosen = log_spaced(numbers, count)
        assert len(chosen) == min(count, length) == len(set(chosen)) and chosen == sorted(chosen)
        assert chosen[-1] == numbers[-1] and (count == 1 or chosen[0] == numbers[0])


def test_charts_leave_matplotlib_as_it_was():
    import matplotlib

    before = dict(matplotlib.rcParams)
    chart = lines(
        "one", "told", [Line("a", [0, 1], [1, 2]), Line("$b$", [0], [1], "red")], levels={"zero": 0.0}, ticks=["x", "$y"]
    )
    assert chart.legend == [("#2f7fc1", "a"), ("#d0504f", "$b$")]
    other = bars("two", "told", {"first": [1, 2], "last": [2, 1]})
    assert dict(matplotlib.rcParams) == before
    ids = re.findall(r'id="([^"]+)"', chart.svg + other.svg)
    assert len(ids) == len(set(ids)) and "currentColor" in chart.svg and "http" not in chart.svg


def test_the_main_metric_is_the_validation_score():
    assert main_metric([{"epoch": 0, "train/acc": 0.5, "val/loss": 1.0, "val/acc": 0.5, "lr": 0.1}]) == "val/acc"
    assert main_metric([{"train_loss": 1.0, "valid_auroc": 0.5}]) == "valid_auroc"
    assert main_metric([{"train_loss": 1.0, "val_loss": 2.0, "train_acc": 0.1}]) == "val_loss"
    assert main_metric([{"train_loss_step": 1.0, "train_acc": 0.1, "groupcam/keep_fraction": 0.3}]) == "train_acc"
    assert main_metric([{"saliency/change": 0.5, "epoch": 1}]) is None
    assert higher_is_better("val/acc") and not higher_is_better("val/loss")


# What it warns about


def test_nothing_stands_out_of_a_good_run(tmp_path):
    full(tmp_path)
    assert told(tmp_path) == [] and "Nothing stands out" in render(tmp_path)


def test_classes_without_maps_are_named(tmp_path):
    records.augmentation(tmp_path, per_class={"3": [100, 41], "1": [100, 4], "2": [10, 10], "0": [100, 0]})
    assert told(tmp_path) == ["41% of class 3 have no map."]
    assert "41% of class 3 have no map." in check(render(tmp_path)).words()
    records.run(tmp_path, names=["a", "b", "c", "owl"])
    assert told(tmp_path) == ["41% of class 3 (owl) have no map."]


@pytest.mark.parametrize(
    ("lr", "change", "expected"),
    [
        (lambda e: 0.1 if e < 4 else 0.001, lambda e: 0.4 if e < 4 else 0.05, True),  # the maps stop when the rate is cut
        (lambda e: 0.1 * 0.5**e, lambda e: 0.8 * 0.6**e, True),  # both decay together
        (lambda e: 0.1 if e < 4 else 0.001, lambda e: 0.5 * 0.4**e, False),  # the maps had settled before
        (lambda e: 0.1, lambda e: 0.5 * 0.5**e, False),  # no cut
        (lambda e: 0.1 if e < 4 else 0.001, lambda e: 0.4, False),  # a cut that changed nothing
        (lambda e: 0.001 if e < 2 else 0.1, lambda e: 0.5 / (e + 1), False),  # a warm-up is no cut
    ],
)
def test_a_change_that_fell_with_the_learning_rate(tmp_path, lr, change, expected):
    records.run(tmp_path, epochs=8, lr=lr)
    records.monitor(tmp_path, epochs=8, change=change)
    assert ("Change fell with the learning rate, not before it." in told(tmp_path)) == expected


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda f: records.monitor(f, alive=0.3), "Only 30% of the probes have a map."),
        (lambda f: records.monitor(f, noise=0.7), "The maps are noisy: 0.70."),
        (lambda f: records.monitor(f, probes=5, probe_right=[True] + 4 * [False]), "Only 20% of the probes are classified"),
        (lambda f: records.monitor(f, converged_epoch=3), "The maps had settled by epoch 3."),
        (lambda f: (records.run(f), records.monitor(f, change=lambda e: 0.6)), "The maps still change: 0.60 at the last probing"),
        (lambda f: (records.run(f), records.monitor(f, seconds=9.0)), "Watching the probes takes 17.6% of the training time."),
        (lambda f: records.augmentation(f, no_map=90), "60% of the drawn images had no map in epoch 5"),
        (lambda f: records.augmentation(f, drawn=0), "No image has been augmented."),
        (lambda f: records.augmentation(f, keep_fraction=0.03), "3% of the pixels are kept: nearly everything is blurred."),
        (
            lambda f: records.augmentation(f, keep_fraction=0.03, mask_from="centre"),
            "3% of the pixels are kept: nearly everything",
        ),
        (lambda f: records.augmentation(f, keep_fraction=0.97), "97% of the pixels are kept: nearly nothing is changed."),
        (lambda f: records.augmentation(f, seconds=0.6), "The augmentation makes a training step 7.0 times as long."),
        (lambda f: records.run(f, status="stopped by ValueError in epoch 2"), "The run did not finish: stopped by ValueError"),
        (lambda f: records.evaluation(f, spearman=(0.9, 0.8)), "The maps survive a network of random weights"),
        (lambda f: records.evaluation(f, {"A": (0.3, 0.2), "random cells": (0.3, 0.1)}), "A finds what matters no better than"),
    ],
)
def test_each_warning_has_its_reason(tmp_path, make, expected):
    make(tmp_path)
    assert [text for text in told(tmp_path) if text.startswith(expected)], told(tmp_path)


def falling(epoch):
    return 0.4 if epoch < 3 or epoch == 5 else 0.1


@pytest.mark.parametrize(
    ("make", "unsaid"),
    [
        # without a verdict: one stage alone, or too few maps left
        (lambda f: records.evaluation(f, spearman=(0.9, 0.8), passed=None), "The maps survive"),
        # right at both of the last probings is not what counts
        (lambda f: records.monitor(f, correct=0.1), "Only"),
        # with too few maps change is 1 and noise may be, by convention
        (lambda f: (records.run(f), records.monitor(f, alive=0.7, min_alive=0.8, change=lambda e: 1.0)), "The maps still change"),
        (lambda f: records.monitor(f, alive=0.0, noise=1.0), "The maps are noisy"),
        # a rate that rises again after it was cut
        (lambda f: (records.run(f, lr=lambda e: (1, 1, 1, 0.1, 0.1, 0.5)[e]), records.monitor(f, change=falling)), "Change fell"),
    ],
)
def test_nothing_is_said_where_numbers_do_not_say_it(tmp_path, make, unsaid):
    make(tmp_path)
    assert not [text for text in told(tmp_path) if text.startswith(unsaid)], told(tmp_path)


def test_a_loss_that_was_finite_in_between_is_lost_since_the_last_time(tmp_path):
    records.run(tmp_path, epochs=0)
    for epoch, loss in enumerate((1.0, float("nan"), 1.0, float("nan"), float("nan"))):
        add_line(tmp_path, "run", {"train/loss": loss, "epoch": epoch, "step": epoch, "seconds": 1.0})
    assert "train/loss is not a finite number since epoch 3." in told(tmp_path)


def test_records_of_an_earlier_run_in_the_same_folder_are_not_this_runs(tmp_path):
    records.run(tmp_path)
    records.augmentation(tmp_path, no_map=90)
    records.evaluation(tmp_path, spearman=(0.9, 0.8))
    assert read_journal(tmp_path).augmented and len(told(tmp_path)) >= 2
    began = json.loads((tmp_path / "run.json").read_text())["started"]
    before = datetime.fromisoformat(began).timestamp() - 60
    for path in [*tmp_path.glob("augmentation.*"), *tmp_path.glob("gallery/*"), tmp_path / "evaluation.json"]:
        os.utime(path, (before, before))
    journal = read_journal(tmp_path)
    assert journal.epochs and not (journal.augmented or journal.augmentation or journal.galleries or journal.evaluation)
    assert not told(tmp_path)


# The callback


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
    return GroupCAMAugmentation(network="net", layer="relu2", groups=4)


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


def test_secrets_of_a_command_are_not_told():
    words = ["train.py", "--api_key=abc", "--hub-token", "t0k", "--data.image_key", "0", "PASSWORD=x"]
    assert report._command(words) == "train.py --api_key=*** --hub-token *** --data.image_key 0 PASSWORD=***"


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


# The command


def test_the_command_writes_the_report_again(tmp_path, capsys):
    records.run(tmp_path / "runs" / "version_0" / "groupcam", epochs=1)
    folder = tmp_path / "runs" / "version_1" / "groupcam"
    records.run(folder, epochs=1, model="Newer")
    (folder.parent / "checkpoints").mkdir()
    (folder.parent / "checkpoints" / "last.ckpt").touch()
    for path in (folder, folder.parent, tmp_path / "runs", tmp_path, folder.parent / "checkpoints" / "last.ckpt"):
        assert main(["report", str(path)]) == 0
        assert str(folder) in capsys.readouterr().out
        check((folder / "report.html").read_text())
        (folder / "report.html").unlink()
    assert main(["report", str(folder), "--out", str(tmp_path / "new" / "page.html")]) == 0
    assert "Newer" in check((tmp_path / "new" / "page.html").read_text()).words() and not (folder / "report.html").exists()


def test_the_command_without_a_folder_takes_the_newest_run_here(tmp_path, monkeypatch, capsys):
    records.run(tmp_path / "lightning_logs" / "version_0" / "groupcam", epochs=1)
    monkeypatch.chdir(tmp_path)
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    assert main(["report", "--open"]) == 0
    assert opened == [(tmp_path / "lightning_logs/version_0/groupcam/report.html").as_uri()]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("lightning_lags", "did you mean 'lightning_logs'?"),
        ("lightning_logs/version_O", "did you mean 'version_0'?"),
        ("empty", "holds no records of a run"),
    ],
)
def test_the_command_says_what_is_missing(tmp_path, monkeypatch, capsys, path, expected):
    records.run(tmp_path / "lightning_logs" / "version_0" / "groupcam", epochs=1)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["report", path]) == 1
    error = capsys.readouterr().err
    assert expected in error and "Traceback" not in error


def test_the_command_names_a_broken_record(tmp_path, capsys):
    records.run(tmp_path / "groupcam", epochs=1)
    (tmp_path / "groupcam" / "monitor.json").write_text("[]")
    assert main(["report", str(tmp_path)]) == 1
    assert "monitor.json holds list" in capsys.readouterr().err
