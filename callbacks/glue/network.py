"""The user's network for a callback: by its name, muted, in the Trainer's precision, given back as it was."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torchmetrics import Metric

from groupcam_aug.callbacks.glue.compat import misconfigured, warn
from groupcam_aug.restore import replaced

__all__ = [
    "borrowed_network",
    "find_network",
    "has_lazy_parameters",
    "log_epoch",
    "reduce_together",
    "refuse",
    "warn_of_head",
]

_SHARDED = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")


def refuse(trainer: Any, module: Any, network: str | None, who: str, instead: str) -> None:
    """Refuse, at set-up, a Trainer or a module of which no network can be borrowed.

    Args:
        trainer: the Trainer.
        module: its LightningModule.
        network: dotted name of the network on the module, or None for the module itself.
        who: the callback's name, for the message.
        instead: what to do where the network is in pieces.

    Raises:
        MisconfigurationException: a sharded strategy; no name, and a module without a `forward` of its own.
    """
    kind = next((base.__name__ for base in type(trainer.strategy).__mro__ if base.__name__ in _SHARDED), None)
    if kind is not None:
        raise misconfigured(
            trainer,
            f"{who} cannot run the network outside its own step under {kind}, which spreads it over devices. {instead}",
        )
    if network is None and not _overrides_forward(module):
        raise misconfigured(
            trainer,
            f"{type(module).__name__} defines no forward(), so it is not known which network to map. Name the attribute "
            f"that maps images to logits: {who}(network=...), one of {_children(module)}",
        )


def find_network(trainer: Any, module: Any, name: str | None) -> nn.Module:
    """The network under a dotted name on the LightningModule; the module itself for None.

    Raises:
        MisconfigurationException: no network of that name; the message lists those there are.
    """
    if name is None:
        return module
    network: Any = module
    for step in name.split("."):
        network = getattr(network, step, None)
    if not isinstance(network, nn.Module):
        close = get_close_matches(name, [path for path, _ in module.named_modules() if path], n=1)
        raise misconfigured(
            trainer,
            f"{type(module).__name__} has no network {name!r} (found {type(network).__name__}); "
            + (f"did you mean {close[0]!r}? I" if close else "i")
            + f"ts modules are {_children(module)}",
        )
    return network


def has_lazy_parameters(network: nn.Module) -> bool:
    """Whether modules wait for the first step to take their shape."""
    return any(is_lazy(parameter) for parameter in network.parameters())


def reduce_together(trainer: Any) -> None:
    """Let every rank reduce, at the same moment, what has been logged with `sync_dist` so far.

    Lightning reduces a logged value when it is first read, and its progress bar reads on rank zero alone. A collective of a
    callback's own that comes before the other ranks have read would meet that reduction.
    """
    if trainer.world_size > 1:
        _ = trainer.callback_metrics


def log_epoch(trainer: Any, module: Any, values: dict[str, Any], *, logger: bool | None = None) -> None:
    """Log values of an epoch as each rank knows them, on all ranks alike: Lightning's advice to average them is beside the point.

    Args:
        trainer: the Trainer.
        module: its LightningModule.
        values: by full name.
        logger: whether loggers get them, as in `LightningModule.log`.
    """
    module.log_dict(values, on_step=False, on_epoch=True, batch_size=1, logger=logger)
    with warnings.catch_warnings():
        for name in values:
            warnings.filterwarnings("ignore", rf"It is recommended to use `self\.log\('{re.escape(name)}'")
        reduce_together(trainer)  # now, so that the advice, which Lightning gives once, falls in here


def warn_of_head(trainer: Any, module: Any, name: str | None, columns: int, who: str) -> None:
    """Warn, after a backward pass, where a layer behind the mapped network made the classes: its outputs are features then.

    Args:
        trainer: the Trainer.
        module: its LightningModule.
        name: of the network on the module; for None, the module itself, nothing is behind.
        columns: outputs of the network for an image.
        who: the callback's name, for the message.
    """
    inside = set(map(id, find_network(trainer, module, name).modules()))
    heads = [
        path
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
        and id(layer) not in inside
        and layer.in_features == columns
        and any(parameter.grad is not None for parameter in layer.parameters())
    ]
    if heads:
        warn(
            trainer,
            f"{who}(network={name!r}) maps the {columns} outputs of {name!r} as if they were classes, but {heads[0]!r} takes as "
            "many, and is trained with it. If it stands behind, give the LightningModule a forward() through both and leave "
            "network= out",
        )


@contextmanager
def borrowed_network(trainer: Any, network: nn.Module, who: str, *, check: bool = True) -> Iterator[None]:
    """A stretch of code in which `network` may run on the callback's account.

    Logging of the module and of the network is muted, gradients are off, and the Trainer's precision holds as in
    `training_step`. Modes, buffers and random numbers are `borrow.as_found`'s part.

    Args:
        trainer: the Trainer.
        network: what will run.
        who: the callback's name, for the message.
        check: look whether metrics were updated; a walk through the network, which not every step can afford.

    Raises:
        MisconfigurationException: the network's forward updates torchmetrics, which such passes would disturb, or needs more
            than the images.
    """
    module = trainer.lightning_module
    metrics = [(metric, metric.update_count) for metric in network.modules() if isinstance(metric, Metric)] if check else []
    owners = [owner for owner in {id(owner): owner for owner in (module, network)}.values() if hasattr(owner, "log_dict")]
    try:
        # no_grad first: newer Lightning exchanges torch.no_grad inside its forward context.
        with replaced(*owners, log=_mute, log_dict=_mute), torch.no_grad(), trainer.precision_plugin.forward_context():
            yield
    except TypeError as error:
        if not re.search(r"forward\(\) missing \d+ required", str(error)):
            raise
        raise misconfigured(
            trainer,
            f"{type(network).__name__} cannot be run on images alone: {error}. Name the inner network that maps images to "
            f"logits: {who}(network=...), one of {_children(module)}; or give what is missing a default",
        ) from error
    if any(metric.update_count != count for metric, count in metrics):
        raise misconfigured(
            trainer,
            f"forward() of {type(network).__name__} updates torchmetrics, which the saliency passes would disturb. Name the "
            f"inner network that maps images to logits: {who}(network=...), one of {_children(module)}",
        )


def _mute(*_args: Any, **_kwargs: Any) -> None:
    """Stands in for `log` while the network is mapped: those passes are not the user's."""


def _overrides_forward(module: Any) -> bool:
    if "forward" in vars(module):
        return True
    owner = next(base for base in type(module).__mro__ if "forward" in vars(base))
    return owner.__module__.split(".")[0] not in ("torch", "pytorch_lightning", "lightning")


def _children(module: Any) -> list[str]:
    return [name for name, child in module.named_children() if next(child.parameters(), None) is not None]
