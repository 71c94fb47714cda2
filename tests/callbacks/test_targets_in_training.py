"""Labels as people have them, under a real Trainer: what reaches training_step is the functional form's work on what arrived."""

import pytest
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lit import Fixed, Lit, Pictures, fit, loader
from models import PooledNet
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, default_collate
from torchvision.transforms import v2

from groupcam_aug import GroupCAM, SaliencyBlur
from groupcam_aug.callbacks import GroupCAMAugmentation, SaliencyMonitor


class Labelled(Lit):
    """Keeps the first batch as it arrived at the device, and what training_step got."""

    def __init__(self, read, loss=F.cross_entropy):
        super().__init__()
        self.take, self.loss, self.first, self.others = read, loss, None, []

    def on_after_batch_transfer(self, batch, dataloader_idx):
        if self.first is None:
            self.first = batch
            images, targets = self.take(batch)
            cam = GroupCAM.for_training(self.net, "relu2", groups=4)
            self.expected = SaliencyBlur(cam)(images, self.explained(targets))
        return batch

    def explained(self, targets):
        return targets

    def training_step(self, batch, batch_idx):
        x, y = self.take(batch)
        self.seen.append(x.clone())
        self.others.append(batch)
        return self.loss(self(x), y)


def run(module, collate, count=12, **options):
    """Fit one epoch; the first batch must be what the functional form makes of it, for the same target."""
    fit(
        module,
        [GroupCAMAugmentation(preset="paper", network="net", layer="relu2", groups=4, **options)],
        train=DataLoader(Pictures(count), batch_size=4, collate_fn=collate),
    )
    assert len(module.seen) == count // 4
    assert torch.equal(module.seen[0], module.expected)
    assert not torch.equal(module.seen[0], module.take(module.first)[0])
    return module


@pytest.mark.parametrize("mix", [v2.MixUp, v2.CutMix])
def test_mixed_images_and_soft_labels(mix):
    """A collate function mixes first: the mixed image is what is mapped, for its classes as they are weighted."""
    blend = mix(num_classes=5, alpha=1.0)
    module = run(Labelled(lambda batch: batch), lambda items: blend(*default_collate(items)))
    soft = module.first[1]
    assert soft.shape == (4, 5) and ((soft > 0) & (soft < 1)).any()
    assert torch.equal(module.others[0][1], soft), "labels stay as they are: no pixel changes its class"


def test_soft_labels_weigh_the_classes():
    """One-hot rows are the integer labels; another weighting gives another image."""
    seen = []
    for rows in (None, lambda y: F.one_hot(y, 5).float(), lambda y: F.one_hot((y + 1) % 5, 5).float() * 0.9 + 0.02):
        module = Labelled(lambda batch: batch)
        run(module, lambda items: [(b := default_collate(items))[0], b[1] if rows is None else rows(b[1])])
        seen.append(module.seen[0])
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def test_several_labels_at_once():
    def collate(items):
        images, labels = default_collate(items)
        return [images, F.one_hot(labels, 5) | F.one_hot((labels + 1) % 5, 5)]

    def loss(logits, y):
        return F.binary_cross_entropy_with_logits(logits, y.float())

    with pytest.warns(UserWarning, match="activation='sigmoid'"):
        module = run(Labelled(lambda batch: batch, loss), collate)
    assert module.first[1].sum(1).eq(2).all() and module.first[1].dtype == torch.int64


def read_deep(batch):
    return batch[0], batch[1]["class"]


def test_dictionary_of_targets():
    """As detection data sets have them: the class is one entry."""

    def collate(items):
        images, labels = default_collate(items)
        return [images, {"boxes": torch.zeros(len(images), 4), "class": labels}]

    module = run(Labelled(read_deep), collate, target_key=[1, "class"])
    assert set(module.others[0][1]) == {"boxes", "class"}


