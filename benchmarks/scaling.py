"""How the cost of maps grows: with the batch, the image's side, G, and the number of DDP processes (each maps its own share).

Gradient-free maps, in F: one evaluation forward pass of the bare network on the same images, measured in the same run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from common import Setting, add_device_options, conditions, filed, relative, report, spread
from torch import Tensor, nn

from groupcam_aug import GroupCAM

MODES: dict[str, dict[str, Any]] = {
    "paper": {},
    "balanced": {"mask_at": "stage"},
    "target layer, blurred image behind": {"mask_at": "target"},
    "fast": {"mask_at": "target", "baseline": "zero"},
}


def measured(network: nn.Module, images: Tensor, groups: int, repeats: int, setting: Setting) -> list[Any]:
    """Ms per image of a bare forward pass, then each mode in F."""
    cams = {mode: GroupCAM.for_training(network, groups=groups, **how) for mode, how in MODES.items()}
    size = cams["paper"].passes(images)

    def bare() -> None:
        with torch.no_grad(), setting.passes():
            for part in images.split(size):
                network(part)

    def called(cam: GroupCAM) -> Callable[[], Any]:
        def call() -> Any:
            with setting.passes():
                return cam(images, 1)

        return call

    taken = setting.seconds({"bare": bare, **{mode: called(cam) for mode, cam in cams.items()}}, repeats)
    unit = spread(taken["bare"])[0]
    return [1000 * unit / len(images), *(relative(taken[mode], taken["bare"])[0] for mode in MODES)]


def _rank(rank: int, world: int, store: str, options: argparse.Namespace) -> None:
    """One DDP process: the median seconds of mapping its own batch while the others map theirs."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    if options.device.startswith("cuda"):
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", init_method=f"file://{store}", rank=rank, world_size=world
    )
    torch.manual_seed(0)
    options.device, options.threads = str(device), 1
    setting = Setting(options)
    network = setting.put(torchvision.models.get_model(options.network)).eval()
    wrapped = nn.parallel.DistributedDataParallel(network, device_ids=[rank] if device.type == "cuda" else None)
    images = setting.put(torch.randn(options.batch[0], 3, options.size[-1], options.size[-1]))
    cam, seconds = GroupCAM.for_training(wrapped, mask_at="target"), []
    for _ in range(1 + options.repeats):
        torch.distributed.barrier()
        start = time.perf_counter()
        with setting.passes():
            cam(images, 1).sum().item()
        seconds.append(time.perf_counter() - start)
    if rank == 0:
        with open(f"{store}.seconds", "w") as file:  # noqa: PTH123
            file.write(str(statistics.median(seconds[1:])))
    torch.distributed.destroy_process_group()


def processes(world: int, options: argparse.Namespace) -> float:
    """Median ms per image and process."""
    with tempfile.TemporaryDirectory() as folder:
        store = os.path.join(folder, "store")  # noqa: PTH118
        torch.multiprocessing.spawn(_rank, (world, store, options), nprocs=world)
        with open(f"{store}.seconds") as file:  # noqa: PTH123
            return 1000 * float(file.read()) / options.batch[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_device_options(parser)
    parser.add_argument("--network", default="resnet18", help="of torchvision (default: %(default)s)")
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--size", type=int, nargs="+", default=[64, 128, 224])
    parser.add_argument("--groups", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="DDP processes, one thread each")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    setting = Setting(options)
    torch.manual_seed(0)
    network = setting.put(torchvision.models.get_model(options.network)).eval()
    rows: list[list[Any]] = []

    def add(what: str, count: int, size: int, groups: int) -> None:
        images = setting.put(torch.randn(count, 3, size, size))
        rows.append([what, count, size, groups, *measured(network, images, groups, options.repeats, setting)])
        print(*rows[-1], flush=True)

    middle = options.batch[len(options.batch) // 2]
    for count in options.batch:
        add("batch", count, options.size[-1], 16)
    for size in options.size:
        add("side", middle, size, 16)
    for groups in options.groups:
        add("G", middle, options.size[-1], groups)
    told = conditions(
        setting.device,
        network=f"torchvision {options.network}, random weights",
        repeats=options.repeats,
        threads=torch.get_num_threads(),
        **setting.told,
    )
    header = ["grows", "batch", "side", "G", "F, ms per image", *(f"{mode}, in F" for mode in MODES)]
    half = "_bf16" * setting.half
    report(filed(f"scaling{half}", setting.device), told, header, rows)
    most = torch.cuda.device_count() if setting.device.type == "cuda" else max(options.processes)
    if most < max(options.processes):
        print(f"{most} GPU: as many processes and no more")
    shares = [[world, processes(world, options)] for world in options.processes if world <= most]
    told["batch of each process"] = options.batch[0]
    report(
        filed(f"scaling_processes{half}", setting.device),
        told | {"threads": "1 a process"},
        ["DDP processes", "target mode, ms per image of each process"],
        shares,
    )


if __name__ == "__main__":
    main()
