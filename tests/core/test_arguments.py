"""One style of validation: every public class and function refuses bad numbers, words and flags, by name, where they are given."""

import math
import re

import numpy as np
import pytest
import torch
from torch import nn

import groupcam_aug
from groupcam_aug import GradCAM, GroupCAM, SaliencyBlur, guided_backprop, guided_grad_cam, measure_fidelity, metrics
from groupcam_aug.arguments import check_choice, check_number, check_whole
from groupcam_aug.callbacks import GroupCAMAugmentation, SaliencyEarlyStopping, SaliencyMonitor, SaliencyReport
from groupcam_aug.recipes.trial.batch_transform import BatchTransform
from groupcam_aug.sanity import randomization_check

NET = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
X, MAPS = torch.rand(2, 3, 8, 8), torch.rand(2, 8, 8)
WHOLE = (math.nan, math.inf, 1.5, "2", True, -1)
OR_NONE = (math.nan, 1.5, "2", True, -1)
SHARE = (math.nan, math.inf, "0.5", True, -0.1, 1.1)
FLAG = ("no", 1, None)
WORD = ("other things", 0, None, True)
SEED = (*WHOLE, 2**63)
CALL = (3, "x", True)
PICK = (1.5, True, [1])


def of_network(call, **more):
    return lambda **options: call(NET, X, **more, **options)


def of_maps(call):
    return lambda **options: call(MAPS, MAPS, **options)


CURVES = {
    "steps": (*WHOLE, 0),
    "author_compatible": FLAG,
    "spacing": WORD,
    "substrate": WORD,
    "activation": WORD,
    "chunk": OR_NONE,
}
GRID = (5, "14", (14,), (0, 14), (14, 14, -1), (14.5, 14), (14, True), (math.nan, 2))
THRESHOLD = (math.nan, "median", "q2", True, None, -1)
PUBLIC = {
    GroupCAM: (
        lambda **options: GroupCAM(NET, **options),
        {"groups": (*WHOLE, 0), "chunk": (*OR_NONE, 0), "denoise": (math.nan, "70", True, 101), "weights": WORD, "variant": WORD}
        | {"baseline": WORD, "activation": WORD, "grid": GRID, "preprocess": CALL, "output": PICK, "compile": FLAG},
    ),
    GradCAM: (
        lambda **options: GradCAM(NET, **options),
        {"sign": (0, "1", True, math.nan), "chunk": (*OR_NONE, 0), "grid": GRID, "preprocess": CALL, "output": PICK},
    ),
    guided_backprop: (of_network(guided_backprop), {"chunk": (*OR_NONE, 0)}),
    guided_grad_cam: (of_network(guided_grad_cam), {"chunk": (*OR_NONE, 0)}),
    SaliencyBlur: (
        lambda **options: SaliencyBlur(None, **options),
        {"p": SHARE, "strength": SHARE, "threshold": THRESHOLD, "fill": WORD, "mask_from": WORD}
        | {"kernel_size": (*OR_NONE, 2, 0), "sigma": (math.nan, math.inf, "5", True, 0), "generator": (5, "a")}
        | {"pairs": FLAG, "labels": WORD, "num_classes": (*OR_NONE, 0)},
    ),
    measure_fidelity: (
        of_network(measure_fidelity),
        {"regroupings": (*WHOLE, 0), "repeats": WHOLE, "batch_size": (*WHOLE, 0), "seed": SEED, "threshold": THRESHOLD},
    ),
    randomization_check: (
        of_network(randomization_check, cam=GradCAM),
        {"mode": WORD, "seed": SEED, "grid": (*WHOLE, 0), "keep_maps": FLAG, "stages": (math.nan, 1.5, "", True, 0)},
    ),
    metrics.insertion_deletion: (of_network(metrics.insertion_deletion, maps=MAPS), CURVES),
    metrics.average_drop: (of_network(metrics.average_drop, maps=MAPS), {"substrate": WORD, "chunk": OR_NONE}),
    metrics.pointing_game: (of_maps(metrics.pointing_game), {"tolerance": (math.nan, "1", -1), "relative_tolerance": ("1", -1)}),
    metrics.energy_pointing_game: (of_maps(metrics.energy_pointing_game), {"above_chance": FLAG}),
    metrics.mask_iou: (of_maps(metrics.mask_iou), {"threshold": THRESHOLD}),
    metrics.boxes_from_maps: (lambda **o: metrics.boxes_from_maps(MAPS, **o), {"threshold": (*SHARE, 0, None)}),
    metrics.localisation_error: (
        lambda **options: metrics.localisation_error(torch.zeros(1, 4), [torch.zeros(0, 4)], **options),
        {"iou": SHARE},
    ),
    metrics.map_change: (of_maps(metrics.map_change), {"grid": (*WHOLE, 0)}),
    metrics.map_noise: (of_maps(metrics.map_noise), {"grid": (*WHOLE, 0)}),
    metrics.map_floor: (lambda **options: metrics.map_floor(MAPS, **options), {"grid": (*WHOLE, 0)}),
    metrics.InsertionAUC: (metrics.InsertionAUC, CURVES),
    metrics.DeletionAUC: (metrics.DeletionAUC, CURVES),
    metrics.InsertionDeletion: (metrics.InsertionDeletion, CURVES),
    metrics.PointingGame: (
        metrics.PointingGame,
        {"tolerance": (math.nan, "1", -1, None), "relative_tolerance": (math.nan, "1", -1), "average": WORD}
        | {"num_classes": (*OR_NONE, 0)},
    ),
    metrics.EnergyPointingGame: (metrics.EnergyPointingGame, {"above_chance": FLAG}),
    metrics.MaskIoU: (metrics.MaskIoU, {"threshold": THRESHOLD}),
    metrics.LocalisationError: (metrics.LocalisationError, {"threshold": (*SHARE, 0, None), "iou": SHARE}),
    metrics.MapChange: (metrics.MapChange, {"grid": (*WHOLE, 0)}),
    GroupCAMAugmentation: (
        GroupCAMAugmentation,
        {"start_epoch": WHOLE, "stop_epoch": (*OR_NONE, 0), "every_n_steps": (*WHOLE, 0), "seed": SEED, "groups": (*WHOLE, 0)}
        | {"preset": WORD, "labels": WORD, "fill": WORD, "mask_from": WORD, "weights": WORD, "activation": WORD}
        | {
            "preprocess": CALL,
            "output": PICK,
            "record": FLAG,
            "compile": FLAG,
            "strength": SHARE,
            "p": SHARE,
            "threshold": THRESHOLD,
            "chunk": OR_NONE,
            "baseline": ("grey", 0, True),
        }
        | {"network": (NET, 3), "layer": (NET, 3), "mask_at": (NET, 3), "source": (3, math.nan, {})}
        | {
            "image_key": (1.5, [], [None], {}, None, True),
            "target_key": (1.5, [], [None], {}),
            "mask_key": (1.5, [], [None], {}),
        },
    ),
    SaliencyMonitor: (
        SaliencyMonitor,
        {"num_images": (*WHOLE, 0), "every_n_epochs": (*WHOLE, 0), "warmup_epochs": WHOLE, "grid": WHOLE, "seed": SEED}
        | {"preprocess": CALL, "output": PICK, "image_key": (None, True)}
        | {"patience": (*WHOLE, 0), "groups": (*WHOLE, 0), "chunk": OR_NONE, "method": WORD, "activation": WORD}
        | {"threshold": SHARE, "min_lr_share": SHARE, "min_alive": SHARE, "max_overhead": (math.nan, "1", True, 0)}
        | {"log_images": FLAG, "evaluate": FLAG, "network": (NET, 3), "layer": (NET, 3), "prefix": (3, None, "/")},
    ),
    SaliencyEarlyStopping: (
        SaliencyEarlyStopping,
        {"threshold": SHARE, "min_lr_share": SHARE, "min_alive": SHARE, "patience": (1.5, "2", True, 0), "prefix": (3,)},
    ),
    SaliencyReport: (SaliencyReport, {"filename": ("", "a/b", 3, None, "run.json", "a\0b"), "dirpath": (3, True)}),
    BatchTransform: (
        lambda **options: BatchTransform(**{"kind": "erase", **options}),
        {"kind": WORD, "p": SHARE, "area": SHARE, "alpha": (math.nan, 0, "1", True), "start_epoch": WHOLE, "seed": WHOLE}
        | {"num_classes": (1, 2.5, "3", True), "image_key": (1.5, []), "target_key": (1.5, [])},
    ),
}
CASES = [
    pytest.param(make, name, value, id=f"{kind.__name__}-{name}-{value!r:.12}")
    for kind, (make, arguments) in PUBLIC.items()
    for name, values in arguments.items()
    for value in values
]


