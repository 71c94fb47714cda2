"""Without a Trainer: `SaliencyBlur` in a Fabric loop and in a plain PyTorch loop."""

import pytest
import torch
from lightning_fabric import Fabric
from lit import Pictures, same
from models import PooledNet, assert_same, snapshot
from torch.nn import functional as F
from torch.utils.data import DataLoader

from groupcam_aug import GroupCAM, SaliencyBlur


def build():
    torch.manual_seed(7)
    network = PooledNet()
    return network, torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)


def batches():
    return DataLoader(Pictures(12), batch_size=4)


def plain_loop(augmenting=True):
    """The loop of the documentation."""
    network, optimizer = build()
    augment = SaliencyBlur(GroupCAM.for_training(network, "relu2", groups=4))
    seen = []
    torch.manual_seed(11)
    for _ in range(2):
        for images, labels in batches():
            images = augment(images, labels) if augmenting else images
            seen.append(images)
            loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return seen, [*network.state_dict().values()]


def fabric_loop(given, **options):
    """The same under Fabric; `given` says which network the maps are given: the bare one, or what `setup` made of it."""
    fabric = Fabric(accelerator="cpu", devices=1, **options)
    fabric.launch()
    network, optimizer = build()
    wrapped, optimizer = fabric.setup(network, optimizer)
    augment = SaliencyBlur(
        GroupCAM.for_training({"bare": network, "wrapped": wrapped, "module": wrapped.module}[given], groups=4)
    )
    train = fabric.setup_dataloaders(batches())
    seen = []
    torch.manual_seed(11)
    for _ in range(2):
        for images, labels in train:
            with fabric.autocast():
                images = augment(images, labels)
            seen.append(images)
            loss = F.cross_entropy(wrapped(images).float(), labels)
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
    return seen, [*network.state_dict().values()], augment.cam


def test_plain_loop():
    seen, _ = plain_loop()
    raw = [x for x, _ in batches()] * 2
    assert len(seen) == 6 and all(not torch.equal(x, y) for x, y in zip(seen, raw))
    assert not any(x.requires_grad for x in seen)


def test_plain_loop_lends_the_network_only():
    network, optimizer = build()
    network.bn1.eval()
    images, labels = next(iter(batches()))
    F.cross_entropy(network(images), labels).backward()
    before = snapshot(network)
    SaliencyBlur(GroupCAM.for_training(network, "relu2", groups=4))(images, labels)
    assert_same(before, snapshot(network))


@pytest.mark.parametrize("given", ["bare", "module"])
def test_fabric_loop_equals_the_plain_one(given):
    """Maps of the bare network: Fabric's wrapper shares its weights, and no collective or hook of the wrapper is run."""
    seen, weights = plain_loop()
    other, theirs, cam = fabric_loop(given)
    assert same(seen, other) and same(weights, theirs)
    assert cam.layer == "relu2"


def test_fabric_wrapper_is_looked_through():
    """What `fabric.setup` returns works as well, with the layer named as in the user's own network."""
    seen, weights = plain_loop()
    other, theirs, cam = fabric_loop("wrapped")
    assert same(seen, other) and same(weights, theirs)
    assert cam.layer == "relu2", "not _forward_module.relu2, which no other network has"


@pytest.mark.parametrize("given", ["bare", "module"])
@pytest.mark.parametrize(
    "precision, dtype", [("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16), ("64-true", torch.float64)]
)
def test_fabric_precisions(given, precision, dtype):
    """`fabric.setup_dataloaders` moves batches, the wrapper casts them; so they are cast by hand before the maps in true precisions."""
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    network, optimizer = build()
    wrapped, optimizer = fabric.setup(network, optimizer)
    augment = SaliencyBlur(GroupCAM.for_training(network if given == "bare" else wrapped.module, "relu2", groups=4))
    images, labels = next(iter(fabric.setup_dataloaders(batches())))
    images = images.to(dtype)
    with fabric.autocast():
        augmented = augment(images, labels)
    assert augmented.dtype == dtype and not torch.equal(augmented, images) and augmented.isfinite().all()
    fabric.backward(F.cross_entropy(wrapped(augmented).float(), labels))
    optimizer.step()


def test_draws_of_a_generator():
    """With a generator of one's own the global random numbers are left alone, and the draws repeat."""
    network, _ = build()
    images, labels = next(iter(batches()))
    cam = GroupCAM.for_training(network, "relu2", groups=4)
    state, results = torch.get_rng_state(), []
    for seed in (0, 0, 1, 2):
        augment = SaliencyBlur(cam, p=0.5, fill="noise", generator=torch.Generator().manual_seed(seed))
        results.append([augment(images, labels) for _ in range(3)])
    assert torch.equal(torch.get_rng_state(), state)
    assert same(results[0], results[1]) and not same(results[0], results[2])
