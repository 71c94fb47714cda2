import json

import own_project
import pytest
import torch
from own_project import Mine

from groupcam_aug.recipes.cli import main
from groupcam_aug.recipes.trial import run as module
from groupcam_aug.recipes.trial.arms import read_arms, where_things_are
from groupcam_aug.recipes.trial.configured import read_config, resolve, settings_hash
from groupcam_aug.recipes.trial.digests import digest_of
from groupcam_aug.recipes.trial.notes import notes
from groupcam_aug.recipes.trial.record import read_record
from groupcam_aug.recipes.trial.run import Run, rehearse, run_arm


@pytest.fixture
def make(tmp_path):
    """Runs of arms by name, their configs written."""
    config, arms_file = own_project.write(tmp_path)

    def runs(*names, seed=1, words=()):
        tree, arms = read_config(config, list(words)), read_arms(names, arms_file)
        for arm in arms:
            resolve(tree, arm, tmp_path / "out" / "arms")
        found = [Run(arm, seed, tmp_path / "out", where_things_are(tree, arms)) for arm in arms]
        return found[0] if len(found) == 1 else found

    return runs


def weights_of_fit(config, seed, folder, *words):
    """The digest of what `fit` ends with."""
    options = ["--trainer.callbacks", "null"] if not words else []
    status = main(
        ["fit", "--config", str(config), "--seed_everything", str(seed), "--trainer.default_root_dir", str(folder), *options]
    )
    assert status == 0
    (checkpoint,) = folder.rglob("*.ckpt")
    made = Mine()
    made.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    return digest_of(made)


def test_a_run_without_augmentation_is_the_plain_fit_bit_for_bit(make, tmp_path):
    record = run_arm(make("none", seed=3))
    assert record["weights"] == weights_of_fit(tmp_path / "mine.yaml", 3, tmp_path / "plain")
    assert record["weights"] != run_arm(make("none", seed=4))["weights"]


def test_the_config_of_an_arm_is_that_training(make, tmp_path):
    run = make("cheap", seed=2)
    record = run_arm(run)
    assert record["weights"] == weights_of_fit(run.config, 2, tmp_path / "again", "as it is")


def test_arms_that_do_the_same_end_with_the_same_weights_and_all_are_paired(make):
    none, cheap, again, other = (run_arm(run) for run in make("none", "cheap", "again", "cheap-other"))
    assert cheap["weights"] == again["weights"] and cheap["hash"] == again["hash"]
    assert len({record["weights"] for record in (none, cheap, other)}) == 3
    assert none["pairing"] == cheap["pairing"] == other["pairing"]
    again = run_arm(make("none", seed=2))
    assert none["pairing"]["start"] != again["pairing"]["start"] and none["pairing"]["batches"] != again["pairing"]["batches"]
    assert (
        none["pairing"]["data"] == again["pairing"]["data"]
        and none["tests"]["test"]["digest"] == again["tests"]["test"]["digest"]
    )


def test_what_a_record_holds(make):
    run = make("cheap", words=["--data.several", "true"])
    shares = []
    record = run_arm(run, shares.append)
    assert record == json.loads(run.path.read_text()) == read_record(run.path)
    assert shares[-1] == 1 and len(shares) == 12
    assert (record["arm"], record["seed"], record["control"], record["about"]) == ("cheap", 1, "cheap-other", "a preset")
    assert record["hash"] == settings_hash(run.config)
    assert set(record["tests"]) == {"kept", "noisy"}
    kept, noisy = record["tests"]["kept"], record["tests"]["noisy"]
    assert kept["n"] == 30 and noisy["n"] == 12 and set(kept["groups"]) == {"first", "rest"} and noisy["groups"] == {}
    for test in (kept, noisy):
        assert test["metrics"]["accuracy"] == pytest.approx(test["metrics"]["test_right"], abs=1e-6)
    train = record["train"]
    assert (train["epochs"], train["steps"]) == (2, 12) and train["seconds"] > 0 and train["loss"] > 0
    assert 20 < train["augmented"] < 76 and 0 < train["keep_fraction"] < 1 and train["object_kept"] is None  # half of 96
    assert (run.folder / "groupcam" / "augmentation.jsonl").is_file() and not list(run.folder.rglob("*.ckpt"))
    assert record["warnings"] == [] and record["device"].startswith("cpu, 1 thread") and record["precision"] == "32-true"


