"""The options of evaluate: what excludes each other, and the same kinds of ablation as there are."""

import pytest

from groupcam_aug.recipes.evaluation.methods import ABLATIONS
from groupcam_aug.recipes.evaluation.options import build_parser, check


def parsed(*words):
    parser = build_parser("evaluate")
    options = parser.parse_args(words)
    check(parser, options)
    return options


def test_every_ablation_can_be_asked_for(capsys):
    assert parsed("a.png", "--ablate", ",".join(ABLATIONS)).ablate == tuple(ABLATIONS)
    with pytest.raises(SystemExit):
        parsed("a.png", "--ablate", "colours")
    assert "none of groups, denoise" in capsys.readouterr().err


def test_measures_follow_from_the_data(capsys):
    assert parsed("a.png").measures == ("curves", "drop", "sanity") and parsed("--voc", "data").measures == ("pointing",)
    for words in (["a.png", "--voc", "data"], [], ["a.png", "--limit", "0"], ["a.png", "--author-compatible", "--steps", "3"]):
        with pytest.raises(SystemExit):
            parsed(*words)


def test_boxes_need_data_that_have_them_and_whole_pictures(capsys):
    assert parsed("--voc", "data").resize == "squash" and parsed("a.png").resize == "crop"
    assert parsed("a.png", "--measures", "occlusion").measures == ("occlusion",)
    with pytest.raises(SystemExit):
        parsed("a.png", "--measures", "localisation")
    assert "localisation needs --voc or --coco" in capsys.readouterr().err


def test_the_default_is_a_first_look_and_all_can_be_asked_for(capsys):
    assert (
        parsed("a.png").limit == 20
        and parsed("a.png", "--limit", "7").limit == 7
        and parsed("a.png", "--limit", "all").limit is None
    )
    with pytest.raises(SystemExit):
        parsed("a.png", "--limit", "some")
    assert "neither a number nor all" in capsys.readouterr().err
