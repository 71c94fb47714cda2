"""What a Group-CAM call adds to the peak memory for growing G, each in a process of its own, and tensors alive over 200 calls.

On a CPU the peak is that of the whole process, so a call of one image goes before and no more. "leaky" is a call
that holds on to every group's pass: it shows that growth would be seen.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys

import torch
from common import conditions, filed, report


def measure(groups: int, mask_at: str, images: int, size: int) -> None:
    """In a process of its own: by how much one call raises the peak over what network and images take, as JSON (bytes)."""
    import resource

    from torchvision.models import resnet50

    from groupcam_aug import GroupCAM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = resnet50().to(device).eval()
    x = torch.randn(images, 3, size, size, device=device)
    cam = GroupCAM.for_training(network, "layer4", groups=groups, mask_at="input" if mask_at == "leaky" else mask_at)
    kept: list[torch.Tensor] = []
    if mask_at == "leaky":
        network.layer1.register_forward_hook(lambda _m, _i, out: kept.append(out.detach().clone()))
    cam(x[:1], 1)  # what is set up on first use
    kept.clear()
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        cam(x, 1)
        print(json.dumps(torch.cuda.max_memory_allocated() - before))
    else:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        cam(x, 1)
        print(json.dumps((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024))


def flat() -> list[int]:
    """Tensors alive after each 50 of 200 calls."""
    from torchvision.models import resnet18

    from groupcam_aug import GroupCAM

    cam = GroupCAM.for_training(resnet18().eval(), "layer4", groups=4)
    counts = []
    for call in range(200):
        cam(torch.randn(2, 3, 64, 64), 1)
        if call % 50 == 49:
            gc.collect()
            counts.append(sum(isinstance(o, torch.Tensor) for o in gc.get_objects()))
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(int(options.one[0]), options.one[1], options.images, options.size)
        return
    rows = []
    for mask_at in ("input", "target", "leaky"):
        for groups in options.groups:
            words = ["--one", str(groups), mask_at, "--images", str(options.images), "--size", str(options.size)]
            run = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
            rows.append([mask_at, groups, round(json.loads(run.stdout.splitlines()[-1]) / 2**20)])
            print(*rows[-1], "MiB", flush=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    told = conditions(
        device, network="ResNet-50 fp32", images=options.images, size=options.size, tensors_after_50_100_150_200_calls=flat()
    )
    report(filed("memory", device), told, ["mask_at", "G", "MiB that the call adds to the peak"], rows)


if __name__ == "__main__":
    main()
