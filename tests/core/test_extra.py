"""Networks with more inputs than images: every batched map and measure is what single images of a closed network give."""

import itertools

import pytest
import torch
import torch._dynamo
from torch import nn

from groupcam_aug import GradCAM, GroupCAM, SaliencyBlur, compiled, grad_cam, group_cam, guided_grad_cam
from groupcam_aug.extra import Extra, read_extra
from groupcam_aug.metrics import InsertionDeletion, average_drop, deletion_auc, insertion_auc, insertion_deletion
from groupcam_aug.sanity import randomization_check

WORDS = 6


class Asked(nn.Module):
    """An image and a question: the features are weighed by what the question asks for. `first`: the question is read first."""

    def __init__(self, first=False, recurrent=False, classes=5):
        super().__init__()
        self.first = first
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.act = nn.ReLU()
        self.words = nn.Embedding(WORDS, 8)
        self.gru = nn.GRU(8, 8, batch_first=True) if recurrent else None
        self.fc = nn.Linear(8, classes)
        nn.init.normal_(self.fc.weight)

    def read(self, question, scale):
        read = self.words(question)
        read = read.mean(dim=1) if self.gru is None else self.gru(read)[1][0]
        return read * scale

    def forward(self, x, question, scale=1.0, shift=None):
        read = self.read(question, scale) if self.first else None
        x = self.act(self.conv2(torch.relu(self.conv1(x))))
        read = self.read(question, scale) if read is None else read
        x = (x.mean(dim=(2, 3)) if shift is None else x.mean(dim=(2, 3)) + shift) * read
        return self.fc(x)


class Closed(nn.Module):
    """The same network for one image, whose further inputs it holds: nothing here knows about `extra`."""

    def __init__(self, network, *args, **kwargs):
        super().__init__()
        self.network, self.args, self.kwargs = network, args, kwargs

    def forward(self, x):
        repeated = [a.expand(len(x), *a.shape[1:]) if isinstance(a, torch.Tensor) else a for a in self.args]
        named = {k: a.expand(len(x), *a.shape[1:]) if isinstance(a, torch.Tensor) else a for k, a in self.kwargs.items()}
        return self.network(x, *repeated, **named)


def make(seed=3, **options):
    torch.manual_seed(seed)
    return Asked(**options).double().eval()


