"""Every form in which people have their targets, and the ones that must be refused."""

from collections import namedtuple
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import PooledNet

from groupcam_aug import GradCAM, GroupCAM, guided_grad_cam
from groupcam_aug.targets import IGNORED, class_labels, read_target, select_output, targets_of

LOGITS = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]], dtype=torch.float64)


def test_indices():
    for targets in (torch.tensor([1, 2]), [1, 2], (1, 2), torch.tensor([1, 2], dtype=torch.int32)):
        target = read_target(targets, LOGITS, "softmax")
        assert target.value(LOGITS).tolist() == [2.0, 3.0]
        torch.testing.assert_close(target.score(LOGITS), LOGITS.softmax(1)[[0, 1], [1, 2]])
    assert read_target(0, LOGITS, "softmax").value(LOGITS).tolist() == [1.0, 0.0]
    assert read_target(None, LOGITS, "softmax").value(LOGITS).tolist() == [2.0, 3.0]


def test_weights_are_averaged():
    rows = torch.tensor([[1.0, 1, 0], [0.0, 0.2, 0.6]])
    target = read_target(rows, LOGITS, "sigmoid")
    torch.testing.assert_close(target.value(LOGITS), torch.tensor([1.5, (-0.2 + 1.8) / 0.8], dtype=torch.float64))
    p = LOGITS.sigmoid()
    torch.testing.assert_close(
        target.score(LOGITS), torch.stack([(p[0, 0] + p[0, 1]) / 2, (0.2 * p[1, 1] + 0.6 * p[1, 2]) / 0.8])
    )


@pytest.mark.parametrize(
    "targets, expected",
    [
        (torch.tensor([[0.0, 0, 0], [1, 0, 0]]), [1, 0]),
        (torch.zeros(2, 3, dtype=torch.long), [1, 2]),
        (torch.tensor([IGNORED, 0]), [1, 0]),
        ([0, IGNORED], [0, 2]),
    ],
)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_an_image_without_a_label_is_explained_for_its_first_choice(targets, expected, activation):
    target, same = read_target(targets, LOGITS, activation), read_target(expected, LOGITS, activation)
    assert target.value(LOGITS).tolist() == same.value(LOGITS).tolist()
    assert target.score(LOGITS).tolist() == same.score(LOGITS).tolist()


def test_a_column_of_zeros_says_no():
    z = torch.tensor([[2.0], [-1.0]])
    assert read_target(torch.zeros(2, 1), z, "sigmoid").value(z).tolist() == [-2.0, 1.0]
    assert read_target(torch.zeros(2, 2), z, "sigmoid").value(z).tolist() == [2.0, 1.0], "of two columns none: the first choice"


def test_single_logit():
    z = torch.tensor([[2.0], [-1.0]], dtype=torch.float64)
    target = read_target([1, 0], z, "sigmoid")
    assert target.value(z).tolist() == [2.0, 1.0]
    torch.testing.assert_close(target.score(z), torch.stack([z[0, 0].sigmoid(), 1 - z[1, 0].sigmoid()]))
    for soft in (torch.tensor([1.0, 0.25]), torch.tensor([[1.0], [0.25]])):
        torch.testing.assert_close(read_target(soft, z, "sigmoid").value(z), torch.tensor([2.0, 0.5], dtype=torch.float64))
    assert read_target(None, z, "sigmoid").rows.tolist() == [1, 0]
    with pytest.raises(ValueError, match="activation='sigmoid'"):
        read_target(1, z, "softmax")


@pytest.mark.parametrize(
    "targets, error, message",
    [
        ([0, 3], ValueError, r"target 3 is outside the 3 classes of the network \(0 to 2\)"),
        (-1, ValueError, "target -1 is outside"),
        ([0], ValueError, r"shape \(1,\) do not fit a batch of 2"),
        (torch.zeros(2, 4), ValueError, "weigh 4 classes, but the network has 3"),
        (torch.zeros(2, 3, 1), ValueError, "do not fit"),
        (torch.tensor([0.0, 1.0]), TypeError, "class indices must be integers, got torch.float32"),
        (torch.tensor([True, False]), TypeError, "class indices must be integers, got torch.bool"),
        (torch.tensor([[0.5, -0.1, 0], [0, 0, 1]]), ValueError, "non-negative"),
        (torch.tensor([[0.5, float("nan"), 0], [0, 0, 1]]), ValueError, "non-negative"),
        ("cat", TypeError, "got str"),
        (True, TypeError, "got bool"),
        (1.5, TypeError, "got float"),
        ([len, len], TypeError, "list of builtin_function_or_method.*one callable for the whole batch"),
        (["a", "b"], TypeError, "list of str: give one int an image"),
        ([torch.ones(3), torch.ones(3)], TypeError, r"a list of Tensor.*torch\.stack"),
    ],
)
def test_refused(targets, error, message):
    with pytest.raises(error, match=message):
        read_target(targets, LOGITS, "softmax")


