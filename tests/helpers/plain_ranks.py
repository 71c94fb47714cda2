"""A rank of a loop without Lightning (test_ddp.py): `python plain_ranks.py FOLDER`. Writes rank<n>.pt into the folder."""

import copy
import datetime
import os
import sys
from pathlib import Path

import torch
from models import PooledNet
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from groupcam_aug import GroupCAM

PATIENCE = datetime.timedelta(seconds=60)  # of a collective that the other rank does not join


class Collectives(TorchDispatchMode):
    """Counts the operations of c10d, those of DDP's own C++ included."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional"):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def run_plain(folder):
    """Without Lightning: a wrapped network is mapped on rank 0 alone, then both train."""
    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", PATIENCE, world_size=2, rank=rank)
    torch.manual_seed(7)
    network = PooledNet()
    network.drop = nn.Identity()
    wrapped = nn.parallel.DistributedDataParallel(network)
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.05)
    generator = torch.Generator().manual_seed(rank)
    images, labels = torch.randn(4, 3, 24, 20, generator=generator), torch.randint(5, (4,), generator=generator)
    maps, during_maps, during_steps = None, Collectives(), Collectives()
    for _ in range(2):
        if rank == 0:
            with during_maps:
                maps = GroupCAM(wrapped, "relu2", groups=4)(images, labels)
                # Statistics over all ranks while training, and DDP refuses it on a CPU: but a map is made in eval mode.
                synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(network)).train()
                assert torch.equal(GroupCAM(synchronised, "relu2", groups=4)(images, labels), maps)
        with during_steps:
            loss = nn.functional.cross_entropy(wrapped(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = [p.detach().clone() for p in network.parameters()]
    told = {"weights": weights, "maps": maps, "during maps": during_maps.names, "during steps": during_steps.names}
    torch.save(told, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run_plain(Path(sys.argv[1]))
