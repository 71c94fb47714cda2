"""Somebody's own Lightning project: nothing of ours is imported, batches are dicts, the module has two parts and logs its own names."""

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Mine(pl.LightningModule):
    def __init__(self, lr: float = 0.1, width: int = 16, fail_at: int = -1):
        super().__init__()
        self.save_hyperparameters()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.dropout = nn.Dropout(0.2)  # draws from the global generator in every step
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.dropout(self.backbone(x).mean((2, 3))))

    def training_step(self, batch, batch_idx):
        if self.global_step == self.hparams.fail_at:
            raise RuntimeError("no [/such] luck")
        loss = F.cross_entropy(self(batch["image"]), batch["label"])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch["image"]), batch["label"]))

    def test_step(self, batch, batch_idx):
        self.log("test_right", (self(batch["image"]).argmax(1) == batch["label"]).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.hparams.lr, momentum=0.9)


class Squares(Dataset):
    """A bright square in one of three channels."""

    def __init__(self, length, seed, names=False):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(length) % 3
        self.images = 0.5 * torch.randn(length, 3, 16, 16, generator=generator)
        self.images[torch.arange(length), self.labels, 4:12, 4:12] += 1
        if names:
            self.groups = ["first" if i < 12 else "rest" for i in range(length)]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"image": self.images[index], "label": self.labels[index]}


class MyData(pl.LightningDataModule):
    def __init__(self, length: int = 48, several: bool = False):
        super().__init__()
        self.length, self.several = length, several

    def setup(self, stage):
        self.train, self.val, self.test = Squares(self.length, 0), Squares(12, 1), Squares(30, 2, names=True)

    def train_dataloader(self):
        return DataLoader(self.train, 8, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, 12)

    def test_dataloader(self):
        one = DataLoader(self.test, 12)
        return {"kept": one, "noisy": DataLoader(Squares(12, 3), 12)} if self.several else one


CONFIG = """
model: {class_path: own_project.Mine}
data: {class_path: own_project.MyData}
trainer:
  max_epochs: 2
  accelerator: cpu
  callbacks:
    - class_path: groupcam_aug.callbacks.GroupCAMAugmentation
      init_args: {preset: paper, image_key: image, target_key: label, groups: 4}
    - class_path: pytorch_lightning.callbacks.ModelCheckpoint
      init_args: {monitor: val_loss}
    - class_path: pytorch_lightning.callbacks.EarlyStopping
      init_args: {monitor: val_loss, patience: 0}
"""

ARMS = """
none: {about: as it is}
cheap:
  about: a preset
  control: cheap-other
  callbacks: [{class_path: groupcam_aug.callbacks.GroupCAMAugmentation, init_args: {preset: fast, groups: 4, source: self}}]
again:
  callbacks: [{class_path: groupcam_aug.callbacks.GroupCAMAugmentation, init_args: {preset: fast, groups: 4, source: self}}]
cheap-other:
  callbacks:
    - class_path: groupcam_aug.callbacks.GroupCAMAugmentation
      init_args: {preset: fast, groups: 4, source: self, mask_from: other}
slow: {set: {model.lr: 0.001}}
broken: {set: {model.fail_at: 5}}
"""


def write(folder):
    """The config and the arms, as files."""
    (folder / "mine.yaml").write_text(CONFIG)
    (folder / "arms.yaml").write_text(ARMS)
    return str(folder / "mine.yaml"), str(folder / "arms.yaml")
