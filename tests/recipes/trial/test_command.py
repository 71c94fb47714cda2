import json
from pathlib import Path

import pytest
from cifar_like import make_folder
from PIL import Image

from groupcam_aug.recipes.cli import main
from groupcam_aug.recipes.trial import command as study
from groupcam_aug.recipes.trial import runner as workers
from groupcam_aug.recipes.trial.arms import read_arm
from groupcam_aug.recipes.trial.run import read_record
from groupcam_aug.recipes.trial.training import Machine

TINY = "rho0.95,train=36,test=12,maps=6,batch=12,clean_images=12"
SMALL = ["backgrounds", "--size", "smoke", "--regimes", TINY, "--device", "cpu", "--jobs", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("data"))


def runs(out):
    return {path.name: read_record(path) for path in sorted((Path(out) / "runs").glob("*.json"))}


def run(*words):
    return main(["study", *map(str, words)])


def test_every_study_runs_pairs_its_arms_and_writes_results(data, tmp_path, monkeypatch):
    monkeypatch.setenv("GROUPCAM_DATA", str(data))
    asked = {
        "backgrounds": ["--regimes", TINY, "--arms", "none", "masks,fill=other", "cutmix"],
        "finetune": ["--regimes", "resnet20-50,test=10,corrupted=5", "--arms", "frozen", "none", "whole"],
        "scenes": ["--regimes", "texture,train=32,test=16", "--arms", "none", "fast,source=teacher", "frozen,source=teacher"],
    }
    for name, words in asked.items():
        out = tmp_path / name
        assert run(name, "--size", "smoke", "--seeds", 2, "--jobs", 1, "--device", "cpu", "--out", out, *words) == 0
        found = runs(out)
        arms = [read_arm(word).name for word in words[words.index("--arms") + 1 :]]
        assert sorted((one["seed"], one["arm"]) for one in found.values()) == sorted((s, arm) for s in (0, 1) for arm in arms)
        for seed in (0, 1):
            pairing = [one["pairing"] for one in found.values() if one["seed"] == seed and one["pairing"]["batches"]]
            assert all(one == pairing[0] for one in pairing) and all(pairing[0].values())
        trained = [one for one in found.values() if one["pairing"]["batches"]]
        assert len(trained) == 2 * sum(not arm.startswith("frozen") for arm in arms)
        assert len({one["pairing"]["batches"] for one in trained}) == 2
        # Same start and batches, yet other weights at the end: the arm did something.
        assert len({(one["seed"], one["facts"]["loss"]) for one in trained}) == len(trained)
        summary = json.loads((out / f"{name}.json").read_text())
        assert [arm["n"] for arm in summary["regimes"][0]["arms"]] == [2] * len(arms)
        told = (out / f"{name}.md").read_text()
        assert all(f"`{arm}`" in told for arm in arms) and "## Not run" not in told  # nothing here is of the study's own plan
        assert min(Image.open(out / f"{name}_forest.png").size) > 150
        assert (out / f"{name}_alignment.png").exists() == (name != "finetune")
        assert not list((out / "starts").glob("*-data.pt"))  # all arms of the seed are through


