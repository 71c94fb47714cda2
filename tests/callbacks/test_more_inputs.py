"""The augmentation of a network that takes more than images: `extra_keys` names the rest in the batch."""

import pytest
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lit import Fixed, Lit, fit, same, state
from models import PooledNet
from torch import nn
from torch.nn import functional as F

from groupcam_aug import GroupCAM, SaliencyBlur
from groupcam_aug.callbacks import GroupCAMAugmentation


class Asked(nn.Module):
    """What is seen, weighed by what is asked."""

    def __init__(self):
        super().__init__()
        self.body, self.words, self.fc = PooledNet(classes=8), nn.Embedding(6, 8), nn.Linear(8, 5)

    def forward(self, x, question, scale):
        return self.fc(self.body(x) * self.words(question).mean(dim=1) * scale[:, None])


class Answers(Lit):
    def __init__(self):
        torch.manual_seed(5)
        super().__init__(Asked())
        nn.init.normal_(self.net.fc.weight)

    def training_step(self, batch, batch_idx):
        self.seen.append(batch["image"].clone())
        return F.cross_entropy(self.net(batch["image"], batch["text"]["question"], batch["scale"]), batch["answer"])


def batches(count=2):
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randint(5, shape, generator=generator)  # noqa: E731
    return [
        {
            "image": torch.randn(4, 3, 24, 20, generator=generator),
            "text": {"question": draw(4, 3)},
            "scale": torch.rand(4, generator=generator) + 0.5,
            "answer": draw(4),
        }
        for _ in range(count)
    ]


def make(**options):
    keys = {"image_key": "image", "target_key": "answer", "extra_keys": [["text", "question"], "scale"]}
    return GroupCAMAugmentation(**{"preset": "paper", "network": "net", "layer": "body.relu2", "groups": 4, **keys, **options})


NAMED = {"scale": "scale", "question": ["text", "question"]}


@pytest.mark.parametrize("keys", [[["text", "question"], "scale"], NAMED])
@pytest.mark.parametrize("options", [{}, {"preset": "fast", "p": 1.0}, {"preset": "balanced", "p": 1.0}])
def test_the_first_batch_is_that_of_the_functional_form(keys, options):
    module, (batch,) = Answers(), batches(1)
    form = {"paper": {}, "fast": {"mask_at": "target", "baseline": "zero"}, "balanced": {"mask_at": "stage"}}
    cam = GroupCAM.for_training(module.net, "body.relu2", groups=4, **form[options.get("preset", "paper")])
    extra = (batch["text"]["question"], batch["scale"])
    expected = SaliencyBlur(cam)(batch["image"], batch["answer"], extra)
    fit(module, [make(extra_keys=keys, **options)], Fixed([batch]))
    assert torch.equal(module.seen[0], expected) and not torch.equal(expected, batch["image"])


@pytest.mark.parametrize(
    "options",
    [{"p": 0.5}, {"source": "ema"}, {"fill": "other", "labels": "mixed"}, {"source": Asked(), "p": 0.5}, {"preset": "fast"}],
)
def test_drawn_images_averages_teachers_and_mixed_labels(options):
    module = Answers()
    callback = make(**options)
    fit(module, [callback], Fixed(batches()))
    assert len(module.seen) == 2
    assert any(not torch.equal(seen, batch["image"]) for seen, batch in zip(module.seen, batches()))


def test_nothing_is_drawn_nothing_changes():
    states = []
    for callbacks in ([make(start_epoch=5)], []):
        fit(module := Answers(), callbacks, Fixed(batches()))
        states.append(state(module))
    assert same(*states)


def test_without_the_keys_the_error_names_them():
    with pytest.raises(MisconfigurationException, match=r"missing 2 required positional arguments.*extra_keys="):
        fit(Answers(), [make(extra_keys=None)], Fixed(batches()))
    with pytest.raises(MisconfigurationException, match=r"'wrong' is not in the batch.*extra_keys="):
        fit(Answers(), [make(extra_keys=["wrong"])], Fixed(batches()))


def test_object_masks_need_no_further_inputs():
    masked = [{**batch, "mask": torch.zeros(4, 24, 20).index_fill_(1, torch.arange(9), 1)} for batch in batches()]
    module = Answers()
    fit(module, [make(mask_key="mask", extra_keys=["wrong"])], Fixed(masked))
    assert all(not torch.equal(seen, batch["image"]) for seen, batch in zip(module.seen, masked))
