"""What the benchmarks share: the conditions, the result files, the photographs."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from tables import shown
from torch import Tensor, nn
from torchvision.transforms import v2

RESULTS = Path(__file__).parent / "results"
NORMALISE = v2.Compose(
    [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
)


def conditions(**more: Any) -> dict[str, Any]:
    """Device, threads and versions, to stand beside every figure."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return {
        "device": device,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        **more,
    }


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


def photographs(size: int | tuple[int, int] | None = None) -> tuple[list[Image.Image], list[int]]:
    """The ImageNet sample: pictures (centre square of 224 pixels, or squeezed to (height, width)) and labels."""
    shape = v2.Compose([v2.Resize(256), v2.CenterCrop(224)]) if size is None else v2.Resize(size)
    with zipfile.ZipFile(data_folder() / "imagenet_sample.zip") as archive:
        rows = list(csv.DictReader(io.TextIOWrapper(archive.open("imagenet_sample/labels.csv"))))
        pictures = [shape(Image.open(archive.open("imagenet_sample/" + row["file"])).convert("RGB")) for row in rows]
    return pictures, [int(row["class_index"]) for row in rows]


def batch(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as normalised images (n, 3, H, W)."""
    return torch.stack([NORMALISE(picture).as_subclass(Tensor) for picture in pictures])


def report(name: str, told: dict[str, Any], header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print conditions and table, and keep both as JSON."""
    print("\n" + ", ".join(f"{key} {value}" for key, value in told.items()) + "\n")
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(shown(cell) for cell in row) + " |")
    RESULTS.mkdir(exist_ok=True)
    content = {"conditions": told, "rows": [dict(zip(header, row, strict=True)) for row in rows]}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"\nwrote {RESULTS.name}/{name}.json")
