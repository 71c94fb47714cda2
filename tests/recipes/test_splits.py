"""Which images are held out and drawn."""

import pytest

from groupcam_aug.recipes.splits import draw_per_class, stratified_split


def test_every_class_keeps_and_lends_at_least_one():
    assert [len(part) for part in stratified_split([0, 0, 1, 1], 0.01, 0)] == [2, 2]
    assert [len(part) for part in stratified_split([0, 0, 1, 1], 0.99, 0)] == [2, 2]
    with pytest.raises(ValueError, match="one image"):
        stratified_split([0, 0, 1], 0.2, 0)


def test_so_many_of_each_class_are_drawn_by_the_seed():
    labels = [0, 1, 2] * 20
    drawn = draw_per_class(labels, 4, 0)
    assert drawn == sorted(set(drawn)) and [sum(labels[i] == label for i in drawn) for label in range(3)] == [4, 4, 4]
    assert draw_per_class(labels, 4, 0) == drawn and draw_per_class(labels, 4, 1) != drawn
    assert draw_per_class(labels, 20, 0) == list(range(60))


def test_a_class_with_fewer_is_named_with_its_number():
    with pytest.raises(ValueError, match="class number 1 has 2 training images, fewer than per_class=3"):
        draw_per_class([0, 0, 0, 1, 1], 3, 0)
