"""Insertion and deletion of an image: ours against the authors' way, one forward pass a step, at equal settings.

Four times are taken in turns, and medians compared: the literal loop (both curves, batches of one image) in the layout the images
come in and in the fastest, ours (`insertion_deletion`, several images a call), and nothing but the network on the same number of
images in the largest batches and the fastest layout that ours uses: no implementation that runs every point can be quicker.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from common import batch, conditions, filed, photographs, report, squeezenet
from torch import Tensor, nn

from groupcam_aug import GradCAM
from groupcam_aug.blur import blur
from groupcam_aug.metrics import insertion_deletion


@torch.no_grad()
def loop(network: nn.Module, image: Tensor, scores: Tensor, label: Tensor, base: Tensor, steps: int) -> Tensor:
    """Both curves (2, steps + 1), one forward pass a step, as in the authors' ins_del_gc.py (without its trips through NumPy)."""
    order, pixels = scores.flatten().argsort(descending=True, stable=True), scores.numel()
    curves = []
    for start, finish in ((base, image), (image, base)):
        now, last, curve, done = start.clone(), finish.flatten(1), [], 0
        for j in range(steps + 1):
            count = round(j / steps * pixels)
            now.flatten(1)[:, order[done:count]] = last[:, order[done:count]]
            curve.append(network(now[None]).softmax(dim=1)[0, label])
            done = count
        curves.append(torch.stack(curve))
    return torch.stack(curves)


@torch.no_grad()
def bare(network: nn.Module, images: Tensor, count: int, chunk: int) -> None:
    """The network on `count` images, `chunk` at a time."""
    for start in range(0, count, chunk):
        network(images[: min(chunk, count - start)])


def timed(call: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["squeezenet1_1"], help="others than it have random weights")
    parser.add_argument("--images", type=int, default=4, help="in a call")
    parser.add_argument("--random", action="store_true", help="random images in place of photographs: only time counts")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0, help="0 = as torch chooses")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.random:
        images, labels = torch.randn(options.images, 3, 224, 224), [0] * options.images
    else:
        pictures, labels = photographs()
        images = batch(pictures[: options.images])
    images, targets = images.to(options.device), torch.tensor(labels[: options.images])
    chunk = 64 if options.device == "cuda" else 7  # as `insertion_deletion` chooses at 224 pixels
    rows = []
    for name in options.networks:
        torch.manual_seed(0)
        network = squeezenet() if name == "squeezenet1_1" else torchvision.models.get_model(name).eval()
        network = network.to(options.device)
        maps, base = GradCAM(network)(images, targets), blur(images)
        assert isinstance(maps, Tensor)
        layout = torch.contiguous_format if options.device == "cuda" else torch.channels_last
        many = images[:1].repeat(chunk, 1, 1, 1).contiguous(memory_format=layout)
        curves: dict[str, Tensor] = {}

        def literal(network: nn.Module = network, maps: Tensor = maps, base: Tensor = base, kept: dict = curves) -> None:
            found = [loop(network, images[i], maps[i], targets[i], base[i], options.steps) for i in range(len(images))]
            kept["loop"] = torch.stack(found)

        def ours(network: nn.Module = network, maps: Tensor = maps, kept: dict = curves) -> None:
            seen = insertion_deletion(network, images, maps, targets, steps=options.steps)
            kept["ours"] = torch.stack([seen.insertion, seen.deletion], dim=1)

        def alone(network: nn.Module = network, many: Tensor = many) -> None:
            bare(network, many, 2 * options.steps * len(images), chunk)

        copied = copy.deepcopy(network).to(memory_format=layout)

        def quick(network: nn.Module = copied, maps: Tensor = maps, base: Tensor = base, layout: Any = layout) -> None:
            laid, start = images.contiguous(memory_format=layout), base.contiguous(memory_format=layout)
            for i in range(len(images)):
                loop(network, laid[i], maps[i], targets[i], start[i], options.steps)

        spent: dict[str, list[float]] = {"loop": [], "quick": [], "ours": [], "alone": []}
        for turn in range(options.repeats + 1):
            for key, call in (("loop", literal), ("quick", quick), ("ours", ours), ("alone", alone)):
                seconds = timed(call, options.device)
                if turn:  # the first turn warms up
                    spent[key].append(1000 * seconds / len(images))
        medians = {key: float(torch.tensor(values).median()) for key, values in spent.items()}
        rows.append(
            [
                name,
                medians["loop"],
                medians["quick"],
                medians["ours"],
                medians["loop"] / medians["ours"],
                medians["quick"] / medians["ours"],
                medians["alone"],
                medians["loop"] / medians["alone"],
                float((curves["loop"] - curves["ours"]).abs().max()),
            ]
        )
    told = conditions(options.device, size=224, steps=options.steps, images=options.images, repeats=options.repeats, chunk=chunk)
    header = [
        "network",
        "loop, ms an image",
        "loop in our layout, ms",
        "ours, ms",
        "ratio",
        "ratio in our layout",
        "forwards alone, ms",
        "limit of the ratio",
    ]
    report(filed("insertion_speed", torch.device(options.device)), told, [*header, "largest difference"], rows)


if __name__ == "__main__":
    main()
