import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from groupcam_aug.recipes.networks import CIFARResNet
from groupcam_aug.recipes.trial.regimes import digest_of
from groupcam_aug.recipes.trial.training import Machine, Schedule, Split, digest, fit, logits_of, normalise, shuffled

CPU = Machine()


def split_of(count=40, size=8, classes=4):
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, size, size), generator=draw, dtype=torch.uint8)
    return Split(images, torch.arange(count) % classes, images[:, 0] > 127)


def test_training_without_an_arm_is_plain_training_bit_for_bit():
    split = split_of()
    schedule = Schedule(epochs=3, batch=8, lr=0.05, weight_decay=1e-3, pad=1, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    torch.manual_seed(1)
    ours = CIFARResNet(8, 4, 4)
    plain = CIFARResNet(8, 4, 4)
    plain.load_state_dict(ours.state_dict())
    ours, plain = (net.to(memory_format=torch.channels_last) for net in (ours, plain))
    done = fit(ours, split, schedule, 7, CPU)

    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    steps, step = 15, 0
    plain.train()
    for epoch in range(3):
        for images, labels, _, _ in shuffled(split, schedule, 7, epoch):
            x = (images / 255 - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / torch.tensor([0.2, 0.3, 0.4])[:, None, None]
            loss = F.cross_entropy(plain(x.contiguous(memory_format=torch.channels_last)), labels)
            for group in optimizer.param_groups:
                group["lr"] = 0.05 * min(step + 1, 0.5 * (1 + math.cos(math.pi * step / steps)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    assert done.steps == step == steps and done.seconds > 0
    assert digest_of(ours) == digest_of(plain)


def test_batches_follow_from_seed_and_epoch_and_hold_every_image_once():
    split, schedule = split_of(42), Schedule(epochs=1, batch=8, lr=0.1, pad=2)
    first, again = (torch.cat([batch.images for batch in shuffled(split, schedule, 3, 1)]) for _ in range(2))
    assert torch.equal(first, again) and len(first) == 40
    for seed, epoch in ((4, 1), (3, 2)):
        assert not torch.equal(first, torch.cat([batch.images for batch in shuffled(split, schedule, seed, epoch)]))
    plain = dataclasses.replace(schedule, pad=0, flip=False)
    seen = torch.cat([batch.images for batch in shuffled(split, plain, 3, 1)])
    assert len({digest(image) for image in seen} & {digest(image) for image in split.images}) == 40


def test_masks_are_flipped_and_cropped_with_their_images():
    split = split_of()
    split = split._replace(images=split.masks[:, None].byte().mul(255).expand(-1, 3, -1, -1).contiguous())
    schedule = Schedule(epochs=1, batch=8, lr=0.1, pad=3)
    moved = 0
    for images, _, masks, _ in shuffled(split, schedule, 0, 0):
        assert torch.equal(images[:, 1] == 255, masks) and masks.dtype == torch.bool
        moved += len(images)
    assert moved == 40


def test_crops_are_those_of_padding_and_flips_mirror():
    split, schedule = split_of(), Schedule(epochs=1, batch=8, lr=0.1, pad=2)
    images = torch.cat([batch.images for batch in shuffled(split, schedule, 0, 0)])
    places = set()
    for image in images:
        padded = F.pad(split.images, (2, 2, 2, 2))
        windows = {(y, x, flip) for y in range(5) for x in range(5) for flip in (False, True)
                   if any(torch.equal(w, image) for w in (padded.flip(3) if flip else padded)[:, :, y : y + 8, x : x + 8])}  # fmt: skip
        assert windows
        places |= windows
    assert len({place[:2] for place in places}) > 10 and {place[2] for place in places} == {False, True}


def test_rates():
    step = Schedule(epochs=1, batch=1, lr=1.0, anneal="step")
    assert [step.rate(i, 8) for i in (0, 5, 6, 7)] == [1.0, 1.0, 0.1, 0.1]
    cosine = Schedule(epochs=1, batch=1, lr=1.0)
    rates = [cosine.rate(i, 100) for i in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[50] == pytest.approx(0.5) and max(rates) <= 1.0 and rates[-1] < 0.001


def test_a_loss_that_explodes_and_too_few_images_are_told():
    with pytest.raises(ValueError, match="40 images are fewer than one batch of 64"):
        fit(CIFARResNet(8, 4, 4), split_of(), Schedule(epochs=1, batch=64, lr=0.1), 0, CPU)
    with pytest.raises(FloatingPointError, match=r"learning rate 1e\+30"):
        fit(CIFARResNet(8, 4, 4), split_of(), Schedule(epochs=2, batch=8, lr=1e30), 0, CPU)


def test_digests_tell_content_shape_and_type_apart():
    base = torch.zeros(2, 3)
    others = [torch.zeros(3, 2), torch.zeros(6), torch.zeros(2, 3, dtype=torch.float64), torch.eye(2, 3)]
    assert len({digest(one) for one in [base, *others]}) == 5
    assert digest(base, None) == digest(torch.zeros(2, 3))


def test_logits_of_parts_are_those_of_the_whole():
    split, schedule = split_of(30), Schedule(epochs=1, batch=8, lr=0.1)
    network = CIFARResNet(8, 4, 4)
    parts = logits_of(network, split.images, schedule, CPU, batch=7)
    with torch.no_grad():
        assert torch.allclose(parts, network(normalise(split.images, schedule)), atol=1e-5)
    assert not network.training
