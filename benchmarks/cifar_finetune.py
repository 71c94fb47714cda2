"""One epoch of CIFAR-10 fine-tuning by `groupcam-aug fit`, from the published ResNet-20 weights, with and without the callback.

CIFAR-10 is unpacked as an image folder (`train`, and `val` = its `test` folder) into a temporary folder.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import torch
from common import conditions, data_folder, filed, report

NETWORK = [
    "--model.network.class_path=groupcam_aug.recipes.networks.CIFARResNet",
    "--model.network.init_args.depth=20",
    "--model.lr=0.001",
]
CALLBACK = ["--trainer.callbacks+=groupcam_aug.callbacks.GroupCAMAugmentation", "--trainer.callbacks.network=network"]
ARMS = {
    "no augmentation": [],
    "Group-CAM, preset paper": CALLBACK,
    "Group-CAM, preset fast": [*CALLBACK, "--trainer.callbacks.preset=fast"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5120, help="training images (default: 5120)")
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "cifar10"
        with zipfile.ZipFile(data_folder() / "cifar10.zip") as archive:
            archive.extractall(scratch)
        (root / "test").rename(root / "val")
        weights = data_folder() / "weights" / "resnet20_cifar10.safetensors"
        data = [f"--data.root={root}", f"--data.batch_size={options.batch}", "--data.num_workers=1", "--trainer.devices=1"]
        model = [*NETWORK, f"--model.checkpoint={weights}", "--data.size=32"]
        start, _ = run("validate", [*model, *data, "--trainer.logger=false"], Path(scratch))
        rows.append(["start", start, None])
        for arm, words in ARMS.items():
            folder = Path(scratch) / str(len(rows))
            folder.mkdir()
            limit = f"--trainer.limit_train_batches={options.images // options.batch}"
            _, seconds = run("fit", [*model, *data, *words, "--trainer.max_epochs=1", limit], folder)
            (checkpoint,) = folder.rglob("*.ckpt")
            reached, _ = run("test", [f"--ckpt_path={checkpoint}", *data, "--trainer.logger=false"], folder)
            rows.append([arm, reached, round(seconds)])
            print(*rows[-1], flush=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # as the Trainer chooses
    told = conditions(
        device, network="CIFAR ResNet-20", images=options.images, batch=options.batch, test_images=5000, epochs=1, seed=0
    )
    report(filed("cifar_finetune", device), told, ["arm", "accuracy on 5,000 test images", "seconds of fit, start to end"], rows)


def run(command: str, words: list[str], folder: Path) -> tuple[float | None, float]:
    """One `groupcam-aug` command: the accuracy that it printed last, and its seconds."""
    start = time.perf_counter()
    words = [sys.executable, "-m", "groupcam_aug.recipes.cli", command, *words, "--trainer.enable_progress_bar=false"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-4000:])
    found = re.findall(r"(?:val|test)/acc\D+(\d\.\d+)", done.stdout)
    return float(found[-1]) if found else None, time.perf_counter() - start


if __name__ == "__main__":
    main()
