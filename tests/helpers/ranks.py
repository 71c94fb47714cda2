"""A rank of the runs in test_ddp.py: `python ranks.py FOLDER OPTIONS`, however it is launched. Writes rank<n>.pt into the folder."""

import json
import sys
from pathlib import Path

import lit
import pytorch_lightning as pl
import torch
from plain_ranks import PATIENCE, Collectives
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader

from groupcam_aug.callbacks import GroupCAMAugmentation


class Ranked(lit.Lit):
    """Counts the collectives of its training forwards: proof that the count sees something."""

    def __init__(self, unused):
        super().__init__()
        if unused:
            self.spare = nn.Linear(2, 2)


class Watch(pl.Callback):
    """Switches the augmentation off on rank 1 if told to, counts collectives, writes what the rank saw."""

    def __init__(self, folder, augmentation, skip):
        self.folder, self.augmentation, self.skip = folder, augmentation, skip

    def on_train_start(self, trainer, module):
        self.during_maps, self.during_steps, self.calls = Collectives(), Collectives(), 0
        apply, step = self.augmentation.augment.augment_at, trainer.strategy.training_step
        if self.skip and trainer.global_rank == 1:
            self.augmentation.augment.p = 0.0

        def watched(*args):
            self.calls += 1
            with self.during_maps:
                return apply(*args)

        def watched_step(*args, **kwargs):
            with self.during_steps:
                return step(*args, **kwargs)

        self.augmentation.augment.augment_at, trainer.strategy.training_step = watched, watched_step

    def on_fit_end(self, trainer, module):
        told = {
            "seen": module.seen,
            "weights": [p.detach().clone() for p in module.parameters()],
            "steps": trainer.global_step,
            "calls": self.calls,
            "during maps": self.during_maps.names,
            "during steps": self.during_steps.names,
            "world": trainer.world_size,
        }
        torch.save(told, self.folder / f"rank{trainer.global_rank}.pt")


def run(folder, *, launch, mode=None, skip=False, accumulate=1, unused=False, share=False, **options):
    torch.manual_seed(11)
    if mode is None:
        module = Ranked(unused)
        augmentation = GroupCAMAugmentation(preset="paper", network="net", layer="relu2", groups=4, **options)
        train = DataLoader(lit.Pictures(16), batch_size=4)
    else:
        from modes import MODES

        module, augmentation = MODES[mode].module(), MODES[mode].callback()
        train = MODES[mode].loader()
    where = {"num_nodes": 2, "devices": 1} if launch == "nodes" else {"devices": 2}
    strategy = DDPStrategy(
        process_group_backend="gloo",
        timeout=PATIENCE,
        find_unused_parameters=unused,
        start_method="spawn" if launch == "spawn" else "popen",
    )
    settings = {**lit.SILENT, **where, "strategy": strategy, "use_distributed_sampler": not share, "max_epochs": 1}
    pl.Trainer(**settings, accumulate_grad_batches=accumulate, callbacks=[augmentation, Watch(folder, augmentation, skip)]).fit(
        module, train
    )


if __name__ == "__main__":
    run(Path(sys.argv[1]), **json.loads(sys.argv[2]))