@pytest.fixture
def batch():
    """One picture twice and two others, a question for each; of the first two only the question differs."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, 24, 20, dtype=torch.float64, generator=generator)[[0, 0, 1, 2]]
    return images, torch.tensor([[0, 1, 2], [3, 4, 5], [5, 0, 3], [2, 2, 4]]), torch.tensor([0, 0, 3, 1])


def each(network, questions, method):
    """`method(closed network, index)` image by image."""
    return torch.cat([method(Closed(network, question[None]), i) for i, question in enumerate(questions)])


PLACES = [("input", "blur"), ("input", "zero"), ("target", "blur"), ("target", "zero"), ("stage", "blur"), ("stage", "zero")]


def check_against_single_images(networks, batch, options):
    images, questions, classes = batch
    differ = []
    for network in networks:
        cam = GroupCAM(network, "act", **options)
        maps = cam(images, classes, questions)
        alone = each(
            network, questions, lambda n, i: GroupCAM(n, "network.act", **options)(images[i : i + 1], classes[i : i + 1])
        )
        torch.testing.assert_close(maps, alone, rtol=0, atol=1e-6)
        single = [cam(images[i : i + 1], classes[i : i + 1], questions[i : i + 1]) for i in range(4)]
        torch.testing.assert_close(torch.cat(single), maps, rtol=0, atol=1e-6)
        assert maps.amax() == 1
        differ.append(float((maps[0] - maps[1]).abs().max()))
    assert max(differ) > 1e-3, "two questions about one picture have two maps"


@pytest.mark.parametrize("chunk, weights", [(3, "none"), (64, "gradient")])
@pytest.mark.parametrize("place, baseline", PLACES)
def test_group_cam_is_that_of_single_images(batch, place, baseline, weights, chunk):
    options = {"groups": 4, "weights": weights, "denoise": None, "baseline": baseline, "chunk": chunk, "mask_at": place}
    check_against_single_images([make(), make(first=True, recurrent=True)], batch, options)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 3, 64])
@pytest.mark.parametrize("weights", ["none", "gradient"])
@pytest.mark.parametrize("place, baseline", PLACES)
def test_group_cam_of_every_way_is_that_of_single_images(batch, place, baseline, weights, chunk):
    options = {"groups": 4, "weights": weights, "denoise": None, "baseline": baseline, "chunk": chunk, "mask_at": place}
    ways = [{"first": first, "recurrent": recurrent} for first in (False, True) for recurrent in (False, True)]
    check_against_single_images([make(**way) for way in ways], batch, options)


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_grad_cam_is_that_of_single_images(batch, chunk):
    images, questions, classes = batch
    network = make()
    maps = GradCAM(network, "act", chunk=chunk)(images, classes, questions)
    alone = each(network, questions, lambda n, i: GradCAM(n, "network.act")(images[i : i + 1], classes[i : i + 1]))
    torch.testing.assert_close(maps, alone, rtol=0, atol=1e-6)
    assert maps.amax() == 1 and (maps[0] - maps[1]).abs().max() > 1e-3
    assert torch.equal(grad_cam(network, images, classes, "act", extra=questions, chunk=chunk), maps)
    assert torch.equal(GradCAM(network, chunk=chunk)(images, classes, questions), maps), "the layer is found as well"
    guided = guided_grad_cam(network, images, classes, "act", extra=questions, chunk=chunk)
    alone = each(network, questions, lambda n, i: guided_grad_cam(n, images[i : i + 1], classes[i : i + 1], "network.act"))
    torch.testing.assert_close(guided, alone, rtol=0, atol=1e-6)
    (raw,) = GradCAM(network, ["act"]).raw(images, None, questions)
    first = each(network, questions, lambda n, i: GradCAM(n, "network.act").raw(images[i : i + 1]))
    torch.testing.assert_close(raw, first, rtol=0, atol=1e-6)


def test_grad_cam_is_captums(batch):
    captum = pytest.importorskip("captum.attr", reason="captum is not installed")
    images, questions, classes = batch
    network = make()
    theirs = captum.LayerGradCam(network, network.act).attribute(images, classes, (questions,), relu_attributions=True)
    torch.testing.assert_close(GradCAM(network, "act").raw(images, classes, questions), theirs[:, 0].detach(), rtol=0, atol=1e-9)


def test_forms_of_extra(batch):
    images, questions, classes = batch
    network, shift = make(), torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    options = {"groups": 4, "weights": "none", "denoise": None, "chunk": 3}
    expected = torch.cat(
        [
            GroupCAM(Closed(network, q[None], 2.0, shift=s[None]), "network.act", **options)(
                images[i : i + 1], classes[i : i + 1]
            )
            for i, (q, s) in enumerate(zip(questions, shift))
        ]
    )
    for extra in (
        (questions, 2.0, shift),
        [questions, 2.0, shift],
        {"question": questions, "scale": 2.0, "shift": shift},
    ):
        torch.testing.assert_close(GroupCAM(network, "act", **options)(images, classes, extra), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(
            group_cam(network, images, classes, "act", extra=extra, **options), expected, rtol=0, atol=1e-6
        )

    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x, given):
            return self.inner(x, given["question"], 2.0, given["rest"][0])

    maps = GroupCAM(Nested(), "inner.act", **options)(images, classes, ({"question": questions, "rest": (shift, None)},))
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-6)


def test_a_way_that_depends_on_what_is_given(batch):
    """A tail found without a question is not taken for one with it: the question may be read in front of the layer."""
    images, questions, classes = batch

    class Either(Asked):
        def forward(self, x, question=None):
            return super().forward(x, torch.zeros(len(x), 3, dtype=torch.long) if question is None else question)

    torch.manual_seed(3)
    network = Either(first=True).double().eval()
    options = {"groups": 4, "weights": "none", "denoise": None, "mask_at": "target"}
    cam = GroupCAM(network, "act", **options)
    plain = cam(images, classes)
    asked = cam(images, classes, questions)
    torch.testing.assert_close(asked, GroupCAM(network, "act", **options)(images, classes, questions), rtol=0, atol=0)
    assert torch.equal(cam(images, classes), plain)
    assert cam.extra is GroupCAM(network).extra, "nothing is kept between calls"


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_measures_are_those_of_single_images(batch, chunk):
    images, questions, classes = batch
    network = make()
    maps = GradCAM(network, "act")(images, classes, questions)
    at = lambda i: (images[i : i + 1], maps[i : i + 1], classes[i : i + 1])  # noqa: E731
    curves = insertion_deletion(network, images, maps, classes, steps=5, extra=questions, chunk=chunk)
    for name in ("insertion", "deletion", "insertion_auc", "deletion_auc"):
        alone = each(network, questions, lambda n, i: getattr(insertion_deletion(n, *at(i), steps=5), name))
        torch.testing.assert_close(getattr(curves, name), alone, rtol=0, atol=1e-6)
    assert (curves.deletion_auc[0] - curves.deletion_auc[1]).abs() > 1e-3
    assert torch.equal(insertion_auc(network, images, maps, classes, steps=5, extra=questions, chunk=chunk), curves.insertion_auc)
    assert torch.equal(
        deletion_auc(network, images, maps, classes, steps=5, extra=(questions,), chunk=chunk), curves.deletion_auc
    )
    drop = average_drop(network, images, maps, classes, extra={"question": questions}, chunk=chunk).drop
    torch.testing.assert_close(drop, each(network, questions, lambda n, i: average_drop(n, *at(i)).drop), rtol=0, atol=1e-6)
    metric = InsertionDeletion(steps=5)
    metric.update(network, images[:1], maps[:1], classes[:1], questions[:1])
    metric.update(network, images[1:], maps[1:], classes[1:], extra=questions[1:])
    torch.testing.assert_close(metric.compute()["deletion"].double(), curves.deletion_auc.mean(), rtol=0, atol=1e-6)


def test_randomization_check_asks_the_questions(batch):
    images, questions, _ = batch
    network = make()
    check = randomization_check(network, images, GradCAM(network, "act"), stages=["fc"], extra=questions)
    seen = []
    randomization_check(
        network, images, lambda i, t, e: seen.append((t, e)) or torch.rand(4, 6, 5), stages=["fc"], extra=questions
    )
    assert (
        len(seen) == 2 and torch.equal(seen[0][0], network(images, questions).argmax(1)) and torch.equal(seen[0][1][0], questions)
    )
    assert check.rho.shape == (1, 4) and check.stages == ("fc",)


@pytest.mark.parametrize("mask_from", ["saliency", "other"])
def test_the_augmentation_maps_drawn_images_with_their_rows(batch, mask_from):
    images, questions, classes = batch
    cam = GroupCAM.for_training(make(), "act", groups=4)
    everything = SaliencyBlur(cam, mask_from=mask_from).augment_at(images, classes, torch.arange(4), extra=questions)
    torch.testing.assert_close(
        everything.maps, cam(images, classes, questions).roll(-(mask_from == "other"), 0), rtol=0, atol=1e-6
    )
    some = SaliencyBlur(cam, mask_from=mask_from).augment_at(images, classes, torch.tensor([3, 1]), extra=(questions,))
    torch.testing.assert_close(some.images[[1, 3]], everything.images[[1, 3]], rtol=0, atol=1e-6)
    assert torch.equal(some.images[[0, 2]], images[[0, 2]])
    assert torch.equal(SaliencyBlur(cam, mask_from=mask_from)(images, classes, questions), everything.images)
    words = torch.tensor([1, 4, 0, 2])
    held = lambda y, rows: y[torch.arange(len(y)), words[rows]]  # noqa: E731
    of_words = SaliencyBlur(GradCAM(make(), "act"), mask_from=mask_from)
    index = torch.tensor([2, 0])
    by_index, by_class = (of_words.augment_at(images, t, index, extra=questions).images for t in (held, words))
    torch.testing.assert_close(by_index, by_class, rtol=0, atol=1e-6)


def test_compiled_passes(batch, monkeypatch):
    """Graphs are traced as ever, but run by torch's operations, which takes no C++ compiler."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    images, questions, classes = batch
    network = make()
    for extra, baseline in ((questions, "blur"), ({"question": questions}, "zero")):
        options = {"groups": 4, "weights": "none", "denoise": None, "chunk": 3, "baseline": baseline}
        cam = GroupCAM(network, "act", compile=True, **options)
        maps = cam(images, classes, extra)
        assert cam.compiled.graphs == 1 and not cam.compiled.refusal
        expected = GroupCAM(network, "act", **options)(images, classes, questions)
        torch.testing.assert_close(maps, expected, rtol=0, atol=1e-9)
        assert expected.amax() == 1
    torch._dynamo.reset()


