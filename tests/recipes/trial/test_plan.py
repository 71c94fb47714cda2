import io
import json

import own_project
import pytest
import trial_records
from rich.console import Console

from groupcam_aug.recipes.trial.arms import read_arms
from groupcam_aug.recipes.trial.configured import read_config, settings_hash
from groupcam_aug.recipes.trial.plan import finished_runs, planned_runs, record_of


@pytest.fixture
def plan(tmp_path):
    config, arms_file = own_project.write(tmp_path)
    arms = read_arms(["none", "cheap"], arms_file)
    return lambda *words: planned_runs(read_config(config, words), arms, [0, 1], tmp_path / "out")


def silent():
    return Console(file=io.StringIO(), width=200)


def put_record(run, **changes):
    run.path.parent.mkdir(exist_ok=True)
    run.path.write_text(json.dumps(trial_records.record(run.arm.name, run.seed, hash=settings_hash(run.config)) | changes))


def test_every_arm_has_every_seed_and_a_config(plan):
    runs = plan()
    assert [run.name for run in runs] == ["none__seed0", "cheap__seed0", "none__seed1", "cheap__seed1"]
    assert all(run.config.read_text().startswith(f"# arm {run.arm.name}") for run in runs)
    assert finished_runs(runs, silent()) == {}


def test_finished_runs_are_those_with_a_record_of_this_config(plan):
    runs = plan()
    put_record(runs[1])
    assert list(finished_runs(runs, silent())) == ["cheap__seed0"] and record_of(runs[1])["seed"] == 0
    put_record(runs[1], hash="another")
    with pytest.raises(ValueError, match="was run with another config of arm cheap"):
        finished_runs(runs, silent())


def test_another_config_is_refused_and_the_arms_stays(plan):
    runs = plan()
    put_record(runs[0])
    before = runs[0].config.read_text()
    with pytest.raises(ValueError, match=r"model\.init_args\.lr: 0\.1 then, 0\.3 now"):
        plan("--model.lr", "0.3")
    assert runs[0].config.read_text() == before


def test_a_config_of_somebody_else_is_not_written_over(plan, tmp_path):
    (tmp_path / "out" / "arms").mkdir(parents=True)
    (tmp_path / "out" / "arms" / "cheap.yaml").write_text("mine: true")
    with pytest.raises(FileExistsError, match=r"arms/cheap\.yaml' is there and no config of a trial"):
        plan()
    assert (tmp_path / "out" / "arms" / "cheap.yaml").read_text() == "mine: true"


def test_a_record_or_a_folder_of_somebody_else_is_refused(plan):
    runs = plan()
    runs[2].path.parent.mkdir()
    runs[2].path.write_text("mine")
    with pytest.raises(FileExistsError, match=r"runs/none__seed1\.json' is there and no run of a trial"):
        finished_runs(runs, silent())
    (runs[2].folder / "groupcam").mkdir(parents=True)  # an attempt was there
    console = silent()
    assert finished_runs(runs, console) == {} and "it is run again" in console.file.getvalue()
    runs[3].folder.mkdir()
    (runs[3].folder / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"runs/cheap__seed1' is there and no run of a trial"):
        finished_runs(runs, silent())
