"""A rank of test_summed_metric.py's two processes: `python metric_ranks.py FOLDER RANK`. Writes rank<n>.pt into the folder."""

import datetime
import sys
from pathlib import Path

import torch
from models import PooledNet

from groupcam_aug import metrics

WORLD = 2


def made():
    """Every metric, and one call of `update` per image: the arguments of image i."""
    torch.manual_seed(0)
    net, count = PooledNet().eval(), 7
    images, maps, others = torch.randn(count, 3, 24, 20), torch.rand(count, 24, 20), torch.rand(count, 24, 20)
    maps[2], maps[5] = 0, 0.3  # undefined, on both ranks
    others[2] = 0
    masks = torch.rand(count, 24, 20) > 0.8
    masks[4] = False
    labels = torch.tensor([0, 1, 1, 2, 0, 2, 2])
    boxes = [torch.tensor([[2.0, 2.0, 18.0, 22.0]])] * count
    collection = {
        "insertion": metrics.InsertionAUC(steps=5),
        "deletion": metrics.DeletionAUC(steps=5, substrate="zeros"),
        "overall": metrics.InsertionDeletion(steps=5),
        "pointing": metrics.PointingGame(tolerance=1),
        "macro": metrics.PointingGame(tolerance=1, average="macro", num_classes=4),
        "energy": metrics.EnergyPointingGame(),
        "iou": metrics.MaskIoU(),
        "localisation": metrics.LocalisationError(),
        "change": metrics.MapChange(),
    }

    def arguments(name, part):
        if name in ("insertion", "deletion", "overall"):
            return net, images[part], maps[part], labels[part]
        if name == "macro":
            return maps[part], masks[part], labels[part]
        if name == "localisation":
            return maps[part], boxes[part]
        return maps[part], others[part] if name == "change" else masks[part]

    return collection, arguments


def values(collection):
    """What each computes, the states that say what was left out, the mean curves."""
    told = {}
    for name, metric in collection.items():
        found = metric.compute()
        told.update({f"{name} {key}": value for key, value in found.items()} if isinstance(found, dict) else {name: found})
        if hasattr(metric, "curves"):
            told.update({f"{name} curve {key}": value for key, value in metric.curves().items()})
        with metric.sync_context(should_sync=metric._to_sync):
            told.update({f"{name} {key}": getattr(metric, key).clone() for key in metric._defaults})
    return told


def main(folder, rank):
    patience = datetime.timedelta(seconds=60)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", patience, world_size=WORLD, rank=rank)
    collection, arguments = made()
    for part in ([slice(0, 2)], [slice(2, 3), slice(3, 7)])[rank]:  # uneven: 2 images here, 1 + 4 there
        for name, metric in collection.items():
            metric.update(*arguments(name, part))
    torch.save(values(collection), folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
