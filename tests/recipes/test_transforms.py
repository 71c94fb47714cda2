"""What happens to an image and to its mask before the network."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as v1
from torchvision.transforms import v2

from groupcam_aug.recipes.transforms import Prepare, eval_transform, normalised, train_transform


@pytest.mark.parametrize("name", ["crop-resize", "pad-crop", "none"])
@pytest.mark.parametrize("image_size", [(20, 90), (224, 224), (63, 41)])
def test_train_transforms_give_the_size(name, image_size):
    assert train_transform(name, 48)(Image.new("RGB", image_size)).size == (48, 48)


def test_validation_takes_the_centre():
    image = Image.new("RGB", (512, 256))
    image.paste((255, 255, 255), (144, 16, 368, 240))  # the centre 224 after resizing the shorter side to 256
    assert all(low == 255 for low, _ in eval_transform(224)(image).getextrema())
    assert any(low == 0 for low, _ in eval_transform(224, 224)(image).getextrema())


FINISH = normalised((0, 0, 0), (1, 1, 1))


def test_a_normalisation_has_a_number_for_each_channel():
    for mean, std, told in (((0.5,), (1, 1, 1), r"mean=\[0.5\] has 1 numbers"), ((0, 0, 0), (1,) * 5, "std=.* has 5 numbers")):
        with pytest.raises(ValueError, match=f"{told}: give 3, for the images are RGB"):
            normalised(mean, std)


def picture():
    """White where the mask is, with noise of a few grey levels that tells crops apart; 61 x 47."""
    mask = torch.zeros(47, 61, dtype=torch.bool)
    mask[10:35, 5:40] = True
    values = np.random.default_rng(0).integers(0, 20, (47, 61, 3)) + 200 * mask.numpy()[..., None]
    return Image.fromarray(values.astype(np.uint8)), mask


@pytest.mark.parametrize("size", [32, 96])
@pytest.mark.parametrize("name", ["crop-resize", "pad-crop", "none"])
def test_masks_follow_their_images_and_change_nothing_in_them(name, size):
    prepare, (image, mask) = Prepare(train_transform(name, size), FINISH), picture()
    for seed in range(20):
        torch.manual_seed(seed)
        alone, after = prepare(image), torch.get_rng_state()
        torch.manual_seed(seed)
        with_mask, moved = prepare.pair(image, mask)
        assert torch.equal(alone, with_mask) and torch.equal(after, torch.get_rng_state())
        assert moved.dtype == torch.bool and moved.shape == (size, size) and type(moved) is type(with_mask) is torch.Tensor
        # Images are interpolated, masks are not: they may differ along the object's edge only.
        assert ((with_mask.mean(dim=0) > 0.43) == moved).float().mean() > 0.9


def test_a_mask_is_flipped_with_its_image():
    image, mask = picture()
    _, moved = Prepare(v2.RandomHorizontalFlip(p=1.0), FINISH).pair(image, mask)
    assert torch.equal(moved, mask.flip(1))


def only_image(image):
    return image


@pytest.mark.parametrize("first", [only_image, v1.CenterCrop(8), v1.Compose([v1.CenterCrop(8)])])
def test_a_transform_of_images_alone_is_refused_where_there_are_masks(first):
    with pytest.raises(TypeError, match="takes an image alone, but there are masks. Give a transform of torchvision"):
        Prepare(first, FINISH).check_takes_masks()


@pytest.mark.parametrize("first", [v2.CenterCrop(8), v2.Compose([v2.CenterCrop(8)]), lambda image, mask: (image, mask)])
def test_a_transform_of_both_is_taken(first):
    Prepare(first, FINISH).check_takes_masks()


def test_a_transform_that_gives_no_pair_is_named():
    with pytest.raises(TypeError, match=r"returned Image for \(image, mask\), not a pair"):
        Prepare(lambda image, mask: image, FINISH).pair(*picture())


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda image: torch.zeros(8, 8, 3), r"a tensor of shape \(8, 8, 3\): return a PIL image"),
        (lambda image: torch.full((3, 8, 8), 3.5), "numbers from 3.5 to 3.5.*leave Normalize out"),
        (lambda image: torch.full((3, 8, 8), torch.nan), "numbers from nan to nan"),
        (lambda image: torch.zeros(3, 8, 8, dtype=torch.int64), "a tensor of torch.int64"),
        (lambda image: np.zeros((3, 8, 8), np.uint8), r"an array of shape \(3, 8, 8\) and uint8"),
        (lambda image: np.zeros((8, 8, 3)), r"an array of shape \(8, 8, 3\) and float64"),
        (lambda image: image.convert("L"), "Image L"),
        (lambda image: None, "NoneType"),
    ],
)
def test_what_a_transform_returns_must_be_an_image(made, told):
    with pytest.raises(ValueError, match=f"train_transform returned {told}"):
        Prepare(made, normalised((0, 0, 0), (1, 1, 1)))(Image.new("RGB", (8, 8)))


@pytest.mark.parametrize(
    "made",
    [
        lambda image: image,
        lambda image: np.full((8, 8, 3), 51, np.uint8),
        lambda image: torch.full((3, 8, 8), 51, dtype=torch.uint8),
        lambda image: torch.full((3, 8, 8), 0.2),
        lambda image: torch.full((3, 8, 8), 0.2, dtype=torch.float64),
    ],
)
def test_images_of_all_kinds_become_float32(made):
    found = Prepare(made, normalised((0, 0, 0), (1, 1, 1)))(Image.new("RGB", (8, 8), (51, 51, 51)))
    assert found.dtype == torch.float32 and torch.allclose(found, torch.full((3, 8, 8), 0.2))
