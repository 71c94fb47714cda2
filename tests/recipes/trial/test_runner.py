import functools
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from rich.console import Console

from groupcam_aug.recipes.cli import Refused, main
from groupcam_aug.recipes.trial import command as study
from groupcam_aug.recipes.trial import runner
from groupcam_aug.recipes.trial.regimes import settings_hash
from groupcam_aug.recipes.trial.run import read_record, write_record
from groupcam_aug.recipes.trial.stock import Stock
from groupcam_aug.recipes.trial.training import Machine

TINY = "rho0.95,train=36,test=12,maps=6,batch=12,clean_images=12"
SMALL = ["backgrounds", "--size", "smoke", "--regimes", TINY, "--device", "cpu", "--jobs", "1"]


def runs(out):
    return {path.name: read_record(path) for path in sorted((Path(out) / "runs").glob("*.json"))}


def run(*words):
    return main(["study", *map(str, words)])


def test_a_failing_run_is_told_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    real = runner.run_trial

    def failing(trial, start):
        if trial.arm.name == "whole":
            raise RuntimeError("no luck")
        return real(trial, start)

    monkeypatch.setattr(runner, "run_trial", failing)
    assert run(*SMALL, "--arms", "whole", "none", "--seeds", 1, "--out", tmp_path) == 1
    told = capsys.readouterr()
    assert "seed 0, whole: RuntimeError: no luck" in told.out and "1 of 2 runs are missing" in told.err
    assert [one["arm"] for one in runs(tmp_path).values()] == ["none"]

    def broken(*_):
        raise RuntimeError("no data")

    monkeypatch.setattr(runner, "prepare", broken)
    assert run(*SMALL, "--arms", "fast", "--seeds", "1-6", "--out", tmp_path) == 1
    told = capsys.readouterr()
    assert told.out.count("preparation: RuntimeError: no data") == 3 and "stopped after 3 failures" in told.out


def test_this_process_is_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    state = torch.get_rng_state()
    trials = study.planned("backgrounds", "smoke", Machine(), [TINY], ["none", "cutmix", "erase"], "1")
    work = runner.Work(trials, Stock(tmp_path / "starts"), tmp_path, 1)
    assert runner.work_through(work, Console(quiet=True)) == 0
    assert threads == [1, 7] and torch.equal(torch.get_rng_state(), state)
    assert runner.work_through(work._replace(trials=[]), Console(quiet=True)) == 0


@pytest.mark.slow
def test_killed_processes_leave_whole_records_only(tmp_path):
    words = [*SMALL[:-1], "2", "--arms", "none", "fast", "whole", "fast-other", "--seeds", "10", "--out", str(tmp_path)]
    code = f"from groupcam_aug.recipes.cli import main\nif __name__ == '__main__':\n    raise SystemExit(main(['study', *{words!r}]))\n"
    script = tmp_path / "go.py"
    script.write_text(code)
    for kill, sign in ((os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM), (os.kill, signal.SIGKILL)):
        heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
        process = subprocess.Popen([sys.executable, str(script)], start_new_session=True, preexec_fn=heard)
        before, deadline = len(runs(tmp_path)), time.time() + 120
        while len(runs(tmp_path)) < before + 2 and process.poll() is None and time.time() < deadline:
            time.sleep(0.1)
        kill(process.pid, sign)  # to all as a terminal does, or to the first process only
        assert process.wait(60) != 0
        runs(tmp_path)  # reads every file, and refuses parts
        with pytest.raises(ProcessLookupError):  # no process of the group is left
            for _ in range(300):
                os.killpg(process.pid, 0)
                time.sleep(0.1)
    assert subprocess.run([sys.executable, str(script)], timeout=200).returncode == 0
    assert len(runs(tmp_path)) == 40
    alone = tmp_path / "alone"
    assert run(*SMALL, "--arms", "none", "fast", "whole", "fast-other", "--seeds", 10, "--out", alone) == 0
    for name, record in runs(tmp_path).items():
        assert record["metrics"] == runs(alone)[name]["metrics"]  # however many processes


def test_whole_seeds_come_first_and_what_they_share_is_prepared_once(tmp_path, monkeypatch):
    trials = study.planned("backgrounds", "smoke", Machine(), [TINY], ["none", "fast", "fast,source=teacher"], "3")
    done = []

    def fake(task, stock, out):
        done.append((task.seed, task.trial and task.trial.arm.name, task.sources))
        if task.seed == 1:
            raise RuntimeError("no data")
        return task.title

    monkeypatch.setattr(runner, "_do", fake)
    dropped = []
    stock = Stock(tmp_path)
    monkeypatch.setattr(stock, "drop", dropped.append)
    assert runner.work_through(runner.Work(trials, stock, tmp_path, 1), Console(quiet=True)) == 3
    arms = [None, "fast", "fast,source=teacher", "none"]  # the preparation, then the longest first
    assert [one[:2] for one in done] == [(0, arm) for arm in arms] + [(1, None)] + [(2, arm) for arm in arms]
    assert {one[2] for one in done} == {("teacher",)}
    assert len(dropped) == 2 and all("-data" in name for name in dropped), "data go when all arms of a seed are through"


def test_times_of_finished_runs_are_what_is_estimated(tmp_path):
    trials = study.planned("backgrounds", "smoke", Machine(), [TINY], ["none", "fast"], "1")
    work = runner.Work(trials, Stock(tmp_path), tmp_path, 1)
    none, fast = (next(trial for trial in trials if trial.arm.name == name) for name in ("none", "fast"))
    assert runner.estimates(work)(fast) > runner.estimates(work)(none) >= 0.1
    settings = none.settings()
    record = {"arm": "none", "settings": settings, "hash": settings_hash(settings), "total_seconds": 42.0}
    write_record(none.path(tmp_path), record)
    (tmp_path / "runs" / "broken.json").write_text("{")
    assert runner.estimates(work)(none) == 42


def test_a_killed_process_is_told_with_the_way_on(tmp_path, monkeypatch):
    @contextmanager
    def broken(work):
        future = Future()
        future.set_exception(BrokenProcessPool())
        yield lambda task: future

    monkeypatch.setattr(runner, "_pool", broken)
    trials = study.planned("backgrounds", "smoke", Machine(), [TINY], ["none"], "2")
    with pytest.raises(Refused, match="a process was killed .* --jobs 1"):
        runner.work_through(runner.Work(trials, Stock(tmp_path), tmp_path, 1), Console(quiet=True))
