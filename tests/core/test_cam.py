"""What the map methods share: batches in parts, images per pass, what happens when memory is short, checks of a batch."""

import pytest
import torch
from models import PooledNet
from torch import nn
from torch.utils.checkpoint import checkpoint

from groupcam_aug import GradCAM, GroupCAM
from groupcam_aug.cam import CAM, check_images, slopes_of, usable


class Cramped(PooledNet):
    """Has memory for so many images."""

    def __init__(self, room):
        super().__init__()
        self.room, self.seen = room, []

    def forward(self, x):
        self.seen.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(x)


def test_out_of_memory_halves_the_passes_and_stays_there(images):
    torch.manual_seed(1)
    images = torch.cat([images.float()] * 4)  # 12
    whole = GroupCAM.for_training(PooledNet().eval(), groups=4, chunk=5)
    torch.manual_seed(1)
    network = Cramped(7).eval()
    torch.nn.Module.load_state_dict(network, whole.network.state_dict())
    cam = GroupCAM.for_training(network, groups=4, chunk=10)
    with pytest.warns(UserWarning, match="out of memory while mapping 12 images; going on with at most 5 per forward pass"):
        maps = cam(images, 1)
    torch.testing.assert_close(maps, whole(images, 1), rtol=0, atol=1e-6)
    for count in (12, 11, 7):  # drawn with p < 1, batches have another size each time
        network.seen.clear()
        cam(images[:count], 1)
        assert max(network.seen) == 5


def test_a_chunk_that_was_asked_for_is_kept(images):
    assert GroupCAM.for_training(PooledNet(), groups=4, chunk=1000).passes(images) == 1000


@pytest.mark.parametrize("method", [GroupCAM.for_training, GroupCAM, GradCAM])
@pytest.mark.parametrize("count, chunk, room", [(12, 64, 7), (12, 64, 1), (32, None, 3), (5, 4, 1), (2, 64, 1), (1, 64, 1)])
def test_out_of_memory_is_halved_from_what_was_in_the_pass_until_it_fits(method, count, chunk, room):
    """64 asked for, 12 there: 6 come next, not 32."""
    options = {} if method is GradCAM else {"groups": 4}
    network, images = Cramped(1000).eval(), torch.randn(count, 3, 12, 12)
    expected = method(network, "relu2", **options)(images, 1)
    network.room = room
    cam = method(network, "relu2", chunk=chunk, **options)
    if min(cam.passes(images), count if method is GradCAM else 4 * count) <= room:
        maps = cam(images, 1)
    else:
        with pytest.warns(UserWarning, match=f"while mapping {count} images; going on with at most") as caught:
            maps = cam(images, 1)
        assert len(caught) == 1, "one word, when it is settled"
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-4)
    network.seen.clear()
    cam(images, 1)
    assert max(network.seen) <= room, "kept to, without another try"


@pytest.mark.parametrize("chunk", [12, 64, None])
def test_each_try_halves_the_largest_pass_that_there_was(chunk):
    network = Cramped(1).eval()
    with pytest.warns(UserWarning, match="at most 1 per"):
        GradCAM(network, "relu2", chunk=chunk)(torch.randn(12, 3, 12, 12), 1)
    assert network.seen == [12, 6, 3] + [1] * 13, "and one look at how many tokens there are, for the grid is square"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:out of memory while mapping")
