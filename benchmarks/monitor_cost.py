"""What `SaliencyMonitor` takes of the training time, beside what it announces before: a Trainer with torchvision's ResNet-18."""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import warnings

import pytorch_lightning as pl
import torch
from common import Setting, add_device_options, conditions, filed, report
from isolation import Classifier
from torch.utils.data import DataLoader, TensorDataset

from groupcam_aug.callbacks import SaliencyMonitor


class Log(pl.Callback):
    """The monitor's share of the time, as it is at the end of each epoch."""

    def __init__(self, monitor: SaliencyMonitor) -> None:
        self.monitor = monitor
        self.taken: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._note()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._note()

    def _note(self) -> None:
        if self.monitor.overhead is not None:
            self.taken.append(self.monitor.overhead)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_device_options(parser)
    parser.add_argument("--images", type=int, default=128, help="in an epoch (default: %(default)s)")
    parser.add_argument("--probes", type=int, default=16)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--epochs", type=int, default=3, help="of which the first does not count (default: %(default)s)")
    options = parser.parse_args()
    setting = Setting(options)
    if setting.half or options.channels_last:
        parser.error("fp32 in the usual memory format only: leave --precision and --channels-last out")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    generator = torch.Generator().manual_seed(0)
    shape = (3, options.size, options.size)
    data = TensorDataset(torch.randn(options.images, *shape, generator=generator), torch.arange(options.images) % 10)
    probes = torch.randn(options.probes, *shape, generator=generator), torch.arange(options.probes) % 10
    rows = []
    for name, how in {
        "Grad-CAM": {},
        "Group-CAM, G=8": {"method": "groupcam", "groups": 8},
        "Group-CAM, G=32": {"method": "groupcam", "groups": 32},
    }.items():
        monitor = SaliencyMonitor(images=probes, network="net", max_overhead=None, **how)
        log = Log(monitor)
        with tempfile.TemporaryDirectory() as folder:
            trainer = pl.Trainer(
                max_epochs=options.epochs,
                accelerator="gpu" if setting.device.type == "cuda" else "cpu",
                devices=1,
                default_root_dir=folder,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                callbacks=[monitor, log],
            )
            trainer.fit(Classifier(), DataLoader(data, 32, shuffle=True))
        predicted = monitor.predict_overhead(options.images)
        measured = statistics.median(log.taken[1:])
        rows.append([name, predicted, measured, measured / predicted])
    told = conditions(
        setting.device,
        network="torchvision ResNet-18, random weights",
        **{key: getattr(options, key) for key in ("images", "probes", "size", "epochs")},
        lightning=pl.__version__,
    )
    header = ["maps", "announced, share of training", "measured", "measured over announced"]
    report(filed("monitor_cost", setting.device), told, header, rows)


if __name__ == "__main__":
    main()
