import copy

import pytest
import torch
from torch import nn

from groupcam_aug import GroupCAM, SaliencyBlur
from groupcam_aug.augment import keep_mask
from groupcam_aug.blur import blur
from groupcam_aug.recipes.networks import CIFARResNet
from groupcam_aug.recipes.trial.arms import read_arm
from groupcam_aug.recipes.trial.regimes import digest_of
from groupcam_aug.recipes.trial.training import Machine, Schedule, Split, fit, seeded
from groupcam_aug.recipes.trial.treatment import Treatment

COUNT, CLASSES = 24, 6


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(3)
    net = CIFARResNet(8, CLASSES, 4)
    with torch.no_grad():  # BatchNorm that has seen something, so that maps are not empty
        net(torch.randn(64, 3, 32, 32))
    return net


@pytest.fixture(scope="module")
def batch():
    draw = torch.Generator().manual_seed(5)
    images = torch.randn(COUNT, 3, 32, 32, generator=draw)
    masks = torch.zeros(COUNT, 32, 32, dtype=torch.bool)
    for i in range(COUNT):
        masks[i, i % 12 : i % 12 + 10, 8:20] = True
    return images, torch.arange(COUNT) % CLASSES, masks


def treatment(arm, network, **options):
    arm = read_arm(arm) if isinstance(arm, str) else arm
    return Treatment(arm, network, **{"seed": 0, "epochs": 4, "per_epoch": 10, "warmup": 0, "classes": CLASSES} | options)


def drawn(step, p=0.5, seed=0):
    return torch.rand(COUNT, generator=seeded(seed, 2, step)) < p


@pytest.mark.parametrize(
    "name",
    [
        "fast",
        "paper",
        "balanced",
        "fast-weights",
        "fast-other",
        "fast-centre",
        "fast-inverse",
        "fast,fill=other",
        "fast-other,fill=other",
        "whole",
    ],
)
def test_an_arm_is_what_the_callback_does(network, batch, name):
    images, labels, masks = batch
    arm = read_arm(name)
    got, targets = treatment(arm, network).apply(images, labels, masks, 0, 7)
    cam = GroupCAM.for_training(network, weights=arm.weights, mask_at=arm.at, baseline=arm.baseline)
    augment = SaliencyBlur(cam, p=arm.p, fill=arm.fill, mask_from=arm.mask)
    index = augment.draw(COUNT, seeded(0, 2, 7))
    expected = augment.apply(images, labels, index)
    assert torch.equal(got, expected.images) and targets is labels
    assert 0 < len(index) <= COUNT and not torch.equal(got, images)


def test_object_masks_keep_the_object_bit_for_bit_and_replaces_all_else(network, batch):
    images, labels, masks = batch
    treat = treatment("masks,p=1", network)
    got, _ = treat.apply(images, labels, masks, 0, 0)
    where = masks[:, None].expand_as(images)
    assert torch.equal(got[where], images[where])
    assert torch.equal(got[~where], blur(images)[~where])
    facts = treat.facts()
    assert (facts["object_kept"], facts["ground_replaced"], facts["no_map"]) == (1.0, 1.0, 0.0)
    assert facts["replaced"] == pytest.approx(1 - masks.float().mean().item())
    assert facts["alignment"] == pytest.approx(1 / masks.float().mean().item())


def test_other_fill_takes_the_neighbours_pixels(network, batch):
    images, labels, masks = batch
    got, _ = treatment("masks,fill=other,p=1", network).apply(images, labels, masks, 0, 0)
    where = masks[:, None].expand_as(images)
    assert torch.equal(got[where], images[where]) and torch.equal(got[~where], images.roll(-1, 0)[~where])


def test_another_mask_is_the_neighbours(network, batch):
    images, labels, masks = batch
    got, _ = treatment("masks,mask=other,fill=mean,p=1", network).apply(images, labels, masks, 0, 0)
    where = masks.roll(-1, 0)[:, None].expand_as(images)
    assert torch.equal(got[where], images[where]) and not torch.isclose(got[~where], images[~where]).any(dim=0).all()


