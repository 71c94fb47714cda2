"""What `Classifier` says of batches that it cannot train on."""

import pytest
import torch

from groupcam_aug.recipes.batch_check import images_and_labels
from groupcam_aug.recipes.classifier import Classifier

IMAGES, LABELS = torch.zeros(2, 3, 8, 8), torch.tensor([0, 1])


def read(images, labels):
    return images_and_labels([images, labels], 3, torch.float32)


@pytest.mark.parametrize(
    ("images", "labels", "error", "told"),
    [
        (IMAGES.permute(0, 2, 3, 1), LABELS, ValueError, r"\(2, 8, 8, 3\), channels last: permute\(0, 3, 1, 2\)"),
        (IMAGES[0], LABELS, ValueError, r"images have shape \(3, 8, 8\): give \(N, 3, H, W\)"),
        (IMAGES.double(), LABELS, TypeError, r"images are torch.float64, the network is torch.float32: call .float\(\)"),
        (IMAGES.byte(), LABELS, TypeError, r"images are torch.uint8: give them in float32"),
        ([1, 2], LABELS, TypeError, "the images are a list"),
        (IMAGES, ["cat", "dog"], TypeError, r"the labels are a list \('cat', 'dog'\): give their numbers"),
        (IMAGES, LABELS.float(), ValueError, r"labels have shape \(2,\) and torch.float32 for 2 images and 3 classes"),
        (IMAGES, torch.zeros(2, 4), ValueError, r"labels have shape \(2, 4\)"),
        (IMAGES, torch.tensor([0, 1, 1]), ValueError, r"labels have shape \(3,\)"),
        (IMAGES, torch.tensor([0, 3]), ValueError, "there is a label 3, but the network has 3 classes"),
    ],
)
def test_what_is_wrong_is_named(images, labels, error, told):
    with pytest.raises(error, match=told):
        read(images, labels)


def test_a_batch_must_hold_images_and_labels():
    with pytest.raises(TypeError, match="the batch is a dict with image, label; Classifier takes"):
        images_and_labels({"image": IMAGES, "label": LABELS}, 3, torch.float32)


@pytest.mark.parametrize("labels", [LABELS, LABELS.int(), torch.tensor([-100, 2]), torch.full((2, 3), 1 / 3)])
def test_what_is_right_passes(labels):
    images, found = read(IMAGES, labels)
    assert images is IMAGES and torch.equal(found, labels.long() if labels.ndim == 1 else labels)
    wide = images_and_labels([IMAGES.double(), labels], 3, torch.float64)[0]
    assert wide.dtype == torch.float64, "networks may be of float64, too"


def test_the_classifier_looks_at_its_batches():
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 3))
    classifier = Classifier(network, num_classes=3)
    with pytest.raises(TypeError, match=r"the labels are a tuple \('cat'"):
        classifier.training_step([IMAGES, ("cat", "dog")], 0)
    with pytest.raises(ValueError, match="channels last"):
        classifier.predict_step([IMAGES.permute(0, 2, 3, 1)], 0)
