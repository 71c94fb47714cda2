"""Help that is read from the source: the same options as the classes have."""

import inspect

import pytest
from pytorch_lightning import Trainer

from groupcam_aug.recipes.class_help import FROM_DATA, class_parser, options_of, without_marks
from groupcam_aug.recipes.classifier import Classifier
from groupcam_aug.recipes.data import ImageData
from groupcam_aug.recipes.lightning_cli import LINKED

USUAL = {"model": Classifier, "data": ImageData, "trainer": Trainer}


@pytest.mark.parametrize("part", USUAL)
def test_every_argument_is_there_and_told(part):
    options = {option.name: option for option in options_of(part)}
    assert list(options) == list(inspect.signature(USUAL[part]).parameters)
    assert all(option.help for option in options.values())
    told = class_parser("fit", part).format_help()
    for name, option in options.items():
        assert (f"--{part}.{name} " in told) == (part != "model" or name not in FROM_DATA), name
        assert not {"``", ":class:"} & set(option.help.split())


def test_a_default_that_the_text_does_not_tell_is_added():
    told = " ".join(class_parser("fit", "trainer").format_help().split())
    assert "--trainer.barebones" in told and "Default: '32-true'" in told
    assert told.count("Default: 'auto'") >= 1  # of accelerator, whose text has none


def test_what_the_data_say_is_what_is_linked():
    assert set(FROM_DATA) == set(LINKED)


def test_marks_go_and_names_stay():
    assert without_marks("a :class:`~torch.nn.Module`, ``x``, :ref:`text <there>`") == "a Module, x, there"
