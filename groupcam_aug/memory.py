"""Out of memory: by which errors it shows, and what is said when nothing smaller is left to try."""

from __future__ import annotations

import torch

__all__ = ["exhausted", "is_out_of_memory"]

# What libraries and other devices raise as a plain RuntimeError.
_SIGNS = ("out of memory", "ALLOC_FAILED", "not enough memory", "can't allocate memory", "Unable to allocate")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out: a GPU's, MPS's, the CPU's, cuDNN's or cuBLAS's way."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def exhausted(error: BaseException, images: torch.Tensor) -> Exception:
    """The error for a pass of one image that did not fit, of the kind and with the words of `error`: others look for them.

    Args:
        error: of the last attempt.
        images: the batch, (N, C, H, W).
    """
    height, width = images.shape[-2:]
    reason = (str(error) or type(error).__name__).splitlines()[0]
    kind = MemoryError if isinstance(error, MemoryError) else torch.OutOfMemoryError
    return kind(
        f"out of memory with one image of {height} x {width} per forward pass: there is nothing below chunk=1. Free memory on "
        f"{images.device}, or use smaller images or a smaller network ({reason})"
    )
