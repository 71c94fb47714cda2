"""Held-out and drawn images: by class, by name and seed."""

import pytest

from groupcam_aug.recipes.splits import draw_per_class, hash64, stratified_split

NAMES = [f"{name}/{i}.jpg" for name in ("ant", "bee", "cat") for i in range(40)]
LABELS = [i // 40 for i in range(120)]


def split(names, labels=None, fraction=0.2, seed=0):
    labels = [("ant", "bee", "cat").index(name.split("/")[0]) for name in names] if labels is None else labels
    kept, held_out = stratified_split(labels, fraction, seed, names)
    assert sorted(kept + held_out) == list(range(len(names)))
    return {names[i] for i in held_out}


def test_a_class_keeps_and_holds_out_at_least_one():
    for fraction in (0.01, 0.99):
        kept, held_out = stratified_split([0, 0, 1, 1], fraction, 0, ["a", "b", "c", "d"])
        assert [i // 2 for i in kept] == [i // 2 for i in held_out] == [0, 1]
    with pytest.raises(ValueError, match="class number 1 has one image"):
        stratified_split([0, 0, 1], 0.2, 0, ["a", "b", "c"])


def test_the_share_is_about_what_was_asked_for():
    names = [f"{i}.jpg" for i in range(10_000)]
    held_out = split(names, [0] * 10_000)
    assert abs(len(held_out) - 2000) < 200  # five standard deviations
    assert abs(len(held_out & split(names, [0] * 10_000, seed=1)) - 400) < 100, "another seed, another split"


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_photographs_more_or_less_move_no_other(seed, fraction):
    whole = split(NAMES, fraction=fraction, seed=seed)
    more = [f"{name}/new{i}.jpg" for name in ("ant", "cat") for i in range(10)]
    assert split(sorted(NAMES + more), fraction=fraction, seed=seed) & set(NAMES) == whole
    fewer = [name for i, name in enumerate(NAMES) if i % 7]
    assert split(fewer, fraction=fraction, seed=seed) == whole & set(fewer)
    assert split(NAMES[::-1], fraction=fraction, seed=seed) == whole, "nor another order"


def test_an_added_photograph_makes_no_training_image_a_held_out_one():
    """Also where a class is so small that its nearest image was taken; not where all were below the limit (1 in 125 here)."""
    few = [f"ant/{i}.jpg" for i in range(3)]
    taken = [seed for seed in range(60) if len(split(few, seed=seed)) == 1]
    assert len(taken) > 40
    for seed in taken:
        assert split([*few, "ant/3.jpg"], seed=seed) & set(few) <= split(few, seed=seed)


def test_names_are_the_same_with_composed_accents():
    assert hash64("caf\u00e9.jpg") == hash64("cafe\u0301.jpg") != hash64("cafe.jpg")
    assert hash64("\udce9.jpg") != hash64("a.jpg"), "names that are not UTF-8"
    assert hash64("0 held out ant/0.jpg") == 17_433_603_772_184_541_869, "the same on every machine"


def test_as_many_of_each_class_as_asked_for():
    drawn = draw_per_class(LABELS, 4, 0, NAMES)
    assert [LABELS[i] for i in drawn] == [0] * 4 + [1] * 4 + [2] * 4
    assert draw_per_class(LABELS, 4, 0, NAMES) == drawn and draw_per_class(LABELS, 4, 1, NAMES) != drawn
    assert draw_per_class(LABELS, 40, 0, NAMES) == list(range(120))
    more = {[*NAMES, "cat/new.jpg"][i] for i in draw_per_class([*LABELS, 2], 4, 0, [*NAMES, "cat/new.jpg"])}
    assert len({NAMES[i] for i in drawn} - more) <= 1
    with pytest.raises(ValueError, match="class number 1 has 2 training images, fewer than per_class=3"):
        draw_per_class([0, 0, 0, 1, 1], 3, 0, list("abcde"))
