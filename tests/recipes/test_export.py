"""Export: a plain state dict, and a full disk."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from groupcam_aug.recipes.cli import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def checkpoint(folder):
    import pytorch_lightning as pl
    from lit import SILENT

    from groupcam_aug.recipes.classifier import Classifier

    network = {"class_path": "groupcam_aug.recipes.networks.CIFARResNet", "init_args": {"depth": 8, "width": 4}}
    names, mean, std = ["ant", "bee", "cat"], [0.1, 0.2, 0.3], [0.5, 0.5, 0.5]
    trainer = pl.Trainer(**SILENT, max_steps=0)
    trainer.strategy.connect(Classifier(network, 3, class_names=names, mean=mean, std=std, size=40))
    trainer.save_checkpoint("last.ckpt")
    return "last.ckpt"


def test_export_writes_a_state_dict(checkpoint, folder, capsys):
    assert main(["export", checkpoint, "out.safetensors"]) == 0
    assert (folder / "out.safetensors").is_file()
    assert main(["export", checkpoint, "out.onnx"]) == 1
    assert ".safetensors" in capsys.readouterr().err


def test_the_file_says_what_the_network_is_and_explain_reads_it(checkpoint, folder, capsys):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    from groupcam_aug.recipes.classifier import load_classifier

    main(["export", checkpoint, "out.safetensors"])
    with safe_open("out.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["class_names"]) == ["ant", "bee", "cat"] and json.loads(metadata["size"]) == 40
    assert json.loads(metadata["network"])["init_args"] == {"depth": 8, "width": 4}
    (whole, info), (kept, again) = load_classifier(checkpoint), load_classifier("out.safetensors")
    assert info == again and info["mean"] == [0.1, 0.2, 0.3]
    assert all(torch.equal(value, kept.state_dict()[name]) for name, value in whole.state_dict().items())
    Image.new("RGB", (50, 40)).save("a.png")
    assert main(["explain", "a.png", "--checkpoint", "out.safetensors", "--groups", "4", "--target", "bee"]) == 0
    assert "40 px" in capsys.readouterr().err
    # Whoever changes the metadata is told, and a plain state dict needs a name.
    save_file(load_file("out.safetensors"), "odd.safetensors", metadata | {"std": "[0, 1, 1]"})
    save_file(load_file("out.safetensors"), "plain.safetensors")
    for name, told in (("odd", "std=[0, 1, 1] is no list of positive numbers"), ("plain", "--model NAME")):
        assert main(["explain", "a.png", "--checkpoint", f"{name}.safetensors"]) == 1
        assert told in capsys.readouterr().err


def test_a_network_by_name_takes_size_and_names_from_the_file(folder, capsys):
    from safetensors.torch import save_file
    from torchvision.models import squeezenet1_1

    about = {"class_names": [f"k{i}" for i in range(1000)], "mean": [0.0] * 3, "std": [1.0] * 3, "size": 64, "resize": None}
    about |= {"network": "torchvision/squeezenet1_1", "num_classes": 1000}
    save_file(squeezenet1_1().state_dict(), "s.safetensors", {key: json.dumps(value) for key, value in about.items()})
    Image.new("RGB", (70, 80), "red").save("a.png")
    words = ["explain", "a.png", "--model", "torchvision/squeezenet1_1", "--checkpoint", "s.safetensors", "--method", "gradcam"]
    assert main([*words, "--target", "k7"]) == 0
    assert "64 px" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_disk_that_fills_up_leaves_the_good_file_of_before(folder, suffix):
    """A limit on the size of files stands in for a full disk."""
    code = f"""
import resource, signal, sys
from groupcam_aug.recipes.cli import main
import pytorch_lightning as pl, torch
from groupcam_aug.recipes.classifier import Classifier
network = {{"class_path": "groupcam_aug.recipes.networks.CIFARResNet", "init_args": {{"depth": 8, "width": 16}}}}
trainer = pl.Trainer(max_steps=0, logger=False, accelerator="cpu", enable_progress_bar=False)
trainer.strategy.connect(Classifier(network, 3))
trainer.save_checkpoint("last.ckpt")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
assert main(["recipes", "copy", "shapes_demo", "own.yaml", "--force"]) == 1
sys.exit(main(["export", "last.ckpt", "out.{suffix}"]))
"""
    for name in (f"out.{suffix}", "own.yaml"):
        (folder / name).write_text("the good one")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    for name in (f"out.{suffix}", "own.yaml"):
        assert (folder / name).read_text() == "the good one"
    assert not list(folder.glob("*.part")) and not list(folder.glob(".*.part"))
