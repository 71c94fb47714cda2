import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import own_project
import pytest
from processes import HOLD, environment

from groupcam_aug.recipes import written_files
from groupcam_aug.recipes.cli import main
from groupcam_aug.recipes.trial import run, runner
from groupcam_aug.recipes.trial.command import read_seeds

CALL = [sys.executable, "-m", "groupcam_aug.recipes.cli", "trial", "mine.yaml", "--arms-file", "arms.yaml"]


@pytest.fixture
def trial(tmp_path, monkeypatch):
    """The command on somebody's own project, in its folder."""
    monkeypatch.chdir(tmp_path)
    config, arms_file = own_project.write(tmp_path)
    return lambda *words: main(["trial", config, "--arms-file", arms_file, "--out", "out", *map(str, words)])


def results(folder="out"):
    return json.loads(Path(folder, "results.json").read_text())


def without_times(tree):
    """What does not depend on how fast the machine was."""
    if isinstance(tree, dict):
        return {
            key: without_times(value) for key, value in tree.items() if "second" not in key and key not in ("cost", "loss", "log")
        }
    return [without_times(item) for item in tree] if isinstance(tree, list) else tree


def test_three_arms_and_two_seeds_on_somebody_elses_project(trial, capsys, tmp_path):
    assert trial("--arms", "none", "cheap", "cheap-other", "--seeds", "2", "--data.several", "true") == 0
    said = capsys.readouterr().out
    assert "48 training images, 2 epochs, 12 steps a run; tested on kept (30), noisy (12)" in said and "6 runs to do" in said
    assert "cheap, seed 1: kept" in said and "over none on 2 seeds" in said and "index.html" in said
    found = results()
    assert set(found["summary"]["test_sets"]) == {"kept", "noisy"} and found["failures"] == [] and len(found["records"]) == 6
    right = {(record["arm"], record["seed"]): record["tests"]["kept"]["metrics"]["accuracy"] for record in found["records"]}
    compared = found["summary"]["test_sets"]["kept"]["arms"]["cheap"]
    differences = [100 * (right["cheap", seed] - right["none", seed]) for seed in (0, 1)]
    assert compared["to_reference"]["accuracy"]["mean"] == pytest.approx(sum(differences) / 2)
    control = [100 * (right["cheap", seed] - right["cheap-other", seed]) for seed in (0, 1)]
    assert compared["to_control"]["accuracy"]["mean"] == pytest.approx(sum(control) / 2)
    assert "worst_group_accuracy" in compared["metrics"]
    page = (tmp_path / "out" / "index.html").read_text()
    for link in re.findall(r'href="([^"#]+)"', page):
        assert (tmp_path / "out" / link).exists(), link
    assert (
        not re.search(r'(src|href)="(https?:)?//', page)
        and page.count("data:image/png") == 2
        and page.count("data:image/svg") == 4  # samples of two arms, plots light and dark
    )  # plots, and the samples of arms
    assert sorted(path.name for path in (tmp_path / "out" / "arms").iterdir()) == ["cheap-other.yaml", "cheap.yaml", "none.yaml"]


def test_finished_runs_are_not_done_again_and_more_seeds_and_arms_join(trial, capsys, monkeypatch):
    assert trial("--arms", "none", "cheap", "--seeds", "1") == 0
    first = results()
    done = []
    monkeypatch.setattr(runner, "run_arm", lambda run, progress: done.append(run.name) or run_arm(run, progress))
    assert trial("--arms", "none", "cheap", "slow", "--seeds", "2") == 0
    assert "2 of 6 runs are finished already" in capsys.readouterr().out
    assert done == ["slow__seed0", "none__seed1", "cheap__seed1", "slow__seed1"]
    assert [record for record in results()["records"] if record in first["records"]] == first["records"]


run_arm = run.run_arm


def test_a_dry_run_tries_every_arm_and_runs_nothing(trial, capsys, tmp_path):
    assert trial("--arms", "none", "cheap", "--seeds", "2-4", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "6 runs to do" in said and "2-4" in said and "of training with --jobs 1" in said and "0.25" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".trial.lock", "arms"]


