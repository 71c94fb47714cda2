"""What fit says at its end."""

import shlex
from types import SimpleNamespace

import pytest
import torch

from groupcam_aug.recipes.classifier import Classifier
from groupcam_aug.recipes.next_steps import next_steps

NETWORK = {"class_path": "groupcam_aug.recipes.networks.CIFARResNet", "init_args": {"depth": 8, "width": 4}}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with everything: config, best and last checkpoint, report."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my runs"
    folder.mkdir()
    for name in ("config.yaml", "best.ckpt", "last.ckpt", "report.html"):
        (folder / name).touch()
    keepers = [
        SimpleNamespace(monitor=None, best_model_path=str(folder / "last.ckpt"), last_model_path="", best_model_score=None),
        SimpleNamespace(monitor="val/acc", best_model_path=str(folder / "best.ckpt"), best_model_score=torch.tensor(0.875)),
    ]
    report = SimpleNamespace(path=folder / "report.html")
    return SimpleNamespace(fast_dev_run=0, log_dir="my runs", checkpoint_callbacks=keepers, callbacks=[*keepers, report])


def commands(lines):
    return [shlex.split(line)[1:] for line in lines[lines.index("next:") + 1 :]]


def test_folder_best_checkpoint_report_and_three_commands(run):
    data = SimpleNamespace(val_set=SimpleNamespace(samples=[(f"photos/{i}.jpg", 0) for i in range(9)]))
    lines = next_steps(run, Classifier(NETWORK, 2), data)
    assert lines[0].split(maxsplit=1) == ["run", "my runs"]
    assert lines[1] == "best checkpoint  my runs/best.ckpt (val/acc 0.875)" and lines[2].endswith("report.html")
    test, explain, report = commands(lines)
    assert test == ["test", "--config", "my runs/config.yaml", "--ckpt_path", "my runs/best.ckpt"]
    assert explain == ["explain", "photos/0.jpg", "photos/3.jpg", "photos/6.jpg", "--checkpoint", "my runs/best.ckpt"]
    assert report == ["report", "my runs", "--open"]


def test_what_is_not_there_is_not_named(run):
    module = torch.nn.Identity()  # another model than ours
    assert [words[0] for words in commands(next_steps(run, module, SimpleNamespace()))] == ["test", "report", "trial"]
    run.callbacks.pop()
    untestable = SimpleNamespace(untestable="no class folders")
    lines = next_steps(run, module, untestable)
    assert [words[0] for words in commands(lines)] == ["trial"] and not any("report" in line for line in lines)
    run.checkpoint_callbacks = []
    assert "checkpoint" not in " ".join(next_steps(run, module, SimpleNamespace()))
    run.fast_dev_run = 1
    assert next_steps(run, module, SimpleNamespace()) == []