@pytest.mark.parametrize("make, name, value", CASES)
def test_bad_arguments_are_refused_by_name(make, name, value):
    shown = rf"({re.escape(repr(value)[:50])}|{type(value).__name__})"
    with pytest.raises((ValueError, TypeError), match=rf"(?s)^{name}\b.*(must|is) .*{shown}"):
        make(**{name: value})


def test_numbers_of_numpy_are_numbers():
    check_whole("n", np.int64(3), 3)
    check_number("p", np.float32(0.5), 0, 1)
    check_number("p", 1, 0, 1)
    assert GroupCAM(NET, groups=np.int64(2)).groups == 2
    assert GroupCAMAugmentation(every_n_steps=np.int64(2), p=np.float64(0.5)).augment.p == 0.5


def test_a_module_in_place_of_its_name_is_refused_with_what_to_write():
    for make in (GroupCAMAugmentation, SaliencyMonitor):
        with pytest.raises(TypeError, match=r"network must be a name .* got Sequential: write its name .* network='model'"):
            make(network=NET)
        with pytest.raises(TypeError, match=r"layer must be a name .* got Conv2d: write its name .* layer='layer4'"):
            make(layer=NET[0])


def test_the_package_lists_what_is_public():
    assert set(dir(groupcam_aug)) == {*groupcam_aug.__all__, "__version__", "callbacks", "metrics", "recipes", "sanity"}
    assert all(getattr(groupcam_aug, name) for name in groupcam_aug.__all__)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: check_whole("n", 0, 1), "n must be a whole number of at least 1, got 0"),
        (lambda: check_whole("n", 0.5, optional=True), "n must be a whole number of at least 0 or None, got 0.5"),
        (lambda: check_number("p", 2, 0, 1), "p must be a number from 0 to 1, got 2"),
        (lambda: check_number("p", 0, 0, 1, above=True), "p must be a number above 0 and at most 1, got 0"),
        (lambda: check_number("p", -1), "p must be a number of at least 0, got -1"),
        (lambda: check_choice("kind", "c", ("a", "b")), "kind must be one of 'a', 'b'; got 'c'"),
        (lambda: check_choice("kind", 3, ("a", "b"), or_callable=True), "kind must be one of 'a', 'b' or a callable; got 3"),
    ],
)
def test_sentences(call, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()
