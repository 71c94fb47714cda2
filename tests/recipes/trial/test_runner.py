import errno
import io

import own_project
import pytest
from rich.console import Console

from groupcam_aug.printable import printable
from groupcam_aug.recipes.cli import Refused
from groupcam_aug.recipes.trial import runner
from groupcam_aug.recipes.trial.arms import Arm, read_arms, where_things_are
from groupcam_aug.recipes.trial.configured import read_config, resolve
from groupcam_aug.recipes.trial.record import read_record
from groupcam_aug.recipes.trial.run import Run
from groupcam_aug.recipes.trial.runner import Failure, do_runs


def silent():
    return Console(file=io.StringIO(), width=200)


def planned(*names, seeds=(0,), out):
    return [Run(Arm(name), seed, out) for seed in seeds for name in names]


def do(runs, jobs=1, console=None, **costs):
    costs = {run.arm.name: 1.0 for run in runs} | costs
    return do_runs(runs, costs, jobs, console or silent(), lambda record: f"did {record['arm']}")


def test_all_runs_are_done_in_order_and_said(monkeypatch, tmp_path):
    done = []
    monkeypatch.setattr(runner, "run_arm", lambda run, progress: done.append(run.name) or {"arm": run.arm.name})
    console = silent()
    assert do(planned("a", "b", seeds=(0, 1), out=tmp_path), console=console) == []
    assert done == ["a__seed0", "b__seed0", "a__seed1", "b__seed1"]
    assert console.file.getvalue().count("did a") == 2 and "4 of 4 runs" in console.file.getvalue()


def test_what_fails_is_said_and_the_rest_goes_on_but_an_arm_is_tried_twice_only(monkeypatch, tmp_path):
    def run_arm(run, progress):
        if run.arm.name == "b":
            raise ValueError("no [/such] luck")
        return {"arm": run.arm.name}

    monkeypatch.setattr(runner, "run_arm", run_arm)
    console = silent()
    failures = do(planned("a", "b", seeds=range(4), out=tmp_path), console=console)
    assert [failure[:2] for failure in failures] == [("b", seed) for seed in range(4)]
    assert failures[0] == Failure("b", 0, "ValueError: no [/such] luck") and "not tried" in failures[2].error
    assert console.file.getvalue().count("did a") == 4 and console.file.getvalue().count("no [/such] luck") == 2


@pytest.mark.parametrize("text", ["[/", "a [/] b", "[/red", "] [/", "[bold", "\\[/x]", "\x1b[2J\x1b]0;title\x07"])
def test_texts_of_errors_are_printed_as_they_stand(monkeypatch, tmp_path, text):
    def run_arm(run, progress):
        raise ValueError(f"{text} and https://me:secret@host/x")

    monkeypatch.setattr(runner, "run_arm", run_arm)
    console = silent()
    (failure,) = do(planned("a", out=tmp_path), console=console)
    said = console.file.getvalue()
    assert printable(text) in said and "\x1b]0" not in said and "secret" not in said + failure.error


def test_a_full_disk_ends_it(monkeypatch, tmp_path):
    def run_arm(run, progress):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runner, "run_arm", run_arm)
    with pytest.raises(Refused, match="no space is left for a__seed0"):
        do(planned("a", "b", out=tmp_path))


def test_other_errors_of_files_are_failures_of_their_run(monkeypatch, tmp_path):
    def run_arm(run, progress):
        raise FileNotFoundError(errno.ENOENT, "No such file", "mask.png")

    monkeypatch.setattr(runner, "run_arm", run_arm)
    assert "mask.png" in do(planned("a", out=tmp_path))[0].error


def test_progress_counts_what_runs_cost(monkeypatch, tmp_path):
    bars = []

    class Bar(runner.Progress):
        def update(self, task, **values):
            super().update(task, **values)
            bars.append(self.tasks[0].percentage)

    def run_arm(run, progress):
        progress(0.5)
        return {"arm": run.arm.name}

    monkeypatch.setattr(runner, "run_arm", run_arm)
    monkeypatch.setattr(runner, "Progress", Bar)
    do(planned("a", "b", out=tmp_path), b=3.0)
    assert sorted(set(bars)) == [0, 12.5, 25, 62.5, 100]  # of 1 + 3 seconds


@pytest.fixture
def real(tmp_path):
    config, arms_file = own_project.write(tmp_path)
    tree, arms = read_config(config, []), read_arms(["none", "cheap", "broken"], arms_file)
    for arm in arms:
        resolve(tree, arm, tmp_path / "out" / "arms")
    return lambda out: [Run(arm, seed, out, where_things_are(tree, arms)) for seed in (0, 1) for arm in arms]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_several_processes_give_the_same_weights_as_one(real, tmp_path):
    failures, weights = {}, {}
    for jobs, name in ((1, "one"), (2, "two")):
        out = tmp_path / name
        out.mkdir()
        (out / "arms").symlink_to(tmp_path / "out" / "arms")
        runs = real(out)
        failures[jobs] = do(runs, jobs)
        weights[jobs] = {run.name: read_record(run.path)["weights"] for run in runs if run.path.is_file()}
    assert weights[1] == weights[2] and len(set(weights[1].values())) == 4
    assert sorted(failures[1]) == sorted(failures[2])
    assert [failure.error for failure in failures[1]] == ["RuntimeError: no [/such] luck"] * 2


def test_a_killed_process_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "_do", _die)
    with pytest.raises(Refused, match="a process was killed"):
        do(planned("a", "b", out=tmp_path), jobs=2)


def _die(run):
    import os

    os._exit(9)