def test_an_arm_that_cannot_work_is_found_before_anything_is_trained(trial, capsys, tmp_path):
    (tmp_path / "arms.yaml").write_text(own_project.ARMS.replace("groups: 4, source: self, mask_from", "groups: 99, mask_from"))
    assert trial("--arms", "none", "cheap-other", "--seeds", "2") == 1
    output = capsys.readouterr()
    assert "failed cheap-other: " in output.out and "groups=99" in output.out and "2 of 4 runs are missing" in output.err
    alone = next(line for line in output.out.splitlines() if line.startswith("where: groupcam-aug ")).split()[2:]
    assert main(alone) == 1 and "groups=99" in capsys.readouterr().err  # a fault of a user's code shows its traceback there
    assert [one["arm"] for one in results()["failures"]] == ["cheap-other"] * 2 and len(results()["records"]) == 2


def test_an_arm_that_fails_on_its_way_leaves_the_others(trial, capsys, tmp_path):
    assert trial("--arms", "none", "broken", "--seeds", "2") == 1
    output = capsys.readouterr()
    assert "failed broken__seed0: RuntimeError: no [/such] luck" in output.out and "2 of 4 runs are missing" in output.err
    assert "no [/such] luck" in (tmp_path / "out" / "index.html").read_text()
    assert "training_step" in (tmp_path / "out" / "runs" / "broken__seed0" / "error.txt").read_text()


def test_another_config_in_the_same_folder_is_refused(trial, capsys):
    assert trial("--arms", "none", "--seeds", "1") == 0
    assert trial("--arms", "none", "--seeds", "2", "--model.lr", "0.3") == 1
    assert "model.init_args.lr: 0.1 then, 0.3 now" in capsys.readouterr().err
    assert trial("--arms", "none", "--seeds", "1", "--seed_everything", "9") == 0  # each run has a seed of its own anyway


def test_a_full_disk_keeps_what_is_finished(trial, capsys, monkeypatch, tmp_path):
    put_file = run.put_file

    def full(folder, name, content):
        if name == "none__seed1.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        put_file(folder, name, content)

    monkeypatch.setattr(run, "put_file", full)
    assert trial("--arms", "none", "--seeds", "3") == 1
    said = capsys.readouterr()
    assert "no space is left for none__seed1; finished runs stay" in said.err
    assert "look at" in said.out and results()["summary"]["arms"]["none"]["seeds"] == [0], "what is finished is shown"
    assert [path.name for path in (tmp_path / "out" / "runs").glob("*.json")] == ["none__seed0.json"]
    monkeypatch.setattr(run, "put_file", put_file)
    assert trial("--arms", "none", "--seeds", "3") == 0


def test_a_disk_that_is_full_at_the_end_takes_no_figures_away(trial, capsys, monkeypatch):
    assert trial("--arms", "none", "--seeds", "2") == 0
    shown = capsys.readouterr().out.partition("look at")[0].splitlines()[-5:]

    def full(folder, name, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / name))

    monkeypatch.setattr(written_files, "put_file", full)
    assert trial("--arms", "none", "--seeds", "2") == 1
    said = capsys.readouterr()
    assert "\n".join(shown) in said.out and "No space left on device" in said.err and "results.json" in said.err


@pytest.mark.parametrize("name", ["runs/none__seed0.json", "arms/none.yaml", "runs/cheap__seed0/groupcam/augmentation.json"])
@pytest.mark.parametrize("text", ["", "{", "\x00[/ a: b: c"])
def test_a_damaged_piece_is_made_again_or_done_without(trial, capsys, tmp_path, name, text):
    assert trial("--arms", "none", "cheap", "--seeds", "1") == 0
    whole = results()
    (tmp_path / "out" / name).write_text(text)
    capsys.readouterr()
    assert trial("--arms", "none", "cheap", "--seeds", "1") == 0
    said = capsys.readouterr().out
    assert ("damaged" in said and "none__seed0.json" in said and "it is run again" in said) == (name == "runs/none__seed0.json")
    assert [one["weights"] for one in results()["records"]] == [one["weights"] for one in whole["records"]]


def test_a_damaged_picture_of_a_run_is_named_and_the_comparison_stands(trial, capsys, tmp_path):
    assert trial("--arms", "none", "cheap", "--seeds", "1") == 0
    whole = results()
    for path in (tmp_path / "out" / "runs").glob("*/groupcam/gallery/*.png"):
        path.unlink()
        path.symlink_to(tmp_path / "arms.yaml")
    assert trial("--arms", "none", "cheap", "--seeds", "1") == 0
    assert "no samples or no report of cheap__seed0: " in capsys.readouterr().out
    assert results()["summary"] == whole["summary"]


