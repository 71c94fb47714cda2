"""Pictures in loggers that take them, by the interface each has."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from groupcam_aug.callbacks.glue.logger_pictures import send_picture


class WithImages:
    """As Weights & Biases' logger."""

    def __init__(self):
        self.given = []

    def log_image(self, key, images, step=None, **kwargs):
        self.given.append((key, images, step))


class Board:
    """As TensorBoard's writer."""

    def __init__(self):
        self.given = []

    def add_image(self, tag, image, step):
        self.given.append((tag, image, step))


@pytest.fixture
def trainer():
    return SimpleNamespace(fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=7)))


def test_each_logger_gets_it_in_its_own_way_and_others_none(trainer):
    biases, board, table = WithImages(), SimpleNamespace(experiment=Board()), SimpleNamespace(experiment=object())
    trainer.loggers = [table, biases, board]
    picture = Image.new("RGB", (6, 4), (255, 0, 0))
    send_picture(trainer, "groupcam/samples", picture)
    assert biases.given == [("groupcam/samples", [picture], 7)]
    ((tag, image, step),) = board.experiment.given
    assert (tag, step) == ("groupcam/samples", 7) and image.shape == (3, 4, 6) and image.dtype == torch.uint8


def test_without_loggers_nothing_happens(trainer):
    trainer.loggers = []
    send_picture(trainer, "a", Image.new("RGB", (6, 4)))
