"""Photographs as a phone stores them, turned and with a note how: every command sees them as people do."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from groupcam_aug.recipes.cli import main

NETWORK = '{"class_path": "groupcam_aug.recipes.networks.CIFARResNet", "init_args": {"depth": 8, "width": 4}}'
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
TURNS = {6: Image.Transpose.ROTATE_90, 3: Image.Transpose.ROTATE_180, 8: Image.Transpose.ROTATE_270}  # as they are stored


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """upright/photos and turned/photos, two classes of eight pictures."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for name in ("ant", "bee"):
        for place in ("upright", "turned"):
            (tmp_path / place / "photos" / name).mkdir(parents=True)
        for i in range(8):
            coarse = Image.fromarray(generator.integers(0, 255, (5, 6, 3), dtype=np.uint8))
            picture, exif, turn = coarse.resize((44, 36)), Image.Exif(), (6, 3, 8)[i % 3]
            picture.save(tmp_path / "upright" / "photos" / name / f"{i}.png")
            exif[0x0112] = turn
            picture.transpose(TURNS[turn]).save(tmp_path / "turned" / "photos" / name / f"{i}.png", exif=exif)
    return tmp_path


@pytest.mark.filterwarnings("ignore")
def test_every_command_sees_turned_photographs_upright(folder, capsys):
    found = {}
    for place in ("upright", "turned"):
        words = ["--data.root", f"{place}/photos", "--data.num_workers", "0"]
        limits = ["--trainer.max_epochs", "1", "--trainer.logger", "false", "--trainer.default_root_dir", f"{place}/run", *QUIET]
        assert main(["fit", *words, "--data.size", "32", "--model.network", NETWORK, *limits]) == 0
        path = str(next((folder / place / "run").rglob("*.ckpt")))
        state = torch.load(path, weights_only=True)["state_dict"]
        shutil.copy(path, f"{place}.ckpt")
        capsys.readouterr()
        plain = ["--ckpt_path", f"{place}.ckpt", *words, "--trainer.logger", "false", *QUIET]
        assert main(["test", *plain]) == 0
        tested = next(line for line in capsys.readouterr().out.splitlines() if "test/loss" in line)
        assert main(["predict", *plain, "--data.test", ".", "--trainer.default_root_dir", place]) == 0
        predicted = [line[1:] for line in csv.reader((folder / place / "predictions.csv").open())]
        network = ["--checkpoint", f"{place}.ckpt", "--device", "cpu"]
        raw = ["--style", "raw", "--method", "gradcam", "--out", f"{place}/maps"]
        assert main(["explain", f"{place}/photos", *network, *raw]) == 0
        maps = {str(file.relative_to(folder / place)): np.load(file) for file in (folder / place / "maps").rglob("*.npy")}
        scores = ["--methods", "gradcam", "--steps", "3", "--measures", "curves", "--out", f"{place}/scores"]
        assert main(["evaluate", f"{place}/photos", *network, *scores]) == 0
        rows = [json.loads(line) for line in (folder / place / "scores" / "images.jsonl").read_text().splitlines()]
        scores = [row["insertion"] for row in rows if "insertion" in row]
        found[place] = state, tested, predicted, maps, scores
    one, other = found["upright"], found["turned"]
    assert all(torch.equal(value, other[0][name]) for name, value in one[0].items()), "fit"
    assert one[1] == other[1], "test"
    assert one[2] == other[2] and len(one[2]) == 17, "predict"
    assert len(one[3]) == 16 and all(np.array_equal(value, other[3][name]) for name, value in one[3].items()), "explain"
    assert one[4] == other[4] and len(one[4]) == 16, "evaluate"
    capsys.readouterr()
    assert main(["test", "--ckpt_path", "turned.ckpt", "--data.root", "turned/photos", "--data.test", ".", *QUIET]) == 1
    told = capsys.readouterr().err
    assert "of the 16 images to test on were trained on" in told and "Traceback" not in told
