import pytest
import torch

from groupcam_aug.recipes.drawing import CLASSES, FAMILIES
from groupcam_aug.recipes.shapes import Shapes, ShapesDataModule


@pytest.mark.parametrize("size", [32, 45, 64])
def test_samples_have_the_size_asked_for(size):
    image, label = Shapes("train", 7, size=size)[6]
    assert image.shape == (3, size, size) and image.dtype == torch.float32
    assert image.min() >= 0 and image.max() <= 1 and label == 0


def test_a_sample_follows_from_split_seed_and_index_alone():
    long, short = Shapes("val", 300, seed=5), Shapes("val", 140, seed=5)
    last = short[139][0]  # asked for first, in a block of another length
    assert torch.equal(last, long[139][0]) and torch.equal(short.mask(139), long.mask(139))
    assert torch.equal(short[-1][0], last)
    assert not torch.equal(last, Shapes("val", 140, seed=6)[139][0])
    assert not torch.equal(last, Shapes("train", 140, seed=5)[139][0])


def test_drawing_touches_no_global_random_state():
    state = torch.get_rng_state()
    Shapes("train", 20)[3]
    assert torch.equal(state, torch.get_rng_state())


def test_masks_are_exact():
    kept, free = Shapes("kept", 60, size=64), Shapes("object_free", 60, size=64)
    for i in range(60):
        mask = kept.mask(i)[None].float()
        core = 1 - torch.nn.functional.max_pool2d(1 - mask, 3, 1, 1)[0]  # a pixel away from the rim, inwards
        halo = torch.nn.functional.max_pool2d(mask, 7, 1, 3)[0]  # three pixels outwards, for thin tips
        colours = kept[i][0][:, core > 0]
        assert colours.shape[1] > 20 and (colours - colours[:, :1]).abs().max() < 1.5 / 255  # one plain colour
        assert torch.equal(kept[i][0][:, halo == 0], free[i][0][:, halo == 0])  # the background as it is without the object
        assert 0.03 < mask.mean() < 0.5
        assert not free.mask(i).any()


def test_test_splits_share_objects_and_differ_in_backgrounds():
    kept, swapped = Shapes("kept", 90), Shapes("swapped", 90)
    for i in range(90):
        assert torch.equal(kept.mask(i), swapped.mask(i)) and kept[i][1] == swapped[i][1]
        assert kept.family(i) == FAMILIES[i % 6] != swapped.family(i)


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_rho_is_the_share_of_backgrounds_that_agree(rho):
    data = Shapes("train", 1200, rho=rho)
    agree = sum(data.family(i) == FAMILIES[i % 6] for i in range(1200)) / 1200
    assert abs(agree - rho) < (0.05 if 0 < rho < 1 else 1e-9)


def test_disagreeing_backgrounds_come_from_all_other_families():
    data = Shapes("swapped", 300)
    seen = {(i % 6, data.family(i)) for i in range(300)}
    assert len(seen) == 6 * 5


def test_classes_look_different():
    data = Shapes("object_free", 36)
    assert len({data[i][0].sum().item() for i in range(36)}) == 36
    areas = [torch.stack([Shapes("kept", 60).mask(i).float().sum() for i in range(c, 60, 6)]).mean().item() for c in range(6)]
    assert len(areas) == len(CLASSES) and max(areas) > 1.3 * min(areas)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [({"split": "tset"}, "tset"), ({"size": 31}, "size=31"), ({"rho": 1.1}, "rho=1.1"), ({"length": 0}, "length=0")],
)
def test_out_of_range_is_refused(arguments, told):
    with pytest.raises(ValueError, match=told):
        Shapes(**arguments)


def test_an_index_outside_is_an_index_error():
    with pytest.raises(IndexError, match="10"):
        Shapes("val", 10)[10]