def test_files_of_the_user_stay_and_are_told_before_anything_is_trained(trial, capsys, tmp_path):
    out = tmp_path / "out"
    (out / "rehearsal").mkdir(parents=True)
    (out / "rehearsal" / "violin.txt").write_text("mine")
    assert trial("--arms", "none", "--seeds", "1", "--dry-run") == 0
    assert (out / "rehearsal" / "violin.txt").read_text() == "mine" and not list(out.glob(".rehearsal-*"))
    for name in ("results.json", "results.md", "index.html", "forest.png", "runs/none__seed0/thesis.txt"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
        assert trial("--arms", "none", "--seeds", "1") == 1
        told = name.removesuffix("/thesis.txt")
        assert f"out/{told}' is there and" in capsys.readouterr().err and (out / name).read_text() == "mine"
        (out / name).unlink()
    (out / "runs" / "none__seed0").rmdir()
    assert not list(out.glob("runs/*")) and trial("--arms", "none", "--seeds", "1") == 0


def test_results_that_were_changed_are_the_users_and_those_without_a_list_are_taken_over(trial, capsys, tmp_path):
    assert trial("--arms", "none", "cheap", "--seeds", "1") == 0
    (tmp_path / "out" / ".trial.jsonl").unlink()  # as a version before left it
    assert trial("--arms", "none", "--seeds", "1") == 0 and not (tmp_path / "out" / "forest.png").exists()
    (tmp_path / "out" / "results.md").write_text("with my remarks")
    assert trial("--arms", "none", "--seeds", "1") == 1
    assert "results.md' is there" in capsys.readouterr().err
    assert (tmp_path / "out" / "results.md").read_text() == "with my remarks"


def test_two_trials_in_one_folder(trial, capsys, tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, "out"], env=environment(), stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        status = trial("--arms", "none", "--seeds", "1")
        other.kill()
    assert status == 1 and f"another trial runs in 'out' (pid {other.pid})" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".trial.lock"]


def test_secrets_of_the_command_are_not_told(trial, tmp_path):
    assert trial("--arms", "none", "--seeds", "1", "--out", "api_key=abc") == 0
    for name in ("results.json", "results.md", "index.html"):
        text = (tmp_path / "api_key=abc" / name).read_text()
        assert "--out api_key=***" in text, name


def test_ctrl_c_keeps_what_is_finished(trial, capsys, monkeypatch):
    def stopped(run, progress):
        if run.seed == 1:
            raise KeyboardInterrupt
        return run_arm(run, progress)

    monkeypatch.setattr(runner, "run_arm", stopped)
    assert trial("--arms", "none", "--seeds", "2") == 130
    assert "finished runs are kept in out/runs; the same command goes on" in capsys.readouterr().out
    monkeypatch.setattr(runner, "run_arm", run_arm)
    assert trial("--arms", "none", "--seeds", "2") == 0


def test_a_metric_that_test_step_logs(trial, capsys):
    assert trial("--arms", "none", "slow", "--seeds", "1", "--metric", "test_right", "--mode", "max") == 0
    assert results()["summary"]["metric"] == "test_right" and "seed 0: test 0." in capsys.readouterr().out


def test_a_metric_is_asked_for_before_anything_is_trained(trial, capsys, tmp_path):
    assert trial("--arms", "none", "--seeds", "1", "--metric", "worst_clas_accuracy") == 1
    assert "no test measures it" in (said := capsys.readouterr()).err and "'worst_class_accuracy'" in said.err
    assert not (tmp_path / "out" / "runs").exists() and not (tmp_path / "out" / "results.json").exists()
    assert trial("--arms", "none", "--seeds", "1", "--metric", "worst_group_accuracy", "--dry-run") == 0


