"""Pictures: exact pixels where they can be said, sizes and errors otherwise."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from groupcam_aug.draw import (
    LINES,
    film_strip,
    heat_map,
    mask_picture,
    overlay,
    panels,
    png,
    resized,
    shown_channels,
    to_display,
    to_uint8,
)


def test_to_uint8_undoes_the_normalisation():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    normalised = (pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert torch.equal(to_uint8(normalised, mean, std), pixels)
    assert to_uint8(torch.tensor([[[-1.0, 0.5, 2.0, float("nan")]]])).tolist() == [[[0, 128, 255, 0]]] * 3
    with pytest.raises(ValueError, match="both mean and std"):
        to_uint8(normalised, mean)
    with pytest.raises(ValueError, match="1 or 3 channels, got 4"):
        to_uint8(torch.zeros(4, 5, 5))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_pictures_with_an_alpha_channel_are_refused(dtype):
    image = torch.ones(4, 5, 5, dtype=dtype)
    for draw in (lambda: overlay(image, torch.ones(5, 5)), lambda: panels([[image]])):
        with pytest.raises(ValueError, match=r"got 4 in the shape \(4, 5, 5\); drop an alpha channel first"):
            draw()
    assert overlay(image[:3], torch.ones(5, 5)).shape == (3, 5, 5)


def test_arrays_serve_as_tensors_do():
    image, maps = torch.rand(3, 5, 4, dtype=torch.float64), torch.rand(5, 4)
    assert torch.equal(overlay(image.numpy(), maps.numpy()), overlay(image, maps))
    assert torch.equal(heat_map(maps.numpy()), heat_map(maps))
    assert torch.equal(mask_picture(maps.numpy() > 0.5), mask_picture(maps > 0.5))
    assert panels([[image.numpy(), to_uint8(image).numpy()]]).tobytes() == panels([[image, to_uint8(image)]]).tobytes()
    grey = to_uint8(image[:1])
    for mean in (0.5, torch.tensor(0.5), np.float32(0.5), [0.5]):
        assert torch.equal(to_uint8(image[:1] - 0.5, mean, 1.0), grey)
    with pytest.raises(ValueError, match=r"got 8 in the shape \(8, 9, 3\); bring the channels to the front"):
        overlay(np.zeros((8, 9, 3), np.uint8), np.zeros((8, 9)))
    with pytest.raises(TypeError, match="expected a tensor or an array, got Image"):
        overlay(Image.new("RGB", (4, 5)), maps)


MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.1)


def normalised(images, mean=MEAN, std=STD):
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def photographs(channels=3):
    return torch.rand(2, channels, 8, 8, generator=torch.Generator().manual_seed(0))


def test_images_in_range_are_shown_as_they_are():
    pixels = to_uint8(photographs())
    assert torch.equal(to_display(photographs()), pixels)
    assert torch.equal(to_display(photographs(), MEAN, STD), pixels), "of a network that normalises by itself"
    assert torch.equal(to_display(photographs(1)), to_uint8(photographs(1)))
    assert to_display(torch.zeros(1, 3, 2, 2)).max() == 0


def test_a_known_normalisation_is_undone():
    pixels = to_uint8(photographs())
    assert torch.equal(to_display(normalised(photographs()), MEAN, STD), pixels)
    assert torch.equal(to_display(normalised(photographs()).as_subclass(torch.Tensor), torch.tensor(MEAN), list(STD)), pixels)
    one = normalised(photographs(), (0.5,) * 3, (0.25,) * 3)
    assert torch.equal(to_display(one, 0.5, 0.25), to_display(one, [0.5], [0.25])), "one for all channels"
    assert torch.equal(to_display(one, 0.5, 0.25), pixels)
    assert to_display(normalised(photographs()).half(), MEAN, STD).sub(pixels.float()).abs().max() <= 1


def test_images_of_unknown_range_are_stretched_together():
    images = normalised(photographs())
    stretched = to_display(images)
    assert torch.equal(stretched, to_uint8((images - images.min()) / (images.max() - images.min())))
    assert stretched.min() == 0 and stretched.max() == 255
    batch_norm = torch.nn.BatchNorm2d(3)
    for mean, std in [(None, STD), (MEAN, None), ((0.1, 0.2), STD), (MEAN, (0, 0, 0)), ("a", "b"), (batch_norm, images.mean)]:
        assert torch.equal(to_display(images, mean, std), stretched), "no normalisation"
    assert torch.equal(to_display(images, (5.0, 5, 5), STD), stretched), "another one: undone, it leads elsewhere"
    assert to_display(torch.full((1, 3, 2, 2), 7.0)).max() == 0
    images[0, 0, 0, 0] = float("nan")
    assert to_display(images)[1].float().std() > 20, "one bad pixel is no bad picture"


@pytest.mark.parametrize(("channels", "shown"), [(1, 1), (2, 1), (3, 3), (4, 3), (5, 3)])
def test_pictures_show_one_or_three_channels(channels, shown):
    images = photographs(channels)
    assert torch.equal(shown_channels(images), images[:, :shown])
    assert torch.equal(to_display(images), to_uint8(images[:, :shown]))


def test_png_keeps_every_pixel():
    picture = Image.fromarray(to_uint8(photographs())[0].permute(1, 2, 0).numpy())
    content = png(picture)
    again = Image.open(io.BytesIO(content))
    assert again.format == "PNG" and again.tobytes() == picture.tobytes()


def test_resized_has_the_size_asked_for_along_its_longer_side():
    assert resized(Image.new("RGB", (40, 20)), 10).size == (10, 5)
    assert resized(Image.new("L", (2, 4)), 40).size == (20, 40)
    assert resized(Image.new("L", (400, 1)), 10).size == (10, 1), "never nothing"


def test_heat_map_has_one_scale_for_all():
    maps = torch.tensor([[[0.0, 0.5]], [[1.0, 0.5]]])
    colours = heat_map(maps)
    assert colours.shape == (2, 3, 1, 2) and colours.dtype == torch.uint8
    assert colours[0, :, 0, 0].tolist() == [0, 0, 4] and colours[1, :, 0, 0].tolist() == [252, 255, 164]
    assert torch.equal(colours[0, :, 0, 1], colours[1, :, 0, 1]), "equal values look equal in different frames"
    assert torch.equal(heat_map(maps * 4, (0, 4)), colours)
    brightness = heat_map(torch.linspace(0, 1, 256)[None]).float().mean(0)[0]
    assert (brightness.diff() > -2).all(), "lightness rises"
    with pytest.raises(ValueError, match="low < high"):
        heat_map(maps, (1, 1))


def test_overlay_shows_the_image_where_the_map_is_zero():
    image = torch.rand(3, 6, 6)
    saliency = torch.zeros(6, 6)
    saliency[0, 0] = 1
    result = overlay(image, saliency, opacity=1.0)
    assert torch.equal(result[:, 1:], to_uint8(image)[:, 1:])
    assert result[:, 0, 0].tolist() == [252, 255, 164]
    assert overlay(image.expand(2, 3, 6, 6), torch.zeros(2, 3, 3)).shape == (2, 3, 6, 6), "maps are resized"
    assert torch.equal(overlay(to_uint8(image), saliency), overlay(image, saliency))


def test_mask_picture():
    assert mask_picture(torch.tensor([[True, False]])).tolist() == [[[255, 0]]] * 3


def test_panels_layout():
    cell = torch.rand(3, 20, 10)
    sheet = panels(
        [[cell, None], [cell, Image.new("L", (8, 8))]], ["one", "two"], ["a", "b"], size=60, captions=[["x", None]] * 2
    )
    assert sheet.mode == "RGB" and sheet.width > 2 * 60 and sheet.height > 2 * 60
    assert panels([[cell]], size=40).height == 4 + 40 + 4
    long = panels([[cell]], ["a title far too long for its column"], size=40)
    assert long.width == panels([[cell]], ["t"], size=40).width, "text is cut, not the layout stretched"
    with pytest.raises(ValueError, match="at least one picture"):
        panels([])


def test_small_images_are_enlarged_pixel_by_pixel():
    checks = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).expand(3, 2, 2)
    picture = panels([[checks]], size=20).crop((4, 4, 24, 24))
    assert sorted(picture.getcolors()) == [(200, (0, 0, 0)), (200, (255, 255, 255))]


def test_film_strip():
    strip = film_strip(torch.rand(2, 3, 8, 8), torch.rand(3, 2, 4, 4), ["0", "1", "2"], size=32)
    assert strip.width >= 4 * 32 and strip.height >= 2 * 32


def test_captions_and_labels_are_wrapped_not_cut(monkeypatch):
    written, draw = [], ImageDraw.ImageDraw.multiline_text

    def write(pen, at, text, *rest):
        written.append(text)
        draw(pen, at, text, *rest)

    monkeypatch.setattr(ImageDraw.ImageDraw, "multiline_text", write)
    cell, long, word = torch.rand(3, 8, 8), "p 0.72, taken for long-sleeved pullover of wool", "Supercalifragilistic" * 2
    short = panels([[cell]], captions=[["cat"]], size=112)
    sheet = panels([[cell]], labels=[word], captions=[[long]], size=112)
    assert written[2].replace("\n", " ") == long and written[2].count("\n") >= 2
    assert written[1].replace("\n", "") == word, "nothing is left out where there is no place to break"
    font = ImageFont.load_default(11)
    assert all(font.getlength(line) <= 112 for text in written for line in text.split("\n"))
    assert sheet.height > short.height, "a row is as high as its longest caption"
    endless = panels([[cell]], captions=[["word " * 500]], size=112)
    assert endless.height < 112 + 8 * 20 and written[-1].endswith("…") and written[-1].count("\n") == LINES - 1


def test_film_strips_name_their_rows():
    plain = film_strip(torch.rand(2, 3, 8, 8), torch.rand(3, 2, 4, 4), size=32)
    named = film_strip(torch.rand(2, 3, 8, 8), torch.rand(3, 2, 4, 4), labels=["a", "b"], size=32)
    assert named.width > plain.width and named.height == plain.height
