"""The Gaussian blur of the method: kernel 51 and sigma 50 at 224 pixels, scaled to other sizes."""

from __future__ import annotations

from threading import Lock
from typing import Any

import torch
from torch import Tensor

from groupcam_aug.arguments import check_number, check_whole
from groupcam_aug.borrow import plain_arithmetic

__all__ = ["blur", "blur_size", "check_blur"]

_MOST_BYTES = 64 * 2**20  # of matrices that are kept, by all devices: some 60 sides of 512 pixels, 4 of 2,048
_matrices: dict[Any, Tensor] = {}  # those used last at the end
_guard = Lock()


def blur(images: Tensor, kernel_size: int | None = None, sigma: float | None = None) -> Tensor:
    """Gaussian blur with reflected borders.

    The two one-dimensional passes are banded matrices, borders included, so the blur is two matrix products: exact in
    float32 under any TF32 or autocast setting of convolutions, and quick on every device.

    Args:
        images: (N, C, H, W), floating point, any range.
        kernel_size: odd, in pixels. Default: 51 at a shorter side of 224, in proportion elsewhere (see `blur_size`).
        sigma: in pixels. Default: 50 at 224, in proportion elsewhere.

    Returns:
        (N, C, H, W), the dtype and memory format of `images`; computed in float32 (float64 for float64 images).

    Raises:
        ValueError: the shorter side is under 3 pixels, or too small for `kernel_size`; an even kernel; sigma <= 0.
    """
    height, width = images.shape[-2:]
    default_kernel, default_sigma = blur_size(height, width)
    check_blur(kernel_size, sigma)
    kernel_size = default_kernel if kernel_size is None else int(kernel_size)
    sigma = default_sigma if sigma is None else float(sigma)
    if kernel_size // 2 >= min(height, width):
        raise ValueError(
            f"kernel_size={kernel_size} does not fit images of {height} x {width}: at most "
            f"{2 * min(height, width) - 1} with reflected borders. Leave kernel_size=None to scale it with the image"
        )
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    rows = _blur_matrix(height, kernel_size, sigma, dtype, images.device)
    columns = _blur_matrix(width, kernel_size, sigma, dtype, images.device)
    with plain_arithmetic(images.device):
        result = torch.matmul(rows, torch.matmul(images.to(dtype), columns.t()))
    memory_format = torch.channels_last if _is_channels_last(images) else torch.contiguous_format
    return result.to(images.dtype).contiguous(memory_format=memory_format)


def check_blur(kernel_size: int | None, sigma: float | None) -> None:
    """Raise a ValueError unless the kernel is odd and sigma positive, or None."""
    check_whole("kernel_size", kernel_size, 1, optional=True)
    if kernel_size is not None and kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}")
    check_number("sigma", sigma, above=True, optional=True)


def blur_size(height: int, width: int) -> tuple[int, float]:
    """Kernel size and sigma, both in pixels, for images of `height` x `width` pixels.

    With s the shorter side: 2 floor(51 s / 448) + 1, at least 3 and at most the largest odd number <= s; sigma 50 s / 224.

    Raises:
        ValueError: the shorter side is under 3 pixels.
    """
    side = min(height, width)
    if side < 3:
        raise ValueError(f"images of {height} x {width} pixels are too small to blur: the shorter side must be at least 3")
    largest_odd = side if side % 2 else side - 1
    return min(max(2 * (51 * side // 448) + 1, 3), largest_odd), 50 * side / 224


def _is_channels_last(images: Tensor) -> bool:
    return images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()


def _blur_matrix(side: int, kernel_size: int, sigma: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(side, side): row i holds the weights of pixel i's neighbours, reflected at the borders; each row sums to 1."""
    key = (side, kernel_size, sigma, dtype, device)
    with _guard:
        matrix = _matrices.pop(key, None)
    if matrix is None:
        matrix = _made(side, kernel_size, sigma, dtype, device)
    with _guard:
        _matrices[key] = matrix  # as the one used last
        kept = sum(other.nbytes for other in _matrices.values())
        while kept > _MOST_BYTES:
            kept -= _matrices.pop(next(iter(_matrices))).nbytes
    return matrix


def _made(side: int, kernel_size: int, sigma: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    # Built outside any inference mode, since the cache outlives the caller's.
    with torch.inference_mode(False), torch.no_grad():
        offsets = torch.arange(kernel_size) - kernel_size // 2
        weights = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
        weights /= weights.sum()
        neighbours = (torch.arange(side)[:, None] + offsets).abs()
        neighbours = torch.where(neighbours >= side, 2 * (side - 1) - neighbours, neighbours)
        matrix = torch.zeros(side, side, dtype=torch.float64)
        matrix.scatter_add_(1, neighbours, weights.expand(side, -1))
        return matrix.to(device=device, dtype=dtype)