def test_data_module_normalises_and_keeps_the_last_small_batch():
    data = ShapesDataModule(train=50, val=10, test=10, batch_size=16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    sizes = [len(labels) for _, labels in data.train_dataloader()]
    assert sizes == [16, 16, 16, 2]
    image = next(iter(data.val_dataloader()))[0][0]
    assert torch.allclose(image, (Shapes("val", 10)[0][0] - 0.5) / 0.25, atol=1e-6)
    assert data.num_classes == 6 and data.class_names == list(CLASSES) and data.size == 32


def test_a_list_of_test_backgrounds_gives_a_loader_each():
    data = ShapesDataModule(train=8, val=4, test=7, batch_size=4, test_backgrounds=["swapped", "kept"])
    loaders = data.test_dataloader()
    assert list(loaders) == list(data.test_sets) == ["swapped", "kept"]
    for name, loader in loaders.items():
        images = torch.cat([images for images, _ in loader])
        expected = torch.stack([(Shapes(name, 7)[i][0] - 0.5) / 0.25 for i in range(7)])
        assert torch.allclose(images, expected, atol=1e-6), name
    predicted = torch.cat([images for images, _ in data.predict_dataloader()])
    assert torch.equal(predicted, torch.cat([images for loader in loaders.values() for images, _ in loader]))


def test_one_test_background_gives_one_loader():
    data = ShapesDataModule(train=8, val=4, test=6, test_backgrounds="object_free")
    images, labels = next(iter(data.test_dataloader()))
    assert torch.allclose(images[2], (Shapes("object_free", 6)[2][0] - 0.5) / 0.25, atol=1e-6)
    assert labels.tolist() == [0, 1, 2, 3, 4, 5] and list(data.test_sets) == ["object_free"]


def epoch(**options):
    torch.manual_seed(5)
    return list(ShapesDataModule(train=40, batch_size=16, **options).train_dataloader())


def test_masks_come_with_training_batches_and_change_no_image():
    plain, masked = epoch(flip=True), epoch(flip=True, masks=True)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(plain, masked, strict=True))
    assert [len(batch) for batch in plain] == [2, 2, 2]
    images, labels, masks = epoch(masks=True)[0]
    assert masks.shape == (16, 32, 32) and masks.dtype == torch.bool
    shapes = Shapes("train", 40)
    originals = torch.stack([(shapes[i][0] - 0.5) / 0.25 for i in range(40)])
    for image, label, mask in zip(images, labels, masks, strict=True):
        i = int((originals - image).abs().amax(dim=(1, 2, 3)).argmin())
        assert label == i % 6 and torch.equal(mask, shapes.mask(i))
    assert len(next(iter(ShapesDataModule(train=40, val=6, masks=True).val_dataloader()))) == 2


def test_training_images_are_flipped_only_if_asked():
    originals = torch.stack([(Shapes("train", 40)[i][0] - 0.5) / 0.25 for i in range(40)])

    def flipped(batches):
        images = torch.cat([batch[0] for batch in batches])
        upright = [bool((originals - image).abs().amax(dim=(1, 2, 3)).min() < 1e-5) for image in images]
        assert all(up or (originals.flip(3) - image).abs().amax(dim=(1, 2, 3)).min() < 1e-5 for up, image in zip(upright, images))
        return upright.count(False)

    assert flipped(epoch()) == 0 and 8 < flipped(epoch(flip=True)) < 32


def test_what_fills_no_batch_is_dropped_on_request():
    assert [len(batch[1]) for batch in epoch(drop_last=True)] == [16, 16]
    with pytest.raises(ValueError, match="batch_size=64 from train=40"):
        ShapesDataModule(train=40, drop_last=True)


def test_the_seed_may_be_that_of_the_run(monkeypatch):
    def first(**options):
        return ShapesDataModule(train=6, **options).train_set.tensors()[0]

    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert torch.equal(first(seed=None), first(seed=7)) and not torch.equal(first(seed=7), first())
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert torch.equal(first(seed=None), first(seed=0))


@pytest.mark.parametrize("backgrounds", ["train", ["kept", "train"], []])
def test_data_module_refuses_an_unknown_test_split(backgrounds):
    with pytest.raises(ValueError, match="kept, swapped, object_free"):
        ShapesDataModule(test_backgrounds=backgrounds)
