"""Object masks of a batch: read in every form, used in place of maps, and what a step kept of objects and backgrounds."""

import json
import math

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lit import Fixed, Lit, fit
from models import PooledNet
from pytorch_lightning.loggers import CSVLogger

from groupcam_aug import SaliencyBlur
from groupcam_aug.augment import Augmented
from groupcam_aug.callbacks import GroupCAMAugmentation
from groupcam_aug.callbacks.glue.object_masks import count_kept, kept_shares, read_masks
from groupcam_aug.files import read_lines

SIZE = (24, 20)  # of the images: 480 pixels


def pictures(count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, *SIZE, generator=generator), torch.randint(5, (count,), generator=generator)


def squares(count=4, empty=()):
    """An object of 8 x 10 pixels in each image, but in those of `empty`."""
    masks = torch.zeros(count, *SIZE, dtype=torch.bool)
    masks[:, 4:12, 6:16] = True
    masks[list(empty)] = False
    return masks


def left(images, targets):
    """Keeps the left half: 10 of 20 columns, 4 of the object's 10."""
    keep = torch.zeros(len(images), *SIZE, dtype=torch.bool)
    keep[..., :10] = True
    return keep


def make(**options):
    return GroupCAMAugmentation(**{"preset": "paper", "network": "net", "layer": "relu2", "groups": 4, "mask_key": 2, **options})


def read(masks, **options):
    return read_masks(None, [*pictures(), masks], 2, pictures()[0], "GroupCAMAugmentation", **options)


@pytest.mark.parametrize(
    "form",
    [
        squares(),
        squares()[:, None],
        squares().float(),
        squares().half(),
        squares().long(),
        squares().byte()[:, None],
        squares()[:, ::2, ::2],
        squares()[:, ::2, ::2].int(),
        squares().repeat_interleave(3, 1).repeat_interleave(2, 2),
        squares().repeat_interleave(3, 1).repeat_interleave(2, 2).double(),
    ],
    ids=lambda form: f"{form.dtype} {tuple(form.shape)}",
)
def test_masks_of_every_form_become_maps_of_the_images_size(form):
    maps = read(form)
    assert maps.dtype == torch.float32 and torch.equal(maps >= 0.5, squares())
    if not form.is_floating_point():
        assert torch.equal(maps, squares().float()), "hard masks stay hard"


def test_soft_masks_keep_their_values():
    soft = squares().float() * 0.6
    assert torch.equal(read(soft), soft)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (squares(3), r"mask_key=2 gives a bool tensor \(3, 24, 20\), not object masks \(4, H, W\)"),
        (squares()[0], r"gives a bool tensor \(24, 20\)"),
        (squares()[:, None].repeat(1, 3, 1, 1), r"gives a bool tensor \(4, 3, 24, 20\)"),
        (squares().byte() * 255, r"values outside \[0, 1\].*masks / 255"),
        (squares().long() - 1, r"values outside \[0, 1\].*masks > 0"),
        (squares().float() * 255, r"values outside \[0, 1\].*divide by their maximum"),
        (squares().float() * math.nan, r"values outside \[0, 1\]"),
        (squares().to(torch.complex64), "complex64"),
        ([1, 2, 3, 4], "mask_key=2 gives .*not object masks"),
    ],
    ids=range(9),
)
def test_wrong_masks_are_refused_with_what_the_batch_holds(masks, message):
    with pytest.raises(MisconfigurationException, match=message) as caught:
        read(masks)
    assert "the batch holds [0: float32 tensor (4, 3, 24, 20)" in str(caught.value).replace("The", "the")


def test_values_are_not_looked_at_unless_asked():
    nowhere = torch.empty(4, *SIZE, dtype=torch.uint8, device="meta")
    images = torch.empty(4, 3, *SIZE, device="meta")
    assert read_masks(None, [images, 0, nowhere], 2, images, "", check=False).shape == (4, *SIZE)