def test_compiled_passes_get_the_rows_of_their_images(batch, monkeypatch):
    """Without a compiler: the passes that would be compiled, run eagerly."""
    images, questions, classes = batch
    network = make()
    for baseline, chunk in itertools.product(("blur", "zero"), (1, 3, 64)):
        options = {"groups": 4, "weights": "none", "denoise": None, "chunk": chunk, "baseline": baseline}
        cam = GroupCAM(network, "act", compile=True, **options)
        cam.compiled.refusal = "not tried"
        expected = GroupCAM(network, "act", **options)(images, classes, questions)
        torch.testing.assert_close(cam(images, classes, questions), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "extra, error, words",
    [
        (torch.zeros(3, 3, dtype=torch.long), ValueError, r"extra has the shape \(3, 3\) for 4 images: give one row per image"),
        ((torch.zeros(4, 3), torch.zeros(2, 4, 8)), ValueError, r"extra\[1\] has the shape \(2, 4, 8\)"),
        ({"question": torch.tensor(1)}, ValueError, r"extra\['question'\] has the shape \(\)"),
        ({"question": torch.zeros(4, 3, device="meta")}, ValueError, r"is on meta, the images are on cpu"),
        (["what is it", "where"], TypeError, r"extra\[0\] is a str \(texts have no rows"),
        ({"question": object()}, TypeError, "is a object"),
        ({1: torch.zeros(4)}, TypeError, r"names of arguments, got \[1\]"),
        ("what", TypeError, "extra must be a tensor, a tuple or list"),
    ],
)
def test_extra_of_the_wrong_form(batch, extra, error, words):
    images, _, classes = batch
    network = make()
    for call in (
        lambda: GradCAM(network, "act")(images, classes, extra),
        lambda: GroupCAM(network, "act", groups=2)(images, classes, extra),
        lambda: insertion_auc(network, images, images[:, 0], classes, extra=extra),
        lambda: SaliencyBlur(GradCAM(network, "act"), p=0.0)(images, classes, extra),
    ):
        with pytest.raises(error, match=words):
            call()


