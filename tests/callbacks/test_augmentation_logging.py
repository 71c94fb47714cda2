"""What the augmentation leaves in loggers: means of short epochs, pictures of samples; training does not notice."""

import csv
import warnings

import pytest
from lit import Lit, Recording, fit, same, state
from PIL import Image
from pytorch_lightning.loggers import CSVLogger

from groupcam_aug.callbacks import GroupCAMAugmentation
from groupcam_aug.files import read_lines


def make(**options):
    return GroupCAMAugmentation(**{"preset": "paper", "network": "net", "layer": "relu2", "groups": 4, **options})


def scalars(folder):
    """Step and values of each row of a CSVLogger."""
    with (folder / "lightning_logs" / "version_0" / "metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def test_epochs_shorter_than_the_logging_interval_leave_their_means(tmp_path):
    names = ("keep_fraction", "no_map", "seconds")
    logger = {"logger": CSVLogger(tmp_path / "few"), "log_every_n_steps": 50}
    trainer = fit(Lit(), [make()], max_epochs=2, **logger)
    rows = [row for row in scalars(tmp_path / "few") if "groupcam/keep_fraction_epoch" in row]
    assert [row["step"] for row in rows] == [2, 5] and all(f"groupcam/{name}_epoch" in row for row in rows for name in names)
    assert not any("groupcam/keep_fraction" in row for row in rows), "no single step is due"
    for name in names:
        assert trainer.callback_metrics[f"groupcam/{name}_epoch"] == pytest.approx(rows[1][f"groupcam/{name}_epoch"], abs=1e-6)
    fit(Lit(), [make()], logger=CSVLogger(tmp_path / "each"), log_every_n_steps=1)
    steps = [row["groupcam/keep_fraction"] for row in scalars(tmp_path / "each") if "groupcam/keep_fraction" in row]
    mean = sum(value * size for value, size in zip(steps, (4, 4, 2), strict=True)) / 10
    assert rows[0]["groupcam/keep_fraction_epoch"] == pytest.approx(mean, abs=1e-6), "as many as were drawn"


def test_loggers_get_the_samples_of_few_epochs_and_of_the_last(tmp_path):
    recording = Recording(tmp_path)
    fit(Lit(), [make()], logger=[CSVLogger(tmp_path), recording], max_epochs=8)
    assert [(key, step // 3 - 1) for key, _, step in recording.pictures] == [
        ("groupcam/samples", epoch) for epoch in (0, 1, 2, 4, 7)
    ]
    ((picture,),) = {tuple(map(type, images)) for _, images, _ in recording.pictures}
    assert picture is Image.Image
    late = Recording(tmp_path / "late")
    fit(Lit(), [make(start_epoch=3)], logger=late, max_epochs=4)
    assert [step for _, _, step in late.pictures] == [12], "the first and the last"


@pytest.mark.parametrize("options", [{"log_images": False}, {"record": False}])
def test_samples_stay_here_where_that_is_asked_for(tmp_path, options):
    recording = Recording(tmp_path)
    fit(Lit(), [make(**options)], logger=recording, max_epochs=2)
    assert recording.pictures == [] and (tmp_path / "recording").exists() == ("record" not in options)


def test_a_logger_that_refuses_pictures_changes_nothing_of_the_training(tmp_path):
    states = []
    for failing in (False, True):
        recording, module = Recording(tmp_path / str(failing)), Lit()
        recording.failing = failing
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(module, [make()], logger=recording, max_epochs=3)
        given_up = [str(each.message) for each in caught if "from here on" in str(each.message)]
        assert len(given_up) == failing and len(recording.pictures) == (1 if failing else 3)
        assert len(read_lines(next((tmp_path / str(failing)).rglob("groupcam")), "augmentation")) == 3, "records go on"
        states.append(state(module))
    assert "shows loggers no pictures from here on: ConnectionError: rate limit" in given_up[0]
    module = Lit()
    fit(module, [make(log_images=False)], max_epochs=3)
    assert same(states[0], states[1]) and same(states[0], state(module))