def test_a_study_that_was_stopped_goes_on_and_ends_the_same(tmp_path, monkeypatch, capsys):
    words = [*SMALL, "--arms", "none", "fast", "whole", "--seeds", 2]
    assert run(*words, "--out", tmp_path / "whole") == 0
    done, real = [], workers.run_trial

    def stopped(trial, start):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(trial)
        return real(trial, start)

    monkeypatch.setattr(workers, "run_trial", stopped)
    assert run(*words, "--out", tmp_path / "parts") == 130
    assert "the same command goes on" in capsys.readouterr().out
    assert len(runs(tmp_path / "parts")) == 3 and not list(tmp_path.rglob("*.part"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts" / "runs").iterdir()}
    monkeypatch.setattr(workers, "run_trial", real)
    assert run(*words, "--out", tmp_path / "parts") == 0
    assert "3 of 6 runs are finished already" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    whole, parts = runs(tmp_path / "whole"), runs(tmp_path / "parts")
    assert whole.keys() == parts.keys() and len(parts) == 6
    for name in whole:
        for key in ("metrics", "pairing", "hash"):
            assert whole[name][key] == parts[name][key]
    tables = [json.loads((tmp_path / one / "backgrounds.json").read_text())["regimes"][0]["arms"] for one in ("whole", "parts")]
    for first, second in zip(*tables, strict=True):
        assert first["metrics"] == second["metrics"] and first["difference"] == second["difference"]


def test_other_settings_are_never_mixed_in(tmp_path):
    base = [*SMALL, "--arms", "none", "--seeds", 1, "--out", tmp_path]
    assert run(*base) == 0
    base[base.index(TINY)] = TINY + ",lr=0.2"
    assert run(*base) == 0
    assert len(runs(tmp_path)) == 2 and len({one["hash"] for one in runs(tmp_path).values()}) == 2
    summary = json.loads((tmp_path / "backgrounds.json").read_text())
    assert [[arm["n"] for arm in group["arms"]] for group in summary["regimes"]] == [[1], [1]]


def test_plans_lists_and_what_is_wrong_with_a_call(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("GROUPCAM_DATA", raising=False)
    assert run(*SMALL, "--dry-run", "--out", tmp_path) == 0
    told = capsys.readouterr().out
    assert "10 runs to do, 0 finished" in told and "masks" in told and "with --jobs 1" in told
    assert not list(tmp_path.iterdir())
    assert run("--list") == 0
    told = capsys.readouterr().out
    for name in ("fast-weights", "rho0.95", "scratch-50", "colour"):
        assert name in told
    assert run("backgrounds", "--size", "smoke", "--summarise", tmp_path) == 0
    assert "nothing written" in capsys.readouterr().out
    for words, status, message in [
        ([], 2, "which study?"),
        (["backgruonds"], 2, "invalid choice"),
        ([*SMALL, "--jobs", "0"], 2, "--jobs 0"),
        ([*SMALL, "--arms", "exact,p=0.5"], 1, "'exact' is now called 'paper'; give paper,p=0.5"),
        (["finetune", "--weights", "mine.pt"], 2, "--weights is now --pretrained"),
        ([*SMALL, "--arms", "fats"], 1, "no arm 'fats'; did you mean 'fast'"),
        ([*SMALL, "--arms", "frozen"], 1, "arm frozen in backgrounds rho0.95.*: the starting network is untrained"),
        ([*SMALL, "--arms", "fast,source=early,warmup=0"], 1, "give warmup=1 or more"),
        ([*SMALL, "--arms", "fast,warmup=2"], 1, "no epoch of 2 is left"),
        ([*SMALL, "--seeds", "x"], 1, r"--seeds x: give how many \(8\)"),
        (["backgrounds", "--regimes", "rho0.9"], 1, "no regime 'rho0.9'; did you mean 'rho0.95'"),
        (["backgrounds", "--regimes", "rho0.95,rh=1"], 1, "takes no 'rh'; did you mean 'rho'"),
        (["backgrounds", "--regimes", "rho0.95,rho=2"], 1, r"rho must be in \[0, 1\], got 2"),
        (["backgrounds", "--network", "resnet18"], 1, "belong to `study finetune"),
        (["backgrounds", "--summarise", tmp_path / "none"], 1, "is no folder of a study"),
        (["finetune"], 1, "set GROUPCAM_DATA, or give --data FOLDER"),
        (["backgrounds", "--regimes", "photos0.95"], 1, "set GROUPCAM_DATA"),
    ]:
        import re

        assert run(*words) == status, words
        assert re.search(message, capsys.readouterr().err.replace("\n", " ")), words


@pytest.mark.parametrize(
    "text, seeds",
    [("3", [0, 1, 2]), ("3-5", [3, 4, 5]), ("4-4", [4]), ("7,2", [7, 2]), ("0", None), ("5-3", None), ("1,1", None)],
)
def test_seeds(text, seeds):
    if seeds is None:
        with pytest.raises(ValueError, match=f"--seeds {text}"):
            study.read_seeds(text)
    else:
        assert study.read_seeds(text) == seeds


def test_the_plan_is_the_contract():
    cpu = Machine()
    trials = study.planned("backgrounds", "cpu", cpu, None, None, None)
    assert len(set(trials)) == len(trials)
    by_regime = {}
    for trial in trials:
        by_regime.setdefault(trial.regime.name, {}).setdefault(trial.arm.name, set()).add(trial.seed)
    assert {name: len(arms) for name, arms in by_regime.items() if name != "rho0.95"} == {
        "rho0.8": 6,
        "rho0.5": 6,
        "photos0.95": 13,
    }
    assert all(seeds == set(range(8)) for name in ("rho0.8", "rho0.5") for seeds in by_regime[name].values())
    whole = {arm for arm, seeds in by_regime["rho0.95"].items() if seeds == set(range(8))}
    assert {"none", "paper", "balanced", "fast", "paper-weights", "balanced-weights", "fast-weights", "gradcam", "fast-other", "whole"} | {
        "fast-inverse", "masks", "erase", "cutmix", "fast,fill=other", "fast-weights,source=teacher,fill=other"
    } <= whole  # fmt: skip
    tuned = study.planned("finetune", "cpu", cpu, None, None, None)
    counts = {
        arm: sum(t.arm.name == arm and t.regime.name == "resnet20-50" for t in tuned) for arm in ("none", "paper", "cutmix")
    }
    assert counts == {"none": 5, "paper": 2, "cutmix": 5}
    own = study.planned("finetune", "cpu", cpu, ["scratch-50,epochs=20", "scratch-full"], None, "2")
    assert {trial.regime.name for trial in own} == {"scratch-50,epochs=20", "scratch-full"} and len(own) > 20
    assert all(trial.arm.kind != "frozen" for trial in own)  # the plan's, which an untrained network has no use for


def test_what_is_missing_of_the_plan_is_listed_unless_all_is(tmp_path):
    cpu = Machine()
    assert study._missing("scenes", "smoke", cpu, tmp_path) == []
    first = study.planned("scenes", "smoke", cpu, None, None, None)[0].path(tmp_path)
    first.parent.mkdir()
    first.touch()
    assert study._missing("scenes", "smoke", cpu, tmp_path) == [("texture", "fast", 2), ("texture", "none", 1)]
