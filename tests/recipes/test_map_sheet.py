"""Sheets of maps: a missing map says so, and heading and colour scale stand above."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torchvision.transforms.v2.functional import pil_to_tensor

from groupcam_aug.draw import heat_map, overlay, panels
from groupcam_aug.recipes.map_sheet import SIZE, drawn, percent, sheet

PIXELS = torch.full((3, 32, 32), 90, dtype=torch.uint8)


def test_a_missing_map_says_so_in_the_picture(monkeypatch):
    texts = []
    original = ImageDraw.ImageDraw.text

    def text(self, xy, words, *arguments, **options):
        texts.append(words)
        return original(self, xy, words, *arguments, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    for saliency in (torch.zeros(32, 32), torch.zeros(3, 32, 32)):
        picture = drawn(PIXELS, saliency, "overlay")
        assert isinstance(picture, Image.Image) and texts.pop() == "no map"
        dark = (np.asarray(picture) < 60).any(axis=2)
        assert 0.01 < dark.mean() < 0.3 and np.asarray(picture)[0, 0, 0] == 189  # paler than the image


def test_maps_are_drawn_as_asked():
    saliency = torch.linspace(0, 1, 32).expand(32, -1)
    assert torch.equal(drawn(PIXELS, saliency, "heatmap"), heat_map(saliency))
    assert torch.equal(drawn(PIXELS, saliency, "overlay"), overlay(PIXELS, saliency))
    signed = drawn(PIXELS, torch.stack([saliency - 0.5] * 3), "overlay")
    assert signed.min() == 0 and signed.max() == 255


def test_a_few_pixels_far_above_all_others_do_not_darken_the_rest():
    saliency = torch.linspace(0, 0.1, 32 * 32).view(32, 32).clone()
    saliency[0, 0] = 1
    shown = drawn(PIXELS, saliency, "overlay", fine=True).int().sum(dim=0)
    brightest = heat_map(torch.ones(1, 1)).int().sum()
    assert shown[-1, -1] == shown[0, 0] == brightest > shown[16, 16] > shown[1, 0]
    signed = drawn(PIXELS, torch.stack([saliency] * 3), "overlay")
    assert signed[:, -1, -1].eq(255).all() and signed[:, 0, 1].eq(128).all()
    lone = torch.zeros(32, 32)
    lone[3, 3] = 0.2
    assert drawn(PIXELS, lone, "heatmap", fine=True)[:, 3, 3].int().sum() == brightest


def test_heading_and_colour_scale_stand_above_the_rows():
    rows, captions = [[PIXELS, heat_map(torch.rand(32, 32))]] * 2, [["a.png", "cat 90%"]] * 2
    body = panels(rows, captions=captions, size=SIZE)
    short = sheet(rows, captions, ["Grad-CAM, layer layer4"], False)
    long = sheet(
        rows, captions, ["Grad-CAM, layer layer4", "a network with a very long name that goes over several lines"], False
    )
    assert short.width == long.width == body.width and long.height > short.height > body.height
    assert short.crop((0, short.height - body.height, *short.size)).tobytes() == body.tobytes()
    above = pil_to_tensor(short.crop((0, 0, short.width, short.height - body.height)))
    for level in (0.25, 0.5, 0.75):
        colour = heat_map(torch.tensor([[level]]))[:, :, 0]
        assert (above.int() - colour[..., None].int()).abs().amax(dim=0).min() <= 3, level
    both = sheet(rows, captions, ["several"], True, coloured=True, titles=["", "Grad-CAM"])
    assert both.height > sheet(rows, captions, ["several"], True, titles=["", "Grad-CAM"]).height > both.height - 40
    signed = pil_to_tensor(sheet(rows, captions, ["guided Grad-CAM"], True))[:, : -body.height]
    assert (signed.int() - signed[:1].int()).abs().max() == 0  # no colours: each map has a scale of its own


@pytest.mark.parametrize(
    "share, text",
    [(1.0, "100%"), (0.624, "62%"), (0.01, "1%"), (0.0042, "0.4%"), (0.0004, "0.04%"), (1e-5, "<0.01%"), (0, "<0.01%")],
)
def test_probabilities_as_labels_say_them(share, text):
    assert percent(share) == text
