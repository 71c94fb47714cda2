"""What a map explains: class indices, rows of class weights, a callable, or the network's own first choice."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from groupcam_aug.memory import is_out_of_memory

__all__ = [
    "IGNORED",
    "Activation",
    "OfRows",
    "Target",
    "Targets",
    "class_labels",
    "first_choice",
    "read_target",
    "select_output",
    "selected",
    "targets_of",
]

Targets = int | Sequence[int] | Tensor | Callable[[Tensor], Tensor] | Callable[[Tensor, Tensor], Tensor] | None
Activation = Literal["softmax", "sigmoid"]
IGNORED = -100  # the label of an image without one, as losses of torch have it


class Target:
    """Targets of one batch, checked against its logits: `value` is y (before softmax), `score` is p (after it).

    For class indices y_c and p_c are the logit and the probability of the class; for rows q of weights they are
    sum_c q_c y_c / sum_c q_c and sum_c q_c p_c / sum_c q_c (a row of zeros: see `read_target`). A callable on the outputs
    stands for both. With a single sigmoid logit z, class 1 has y = z and class 0 has y = -z; with a single probability p, class 0
    has 1 - p.

    Args:
        rows: (N,) int64 class indices, (N, classes) soft rows, or the callable `(N, ...) -> (N,)`.
        activation: "softmax" or "sigmoid", what turns logits into probabilities; None: they are probabilities already.
    """

    def __init__(self, rows: Tensor | Callable[..., Tensor], activation: Activation | None) -> None:
        self.rows, self.activation = rows, activation

    def value(self, logits: Tensor) -> Tensor:
        """y, shape (n,): (n, classes) logits of images whose targets these are."""
        if not isinstance(self.rows, Tensor):
            return _called(self.rows, logits)
        return _weighted(_two_sided(logits, self.activation), self.rows)

    def score(self, logits: Tensor) -> Tensor:
        """p, shape (n,)."""
        if not isinstance(self.rows, Tensor):
            return _called(self.rows, logits)
        logits = _two_sided(logits, self.activation)
        if self.activation is not None:
            logits = logits.sigmoid() if self.activation == "sigmoid" else logits.softmax(dim=1)
        return _weighted(logits, self.rows)

    def part(self, images: slice | Tensor, copies: int = 1) -> Target:
        """The targets of a part of the batch (a slice, or indices), repeated whole `copies` times: those of masked images."""
        if isinstance(self.rows, OfRows):
            return Target(self.rows.part(images, copies), self.activation)
        if not isinstance(self.rows, Tensor):
            return self
        rows = self.rows[images]
        return Target(rows.repeat(copies, *[1] * (rows.ndim - 1)) if copies > 1 else rows, self.activation)


class OfRows:
    """A callable target that is also given which images of the batch it is called for.

    Args:
        call: `(outputs of n rows, (n,) int64 indices of their images) -> (n,)`.
        index: (N,) int64, the images of the batch that rows are of.
    """

    def __init__(self, call: Callable[..., Tensor], index: Tensor) -> None:
        self.call, self.index = call, index

    def __call__(self, outputs: Tensor) -> Tensor:
        """The values of all these rows, (N,)."""
        if len(outputs) != len(self.index):
            raise ValueError(f"a target callable for {len(self.index)} rows was given the outputs of {len(outputs)}")
        return self.call(outputs, self.index.to(outputs.device, non_blocking=True))

    def part(self, rows: slice | Tensor, copies: int = 1) -> OfRows:
        """The same for some of the rows, repeated whole `copies` times."""
        return OfRows(self.call, self.index[rows if isinstance(rows, slice) else rows.to(self.index.device)].repeat(copies))


def takes_rows(target: Callable[..., Tensor]) -> bool:
    """Whether a callable target is to be given the indices of the images, too: two positional parameters have no default."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # of a builtin
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.kind in positional and one.default is one.empty for one in parameters) == 2


def first_choice(logits: Tensor, activation: Activation | None) -> Tensor:
    """(N,) int64, each image's top-1 class; of a single logit class 1 above 0, of a single probability (None) above 0.5."""
    if logits.shape[1] == 1:
        return (logits[:, 0] > (0.5 if activation is None else 0)).long()
    return logits.argmax(dim=1)


def targets_of(targets: Targets, part: slice | Tensor, count: int) -> Targets:
    """The targets of a part of a batch of `count` images, a slice or (n,) int64 indices; what stands for all images stays."""
    if isinstance(targets, Tensor):
        if not targets.ndim:
            return targets
        return targets[part] if isinstance(part, slice) else targets.index_select(0, part.to(targets.device))
    if isinstance(targets, list | tuple):
        return targets[part] if isinstance(part, slice) else [targets[i] for i in part.tolist()]
    if isinstance(targets, OfRows):
        return targets.part(part)
    if callable(targets) and takes_rows(targets):
        return OfRows(targets, torch.arange(count)).part(part)
    return targets