@pytest.mark.parametrize("mask_at", ["input", "target", "relu1", None])
def test_out_of_memory_at_every_size_of_batch_chunk_and_memory(mask_at):
    """In every case the maps come, and no pass of the second call is too large."""
    torch.manual_seed(0)
    network = Cramped(10**6).eval().double()  # scaled to [0, 1], the rounding of a weak map in float32 would show
    for count in (1, 2, 3, 5, 8, 13, 31, 32, 65):
        images = torch.randn(count, 3, 12, 12, dtype=torch.float64)
        for room in sorted({1, 2, 3, max(1, count // 2), count, 2 * count}):
            for chunk in (None, 1, 3, count, 64):
                if mask_at is None:
                    cam = GradCAM(network, "relu2", chunk=chunk)
                else:
                    cam = GroupCAM.for_training(network, "relu2", groups=4, mask_at=mask_at, chunk=chunk)
                network.room = 10**6
                expected = cam(images, 1)
                network.room = room
                if mask_at in ("target", "relu1"):  # rows of features: a tail holds more of them than of images
                    network.room = max(room, 4 * 4)
                torch.testing.assert_close(cam(images, 1), expected, rtol=0, atol=1e-9)
                network.seen.clear()
                cam(images, 1)
                assert max(network.seen) <= network.room, (count, room, chunk)


def test_one_image_that_does_not_fit_ends_it_and_names_chunk(images):
    for chunk in (1, 16, None):
        cam = GroupCAM.for_training(Cramped(0).eval(), groups=4, chunk=chunk)
        with pytest.raises(torch.OutOfMemoryError, match=r"one image of 24 x 20 .* chunk=1.*\(out of memory\)"):
            cam(images.float(), 1)


def test_other_errors_are_not_taken_for_a_lack_of_memory(images):
    class Broken(PooledNet):
        def forward(self, x):
            calls.append(len(x))
            raise RuntimeError("planted")

    calls = []
    with pytest.raises(RuntimeError, match="^planted$"):
        GroupCAM.for_training(Broken().eval(), "relu2", groups=4)(images, 1)
    assert len(calls) == 1


class OnAGPU:
    """What the choice of passes asks of a batch on a GPU."""

    def __init__(self, *shape):
        self.shape, self.device = torch.Size(shape), torch.device("cuda", 0)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, _):
        return torch.empty(self.shape[1:], device="meta")


@pytest.mark.parametrize(
    "count, free, passes",
    [(8, 10**11, 64), (96, 10**11, 96), (1000, 10**11, 256), (96, 10**9, 12), (32, 10**6, 1)],
)
def test_passes_on_a_gpu_follow_the_batch_and_the_free_memory(monkeypatch, count, free, passes):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free // 2, 10**12))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: free)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: free - free // 2)
    cam = GroupCAM(PooledNet())
    assert cam.passes(OnAGPU(count, 3, 224, 224)) == passes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, 0))
    assert cam.passes(OnAGPU(count, 3, 224, 224)) == passes, "settled once for a shape: a run does not change its numbers"


@pytest.mark.parametrize(
    "shape, passes", [((8, 3, 224, 224), 7), ((8, 3, 32, 32), 64), ((1, 3, 2000, 2000), 1), ((500, 3, 8, 8), 64)]
)
def test_passes_on_a_cpu_stay_in_its_caches(shape, passes):
    assert GroupCAM(PooledNet()).passes(torch.empty(shape)) == passes


@pytest.mark.parametrize("count, chunk, sizes", [(7, 3, [3, 3, 1]), (4, 4, [4]), (0, 2, [])])
def test_parts_cover_the_batch_in_order(count, chunk, sizes):
    cam = CAM(PooledNet(), None, None, chunk)
    images = torch.arange(float(count))[:, None, None, None].expand(count, 3, 4, 4)
    parts = cam.in_parts(images, lambda part, most: (images[part][:, 0, 0, 0], most))
    assert [len(part) for part, _ in parts] == sizes and all(most == chunk for _, most in parts)
    assert torch.cat([images[:0, 0, 0, 0], *[part for part, _ in parts]]).tolist() == list(range(count))


def test_check_images_gives_a_plain_detached_tensor(images):
    from torchvision import tv_tensors

    plain = check_images(tv_tensors.Image(images).requires_grad_(), [1, 2, 3])
    assert type(plain) is torch.Tensor and not plain.requires_grad and torch.equal(plain, images)
    with pytest.raises(ValueError, match="2 targets for 3 images"):
        check_images(images, [1, 2])
    assert check_images(images, torch.tensor(1)) is not None, "one class for all"
    with torch.inference_mode():
        inside = images * 1
    assert not usable(inside).is_inference() and usable(images) is images


