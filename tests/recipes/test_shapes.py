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


def test_data_module_refuses_an_unknown_test_split():
    with pytest.raises(ValueError, match="kept, swapped, object_free"):
        ShapesDataModule(test_backgrounds="train")
