"""Two real processes on the CPU: spawned, launched by torchrun, and as two nodes. Ranks may differ in what they map."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lit import Pictures, same
from torch.utils.data import DataLoader

TESTS = Path(__file__).parent


def environment(**more):
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    here = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "ignore"}
    inherited = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_PORT")}
    return {**inherited, **here, **more}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def run_ranks(folder, launch, **options):
    """What each rank wrote, by rank; fails with the ranks' errors, or when they hang."""
    name = "plain_ranks.py" if launch == "plain" else "ranks.py"
    script = [str(TESTS / name), str(folder), json.dumps({"launch": launch, **options})]
    if launch == "spawn":
        calls = [([sys.executable, *script], environment(MASTER_PORT=free_port()))]
    elif launch == "torchrun":
        port = ["--master_port", free_port(), "--master_addr", "127.0.0.1"]
        calls = [([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *port, *script], environment())]
    else:
        port, key = free_port(), "NODE_RANK" if launch == "nodes" else "RANK"
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        calls = [([sys.executable, *script], environment(**address, **{key: str(rank)})) for rank in range(2)]
    running = [
        subprocess.Popen(call, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for call, env in calls
    ]
    try:
        told = [process.communicate(timeout=120)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert all(process.returncode == 0 for process in running), "\n".join(text[-3000:] for text in told)
    return {rank: torch.load(folder / f"rank{rank}.pt") for rank in range(2)}


def changed(images, raw):
    return (images != raw).flatten(1).any(1).tolist()


def untouched(told):
    """How many of the images of a rank are the data set's own; the sampler shuffles them."""
    return sum(any(torch.equal(image, raw) for raw in Pictures(16).images) for batch in told["seen"] for image in batch)


def check(ranks, share, calls=None):
    """Weights equal, each rank with draws and images of its own, and no collective on account of the maps."""
    assert [ranks[rank]["world"] for rank in ranks] == [2, 2]
    assert same(ranks[0]["weights"], ranks[1]["weights"])
    assert ranks[0]["during steps"], "DDP's own collectives are seen, so the next line means something"
    assert ranks[0]["during maps"] == ranks[1]["during maps"] == []
    raw = list(DataLoader(Pictures(16), 4)) if share else None
    if share:
        which = [[changed(x, y) for x, (y, _) in zip(ranks[rank]["seen"], raw, strict=True)] for rank in ranks]
        assert which[0] != which[1], "the same images on both ranks, other draws"
        assert all(any(sum(batch) for batch in of_rank) for of_rank in which)
    if calls is not None:
        assert [ranks[rank]["calls"] for rank in ranks] == calls


@pytest.mark.slow
def test_two_processes_spawned(tmp_path):
    ranks = run_ranks(tmp_path, "spawn", share=True, p=0.5)
    check(ranks, share=True)
    assert all(ranks[rank]["steps"] == 4 for rank in ranks)


@pytest.mark.slow
def test_launched_by_torchrun(tmp_path):
    ranks = run_ranks(tmp_path, "torchrun")
    check(ranks, share=False, calls=[2, 2])
    assert all(untouched(told) < 8 for told in ranks.values()), "all but those without a map"


def test_two_nodes_of_one_process(tmp_path):
    """Both ranks get the same images, so that different masks are the draws' doing."""
    ranks = run_ranks(tmp_path, "nodes", share=True, p=0.5)
    check(ranks, share=True)
    assert all(ranks[rank]["steps"] == 4 for rank in ranks)


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["spawn", "torchrun"])
@pytest.mark.parametrize("unused", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_rank_dependent_skipping_does_not_hang(tmp_path, launch, unused, accumulate):
    """Rank 1 maps nothing at all, rank 0 everything; with accumulation, where most backward passes do not synchronise, and
    with parameters that no gradient reaches."""
    ranks = run_ranks(tmp_path, launch, skip=True, unused=unused, accumulate=accumulate)
    check(ranks, share=False, calls=[2, 0])
    assert all(told["steps"] == 2 // accumulate for told in ranks.values())
    assert untouched(ranks[1]) == 8 > untouched(ranks[0])


def test_one_rank_may_skip_its_maps(tmp_path):
    """A network wrapped in DDP, mapped on rank 0 alone: through the wrapper this would wait for the other rank's buffers. And
    the same network with SyncBatchNorm, whose statistics are those of all ranks in training only."""
    ranks = run_ranks(tmp_path, "plain")
    assert ranks[0]["maps"].amax() == 1 and ranks[1]["maps"] is None
    assert same(ranks[0]["weights"], ranks[1]["weights"])
    assert ranks[0]["during maps"] == [] and ranks[0]["during steps"], "DDP sends its buffers around, the maps nothing"
