"""The README runs: every Python block in order, every groupcam-aug line in its short form; so do the blocks of the documents."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

from groupcam_aug.files import add_line
from groupcam_aug.recipes.cli import main

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), re.DOTALL)


LINES = [line for block in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]


@pytest.mark.filterwarnings("ignore")
def test_python_blocks_run():
    assert len(PYTHON) >= 4
    names = {}
    for block in PYTHON:
        exec(compile(block, "README.md", "exec"), names)
    assert names["loss"].isfinite() and names["maps"].shape == (4, 64, 64)


def test_photographs_of_the_readme_are_small_and_credited():
    names = ("photographs.jpg", "settling.jpg")
    credits = (ROOT / "docs" / "photographs.md").read_text()
    assert "CC0" in credits and "benchmarks/photographs.py" in credits
    for name in names:
        assert re.search(rf"!\[[^\]]+\]\([^)]*docs/{name}\)", TEXT) and name in credits
        assert (ROOT / "docs" / name).stat().st_size < 600_000
        with Image.open(ROOT / "docs" / name) as picture:
            assert min(picture.size) > 300


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("page", "blocks"), [("getting_started", 3), ("options", 2), ("watching", 2)])
def test_blocks_of_the_short_pages_run(page, blocks):
    names, found = {}, python_blocks(page)
    assert len(found) == blocks
    for block in found:
        exec(compile(block, f"{page}.md", "exec"), names)


TRAINING = python_blocks("training")


@pytest.mark.filterwarnings("ignore")
def test_blocks_of_the_training_page_run():
    names = {}
    for block in TRAINING:
        if not block.startswith("# needs:"):
            exec(compile(block, "training.md", "exec"), names)
    assert names["loss"].isfinite() and names["network"][0].weight.grad is not None
    import pytorch_lightning as pl
    from lit import SILENT, Fixed

    module = names["TwoParts"]()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), 0.01)
    pl.Trainer(**SILENT, max_steps=1, callbacks=[names["two_parts"]]).fit(
        module, Fixed([[torch.randn(2, 3, 64, 64), torch.tensor([1, 2])]])
    )


WATCHING, MEASURING = ((ROOT / "docs" / f"{page}.md").read_text() for page in ("watching", "measuring"))


@pytest.mark.filterwarnings("ignore")
def test_blocks_of_the_measuring_page_run(capsys):
    names = {}
    for block in python_blocks("measuring"):
        exec(compile(block, "measuring.md", "exec"), names)
    assert names["curves"].overall.shape == (4,) and set(names["metric"].compute()) == {"insertion", "deletion", "overall"}
    assert len(names["check"].spearman) == 4


@pytest.mark.filterwarnings("ignore")
def test_blocks_of_the_page_on_more_inputs_run():
    names = {}
    torch.manual_seed(0)
    for block in python_blocks("more_inputs"):
        exec(compile(block, "more_inputs.md", "exec"), names)
    assert names["maps"].shape == names["second_word"].shape == (2, 32, 32) and names["augmented"].shape == (2, 3, 32, 32)
    assert (names["two_questions"][0] - names["two_questions"][1]).abs().max() > 0.01


def test_the_pages_name_what_there_is():
    from groupcam_aug import metrics

    for name in re.findall(r"^\| (`.*?`) \|", MEASURING.partition("| function, class |")[2], re.MULTILINE):
        for word in re.findall(r"`(\w+)`", name):
            assert hasattr(metrics, word), word
    from groupcam_aug.callbacks.monitoring.map_stats import UNKNOWN

    named = set(re.findall(r"`saliency/(\w+)`", WATCHING))
    assert named <= set(UNKNOWN)
    again = {f"{name}_correct" for name in ("change", "spearman", "mass_shift", "noise", "alive")}
    assert set(UNKNOWN) - again <= named, "each key has its row"


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_classifier_of_the_training_page():
    pytest.importorskip("transformers", reason="transformers is not installed")
    from lit import SILENT, Fixed
    from pytorch_lightning import Trainer

    names = {}
    for block in TRAINING[:3]:
        exec(compile(block, "training.md", "exec"), names)
    seen, images = [], torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    module = names["FineTune"]()
    step = module.training_step
    module.training_step = lambda batch, batch_idx: seen.append(batch["pixel_values"]) or step(batch, batch_idx)
    batch = {"pixel_values": images, "labels": torch.tensor([0, 1, 2, 3])}
    Trainer(**SILENT, max_steps=2, callbacks=[names["callback"]]).fit(module, Fixed([batch, batch]))
    assert len(seen) == 2 and not torch.equal(seen[0], images)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for part in ("train", "val"):
        for c, name in enumerate(("ant", "bee", "cat")):
            (tmp_path / "photographs" / part / name).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (80, 70), (100 * c, 60 * i, 99)).save(tmp_path / "photographs" / part / name / f"{i}.png")
    small = [
        "--data.size=64",
        "--data.batch_size=2",
        "--data.num_workers=0",
        "--trainer.accelerator=cpu",
        "--trainer.max_epochs=1",
    ]
    small += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.logger=false"]
    words = [
        "fit",
        "--data.root=photographs",
        "--model.network=torchvision/resnet18",
        *small,
        "--trainer.enable_checkpointing=true",
    ]
    assert main([*words, "--trainer.default_root_dir=run"]) == 0
    (checkpoint,) = (tmp_path / "run").rglob("*.ckpt")
    own = tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"  # where the recipe leaves its last one
    own.parent.mkdir(parents=True)
    checkpoint.rename(own)
    records = tmp_path / "lightning_logs" / "version_0" / "groupcam"
    records.mkdir(parents=True)
    add_line(records, "run", {"epoch": 0, "step": 1, "lr": 0.1, "val/acc": 0.5})
    return tmp_path


@pytest.mark.filterwarnings("ignore")
def test_command_lines_run(workplace, monkeypatch):
    from groupcam_aug.recipes import demo

    small = {"trainer.max_epochs": 4, "data.train": 64, "data.test": 24, "data.val": 24, "data.batch_size": 16}
    monkeypatch.setattr(demo, "QUICK", small)
    (checkpoint,) = (line.removeprefix("CKPT=") for line in LINES if line.startswith("CKPT="))
    commands = [shlex.split(line.replace("$CKPT", checkpoint), comments=True) for line in LINES]
    ours = [words[1:] for words in commands if words and words[0] == "groupcam-aug"]
    assert {words[0] for words in ours} >= {
        "fit",
        "test",
        "explain",
        "evaluate",
        "fidelity",
        "report",
        "recipes",
        "demo",
        "trial",
    }
    for words in ours:
        if words[0] == "trial":
            words = [word.replace("my_config.yaml", "resnet50_folder") for word in words]
            words += ["--data.root", "photographs", "--model.network", "torchvision/resnet18", "--model.pretrained", "false"]
            words += [
                "--data.num_workers",
                "0",
                "--data.size",
                "64",
                "--trainer.accelerator",
                "cpu",
                "--out",
                f"trial{len(words)}",
            ]
        if words[0] == "fit":
            words = [
                *words,
                "--trainer.fast_dev_run=true",
                "--model.pretrained=false",
                "--data.num_workers=0",
                "--data.batch_size=2",
            ]
        if words[0] == "test":
            words = [*words, "--trainer.accelerator=cpu", "--data.num_workers=0", "--trainer.logger=false"]
        if words[0] == "evaluate":
            words = [*words, "--limit", "2", "--methods", "gradcam,cells", "--steps", "2", "--sanity-images", "1"]
        if words[0] == "fidelity":
            words = [*words, "--limit", "4", "--modes", "target, zero"]
        assert main(words) == 0, words
    targets = {words[1] for words in commands if words and words[0] == "make"}
    assert targets == {"demo", "test"} and all(f"{t}:" in (ROOT / "Makefile").read_text() for t in targets)
