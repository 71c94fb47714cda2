"""Average drop by hand."""

import pytest
import torch
from models import MeanNet

from groupcam_aug.metrics.average_drop import average_drop


def test_average_drop_by_hand():
    images = torch.full((5, 1, 8, 8), 0.8)
    maps = torch.zeros(5, 8, 8)
    maps[0] = 1
    maps[1] = 0.5
    maps[2, :2] = 1
    maps[4, 0, 0] = float("nan")
    seen = average_drop(MeanNet(), images, maps, 1)
    torch.testing.assert_close(seen.drop, torch.tensor([0, 0.5, 0.75, 0, 0]), rtol=0, atol=1e-5)
    assert seen.undefined.tolist() == [False, False, False, True, True] and not seen.increase.any()
    torch.testing.assert_close(seen.activation[:4], torch.tensor([1, 0.5, 0.25, 0]))
    brighter = average_drop(MeanNet(), images, maps, 1, substrate=torch.ones_like)
    assert brighter.increase.tolist() == [False, True, True, False, False] and (brighter.drop[1:3] == 0).all()
    assert average_drop(MeanNet(), images[:0], maps[:0], 1).drop.shape == (0,)
    with pytest.raises(ValueError, match="0, 1"):
        average_drop(MeanNet(), images, maps * 2, 1)


def test_a_negative_regression_has_no_share_to_lose():
    images, maps = torch.rand(2, 1, 8, 8), torch.rand(2, 8, 8)
    found = average_drop(MeanNet(), images, maps, lambda y: torch.tensor([-1.0, 1.0]) * y[:, 1].exp())
    assert found.undefined.tolist() == [True, False] and found.drop[0] == 0 and 0 < found.drop[1] < 1
