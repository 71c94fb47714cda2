"""A training run to be killed and continued (test_kill.py): `python run_to_kill.py FOLDER` goes on from the last checkpoint.

Tells on standard output where it is; the environment slows it down at the place where the kill shall fall.
"""

import os
import shutil
import sys
import time
from pathlib import Path

import lit
import pytorch_lightning as pl
import torch
from fsspec.implementations.local import LocalFileOpener

from groupcam_aug.callbacks import GroupCAMAugmentation

BATCHES, STEPS, EVERY = 6, 24, 4  # batches of an epoch, steps of the run, steps between checkpoints


class Steps(lit.Fixed):
    """The same batch for the same step in every run, epoch after epoch."""

    def __iter__(self):
        for self.at in range(self.at % len(self.batches) + 1, len(self.batches) + 1):
            yield self.batches[self.at - 1]


class Slow(lit.Lit):
    """Takes SLOW_STEP seconds in the middle of a step."""

    def training_step(self, batch, batch_idx):
        print("step", self.trainer.global_step, flush=True)
        time.sleep(float(os.environ.get("SLOW_STEP", "0")))
        return super().training_step(batch, batch_idx)


def slow_writing(seconds):
    """Half of a checkpoint is in the file that Lightning writes for this long."""
    write = LocalFileOpener.write

    def halting(opener, data):
        half = len(data) // 2
        write(opener, data[:half])
        opener.f.flush()
        print("saving", flush=True)
        time.sleep(seconds)
        return half + write(opener, data[half:])

    LocalFileOpener.write = halting


def slow_copying(seconds):
    """The same for the copy that a temporary folder on another file system makes necessary; renaming is not slowed."""

    def halting(source, target, **_):
        content = Path(source).read_bytes()
        with Path(target).open("wb") as file:
            file.write(content[: len(content) // 2])
            file.flush()
            print("copying", Path(target).name, flush=True)
            time.sleep(seconds)
            file.write(content[len(content) // 2 :])
        return target

    shutil.copyfile = halting


def main(folder):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(11)
    module = Slow()
    module.net.drop.p = 0.0  # its random numbers are not in a checkpoint
    saver = pl.callbacks.ModelCheckpoint(folder, save_last=True, every_n_train_steps=EVERY)
    trainer = pl.Trainer(
        **{**lit.SILENT, "enable_checkpointing": True},
        max_steps=STEPS,
        max_epochs=-1,
        default_root_dir=folder,
        callbacks=[saver, GroupCAMAugmentation(preset="paper", network="net", layer="relu2", groups=4, p=0.5)],
    )
    trainer.fit(module, Steps([[x, y] for x, y in lit.loader(4 * BATCHES)]), ckpt_path="last")
    torch.set_num_threads(threads)
    return module, trainer


if __name__ == "__main__":
    slow_writing(float(os.environ.get("SLOW_WRITE", "0")))
    slow_copying(float(os.environ.get("SLOW_COPY", "0")))
    main(Path(sys.argv[1]))
