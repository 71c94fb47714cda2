import json

import pytest
import pytorch_lightning as pl
import torch
from page import check
from PIL import Image
from pytorch_lightning.demos.boring_classes import BoringModel
from rich.console import Console
from torch.utils.data import DataLoader

from groupcam_aug.recipes import demo
from groupcam_aug.recipes.cli import main

TINY = demo.Budget(train=64, test=24, epochs=1, steps=2, maps=6, batch=16, width=4, seeds=2)


def test_energy_inside_is_a_share_and_leaves_out_empty_maps():
    maps = torch.zeros(3, 4, 4)
    maps[0, :2], maps[1, :, 0] = 1.0, 0.5
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[:, :, :2] = True
    assert demo.energy_inside(maps, masks) == pytest.approx((0.5 + 1.0) / 2)


def test_the_command_writes_table_numbers_and_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "QUICK", TINY)
    assert main(["demo", "--quick", "--out", str(tmp_path / "out")]) == 0
    told = " ".join(capsys.readouterr().out.split())
    for arm in demo.ARMS:
        assert arm in told
    assert "panels.png" in told and "results.json" in told and "n = 24" in told and "2 paired seeds" in told
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(row["arm"], row["seed"]) for row in record["results"]] == [(arm, seed) for seed in range(2) for arm in demo.ARMS]
    for row in record["results"]:
        assert 0 <= row["kept"] <= 1 and 0 <= row["swapped"] <= 1 and row["ms_per_step"] > 0
    assert min(Image.open(tmp_path / "out" / "panels.png").size) > 300
    assert str(tmp_path / "out" / "report.html") in "".join(told.split()), "the last line says where the report is"
    words = check((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).words()
    assert "Finished: 2 epochs" in words and "crescent" in words and "val/acc" in words
    for filled in ("Maps of the probes", "How much is kept", "Samples of epoch 1", "Insertion", "Sanity check"):
        assert filled in words, filled
    assert sorted(path.name for path in tmp_path.rglob("groupcam")) == ["groupcam"], "one run of all is recorded"


def test_the_report_leaves_the_arms_as_they_were(tmp_path):
    """Watched and reported, with validation in between, or not: the same networks, bit for bit."""
    runs = []
    for out in (None, tmp_path):
        with demo._quiet_lightning(), demo._progress(Console(quiet=True)) as progress:
            runs.append(demo.run_seed(0, TINY, progress, out)[1])
    for arm in demo.ARMS:
        assert all(torch.equal(a, b) for a, b in zip(*(run[arm].state_dict().values() for run in runs), strict=True))
    assert (tmp_path / "report.html").is_file()


def test_short_epochs_are_the_batches_of_an_undivided_fit():
    def batches(divide):
        seen = []
        loader = DataLoader(range(10), 3, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(0))
        loader = demo._ShortEpochs(loader, 2) if divide else loader

        class Sees(BoringModel):
            def training_step(self, batch, batch_idx):
                seen.append(batch.tolist())
                return self.layer.weight.sum()

        limits = {"max_steps": 8, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        pl.Trainer(accelerator="cpu", devices=1, enable_model_summary=False, **limits).fit(Sees(), loader)
        return seen

    assert len(batches(True)) == 8 and batches(True) == batches(False)


def test_arms_are_paired_and_repeatable():
    console = Console(quiet=True)
    runs = []
    for _ in range(2):
        with demo._quiet_lightning(), demo._progress(console) as progress:
            runs.append(demo.run_seed(1, TINY, progress))
    for (first, networks), (second, others) in [runs]:
        assert [row["kept"] for row in first] == [row["kept"] for row in second]
        for arm in demo.ARMS:
            assert all(torch.equal(a, b) for a, b in zip(networks[arm].parameters(), others[arm].parameters(), strict=True))
    plain, cam, other = (networks[arm].linear.weight for arm in demo.ARMS)
    assert not torch.equal(plain, cam) and not torch.equal(cam, other)


def test_no_seed_is_refused(capsys):
    assert main(["demo", "--seeds", "0"]) == 2
    assert "--seeds 0" in capsys.readouterr().err