def test_slopes_of_layers_the_logits_do_not_depend_on(images):
    values = torch.randn(3, 4, requires_grad=True)
    other = torch.randn(3, 2, requires_grad=True)
    slopes = slopes_of(lambda logits: logits[:, 1], values * 2, [values], ["a"])
    assert slopes[0].tolist() == [[0, 2, 0, 0]] * 3
    for outputs, logits in (([values, other], values * 2), ([values], values.detach())):
        with pytest.raises(ValueError, match="do not depend on layer '(spare|a)'.*weights='none'"):
            slopes_of(lambda z: z[:, 1], logits, outputs, ["a", "spare"][: len(outputs)])


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_layers_without_floating_point_are_named():
    """As quantised networks have them."""

    class Quantised(nn.Module):
        def forward(self, x):
            return torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)

    class Back(nn.Module):
        def forward(self, x):
            return x.dequantize().mean(dim=(2, 3))

    net = nn.Sequential(nn.Conv2d(3, 4, 1), Quantised(), Back())
    for method in (GradCAM(net, "1"), GroupCAM(net, "1", groups=2), GroupCAM(net, "1", groups=2, weights="none")):
        with pytest.raises(TypeError, match=r"layer '1' returns torch\.qint8.*choose a layer in floating point"):
            method(torch.randn(2, 3, 8, 8), 1)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_checkpointing_that_detaches_is_named(images):
    class Checkpointed(PooledNet):
        def forward(self, x):
            x = checkpoint(lambda x: self.relu2(self.conv2(x)), self.relu1(self.conv1(x)), use_reentrant=self.reentrant)
            return self.fc(self.pool(x).flatten(1))

    net = Checkpointed().double()
    net.reentrant = True
    with pytest.raises(ValueError, match="use_reentrant=True.*weights='none'"):
        GradCAM(net, "conv2")(images, 1)
    assert GroupCAM(net, "conv2", weights="none", groups=2)(images, 1).amax() > 0
    net.reentrant = False
    assert GradCAM(net, "conv2")(images, 1).amax() > 0


def test_logits_are_those_of_the_preprocessed_images(net, images):
    before = images.clone()
    cam = CAM(net.eval(), lambda out: {"z": out}["z"] + 1, lambda x: x.mul_(2).sub_(1), None)
    torch.testing.assert_close(cam.logits(images), net(2 * before - 1) + 1)
    assert torch.equal(images, before), "what is done in place is done to a copy"


class Folded(nn.Module):
    """Two frames of three channels an image, folded into the batch; logits per image, or still per frame."""

    def __init__(self, gather):
        super().__init__()
        self.conv, self.fc, self.gather = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), gather

    def forward(self, x):
        logits = self.fc(self.conv(x.unflatten(1, (2, 3)).flatten(0, 1)).mean(dim=(2, 3)))
        return logits.unflatten(0, (-1, 2)).mean(dim=1) if self.gather else logits


FORMS = {
    "Grad-CAM": lambda net: GradCAM(net, "conv"),
    "gradient": lambda net: GroupCAM(net, "conv", groups=2),
    "none": lambda net: GroupCAM.for_training(net, "conv", groups=2),
    "target": lambda net: GroupCAM.for_training(net, "conv", groups=2, mask_at="target"),
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_a_layer_and_of_the_logits_are_the_images(form):
    images = torch.randn(3, 6, 16, 16)
    with pytest.raises(ValueError, match=r"layer 'conv' returns \(6, 8, 14, 14\) for 3 images.*Choose a layer"):
        FORMS[form](Folded(gather=True).eval())(images, 1)
    with pytest.raises(ValueError, match="Folded returns 6 rows of logits for 3 images.*output="):
        FORMS[form](Folded(gather=False).eval())(images, 1)