def read_target(
    targets: Targets,
    logits: Tensor,
    activation: Activation | None,
    *,
    check: bool = True,
    unpack: Callable[[Tensor], Any] | None = None,
) -> Target:
    """Check `targets` against the (N, classes) logits of their batch; a callable takes outputs of any shape (N, ...).

    Args:
        targets: int or 0-dim tensor (every image), (N,) int64 tensor or sequence of int, (N, classes) one-hot, soft or multi-hot
            weights (integer or floating point, not negative), a callable, or None for each image's top-1 class. An image
            without a label, a row of zeros or the index `IGNORED`, stands for its top-1 class, too. A callable is given the
            outputs of n rows, which may be masked copies of some images, and returns (n,); if two positional parameters of
            it have no default it is also given the (n,) int64 indices of their images in the batch.
        logits: (N, classes); of a callable (N, ...).
        activation: "softmax" or "sigmoid"; None: `logits` are probabilities already.
        check: whether values are looked at (class range, negative weights); on an accelerator this waits for the device.
        unpack: what a callable is given in place of `logits`, made from them. Default: themselves.

    Raises:
        TypeError: targets of another kind, or floating-point indices.
        ValueError: wrong length or number of classes, a class outside the logits, negative weights, softmax of one logit.
    """
    if callable(targets) and not isinstance(targets, Tensor):
        call: Callable[..., Tensor] = OfRows(targets, torch.arange(len(logits))) if takes_rows(targets) else targets
        return Target(call if unpack is None else _unpacking(call, unpack), activation)
    if logits.ndim != 2:
        raise ValueError(
            f"the network must return logits of shape (N, classes), got {tuple(logits.shape)}; "
            + (
                "for one value an image give output=lambda y: y[:, None]"
                if logits.ndim == 1
                else "if they are elsewhere in its output, choose them with output="
            )
            + "; or give targets as a callable on what it returns, (n, ...) -> (n,)"
        )
    count, classes = logits.shape
    if classes == 1 and activation == "softmax":
        raise ValueError(
            "the network returns a single logit, whose softmax is always 1: use activation='sigmoid' for a yes or no; for a "
            "regression give targets as a callable, lambda y: y[:, 0], or -y[:, 0] for what speaks for less (callbacks map "
            "classes only: call SaliencyBlur with such targets inside training_step)"
        )
    if targets is None:
        return Target(first_choice(logits, activation), activation)
    if isinstance(targets, bool) or not isinstance(targets, Integral | Tensor | Sequence) or isinstance(targets, str):
        raise TypeError(
            f"targets must be an int, (N,) class indices, soft rows (N, classes), a callable or None; "
            f"got {type(targets).__name__}"
        )
    if isinstance(targets, Integral):
        rows = torch.full((count,), int(targets), dtype=torch.long)  # on the CPU, where looking at it costs nothing
    else:
        rows = targets if isinstance(targets, Tensor) else _tensor(targets)
    rows = rows.detach()
    if not rows.ndim:
        rows = rows.expand(count)
    if classes == 1 and rows.ndim == 1 and rows.is_floating_point():
        rows = rows[:, None]  # binary labels as they are written for BCEWithLogitsLoss
    _check_target(rows, count, classes, look=check or rows.device.type == "cpu")
    # What follows makes new tensors: autograd refuses those of Lightning's validation, test and predict steps (inference mode).
    top = first_choice(logits, activation)
    if rows.ndim == 1:
        rows = rows.to(device=logits.device, dtype=torch.long)
        return Target(torch.where(rows == IGNORED, top, rows), activation)
    rows = rows.to(device=logits.device, dtype=logits.dtype)
    if rows.shape[1] > 1:  # a single column of 0 says no
        rows = torch.where((rows == 0).all(dim=1, keepdim=True), F.one_hot(top, rows.shape[1]).to(rows.dtype), rows)
    return Target(rows, activation)


def class_labels(targets: Any, count: int) -> tuple[Tensor | None, Tensor | None]:
    """The classes of a batch, for those who count or name them: no values are looked at, and nothing waits for the device.

    Args:
        targets: of the batch, in any form; a single column, or floating point in one dimension, says yes (above 0.5) or no.
        count: N, images in the batch.

    Returns:
        (N,) int64 class indices, of several the heaviest; and the soft rows (N, classes) they come from, which sum to 1 (None
        where each image has one class). (None, None) if the targets say no class.
    """
    if isinstance(targets, int) and not isinstance(targets, bool):
        targets = [targets] * count
    if isinstance(targets, list | tuple) and all(isinstance(item, int) for item in targets):
        targets = torch.tensor(targets)
    if not isinstance(targets, Tensor) or targets.ndim not in (1, 2) or len(targets) != count or targets.is_complex():
        return None, None
    targets = targets.detach().as_subclass(Tensor)
    if targets.ndim == 2 and targets.shape[1] > 1:
        weights = targets.float().clamp(min=0)
        return weights.argmax(dim=1), weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-12)
    labels = targets[:, 0] if targets.ndim == 2 else targets
    return (labels > 0.5 if labels.is_floating_point() else labels).long(), None


