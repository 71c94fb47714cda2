import pytest
from trial_records import records

from groupcam_aug.recipes.cli import main
from groupcam_aug.recipes.trial import backgrounds
from groupcam_aug.recipes.trial import command as study
from groupcam_aug.recipes.trial.arms import read_arm
from groupcam_aug.recipes.trial.run import Trial, write_record
from groupcam_aug.recipes.trial.summary import summarise, write_summary
from groupcam_aug.recipes.trial.tables import as_markdown
from groupcam_aug.recipes.trial.training import Machine


def arms_of(summary):
    return {arm["name"]: arm for arm in summary["regimes"][0]["arms"]}


def test_numbers_by_hand():
    found = arms_of(
        summarise(
            records(
                {
                    "none": [0.50, 0.60, 0.40],
                    "fast": [0.52, 0.61, 0.43],
                    "fast-other": [0.51, 0.61, 0.41],
                    "masks": [0.60, 0.70, 0.50],
                    "fast,fill=other": [0.55, 0.65, None],
                    "masks,fill=other": [0.70, 0.80, 0.60],
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
    assert fast["recovered"]["swapped"]["share"] == pytest.approx(0.2) and fast["ceiling"] == "masks"
    assert filled["n"] == 2 and filled["difference"]["swapped"]["n"] == 2
    assert filled["ceiling"] == "masks,fill=other" and filled["recovered"]["swapped"]["share"] == pytest.approx(0.25)
    assert found["masks"]["recovered"] == {} and found["fast-other"]["to_other"] == found["masks"]["to_other"] == {}
    assert fast["facts"]["alignment"]["mean"] == 1.5 and "alignment" not in none["facts"]
    assert found["fast-other"]["difference"]["kept"]["equivalence"] == 0.0  # the very same: shown to be null


def test_arms_that_hide_what_is_salient_have_no_twin():
    """Another's mask would keep what is salient there: the other side, and another share of the pixels."""
    values = {arm: [0.5, 0.6] for arm in ("none", "fast-other", "fast-centre", "fast-inverse", "fast,inverse_share=0.3", "fast")}
    found = arms_of(summarise(records(values)))
    assert found["fast"]["to_other"] and found["fast"]["to_centre"]
    for arm in ("fast-inverse", "fast,inverse_share=0.3"):
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
        "fast-other": [0.1, 0.1],
        "fast-centre": [0.2, 0.3],
    }
    summary = summarise(records(values), reference="whole")
    found = arms_of(summary)
    assert found["none"]["difference"]["swapped"]["mean"] == pytest.approx(10) and found["whole"]["difference"] == {}
    assert found["fast,fill=other"]["to_other"] == {}  # its own twin was not run, and no other will do
    assert found["fast-centre"]["to_other"]["swapped"]["mean"] == pytest.approx(15)
    assert "another image's mask" in as_markdown(summary) and "alignment" in as_markdown(summary)
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
    assert main([*words, "--reference", "masks"]) == 1
    assert "--reference masks is none of the arms" in capsys.readouterr().err
    smoke = backgrounds.regimes("smoke")["rho0.95"]
    path = Trial(smoke, read_arm("masks"), 0, Machine()).path(tmp_path)
    path.write_text("{}")
    monkeypatch.setattr(study, "_print_plan", lambda *_: None)
    assert main([*words, "--reference", "masks", "--dry-run"]) == 0, "finished before"
    path.unlink()
    assert main([*words[:-1], "gpu"]) == 1 and "--device gpu: " in capsys.readouterr().err
