"""The pencil of the shapes data: what a sample is drawn from, and what is drawn."""

import pytest
import torch

from groupcam_aug.recipes.drawing import CLASSES, FAMILIES, NUMBERS, RADIUS, draw_shapes


def drawn(labels, families, size=48, seed=0, **options):
    numbers = torch.rand(len(labels), NUMBERS, generator=torch.Generator().manual_seed(seed))
    return draw_shapes(numbers, torch.tensor(labels), torch.tensor(families), size, **options)


def test_shapes_and_kinds_of_what_comes_back():
    images, masks = drawn([0, 1, 5], [2, 3, 4], size=40)
    assert images.shape == (3, 3, 40, 40) and images.dtype == torch.uint8
    assert masks.shape == (3, 40, 40) and masks.dtype == torch.bool and masks.flatten(1).any(dim=1).all()


def test_a_sample_depends_on_its_own_numbers_alone():
    together, masks = drawn([0, 1, 2, 3], [3, 2, 1, 0])
    numbers = torch.rand(4, NUMBERS, generator=torch.Generator().manual_seed(0))
    for i in range(4):
        image, mask = draw_shapes(numbers[i : i + 1], torch.tensor([i]), torch.tensor([3 - i]), 48)
        assert torch.equal(image[0], together[i]) and torch.equal(mask[0], masks[i])


def test_the_object_covers_its_mask_and_nothing_else():
    labels = list(range(len(CLASSES)))
    images, masks = drawn(labels, labels)
    free, none = drawn(labels, labels, with_object=False)
    assert not none.any()
    differs = (images != free).any(dim=1)
    rim = torch.nn.functional.max_pool2d(masks[:, None].float(), 7, 1, 3)[:, 0] > 0  # thin tips
    assert not (differs & ~rim).any(), "outside only the background"
    assert (differs & masks).sum() > 0.95 * masks.sum()


@pytest.mark.parametrize("label", range(len(CLASSES)))
def test_every_class_lies_whole_in_the_image_and_has_its_size(label):
    _, masks = drawn([label] * 20, [0] * 20, size=64)
    assert not (masks[:, 0] | masks[:, -1] | masks[:, :, 0] | masks[:, :, -1]).any()
    rows = masks.any(dim=2).sum(dim=1)
    assert (rows <= 2 * RADIUS[1] * 64 + 1).all() and (rows >= RADIUS[0] * 64).all()


def test_classes_differ_in_their_outline_and_families_in_their_texture():
    count = len(CLASSES)
    _, masks = drawn([0] * count, list(range(count)), seed=1)
    numbers = torch.rand(1, NUMBERS, generator=torch.Generator().manual_seed(1)).expand(count, -1)
    _, outlines = draw_shapes(numbers, torch.arange(count), torch.zeros(count, dtype=torch.long), 48)
    assert len({tuple(outline.flatten().tolist()) for outline in outlines}) == count
    textures, _ = draw_shapes(numbers, torch.zeros(count, dtype=torch.long), torch.arange(len(FAMILIES)), 48, with_object=False)
    assert len({tuple(texture.flatten().tolist()) for texture in textures}) == len(FAMILIES)
