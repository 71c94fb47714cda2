"""Insertion and deletion: closed forms, literal loops (ours and the authors'), what may not change the numbers."""

import copy
import gc
import math
import weakref
from itertools import pairwise

import numpy
import pytest
import torch
from models import MeanNet, PooledNet, assert_same, snapshot
from scipy.integrate import trapezoid
from torch import nn

from groupcam_aug import metrics
from groupcam_aug.blur import blur
from groupcam_aug.metrics import average_drop, deletion_auc, insertion_auc, insertion_deletion


class Evidence(nn.Module):
    """p(class 1) = sigmoid(3 n - 6), n the evidence pixels that are shown."""

    PLACES = ((1, 2), (3, 3), (6, 0), (7, 7))

    def forward(self, x):
        found = sum(x[:, 0, row, column] for row, column in self.PLACES)
        return torch.stack([torch.zeros_like(found), 3 * found - 6], dim=1)


def order_first(*places, size=8):
    """A map whose largest values are `places`, in that order; the rest as in raster order."""
    scores = -torch.arange(size * size, dtype=torch.float32).view(1, size, size)
    for i, (row, column) in enumerate(places):
        scores[0, row, column] = 100 - i
    return scores


def literal(network, image, scores, target, steps, base, way):
    """One forward pass a step, in order."""
    order, pixels = scores.flatten().argsort(descending=True, stable=True), scores.numel()
    now, last = (base, image) if way == "insertion" else (image, base)
    now, last, values, fractions = now.clone(), last.flatten(1), [], []
    for j in range(steps + 1):
        count = round(j / steps * pixels)
        now.flatten(1)[:, order[:count]] = last[:, order[:count]]
        with torch.no_grad():
            values.append(network(now[None]).softmax(dim=1)[0, target].item())
        fractions.append(count / pixels)
    return torch.tensor(values), trapezoid(values, fractions)


def authors(network, image, scores, target, way):
    """CausalMetric.single_run of the authors' ins_del_gc.py, step by step: 448 pixels, ties from the end, area on a uniform axis."""
    height, width = scores.shape
    step, pixels = 448, height * width
    order = numpy.flip(numpy.argsort(scores.numpy().reshape(-1, pixels), axis=1, kind="stable"), axis=-1).copy()
    grey = torch.zeros_like(image)
    blurred = blur(image[None], 51, 50.0)[0]
    start, finish = (blurred.clone(), image) if way == "insertion" else (image.clone(), grey)
    steps = (pixels + step - 1) // step
    values = numpy.empty(steps + 1)
    for i in range(steps + 1):
        with torch.no_grad():
            values[i] = network(start[None]).softmax(dim=1)[0, target].item()
        if i < steps:
            places = order[:, step * i : step * (i + 1)]
            start.numpy().reshape(1, 3, pixels)[0, :, places] = finish.numpy().reshape(1, 3, pixels)[0, :, places]
    return torch.tensor(values), (values.sum() - values[0] / 2 - values[-1] / 2) / (values.shape[0] - 1)


ones = torch.ones(1, 1, 8, 8)


def test_linear_model_gives_a_half_for_any_order():
    """E4: a curve that is the straight line from 0 to 1."""
    for seed in range(3):
        maps = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(seed))
        seen = insertion_deletion(MeanNet(), ones, maps, 1, steps=64, substrate="zeros")
        line = torch.linspace(0, 1, 65)
        torch.testing.assert_close(seen.insertion[0], line, rtol=0, atol=1e-6)
        torch.testing.assert_close(seen.deletion[0], 1 - line, rtol=0, atol=1e-6)
        torch.testing.assert_close(seen.insertion_auc, torch.tensor([0.5]), rtol=0, atol=1e-6)
        torch.testing.assert_close(seen.overall, torch.tensor([0.0]), rtol=0, atol=1e-6)
        for steps in (1, 3, 7, 28, 200):
            for spacing in ("uniform", "quadratic"):
                area = insertion_auc(MeanNet(), ones, maps, 1, steps=steps, spacing=spacing, substrate="zeros")
                assert abs(area.item() - 0.5) < 1e-5, (steps, spacing)