@pytest.mark.parametrize("one", [2, np.int64(2), torch.tensor(2)])
@pytest.mark.parametrize("method", [GradCAM, lambda net, layer: GroupCAM(net, layer, groups=4)])
def test_one_class_for_all_images_in_any_form_of_an_integer(net, images, method, one):
    assert torch.equal(method(net, "relu2")(images, one), method(net, "relu2")(images, [2, 2, 2]))


def test_a_single_probability():
    p = torch.tensor([[0.9], [0.4]], dtype=torch.float64)
    assert read_target(None, p, None).rows.tolist() == [1, 0]
    torch.testing.assert_close(read_target([0, 0], p, None).score(p), torch.tensor([0.1, 0.6], dtype=torch.float64))


@pytest.mark.parametrize("targets", [torch.tensor([0, 1, 2]), torch.rand(3, 5, dtype=torch.float64), torch.tensor(1)])
@pytest.mark.parametrize("method", [GradCAM, guided_grad_cam, lambda net, layer: GroupCAM(net, layer, groups=4)])
def test_targets_of_an_inference_mode(net, images, targets, method):
    """Lightning's validation, test and predict steps."""

    def maps(targets):
        return (
            guided_grad_cam(net, images, targets, "relu2") if method is guided_grad_cam else method(net, "relu2")(images, targets)
        )

    with torch.inference_mode():
        made = targets.clone()
        inside = maps(made)
    assert made.is_inference() and torch.equal(inside, maps(targets)) and torch.equal(maps(made), inside)


def test_a_column_of_an_inference_mode(images):
    """Labels as BCEWithLogitsLoss takes them, which nothing else on the way copies."""
    torch.manual_seed(0)
    net = PooledNet(classes=1).double()
    column = torch.tensor([[1.0], [0.0], [0.3]], dtype=torch.float64)
    with torch.inference_mode():
        made = column.clone()
    for method in (GradCAM(net, "relu2"), GroupCAM(net, "relu2", groups=4, activation="sigmoid")):
        assert torch.equal(method(images, made), method(images, column))


def test_callable_must_give_one_value_per_image():
    assert read_target(lambda z: z[:, 0] - z[:, 1], LOGITS, "softmax").value(LOGITS).tolist() == [-1.0, 1.0]
    with pytest.raises(ValueError, match=r"shape \(2,\); got \(2, 3\)"):
        read_target(lambda z: z, LOGITS, "softmax").value(LOGITS)


def test_a_callable_may_ask_for_the_rows():
    held = torch.tensor([2, 0])
    target = read_target(lambda z, rows: z[torch.arange(len(z)), held[rows]], LOGITS, "softmax")
    assert target.value(LOGITS).tolist() == [LOGITS[0, 2], LOGITS[1, 0]]
    assert target.part(slice(1, 5)).value(LOGITS[1:]).tolist() == [LOGITS[1, 0]]
    assert target.part(slice(None), copies=2).score(LOGITS.repeat(2, 1)).tolist() == [LOGITS[0, 2], LOGITS[1, 0]] * 2
    assert target.part(torch.tensor([1, 1, 0])).value(LOGITS[[1, 1, 0]]).tolist() == [LOGITS[1, 0], LOGITS[1, 0], LOGITS[0, 2]]
    part = targets_of(lambda z, rows: z[:, 0] + rows, slice(1, 9), 2)
    assert read_target(part, LOGITS[1:], "softmax").value(LOGITS[1:]).tolist() == [LOGITS[1, 0] + 1]
    with pytest.raises(ValueError, match="for 1 rows was given the outputs of 2"):
        part(LOGITS)


@pytest.mark.parametrize("target", [lambda z, k=2: z[:, k], lambda z, *, k=2: z[:, k], partial(lambda z, k: z[:, k], k=2)])
def test_a_default_is_no_second_argument(target):
    assert read_target(target, LOGITS, "softmax").value(LOGITS).tolist() == LOGITS[:, 2].tolist()


@pytest.mark.parametrize(
    "target",
    [
        lambda z: z[torch.arange(3), torch.tensor([0, 1, 2])],  # an IndexError
        lambda z: z.gather(1, torch.tensor([[0], [1], [2]])),  # a RuntimeError
        lambda z: (z[:1] * torch.eye(3)).sum(1),  # rows that nobody asked for
    ],
)
def test_a_callable_that_holds_a_thing_for_each_image_is_told_of_the_second_argument(target):
    with pytest.raises(ValueError, match=r"masked copies.*takes a second argument.*indices of the rows' images"):
        read_target(target, LOGITS, "softmax").value(LOGITS)


def test_logits_of_another_shape():
    with pytest.raises(ValueError, match=r"got \(2, 3, 4\).*output="):
        read_target(0, torch.zeros(2, 3, 4), "softmax")
    with pytest.raises(ValueError, match=r"got \(2,\).*output=lambda y: y\[:, None\]"):
        read_target(0, torch.zeros(2), "softmax")


def test_a_regression_is_sent_to_a_callable():
    with pytest.raises(ValueError, match=r"for a regression give targets as a callable, lambda y: y\[:, 0\]"):
        read_target(1, torch.zeros(2, 1), "softmax")
    assert read_target(lambda y: -y[:, 0], torch.tensor([[-2.0]]), "softmax").score(torch.tensor([[-2.0]])).tolist() == [2.0]


