"""Masks in a folder that mirrors the images'."""

import numpy as np
import pytest
import torch
from PIL import Image

from groupcam_aug.recipes.masked_folder import MaskedFolder, mask_file, open_mask
from groupcam_aug.recipes.transforms import Prepare, eval_transform, normalised


def prepare(size=8):
    return Prepare(eval_transform(size), normalised((0, 0, 0), (1, 1, 1)))


@pytest.fixture
def root(tmp_path):
    """Two classes of two images of 8 x 8; the mask of ant/0 is its upper half, ant/1 has none, those of bee are everything."""
    for name in ("ant", "bee"):
        for folder in ("train", "masks/train"):
            (tmp_path / folder / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (8, 8), (10 * i, 0, 0)).save(tmp_path / "train" / name / f"{i}.jpg")
            mask = np.ones((8, 8), bool)
            mask[4:] = name == "bee"
            if (name, i) != ("ant", 1):
                Image.fromarray(mask).save(tmp_path / "masks" / "train" / name / f"{i}.png")
    return tmp_path


def test_samples_hold_image_label_and_mask(root):
    data = MaskedFolder(root / "train", prepare(), root, root / "masks")
    samples = [data[i] for i in range(4)]
    assert [label for _, label, _ in samples] == [0, 0, 1, 1] and samples[0][0].shape == (3, 8, 8)
    upper = torch.arange(8)[:, None].expand(8, 8) < 4
    assert [torch.equal(samples[i][2], expected) for i, expected in ((0, upper), (1, upper & False), (2, upper | True))] == [
        True
    ] * 3
    assert all(mask.dtype == torch.bool for *_, mask in samples)


def test_a_folder_without_a_single_mask_is_named_with_where_one_would_be(root):
    with pytest.raises(ValueError, match=r"mosks' holds the mask of no training image; .*ant/0.png"):
        MaskedFolder(root / "train", prepare(), root, root / "mosks")


def test_a_mask_of_another_size_is_named(root):
    Image.new("1", (4, 6), 1).save(root / "masks" / "train" / "ant" / "0.png")
    with pytest.raises(ValueError, match=r"ant/0.png' has 4 x 6 pixels, its image, upright, 8 x 8"):
        MaskedFolder(root / "train", prepare(), root, root / "masks")[0]


def test_a_mask_that_cannot_be_read_is_named(root):
    path = root / "masks" / "train" / "ant" / "0.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"ant/0.png' cannot be read"):
        MaskedFolder(root / "train", prepare(), root, root / "masks")[0]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
@pytest.mark.parametrize("value", [1, 255])
def test_what_is_not_zero_is_the_object(tmp_path, mode, value):
    values = np.zeros((3, 5), np.uint8)
    values[1, 2:] = value
    picture = Image.fromarray(values)
    if mode == "P":
        picture = Image.frombytes("P", (5, 3), values.tobytes())
        picture.putpalette([0, 0, 0] * 256)
    elif mode == "1":
        picture = Image.fromarray(values > 0)
    else:
        picture = picture.convert(mode)
    picture.save(tmp_path / "m.png")
    assert torch.equal(open_mask(tmp_path / "m.png", (5, 3)), torch.from_numpy(values > 0))


def test_the_folder_mirrors_the_images(tmp_path):
    assert mask_file("/a/train/ant/b.c.jpg", "/a", tmp_path) == tmp_path / "train" / "ant" / "b.c.png"


def only_image(image):
    return image


def test_a_transform_of_images_alone_is_refused_at_once(root):
    with pytest.raises(TypeError, match="takes an image alone"):
        MaskedFolder(root / "train", Prepare(only_image, only_image), root, root / "masks")


def test_masks_are_of_the_image_as_it_is_shown(root):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its left side
    picture = Image.new("RGB", (8, 16))
    picture.paste((255, 0, 0), (0, 0, 8, 4))
    picture.transpose(Image.Transpose.ROTATE_90).save(root / "train" / "ant" / "0.png", exif=exif)
    (root / "train" / "ant" / "0.jpg").unlink()
    mask = np.zeros((16, 8), bool)
    mask[:4] = True
    Image.fromarray(mask).save(root / "masks" / "train" / "ant" / "0.png")
    crop = Prepare(lambda *both: both, normalised((0, 0, 0), (1, 1, 1)))
    image, _, found = MaskedFolder(root / "train", crop, root, root / "masks")[0]
    assert torch.equal(found, torch.from_numpy(mask)) and torch.equal(image[0] > 0.5, found)