def test_validation_and_early_stopping_do_not_end_a_run(make):
    assert run_arm(make("slow", words=["--trainer.max_epochs", "4"]))["train"]["epochs"] == 4  # patience 0 in the config


def test_what_an_interrupted_attempt_left_is_deleted(make):
    run = make("none")
    (run.folder / "groupcam").mkdir(parents=True)
    (run.folder / "groupcam" / "augmentation.jsonl").write_text('{"epoch": 0, "drawn": 5, "no_map": 0}\n')
    assert run_arm(run)["train"]["augmented"] is None


def test_a_folder_that_no_attempt_left_is_not_deleted(make):
    run = make("none")
    run.folder.mkdir(parents=True)
    (run.folder / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="runs/none__seed1' is there and no run of a trial"):
        run_arm(run)
    assert (run.folder / "thesis.txt").read_text() == "mine"


def test_a_training_that_ends_early_is_in_the_record(make, monkeypatch):
    monkeypatch.setattr(Mine, "on_train_epoch_end", lambda self: setattr(self.trainer, "should_stop", True), raising=False)
    train = run_arm(make("none"))["train"]
    assert (train["epochs"], train["planned"], train["steps"]) == (1, 2, 6)
    assert run_arm(make("none", seed=2, words=["--trainer.max_steps", "3"]))["train"]["planned"] is None


def test_a_network_that_diverges_has_no_accuracy_and_its_run_is_named(make):
    record = run_arm(make("none", words=["--model.lr", "1e30"]))
    assert record["tests"]["test"]["not_finite"] == 30 and set(record["tests"]["test"]["metrics"]) == {"test_right"}
    assert record["warnings"][-1].startswith("test: no accuracy was counted, only what test_step logs: the network's logits")
    assert any(note.startswith("none, seed 1, test: the logits of 30 images are not finite") for note in notes([record]))


def test_a_run_that_fails_leaves_its_traceback_and_no_record(make):
    run = make("broken")
    with pytest.raises(RuntimeError, match="luck"):
        run_arm(run)
    assert "training_step" in (run.folder / "error.txt").read_text() and not run.path.exists()


def test_accuracy_that_cannot_be_counted_is_said_and_logged_metrics_stay(make):
    run = make("none")
    run = Run(run.arm, run.seed, run.out, {"image_key": "picture"})
    record = run_arm(run)
    assert set(record["tests"]["test"]["metrics"]) == {"test_right"} and record["tests"]["test"]["n"] is None
    assert "'picture' is not in the batch" in record["warnings"][0]


def test_ctrl_c_is_passed_on(make, monkeypatch):
    def stop(self, batch, batch_idx):
        raise KeyboardInterrupt

    import signal

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Mine, "training_step", stop)
    run = make("none")
    with pytest.raises(KeyboardInterrupt):
        run_arm(run)
    assert signal.getsignal(signal.SIGINT) is before and not run.path.exists()


def test_a_rehearsal_tells_how_much_there_is_to_do_and_keeps_nothing(make):
    run = make("cheap", words=["--trainer.limit_train_batches", "5", "--data.several", "true"])
    found = rehearse(run)
    assert (found.steps, found.epochs, found.images, dict(found.tests)) == (10, 2, 48, {"kept": 30, "noisy": 12})
    assert found.total == pytest.approx(10 * found.seconds) and found.seconds > 0
    measured = {"accuracy", "mean_class_accuracy", "worst_class_accuracy", "worst_group_accuracy", "test_right"}
    assert set(found.metrics) == measured and found.problem == ""
    assert [path.name for path in run.out.iterdir()] == ["arms"]


def test_a_rehearsal_of_a_short_epoch_has_what_a_scheduler_monitors(make, monkeypatch):
    def plateau(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        return {
            "optimizer": optimizer,
            "lr_scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer),
            "monitor": "val_loss",
        }

    monkeypatch.setattr(Mine, "configure_optimizers", plateau)
    assert rehearse(make("none", words=["--data.length", "24"])).steps == 6


def test_a_rehearsal_meets_what_starts_late(make, tmp_path):
    """A wrong name is found at once, though the augmentation starts in the second epoch."""
    text = own_project.CONFIG.replace("target_key: label", "target_key: lable, start_epoch: 1")
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(Exception, match="lable"):
        rehearse(make("cheap"))


def test_numbers_that_are_not_finite_become_null():
    assert module._finite({"a": [float("nan"), 1.5, "text"], "b": float("inf")}) == {"a": [None, 1.5, "text"], "b": None}
