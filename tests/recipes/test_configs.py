"""Every config of the package runs, one batch of each stage, on generated images; a new file is picked up by itself."""

import pytest
from PIL import Image

from groupcam_aug.recipes.cli import find_recipe, main, recipe_names


@pytest.fixture
def images(tmp_path):
    for part in ("train", "val"):
        for c, name in enumerate(("ant", "bee")):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (80, 70), (200 * c, 20 * i, 99)).save(tmp_path / "images" / part / name / f"{i}.png")
    return tmp_path / "images"


@pytest.mark.parametrize("name", recipe_names())
def test_config_runs(name, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = find_recipe(name).read_text()
    small = [
        "--trainer.fast_dev_run",
        "true",
        "--trainer.accelerator",
        "cpu",
        "--trainer.devices",
        "1",
        "--trainer.strategy",
        "auto",
    ]
    small += [
        "--trainer.precision",
        "32-true",
        "--trainer.enable_progress_bar",
        "false",
        "--trainer.enable_model_summary",
        "false",
    ]
    small += ["--data.batch_size", "2", "--data.num_workers", "0"]
    if "pretrained:" in text:
        small += ["--model.pretrained", "false"]
    if "ImageData" in text:
        small += ["--data.root", str(images), "--data.size", "64", "--data.resize", "64"]
    if "start_epoch:" in text:
        # Otherwise one batch would never meet the augmentation.
        text = "\n".join(line for line in text.splitlines() if "start_epoch:" not in line)
    own = tmp_path / "own.yaml"
    own.write_text(text)
    assert main(["fit", "--config", str(own), *small]) == 0


@pytest.mark.parametrize("name", recipe_names())
def test_config_begins_with_the_command_that_runs_it(name):
    head = [line for line in find_recipe(name).read_text().splitlines()[:6] if line.startswith("#")]
    assert any(f"groupcam-aug fit --config {name.rpartition('/')[2]}.yaml" in line for line in head)
    assert len(head[0]) > 20  # what `recipes list` shows


def test_there_are_configs():
    assert {"resnet50_imagenet", "resnet50_folder", "shapes_demo"} <= set(recipe_names())