def test_a_loss_is_better_if_it_is_less(trial, capsys, monkeypatch):
    test_step = own_project.Mine.test_step

    def logs_a_loss(self, batch, batch_idx):
        test_step(self, batch, batch_idx)
        self.log("test_loss", 1 / self.hparams.lr)

    monkeypatch.setattr(own_project.Mine, "test_step", logs_a_loss)
    assert trial("--arms", "none", "slow", "--seeds", "1", "--metric", "test_loss") == 0
    assert "test_loss: less is better, by its name" in capsys.readouterr().out and results()["summary"]["mode"] == "min"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--margin", "-0.1"], "--margin -0.1"),
        (["--margin", "nan"], "--margin nan"),
        (["--margin", "inf"], "--margin inf"),
        (["--metric", "test_right"], "--metric test_right: say by --mode"),
        (["--metric", "acuracy"], "did you mean 'accuracy'"),
    ],
)
def test_options_that_cannot_work_are_refused_at_once(words, message, trial, capsys, tmp_path):
    assert trial("--arms", "none", *words) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_nothing_compared_is_no_success(trial, capsys, monkeypatch):
    """The rehearsals measured the metric, the runs did not."""

    def without_accuracy(run, progress):
        record = run_arm(run, progress)
        record["tests"]["test"]["metrics"].pop("accuracy")
        run.path.write_text(json.dumps(record))
        return record

    monkeypatch.setattr(runner, "run_arm", without_accuracy)
    assert trial("--arms", "none", "slow", "--seeds", "1") == 1
    assert "no arms could be compared: No run measured accuracy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--arms", "none", "fst"], "did you mean 'fast'"),
        (["--arms", "none", "--reference", "fast"], "--reference fast is none of the arms"),
        (["--arms", "none", "--seeds", "0"], "--seeds 0"),
        (["--arms", "none", "--ckpt_path", "last.ckpt"], "leave ckpt_path out"),
    ],
)
def test_wrong_calls_are_refused_in_a_sentence(words, message, trial, capsys):
    assert trial(*words) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_wrong_options_and_missing_configs(trial, capsys):
    assert trial("--arms", "none", "--trainer.max_epochz", "3") == 2
    assert "max_epochs" in capsys.readouterr().err
    assert main(["trial"]) == 2 and "which config?" in capsys.readouterr().err
    assert main(["trial", "nowhere.yaml"]) == 1 and "nowhere.yaml" in capsys.readouterr().err
    assert main(["trial", "trials/shapes", "--jobs", "0"]) == 2


def test_the_arms_are_listed(capsys, tmp_path):
    config, arms_file = own_project.write(tmp_path)
    assert main(["trial", "--list", "--arms-file", arms_file]) == 0
    said = capsys.readouterr().out
    assert "fast-centre" in said and "control: cheap-other" in said


def test_numbers_of_seeds():
    assert read_seeds("3") == [0, 1, 2] and read_seeds("3-5") == [3, 4, 5] and read_seeds("0,4,2") == [0, 4, 2]
    for text in ("0", "-1", "a", "5-3", "1,1", ""):
        with pytest.raises(ValueError, match="--seeds"):
            read_seeds(text)


@pytest.mark.slow
def test_killed_at_five_random_moments_it_ends_with_the_same_results(trial, tmp_path):
    words = ["--arms", "none", "cheap", "cheap-other", "--seeds", "7"]
    assert trial(*words) == 0
    whole = without_times(results())
    draw, kills = random.Random(0), 0
    call = [*CALL, "--out", "killed", *words]
    for jobs in (1, 1, 1, 2, 2):
        process = subprocess.Popen(
            [*call, "--jobs", str(jobs)],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        begin, already = time.monotonic(), len(list((tmp_path / "killed").glob("runs/*.json")))
        while process.poll() is None and len(list((tmp_path / "killed").glob("runs/*.json"))) == already:
            time.sleep(0.05)
            assert time.monotonic() - begin < 300
        time.sleep(draw.random())
        if process.poll() is None:
            kills += 1
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert kills == 5
    assert subprocess.run(call, env=environment(), check=False, stdout=subprocess.DEVNULL).returncode == 0
    killed = without_times(results("killed"))
    assert killed["records"] == whole["records"]
    assert killed["summary"] == whole["summary"] and killed["verdict"]["conclusion"] == whole["verdict"]["conclusion"]


@pytest.mark.slow
def test_ctrl_c_ends_a_trial_of_processes_at_once(trial, tmp_path):
    call = [*CALL, "--out", "stopped"]
    process = subprocess.Popen(
        [*call, "--arms", "none", "cheap", "--seeds", "20", "--jobs", "2"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # where tests run in the background
        start_new_session=True,
    )
    begin = time.monotonic()
    while not list((tmp_path / "stopped").glob("runs/*.json")):
        time.sleep(0.1)
        assert process.poll() is None and time.monotonic() - begin < 300
    os.kill(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on" in said
    time.sleep(1)
    listed = subprocess.run(
        ["ps", "-s", str(process.pid), "-o", "stat=,args="], capture_output=True, text=True, check=False
    ).stdout
    assert not [line for line in listed.splitlines() if not line.startswith("Z")]  # the dead may wait for init to reap them
