"""Curves of one image: the frames are the images that were scored, and areas are those of the metrics."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from groupcam_aug.metrics import deletion_auc, insertion_auc
from groupcam_aug.recipes.curve_picture import FRAMES, STEPS, curve_picture, curves_of
from groupcam_aug.recipes.evaluation.map_method import Setup

NETWORK = nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 4))
SETUP = Setup(NETWORK, "", 0)


@pytest.fixture
def image():
    torch.manual_seed(0)
    return torch.randn(1, 3, 28, 28)


def opened(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def test_frames_are_the_images_that_the_curves_were_scored_on(image):
    saliency = torch.rand(28, 28, generator=torch.Generator().manual_seed(1))
    found = curves_of(SETUP, image, saliency, 2)
    for way in ("insertion", "deletion"):
        scores = NETWORK(found.frames[way]).softmax(dim=1)[:, 2].tolist()
        assert scores == pytest.approx([found.curves[way][point] for point in FRAMES], abs=1e-5)
        for point, frame in zip(FRAMES, found.frames[way], strict=True):
            same = (frame == image[0]).all(dim=0).float().mean().item()
            share = found.fractions[point]
            assert same == pytest.approx(share if way == "insertion" else 1 - share, abs=1e-3)
    area = insertion_auc(NETWORK, image, saliency[None], 2, steps=STEPS), deletion_auc(NETWORK, image, saliency[None], 2)
    assert [found.areas["insertion"], found.areas["deletion"]] == pytest.approx([float(one) for one in area])
    assert found.overall == pytest.approx(float(area[0] - area[1]), abs=1e-6)
    assert curves_of(SETUP, image, torch.zeros(28, 28), 2) is None


def test_the_picture_says_method_class_probability_areas_and_what_is_better(image, monkeypatch):
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

    said = []
    titled, headed = Axes.set_title, SubFigure.suptitle
    monkeypatch.setattr(Axes, "set_title", lambda self, text, **how: said.append(text) or titled(self, text, **how))
    monkeypatch.setattr(SubFigure, "suptitle", lambda self, text, **how: said.append(text) or headed(self, text, **how))
    saliency = torch.rand(28, 28, generator=torch.Generator().manual_seed(1))
    found = curves_of(SETUP, image, saliency, 2)
    one = opened(curve_picture([("Grad-CAM, cost $ and $ 7%", found)], [0.5] * 3, [0.5] * 3))
    assert said[0] == rf"Grad-CAM, cost \$ and \$ 7%: over-all {found.overall:.3f}"
    assert said[5] == f"insertion: area {found.areas['insertion']:.3f} (higher is better)"
    assert said[10] == f"deletion: area {found.areas['deletion']:.3f} (lower is better)"
    assert said[1] == f"7%: {found.curves['insertion'][FRAMES[0]]:.2f}"
    assert 1100 < one.shape[1] < 1300 and len(np.unique(one.reshape(-1, 3), axis=0)) > 500, "frames and curves"
    said.clear()
    against = curves_of(SETUP, image, saliency, 2, against=True)
    two = opened(curve_picture([("against", against), ("Group-CAM, cat 5%", None)]))
    assert "(lower is better)" in said[5] and "(higher is better)" in said[10]
    assert said[11].startswith("Group-CAM, cat 5%: no map") and two.shape[0] > one.shape[0]


def test_probabilities_of_a_network_of_several_labels_are_its_sigmoids(image):
    saliency = torch.rand(28, 28, generator=torch.Generator().manual_seed(2))
    found = curves_of(Setup(NETWORK, "", 0, activation="sigmoid"), image, saliency, 2)
    assert found.curves["deletion"][0] == pytest.approx(float(NETWORK(image).sigmoid()[0, 2].detach()), abs=1e-6)