def test_a_missing_key_is_named():
    with pytest.raises(MisconfigurationException, match=r"2 is not in the batch, which holds .*mask_key="):
        fit(Lit(), [make()])


def test_counts_by_hand_without_a_wait_for_the_device():
    masks = squares(4, empty=[1]).float()
    keep = left(torch.empty(3), None)
    done = Augmented(torch.empty(0), torch.tensor([0, 1, 3]), keep.float(), keep, torch.tensor([False, False, True]))
    # Image 1 has no mask, image 3 no map, image 2 was not drawn: image 0 is left, 32 of 80 and 208 of 400 pixels.
    assert count_kept(masks, done).tolist() == [32, 80, 208, 400]
    assert [float(share) for share in kept_shares(torch.tensor([32, 80, 208, 400]))] == pytest.approx([0.4, 0.52])
    assert all(share.isnan() for share in kept_shares(torch.zeros(4, dtype=torch.long)))
    there = Augmented(torch.empty(0), done.drawn, *(part.to("meta") for part in done[2:]))
    assert kept_shares(count_kept(masks.to("meta"), there))[0].is_meta


def test_masks_take_the_place_of_maps():
    images, labels = pictures()
    masks = squares(empty=[2])
    module = Lit()
    module.net.register_forward_hook(lambda *_: runs.append(callback.in_extra_forward))
    callback, runs = make(), []
    trainer = fit(module, [callback], train=Fixed([[images, labels, masks]]))
    (seen,) = module.seen
    kept = (seen == images).all(dim=1)
    assert kept[[0, 1, 3]][masks[[0, 1, 3]]].all() and not kept[[0, 1, 3]][~masks[[0, 1, 3]]].any()
    assert torch.equal(seen[2], images[2]), "nothing is known of it"
    assert trainer.callback_metrics["groupcam/no_map"] == 0.25
    assert (trainer.callback_metrics["groupcam/object_kept"], trainer.callback_metrics["groupcam/ground_kept"]) == (1, 0)
    assert runs == [False], "no pass but the user's"


class Dicts(Lit):
    def read(self, batch):
        return batch["image"], batch["label"]


@pytest.mark.parametrize("source", ["self", None])
@pytest.mark.parametrize("small", [False, True], ids=["whole", "half size"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.uint8])
@pytest.mark.parametrize("as_dict", [False, True])
def test_shares_kept_are_logged_and_recorded(tmp_path, as_dict, dtype, small, source):
    batches, masks = [(*pictures(4), squares(4, empty=[3])), (*pictures(2, seed=1), squares(2))], []
    for _, _, mask in batches:
        masks.append(mask.to(dtype)[:, None])
        masks[-1] = masks[-1][..., ::2, ::2] if small else masks[-1]
    batches = [[x, y, mask] for (x, y, _), mask in zip(batches, masks, strict=True)]
    names = {"image_key": "image", "target_key": "label", "mask_key": "mask"} if as_dict else {}
    if as_dict:
        batches = [dict(zip(("image", "label", "mask"), batch, strict=True)) for batch in batches]
    callback = make(mask_from=left, source=source, **names)
    module = Dicts() if as_dict else Lit()
    trainer = fit(module, [callback], train=Fixed(batches), logger=CSVLogger(tmp_path), log_every_n_steps=1)
    # Every image keeps its left half, whatever its mask says: 4 of the object's 10 columns.
    assert trainer.callback_metrics["groupcam/object_kept"] == pytest.approx(0.4)
    assert trainer.callback_metrics["groupcam/ground_kept"] == pytest.approx((24 * 10 - 32) / 400)
    (folder,) = tmp_path.rglob("groupcam")
    (line,) = read_lines(folder, "augmentation")
    assert line["object_kept"] == pytest.approx(0.4) and line["ground_kept"] == pytest.approx(0.52)
    assert json.loads((folder / "augmentation.json").read_text())["source"] == (source or "masks")


