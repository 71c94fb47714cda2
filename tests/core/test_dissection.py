"""Units and their names: overlaps by hand, a unit that sees green only, weights and activations that give the map."""

import math

import numpy as np
import pytest
import torch
from models import Coloured
from torchvision.models import resnet18

from groupcam_aug import GradCAM
from groupcam_aug.dissection import attainable, in_words, name_units, overlaps, thresholds_of
from groupcam_aug.recipes.concepts import CONCEPTS, draw_concepts


def test_weights_and_activations_give_the_map_and_are_those_of_autograd():
    torch.manual_seed(0)
    net = resnet18(num_classes=5).double().eval()
    images, labels = torch.randn(3, 3, 64, 64, dtype=torch.float64), torch.tensor([4, 0, 2])
    for sign in (1, -1):
        cam = GradCAM(net, "layer3", sign=sign)
        weights, activations = cam.weights(images, labels), cam.activations(images)
        assert weights.shape == (3, 256) and activations.shape == (3, 256, 4, 4)
        torch.testing.assert_close((weights[..., None, None] * activations).sum(dim=1).relu(), cam.raw(images, labels))
    kept = []
    handle = net.layer3.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    logits = net(images)
    handle.remove()
    (slope,) = torch.autograd.grad(logits[torch.arange(3), labels].sum(), kept[0])
    torch.testing.assert_close(weights, -slope.mean(dim=(2, 3)))
    torch.testing.assert_close(activations, kept[0].detach())
    several = GradCAM(net, ["layer2", "layer3"]).weights(images, labels)
    assert [tuple(one.shape) for one in several] == [(3, 128), (3, 256)]
    torch.testing.assert_close(several[1], -weights)
    with pytest.raises(ValueError, match="holds no image"):
        cam.weights(images[:0])
    with pytest.raises(ValueError, match="holds no image"):
        cam.activations(images[:0])


def test_thresholds_are_the_top_quantile_over_all_images_and_positions():
    activations = torch.randn(7, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    expected = np.quantile(activations.transpose(0, 1).flatten(1).numpy(), 0.9, axis=1)
    np.testing.assert_allclose(thresholds_of(activations, 0.1).numpy(), expected, rtol=1e-6)
    assert torch.equal(thresholds_of(activations), thresholds_of(activations, 0.005)), "the paper's"
    for share in (0, 1.5, True):
        with pytest.raises(ValueError, match="share must be a number"):
            thresholds_of(activations, share)


def test_overlaps_by_hand():
    activations = torch.tensor([[[[0.0, 2], [3, 0]], [[0, 0], [0, 0]]], [[[0, 0], [0, 5]], [[0, 0], [0, 0]]]])
    concepts = torch.zeros(2, 3, 2, 2, dtype=torch.bool)
    concepts[0, 0, 0, 1] = concepts[0, 0, 0, 0] = True  # one of the three active positions, and one beside
    concepts[1, 1, 1, 1] = True
    found = overlaps(activations, torch.zeros(2), concepts)
    torch.testing.assert_close(found, torch.tensor([[1 / 4, 1 / 3, 0], [0, 0, 0]]))
    larger = overlaps(torch.ones(1, 1, 1, 1), torch.zeros(1), torch.eye(4, dtype=torch.bool)[None, None])
    torch.testing.assert_close(larger, torch.tensor([[0.25]]))
    torch.testing.assert_close(attainable(concepts, 0.05), torch.tensor([0.05 / 0.25, 0.05 / 0.125, 0]))
    with pytest.raises(ValueError, match=r"of the same images, got \(2, 2, 2, 2\) and \(1, 3, 2, 2\)"):
        overlaps(activations, torch.zeros(2), concepts[:1])


def test_parts_of_a_large_set_add_up(monkeypatch):
    activations = torch.rand(9, 5, 3, 3, generator=torch.Generator().manual_seed(1))
    concepts = torch.rand(9, 4, 8, 8, generator=torch.Generator().manual_seed(2)) > 0.7
    whole = overlaps(activations, thresholds_of(activations, 0.2), concepts)
    for cells in (1, 130, 700):  # a unit at a time, two units, two images
        monkeypatch.setattr("groupcam_aug.dissection._CELLS", cells)
        torch.testing.assert_close(overlaps(activations, thresholds_of(activations, 0.2), concepts), whole)


def test_a_unit_that_sees_green_alone_is_named_green_on_other_drawings_too():
    cam = GradCAM(Coloured())
    learn, check = draw_concepts(120, 32), draw_concepts(120, 32, held_out=True)
    assert not torch.equal(learn.images, check.images)
    activations = cam.activations(learn.images)
    thresholds = thresholds_of(activations, 0.05)
    iou = overlaps(activations, thresholds, learn.masks)
    held_out = overlaps(cam.activations(check.images), thresholds, check.masks)
    names = name_units(iou, held_out, list(CONCEPTS))
    assert [(name.unit, name.concept) for name in names] == [(0, "green"), (1, "red")], "and unit 2 has none"
    assert all(name.iou > 0.1 and name.held_out > 0.1 for name in names)
    assert name_units(iou, held_out, list(CONCEPTS), least=0.99) == []


def test_evidence_in_words_is_the_part_of_the_map_before_the_relu():
    activations = torch.stack([torch.full((2, 2), float(i)) for i in (1, 2, 3, 4)])
    words = in_words(torch.tensor([2.0, -1, 1, -1]), activations, {0: "green", 2: "green", 1: "ring"})
    assert words.because == [("green", 5.0)] and words.against == [("ring", -2.0)]
    assert words.named == pytest.approx(7 / 11), "the fourth unit, of no name, bears 4 of 11"
    named = {0: "a", 1: "b", 2: "c", 3: "d"}
    assert [name for name, _ in in_words(torch.ones(4), activations, named).because] == ["d", "c", "b"]
    assert math.isnan(in_words(torch.zeros(4), activations, named).named)
