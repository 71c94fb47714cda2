"""The blur: against the literal sum and torchvision, its size, what it keeps."""

import oracle
import pytest
import torch

import groupcam_aug.blur as blur_module
from groupcam_aug.blur import blur, blur_size


def test_blur_equals_the_literal_sum():
    for size in [(224, 224), (32, 47), (5, 3)]:
        x = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(blur(x), torch.stack([oracle.blur(image) for image in x]))


def test_blur_equals_torchvision():
    from torchvision.transforms.v2.functional import gaussian_blur

    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(blur(x), gaussian_blur(x, [51, 51], [50.0, 50.0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "size, kernel, sigma", [(224, 51, 50.0), (448, 103, 100.0), (32, 7, 50 / 7), (3, 3, 150 / 224), (4, 3, 200 / 224)]
)
def test_blur_size(size, kernel, sigma):
    assert blur_size(size, size + 9) == (kernel, pytest.approx(sigma))


def test_matrices_that_are_kept_are_bounded_by_bytes(monkeypatch):
    monkeypatch.setattr(blur_module, "_matrices", {})
    images = torch.zeros(1, 1, 3, 1)
    for side in range(2000, 2020):  # 16 MB each
        blur(images.expand(-1, -1, -1, side), 3)
    kept = blur_module._matrices
    assert sum(matrix.nbytes for matrix in kept.values()) <= 64 * 2**20
    assert [key[0] for key in kept][-2:] == [3, 2019], "the last ones stay"
    matrix = kept[next(key for key in kept if key[0] == 2018)]
    blur(images.expand(-1, -1, -1, 2018), 3)
    assert list(kept.values())[-1] is matrix, "used again, and now the last"
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(2018))


def test_blur_keeps_constants_format_and_dtype():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x = torch.full((2, 3, 40, 40), 0.5, dtype=dtype).to(memory_format=torch.channels_last)
        result = blur(x)
        assert result.dtype == dtype and result.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(result, x)


def test_blur_commutes_with_normalisation():
    x = torch.rand(2, 3, 40, 30, dtype=torch.float64)
    torch.testing.assert_close(blur(2 * x - 1), 2 * blur(x) - 1)


@pytest.mark.parametrize("arguments, message", [((4, 1.0), "odd"), ((3, 0.0), "sigma"), ((41, 1.0), "does not fit")])
def test_blur_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        blur(torch.zeros(1, 1, 20, 30), *arguments)
