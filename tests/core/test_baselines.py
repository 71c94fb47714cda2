"""Maps that know nothing of the network: where their mass is, and that they say nothing of the images."""

import torch
from torch.nn import functional as F

from groupcam_aug.baselines import centred_blob, random_cells


def test_the_blob_is_a_gaussian_in_the_middle_a_quarter_of_each_side_wide():
    maps = torch.rand(2, 21, 41, dtype=torch.float64)
    blob = centred_blob(maps)
    assert blob.shape == maps.shape and blob.dtype == maps.dtype and torch.equal(blob[0], blob[1])
    assert blob[0, 10, 20] == 1 == blob.max()
    torch.testing.assert_close(blob, blob.flip(1)), torch.testing.assert_close(blob, blob.flip(2))
    one_sigma = torch.tensor(-0.5, dtype=torch.float64).exp()
    torch.testing.assert_close(blob[0, 5, 20], one_sigma)  # a quarter of the height off the middle
    torch.testing.assert_close(blob[0, 10, 30], one_sigma)
    torch.testing.assert_close(blob[0, 5, 30], one_sigma**2)
    assert torch.equal(centred_blob(maps * 0), blob), "whatever the image"


def test_cells_are_noise_on_seven_by_seven_enlarged_as_maps_are():
    maps = torch.rand(3, 28, 35, dtype=torch.float64)
    cells = random_cells(maps, seed=4)
    assert cells.shape == maps.shape and cells.dtype == maps.dtype and 0 <= cells.min() < 0.1 < 0.9 < cells.max() <= 1
    grid = torch.rand(3, 1, 7, 7, generator=torch.Generator().manual_seed(4))
    expected = F.interpolate(grid, (28, 35), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(cells.float(), expected)
    assert torch.equal(random_cells(maps * 0, seed=4), cells) and not torch.equal(random_cells(maps, seed=5), cells)
    assert not torch.equal(cells[0], cells[1])
    before = torch.get_rng_state()
    random_cells(maps)
    assert torch.equal(torch.get_rng_state(), before)
