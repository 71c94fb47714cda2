"""An image classifier for fine-tuning, whose checkpoints serve alone: network, weights, classes and normalisation in one file."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groupcam_aug.outputs import no_numbers, not_numbers
from groupcam_aug.recipes.batch_check import check_images, images_and_labels
from groupcam_aug.recipes.networks import build_network, check_size, head_name, load_checkpoint
from groupcam_aug.recipes.saved_classifier import INFO, check_network, described, kept_choices, read_classifier

__all__ = ["Classifier", "load_classifier", "read_classifier"]


def load_classifier(path: str | Path, network: nn.Module | None = None, trust: bool = False) -> tuple[Classifier, dict[str, Any]]:
    """Rebuild a classifier from its checkpoint alone, in eval mode on the CPU.

    Args:
        path: a ``.ckpt`` that ``groupcam-aug fit`` or a Trainer with `Classifier` wrote.
        network: needed only if the classifier was made around a live module, which a checkpoint cannot describe. Default: None.
        trust: make a network of any class that the checkpoint names, which may run any code; without it only those of timm,
            torchvision and this package. Default: False.

    Returns:
        The module, and a dict with ``network`` (name or class_path mapping), ``num_classes``, ``class_names`` (list or None),
        ``mean`` and ``std`` (lists or None; for images in [0, 1]), ``size`` and ``resize`` (pixels or None).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not such a checkpoint, one without a description of its network and no ``network`` given, or a class
            that needs ``trust``.
    """
    checkpoint = read_classifier(path)
    arguments = checkpoint["hyper_parameters"]
    if network is None and arguments["network"] is None:
        raise ValueError(f"{str(path)!r} was trained around a live module, which it cannot describe; pass network=<that module>")
    if network is None and not trust:
        check_network(arguments["network"], path)
    info = {key: arguments[key] for key in INFO}
    info["resize"] = kept_choices(checkpoint).get("resize")
    try:
        classifier = Classifier(**(arguments | {"network": network if network is not None else arguments["network"]}))
    except Exception as error:  # a class may answer a changed argument with any
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{str(path)!r} describes no network that can be made, {info['network']!r}: {reason}") from error
    own = classifier.state_dict()
    for name, value in checkpoint["state_dict"].items():
        if name in own and value.is_floating_point() != own[name].is_floating_point():
            raise ValueError(
                f"{str(path)!r}, state_dict: {name!r} is {value.dtype}, in the network {own[name].dtype}; the file is damaged, "
                "or somebody changed it"
            )
    try:
        classifier.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:  # a line for each tensor
        count = max(1, len(str(error).splitlines()) - 1)
        raise ValueError(
            f"{str(path)!r} holds weights that are not those of its network {info['network']!r} ({count} differences, first: "
            f"{str(error).splitlines()[min(1, count)].strip()}); the file is damaged, or the network's class has changed"
        ) from error
    return classifier.eval(), info


class Classifier(pl.LightningModule):
    """Cross-entropy training of one network; SGD and a schedule, by default those of the Group-CAM paper's fine-tuning.

    Batches are (images (N, 3, H, W), labels (N,) int64 or (N, num_classes) soft rows, and what else the data give). Logs
    ``train/loss``, ``train/acc``, ``val/loss``, ``val/acc``, ``test/loss``, ``test/acc`` (accuracies in [0, 1]); where
    `test_dataloader` returns loaders by name, ``test/loss/<name>`` and ``test/acc/<name>`` of each. ``self.network`` is the bare
    network; name it to callbacks as ``network="network"``.

    Args:
        network: "timm/resnet50", "torchvision/resnet50", "resnet50", or ``{class_path: package.module.Class, init_args: {...}}``;
            in Python also a live module. Default: "timm/resnet50".
        num_classes: at least 2. On the command line it comes from the data. Default: None, read from a live network.
        pretrained: True, or the name of torchvision weights; a head of another size starts fresh. Default: False.
        checkpoint: a local state dict (.safetensors, .pt, .pth) to start from, in place of ``pretrained``. Default: None.
        lr: learning rate of SGD. Default: 1e-3.
        momentum: of SGD. Default: 0.9.
        weight_decay: L2 penalty on every parameter. Default: 1e-4.
        schedule: "step", by ``lr_step`` and ``lr_gamma``; or "cosine": a linear rise over the first 5 % of the optimiser's steps,
            then half a cosine to 0 at the last. Default: "step".
        lr_step: epochs between two reductions of the learning rate. Default: 15.
        lr_gamma: what each reduction multiplies it by. Default: 0.1.
        head_lr_factor: the last layer learns this many times faster; 10 suits a fresh head. Default: 1.
        freeze_epochs: for so many first epochs only the head learns, and the other layers' BatchNorm stays in eval. Default: 0.
        label_smoothing: in [0, 1). Default: 0.
        class_names: kept in the checkpoint; from the data on the command line. Default: None.
        mean: the data's normalisation, kept in the checkpoint, never applied here. Default: None.
        std: likewise. Default: None.
        size: of the images in pixels, likewise. Default: None.

    Raises:
        ValueError: an unknown network, a missing or wrong number of classes, a checkpoint that does not fit.
    """

    def __init__(
        self,
        network: str | dict[str, Any] | nn.Module = "timm/resnet50",
        num_classes: int | None = None,
        pretrained: bool | str = False,
        checkpoint: str | None = None,
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        lr_step: int = 15,
        lr_gamma: float = 0.1,
        head_lr_factor: float = 1.0,
        freeze_epochs: int = 0,
        label_smoothing: float = 0.0,
        class_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        size: int | None = None,
        schedule: Literal["step", "cosine"] = "step",
    ) -> None:
        super().__init__()
        if num_classes is None and isinstance(network, nn.Module):
            num_classes = network.get_parameter(head_name(network) + ".weight").shape[0]
        if num_classes is None or num_classes < 2:
            raise ValueError(
                f"num_classes={num_classes}: give at least 2; on the command line the data module must have num_classes"
            )
        if class_names is not None and len(class_names) != num_classes:
            raise ValueError(f"{len(class_names)} class_names for num_classes={num_classes}; they must agree")
        if schedule not in ("step", "cosine"):
            raise ValueError(f"schedule={schedule!r} is neither 'step' nor 'cosine'")
        if pretrained and (checkpoint is not None or isinstance(network, nn.Module)):
            other = "a live network" if checkpoint is None else f"checkpoint={checkpoint!r}"
            raise ValueError(f"pretrained={pretrained!r} together with {other}; choose one")
        self.network = network if isinstance(network, nn.Module) else build_network(network, num_classes, pretrained)
        if size is not None and not isinstance(network, nn.Module):
            check_size(self.network, size, str(network))
        if checkpoint is not None:
            load_checkpoint(self.network, checkpoint)
        self.lr, self.momentum, self.weight_decay, self.lr_step, self.lr_gamma = lr, momentum, weight_decay, lr_step, lr_gamma
        self.head_lr_factor, self.freeze_epochs, self.label_smoothing = head_lr_factor, freeze_epochs, label_smoothing
        self.class_names = None if class_names is None else list(class_names)
        self.mean = None if mean is None else [float(value) for value in mean]
        self.std = None if std is None else [float(value) for value in std]
        self.num_classes, self.size, self.schedule = num_classes, size, schedule
        self._test_names: list[str] = []
        self._bad: Tensor | int = 0  # images of this epoch for which the network returns no numbers
        self._images = 0
        # What rebuilds this module without its starting weights: a checkpoint brings its own.
        self.save_hyperparameters(
            {
                "network": described(network),
                "num_classes": num_classes,
                **{name: getattr(self, name) for name in ("lr", "momentum", "weight_decay", "schedule", "lr_step", "lr_gamma")},
                **{name: getattr(self, name) for name in ("head_lr_factor", "freeze_epochs", "label_smoothing")},
                **{name: getattr(self, name) for name in ("class_names", "mean", "std", "size")},
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of normalised images (N, 3, H, W)."""
        return self.network(x)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        return self._step(batch, "train")

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Loss and accuracy of one batch."""
        self._step(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Tell of a network that returns no numbers; in `fit` the loss does."""
        if self.trainer.state.fn == "validate":
            self._tell_of_no_numbers()

    def on_test_epoch_end(self) -> None:
        """Tell of a network that returns no numbers."""
        self._tell_of_no_numbers()

    def on_predict_epoch_end(self) -> None:
        """Tell of a network that returns no numbers."""
        self._tell_of_no_numbers()

    def on_test_start(self) -> None:
        """Note the names of the test loaders, where they have names."""
        loaders = self.trainer.test_dataloaders
        self._test_names = list(loaders) if isinstance(loaders, Mapping) else []

    def test_step(self, batch: Sequence[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss and accuracy of one batch."""
        self._step(batch, "test", self._test_names[dataloader_idx] if self._test_names else "")

    def predict_step(self, batch: Sequence[Tensor] | Tensor, batch_idx: int) -> Tensor:
        """Softmax probabilities (N, num_classes), float32."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        check_images(images, next(self.network.parameters()).dtype)
        logits = self(images)
        self._count(logits)
        return logits.float().softmax(dim=1)

    def configure_optimizers(self) -> Any:
        """SGD in two groups, head and the rest, and the schedule."""
        head, rest = self._head_and_rest()
        groups: list[dict[str, Any]] = [{"params": rest}, {"params": head, "lr": self.lr * self.head_lr_factor}]
        optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        if self.schedule == "cosine":
            return {"optimizer": optimizer, "lr_scheduler": self._cosine(optimizer)}
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, self.lr_step, self.lr_gamma)}

    def on_train_epoch_start(self) -> None:
        """Keep the frozen layers' BatchNorm in eval while they are frozen, and give it back after."""
        if self.freeze_epochs and self.current_epoch <= self.freeze_epochs:
            head = self.network.get_submodule(head_name(self.network))
            inside_head = set(head.modules())
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and module not in inside_head:
                    module.train(self.current_epoch >= self.freeze_epochs)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop the frozen layers' gradients."""
        # Not requires_grad: DistributedDataParallel never synchronises a parameter that was frozen when it wrapped the module.
        if self.current_epoch < self.freeze_epochs:
            for parameter in self._head_and_rest()[1]:
                parameter.grad = None

    def _head_and_rest(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        head = list(self.network.get_submodule(head_name(self.network)).parameters())
        ids = {id(parameter) for parameter in head}
        return head, [parameter for parameter in self.network.parameters() if id(parameter) not in ids]

    def _step(self, batch: Sequence[Tensor], stage: str, name: str = "") -> Tensor:
        images, labels = images_and_labels(batch, self.num_classes, next(self.network.parameters()).dtype)
        logits = self(images)
        if stage != "train":
            self._count(logits)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing if stage == "train" else 0.0)
        right = logits.detach().argmax(dim=1) == (labels.argmax(dim=1) if labels.ndim == 2 else labels)
        suffix = f"/{name}" if name else ""
        options: dict[str, Any] = {"batch_size": len(images), "add_dataloader_idx": not name}
        self.log(f"{stage}/loss{suffix}", loss, prog_bar=stage != "test", sync_dist=stage != "train", **options)
        accuracy = right.float().mean()  # averaged over the epoch by the number of images
        self.log(f"{stage}/acc{suffix}", accuracy, prog_bar=True, on_step=False, on_epoch=True, sync_dist=True, **options)
        return loss

    def _count(self, logits: Tensor) -> None:
        self._bad, self._images = self._bad + not_numbers(logits).sum(), self._images + len(logits)

    def _tell_of_no_numbers(self) -> None:
        """Refuse a checkpoint whose network returns numbers for no image; warn where it does for some, or of a live network.

        A training that diverged is compared with others by its accuracy, and must not drop out of the comparison.
        """
        counts = self.trainer.strategy.reduce(torch.tensor([self._bad, self._images], device=self.device), reduce_op="sum")
        self._bad, self._images = 0, 0
        bad, images = (int(count) for count in counts)
        if bad and bad == images and self.trainer.ckpt_path:
            raise ValueError(f"checkpoint {str(self.trainer.ckpt_path)!r}: {no_numbers(self.network, bad, images)}")
        if bad:
            warnings.warn(no_numbers(self.network, bad, images), stacklevel=2)

    def _cosine(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise ValueError("schedule='cosine' ends with the training: give the Trainer max_epochs or max_steps")
        rise = max(1, round(0.05 * steps))

        def share(step: int) -> float:
            return min((step + 1) / rise, 0.5 * (1 + math.cos(math.pi * step / steps)))

        return {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, share), "interval": "step"}
