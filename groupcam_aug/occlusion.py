"""Occlusion (Zeiler & Fergus 2014): how much of a class's probability goes when a window of the image is hidden."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from groupcam_aug.arguments import check_whole
from groupcam_aug.cam import Output
from groupcam_aug.metrics.localisation import Located
from groupcam_aug.metrics.stability import spearman
from groupcam_aug.scoring import Scorer, Substrate, check_maps, make_substrate
from groupcam_aug.targets import Activation, Targets

__all__ = ["Occlusion", "occlusion", "window_count"]


@dataclass(frozen=True)
class Occlusion:
    """The result of `occlusion`: N images, u x v windows."""

    drops: Tensor  # (N, u, v) probability of the class on the image, less that with the window hidden; signed
    rows: Tensor  # (u, H) 1 where the windows of that row lie, else 0
    columns: Tensor  # (v, W)

    @property
    def maps(self) -> Tensor:
        """(N, H, W) each pixel's mean drop over the windows that hide it; signed."""
        total = torch.einsum("uh,nuv,vw->nhw", self.rows, self.drops, self.columns)
        return total / (self.rows.sum(dim=0)[:, None] * self.columns.sum(dim=0))

    def correlation(self, maps: Tensor) -> Located:
        """Are the windows that matter those that a map marks (Grad-CAM, Selvaraju et al. 2019, section 5.3)?

        Spearman's rank correlation, over the windows of an image, of the drop with the map's mean in the window.

        Args:
            maps: (N, H, W) of the same images.

        Returns:
            `Located`, `value` -1 to 1, higher is better; a map, or a set of drops, that is constant or not finite is `undefined`.

        Raises:
            ValueError: maps of another size.
        """
        maps = check_maps(maps, self.maps[:, None]).to(self.drops)
        means = torch.einsum("uh,nhw,vw->nuv", self.rows, maps, self.columns)
        means = means / (self.rows.sum(dim=1)[:, None] * self.columns.sum(dim=1))
        rho = spearman(means, self.drops)
        flat = maps.amax(dim=(1, 2)) <= maps.amin(dim=(1, 2))
        flat = flat | (self.drops.amax(dim=(1, 2)) <= self.drops.amin(dim=(1, 2)))
        undefined = flat | ~maps.isfinite().all(dim=(1, 2)) | ~self.drops.isfinite().all(dim=(1, 2))
        return Located(torch.where(undefined, 0.0, rho).float(), torch.ones_like(undefined), undefined)


def occlusion(
    model: nn.Module,
    images: Tensor,
    targets: Targets = None,
    *,
    window: int | None = None,
    stride: int | None = None,
    fill: Substrate = "zeros",
    activation: Activation = "softmax",
    chunk: int | None = None,
    output: Output = None,
    preprocess: Callable[[Tensor], Tensor] | None = None,
) -> Occlusion:
    """Hide each window of each image in turn; one pass for each window and one for the image, see `window_count`.

    Args:
        model: a classifier; given back as found.
        images: (N, C, H, W), as the network takes them.
        targets: as for `insertion_deletion`.
        window: pixels a side. Default: a seventh of the shorter side of the images.
        stride: pixels between windows. Default: half the window. The last ones may end at the border.
        fill: what stands in a window. Default: "zeros", mean grey of normalised images.
        activation: what turns logits into p.
        chunk: most images per pass; see `GroupCAM`.
        output: where the logits are in what the network returns.
        preprocess: applied to images before the network sees them.

    Returns:
        `Occlusion`, on the images' device.

    Raises:
        ValueError: a window larger than the image, or a stride larger than the window, which leaves pixels out.
    """
    scorer = Scorer(model, images, targets, activation, chunk, output, preprocess)
    height, width = scorer.images.shape[-2:]
    window, stride = _sides(height, width, window, stride)
    rows, columns = (_cover(side, window, stride, scorer.images.device, scorer.dtype) for side in (height, width))
    count, wide = len(rows) * len(columns), len(columns)
    drops = rows.new_zeros(len(scorer.images), count)
    if len(drops):
        with scorer.borrowed():
            base = make_substrate(scorer.images, fill)
            for part in scorer.parts(drops.numel()):
                number = torch.arange(drops.numel(), device=drops.device)[part]
                which, place = number // count, number % count
                hidden = rows[place // wide][:, :, None].bool() & columns[place % wide][:, None].bool()
                mixed = torch.where(hidden[:, None], base[which], scorer.images[which])
                drops.view(-1)[part] = (scorer.clean[which] - scorer.scores_of(which, mixed)).to(drops.dtype)
    return Occlusion(drops.view(-1, len(rows), wide), rows, columns)


def window_count(height: int, width: int, window: int | None = None, stride: int | None = None) -> int:
    """How many windows `occlusion` hides in an image."""
    window, stride = _sides(height, width, window, stride)
    return _along(height, window, stride) * _along(width, window, stride)


def _sides(height: int, width: int, window: int | None, stride: int | None) -> tuple[int, int]:
    window = max(1, min(height, width) // 7) if window is None else window
    check_whole("window", window, 1)
    stride = max(1, window // 2) if stride is None else stride
    check_whole("stride", stride, 1)
    if window > min(height, width) or stride > window:
        raise ValueError(f"need stride <= window <= the image's sides, got {stride=}, {window=} for {height} x {width} pixels")
    return window, stride


def _along(side: int, window: int, stride: int) -> int:
    return -(-(side - window) // stride) + 1


def _cover(side: int, window: int, stride: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(windows, side) 1 where each lies."""
    start = stride * torch.arange(_along(side, window, stride), device=device)[:, None]
    place = torch.arange(side, device=device)
    return ((place >= start) & (place < start + window)).to(dtype)
