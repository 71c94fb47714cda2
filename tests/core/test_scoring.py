"""Scoring altered copies of a batch: layouts, parts, substrates."""

import logging

import pytest
import torch
from models import PooledNet
from torch import nn

from groupcam_aug.blur import blur
from groupcam_aug.scoring import Scorer, check_maps, make_substrate


class Viewer(nn.Module):
    """A network that takes the plain layout only."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc, self.layouts = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 64, 3), []

    def forward(self, x):
        self.layouts.append(x.is_contiguous(memory_format=torch.channels_last))
        return self.fc(self.conv(x).relu().view(len(x), -1))


def scored(network, images, altered, **options):
    scorer = Scorer(network, images, 1, **options)
    with scorer.borrowed(), torch.no_grad():
        return scorer, scorer.scores(altered)


def test_channels_last_where_the_network_takes_it(caplog):
    images = torch.randn(2, 3, 8, 8)
    viewer = Viewer()
    with caplog.at_level(logging.DEBUG, "groupcam_aug.scoring"):
        scorer, scores = scored(viewer, images, images / 2)
    assert viewer.layouts[0] and not any(viewer.layouts[1:]), "tried once, then the plain layout"
    assert "Viewer does not take channels_last: view size" in caplog.text
    torch.testing.assert_close(scores, viewer(images / 2).softmax(1)[:, 1])
    torch.testing.assert_close(scorer.clean, viewer(images).softmax(1)[:, 1])
    layouts = []
    plain = PooledNet().eval()
    nn.init.constant_(plain.fc.bias, 9.0)  # nothing that may be a probability
    scored(plain, images, images)  # the first call looks at the network
    plain.register_forward_pre_hook(lambda _, args: layouts.append(args[0].is_contiguous(memory_format=torch.channels_last)))
    scored(plain, images, images / 2)
    assert layouts == [True, True]
    layouts.clear()
    scored(plain.double(), images.double(), images.double())
    assert layouts == [False, False], "float64 batches keep theirs"


def test_another_error_is_raised_as_it_is():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="^something else$"):
        scored(Broken(), torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_parts_give_the_scores_of_the_whole(net, images, chunk):
    sizes = []
    net.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    scorer, scores = scored(net, images, images / 2, chunk=chunk)
    assert max(sizes) <= chunk
    net.eval()
    torch.testing.assert_close(scores, net(images / 2).softmax(1)[:, 1])
    with scorer.borrowed():
        torch.testing.assert_close(scorer.scores_of(torch.tensor([2, 0]), images[[2, 0]]), scorer.clean[[2, 0]])


def test_substrates(images):
    assert torch.equal(make_substrate(images, "blur"), blur(images))
    assert not make_substrate(images, "zeros").any()
    torch.testing.assert_close(make_substrate(images, "mean")[1, 2], images[1, 2].mean().expand(24, 20))
    assert make_substrate(images, lambda x: (x + 1).float()).dtype == images.dtype
    for bad in ("nonsense", lambda x: x[:, :, :-1], lambda x: None):
        with pytest.raises(ValueError, match="substrate must"):
            make_substrate(images, bad)


def test_refused_maps(images):
    with pytest.raises(ValueError, match="Upsample"):
        check_maps(torch.rand(3, 12, 10), images)
    with pytest.raises(TypeError, match="floating-point"):
        check_maps(torch.ones(3, 24, 20, dtype=torch.bool), images)
