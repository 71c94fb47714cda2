import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cifar_like import make_folder
from PIL import Image
from rich.console import Console

from groupcam_aug.recipes.cli import main
from groupcam_aug.recipes.trial import backgrounds
from groupcam_aug.recipes.trial import command as study
from groupcam_aug.recipes.trial import runner as workers
from groupcam_aug.recipes.trial.arms import read_arm
from groupcam_aug.recipes.trial.run import Trial, check_trial, read_record, write_record
from groupcam_aug.recipes.trial.summary import summarise, write_summary
from groupcam_aug.recipes.trial.tables import as_markdown
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


# The command


def test_every_study_runs_pairs_its_arms_and_writes_results(data, tmp_path, monkeypatch):
    monkeypatch.setenv("GROUPCAM_DATA", str(data))
    asked = {
        "backgrounds": ["--regimes", TINY, "--arms", "none", "oracle,fill=other", "cutmix"],
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


def test_a_failing_run_is_told_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    real = workers.run_trial

    def failing(trial, start):
        if trial.arm.name == "whole":
            raise RuntimeError("no luck")
        return real(trial, start)

    monkeypatch.setattr(workers, "run_trial", failing)
    assert run(*SMALL, "--arms", "whole", "none", "--seeds", 1, "--out", tmp_path) == 1
    told = capsys.readouterr()
    assert "seed 0, whole: RuntimeError: no luck" in told.out and "1 of 2 runs are missing" in told.err
    assert [one["arm"] for one in runs(tmp_path).values()] == ["none"]

    def broken(*_):
        raise RuntimeError("no data")

    monkeypatch.setattr(workers, "prepare", broken)
    assert run(*SMALL, "--arms", "fast", "--seeds", "1-6", "--out", tmp_path) == 1
    told = capsys.readouterr()
    assert told.out.count("preparation: RuntimeError: no data") == 3 and "stopped after 3 failures" in told.out


def test_plans_lists_and_what_is_wrong_with_a_call(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("GROUPCAM_DATA", raising=False)
    assert run(*SMALL, "--dry-run", "--out", tmp_path) == 0
    told = capsys.readouterr().out
    assert "10 runs to do, 0 finished" in told and "oracle" in told and "with --jobs 1" in told
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
    assert {"none", "exact", "balanced", "fast", "exact-weights", "balanced-weights", "fast-weights", "gradcam", "other", "whole"} | {
        "inverse", "oracle", "erase", "cutmix", "fast,fill=other", "fast-weights,source=teacher,fill=other"
    } <= whole  # fmt: skip
    tuned = study.planned("finetune", "cpu", cpu, None, None, None)
    counts = {
        arm: sum(t.arm.name == arm and t.regime.name == "resnet20-50" for t in tuned) for arm in ("none", "exact", "cutmix")
    }
    assert counts == {"none": 5, "exact": 2, "cutmix": 5}
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


@pytest.mark.slow
def test_killed_processes_leave_whole_records_only(tmp_path):
    words = [*SMALL[:-1], "2", "--arms", "none", "fast", "whole", "other", "--seeds", "10", "--out", str(tmp_path)]
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
    assert run(*SMALL, "--arms", "none", "fast", "whole", "other", "--seeds", 10, "--out", alone) == 0
    for name, record in runs(tmp_path).items():
        assert record["metrics"] == runs(alone)[name]["metrics"]  # however many processes


# What the runs say


def records(values, regime="rho0.95", metric="swapped", **more):
    """Records of a study from shares by arm, one per seed."""
    settings = backgrounds.regimes("cpu")[regime]
    made = []
    for arm, shares in values.items():
        for seed, share in enumerate(shares):
            if share is None:
                continue
            trial = Trial(settings, read_arm(arm), seed, Machine())
            metrics = {one.name: 0.5 for one in settings.metrics} | {metric: share}
            pairing = {"data": f"d{seed}", "start": f"s{seed}", "batches": None if arm == "frozen" else f"b{seed}"}
            whole = trial.settings()
            made.append(
                {"study": "backgrounds", "regime": regime, "size": "cpu", "arm": trial.arm.name, "seed": seed, "metrics": metrics}
                | {"facts": {"alignment": 1.5} if trial.arm.kind == "map" else {}, "pairing": pairing, "seconds": 10.0}
                | {"cpu_seconds": 5.0 * (1 + len(arm)), "settings": whole, "hash": study_hash(whole), "device": "cpu"}
                | {"versions": {"torch": "2.6"}}
                | more
            )
    return made


def study_hash(settings):
    from groupcam_aug.recipes.trial.regimes import settings_hash

    return settings_hash(settings)


def arms_of(summary):
    return {arm["name"]: arm for arm in summary["regimes"][0]["arms"]}


def test_numbers_by_hand():
    found = arms_of(
        summarise(
            records(
                {
                    "none": [0.50, 0.60, 0.40],
                    "fast": [0.52, 0.61, 0.43],
                    "other": [0.51, 0.61, 0.41],
                    "oracle": [0.60, 0.70, 0.50],
                    "fast,fill=other": [0.55, 0.65, None],
                    "oracle,fill=other": [0.70, 0.80, 0.60],
                }
            )
        )
    )
    none, fast, filled = found["none"], found["fast"], found["fast,fill=other"]
    assert none["metrics"]["swapped"]["mean"] == pytest.approx(50) and none["metrics"]["swapped"]["error"] == pytest.approx(
        5.7735, abs=1e-3
    )
    assert none["difference"] == {} and none["cost"] == 1.0 and fast["cost"] == pytest.approx(1.0)
    gain = fast["difference"]["swapped"]
    assert gain["n"] == 3 and gain["mean"] == pytest.approx(2.0) and gain["wins"] == 3 and gain["p"] == 0.25
    assert gain["low"] == pytest.approx(1.0) and gain["high"] == pytest.approx(3.0)
    assert fast["to_other"]["swapped"]["mean"] == pytest.approx(1.0) and fast["to_centre"] == {}
    assert fast["recovered"]["swapped"]["share"] == pytest.approx(0.2) and fast["ceiling"] == "oracle"
    assert filled["n"] == 2 and filled["difference"]["swapped"]["n"] == 2
    assert filled["ceiling"] == "oracle,fill=other" and filled["recovered"]["swapped"]["share"] == pytest.approx(0.25)
    assert found["oracle"]["recovered"] == {} and found["other"]["to_other"] == found["oracle"]["to_other"] == {}
    assert fast["facts"]["alignment"]["mean"] == 1.5 and "alignment" not in none["facts"]
    assert found["other"]["difference"]["kept"]["equivalence"] == 0.0  # the very same: shown to be null


def test_arms_that_hide_what_is_salient_have_no_twin():
    """Another's mask would keep what is salient there: the other side, and another share of the pixels."""
    values = {arm: [0.5, 0.6] for arm in ("none", "other", "centre", "inverse", "fast,inverse_share=0.3", "fast")}
    found = arms_of(summarise(records(values)))
    assert found["fast"]["to_other"] and found["fast"]["to_centre"]
    for arm in ("inverse", "fast,inverse_share=0.3"):
        assert found[arm]["to_other"] == found[arm]["to_centre"] == {}


def test_two_runs_of_an_arm_and_seed_are_not_mixed():
    one, other = records({"none": [0.5], "fast": [0.6]}), records({"fast": [0.99]})
    with pytest.raises(ValueError, match="two runs of fast, seed 0, with other settings"):
        summarise([*one, {**other[0], "hash": "0"}])


def test_alignment_is_that_of_the_masks_where_it_was_counted():
    facts = {"alignment": 1.5, "object_kept": 0.9, "replaced": 0.55}
    found = arms_of(summarise(records({"none": [0.5, 0.5], "fast": [0.6, 0.6]}, facts=facts)))
    assert found["fast"]["facts"]["alignment"]["mean"] == pytest.approx(2.0)


def test_differences_to_another_reference_and_own_twins():
    values = {
        "none": [0.5, 0.5],
        "whole": [0.4, 0.4],
        "fast-weights": [0.6, 0.7],
        "fast-weights,mask=other": [0.5, 0.6],
        "fast,fill=other": [0.9, 0.9],
        "other": [0.1, 0.1],
        "centre": [0.2, 0.3],
    }
    summary = summarise(records(values), reference="whole")
    found = arms_of(summary)
    assert found["none"]["difference"]["swapped"]["mean"] == pytest.approx(10) and found["whole"]["difference"] == {}
    assert found["fast,fill=other"]["to_other"] == {}  # its own twin was not run, and no other will do
    assert found["centre"]["to_other"]["swapped"]["mean"] == pytest.approx(15)
    assert "another sample's mask" in as_markdown(summary) and "alignment" in as_markdown(summary)
    assert found["fast-weights"]["to_other"]["swapped"]["mean"] == pytest.approx(10)


def test_a_positive_control_is_looked_for_in_clean_accuracy():
    for gain, works in ((0.02, True), (-0.01, False)):
        values = {"none": [0.8, 0.7, 0.75], "cutmix": [0.8 + gain, 0.7 + gain, 0.75 + gain]}
        summary = summarise(records(values, metric="kept"))
        control = summary["regimes"][0]["control"]
        assert (control["works"], control["by"], control["metric"]) == (works, "cutmix", "kept")
        told = as_markdown(summary)
        assert ("Positive control: passed" in told) == works and ("**failed**" in told) != works
    alone = summarise(records({"none": [0.8, 0.7]}))
    assert alone["regimes"][0]["control"]["works"] is None and "Positive control: not run" in as_markdown(alone)


def test_runs_that_are_not_paired_are_refused(tmp_path):
    made = records({"none": [0.5], "fast": [0.6]})
    made[1]["pairing"] = {**made[1]["pairing"], "batches": "other"}
    with pytest.raises(ValueError, match="seed 0: arms none and fast did not have the same batches"):
        summarise(made)
    frozen = records({"none": [0.5], "frozen": [0.6]})
    summarise(frozen)  # trained on nothing, so it has no batches
    mixed = records({"none": [0.5]}) + records({"fast": [0.5]}, versions={"torch": "2.7"})
    assert "Runs of several versions are mixed" in as_markdown(summarise(mixed))


def test_broken_records_are_told(tmp_path):
    (record,) = records({"none": [0.5]})
    path = tmp_path / "runs" / "backgrounds__x.json"
    write_record(path, record)
    write_summary(tmp_path, "backgrounds", "none")
    assert read_record(path)["metrics"] == record["metrics"]
    path.write_text(path.read_text().replace('"rho": 0.95', '"rho": 0.9'))
    with pytest.raises(ValueError, match="do not belong together; delete it"):
        write_summary(tmp_path, "backgrounds", "none")
    path.write_text("{")
    with pytest.raises(ValueError, match="is no record of a run"):
        write_summary(tmp_path, "backgrounds", "none")


def test_numbers_that_are_not_finite_do_not_break_the_files(tmp_path):
    made = records({"none": [0.5, 0.6], "whole": [0.5, 0.6], "fast": [0.7, 0.6]})
    for record in made:
        if record["arm"] == "whole":
            record["metrics"]["alignment"] = float("nan")
        write_record(
            Trial(backgrounds.regimes("cpu")["rho0.95"], read_arm(record["arm"]), record["seed"], Machine()).path(tmp_path),
            record,
        )
    names = [path.name for path in write_summary(tmp_path, "backgrounds", "none", planned=lambda *_: [("rho0.8", "fast", 8)])]
    assert sorted(names) == ["backgrounds.json", "backgrounds.md", "backgrounds_alignment.png", "backgrounds_forest.png"]
    told = (tmp_path / "backgrounds.md").read_text()
    assert "- rho0.8 (cpu): `fast`, 8 seeds" in told
    assert "nan" not in told and "NaN" not in (tmp_path / "backgrounds.json").read_text()


def test_tables_can_be_read_by_a_markdown_reader():
    told = as_markdown(summarise(records({"none": [0.5, 0.6], "fast": [0.6, 0.6]}) + records({"none": [0.5]}, regime="rho0.5")))
    assert told.index("## rho0.5") < told.index("## rho0.95")
    tables = [block for block in told.split("\n\n") if block.startswith("|")]
    assert len(tables) == 4  # two arms: values, differences, masks (no arm with a twin); no differences where there is one arm
    for table in tables:
        assert len({line.count("|") for line in table.strip().split("\n")}) == 1
    assert "+5.00 [+0.00, +10.00]" in told


def test_a_trial_knows_what_does_not_fit():
    table, cpu = backgrounds.regimes("smoke"), Machine()
    from groupcam_aug.recipes.trial import finetune

    tuned = finetune.regimes("smoke")["resnet56-50"]
    for regime, arm, told in [
        (tuned, "oracle", "exact masks are not known"),
        (tuned, "fast,source=teacher", "there is no 'teacher' network"),
        (tuned, "fast,source=few", "there is no 'few' network"),
        (table["rho0.5"], "frozen", "is untrained"),
        (table["rho0.5"], "frozen,source=ema", "'ema' is not there before training"),
    ]:
        with pytest.raises(ValueError, match=told):
            check_trial(Trial(regime, read_arm(arm), 0, cpu))
    check_trial(Trial(table["rho0.5"], read_arm("oracle"), 0, cpu))


def test_this_process_is_left_as_it_was(tmp_path):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    trials = study.planned("backgrounds", "smoke", Machine(), [TINY], ["none", "cutmix", "erase"], "1")
    from groupcam_aug.recipes.trial.stock import Stock

    work = workers.Work(trials, Stock(tmp_path / "starts"), tmp_path, 1)
    assert workers.work_through(work, Console(quiet=True)) == 0
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)
    assert workers.work_through(work._replace(trials=[]), Console(quiet=True)) == 0


def test_a_reference_that_was_not_run_is_refused_and_its_old_plots_go(tmp_path, capsys, monkeypatch):
    made = records({"none": [0.5, 0.6], "fast": [0.7, 0.6]})
    with pytest.raises(ValueError, match="no run of the reference 'gradcam'; there are none, fast"):
        summarise(made, "gradcam")
    regime = backgrounds.regimes("cpu")["rho0.95"]
    for one in made:
        write_record(Trial(regime, read_arm(one["arm"]), one["seed"], Machine()).path(tmp_path), one)
    assert tmp_path / "backgrounds_alignment.png" in write_summary(tmp_path, "backgrounds", "none")
    for path in (tmp_path / "runs").glob("*__fast__*"):  # whose masks alone are known
        path.unlink()
    assert tmp_path / "backgrounds_alignment.png" not in write_summary(tmp_path, "backgrounds", "none")
    assert not (tmp_path / "backgrounds_alignment.png").exists()
    assert main(["study", "backgrounds", "--summarise", str(tmp_path), "--reference", "gradcam"]) == 1
    assert "no run of the reference 'gradcam'" in capsys.readouterr().err
    words = ["study", "backgrounds", "--size", "smoke", "--out", str(tmp_path), "--arms", "none", "fast", "--device", "cpu"]
    assert main([*words, "--reference", "oracle"]) == 1
    assert "--reference oracle is none of the arms" in capsys.readouterr().err
    smoke = backgrounds.regimes("smoke")["rho0.95"]
    path = Trial(smoke, read_arm("oracle"), 0, Machine()).path(tmp_path)
    path.write_text("{}")
    monkeypatch.setattr(study, "_print_plan", lambda *_: None)
    assert main([*words, "--reference", "oracle", "--dry-run"]) == 0, "finished before"
    path.unlink()
    assert main([*words[:-1], "gpu"]) == 1 and "--device gpu: " in capsys.readouterr().err
