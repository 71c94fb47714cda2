"""The blend, the masks, the draws and the controls."""

import math

import oracle
import pytest
import torch
from models import PooledNet
from torchvision import tv_tensors

from groupcam_aug import GradCAM, GroupCAM, SaliencyBlur
from groupcam_aug.augment import blend, keep_mask
from groupcam_aug.blur import blur


def test_keep_mask_thresholds():
    maps = torch.tensor([[[0.0, 0.2], [0.4, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert keep_mask(maps).tolist() == [[[False, False], [True, True]], [[True, True], [True, True]]]  # mean 0.4 is kept
    assert keep_mask(maps, 0.9)[0].tolist() == [[False, False], [False, True]]
    assert keep_mask(maps, 0.9)[1].all(), "an image without a map keeps everything"
    assert keep_mask(maps, "q0.5")[0].tolist() == [[False, False], [True, True]]
    for bad in ("median", "q2", 1.5, "qx"):
        with pytest.raises(ValueError, match="threshold"):
            keep_mask(maps, bad)


def test_blend_is_exact_at_both_ends():
    x, b = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    keep = torch.rand(2, 8, 8) < 0.5
    assert torch.equal(blend(x, torch.ones_like(keep), b), x) and torch.equal(blend(x, torch.zeros_like(keep), b), b)
    half = blend(x, keep, b, 0.5)
    mask = keep[:, None].expand_as(x)
    assert torch.equal(half[mask], x[mask])
    torch.testing.assert_close(half[~mask], (x[~mask] + b[~mask]) / 2)


@pytest.fixture
def setting():
    torch.manual_seed(0)
    net = PooledNet().double().eval()
    images = torch.randn(5, 3, 24, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return net, GroupCAM.for_training(net, "relu2", groups=4), images, torch.tensor([0, 1, 2, 3, 4])


def test_equals_the_oracle(setting):
    net, cam, images, labels = setting
    result = SaliencyBlur(cam)(images, labels)
    for image, label, augmented in zip(images, labels, result):
        S = oracle.group_cam(net, "relu2", image, int(label), 4, "none", None)
        expected = oracle.augment(image, S) if S.max() > 0 else image
        torch.testing.assert_close(augmented, expected)
    assert not torch.equal(result, images)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("mask_at", ["input", "target"])
def test_a_network_that_normalises_in_place_gets_pixels_of_its_own(setting, inside, mask_at):
    net, _, images, labels = setting

    def halved(x):
        return x.sub_(0.5).div_(2)

    class InPlace(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rest = net

        def forward(self, x):
            return self.rest(halved(x) if inside else x)

    options = {"groups": 4, "mask_at": mask_at}
    plain = GroupCAM.for_training(net, "relu2", preprocess=lambda x: (x - 0.5) / 2, **options)
    odd = GroupCAM.for_training(InPlace(), "rest.relu2", preprocess=None if inside else halved, **options)
    before = images.clone()
    for _ in range(2):  # the first call finds out how the network may be split
        torch.testing.assert_close(SaliencyBlur(odd)(images, labels), SaliencyBlur(plain)(images, labels))
    assert torch.equal(images, before)


def test_images_without_a_map_are_left_and_counted(setting):
    _, cam, images, labels = setting
    images[1] = math.nan
    done = SaliencyBlur(cam).augment_at(images, labels, torch.arange(5))
    assert done.no_map[1] and torch.equal(done.images[1].nan_to_num(), images[1].nan_to_num())
    assert done.maps.shape == done.keep.shape == (5, 24, 20)


def test_only_drawn_images_are_mapped(setting):
    net, cam, images, labels = setting
    seen = []
    augment = SaliencyBlur(lambda x, y: seen.append((len(x), y.tolist())) or cam(x, y), p=0.5)
    generator = torch.Generator().manual_seed(4)
    index = augment.draw(5, generator)
    assert 0 < len(index) < 5
    done = augment.augment_at(images, labels, index)
    assert seen == [(len(index), labels[index].tolist())]
    untouched = [i for i in range(5) if i not in index.tolist()]
    assert torch.equal(done.images[untouched], images[untouched])
    full = SaliencyBlur(cam)(images, labels)
    torch.testing.assert_close(done.images[index], full[index])


def test_nothing_drawn_returns_the_same_object(setting):
    _, cam, images, labels = setting
    before = torch.get_rng_state()
    assert SaliencyBlur(cam, p=0)(images, labels) is images
    assert torch.equal(torch.get_rng_state(), before), "p=0 draws nothing"
    assert SaliencyBlur(cam, strength=0)(images, labels) is images


def test_controls(setting):
    _, cam, images, labels = setting
    every = torch.arange(5)
    own = SaliencyBlur(cam).augment_at(images, labels, every)
    other = SaliencyBlur(cam, mask_from="other").augment_at(images, labels, every)
    torch.testing.assert_close(other.maps, own.maps.roll(-1, dims=0))
    inverse = SaliencyBlur(cam, mask_from="inverse").augment_at(images, labels, every)
    assert torch.equal(inverse.keep[~own.no_map], ~own.keep[~own.no_map]) and inverse.keep[own.no_map].all()

    def refuse(*_):
        raise AssertionError("'whole' needs no network pass")

    torch.testing.assert_close(SaliencyBlur(refuse, mask_from="whole")(images, labels), blur(images))
    alone = SaliencyBlur(refuse, mask_from="other").augment_at(images[:1], labels[:1], torch.arange(1))
    assert torch.equal(alone.images, images[:1]) and alone.no_map.all()
    left = SaliencyBlur(cam, mask_from=lambda x, y: torch.arange(20).expand(len(x), 24, 20) < 10)(images, labels)
    assert torch.equal(left[..., :10], images[..., :10]) and torch.equal(left[..., 10:], blur(images)[..., 10:])
    with pytest.raises(ValueError, match="bool masks of shape"):
        SaliencyBlur(cam, mask_from=lambda x, y: torch.ones(len(x), 24, 20))(images, labels)


def test_a_disc_in_the_middle_of_as_many_pixels_as_the_own_mask(setting):
    _, cam, images, labels = setting
    for threshold in ("mean", "q0.7"):
        own = SaliencyBlur(cam, threshold=threshold).augment_at(images, labels, torch.arange(5))
        disc = SaliencyBlur(cam, threshold=threshold, mask_from="centre").augment_at(images, labels, torch.arange(5))
        assert torch.equal(disc.keep.sum(dim=(1, 2)), own.keep.sum(dim=(1, 2))) and torch.equal(disc.no_map, own.no_map)
        assert not torch.equal(disc.keep, own.keep) and torch.equal(disc.maps.bool(), disc.keep & ~own.no_map[:, None, None])
    rows, columns = torch.arange(24) - 11.5, torch.arange(20) - 9.5
    distance = rows[:, None] ** 2 + columns**2
    for keep in disc.keep[~own.no_map]:
        assert distance[keep].max() <= distance[~keep].min()
    torch.set_default_dtype(torch.float16)  # as Lightning does around a step in 16-true
    try:
        large = SaliencyBlur(lambda x, _: x[:, 0].float().abs(), mask_from="centre", threshold="q0.3")
        keep = large.augment_at(torch.rand(1, 3, 640, 640), None, torch.arange(1)).keep[0]
    finally:
        torch.set_default_dtype(torch.float32)
    distance = (2 * torch.arange(640) - 639) ** 2
    distance = distance[:, None] + distance
    assert distance[keep].max() <= distance[~keep].min()


def test_another_mask_is_not_of_the_image_that_lends_its_pixels(setting):
    _, cam, images, labels = setting
    own = SaliencyBlur(cam).augment_at(images, labels, torch.arange(5))
    augment = SaliencyBlur(cam, mask_from="other", fill="other")
    some = augment.augment_at(images, labels, torch.tensor([1, 3, 4]))
    torch.testing.assert_close(some.maps, own.maps[[3, 0, 1]])
    expected = torch.where(some.keep[:, None], images[[1, 3, 4]], images[[2, 4, 0]])
    assert torch.equal(some.images[[1, 3, 4]], expected) and torch.equal(some.images[[0, 2]], images[[0, 2]])
    pair = augment.augment_at(images[:2], labels[:2], torch.arange(2))  # two on is the image itself: no control any more
    assert torch.equal(pair.images, images[:2]) and pair.no_map.all()
    three = augment.augment_at(images[:3], labels[:3], torch.arange(3))
    torch.testing.assert_close(three.maps, own.maps[[2, 0, 1]])


def test_other_mask_for_some_of_the_batch(setting):
    _, cam, images, labels = setting
    own = SaliencyBlur(cam).augment_at(images, labels, torch.arange(5))
    some = SaliencyBlur(cam, mask_from="other").augment_at(images, labels, torch.tensor([1, 4]))
    torch.testing.assert_close(some.maps, own.maps[[2, 0]])


def test_fills(setting):
    _, cam, images, labels = setting
    none = lambda x, y: torch.zeros(len(x), 24, 20, dtype=torch.bool)  # noqa: E731
    make = lambda fill, **k: SaliencyBlur(cam, fill=fill, mask_from=none, **k)(images, labels)  # noqa: E731
    torch.testing.assert_close(make("mean"), images.mean(dim=(2, 3), keepdim=True).expand_as(images), rtol=0, atol=1e-6)
    assert torch.equal(make("other"), images.roll(-1, dims=0))
    assert torch.equal(make(lambda x: x * 0), images * 0)
    noise = make("noise", generator=torch.Generator().manual_seed(0))
    assert torch.equal(noise, make("noise", generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(noise.std(dim=(0, 2, 3)), images.std(dim=(0, 2, 3)), rtol=0.1, atol=0)
    with pytest.raises(ValueError, match="fill must return images"):
        make(lambda x: x[:1])
    done = SaliencyBlur(cam, fill="other").augment_at(images[:1], 2, torch.arange(1))
    assert torch.equal(done.images, images[:1]) and done.no_map.all() and done.keep.all()  # nobody to take pixels from


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_format_and_subclass_are_kept(dtype):
    net = PooledNet().to(dtype)
    cam = GroupCAM.for_training(net, "relu2", groups=4)
    images = torch.randn(4, 3, 24, 20, dtype=dtype).to(memory_format=torch.channels_last)
    for p in (1.0, 0.5):
        result = SaliencyBlur(cam, p=p, generator=torch.Generator().manual_seed(1))(tv_tensors.Image(images), torch.arange(4))
        assert type(result) is tv_tensors.Image and result.dtype == dtype
        assert result.is_contiguous(memory_format=torch.channels_last) and not result.requires_grad


def test_list_and_soft_targets_follow_the_draw(setting):
    _, cam, images, labels = setting
    index = torch.tensor([3, 1])
    by_tensor = SaliencyBlur(cam).augment_at(images, labels, index).images
    assert torch.equal(SaliencyBlur(cam).augment_at(images, labels.tolist(), index).images, by_tensor)
    one_hot = torch.nn.functional.one_hot(labels, 5)
    torch.testing.assert_close(SaliencyBlur(cam).augment_at(images, one_hot, index).images, by_tensor)


@pytest.mark.parametrize(
    "options", [{"p": 1.5}, {"strength": -1}, {"fill": "black"}, {"mask_from": "mine"}, {"threshold": "otsu"}]
)
def test_bad_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SaliencyBlur(lambda x, y: x[:, 0], **options)


def test_bad_calls(setting):
    _, cam, images, labels = setting
    with pytest.raises(ValueError, match="4 targets for 5 images"):
        SaliencyBlur(cam)(images, labels[:4])
    with pytest.raises(TypeError, match="uint8"):
        SaliencyBlur(cam)((images * 0).to(torch.uint8), labels)


def test_mixed_labels_by_hand():
    """Three images of 2 x 2 pixels; the first keeps one pixel of four, the third all, the second is not drawn."""
    images = torch.arange(3.0)[:, None, None, None].expand(3, 1, 2, 2).contiguous()
    keep = torch.tensor([[[True, False], [False, False]], [[True, True], [True, True]]])
    for strength, lent in ((1.0, 0.75), (0.5, 0.375)):
        augment = SaliencyBlur(None, fill="other", strength=strength, mask_from=lambda x, y: keep)
        labels, index = torch.tensor([0, 2, 1]), torch.tensor([0, 2])
        done = augment.augment_at(images, labels, index)
        assert done.images.mean(dim=(1, 2, 3)).tolist() == [lent, 1, 2]
        expected = torch.tensor([[1 - lent, 0, lent], [0, 0, 1], [0, 1, 0]])
        assert torch.equal(augment.mixed_labels(labels, done, 3), expected)
        rows = torch.tensor([[1.0, 1], [0, 1], [0.5, 0]], dtype=torch.float64)
        mixed = augment.mixed_labels(rows, done, 2)
        assert mixed.dtype == torch.float64 and mixed.tolist() == [[1 - lent, 1], [0, 1], [0.5, 0]]
        assert augment.mixed_labels(torch.tensor([1, 0, 1]), done, 1).tolist() == [1 - lent, 0, 1]
    untouched = augment.mixed_labels(labels, augment.augment_at(images, labels, index[:0]), 3)
    assert torch.equal(untouched, torch.eye(3)[labels])
    for wrong, told in ((labels[:2], r"got \(2,\)"), ([0, 2, 1], "got list"), (labels[:, None, None], r"got \(3, 1, 1\)")):
        with pytest.raises(ValueError, match=told):
            augment.mixed_labels(wrong, done, 3)
    with pytest.raises(ValueError, match="fill='other'"):
        SaliencyBlur(None).mixed_labels(labels, done, 3)


NOTHING = lambda x, y: torch.zeros(len(x), *x.shape[2:], dtype=torch.bool)  # noqa: E731


def test_noise_has_the_mean_and_spread_of_each_channel_of_the_batch():
    """METHOD 4b: of the batch, not of an image, of the drawn ones or of all channels together."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 64, 64, generator=generator) * torch.tensor([0.1, 1, 5]).view(3, 1, 1)
    images += torch.tensor([7.0, 0, -3]).view(3, 1, 1) + torch.tensor([0.0, 0, 20, 20]).view(4, 1, 1, 1)
    spread, centre = torch.std_mean(images, dim=(0, 2, 3), correction=0)
    assert spread.min() > 9, "of two images by themselves it is far less"
    augment = SaliencyBlur(None, fill="noise", mask_from=NOTHING)
    noise = augment.augment_at(images, None, torch.tensor([0, 1]), torch.Generator().manual_seed(2)).images[:2]
    torch.testing.assert_close(noise.std(dim=(0, 2, 3)), spread, rtol=0.03, atol=0)
    assert ((noise.mean(dim=(0, 2, 3)) - centre).abs() < 0.03 * spread).all()
    assert not torch.equal(noise[0], noise[1]) and not torch.equal(noise[0, 0], noise[0, 1])
    exact = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * spread.view(3, 1, 1) + centre.view(3, 1, 1)
    torch.testing.assert_close(noise, exact)


def test_every_draw_comes_from_the_generator_given():
    """That of the call before that of the object before torch's own."""
    images = torch.randn(6, 3, 8, 8)
    augment = SaliencyBlur(None, p=0.5, fill="noise", mask_from=NOTHING, generator=torch.Generator().manual_seed(1))
    other = SaliencyBlur(None, p=0.5, fill="noise", mask_from=NOTHING, generator=torch.Generator().manual_seed(2))
    before = torch.get_rng_state()

    def drawn(one):
        generator = torch.Generator().manual_seed(3)
        index = one.draw(40, generator)
        return index, one.augment_at(images, None, torch.arange(6), generator).images

    for first, second in zip(drawn(augment), drawn(other), strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(augment.draw(40), other.draw(40)) and torch.equal(torch.get_rng_state(), before)


def test_quantile_keeps_that_share_of_the_least_salient_pixels_away():
    maps = torch.rand(3, 10, 10, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.1, 0.5])[:, None, None]
    for level, kept in (("q0.6", 40), ("q0.9", 10), ("q0", 100), ("q1", 1)):
        keep = keep_mask(maps, level)
        assert keep.sum(dim=(1, 2)).tolist() == [kept] * 3, level
        for one, mask in zip(maps, keep, strict=True):
            assert mask.all() or one[mask].min() > one[~mask].max()


@pytest.mark.parametrize("threshold", ["q0.9", 0.75])
@pytest.mark.parametrize("mask_from", ["saliency", "inverse", "centre", "other"])
def test_threshold_reaches_every_kind_of_mask(setting, threshold, mask_from):
    _, cam, images, labels = setting
    keep = keep_mask(cam(images, labels), threshold)
    alive = cam(images, labels).amax(dim=(1, 2)) > 0
    assert 2 <= alive.sum() and not torch.equal(keep, keep_mask(cam(images, labels)))
    done = SaliencyBlur(cam, threshold=threshold, mask_from=mask_from).augment_at(images, labels, torch.arange(5))
    expected = {"saliency": keep, "inverse": ~keep | ~alive[:, None, None], "other": keep.roll(-1, dims=0)}
    if mask_from == "centre":
        assert torch.equal(done.keep.sum(dim=(1, 2)), keep.sum(dim=(1, 2)))
    else:
        assert torch.equal(done.keep, expected[mask_from])


def test_blur_of_a_size_of_your_own(setting):
    _, _, images, labels = setting
    for options in ({"kernel_size": 7}, {"sigma": 0.6}, {"kernel_size": 5, "sigma": 9.0}):
        augmented = SaliencyBlur(None, mask_from="whole", **options)(images, labels)
        torch.testing.assert_close(augmented, blur(images, **options))
        assert not torch.allclose(augmented, blur(images)), options


def test_given_maps_take_the_place_of_the_methods():
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    maps = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1))
    maps[2] = 0
    index = torch.tensor([0, 2])
    by_method = SaliencyBlur(lambda *_: maps[index]).augment_at(images, None, index)
    given = SaliencyBlur(None).augment_at(images, None, index, maps=maps)
    assert all(torch.equal(a, b) for a, b in zip(by_method, given)) and given.no_map.tolist() == [False, True]
    with pytest.raises(ValueError, match=r"maps must be \(3, H, W\) like the images .*got \(2, 8, 8\)"):
        SaliencyBlur(None).augment_at(images, None, index, maps=maps[:2])


def test_pairs_as_torchvision_takes_them(setting):
    """(images, labels) in and out, labels as they came; two images are no pair without it."""
    _, cam, images, labels = setting
    plain, pairs = SaliencyBlur(cam), SaliencyBlur(cam, pairs=True)
    augmented, same = pairs(images, labels)
    assert torch.equal(augmented, plain(images, labels)) and same is labels
    assert isinstance(SaliencyBlur(cam, p=0, pairs=True)(images), tuple)


def test_pairs_with_mixed_labels(setting):
    _, cam, images, labels = setting
    options = {"p": 0.5, "fill": "other", "mask_from": "centre"}
    mixing = SaliencyBlur(cam, **options, pairs=True, labels="mixed", num_classes=5, generator=torch.Generator().manual_seed(3))
    augmented, rows = mixing(images, labels)
    one = SaliencyBlur(cam, **options)
    done = one.augment_at(images, labels, one.draw(5, torch.Generator().manual_seed(3)))
    assert torch.equal(augmented, done.images) and torch.equal(rows, one.mixed_labels(labels, done, 5))
    assert rows.shape == (5, 5) and not torch.equal(rows, torch.eye(5)), "some pixels of the next image count for its label"
    with pytest.raises(ValueError, match="labels as a tensor, got list"):
        mixing(images, labels.tolist())


@pytest.mark.parametrize(
    "options",
    [
        {"labels": "mixed"},
        {"labels": "mixed", "pairs": True, "num_classes": 3},
        {"labels": "mixed", "fill": "other", "num_classes": 3},
        {"labels": "mixed", "fill": "other", "pairs": True},
    ],
)
def test_mixed_labels_need_pairs_and_pixels_of_others(options):
    with pytest.raises(ValueError, match="needs fill='other', pairs=True and num_classes="):
        SaliencyBlur(lambda *_: None, **options)


def test_it_is_a_module_that_has_no_part_in_the_network(setting):
    """It stands in modules, is moved and initialised with them, and brings no parameter of the mapped network along."""
    net, cam, images, labels = setting
    cam_as_module, fill = torch.nn.Sequential(net), torch.nn.Conv2d(3, 3, 1)
    augment = SaliencyBlur(cam_as_module, fill=fill)
    holder = torch.nn.Sequential(augment)
    holder.apply(lambda module: None)
    assert not list(holder.parameters()) and not holder.state_dict() and holder[0] is augment
    assert augment.cam is cam_as_module and augment.fill is fill
    assert torch.equal(SaliencyBlur(cam).eval()(images, labels), SaliencyBlur(cam).train()(images, labels))


def test_repr_tells_what_is_not_the_default(setting):
    _, cam, _, _ = setting
    expected = "SaliencyBlur(GroupCAM(PooledNet, layer='relu2', groups=4, weights='none', denoise=None), p=0.5, fill='mean')"
    assert repr(SaliencyBlur(cam, p=0.5, fill="mean")) == expected
    assert repr(SaliencyBlur(cam, fill=blur)).endswith("fill=blur)")
    assert repr(GradCAM(PooledNet(), ["conv1", "conv2"], sign=-1)) == "GradCAM(PooledNet, layer=['conv1', 'conv2'], sign=-1)"


def test_a_list_of_labels_is_as_good_as_a_tensor(setting):
    """-100, which losses ignore, included."""
    _, cam, images, _ = setting
    labels = [0, -100, 2, 3, -100]
    augmented = SaliencyBlur(cam)(images, labels)
    assert torch.equal(augmented, SaliencyBlur(cam)(images, torch.tensor(labels)))
    assert torch.equal(augmented[1], images[1]) and torch.equal(augmented[4], images[4]) and not torch.equal(augmented, images)
