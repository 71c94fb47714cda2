import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset

from groupcam_aug.recipes.tensor_images import TensorImages, image_loader

MEAN, STD = (0.5, 0.25, 0.0), (0.25, 0.5, 1.0)


def draw(count=5):
    """Images whose red grows from left to right; the mask is the first column."""
    images = torch.zeros(count, 3, 2, 4, dtype=torch.uint8)
    images[:, 0] = torch.tensor([0, 51, 102, 255])
    images[:, 1] = torch.arange(count).view(-1, 1, 1) * 51
    masks = torch.zeros(count, 2, 4, dtype=torch.bool)
    masks[:, :, 0] = True
    return images, torch.arange(count) % 3, masks


def make(count=5, **options):
    return TensorImages(lambda: draw(count), count, mean=MEAN, std=STD, **options)


def test_a_sample_is_normalised():
    image, label = make()[4]
    assert image.shape == (3, 2, 4) and image.dtype == torch.float32 and label == 1
    expected = torch.tensor([(0 - 0.5) / 0.25, (0.2 - 0.5) / 0.25, (0.4 - 0.5) / 0.25, (1 - 0.5) / 0.25])
    assert torch.allclose(image[0], expected.expand(2, 4))
    assert torch.allclose(image[1], torch.full((2, 4), (0.8 - 0.25) / 0.5)) and torch.equal(image[2], torch.zeros(2, 4))
    assert torch.equal(make()[-1][0], image) and len(make()) == 5


def test_batches_have_the_samples_in_channels_last_layout():
    data = make(masks=True)
    batches = list(image_loader(data, 2))
    assert [len(batch[1]) for batch in batches] == [2, 2, 1] and isinstance(batches[0], list)
    images, labels, masks = batches[1]
    assert torch.equal(images[1], data[3][0]) and images.is_contiguous(memory_format=torch.channels_last)
    assert labels.tolist() == [2, 0] and labels.dtype == torch.int64
    assert masks.shape == (2, 2, 4) and masks.dtype == torch.bool and torch.equal(masks, draw()[2][2:4])
    assert [len(batch[1]) for batch in image_loader(data, 2, drop_last=True)] == [2, 2]


def test_flips_turn_image_and_mask_together_about_half_the_time():
    plain, turned = make(400)[0][0], 0
    for image, _, mask in make(400, flip=True, masks=True).__getitems__(list(range(400))):
        flipped = bool(mask[0, 3])
        assert torch.equal(image[0], plain[0].flip(1) if flipped else plain[0])
        assert mask.sum() == 2 and bool(mask[0, 0]) != flipped
        turned += flipped
    assert 160 < turned < 240


def test_flips_follow_from_the_global_seed(monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)  # where `seed_everything` of another test may have left its own
    data = make(40, flip=True)

    def epoch(seed):
        torch.manual_seed(seed)
        return torch.cat([images for images, _ in image_loader(data, 8, shuffle=True)])

    assert torch.equal(epoch(3), epoch(3)) and not torch.equal(epoch(3), epoch(4))


def test_masks_change_no_image():
    def epoch(masks):
        torch.manual_seed(0)
        return torch.cat([batch[0] for batch in image_loader(make(40, flip=True, masks=masks), 8, shuffle=True)])

    assert torch.equal(epoch(False), epoch(True))


def test_it_is_drawn_once_and_when_first_asked_for():
    calls = []

    def counted():
        calls.append(1)
        return draw()

    data = TensorImages(counted, 5, mean=MEAN, std=STD)
    assert not calls
    data[0], data[1], list(image_loader(data, 2))
    assert calls == [1]


def test_what_is_drawn_stays_as_it_is():
    data = make(flip=True, masks=True)
    for image, _, mask in data.__getitems__([0, 1, 2, 3, 4]):
        image.zero_()
        mask.zero_()
    assert all(torch.equal(a, b) for a, b in zip(data.tensors(), draw(), strict=True))


@pytest.mark.parametrize("wrap", [lambda data: Subset(data, [0, 1, 2]), lambda data: ConcatDataset([data, data])])
def test_it_serves_like_any_data_set(wrap):
    images, labels = next(iter(DataLoader(wrap(make()), 3)))
    assert images.shape == (3, 3, 2, 4) and labels.tolist() == [0, 1, 2]


def test_groups_are_kept():
    assert make(2, groups=["a", "b"]).groups == ["a", "b"] and make().groups is None