def test_a_network_that_misses_its_inputs_says_which_argument_gives_them(batch):
    images, questions, classes = batch
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'question'.*extra=.*none are given"):
        GradCAM(make(), "act")(images, classes)
    with pytest.raises(TypeError, match=r"Asked does not take what it is given .*'query'.*dict by name"):
        GradCAM(make(), "act")(images, classes, {"query": questions})


def test_inference_mode_and_gradients_of_the_inputs(batch):
    """What a training step or a prediction step hands over: tensors with a graph, and tensors that autograd cannot save."""
    images, questions, classes = batch
    network, shift = make(), torch.randn(4, 8, dtype=torch.float64)
    expected = GradCAM(network, "act")(images, classes, (questions, 1.0, shift))
    with torch.inference_mode():
        made = questions.clone(), 1.0, shift.clone()
        assert torch.equal(GradCAM(network, "act")(images, classes, made), expected)
    graph = shift.clone().requires_grad_()
    assert torch.equal(GradCAM(network, "act")(images, classes, (questions, 1.0, graph * 1)), expected) and graph.grad is None


def test_rows_are_cut_and_repeated():
    images = torch.zeros(3, 1, 4, 4)
    extra = read_extra({"a": torch.arange(3), "b": (torch.arange(6).view(3, 2), None, 7)}, images)
    part = extra[slice(1, 9)]
    assert part.count == 2 and part.kwargs["a"].tolist() == [1, 2] and part.kwargs["b"][1:] == (None, 7)
    assert extra[torch.tensor([2, 0, 2])].kwargs["b"][0].tolist() == [[4, 5], [0, 1], [4, 5]]
    assert part.fitting(4).kwargs["a"].tolist() == [1, 2, 1, 2] and part.fitting(2) is part
    assert extra.of_first(2).kwargs["a"].tolist() == [0, 0]
    with pytest.raises(ValueError, match="4 rows are no whole copies of 3 images"):
        extra.fitting(4)
    nothing = read_extra(None, images)
    assert not nothing and nothing.fitting(7) is nothing and nothing[slice(1)] is nothing and nothing.given() is None
    assert not read_extra((), images) and isinstance(nothing, Extra)
