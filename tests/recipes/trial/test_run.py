import pytest
from trial_records import records

from groupcam_aug.recipes.trial import backgrounds
from groupcam_aug.recipes.trial.arms import read_arm
from groupcam_aug.recipes.trial.run import Trial, check_trial, read_record, write_record
from groupcam_aug.recipes.trial.summary import write_summary
from groupcam_aug.recipes.trial.training import Machine


def test_a_trial_knows_what_does_not_fit():
    table, cpu = backgrounds.regimes("smoke"), Machine()
    from groupcam_aug.recipes.trial import finetune

    tuned = finetune.regimes("smoke")["resnet56-50"]
    for regime, arm, told in [
        (tuned, "masks", "exact masks are not known"),
        (tuned, "fast,source=teacher", "there is no 'teacher' network"),
        (tuned, "fast,source=few", "there is no 'few' network"),
        (table["rho0.5"], "frozen", "is untrained"),
        (table["rho0.5"], "frozen,source=ema", "'ema' is not there before training"),
    ]:
        with pytest.raises(ValueError, match=told):
            check_trial(Trial(regime, read_arm(arm), 0, cpu))
    check_trial(Trial(table["rho0.5"], read_arm("masks"), 0, cpu))


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


def test_records_with_an_old_name_of_an_arm_are_read(tmp_path):
    (record,) = records({"masks,fill=other": [0.5]})
    write_record(tmp_path / "old.json", record | {"arm": "oracle,fill=other"})
    assert read_record(tmp_path / "old.json") == record