def test_another_mask_is_not_of_the_image_that_lends_its_pixels(network, batch):
    images, labels, masks = batch
    treat = treatment("masks,mask=other,fill=other,p=1", network)
    got, _ = treat.apply(images, labels, masks, 0, 0)
    kept = masks.roll(-2, 0)
    assert torch.equal(got, torch.where(kept[:, None], images, images.roll(-1, 0)))
    assert treat.facts()["object_kept"] == pytest.approx(float((masks & kept).sum() / masks.sum()))
    some, _ = treatment("fast,mask=other,fill=other", network).apply(images, labels, masks, 0, 7)
    maps = GroupCAM.for_training(network, mask_at="target", baseline="zero")(images.roll(-2, 0), labels.roll(-2, 0))
    expected = torch.where(keep_mask(maps)[:, None], images, images.roll(-1, 0))
    assert torch.equal(some, torch.where(drawn(7)[:, None, None, None], expected, images))


def test_a_disc_in_the_middle_as_large_as_the_own_mask(network, batch):
    images, labels, masks = batch
    treat = treatment("masks,mask=centre,fill=other,p=1", network)
    got, _ = treat.apply(images, labels, masks, 0, 0)
    kept = (got == images).all(dim=1)
    assert torch.equal(kept.sum(dim=(1, 2)), masks.sum(dim=(1, 2)))
    grid = torch.arange(32) - 15.5
    distance = (grid[:, None] ** 2 + grid**2).sqrt()
    for keep in kept:
        assert distance[keep].max() <= distance[~keep].min()
    own, disc = treatment("fast,threshold=q0.6", network), treatment("fast-centre,threshold=q0.6", network)
    for treat in (own, disc):
        treat.apply(images, labels, masks, 0, 0)
    assert own.facts()["replaced"] == pytest.approx(disc.facts()["replaced"]) and own.facts()["no_map"] == disc.facts()["no_map"]
    masks = masks.clone()
    masks[3] = False
    gone, _ = treatment("masks,mask=centre,p=1", network).apply(images, labels, masks, 0, 0)
    assert torch.equal(gone[3], images[3]) and not torch.equal(gone[4], images[4])  # no map: untouched, as with the own mask


def test_shifted_is_the_own_map_elsewhere(network, batch):
    images, labels, masks = batch
    treat = treatment("masks,mask=shifted,p=1,fill=other", network)
    got, _ = treat.apply(images, labels, masks, 0, 0)
    where = masks.roll((16, 16), (1, 2))[:, None].expand_as(images)
    assert torch.equal(got[where], images[where]) and torch.equal(got[~where], images.roll(-1, 0)[~where])
    assert treat.facts()["alignment"] < 0.5


def test_arms_with_the_same_p_augment_the_same_images(network, batch):
    images, labels, masks = batch
    for name in ("whole", "masks", "gradcam", "masks,inverse_share=.5,fill=mean", "erase"):
        got, _ = treatment(name, network).apply(images, labels, masks, 0, 10)
        changed = (got != images).flatten(1).any(dim=1)
        assert not (changed & ~drawn(10)).any(), name
        assert changed.sum() > 0.6 * drawn(10).sum(), name
    again = treatment("fast,fill=noise", network).apply(images, labels, masks, 0, 10)[0]
    assert torch.equal(again, treatment("fast,fill=noise", network).apply(images, labels, masks, 0, 10)[0])
    assert not torch.equal(again, treatment("fast,fill=noise", network, seed=1).apply(images, labels, masks, 0, 10)[0])


def test_shares_of_inverse_and_other_masks(network, batch):
    images, labels, masks = batch
    treat = treatment("masks,p=1,fill=other,inverse_share=.3,other_share=.3", network)
    got, _ = treat.apply(images, labels, masks, 0, 0)
    neighbour = images.roll(-1, 0)
    forms = {"own": masks, "inverse": ~masks, "other": masks.roll(-2, 0)}
    counts = {
        name: sum(torch.equal(torch.where(mask[i], images[i], neighbour[i]), got[i]) for i in range(COUNT))
        for name, mask in forms.items()
    }
    assert sum(counts.values()) == COUNT and all(3 <= count <= 14 for count in counts.values()), counts
    whole = treatment("masks,p=1,inverse_share=1", network).apply(images, labels, masks, 0, 0)[0]
    assert torch.equal(whole, treatment("masks,p=1,mask=inverse", network).apply(images, labels, masks, 0, 0)[0])


