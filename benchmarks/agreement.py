"""Maps with compiled passes against eager ones, on published weights: how far they are apart, graphs, seconds of compiling.

Exact maps for the labels, G = 16, without importance weights and with them. Needs GROUPCAM_DATA and a C++ compiler.
"""

from __future__ import annotations

import argparse

import torch
from common import Setting, add_device_options, conditions, filed, report
from fidelity import PLACES, pretrained

from groupcam_aug import GroupCAM
from groupcam_aug.augment import has_map, keep_mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_device_options(parser)
    parser.add_argument("--networks", nargs="+", choices=tuple(PLACES), default=list(PLACES))
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    setting = Setting(options)
    rows = []
    for name in options.networks:
        network, images, labels = pretrained(name, options.images)
        network = setting.put(network)
        for weights in ("none", "gradient"):
            eager, quick = (GroupCAM.for_training(network, weights=weights, compile=how) for how in (False, True))  # type: ignore[arg-type]
            apart, ious = [], []
            for part in torch.arange(len(images)).split(options.batch):
                x, y = setting.put(images[part]), labels[part].to(setting.device)
                with setting.passes():
                    expected, found = eager(x, y), quick(x, y)
                mapped = has_map(expected) & has_map(found)
                a, b = keep_mask(expected[mapped]), keep_mask(found[mapped])
                ious += ((a & b).sum(dim=(1, 2)) / (a | b).sum(dim=(1, 2))).tolist()
                apart += (expected - found)[mapped].abs().amax(dim=(1, 2)).tolist()
            assert quick.compiled is not None and not quick.compiled.refusal, "passes are eager"
            middle = sorted(apart)[len(apart) // 2]
            least = min(ious)
            rows.append([name, weights, len(apart), middle, max(apart), least, quick.compiled.graphs, quick.compiled.seconds])
            print(*rows[-1], flush=True)
    told = conditions(setting.device, images=options.images, batch=options.batch, **setting.told)
    header = ["network", "weights", "maps", "median difference", "largest difference", "least IoU of masks", "graphs"]
    report(filed("agreement", setting.device), told, [*header, "seconds of compiling"], rows)


if __name__ == "__main__":
    main()
