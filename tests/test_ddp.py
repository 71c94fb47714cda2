"""Two real processes on the CPU: spawned, launched by torchrun, and as two nodes. Ranks may differ in what they map."""

import pytest
import torch
from lit import Pictures, same
from processes import run_ranks
from torch.utils.data import DataLoader


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