def test_planted_evidence_in_closed_form():
    """E4: one pixel a step, the evidence first, last, and in the middle of the order."""

    def p(count):
        return 1 / (1 + math.exp(6 - 3 * count))

    oracle = order_first(*Evidence.PLACES)
    seen = insertion_deletion(Evidence(), ones, oracle, 1, steps=64, substrate="zeros")
    curve = [p(min(j, 4)) for j in range(65)]
    torch.testing.assert_close(seen.insertion[0], torch.tensor(curve), rtol=0, atol=1e-6)
    torch.testing.assert_close(seen.deletion[0], torch.tensor([p(max(4 - j, 0)) for j in range(65)]), rtol=0, atol=1e-6)
    area = sum((a + b) / 2 for a, b in pairwise(curve)) / 64
    assert abs(seen.insertion_auc.item() - area) < 1e-6
    random = torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(0))
    many = insertion_deletion(Evidence(), ones.expand(8, -1, -1, -1), random, 1, steps=64, substrate="zeros")
    inverted = insertion_deletion(Evidence(), ones, -oracle, 1, steps=64, substrate="zeros")
    assert seen.overall.item() > many.overall.mean().item() > inverted.overall.item()
    torch.testing.assert_close(inverted.overall, -seen.overall, rtol=0, atol=1e-6)


def test_author_compatible_in_closed_form():
    """E4: 112 steps of 1/112 of the pixels, insertion from the blur, deletion to zeros, ties from the last pixel back."""
    image = torch.rand(1, 1, 16, 14, generator=torch.Generator().manual_seed(0))
    maps = torch.zeros(1, 16, 14)
    maps[0, 0, 0] = 1
    seen = insertion_deletion(MeanNet(torch.ones(16, 14)), image, maps, 1, author_compatible=True)
    pixels, blurred = image.flatten().double(), blur(image).flatten().double()
    order = [0, *range(223, 0, -1)]
    expected = {"insertion": [], "deletion": []}
    for j in range(113):
        swapped = torch.zeros(224, dtype=torch.bool)
        swapped[order[: 2 * j]] = True
        expected["insertion"].append(torch.where(swapped, pixels, blurred).mean().item())
        expected["deletion"].append(torch.where(swapped, 0, pixels).mean().item())
    torch.testing.assert_close(seen.insertion[0], torch.tensor(expected["insertion"]), rtol=0, atol=1e-6)
    torch.testing.assert_close(seen.deletion[0], torch.tensor(expected["deletion"]), rtol=0, atol=1e-6)
    values = expected["deletion"]
    assert abs(seen.deletion_auc.item() - (sum(values) - values[0] / 2 - values[-1] / 2) / 112) < 1e-6


@pytest.mark.parametrize("substrate", ["blur", "zeros", "mean"])
def test_equals_a_literal_loop(net, images, substrate):
    base = {
        "blur": blur(images),
        "zeros": torch.zeros_like(images),
        "mean": images.mean(dim=(2, 3), keepdim=True).expand_as(images),
    }[substrate]
    maps = torch.rand(3, 24, 20, generator=torch.Generator().manual_seed(2))
    maps[1] = maps[1].round()  # ties
    targets = torch.tensor([0, 3, 1])
    seen = insertion_deletion(net, images, maps, targets, steps=9, substrate=substrate)
    net.eval()
    for i in range(3):
        for way in ("insertion", "deletion"):
            curve, area = literal(net, images[i], maps[i], targets[i], 9, base[i], way)
            torch.testing.assert_close(getattr(seen, way)[i].float(), curve, rtol=0, atol=1e-6)
            assert abs(getattr(seen, f"{way}_auc")[i].item() - area) < 1e-6
    assert seen.insertion.dtype == torch.float64, "float64 images"
    custom = insertion_deletion(net, images, maps, targets, steps=9, substrate=lambda x: base)
    torch.testing.assert_close(custom.insertion, seen.insertion)
    alone = {"steps": 9, "substrate": substrate}
    torch.testing.assert_close(insertion_auc(net, images, maps, targets, **alone), seen.insertion_auc)
    torch.testing.assert_close(deletion_auc(net, images, maps, targets, **alone), seen.deletion_auc)


