"""The method written out literally, one image at a time, loops and all: slow, and the judge of the real thing.

Only the formulas of docs/method.md; nothing from the package is imported.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F


def blur(x):
    """Gaussian blur of one image (C, H, W): every output pixel is a sum over its reflected neighbours."""
    side = min(x.shape[-2:])
    kernel = max(2 * math.floor(51 * side / 448) + 1, 3)
    kernel = min(kernel, side if side % 2 else side - 1)
    sigma = 50 * side / 224
    offsets = torch.arange(kernel, dtype=torch.float64) - kernel // 2
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).to(x.dtype)
    pad = kernel // 2
    padded = F.pad(x[None], (pad, pad, pad, pad), mode="reflect")
    window = (weights[:, None] * weights[None, :])[None, None].repeat(x.shape[0], 1, 1, 1)
    return F.conv2d(padded, window, groups=x.shape[0])[0]


def minmax(z):
    low, high = z.min(), z.max()
    return torch.zeros_like(z) if not high > low else (z - low) / (high - low)


def upsample(m, size):
    return F.interpolate(m[None, None], size, mode="bilinear", align_corners=False)[0, 0]


def activations_and_gradient(model, layer, x, target):
    """A and dy_c/dA of one image, by an ordinary backward pass through a hooked layer."""
    kept = {}
    handle = model.get_submodule(layer).register_forward_hook(lambda m, i, o: kept.update(out=o) or o.clone())
    x = x[None].clone().requires_grad_()
    y = model(x)[0, target]
    handle.remove()
    (gradient,) = torch.autograd.grad(y, kept["out"])
    return kept["out"][0].detach(), gradient[0]


def grad_cam_raw(model, layer, x, target):
    """sum_k w_k A_k, before ReLU, on the layer's grid."""
    A, gradient = activations_and_gradient(model, layer, x, target)
    return sum(gradient[k].mean() * A[k] for k in range(A.shape[0]))


def grad_cam(model, layer, x, target):
    return minmax(upsample(grad_cam_raw(model, layer, x, target).relu(), x.shape[-2:]))


def group_sums(model, layer, x, target, groups, weights):
    """sum over each group of w_k A_k, before ReLU."""
    A, gradient = activations_and_gradient(model, layer, x, target)
    w = [gradient[k].mean() if weights == "gradient" else torch.ones((), dtype=A.dtype) for k in range(A.shape[0])]
    size, extra = divmod(A.shape[0], groups)
    sums, k = [], 0
    for g in range(groups):
        n = size + (1 if g < extra else 0)
        total = torch.zeros_like(A[0])
        for _ in range(n):
            total = total + w[k] * A[k]
            k += 1
        sums.append(total)
    return sums


def group_cam(model, layer, x, target, groups=32, weights="gradient", denoise=70.0, variant="paper"):
    """S of one image (C, H, W)."""

    def p(image):
        return model(image[None])[0].detach().double().softmax(0)[target].to(x.dtype)

    b = blur(x)
    S = torch.zeros(x.shape[-2:], dtype=x.dtype)
    for total in group_sums(model, layer, x, target, groups, weights):
        M = total.relu()
        if denoise is not None and variant == "paper":
            bound = np.percentile(M.numpy(), denoise)
            M = torch.where(M > bound, M, torch.zeros_like(M))
        U = upsample(M, x.shape[-2:])
        mask = minmax(U)
        if mask.max() == 0:
            continue
        alpha = p(x * mask + b * (1 - mask)) - p(b)
        S = S + (alpha.relu() * U if variant == "head" else alpha * mask)
    return minmax(S.relu())


def augment(x, S):
    """x_hat of one image."""
    keep = (S >= S.mean()).to(x.dtype)
    return x * keep + blur(x) * (1 - keep)
