"""Outputs of any shape under a callable target: captions, maps of classes, single numbers, several tensors at once."""

import pytest
import torch
from models import PooledNet
from torch import nn

from groupcam_aug import GradCAM, GroupCAM, guided_grad_cam
from groupcam_aug.metrics import average_drop, insertion_deletion
from groupcam_aug.packed import pack


class Shaped(nn.Module):
    """The numbers of a small classifier, (N, 12), in another form."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(1)
        self.net, self.form = PooledNet(classes=12), form

    def forward(self, x):
        return self.form(self.net(x))


FORMS = {
    "caption (N, T, V)": (lambda y: y.view(-1, 3, 4), lambda y: y[:, 1, 2]),
    "maps (N, C, h, w)": (lambda y: y.view(-1, 3, 2, 2), lambda y: y[:, 1, 1, 0]),
    "regression (N,)": (lambda y: y[:, 6], lambda y: y),
    "tuple": (lambda y: (y[:, 0], y[:, 1:4].sum(1).long(), y[:, 4:].view(-1, 2, 2, 2)), lambda y: y[2][:, 0, 1, 0]),
    "dict": (lambda y: {"a": y[:, :6], "b": {"c": y[:, 6]}}, lambda y: y["b"]["c"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_any_output_under_a_callable_is_as_its_own_logit(form, images):
    shape, target = FORMS[form]
    plain, shaped = Shaped(lambda y: y).double(), Shaped(shape).double()
    same = lambda y: y[:, 6]  # noqa: E731
    for chunk in (1, 2, None):
        for options in (
            {"weights": "none", "denoise": None},
            {"weights": "gradient"},
            {"mask_at": "target", "baseline": "zero"},
            {"mask_at": "net.conv1"},
            {"baseline": "zero"},
        ):
            expected = GroupCAM(plain, "net.relu2", groups=4, chunk=chunk, **options)(images, same)
            maps = GroupCAM(shaped, "net.relu2", groups=4, chunk=chunk, **options)(images, target)
            torch.testing.assert_close(maps, expected, rtol=0, atol=1e-9)
        expected, maps = (GradCAM(n, chunk=chunk)(images, t) for n, t in ((plain, same), (shaped, target)))
        torch.testing.assert_close(maps, expected, rtol=0, atol=1e-9)
    assert maps.amax() == 1
    torch.testing.assert_close(guided_grad_cam(shaped, images, target), guided_grad_cam(plain, images, same), rtol=0, atol=1e-9)
    for measure in (
        lambda n, t: insertion_deletion(n, images, maps, t, steps=3, chunk=2).insertion_auc,
        lambda n, t: average_drop(n, images, maps, t, chunk=2).drop,
    ):
        torch.testing.assert_close(measure(shaped, target), measure(plain, same), rtol=0, atol=1e-9)


@pytest.mark.parametrize("chunk", [1, 2, 64])
def test_a_callable_with_a_thing_for_each_image(images, chunk):
    """Of the second argument: the rows' images in the batch, whatever is passed at once."""
    shaped, plain, words = Shaped(lambda y: (y.view(-1, 3, 4), y[:, 0])).double(), Shaped(lambda y: y).double(), [7, 0, 11]
    held = torch.tensor(words)
    target = lambda y, rows: y[0].flatten(1)[torch.arange(len(rows)), held[rows]]  # noqa: E731
    for weights, place in (("none", "input"), ("gradient", "target"), ("none", "net.conv1")):
        options = {"groups": 4, "weights": weights, "mask_at": place, "denoise": None, "chunk": chunk}
        maps = GroupCAM(shaped, "net.relu2", **options)(images, target)
        alone = [
            GroupCAM(plain, "net.relu2", **options)(image[None], lambda y, w=word: y[:, w]) for image, word in zip(images, words)
        ]
        torch.testing.assert_close(maps, torch.cat(alone), rtol=0, atol=1e-9)
    torch.testing.assert_close(GradCAM(shaped, chunk=chunk)(images, target), GradCAM(plain)(images, held), rtol=0, atol=1e-9)
    curves = insertion_deletion(shaped, images, maps, target, steps=4, chunk=chunk)
    alone = [
        insertion_deletion(plain, images[i : i + 1], maps[i : i + 1], lambda y, w=w: y[:, w], steps=4)
        for i, w in enumerate(words)
    ]
    torch.testing.assert_close(curves.deletion, torch.cat([one.deletion for one in alone]), rtol=0, atol=1e-9, equal_nan=True)
    assert curves.deletion.isfinite().any()


@pytest.mark.parametrize(
    "form, error, words",
    [
        (lambda y: y.view(-1, 3, 4).transpose(0, 1), ValueError, "Shaped returns 3 rows of logits for 2 images"),
        (lambda y: y.mean(), ValueError, r"Shaped returns \(\) for 2 images: a target callable is given one row per image"),
        (lambda y: (y, y.mean()), ValueError, r"tensors of the shapes \[\(2, 12\), \(\)\] for 2 images.*output="),
        (lambda y: (y, "words"), TypeError, r"a tuple of torch.float64, str: a target callable is given tensors.*output="),
        (lambda y: (y.long(),), TypeError, r"a tuple of torch.int64"),
    ],
)
def test_outputs_without_a_row_for_each_image(images, form, error, words):
    with pytest.raises(error, match=words):
        GradCAM(Shaped(form).double(), "net.relu2")(images[:2], lambda y: y[0])


def test_without_a_callable_shapes_are_as_strict_as_ever(images):
    with pytest.raises(TypeError, match="no logits found"):
        GradCAM(Shaped(lambda y: (y, y)).double(), "net.relu2")(images, 0)
    with pytest.raises(ValueError, match=r"got \(3, 3, 4\).*or give targets as a callable"):
        GradCAM(Shaped(lambda y: y.view(-1, 3, 4)).double(), "net.relu2")(images, 0)


def test_pack_and_unpack():
    output = {"a": torch.arange(6.0).view(2, 3), "b": [torch.tensor([1, 2]), torch.zeros(2, 2, 2, dtype=torch.float64)]}
    packed, packing = pack(output, 2, "Net")
    assert packed.shape == (2, 8) and packed.dtype == torch.float64
    back = packing.unpack(packed.repeat(2, 1).float())
    assert back["a"].tolist() == output["a"].repeat(2, 1).tolist() and back["b"][1].shape == (4, 2, 2)
    assert back["b"][0].tolist() == [1, 2, 1, 2] and back["b"][0].dtype == torch.long and back["b"][1].dtype == torch.float32
