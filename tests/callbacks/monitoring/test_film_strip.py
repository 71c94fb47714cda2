"""The probes' maps as pictures, of one moment and over the run."""

from itertools import pairwise

import pytest
import torch

from groupcam_aug.callbacks.monitoring.film_strip import COLUMNS, FRAME, FilmStrip, column, thumbnails


def film(moments, start=-1):
    made = FilmStrip()
    for i in range(moments):
        made.add(start + i, torch.full((2, 3, 3), i / moments).half())
    return made


def test_a_film_keeps_moments_ever_further_apart_and_always_the_first_and_the_last():
    assert [epoch for epoch, _ in film(9).frames.values()] == list(range(-1, 8))
    for moments in (20, 100, 1000):
        made = film(moments)
        numbers = list(made.frames)
        assert numbers[0] == 0 and numbers[-1] == moments - 1 and len(numbers) <= 70 and set(range(10)) <= set(numbers)
        gaps = [b - a for a, b in pairwise(numbers[10:-1])]
        assert max(gaps, default=1) <= max(3, 0.25 * moments)
    assert torch.equal(film(1000).frames[999][1], torch.full((2, 3, 3), 0.999).half())


def test_a_strip_has_a_capped_number_of_columns_on_a_logarithmic_scale():
    pictures = torch.zeros(2, 3, 40, 40, dtype=torch.uint8)
    widths = [film(moments).draw(pictures).width for moments in (1, COLUMNS, COLUMNS + 1, 300)]
    assert widths[0] < widths[1] <= widths[2] == widths[3] < (COLUMNS + 2) * (FRAME + 10)


def test_a_film_goes_on_from_its_state():
    whole, first = film(40), film(25)
    again = FilmStrip()
    again.load_state_dict(first.state_dict())
    for i in range(25, 40):
        again.add(i - 1, torch.full((2, 3, 3), i / 40).half())
    assert list(again.frames) == list(whole.frames)
    assert [epoch for epoch, _ in again.frames.values()] == [epoch for epoch, _ in whole.frames.values()]


@pytest.mark.parametrize(
    ("shape", "size"), [((2, 3, 40, 40), (112, 112)), ((2, 1, 30, 60), (56, 112)), ((2, 5, 448, 224), (112, 56))]
)
def test_thumbnails_of_all_shapes_and_ranges(shape, size):
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3
    pictures = thumbnails(images, None, None)
    assert pictures.shape == (2, 3, *size) and pictures.dtype == torch.uint8
    if shape[1] == 3:
        assert pictures.min() < 20 and pictures.max() > 235 and 100 < pictures.float().mean() < 155, "stretched, not cut off"
    assert thumbnails(images.half(), None, None).shape == pictures.shape


def test_normalisation_is_undone():
    images = torch.zeros(1, 3, 112, 112)
    images[..., 0] = -1
    assert thumbnails(images, (0.2, 0.4, 0.6), (0.1, 0.1, 0.1))[0, :, 0, 5].tolist() == [51, 102, 153]
    assert thumbnails(torch.full((1, 3, 112, 112), 0.5)).unique().tolist() == [128], "what lies in [0, 1] is shown as it is"


def test_a_column_has_its_maps_on_one_scale():
    pictures, maps = torch.zeros(2, 3, 112, 112, dtype=torch.uint8), torch.zeros(2, 4, 4)
    maps[0], maps[1, 0, 0] = 0.5, 1.0
    plain, laid = column(pictures), column(pictures, maps)
    assert plain.size == laid.size == (112, 224) and plain.getextrema() == ((0, 0),) * 3
    half, full = laid.getpixel((60, 60)), laid.getpixel((2, 114))
    assert 0 < sum(half) < sum(full) and laid.getpixel((100, 200)) == (0, 0, 0)
