"""A trained captioner and a trained question answerer: maps of two words, and of two questions, differ on one picture."""

import runpy
from pathlib import Path

import pytest
import torch

from groupcam_aug import GradCAM, GroupCAM

SCRIPT = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "more_inputs.py"))


@pytest.fixture(scope="module")
def trained():
    return SCRIPT["trained"](SCRIPT["Scenes"]("train", 384), 500), SCRIPT["Scenes"]("val", 96, seed=1).draw(40)


def test_a_scene_says_what_it_shows():
    batch = SCRIPT["Scenes"]("train", 24).draw(8)
    words = SCRIPT["WORDS"]
    said = [[words[token] for token in caption] for caption in batch["caption"].tolist()]
    for i, (left, right) in enumerate(batch["question"].tolist()):
        assert [words[token] for token in left] == ["what", "colour", "is", "the", said[i][2]]
        assert words[right[-1]] == said[i][5] != said[i][2]
        for side, place in ((0, 1), (1, 4)):
            colour = torch.tensor(SCRIPT["COLOURS"][said[i][place]]) * 2 - 1
            assert (batch["image"][i, :, batch["mask"][i, side]] == colour[:, None]).all()
            assert list(SCRIPT["COLOURS"])[batch["answer"][i, side]] == said[i][place]


@pytest.mark.slow
@pytest.mark.parametrize("method", [GradCAM, lambda network: GroupCAM(network, groups=8, denoise=None)], ids=["grad", "group"])
def test_maps_of_two_questions_and_of_two_words_lie_on_what_they_are_about(trained, method):
    (answerer, captioner), batch = trained
    assert SCRIPT["answered"](answerer, batch) > 0.6 and SCRIPT["captioned"](captioner, batch) > 0.6  # chance: .25, about .4
    for network, maps_of in ((answerer, SCRIPT["maps_of_questions"]), (captioner, SCRIPT["maps_of_words"])):
        left, right = maps_of(method(network), batch)
        assert ((left - right).abs().amax(dim=(1, 2)) > 0.05).float().mean() > 0.5, "two maps of one picture"
        one = {key: value[:1] for key, value in batch.items()}
        for each, single in zip((left, right), maps_of(method(network), one)):
            torch.testing.assert_close(each[:1], single, rtol=0, atol=1e-3)  # float32, other passes
        assert SCRIPT["on_its_half"]([left, right], batch).mean() > 0.6