def select_output(output: Any, select: str | int | Callable[[Any], Any] | None) -> Tensor:
    """The logits in what a network returned.

    Args:
        output: a tensor, or a tuple, list, mapping or object that holds it.
        select: key, index, attribute name or callable. None: a bare tensor, or the field `logits` of a mapping or object.

    Raises:
        TypeError: no tensor there; the message lists what is there.
    """
    logits = selected(output, select)
    if isinstance(logits, Tensor):
        return logits
    raise TypeError(
        f"no logits found in the network's output, which holds {_describe(output)}; "
        "name them with output= (a key, an index, an attribute, or a callable on the output)"
    )


def selected(output: Any, select: str | int | Callable[[Any], Any] | None) -> Any:
    """What `select_output` chooses, whatever that is; None where there is nothing."""
    logits = output
    if callable(select):
        logits = select(output)
    elif select is not None:
        if isinstance(output, Mapping) or (isinstance(select, int) and isinstance(output, tuple | list)):
            try:
                logits = output[select]  # type: ignore[index]
            except (KeyError, IndexError):
                raise TypeError(f"output={select!r} is not in the network's output, which holds {_describe(output)}") from None
        else:
            logits = getattr(output, str(select), None)
    elif isinstance(output, Mapping):
        logits = output.get("logits")
    elif not isinstance(output, Tensor):
        logits = getattr(output, "logits", None)
    return logits


def _tensor(targets: Any) -> Tensor:
    try:
        return torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError):
        kinds = sorted({type(item).__name__ for item in targets})
        raise TypeError(
            f"targets is a {type(targets).__name__} of {', '.join(kinds)}: give one int an image, a tensor of rows "
            "(torch.stack), or one callable for the whole batch, (n, classes) -> (n,)"
        ) from None


def _describe(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"the keys {list(output)}"
    if isinstance(output, tuple | list):
        return f"{len(output)} items of types {[type(item).__name__ for item in output]}"
    names = [name for name in getattr(output, "__dict__", {}) if not name.startswith("_")]
    return f"{type(output).__name__}" + (f" with {names}" if names else "")


def _check_target(rows: Tensor, count: int, classes: int, *, look: bool) -> None:
    sides = max(classes, 2)
    if rows.ndim not in (1, 2) or len(rows) != count:
        raise ValueError(
            f"targets of shape {tuple(rows.shape)} do not fit a batch of {count} images: "
            f"give ({count},) class indices or ({count}, {classes}) weights"
        )
    if rows.ndim == 1:
        if rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool:
            raise TypeError(
                f"class indices must be integers, got {rows.dtype}; weights over classes need the shape ({count}, {classes})"
            )
        if look and bool((outside := ((rows < 0) & (rows != IGNORED)) | (rows >= sides)).any()):
            raise ValueError(
                f"target {rows[outside][0].item()} is outside the {sides} classes of the network (0 to {sides - 1}); "
                f"{IGNORED} is an image without a label"
            )
    else:
        if rows.shape[1] != sides and rows.shape[1] != classes:
            raise ValueError(f"targets weigh {rows.shape[1]} classes, but the network has {classes}")
        if rows.is_complex():
            raise TypeError("weights over classes must be real")
        if look and count and bool((~(rows >= 0)).any()):
            raise ValueError("weights over classes must be non-negative numbers")


def _called(target: Callable[..., Tensor], logits: Tensor) -> Tensor:
    alike = (
        ""
        if isinstance(target, OfRows)
        else ". It is called with parts of the batch and with masked copies, so it must treat rows alike; one that holds a thing "
        "per image takes a second argument, the (n,) indices of the rows' images in the batch: "
        "lambda y, rows: y[torch.arange(len(y)), words[rows]]"
    )
    try:
        value = target(logits)
    except (IndexError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(f"the target callable fails on outputs of the shape {tuple(logits.shape)} ({error}){alike}") from error
    if not isinstance(value, Tensor) or value.shape != logits.shape[:1]:
        kind = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"a target callable must return one value per image, shape ({len(logits)},); got {kind}{alike}")
    return value


def _unpacking(call: Callable[..., Tensor], unpack: Callable[[Tensor], Any]) -> Callable[..., Tensor]:
    if isinstance(call, OfRows):
        inner = call.call
        return OfRows(lambda outputs, rows: inner(unpack(outputs), rows), call.index)
    return lambda outputs: call(unpack(outputs))


def _two_sided(logits: Tensor, activation: Activation | None) -> Tensor:
    """A single logit z as the two classes it stands for, (-z, z); a single probability p as (1 - p, p)."""
    if logits.shape[1] > 1:
        return logits
    return torch.cat([1 - logits if activation is None else -logits, logits], dim=1)


def _weighted(values: Tensor, rows: Tensor) -> Tensor:
    if rows.ndim == 1:
        return values.gather(1, rows[:, None])[:, 0]
    if rows.shape[1] == 1:  # weights of the positive class alone
        rows = torch.cat([1 - rows, rows], dim=1)
    total = rows.sum(dim=1)
    return (values * rows).sum(dim=1) / torch.where(total > 0, total, torch.ones_like(total))