@pytest.mark.parametrize("make", [lambda n: GroupCAM(n, "relu2", groups=4), lambda n: GradCAM(n, "relu2")])
def test_forms_agree(net, images, make):
    """P13: int, list, tensor, one-hot and callable say the same thing; None is the top-1 class."""
    cam = make(net)
    expected = cam(images, 2)
    one_hot = torch.eye(5)[[2, 2, 2]]
    p = (lambda z: z.softmax(1)[:, 2]) if isinstance(cam, GroupCAM) else (lambda z: z[:, 2])
    forms = [[2, 2, 2], torch.tensor([2, 2, 2]), one_hot, one_hot.double(), one_hot.long(), 3 * one_hot]
    for form in forms:
        torch.testing.assert_close(cam(images, form), expected)
    if isinstance(cam, GradCAM):  # a callable stands for y and p at once, so Group-CAM's gradient weights scale with it
        torch.testing.assert_close(cam(images, p), expected)
    else:
        plain = GroupCAM(net, "relu2", groups=4, weights="none")
        torch.testing.assert_close(plain(images, p), plain(images, 2))
    net.eval()
    torch.testing.assert_close(cam(images), cam(images, net(images).argmax(1)))


def test_soft_labels_are_linear_in_the_gradient(net, images):
    """P13: the raw Grad-CAM map of a soft label is the weighted mean of the classes' raw maps."""
    import oracle

    net.eval()
    image = images[0]
    raw = 0.3 * oracle.grad_cam_raw(net, "relu2", image, 1) + 0.7 * oracle.grad_cam_raw(net, "relu2", image, 4)
    expected = oracle.minmax(oracle.upsample(raw.relu(), image.shape[-2:]))
    rows = torch.tensor([[0, 0.3, 0, 0, 0.7]], dtype=torch.float64)
    torch.testing.assert_close(GradCAM(net, "relu2")(image[None], rows)[0], expected)


Out = namedtuple("Out", ["features", "logits"])


@pytest.mark.parametrize(
    "output, select",
    [
        (LOGITS, None),
        ({"logits": LOGITS}, None),
        (SimpleNamespace(logits=LOGITS), None),
        ({"scores": LOGITS}, "scores"),
        ((0, LOGITS), 1),
        (Out(0, LOGITS), "logits"),
        (Out(0, LOGITS), None),
        ([0, LOGITS], lambda out: out[1]),
    ],
)
def test_select_output(output, select):
    assert select_output(output, select) is LOGITS


@pytest.mark.parametrize(
    "output, select, message",
    [
        ({"a": LOGITS}, None, r"the keys \['a'\].*output="),
        ({"a": LOGITS}, "b", "output='b' is not"),
        ((LOGITS,), 2, "output=2 is not"),
        ((LOGITS, 1), None, r"2 items of types \['Tensor', 'int'\]"),
        (SimpleNamespace(a=1), "a", "SimpleNamespace with"),
    ],
)
def test_select_output_that_is_not_there(output, select, message):
    with pytest.raises(TypeError, match=message):
        select_output(output, select)


def test_output_selector_in_a_map(images):
    class Rich(PooledNet):
        def forward(self, x):
            return {"extra": 0, "scores": super().forward(x)}

    torch.manual_seed(0)
    rich = Rich().double()
    torch.manual_seed(0)
    bare = PooledNet().double()
    torch.testing.assert_close(GroupCAM(rich, groups=4, output="scores")(images, 1), GroupCAM(bare, groups=4)(images, 1))
    with pytest.raises(TypeError, match="output="):
        GroupCAM(rich, groups=4)(images, 1)


@pytest.mark.parametrize(
    ("targets", "labels", "weights"),
    [
        (torch.tensor([2, 0]), [2, 0], None),
        (torch.tensor([2, 0], dtype=torch.int32), [2, 0], None),
        ([2, 0], [2, 0], None),
        (1, [1, 1], None),
        (torch.tensor([0.2, 0.8]), [0, 1], None),
        (torch.tensor([[0.2], [0.8]]), [0, 1], None),
        (torch.tensor([[3.0, 1.0], [0.0, 0.0]]), [0, 0], [[0.75, 0.25], [0, 0]]),
        (torch.tensor([[-1.0, 1.0], [0.25, 0.75]]), [1, 1], [[0, 1], [0.25, 0.75]]),
        (torch.tensor([[0, 1, 1], [1, 0, 0]]), [1, 0], [[0, 0.5, 0.5], [1, 0, 0]]),
        (None, None, None),
        (True, None, None),
        (["a", "b"], None, None),
        (torch.tensor([1, 2, 3]), None, None),
        (torch.zeros(2, 4, 4), None, None),
        (torch.zeros(2, dtype=torch.complex64), None, None),
    ],
)
def test_class_labels(targets, labels, weights):
    found = class_labels(targets, 2)
    assert [None if part is None else part.tolist() for part in found] == [labels, weights]
    assert labels is None or found[0].dtype == torch.long