def test_shares_are_pooled_over_the_step_and_the_epoch(tmp_path):
    one, other = squares(2), squares(2)
    one[1] = False
    one[1, :, :10] = True  # 240 pixels, all of them on the left
    other[:, :, 10:] = False  # what is left of the object has 8 x 4 pixels, all kept
    batches = [[*pictures(2), one], [*pictures(2, seed=1), other]]
    logged = []

    class Logging(Lit):
        def log(self, name, value, **options):
            if name.endswith("object_kept"):
                logged.append(float(value))
            super().log(name, value, **options)

    fit(Logging(), [make(mask_from=left)], train=Fixed(batches), logger=CSVLogger(tmp_path), log_every_n_steps=1)
    assert logged == pytest.approx([(32 + 240) / (80 + 240), 1.0])
    (line,) = read_lines(next(tmp_path.rglob("groupcam")), "augmentation")
    assert line["object_kept"] == pytest.approx((32 + 240 + 64) / (80 + 240 + 64))
    assert line["ground_kept"] == pytest.approx((208 + 0 + 2 * 208) / (400 + 240 + 2 * (480 - 32)))


def test_without_masks_nothing_is_logged_and_with_empty_ones_nan(tmp_path):
    images, labels = pictures()
    trainer = fit(Lit(), [make(mask_key=None)], train=Fixed([[images, labels]]), logger=CSVLogger(tmp_path))
    assert "groupcam/object_kept" not in trainer.callback_metrics
    (line,) = read_lines(next(tmp_path.rglob("groupcam")), "augmentation")
    assert line["object_kept"] is line["ground_kept"] is None
    empty = Fixed([[images, labels, torch.zeros(4, *SIZE)]])
    trainer = fit(Lit(), [make()], train=empty, logger=CSVLogger(tmp_path, version=7))
    assert trainer.callback_metrics["groupcam/object_kept"].isnan() and trainer.callback_metrics["groupcam/ground_kept"].isnan()
    assert trainer.callback_metrics["groupcam/no_map"] == 1
    (line,) = read_lines(tmp_path / "lightning_logs" / "version_7" / "groupcam", "augmentation")
    assert line["object_kept"] is None and line["no_map"] == 4


def test_beside_maps_masks_only_measure():
    images, labels = pictures()
    plain, measured = Lit(), Lit()
    fit(plain, [make(mask_key=None)], train=Fixed([[images, labels]]))
    trainer = fit(measured, [make(source="self")], train=Fixed([[images, labels, squares()]]))
    assert torch.equal(plain.seen[0], measured.seen[0]) and 0 <= trainer.callback_metrics["groupcam/object_kept"] <= 1


@pytest.mark.parametrize("control", ["other", "centre", "whole", "inverse"])
def test_controls_and_threshold_work_on_object_masks(control):
    images, labels = pictures()
    masks = squares().float()
    masks[0] = masks[0].roll(5, dims=0) * 0.7 + 0.1
    module = Lit()
    options = {"mask_from": control, "threshold": 0.5, "fill": "mean"}
    fit(module, [make(**options)], train=Fixed([[images, labels, masks]]))
    expected = SaliencyBlur(lambda *_: masks.roll(-1, 0) if control == "other" else masks, **options)(images)
    assert torch.equal(module.seen[0], expected)


class NoForward(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = PooledNet()

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def test_a_module_without_forward_needs_no_network_named(caplog):
    caplog.set_level("INFO")
    fit(NoForward(), [make(network=None)], train=Fixed([[*pictures(), squares()]]))
    (told,) = [r.getMessage() for r in caplog.records if "Group-CAM augmentation" in r.getMessage()]
    assert told.endswith("object masks of the batch (mask_from='saliency'), every image: no map is made")


def test_masks_without_a_key_are_refused_at_once():
    with pytest.raises(ValueError, match="source='masks' needs mask_key="):
        make(source="masks", mask_key=None)
