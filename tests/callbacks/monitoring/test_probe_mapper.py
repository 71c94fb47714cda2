"""The probes mapped: on the layer's grid, in the Trainer's precision, and by several ranks as by one."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from monitoring import Plain, textures
from torch.nn import functional as F

from groupcam_aug import GradCAM, GroupCAM
from groupcam_aug.callbacks.monitoring.probe_mapper import ProbeMapper
from groupcam_aug.callbacks.monitoring.probes import Probes

IMAGES, LABELS = textures(5, seed=4)
LENT = []


@contextmanager
def lending():
    LENT.append(True)
    with torch.no_grad():
        yield


def trainer(rank=0, world=1, gather=None):
    precision = SimpleNamespace(convert_input=lambda images: images.to(torch.float32))
    strategy = SimpleNamespace(root_device=torch.device("cpu"), all_gather=gather)
    return SimpleNamespace(global_rank=rank, world_size=world, precision_plugin=precision, strategy=strategy)


def mapper(network=None, *, of=None, images=IMAGES, labels=LABELS, **settings):
    torch.manual_seed(0)
    probes = Probes(images, labels, "a test")
    return ProbeMapper(of or trainer(), network or Plain().eval(), probes, borrow=lending, **settings)


@pytest.mark.parametrize("method", [{}, {"method": "groupcam", "groups": 4}])
def test_maps_are_those_of_the_method_on_the_layers_grid(method):
    seeing = mapper(grid=10, **method)
    cam = GroupCAM(seeing.cam.network, "act", groups=4) if method else GradCAM(seeing.cam.network, "act")
    reading = seeing.look(LABELS)
    for maps, images, turn in ((reading.maps, IMAGES, False), (reading.mirrored, IMAGES.flip(-1), True)):
        pooled = F.adaptive_avg_pool2d(cam.raw(images, LABELS), 10)
        pooled = pooled.flip(-1) if turn else pooled
        assert torch.equal(maps, (pooled / pooled.amax((1, 2), keepdim=True).clamp(min=1e-30)).half()) and maps.amax() == 1
    with torch.no_grad():
        logits = seeing.cam.network(IMAGES)
    assert torch.equal(reading.chosen, logits.argmax(1)) and torch.equal(reading.right, logits.argmax(1) == LABELS)
    assert torch.allclose(reading.score, logits.softmax(1)[torch.arange(5), LABELS])
    assert torch.equal(seeing.look(None).right, torch.ones(5, dtype=torch.bool)), "its own first choice"


class Halt(Exception):
    pass


@pytest.mark.parametrize("count", [5, 1])
def test_ranks_map_their_shares_and_see_what_one_sees(count):
    alone, shares = mapper().look(LABELS), {}

    def look(rank, gather):
        of = trainer(rank, 2, gather)
        return mapper(of=of, images=IMAGES[:count], labels=LABELS[:count]).look(LABELS[:count])

    for rank in (0, 1):

        def keep(packed, rank=rank):
            shares[rank] = packed
            raise Halt

        with pytest.raises(Halt):
            look(rank, keep)
    assert len(shares[0]) == len(shares[1]) == (count + 1) // 2
    for rank in (0, 1):
        for part, whole in zip(look(rank, lambda packed: torch.stack([shares[0], shares[1]])), alone):
            assert torch.allclose(part.double(), whole[:count].double(), atol=1e-3), "to the last bit of float16"


def test_the_layer_is_found_while_the_network_is_lent():
    LENT.clear()
    assert mapper().cam.layer == "act" and LENT == [True]
    assert mapper(layer="conv").cam.layer == "conv" and LENT == [True], "nothing to be found out"
    with pytest.raises(ValueError, match="groups=32, but layer 'act' has only 8 channels"):
        mapper(method="groupcam").look(LABELS)


def test_what_must_be_the_same_for_maps_to_be_compared():
    first = mapper().identity
    assert first.keys() == {"probes", "method", "layer", "grid"} and first == mapper().identity
    for name, other in (
        ("probes", mapper(images=IMAGES + 1)),
        ("layer", mapper(layer="conv")),
        ("grid", mapper(grid=7)),
        ("mask_at", mapper(method="groupcam", mask_at="target")),
    ):
        assert other.identity.get(name) != first.get(name)
    assert mapper(method="groupcam", groups=4).identity["groups"] == 4
    assert mapper().name == "Grad-CAM" and mapper(method="groupcam", groups=4).name == "Group-CAM (G=4)"


def test_settings_reach_the_method():
    class Wrapped(Plain):
        def forward(self, x):
            return {"scores": super().forward(x / 255)}

    torch.manual_seed(0)
    plain, wrapped = Plain().eval(), Wrapped().eval()
    wrapped.load_state_dict(plain.state_dict())
    settings = {"output": "scores", "preprocess": lambda x: x * 255, "chunk": 2}
    assert torch.allclose(mapper(wrapped, **settings).look(LABELS).score, mapper(plain).look(LABELS).score, atol=1e-5)
    assert mapper(wrapped, **settings).cam.chunk == 2
    scores = mapper(plain, activation="sigmoid").look(LABELS).score
    assert not torch.allclose(scores, mapper(plain).look(LABELS).score)
    assert mapper(plain, images=IMAGES.double()).images([1, 3]).dtype == torch.float32, "in the Trainer's precision"
