"""Where JSON does not look as it should, in words."""

import pytest

from groupcam_aug.json_shape import fitting, misfit

SHAPE = {"epoch": int, "lr?": (float, None), "classes?": {...: [float, float]}, "rows?": [{"kind": str}]}


@pytest.mark.parametrize(
    "value",
    [
        {"epoch": 3},
        {"epoch": 3, "lr": 1},
        {"epoch": 3, "lr": None, "more": object},
        {"epoch": 0, "classes": {"a": [1, 2.5]}, "rows": [{"kind": "x", "y": 1}, {"kind": ""}]},
    ],
)
def test_what_fits(value):
    assert misfit(value, SHAPE) is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({}, "there is no epoch"),
        ({"epoch": 1.5}, "epoch is 1.5, not a whole number"),
        ({"epoch": True}, "epoch is True, not a whole number"),
        ({"epoch": 10**400}, f"epoch is 1{'0' * 38}…, not a whole number"),
        ({"epoch": 0, "lr": float("nan")}, "lr is nan, not"),
        ({"epoch": 0, "lr": float("-inf")}, "lr is -inf, not"),
        ({"epoch": 0, "lr": "x"}, "lr is 'x', not"),
        ({"epoch": 0, "classes": []}, "classes is [], not a mapping"),
        ({"epoch": 0, "classes": {"a": [1]}}, "classes.a is [1], not a list of 2"),
        ({"epoch": 0, "classes": {"a": [1, None]}}, "classes.a[1] is None, not a number"),
        ({"epoch": 0, "rows": [{"kind": "x"}, {}]}, "there is no rows[1].kind"),
        ({"epoch": 0, "rows": "x"}, "rows is 'x', not a list"),
        ([], "the content is [], not a mapping"),
    ],
)
def test_what_does_not(value, words):
    assert words in misfit(value, SHAPE)


def test_the_parts_that_fit_are_kept():
    kept = {"lr": 1, "other": "y"}
    assert fitting({"epoch": "x", **kept}, SHAPE) == (kept, ["epoch is 'x', not a whole number"])