def test_dictionary_of_targets_without_a_key_is_refused():
    """Before the first step, and naming target_key."""

    def collate(items):
        images, labels = default_collate(items)
        return [images, {"class": labels}]

    module = Lit()
    module.read = read_deep
    with pytest.raises(MisconfigurationException, match="target_key"):
        fit(
            module,
            [GroupCAMAugmentation(preset="paper", network="net", layer="relu2", groups=4)],
            train=DataLoader(Pictures(), batch_size=4, collate_fn=collate),
        )
    assert not module.seen


def test_image_label_index_triples():
    def collate(items):
        return [*default_collate(items), torch.arange(len(items))]

    module = run(Labelled(lambda batch: (batch[0], batch[1])), collate)
    assert torch.equal(module.others[0][2], torch.arange(4)), "what else is in the batch comes along"


@pytest.mark.parametrize("chosen, other", [("left", "right"), ("right", "left")])
def test_one_of_several_images(chosen, other):
    """Two views in one batch: the named one is augmented, the other one left alone."""

    def collate(items):
        images, labels = default_collate(items)
        return {"left": images, "right": images.flip(3).clone(), "label": labels}

    module = run(Labelled(lambda batch: (batch[chosen], batch["label"])), collate, image_key=chosen, target_key="label")
    assert torch.equal(module.others[0][other], module.first[other])


def test_labels_under_another_key():
    """Not the second item, and not a name that could be guessed."""

    def collate(items):
        images, labels = default_collate(items)
        return [images, torch.arange(len(items)), {"fine": labels}]

    run(Labelled(lambda batch: (batch[0], batch[2]["fine"])), collate, target_key=[2, "fine"])


def test_the_networks_own_first_choice():
    class Own(Labelled):
        def explained(self, targets):
            with torch.no_grad():
                self.net.eval()
                top = self.net(self.first[0]).argmax(1)
                self.net.train()
            return top

    module = run(Own(lambda batch: batch), default_collate, target_key=None)
    labelled = run(Labelled(lambda batch: batch), default_collate)
    assert not torch.equal(module.seen[0], labelled.seen[0])


class Binary(Lit):
    """One logit, floating-point labels, as BCEWithLogitsLoss wants them."""

    def __init__(self):
        super().__init__(PooledNet(classes=1))

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[0].clone())
        return F.binary_cross_entropy_with_logits(self(batch[0])[:, 0], batch[1])


def binary_batches():
    return Fixed([[x, y.clamp(max=1).float()] for x, y in loader()])


def test_single_logit_needs_the_sigmoid():
    """A softmax of one logit is always 1: refused before a step, with the remedy."""
    module = Binary()
    with pytest.raises(MisconfigurationException, match="single logit.*activation='sigmoid'"):
        fit(module, [GroupCAMAugmentation(preset="paper", network="net", layer="relu2", groups=4)], train=binary_batches())
    assert not module.seen


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_network_that_ends_in_a_sigmoid(activation, tmp_path):
    """With BCELoss: its outputs are probabilities, for the augmentation and the monitor alike; said once."""

    class Probability(Binary):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(self.net, nn.Sigmoid())

        def training_step(self, batch, batch_idx):
            self.seen.append(batch[0].clone())
            return F.binary_cross_entropy(self(batch[0])[:, 0], batch[1])

    module = Probability()
    options = {"layer": "relu2", "groups": 4}
    x, y = binary_batches().batches[0]
    expected = SaliencyBlur(GroupCAM.for_training(module.net[0], activation="sigmoid", **options))(x, y)
    augmentation = GroupCAMAugmentation(
        preset="paper", network="net", layer="0.relu2", groups=4, activation=activation, record=False
    )
    monitor = SaliencyMonitor(network="net", layer="0.relu2", activation=activation, images=(x, y.long()), log_images=False)
    with pytest.warns(UserWarning, match="ends in a softmax or sigmoid") as said:
        fit(module, [augmentation, monitor], train=binary_batches(), default_root_dir=tmp_path)
    assert sum("ends in a softmax" in str(one.message) for one in said) == 1
    torch.testing.assert_close(module.seen[0], expected)
    assert 0 < monitor.values["correct"] <= 1