def test_cutmix_labels_sum_to_one_and_say_the_area(network, batch):
    images, labels, masks = batch
    treat = treatment("cutmix,p=1", network)
    mixed, rows = treat.apply(images, labels, masks, 0, 3)
    assert rows.shape == (COUNT, CLASSES) and torch.allclose(rows.sum(dim=1), torch.ones(COUNT))
    own = (mixed == images).all(dim=1).float().mean(dim=(1, 2))
    assert torch.allclose(rows[torch.arange(COUNT), labels], own, atol=1e-5) and own.min() < 1
    state = torch.get_rng_state()
    assert torch.equal(treatment("cutmix,p=1", network).apply(images, labels, masks, 0, 3)[0], mixed)
    assert torch.equal(torch.get_rng_state(), state)
    half = [treatment("cutmix", network).apply(images, labels, masks, 0, step)[1].ndim for step in range(40)]
    assert 10 <= half.count(2) <= 30


def test_mixed_labels_say_whose_pixels_are_there(network, batch):
    images, labels, masks = batch
    for name, kept in (("masks", masks), ("masks,mask=other", masks.roll(-2, 0)), ("masks,strength=.5", masks)):
        got, rows = treatment(f"{name},fill=other,labels=mixed", network).apply(images, labels, masks, 0, 7)
        plain, own = treatment(f"{name},fill=other", network).apply(images, labels, masks, 0, 7)
        assert torch.equal(got, plain) and own is labels
        replaced = (~kept).float().mean(dim=(1, 2)) * drawn(7) * (0.5 if "strength" in name else 1)
        expected = torch.zeros(COUNT, CLASSES)
        for i in range(COUNT):
            expected[i, labels[i]] += 1 - replaced[i]
            expected[i, labels[(i + 1) % COUNT]] += replaced[i]
        torch.testing.assert_close(rows, expected)
        assert (rows[~drawn(7)].amax(dim=1) == 1).all()


def test_erased_area_matches_the_fast_masks(network, batch):
    images, labels, masks = batch
    fast, erase = treatment("fast,p=1", network), treatment("erase,p=1", network)
    for step in range(10):
        fast.apply(images, labels, masks, 0, step)
        got, _ = erase.apply(images, labels, masks, 0, step)
    assert ((got == 0).all(dim=1) == (got != images).any(dim=1)).all()
    assert erase.facts()["replaced"] == pytest.approx(fast.facts()["replaced"], abs=0.03)
    assert 0.1 < fast.facts()["replaced"] < 0.9
    fixed = treatment("erase,p=1,area=.18", network)
    for step in range(10):
        fixed.apply(images, labels, masks, 0, step)
    assert fixed.facts()["replaced"] == pytest.approx(0.18, abs=0.02)
    small = treatment("erase,p=1", network)
    for share in (0.02, 0.3, 0.55, 0.79):  # whatever the masks leave, shapes of that area are found
        small.sums, small.share = {}, share
        for step in range(1, 8):
            small.apply(images, labels, masks, 0, step)
        assert small.facts()["replaced"] == pytest.approx(max(share, 0.03), abs=0.03), share


def test_only_epochs_between_warmup_and_the_clean_end_are_augmented(network, batch):
    images, labels, masks = batch

    def epochs(name, **options):
        treat = treatment(name, network, **options)
        return [not torch.equal(treat.apply(images, labels, masks, e, 10 * e + 5)[0], images) for e in range(4)]

    assert epochs("whole") == [True] * 4
    assert epochs("whole", warmup=2) == [False, False, True, True]
    assert epochs("whole,warmup=1", warmup=2) == [False, True, True, True]
    assert epochs("whole,clean_last=.5,warmup=1") == [False, True, False, False]
    assert epochs("whole,clean_last=.01") == [True, True, True, False]
    with pytest.raises(ValueError, match="no epoch of 4 is left to augment from 3 to before 3"):
        treatment("whole,clean_last=.1", network, warmup=3)


