"""Occlusion against captum and by hand; its agreement with maps against scipy."""

import pytest
import torch
from models import PooledNet, assert_same, snapshot
from torch import nn

from groupcam_aug.occlusion import occlusion, window_count


class Corner(nn.Module):
    """Whose logit of class 1 is twice the first pixel, and that of class 0 is 0."""

    def forward(self, x):
        return torch.stack([torch.zeros(len(x)), 2 * x[:, 0, 0, 0]], dim=1)


def test_by_hand():
    """Only the window on the first pixel takes anything: from sigmoid(2) to a half."""
    seen = occlusion(Corner(), torch.ones(1, 1, 4, 4), 1, window=2, stride=2)
    lost = torch.sigmoid(torch.tensor(2.0)) - 0.5
    torch.testing.assert_close(seen.drops, torch.tensor([[[lost, 0.0], [0.0, 0.0]]]))
    assert seen.maps[0, :2, :2].unique().item() == pytest.approx(float(lost)) and seen.maps[0, 2:].abs().max() == 0
    overlapping = occlusion(Corner(), torch.ones(1, 1, 4, 4), 1, window=2, stride=1)
    assert overlapping.maps[0, 1, 1].item() == pytest.approx(float(lost) / 4), "one of the four windows that hide it"
    assert overlapping.maps[0, 0, 1].item() == pytest.approx(float(lost) / 2)


@pytest.fixture
def net():
    torch.manual_seed(1)
    return PooledNet().eval()


@pytest.fixture
def images():
    return torch.randn(3, 3, 24, 21, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("window, stride", [(6, 3), (5, 4), (7, 7)])
def test_maps_are_captum_s(net, images, window, stride):
    captum = pytest.importorskip("captum.attr")
    labels = torch.tensor([0, 2, 1])
    theirs = captum.Occlusion(lambda x: net(x).softmax(dim=1)).attribute(
        images, target=labels, sliding_window_shapes=(3, window, window), strides=(3, stride, stride), baselines=0.0
    )
    ours = occlusion(net, images, labels, window=window, stride=stride, chunk=7)
    assert ours.drops[0].numel() == window_count(24, 21, window, stride)
    torch.testing.assert_close(ours.maps, theirs[:, 0].to(ours.maps.dtype).detach(), atol=1e-5, rtol=1e-4)


def test_agreement_is_scipy_s_rank_correlation_over_windows(net, images):
    from scipy.stats import spearmanr

    seen = occlusion(net, images, 1, window=6, stride=3)
    maps = torch.rand(3, 24, 21, generator=torch.Generator().manual_seed(5))
    found = seen.correlation(maps)
    for i in range(3):
        means = [float(maps[i, y : y + 6, x : x + 6].mean()) for y in range(0, 19, 3) for x in range(0, 16, 3)]
        assert found.value[i].item() == pytest.approx(spearmanr(means, seen.drops[i].flatten()).statistic, abs=1e-5)
    maps[0], maps[1, 0, 0] = 0.5, float("nan")
    assert seen.correlation(maps).undefined.tolist() == [True, True, False]
    assert seen.correlation(seen.maps).value.min() > 0.8, "its own maps agree with it"
    with pytest.raises(ValueError, match="images' size"):
        seen.correlation(maps[:, :7])


def test_the_network_the_batch_and_the_chunk_make_no_difference(net, images):
    net.train()
    before = snapshot(net)
    whole = occlusion(net, images, [0, 1, 2])
    assert_same(before, snapshot(net))
    single = torch.cat([occlusion(net, images[i : i + 1], i, chunk=5).drops for i in range(3)])
    torch.testing.assert_close(whole.drops, single, atol=1e-6, rtol=1e-5)
    multi = occlusion(net, images, 1, activation="sigmoid").drops
    assert not torch.allclose(multi, occlusion(net, images, 1).drops, atol=1e-4)
    blurred = occlusion(net, images, 1, fill="blur").drops
    assert not torch.allclose(blurred, occlusion(net, images, 1).drops, atol=1e-4)
    assert occlusion(net, images[:0], 1).maps.shape == (0, 24, 21)


@pytest.mark.parametrize("options", [{"window": 22}, {"window": 4, "stride": 5}, {"window": 0}])
def test_windows_that_do_not_fit_are_refused(net, images, options):
    with pytest.raises(ValueError, match="window"):
        occlusion(net, images, 1, **options)


def test_the_default_is_169_windows_of_an_image_of_224_pixels():
    assert window_count(224, 224) == 169
