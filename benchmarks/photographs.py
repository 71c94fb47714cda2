"""The README's pictures of real photographs: fine-tunes SqueezeNet on clothes and shows what it looks at.

    GROUPCAM_DATA=/path/to/data python benchmarks/photographs.py     # writes docs/photographs.jpg and docs/settling.jpg

The photographs are those of github.com/alexeygrigorev/clothing-dataset-small (CC0), in `clothing_bg.zip`; the network begins with
the ImageNet weights of torchvision's squeezenet1_1.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import zipfile
from pathlib import Path

import pytorch_lightning as pl
import torch
from common import data_folder
from PIL import Image

from groupcam_aug.callbacks import GroupCAMAugmentation, SaliencyMonitor
from groupcam_aug.draw import panels
from groupcam_aug.files import put_file
from groupcam_aug.recipes.classifier import Classifier
from groupcam_aug.recipes.data import ImageData
from groupcam_aug.recipes.demo import augmented_panels

ROWS = 4  # photographs in each picture, of as many classes
QUALITY = 88  # of the JPEG files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--size", type=int, default=160, help="pixels (default: %(default)s)")
    parser.add_argument("--per-class", type=int, default=30, help="photographs of each class to train on (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with zipfile.ZipFile(data_folder() / "clothing_bg.zip") as archive:
            archive.extractall(folder)
        data, classifier = trained(folder, options)
        shown = correct(data, classifier)
        picture = augmented_panels(classifier, *shown, data.class_names)
        write(options.out, "photographs.jpg", picture)
        write(options.out, "settling.jpg", settling(folder / "run" / "groupcam"))


def trained(folder: Path, options: argparse.Namespace) -> tuple[ImageData, Classifier]:
    """Fine-tune with the callback, the monitor beside it; its records are in `folder/run/groupcam`."""
    pl.seed_everything(0)
    root = folder / "clothing_bg"
    data = ImageData(str(root), size=options.size, test="test_kept", num_workers=0, per_class=options.per_class)
    known = {name: getattr(data, name) for name in ("num_classes", "class_names", "mean", "std", "size")}
    classifier = Classifier(
        "torchvision/squeezenet1_1",
        checkpoint=str(data_folder() / "weights" / "squeezenet1_1_imagenet.safetensors"),
        lr=2e-3,
        head_lr_factor=10,
        schedule="cosine",
        **known,
    )
    (folder / "run" / "groupcam").mkdir(parents=True)  # asks for records, in a run without logger and checkpoints
    trainer = pl.Trainer(
        max_epochs=options.epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        default_root_dir=folder / "run",
        callbacks=[
            GroupCAMAugmentation(preset="fast", network="network", start_epoch=1),
            SaliencyMonitor(network="network", num_images=12),
        ],
    )
    trainer.fit(classifier, data)
    return data, classifier.eval()


def correct(data: ImageData, classifier: Classifier) -> tuple[torch.Tensor, torch.Tensor]:
    """Photographs of the validation data that are classified as labelled, each of another class, in [0, 1]; their labels."""
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (data.mean, data.std))
    found: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for image, label in (data.val_set[i][:2] for i in range(len(data.val_set))):
            if label not in found and int(classifier(image[None]).argmax()) == label:
                found[label] = image * std + mean
    if not found:
        sys.exit("no validation photograph is classified as labelled: train on more of them (--per-class), or longer (--epochs)")
    labels = sorted(found)[:ROWS]
    return torch.stack([found[label] for label in labels]).clamp(0, 1), torch.tensor(labels)


def settling(records: Path) -> Image.Image:
    """A row for each of a few probes of different classes, a column for each epoch, from the monitor's files."""
    facts = json.loads((records / "monitor.json").read_text())
    labels = [facts["labels"][i] for i in facts["shown"]]
    rows = [labels.index(label) for label in sorted(set(labels))[:ROWS]]
    paths = [records / "monitor" / "probes.png", *sorted((records / "monitor").glob("epoch_*.png"))]
    columns = [Image.open(path) for path in paths]
    side = columns[0].height // len(labels)
    cells = [[column.crop((0, side * row, column.width, side * (row + 1))) for column in columns] for row in rows]
    titles = ["image", *(f"epoch {int(path.stem.removeprefix('epoch_'))}" for path in paths[1:])]
    return panels(cells, titles, [facts["class_names"][labels[row]] for row in rows], size=side)


def write(folder: Path, name: str, picture: Image.Image) -> None:
    with tempfile.SpooledTemporaryFile() as buffer:
        picture.save(buffer, "JPEG", quality=QUALITY)
        buffer.seek(0)
        content = buffer.read()
    put_file(folder, name, content)
    print(f"{folder / name}: {picture.width} x {picture.height}, {len(content) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
