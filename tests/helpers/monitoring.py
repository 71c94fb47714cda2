"""Data and networks for the tests of the saliency monitor."""

from pathlib import Path

import pytorch_lightning as pl
import torch
from lit import SILENT
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from groupcam_aug.callbacks import SaliencyMonitor


class Plain(nn.Module):
    """A small network without state besides its weights: no BatchNorm, no dropout."""

    def __init__(self, width=8, classes=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.act = nn.ReLU()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(width, classes)

    def forward(self, x):
        return self.fc(self.pool(self.act(self.conv(x))).flatten(1))


class Deep(nn.Module):
    """A network that learns the textures in seconds."""

    def __init__(self, width=16, classes=4):
        super().__init__()
        layers, channels = [], 3
        for wide, stride in ((width, 2), (width, 1), (2 * width, 2), (2 * width, 1)):
            layers += [nn.Conv2d(channels, wide, 3, stride=stride, padding=1), nn.BatchNorm2d(wide), nn.ReLU()]
            channels = wide
        self.features = nn.Sequential(*layers)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(channels, classes)

    def forward(self, x):
        return self.fc(self.pool(self.features(x)).flatten(1))


class Learner(pl.LightningModule):
    """Trains a network; the rate is cut to a hundredth at the epochs in `cuts`."""

    def __init__(self, net=None, lr=0.05, cuts=(), seed=7):
        super().__init__()
        torch.manual_seed(seed)
        self.net = Plain() if net is None else net()
        self.lr, self.cuts, self.losses = lr, list(cuts), []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]).float(), batch[1])
        self.losses.append(loss.detach().clone())
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean(), batch_size=len(batch[0]))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)
        if not self.cuts:
            return optimizer
        return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, self.cuts, 0.01)]


def textures(count, seed=0, size=32, patch=12, shuffled=False, masks=False):
    """A patch of stripes, columns, checks or plain, somewhere in noise: (N, 3, size, size), labels, if asked masks; 14 % of the area."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    row, column = torch.meshgrid(torch.arange(patch), torch.arange(patch), indexing="ij")
    kinds = torch.stack([row // 2 % 2, column // 2 % 2, (row // 2 + column // 2) % 2, torch.ones_like(row)]).float() * 2 - 1
    images = 0.5 * torch.randn(count, 3, size, size, generator=generator)
    corners = torch.randint(size - patch + 1, (count, 2), generator=generator)
    where = torch.zeros(count, size, size, dtype=torch.bool)
    for i, (top, left) in enumerate(corners.tolist()):
        images[i, :, top : top + patch, left : left + patch] += 1.5 * kinds[labels[i]]
        where[i, top : top + patch, left : left + patch] = True
    labels = labels[torch.randperm(count, generator=generator)] if shuffled else labels
    return (images, labels, where) if masks else (images, labels)


def batches(count=12, seed=0, batch_size=4, shuffle=False, **options):
    return DataLoader(TensorDataset(*textures(count, seed, **options)), batch_size, shuffle=shuffle)


def watched(
    folder,
    module=None,
    monitor=None,
    *,
    train=None,
    val=None,
    before=(),
    after=(),
    seed=11,
    ckpt_path=None,
    recorded=True,
    **options,
):
    """Fit quietly under a monitor; returns it and the trainer. `val=False`: none. `recorded=False`: nobody asks for records."""
    if recorded:
        (Path(folder) / "groupcam").mkdir(parents=True, exist_ok=True)  # as a SaliencyReport does
    module = Learner() if module is None else module
    monitor = SaliencyMonitor(num_images=8) if monitor is None else monitor
    torch.manual_seed(seed)
    settings = {**SILENT, "max_epochs": 3, "default_root_dir": folder, "num_sanity_val_steps": 1}
    trainer = pl.Trainer(**{**settings, "callbacks": [*before, *([monitor] if monitor else []), *after], **options})
    val = batches(8, seed=1) if val is None else None if val is False else val
    trainer.fit(module, batches() if train is None else train, val, ckpt_path=ckpt_path)
    return monitor, trainer