def test_p_grows_along_its_ramp(network, batch):
    images, labels, masks = batch
    treat = treatment("whole,p=1,p_ramp=.5", network, epochs=10, warmup=2)  # 80 augmented steps, the ramp takes 40
    counts = []
    for step in (20, 30, 40, 60, 99):
        treat.sums = {}
        treat.apply(images, labels, masks, step // 10, step)
        counts.append(treat.facts()["augmented"])
    assert counts[0] == 0 and 0 < counts[1] < counts[2] < 24 and counts[3:] == [24, 24]


def test_sources(network, batch):
    images, labels, masks = batch
    torch.manual_seed(9)
    teacher = CIFARResNet(8, CLASSES, 4)
    base = CIFARResNet(8, CLASSES, 4)
    base.load_state_dict(network.state_dict())

    def maps_of(name, change, **options):
        treat = treatment(name, base, **options)
        if change == "before":
            treat.apply(images, labels, masks, 0, 0)
        with torch.no_grad():
            base.linear.weight.mul_(-1)
        got = treat.apply(images, labels, masks, 1, 10)[0]
        with torch.no_grad():
            base.linear.weight.mul_(-1)
        return got

    frozen = treatment("fast", network).apply(images, labels, masks, 1, 10)[0]
    assert torch.equal(maps_of("fast,source=start", None), frozen)
    assert not torch.equal(maps_of("fast", None), frozen)
    by_teacher = treatment("fast", teacher).apply(images, labels, masks, 1, 10)[0]
    assert torch.equal(maps_of("fast,source=teacher", None, sources={"teacher": teacher}), by_teacher)
    early = treatment("fast,source=early", base, warmup=1)
    early.apply(images, labels, masks, 0, 0)
    assert early.mapped is None  # it is taken when augmentation starts
    early.apply(images, labels, masks, 1, 10)
    with torch.no_grad():
        base.linear.weight.mul_(-1)
    assert torch.equal(early.apply(images, labels, masks, 1, 10)[0], frozen)
    with pytest.raises(ValueError, match="source=early without warm-up epochs is source=start"):
        treatment("fast,source=early", network)
    with pytest.raises(ValueError, match="no 'few' network"):
        treatment("fast,source=few", network, sources={"teacher": teacher})
    with pytest.raises(ValueError, match="knows no object masks"):
        treatment("masks", network).apply(images, labels, None, 0, 0)


def test_an_average_follows():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))
    treat = treatment("fast,source=ema,decay=.5,groups=2", net)
    before = net[3].bias.detach().clone()
    treat.after_step()  # the first step only copies
    with torch.no_grad():
        net[3].bias.add_(1)
    treat.after_step()  # of a cold average 2 / 11 are kept
    assert torch.allclose(treat.mapped[3].bias, before + 9 / 11)
    for _ in range(20):
        treat.after_step()
    with torch.no_grad():
        net[3].bias.add_(1)
    treat.after_step()
    assert torch.allclose(treat.mapped[3].bias, before + 1.5, atol=1e-4)


def test_training_lets_the_average_follow(network):
    draw = torch.Generator().manual_seed(0)
    split = Split(torch.randint(256, (24, 3, 16, 16), generator=draw, dtype=torch.uint8), torch.arange(24) % CLASSES)
    net = copy.deepcopy(network)
    treat = treatment("fast,source=ema,decay=.5", net, per_epoch=3, epochs=2)
    start = digest_of(treat.mapped)
    fit(net, split, Schedule(epochs=2, batch=8, lr=0.1), 0, Machine(), treat)
    assert digest_of(treat.mapped) not in (start, digest_of(net)), "neither where it began nor where the network is"