@pytest.mark.parametrize("kind", ["smooth", pytest.param("ties", marks=pytest.mark.slow)])
def test_author_compatible_equals_the_authors_loop_on_photographs(squeezenet, photographs, kind):
    """E3: 113 + 113 passes an image, 448 pixels at a time."""
    images, labels = photographs(1, start=7 if kind == "smooth" else 20)
    grid = torch.rand(1, 1, 13, 13, generator=torch.Generator().manual_seed(3))
    mode = {"mode": "bicubic"} if kind == "smooth" else {"mode": "nearest"}
    maps = nn.functional.interpolate(grid, (224, 224), **mode)[:, 0]
    seen = insertion_deletion(squeezenet, images, maps, labels, author_compatible=True)
    for way in ("insertion", "deletion"):
        curve, area = authors(squeezenet, images[0].clone(), maps[0], labels[0], way)
        torch.testing.assert_close(getattr(seen, way)[0].double(), curve, rtol=0, atol=1e-5)
        assert abs(getattr(seen, f"{way}_auc").item() - area) < 1e-5
    assert seen.insertion.amax() - seen.insertion.amin() > 0.05, "a curve that goes somewhere"


def test_endpoints_and_constant_models(net, images):
    """The ends are p(x) and p(substrate); a network that always says the same has that area."""
    maps = torch.rand(3, 24, 20, generator=torch.Generator().manual_seed(0))
    seen = insertion_deletion(net, images, maps, 2, steps=5)
    net.eval()
    with torch.no_grad():
        clean, base = net(images).softmax(1)[:, 2], net(blur(images)).softmax(1)[:, 2]
    for curve, first, last in ((seen.insertion, base, clean), (seen.deletion, clean, base)):
        torch.testing.assert_close(curve[:, 0], first)
        torch.testing.assert_close(curve[:, -1], last)
    assert seen.fractions[0] == 0 and seen.fractions[-1] == 1
    with torch.no_grad():
        net.fc.weight.zero_()
        net.fc.bias.copy_(torch.tensor([0.0, 0, math.log(6), 0, 0]))
    for spacing in ("uniform", "quadratic"):
        for steps in (1, 28):
            areas = insertion_deletion(net, images, maps, 2, steps=steps, spacing=spacing)
            torch.testing.assert_close(areas.insertion_auc, torch.full((3,), 0.6, dtype=torch.float64))
            torch.testing.assert_close(areas.deletion_auc, torch.full((3,), 0.6, dtype=torch.float64))


def test_top_1_and_other_forms_of_targets(net, images):
    maps = torch.rand(3, 24, 20, generator=torch.Generator().manual_seed(0))
    top = copy.deepcopy(net).eval()(images).argmax(1)
    expected = insertion_auc(net, images, maps, top)
    for targets in (None, top.tolist(), nn.functional.one_hot(top, 5), lambda z: z.softmax(1).amax(1)):
        found = insertion_auc(net, images, maps, targets)
        if callable(targets):  # the largest probability at every point, not that of one class
            assert (found >= expected - 1e-12).all()
        else:
            torch.testing.assert_close(found, expected)
    sigmoid = insertion_auc(net, images, maps, top, activation="sigmoid")
    assert not torch.allclose(sigmoid, expected)


def test_output_and_preprocess(net, images):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net

        def forward(self, x):
            return {"scores": self.inner(x)}

    maps = torch.rand(3, 24, 20, generator=torch.Generator().manual_seed(0))
    found = insertion_auc(Wrapped(), images / 2, maps, 1, output="scores", preprocess=lambda x: 2 * x, substrate="zeros")
    torch.testing.assert_close(found, insertion_auc(net, images, maps, 1, substrate="zeros"))
    with pytest.raises(TypeError, match="output="):
        insertion_auc(Wrapped(), images, maps, 1)


def test_the_network_comes_back_as_found(net, images):
    net.train()
    net.bn1.eval()
    net(images).sum().backward()
    maps, before = torch.rand(3, 24, 20), snapshot(net)
    torch.manual_seed(0)
    before["rng"] = torch.get_rng_state()
    insertion_deletion(net, images, maps, 1, steps=3)
    average_drop(net, images, maps, 1)
    assert_same(before, snapshot(net))
    for bad in ("nonsense", lambda x: x[:, :, :-1]):
        with pytest.raises(ValueError, match="substrate"):
            insertion_auc(net, images, maps, 1, substrate=bad)
    assert_same(before, snapshot(net))
    assert not insertion_auc(net, images.requires_grad_(), maps, 1, steps=2).requires_grad


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": True}, "steps"),
        ({"spacing": "log"}, "spacing"),
        ({"chunk": 0}, "chunk"),
        ({"activation": "none"}, "activation"),
        ({"author_compatible": True, "steps": 10}, "author_compatible"),
        ({"author_compatible": True, "substrate": "zeros"}, "author_compatible"),
        ({"targets": [1, 2]}, "2 targets for 3 images"),
    ],
)
def test_refused(net, images, options, match):
    with pytest.raises(ValueError, match=match):
        insertion_auc(net, images, torch.rand(3, 24, 20), **options)


