"""Labelled concepts: every pixel has one colour, and is of the object or of its background."""

import colorsys

import torch

from groupcam_aug.recipes.concepts import COLOURS, CONCEPTS, HUES, colours_of, draw_concepts
from groupcam_aug.recipes.drawing import CLASSES, FAMILIES
from groupcam_aug.recipes.shapes import Shapes


def test_colours_are_those_of_the_hue_circle():
    for name, degrees in zip(HUES, range(0, 360, 60), strict=True):
        for off in (-29, 0, 29):
            pixel = torch.tensor(colorsys.hsv_to_rgb((degrees + off) % 360 / 360, 0.7, 0.8))[None, :, None, None]
            assert [COLOURS[i] for i in colours_of(pixel)[0, :, 0, 0].nonzero()[:, 0]] == [name]
    for value in (0.0, 0.4, 1.0):
        pixel = torch.tensor(colorsys.hsv_to_rgb(0.3, 0.1, value))[None, :, None, None]
        assert colours_of(pixel)[0, :, 0, 0].tolist() == [name == "grey" for name in COLOURS]


def test_masks_are_those_of_the_drawings():
    images, masks = draw_concepts(30, 32, seed=4)
    assert images.shape == (30, 3, 32, 32) and masks.shape == (30, len(CONCEPTS), 32, 32) and masks.dtype == torch.bool
    colour, shape, texture = masks.split([len(COLOURS), len(CLASSES), len(FAMILIES)], dim=1)
    assert torch.equal(colour.sum(dim=1), torch.ones(30, 32, 32).long())
    assert torch.equal((shape | texture).sum(dim=1), torch.ones(30, 32, 32).long()), "object or background"
    drawn = Shapes("train", 30, rho=1 / 6, seed=4)
    for i in (0, 7, 29):
        assert torch.equal(shape[i, i % 6], drawn.mask(i))
        assert texture[i].flatten(1).any(dim=1).tolist() == [name == drawn.family(i) for name in FAMILIES]
    other = draw_concepts(30, 32, seed=4, held_out=True)
    assert not torch.equal(other.images, images)


def test_backgrounds_say_nothing_about_objects():
    _, masks = draw_concepts(600, 32)
    shape = masks[:, len(COLOURS) : len(COLOURS) + 6].flatten(2).any(dim=2).float()
    texture = masks[:, len(COLOURS) + 6 :].flatten(2).any(dim=2).float()
    together = shape.t() @ texture / 100  # of the hundred objects of each class
    assert together.min() > 0.05 and together.max() < 0.3
