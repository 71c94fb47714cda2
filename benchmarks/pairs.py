"""Two photographs side by side: is the map of each class on its own half?

Each photograph is squeezed to half the width; a pair counts if both classes are among the network's first five. For each
class of a pair, energy on its own half = sum of the map there over its sum everywhere (none of it without a map). A pair is
ordered rightly if the left class's map has more on the left than the right class's; not if one of them is missing.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from common import batch, conditions, filed, photographs, report, squeezenet
from rich.progress import track

from groupcam_aug import GradCAM, GroupCAM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    network = squeezenet()
    pictures, labels = photographs((224, 112))
    halves, labels = batch(pictures), torch.tensor(labels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(options.seed)).tolist()
    pairs: list[tuple[int, int]] = []
    while len(pairs) < options.pairs and len(order) > 1:
        left = order.pop()
        for right in order[:40]:
            with torch.no_grad():
                top = network(torch.cat([halves[left], halves[right]], dim=2)[None]).topk(5).indices[0].tolist()
            if {int(labels[left]), int(labels[right])} <= set(top):
                pairs.append((left, right))
                order.remove(right)
                break
    methods = {
        "Grad-CAM": GradCAM(network),
        "Group-CAM, full (G=32, theta=70)": GroupCAM(network),
        "full, mask_at=stage": GroupCAM(network, mask_at="stage"),
        "full, mask_at=target": GroupCAM(network, mask_at="target"),
        "paper": GroupCAM.for_training(network),
        "balanced": GroupCAM.for_training(network, mask_at="stage"),
        "target layer, blurred image behind": GroupCAM.for_training(network, mask_at="target"),
        "fast": GroupCAM.for_training(network, mask_at="target", baseline="zero"),
        "paper with importance weights": GroupCAM.for_training(network, weights="gradient"),
        "the same, mask_at=stage": GroupCAM.for_training(network, weights="gradient", mask_at="stage"),
        "the same, mask_at=target": GroupCAM.for_training(network, weights="gradient", mask_at="target"),
        "the same, mask_at=target, baseline=zero": GroupCAM.for_training(
            network, weights="gradient", mask_at="target", baseline="zero"
        ),
    }
    shares: dict[str, list[float]] = {name: [] for name in methods}
    ordered: dict[str, int] = dict.fromkeys(methods, 0)
    missing: dict[str, int] = dict.fromkeys(methods, 0)
    for left, right in track(pairs, "mapping"):
        image = torch.cat([halves[left], halves[right]], dim=2)[None].expand(2, -1, -1, -1)
        for name, cam in methods.items():
            maps = cam(image, labels[[left, right]])
            on_left = maps[..., :112].sum(dim=(1, 2)) / maps.sum(dim=(1, 2)).clamp(min=1e-12)
            shares[name] += [float(on_left[0]), 1 - float(on_left[1]) if maps[1].max() > 0 else 0.0]
            mapped = bool((maps.amax(dim=(1, 2)) > 0).all())
            missing[name] += not mapped
            ordered[name] += mapped and bool(on_left[0] > on_left[1])
    rows = [
        [name, sum(s > 0.5 for s in own) / len(own), sum(own) / len(own), error(own), ordered[name] / len(pairs), missing[name]]
        for name, own in shares.items()
    ]
    told = conditions("cpu", network="SqueezeNet 1.1, ImageNet", pairs=len(pairs), maps=2 * len(pairs), seed=options.seed)
    header = ["method", "more on own half", "mean share on own half", "its standard error", "pair ordered rightly"]
    report(filed("pairs", torch.device("cpu")), told, [*header, "pairs with a map missing"], rows)


def error(shares: list[float]) -> float:
    """Standard error of the mean over pairs, whose two maps count as one."""
    return statistics.stdev((a + b) / 2 for a, b in zip(shares[::2], shares[1::2], strict=True)) / (len(shares) / 2) ** 0.5


if __name__ == "__main__":
    main()