@pytest.mark.parametrize("how", ["bf16 autocast", "bf16 weights"])
def test_low_precision(how):
    torch.manual_seed(0)
    net, images, maps = PooledNet().eval(), torch.randn(2, 3, 24, 20), torch.rand(2, 24, 20)
    expected = insertion_auc(net, images, maps, 1)
    if how == "bf16 weights":
        found = insertion_auc(net.bfloat16(), images.bfloat16(), maps, 1)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            found = insertion_auc(net, images, maps, 1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01)


def test_the_network_is_borrowed_and_not_kept():
    torch.manual_seed(0)
    net, images, maps = PooledNet().train(), torch.randn(2, 3, 24, 20), torch.rand(2, 24, 20)
    before = snapshot(net)
    kept = [metrics.InsertionAUC(steps=2), metrics.DeletionAUC(steps=2), metrics.InsertionDeletion(steps=2)]
    for metric in kept:
        metric(net, images, maps)
        metric.update(net, images, maps)
        metric.compute()
        assert not list(metric.children()) and not list(metric.parameters())
    assert_same(before, snapshot(net))
    gone = weakref.ref(net)
    del net, before
    gc.collect()
    assert gone() is None


def test_author_compatible_metric():
    torch.manual_seed(0)
    net, images, maps = PooledNet(), torch.randn(2, 3, 24, 20), torch.rand(2, 24, 20)
    metric = metrics.InsertionAUC(author_compatible=True)
    metric.update(net, images, maps)
    assert metric.curves()["insertion"].shape == (113,)
    torch.testing.assert_close(metric.compute(), metrics.insertion_auc(net, images, maps, author_compatible=True).mean())
    quadratic = metrics.DeletionAUC(steps=4, spacing="quadratic")
    quadratic.update(net, images, maps)
    torch.testing.assert_close(quadratic.curves()["fractions"], torch.tensor([0, 1, 4, 9, 16]) / 16)


def test_metrics_are_means_of_the_functions(net, images):
    maps = torch.rand(3, 24, 20, generator=torch.Generator().manual_seed(0))
    maps[1] = 0.5  # undefined
    both, deletion = metrics.InsertionDeletion(steps=5), metrics.DeletionAUC(steps=5, substrate="zeros")
    insertion = metrics.InsertionAUC(steps=5)
    for metric in (both, insertion, deletion):
        metric.update(net, images, maps, 1)
    curves = insertion_deletion(net, images, maps, 1, steps=5)
    assert both.overall_undefined == insertion.insertion_undefined == curves.undefined.sum() == 1
    for name, expected in (("insertion", curves.insertion_auc), ("deletion", curves.deletion_auc), ("overall", curves.overall)):
        torch.testing.assert_close(both.compute()[name].double(), expected.nanmean(), rtol=0, atol=1e-6)
    torch.testing.assert_close(insertion.compute(), both.compute()["insertion"])
    torch.testing.assert_close(insertion.curves()["insertion"].double(), curves.insertion[[0, 2]].mean(0), rtol=0, atol=1e-6)
    torch.testing.assert_close(both.curves()["fractions"].double(), curves.fractions)
    area = deletion_auc(net, images, maps, 1, steps=5, substrate="zeros")
    torch.testing.assert_close(deletion.compute().double(), area.nanmean(), rtol=0, atol=1e-6)
    nothing = metrics.InsertionDeletion(steps=2)
    nothing.update(net, images, torch.ones(3, 24, 20))
    assert [value.item() for value in nothing.compute().values()] == [0, 0, 0] and nothing.overall_undefined == 3


def test_plot_of_the_curves(net, images):
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot

    curve = metrics.InsertionDeletion(steps=5)
    curve.update(net, images, torch.rand(3, 24, 20))
    figure, axes = curve.plot()
    lines = [line.get_ydata() for line in axes.get_lines()]
    torch.testing.assert_close(torch.as_tensor(lines[0]), curve.curves()["insertion"])
    assert [text.get_text().split()[0] for text in axes.get_legend().get_texts()] == ["insertion", "deletion"]
    again, same = curve.plot(ax=axes)
    assert again is figure and same is axes and len(axes.get_lines()) == 4
    pyplot.close(figure)
