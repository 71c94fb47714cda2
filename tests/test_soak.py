"""Two thousand steps: memory stays flat, no hook and no file handle stays behind."""

import mmap
import os
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from lit import SILENT, Lit, loader
from models import _HOOKS
from torch.utils.data import DataLoader

from groupcam_aug.callbacks import GroupCAMAugmentation

pytestmark = pytest.mark.slow


def resident():
    """Megabytes of memory that the process holds."""
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def handles():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


class Gauge(pl.Callback):
    """Memory every twenty steps."""

    def __init__(self):
        self.steps, self.megabytes = [], []

    def on_train_batch_end(self, trainer, module, *_):
        module.seen.clear()
        if trainer.global_step % 20 == 0:
            self.steps.append(trainer.global_step)
            self.megabytes.append(resident())


def slope(steps, megabytes):
    """Megabytes per 1,000 steps, by least squares."""
    x, y = torch.tensor(steps, dtype=torch.float64), torch.tensor(megabytes, dtype=torch.float64)
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum() * 1000)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_two_thousand_steps(tmp_path):
    module, gauge = Lit(), Gauge()
    hooks = {name: [len(getattr(m, kind)) for kind in _HOOKS] for name, m in module.named_modules()}
    batches = DataLoader([*loader(16)], batch_size=None)
    callback = GroupCAMAugmentation(preset="paper", network="net", groups=4, p=0.9, mask_at="stage")
    trainer = pl.Trainer(
        **{**SILENT, "logger": pl.loggers.CSVLogger(tmp_path, flush_logs_every_n_steps=100)},
        max_steps=2000,
        max_epochs=-1,
        log_every_n_steps=50,
        callbacks=[callback, gauge],
    )
    before = handles()
    trainer.fit(module, batches)
    assert trainer.global_step == 2000
    settled = [i for i, step in enumerate(gauge.steps) if step > 500]
    grown = slope([gauge.steps[i] for i in settled], [gauge.megabytes[i] for i in settled])
    print(f"\nresident memory: {gauge.megabytes[-1]:.0f} MB, {grown:+.3f} MB per 1,000 steps after 500")
    assert grown < 1
    assert {name: [len(getattr(m, kind)) for kind in _HOOKS] for name, m in module.named_modules()} == hooks
    assert handles() <= before
    assert vars(trainer.strategy).get("batch_to_device") is None
    assert callback._fit is None, "nothing of the run is held"


def test_the_gauge_notices_a_leak():
    """Guards the test above: one kilobyte and a half per step is seen."""
    assert slope(range(500, 2000, 20), [200 + 0.0015 * step for step in range(500, 2000, 20)]) > 1
    kept, sizes = [], []
    for _ in range(8):
        kept.append(mmap.mmap(-1, 2**26))  # 64 megabytes from the system: an allocator might have as much left
        torch.frombuffer(kept[-1], dtype=torch.uint8).fill_(1)
        sizes.append(resident())
    assert slope(range(8), sizes) > 30_000
