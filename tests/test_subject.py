"""The network of explain, evaluate and fidelity: which classes it has, and how they are named."""

import argparse

import pytest
import timm
import torch
from torch import nn

from groupcam_aug.recipes import subject as subject_module
from groupcam_aug.recipes.subject import Subject, add_arguments, load_subject


def named(*names):
    return Subject(nn.Identity(), lambda picture: torch.zeros(3, 8, 8), (0, 0, 0), (1, 1, 1), names, "")


def test_a_class_is_found_by_name_before_number():
    digits = named("1", "10", "2", "3")
    assert [digits.class_index(name) for name in ("1", "10", "2", "3", "0")] == [0, 1, 2, 3, 0]
    mixed = named("Ant", "bee", "BEE")
    assert [mixed.class_index(name) for name in ("ant", "bee", "BEE", "2")] == [0, 1, 2, 2]
    with pytest.raises(ValueError, match="outside the 4 classes"):
        digits.class_index("12")


def options(*words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["--device", "cpu", *words])


def test_published_weights_keep_their_own_number_of_classes(monkeypatch):
    built = []

    def build(spec, count, pretrained=False):
        built.append((spec, count, pretrained))
        return timm.create_model("resnet18", num_classes=count)

    monkeypatch.setattr(subject_module, "build_network", build)
    found = load_subject(options("--model", "timm/resnetv2_50x1_bit.goog_in21k", "--pretrained"))
    assert built == [("timm/resnetv2_50x1_bit.goog_in21k", 21843, True)] and found.class_names[7] == "class 7"
    assert load_subject(options("--model", "timm/resnet18", "--pretrained")).class_names[0] == "tench"
    assert load_subject(options("--model", "torchvision/resnet18", "--pretrained")).class_names[0] == "tench"


def test_published_weights_without_a_classifier_are_refused():
    with pytest.raises(ValueError, match="have no classifier; fine-tune it"):
        load_subject(options("--model", "timm/vit_small_patch14_dinov2.lvd142m", "--pretrained"))
