"""What the benchmarks share: the conditions, the result files, the photographs."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from tables import shown
from torch import Tensor, nn
from torchvision.transforms import v2

RESULTS = Path(os.environ.get("GROUPCAM_RESULTS") or Path(__file__).parent / "results")
_FLOATS = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
NORMALISE = v2.Compose([*_FLOATS, v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
NORMALISE_HALF = v2.Compose([*_FLOATS, v2.Normalize((0.5,) * 3, (0.5,) * 3)])  # of EfficientNet-Lite0
EFFICIENTNET = "tf_efficientnet_lite0"


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Where and in which precision networks run."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16: autocast (default: %(default)s)")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--threads", type=int, help="of torch on the CPU (default: its own choice)")


class Setting:
    """The options of `add_device_options`, applied to networks, images and passes."""

    def __init__(self, options: argparse.Namespace) -> None:
        if options.threads:
            torch.set_num_threads(options.threads)
        self.device = torch.device(options.device)
        self.half = options.precision == "bf16"
        self.format = torch.channels_last if options.channels_last else torch.contiguous_format
        self.told = {"precision": options.precision, "memory format": str(self.format).removeprefix("torch.")}

    def put(self, thing: Any) -> Any:
        """A network or images, on the device and in the memory format."""
        return thing.to(device=self.device, memory_format=self.format)

    def passes(self) -> AbstractContextManager[Any]:
        """The context of a training step or forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half)

    def wait(self) -> None:
        """Until the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak(self, call: Callable[[], Any]) -> int | None:
        """MiB at the peak of `call`, on a GPU."""
        if self.device.type != "cuda":
            return None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        call()
        return round(torch.cuda.max_memory_allocated(self.device) / 2**20)

    def seconds(self, calls: Mapping[str, Callable[[], Any]], repeats: int, warmup: int = 1) -> dict[str, list[float]]:
        """Seconds of each call, one after the other in every round, so that a drifting clock meets them all alike."""
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(warmup + repeats):
            for name, call in calls.items():
                self.wait()
                start = time.perf_counter()
                call()
                self.wait()
                if turn >= warmup:
                    taken[name].append(time.perf_counter() - start)
            print(f"round {turn + 1} of {warmup + repeats}", end="\r", file=sys.stderr, flush=True)
        return taken


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Median and interquartile range, which one value does not have."""
    if len(values) < 2:
        return values[0], None
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, high - low


def relative(values: Sequence[float], unit: Sequence[float]) -> tuple[float, float | None]:
    """Median and interquartile range of the rounds' ratios, in each of which both were timed."""
    return spread([value / one for value, one in zip(values, unit, strict=True)])


def filed(name: str, device: torch.device) -> str:
    """`name` with the device and torch's version, so that results of several machines stand beside each other."""
    kind = "cpu" if device.type == "cpu" else re.sub(r"\W+", "_", torch.cuda.get_device_name(device).lower())
    return f"{name}_{kind}_torch{'_'.join(torch.__version__.split('+')[0].split('.')[:2])}"


def conditions(device: torch.device | str, **more: Any) -> dict[str, Any]:
    """Device, threads, versions and commit, to stand beside every figure."""
    device = torch.device(device)
    if device.type == "cuda":
        told = f"{torch.cuda.get_device_name(device)}, TF32 {'on' if torch.backends.cuda.matmul.allow_tf32 else 'off'}"
    else:
        told = f"{_processor()}, {torch.get_num_threads()} threads"
    return {
        "device": told,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        **more,
    }


def _processor() -> str:
    """The CPU's model."""
    facts = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", facts.read_text()) if facts.is_file() else []
    return names[0] if names else platform.processor() or "CPU"


def _commit() -> str:
    """Of the code that runs; "+" if it has been changed since."""
    folder = Path(__file__).parent.parent
    words = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--exclude", "*"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def data_folder() -> Path:
    """The folder named by GROUPCAM_DATA, or the end of the program."""
    folder = os.environ.get("GROUPCAM_DATA")
    if not folder:
        sys.exit("GROUPCAM_DATA is unset: this benchmark needs real photographs and pretrained weights there")
    return Path(folder)


def squeezenet() -> nn.Module:
    """SqueezeNet 1.1 with its ImageNet weights, in eval mode."""
    from safetensors.torch import load_file

    network = torchvision.models.squeezenet1_1()
    network.load_state_dict(load_file(data_folder() / "weights" / "squeezenet1_1_imagenet.safetensors"))
    return network.eval()


def efficientnet() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, in eval mode; images as `NORMALISE_HALF` makes them."""
    import timm
    from safetensors.torch import load_file

    network = timm.create_model(EFFICIENTNET)
    state = load_file(data_folder() / "weights" / f"{EFFICIENTNET}_imagenet_fp16.safetensors")
    network.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in state.items()})
    return network.eval()


def photographs(size: int | tuple[int, int] | None = None) -> tuple[list[Image.Image], list[int]]:
    """The ImageNet sample: pictures (centre square of 224 pixels, or squeezed to (height, width)) and labels."""
    shape = v2.Compose([v2.Resize(256), v2.CenterCrop(224)]) if size is None else v2.Resize(size)
    with zipfile.ZipFile(data_folder() / "imagenet_sample.zip") as archive:
        rows = list(csv.DictReader(io.TextIOWrapper(archive.open("imagenet_sample/labels.csv"))))
        pictures = [shape(Image.open(archive.open("imagenet_sample/" + row["file"])).convert("RGB")) for row in rows]
    return pictures, [int(row["class_index"]) for row in rows]


def batch(pictures: Sequence[Image.Image], normalise: Callable[[Image.Image], Any] = NORMALISE) -> Tensor:
    """Pictures of one size as normalised images (n, 3, H, W)."""
    return torch.stack([normalise(picture).as_subclass(Tensor) for picture in pictures])


def report(name: str, told: dict[str, Any], header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print conditions and table, and keep both as JSON."""
    print("\n" + ", ".join(f"{key} {value}" for key, value in told.items()) + "\n")
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(shown(cell) for cell in row) + " |")
    RESULTS.mkdir(parents=True, exist_ok=True)
    content = {"conditions": told, "rows": [dict(zip(header, row, strict=True)) for row in rows]}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"\nwrote {RESULTS.name}/{name}.json")
