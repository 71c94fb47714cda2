"""One of two ranks for test_report.py: `python record_ranks.py FOLDER`. Each rank has a folder of its own to write to."""

import os
import sys
from pathlib import Path

import lit
import pytorch_lightning as pl
import torch
from plain_ranks import PATIENCE
from pytorch_lightning.strategies import DDPStrategy
from torch.nn import functional as F
from torchmetrics import MeanMetric

from groupcam_aug.callbacks import GroupCAMAugmentation, SaliencyReport


class Logs(lit.Lit):
    """Numbers that all ranks must reduce together."""

    def __init__(self):
        super().__init__()
        self.mean = MeanMetric()

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.mean.update(float(self.global_rank))
        self.log("train/loss", loss, sync_dist=True, on_step=False, on_epoch=True)
        self.log("rank", self.mean, on_step=False, on_epoch=True)
        return loss


if __name__ == "__main__":
    rank = os.environ["NODE_RANK"]
    module = Logs()
    callbacks = [SaliencyReport(), GroupCAMAugmentation(preset="paper", network="net", layer="relu2", groups=4)]
    strategy = DDPStrategy(process_group_backend="gloo", timeout=PATIENCE)
    options = {**lit.SILENT, "num_nodes": 2, "strategy": strategy, "max_epochs": 2, "callbacks": callbacks}
    trainer = pl.Trainer(**options, default_root_dir=Path(sys.argv[1]) / rank)
    trainer.fit(module, lit.loader(16))
    torch.save([p.detach() for p in module.parameters()], Path(sys.argv[1]) / f"rank{rank}.pt")
