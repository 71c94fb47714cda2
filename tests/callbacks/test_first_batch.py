"""What cannot work shows at the first batch, whatever the epoch to start with; what is odd later on is passed on or named."""

import random

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lit import SILENT, Lit, Pictures, fit, loader, same, state
from pytorch_lightning.utilities import CombinedLoader
from torch.utils.data import DataLoader, default_collate

from groupcam_aug import SaliencyBlur
from groupcam_aug.callbacks import GroupCAMAugmentation
from groupcam_aug.recipes.trial.batch_transform import BatchTransform


def make(**options):
    return GroupCAMAugmentation(**{"preset": "paper", "network": "net", "layer": "relu2", "groups": 4, **options})


class Drawing(Lit):
    """Draws random numbers in its step, so that a number used up by somebody else shows."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + 0 * torch.rand(1).sum()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"network": "model"}, "no network 'model'"),
        ({"layer": "layer9"}, "no layer 'layer9'"),
        ({"image_key": "pixels"}, "'pixels' is not in the batch"),
        ({"target_key": 2}, "2 is not in the batch"),
        ({"groups": 99}, "groups=99, but layer 'relu2' has only 8 channels"),
        ({"mask_at": "nowhere"}, "no layer 'nowhere'"),
        ({"mask_key": 2}, "2 is not in the batch.*mask_key"),
        ({"fill": lambda images: images[:, :1]}, "fill must return images of shape"),
    ],
)
@pytest.mark.parametrize("run", [{"max_epochs": 5}, {"fast_dev_run": 1}])
def test_a_late_start_hides_no_mistake(options, message, run):
    module = Lit()
    with pytest.raises(MisconfigurationException, match=message):
        fit(module, [make(start_epoch=3, **options)], **run)
    assert not module.seen, "before the first step"


@pytest.mark.parametrize("p", [1e-9, 0.5])
def test_nor_does_a_first_batch_of_which_no_image_is_drawn(p):
    with pytest.raises(MisconfigurationException, match="no layer"):
        fit(Lit(), [make(p=p, layer="layer9")])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask_from": "other"},
        {"fill": "noise"},
        {"fill": "other", "labels": "mixed"},
        {"weights": "gradient"},
        {"layer": None},
        {"fill": torch.randn_like},
        {"mask_from": lambda images, _: torch.rand(len(images), *images.shape[2:]) > random.random() * np.random.rand()},  # noqa: NPY002
    ],
)
def test_the_check_changes_nothing(options):
    """Weights, buffers, random numbers and logged values of a run that is over before the augmentation starts."""
    runs = []
    for callbacks in ([], [make(start_epoch=3, **options)]):
        module = Drawing()
        trainer = fit(module, callbacks, max_epochs=2, train=loader(shuffle=True))
        runs.append((state(module), module.seen, dict(trainer.callback_metrics)))
    assert same(runs[0][0], runs[1][0]) and same(runs[0][1], runs[1][1]) and runs[0][2] == runs[1][2] == {}


def test_and_is_made_once():
    applied = []

    class Counting(SaliencyBlur):
        def augment_at(self, *args):
            applied.append(args[2].tolist())
            return super().augment_at(*args)

    callback = make(start_epoch=1, stop_epoch=2)
    callback.augment.__class__ = Counting
    fit(Lit(), [callback], max_epochs=3)
    assert applied == [[0], [0, 1, 2, 3], [0, 1, 2, 3], [0, 1]]


def test_labels_are_looked_at_again_after_a_check_of_one_image():
    """On an accelerator they are looked at once an epoch: the check must not have used that up."""
    callback, looks = make(start_epoch=1), []

    class Spy(pl.Callback):
        def on_train_batch_end(self, *_):
            looks.append(callback._fit.source.cam.recheck)

    fit(Lit(), [callback, Spy()], max_epochs=2)
    assert looks == [True, True, True, False, False, False]


class Two(Lit):
    """Two loaders, of which the shorter one runs out."""

    def __init__(self, take):
        super().__init__()
        self.take, self.batches = take, []

    def training_step(self, batch, batch_idx):
        self.batches.append(batch)
        part = self.take(batch)
        if part is None:
            return 0 * self.net.fc.bias.sum()
        return super().training_step(part, batch_idx)


@pytest.mark.parametrize("callback", [make(image_key=["short", 0], target_key=["short", 1]), None])
def test_batches_without_images_are_passed_on_where_a_loader_has_run_out(callback):
    if callback is None:
        callback = BatchTransform("erase", p=1.0, image_key=["short", 0], target_key=["short", 1])
    module = Two(lambda batch: batch["short"])
    both = CombinedLoader({"short": loader(4), "long": loader(12)}, "max_size")
    fit(module, [callback], train=both, max_epochs=2)
    assert [batch["short"] is None for batch in module.batches] == [False, True, True] * 2
    assert all(torch.equal(batch["long"][0], x) for batch, (x, _) in zip(module.batches, [*loader(12)] * 2, strict=True))
    assert all(not torch.equal(seen, Pictures().images[:4]) for seen in module.seen) and len(module.seen) == 2


def test_labels_of_a_loader_that_has_run_out():
    module = Two(lambda batch: None)
    both = CombinedLoader([loader(12), loader(4)], "max_size")
    fit(module, [make(image_key=[0, 0], target_key=[1, 1])], train=both)
    raw = [x for x, _ in loader(12)]
    assert [torch.equal(batch[0][0], x) for batch, x in zip(module.batches, raw, strict=True)] == [False, True, True]


@pytest.mark.parametrize(
    "collate, message",
    [
        (lambda x, y: [None, y], "image_key=0 gives NoneType, not floating-point images"),
        (lambda x, y: [x, None], "target_key=1 gives None, not labels"),
        (lambda x, y: [x, ["cat", "dog", "cat", "owl"]], r"target_key=1 gives \['cat', 'dog'.*number the classes"),
        (lambda x, y: [x, "cat"], "target_key=1 gives 'cat', not labels"),
        (lambda x, y: [x.permute(0, 2, 3, 1), y], r"images \(4, 24, 20, 3\) with the channels last.*permute\(0, 3, 1, 2\)"),
        (lambda x, y: [x.double(), y], r"float32 parameters and does not take torch.float64 images .*precision="),
    ],
)
@pytest.mark.parametrize("start", [0, 2])
def test_odd_batches_are_named(collate, message, start):
    module = Lit()
    with pytest.raises(MisconfigurationException, match=message):
        fit(module, [make(start_epoch=start)], train=loader(collate_fn=lambda items: collate(*default_collate(items))))
    assert not module.seen


def test_a_network_that_casts_its_images_is_mapped():
    class Casting(Lit):
        def forward(self, x):
            return self.net(x.float())

    module = Casting()
    fit(
        module,
        [make(network=None, layer="net.relu2")],
        train=loader(collate_fn=lambda items: [default_collate(items)[0].double(), default_collate(items)[1]]),
    )
    assert [x.dtype for x in module.seen] == [torch.float64] * 3 and not torch.equal(
        module.seen[0].float(), Pictures().images[:4]
    )


@pytest.mark.parametrize("callback", [make(), make(source="ema"), BatchTransform("erase")])
def test_going_on_without_the_callback_is_named(callback, tmp_path):
    trainer = fit(Lit(), [callback])
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    torch.load(tmp_path / "some.ckpt", weights_only=True)
    with pytest.warns(UserWarning, match=f"callbacks used to create the checkpoint.*{type(callback).__name__}"):
        pl.Trainer(**SILENT, max_epochs=2).fit(Lit(), loader(), ckpt_path=tmp_path / "some.ckpt")


def test_several_in_one_trainer_go_on(tmp_path, recwarn):
    def several():
        return [make(seed=1, every_n_steps=2), make(seed=2, p=0.5)]

    trainer = fit(Lit(), several())
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    fit_again = pl.Trainer(**SILENT, max_epochs=2, callbacks=several())
    fit_again.fit(Lit(), DataLoader(Pictures(), 4), ckpt_path=tmp_path / "some.ckpt")
    assert fit_again.current_epoch == 2 and not [w for w in recwarn if "callbacks used to create" in str(w.message)]
