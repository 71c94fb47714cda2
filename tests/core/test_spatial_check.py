"""The spatial check, on distances that are made up: what shows a grid, and what does not."""

import pytest
import torch
from tokens import TokenNet

from groupcam_aug import GradCAM
from groupcam_aug.grid import Grid, guess_grid
from groupcam_aug.spatial_check import _patches, changed_images, moved, probe_image, spatial_hits, tokens_shown


def distances(rows, columns, patch, size, view=0.0, prefix=0, suffix=0):
    """How far tokens move if each sees its patch, and `view` patches around it; other tokens move all alike."""
    tops = torch.tensor(_patches(size), dtype=torch.float)
    y, x = (tops[:, 0] + tops[:, 1]) / 2 / patch, (tops[:, 2] + tops[:, 3]) / 2 / patch
    at = torch.cartesian_prod(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5)
    far = torch.cdist(torch.stack([y, x], dim=1), at)
    moves = torch.exp(-far.square() / 2 / (view + 0.2) ** 2) + 0.01
    return torch.cat([torch.full((8, prefix), 0.02), moves, torch.full((8, suffix), 0.02)], dim=1)


@pytest.mark.parametrize("prefix, suffix", [(0, 0), (1, 0), (17, 0), (101, 0), (0, 4), (3, 8)])
@pytest.mark.parametrize("rows, columns, patch, size", [(14, 14, 16, (224, 224)), (7, 10, 16, (100, 150)), (4, 4, 16, (64, 64))])
def test_tokens_are_found_where_they_move(rows, columns, patch, size, prefix, suffix):
    moves = distances(rows, columns, patch, size, prefix=prefix, suffix=suffix)
    guess = guess_grid(torch.zeros(1, moves.shape[1], 2), size, strict=True)
    assert tokens_shown(moves, size, guess) == Grid("tokens", rows, columns, prefix)


def test_a_wide_view_shows_the_grid_that_the_count_speaks_for():
    moves = distances(7, 7, 32, (224, 224), view=1.5)
    assert tokens_shown(moves, (224, 224), Grid("tokens", 7, 7)) == Grid("tokens", 7, 7)
    assert spatial_hits(moves, Grid("tokens", 7, 7)) >= 6 > 0 == spatial_hits(torch.ones(8, 49), Grid("tokens", 7, 7))


@pytest.mark.parametrize("tokens", [8, 16, 17, 49, 64, 256])
def test_latents_show_none(tokens):
    """Those that move by chance, and one that moves whatever is changed."""
    generator, size = torch.Generator().manual_seed(0), (224, 224)
    guess = guess_grid(torch.zeros(1, tokens, 2), size, strict=True)
    made = [torch.rand(8, tokens, generator=generator) for _ in range(50)]
    assert sum(tokens_shown(moves, size, guess) is not None for moves in made) <= 2
    constant = torch.rand(1, tokens, generator=generator).expand(8, -1)
    for moves in (constant, torch.zeros(8, tokens), torch.full((8, tokens), torch.nan), torch.ones(8, tokens)):
        assert tokens_shown(moves, size, guess) is None


def test_another_order_shows_none():
    moves, size = distances(14, 14, 16, (224, 224)), (224, 224)
    order = torch.randperm(196, generator=torch.Generator().manual_seed(0))
    columns = torch.arange(196).view(14, 14).T.flatten()
    for shuffled in (moves[:, order], moves[:, columns]):
        assert tokens_shown(shuffled, size, Grid("tokens", 14, 14)) is None


def test_changed_images_differ_from_the_probe_in_one_patch_each():
    probe = probe_image(torch.full((2, 3, 56, 70), torch.nan))
    assert probe.shape == (1, 3, 56, 70) and probe.isfinite().all()
    for changed, (top, bottom, left, right) in zip(changed_images(probe), _patches((56, 70)), strict=True):
        where = (changed != probe).any(dim=1)[0]
        assert where.sum() == where[top:bottom, left:right].sum() == 16
    assert all(torch.equal(a, b) for a, b in zip(changed_images(probe), changed_images(probe), strict=True))
    assert moved(torch.zeros(1, 4, 2), torch.ones(1, 4, 2), 2).tolist() == [2.0] * 4


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_training_changes_nothing(half):
    moves = distances(7, 7, 32, (224, 224), view=1.5)
    hits, probe = spatial_hits(moves, Grid("tokens", 7, 7)), probe_image(torch.zeros(1, 3, 28, 28))
    images = [*changed_images(probe)]
    try:
        torch.set_default_dtype(half)
        with torch.autocast("cpu", torch.bfloat16):
            assert spatial_hits(moves, Grid("tokens", 7, 7)) == hits
        assert all(torch.equal(*pair) for pair in zip(images, changed_images(probe), strict=True))
    finally:
        torch.set_default_dtype(torch.float32)


def test_networks_in_half_precision_show_their_tokens():
    torch.manual_seed(0)
    net, images = TokenNet(prefix=21).eval(), torch.randn(2, 3, 64, 64)
    cam = GradCAM(net.bfloat16())
    cam(images.bfloat16(), 1)
    assert cam.layer == "blocks.1.norm" and next(iter(cam._grids.values())).prefix == 21
    cam = GradCAM(net.float())
    with torch.autocast("cpu", torch.bfloat16):
        cam(images, 1)
    assert cam.layer == "blocks.1.norm" and next(iter(cam._grids.values())).prefix == 21