def test_single_logit_with_the_sigmoid():
    module = Binary()
    cam = GroupCAM.for_training(module.net, "relu2", groups=4, activation="sigmoid")
    x, y = binary_batches().batches[0]
    expected = SaliencyBlur(cam)(x, y)
    fit(
        module,
        [GroupCAMAugmentation(preset="paper", network="net", layer="relu2", groups=4, activation="sigmoid")],
        train=binary_batches(),
    )
    assert torch.equal(module.seen[0], expected) and not torch.equal(expected, x)


def no_finding(items):
    """Several labels an image, every second image without any."""
    images, labels = default_collate(items)
    rows = F.one_hot(labels, 5).float()
    rows[1::2] = 0
    return [images, rows]


@pytest.mark.parametrize("mask_from", ["saliency", "other", "centre"])
def test_images_without_any_label_are_blurred_as_others_are(mask_from):
    """Else the blur itself would say that there is a label."""
    module = Lit()
    module.read = lambda batch: (batch[0], batch[1])
    options = {
        "preset": "paper",
        "network": "net",
        "layer": "relu2",
        "groups": 4,
        "activation": "sigmoid",
        "mask_from": mask_from,
    }
    data = DataLoader(Pictures(12), batch_size=4, collate_fn=no_finding)
    fit(module, [GroupCAMAugmentation(**options)], train=data)
    changed = [(seen != x).flatten(1).any(1) for seen, (x, _) in zip(module.seen, data, strict=True)]
    assert torch.cat(changed)[1::2].any(), "never when a row of zeros scores nothing"
    with torch.no_grad():
        first = Lit().net.eval()
        x, rows = next(iter(data))
        targets = torch.where(rows.any(1), rows.argmax(1), first(x).argmax(1))
        options = {name: options[name] for name in ("groups", "activation")}
        expected = SaliencyBlur(GroupCAM.for_training(first, "relu2", **options), mask_from=mask_from)(x, targets)
    assert torch.equal(module.seen[0], expected)


@pytest.mark.parametrize(
    "options", [{}, {"mask_from": "whole"}, {"mask_from": "other"}, {"mask_from": "inverse"}, {"fill": "noise"}]
)
def test_images_whose_label_is_ignored_stay_as_they_are(options):
    def collate(items):
        images, labels = default_collate(items)
        labels[1::2] = -100
        return [images, labels]

    module = Lit()
    data = DataLoader(Pictures(12), batch_size=4, collate_fn=collate)
    fit(module, [GroupCAMAugmentation(preset="paper", network="net", layer="relu2", groups=4, **options)], train=data)
    for seen, (x, y) in zip(module.seen, data, strict=True):
        assert torch.equal(seen[y == -100], x[y == -100])
    changed = torch.cat([(seen != x).flatten(1).any(1) for seen, (x, _) in zip(module.seen, data, strict=True)])
    assert changed[::2].any()


def test_an_ignored_label_has_no_part_in_mixed_labels():
    augment = SaliencyBlur(None, fill="other", mask_from=lambda x, y: x[:, 0] > 0.5)
    x = torch.rand(3, 3, 8, 8)
    labels = torch.tensor([1, -100, 0])
    done = augment.augment_at(x, labels, torch.arange(3))
    rows = augment.mixed_labels(labels, done, 3)
    kept = (x[:, 0] > 0.5).float().mean(dim=(1, 2))
    assert rows[1].tolist() == [0, 0, 0] and torch.equal(done.images[1], x[1]) and done.no_map.tolist() == [False, True, False]
    torch.testing.assert_close(rows[0], torch.tensor([0, kept[0], 0]))
    torch.testing.assert_close(rows[2], torch.tensor([kept[2], 1 - kept[2], 0]))
