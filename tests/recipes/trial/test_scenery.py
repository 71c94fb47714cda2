import math

import pytest
import torch

from groupcam_aug.recipes.trial.scenery import draw_scenes


def draw(shortcut="texture", families=None, kinds=2, pixels=48, count=24, seed=0):
    photographs = torch.full((count, 3, 32, 32), 255.0)
    families = torch.arange(count) % kinds if families is None else families
    return draw_scenes(photographs, families, kinds, pixels, shortcut, torch.Generator().manual_seed(seed))


def test_photographs_stand_sharp_within_their_masks():
    images, masks = draw()
    assert images.shape == (24, 3, 48, 48) and images.dtype == torch.uint8 and masks.shape == (24, 48, 48)
    for image, mask in zip(images, masks, strict=True):
        at = mask.nonzero()
        height, width = (at.amax(0) - at.amin(0) + 1).tolist()
        assert 17 <= height <= 30 and 17 <= width <= 30  # 21 to 30 pixels, less the soft rim
        rim = torch.nn.functional.max_pool2d((~mask)[None].float(), 9, 1, 4)[0] > 0
        core = mask & ~rim
        assert core.sum() > 20 and bool((image[:, core] == 255).all())


@pytest.mark.parametrize("shortcut", ["texture", "colour"])
def test_objects_do_not_depend_on_the_family(shortcut):
    first, second = (draw(shortcut, torch.full((24,), family)) for family in (0, 1))
    assert torch.equal(first[1], second[1]) and not torch.equal(first[0], second[0])


def test_it_follows_from_the_generator():
    assert torch.equal(draw(seed=1)[0], draw(seed=1)[0]) and not torch.equal(draw(seed=1)[0], draw(seed=2)[0])


def test_textures_tell_families_by_frequency_and_colours_by_hue():
    """Two families: textures differ in the number of waves, colours in which hue they have."""

    def waves(family):
        images, masks = draw("texture", torch.full((24,), family), pixels=64)
        grey = images.float().mean(1)
        grey = torch.where(masks, grey.mean(dim=(1, 2), keepdim=True), grey)
        power = torch.fft.rfft2(grey - grey.mean(dim=(1, 2), keepdim=True)).abs().square().mean(dim=(0, 1))
        return power[10:15].sum() / power[4:8].sum()  # waves across the image: 0.19 * 64 = 12.2 against 0.09 * 64 = 5.8

    assert waves(1) > 1 > 3 * waves(0)

    def hue(family):
        images, masks = draw("colour", torch.full((24,), family))
        red, green, blue = (images.float() * ~masks[:, None]).sum(dim=(0, 2, 3)).tolist()
        return math.atan2(math.sqrt(3) * (green - blue), 2 * red - green - blue) / (2 * math.pi) % 1

    assert hue(0) < 0.1 or hue(0) > 0.9
    assert abs(hue(1) - 0.5) < 0.1
