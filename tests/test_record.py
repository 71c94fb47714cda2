import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.logger import DummyLogger

from groupcam_aug.callbacks import record
from groupcam_aug.callbacks.record import add_line, put_file, read_lines, record_folder


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


def test_lines_come_back_in_order_and_plain(tmp_path):
    add_line(tmp_path / "new", "run", {"epoch": 0, "loss": torch.tensor(0.5), "names": ("a", "ü"), "bad": float("nan")})
    add_line(
        tmp_path / "new", "run", {"epoch": 1, "loss": np.float32(0.25), "masks": torch.tensor([True, False]), 3: float("inf")}
    )
    assert read_lines(tmp_path / "new", "run") == [
        {"epoch": 0, "loss": 0.5, "names": ["a", "ü"], "bad": None},
        {"epoch": 1, "loss": 0.25, "masks": [True, False], "3": None},
    ]
    for line in (tmp_path / "new" / "run.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert read_lines(tmp_path, "absent") == []


def test_lines_of_several_writers_stay_whole(tmp_path):
    text = "x" * 100_000  # more than any buffer

    def write(writer):
        for number in range(20):
            add_line(tmp_path, "run", {"writer": writer, "number": number, "text": text})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    lines = read_lines(tmp_path, "run")
    assert sorted((line["writer"], line["number"]) for line in lines) == [(w, n) for w in range(4) for n in range(20)]


@pytest.mark.parametrize("torn", ['{"epoch": 2, "lo', '{"epoch": 2, "loss": 1}'[:-1], "\x00\x00\x00", '"text"', "[1, 2]", ""])
def test_a_torn_line_is_left_out_and_harms_no_other(tmp_path, torn):
    for epoch in range(2):
        add_line(tmp_path, "run", {"epoch": epoch})
    with (tmp_path / "run.jsonl").open("a") as file:
        file.write(torn)
    assert [line["epoch"] for line in read_lines(tmp_path, "run")] == [0, 1]
    add_line(tmp_path, "run", {"epoch": 2})  # the run goes on
    assert [line["epoch"] for line in read_lines(tmp_path, "run")] == [0, 1, 2]


def test_bytes_cut_within_a_letter_are_no_error(tmp_path):
    (tmp_path / "run.jsonl").write_bytes('{"epoch": 0}\n{"name": "Grün'.encode()[:-2])
    assert read_lines(tmp_path, "run") == [{"epoch": 0}]


def test_a_resumed_run_replaces_its_epochs_and_those_after(tmp_path):
    for epoch, value in [(0, "a"), (1, "a"), (2, "a"), (3, "a"), (1, "b"), (2, "b")]:
        add_line(tmp_path, "run", {"epoch": epoch, "value": value})
    assert [(line["epoch"], line["value"]) for line in read_lines(tmp_path, "run")] == [(0, "a"), (1, "b"), (2, "b")]
    add_line(tmp_path, "run", {"epoch": 0, "value": "c"})  # started anew in the same folder
    assert [(line["epoch"], line["value"]) for line in read_lines(tmp_path, "run")] == [(0, "c")]
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == 7, "nothing is deleted"


def test_lines_without_an_epoch_stay(tmp_path):
    for line in ({"epoch": 3}, {"told": "hello"}, {"epoch": 1}, {"epoch": None}):
        add_line(tmp_path, "run", line)
    assert read_lines(tmp_path, "run") == [{"epoch": 3}, {"told": "hello"}, {"epoch": 1}, {"epoch": None}]


def test_a_file_is_exchanged_whole(tmp_path, monkeypatch):
    put_file(tmp_path / "a", "b/c.txt", "old ü")
    assert (tmp_path / "a/b/c.txt").read_text(encoding="utf-8") == "old ü"
    with (tmp_path / "a/b/c.txt").open(encoding="utf-8") as reader:
        put_file(tmp_path / "a", "b/c.txt", b"\x00new")
        assert reader.read() == "old ü", "who was reading reads on in the old one"
    assert (tmp_path / "a/b/c.txt").read_bytes() == b"\x00new"

    def full(self, content):
        with self.open("wb") as file:
            file.write(content[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record.Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        put_file(tmp_path / "a", "b/c.txt", b"newer")
    assert (tmp_path / "a/b/c.txt").read_bytes() == b"\x00new", "the old one stands"
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["c.txt"], "and nothing beside it"
