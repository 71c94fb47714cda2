import pytest
import torch
import torch.nn.functional as F

from groupcam_aug.recipes.trial.corruptions import BLURS, CORRUPTIONS, SEVERITIES, corrupt
from groupcam_aug.recipes.trial.training import seeded


def test_corruptions_grow_with_severity_and_repeat():
    draw = torch.Generator().manual_seed(0)
    images = F.interpolate(torch.rand(6, 3, 8, 8, generator=draw), 32, mode="bilinear").mul(255).to(torch.uint8)
    for name in CORRUPTIONS:
        changes = []
        for severity in range(1, SEVERITIES + 1):
            got = corrupt(name, images, severity, seeded(1))
            assert got.shape == images.shape and got.dtype == torch.uint8
            assert torch.equal(got, corrupt(name, images, severity, seeded(1)))
            changes.append((got.float() - images.float()).abs().mean().item())
        assert 0 < changes[0] < changes[1] < changes[2] < 80, (name, changes)
    assert set(BLURS) < set(CORRUPTIONS)
    flat = torch.full((1, 3, 32, 32), 99, dtype=torch.uint8)
    for name in BLURS:
        assert (corrupt(name, flat, 3, seeded(1)).int() - 99).abs().max() <= 1
    with pytest.raises(ValueError, match="no corruption 'fog' of severity 1"):
        corrupt("fog", images, 1, seeded(1))
