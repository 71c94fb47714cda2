"""From records to the words, charts and tables of the page."""

import base64
import json

import pytest
import records

from groupcam_aug.callbacks.report_page import sections
from groupcam_aug.callbacks.report_page.run_records import read_records
from groupcam_aug.files import add_line


def read(folder, **parts):
    for part, options in parts.items():
        getattr(records, part)(folder, **options)
    return read_records(folder)


def titles(charts):
    return [chart["title"] for chart in charts]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "Finished: 6 epochs in 6 min"),
        ({"epochs": 1}, "Finished: 1 epoch in 60 s"),
        ({"status": "stopped by E in epoch 3: secret"}, "Stopped by E in epoch 3: 6 epochs in 6 min"),
    ],
)
def test_headline(tmp_path, options, expected):
    assert sections.headline(read(tmp_path, run=options)) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(4.25, "4.2 s"), (41, "41 s"), (99.4, "99 s"), (100, "2 min"), (3599, "1 h 0 min"), (7260, "2 h 1 min")],
)
def test_durations(seconds, expected):
    assert sections.duration(seconds) == expected


def test_cards_show_the_numbers_to_see_first(tmp_path):
    cards = sections.cards(read(tmp_path, run={}, monitor={"converged_epoch": 3}, augmentation={"no_map": 30}))
    assert [(card["value"], card["name"], card["note"]) for card in cards] == [
        ("91.7%", "val/acc", "best 91.7%, epoch 5"),
        ("0.08", "change of the maps", "settled by epoch 3"),
        ("100%", "probes with a map", "their noise: 0.10"),
        ("45%", "of the pixels kept", "the rest blurred"),
        ("20%", "images without a map", "trained on unchanged"),
        ("+30%", "time per step", "for the augmentation"),
    ]
    assert sections.cards(read_records(tmp_path / "nowhere")) == []


def test_the_rest_is_blurred_only_where_it_is(tmp_path):
    found = read(tmp_path, augmentation={})
    found.augmentation["fill"] = "noise"
    assert sections.cards(found)[0]["note"] == "the rest replaced"


def test_curves_are_those_that_have_numbers(tmp_path):
    assert titles(sections.curves(read(tmp_path / "a", run={}))) == ["Learning rate", "val/acc", "Loss"]
    charts = sections.curves(read(tmp_path / "b", monitor={}))
    assert titles(charts) == ["Maps of the probes"]
    assert charts[0]["chart"].alt == "Maps of the probes by epoch; at the end change 0.08, noise 0.10, share with a map 1.00."
    cut = sections.curves(read(tmp_path / "c", run={"lr": lambda epoch: 0.1 if epoch < 3 else 0.001}))
    assert cut[0]["caption"] == "The highest of all groups of parameters, last step of each epoch, on a logarithmic scale."


@pytest.mark.parametrize("names", [("train_loss",), ("train_loss", "val_loss")])
def test_one_loss_is_no_gap(tmp_path, names):
    for epoch in range(3):
        add_line(tmp_path, "run", {"epoch": epoch, "step": epoch, "val_acc": 0.5, **dict.fromkeys(names, 1.0)})
    last = sections.curves(read_records(tmp_path))[-1]
    if len(names) == 1:
        assert last["title"] == "train_loss" and "gap" not in last["caption"] and last["chart"].legend == []
    else:
        assert last["title"] == "Loss" and "gap" in last["caption"] and [key.name for key in last["chart"].legend] == [*names]


def test_the_augmentation_and_its_worst_classes(tmp_path):
    per_class = {str(label): [30, label] for label in range(25)}
    found = sections.augmentation(read(tmp_path, run={"names": ["ant"]}, augmentation={"per_class": per_class}))
    assert found["summary"] == "150 of 150 images were drawn in epoch 5." and found["plan"] == "Group-CAM: layer4"
    assert titles(found["charts"]) == ["How much is kept", "Over the run"]
    assert len(found["classes"]) == 20 and found["more"] == 5
    assert found["classes"][0] == {"name": "class 24", "drawn": "30", "share": "80%", "width": 80}
    assert sections.augmentation(read(tmp_path / "none", augmentation={"drawn": 0})) is None


def test_what_is_kept_of_objects_and_backgrounds_is_said_where_it_is_known(tmp_path):
    told = sections.augmentation(read(tmp_path / "a", augmentation={"object_kept": 0.834, "ground_kept": 0.21}))["summary"]
    assert "83% of the objects' pixels and 21% of the backgrounds' are kept" in told
    unknown = sections.augmentation(read(tmp_path / "b", augmentation={"object_kept": None, "ground_kept": None}))["summary"]
    assert "objects" not in unknown


def test_object_masks_choose_the_pixels(tmp_path):
    found = read(tmp_path, augmentation={})
    found.augmentation["source"] = "masks"
    assert dict(sections.facts(found))["Kept pixels chosen by"] == "object mask"
    found.augmentation["mask_from"] = "centre"
    assert dict(sections.facts(found))["Kept pixels chosen by"] == "centre disc"


def test_cost_in_milliseconds_and_shares(tmp_path):
    rows = sections.cost(read(tmp_path, run={}, monitor={"seconds": 2.0}, augmentation={"augmented_steps": 4}))
    assert [(what, value) for what, value, _ in rows] == [
        ("Augmentation of a batch", "30 ms"),
        ("Training step without it", "100 ms"),
        ("Added to a training step", "+24%"),
        ("A probing of the maps", "2 s"),
        ("Added to the training time", "+3.4%"),
        ("An epoch", "60 s"),
    ]
    assert "4 of 5 steps augmented" in rows[2][2]


def test_stages_of_several_modules_are_named_by_the_last(tmp_path):
    found = read(tmp_path, evaluation={})
    found.evaluation["sanity"]["stages"] = ["fc .. layer4.bn2", "layer4.conv2 .. layer4.bn1", "conv1"]
    _, content = sections.faithfulness(found)["charts"][2]["chart"].light.split(",")
    svg = base64.b64decode(content).decode()
    assert all(f">{name}</text>" in svg for name in ("layer4.bn2", "layer4.bn1", "conv1"))


def test_faithfulness_in_curves_areas_and_the_sanity_check(tmp_path):
    found = sections.faithfulness(read(tmp_path, evaluation={}))
    assert found["summary"] == "24 photographs" and titles(found["charts"]) == ["Insertion", "Deletion", "Sanity check"]
    assert found["methods"][0] == {
        "name": "Group-CAM", "insertion": ("0.500", "0.500 to 0.500"), "deletion": ("0.100", ""), "over_all": "0.400",
    }  # fmt: skip
    assert "0.80, 0.40, 0.10" in found["charts"][2]["chart"].alt
    assert sections.faithfulness(read_records(tmp_path / "nowhere")) is None


@pytest.mark.parametrize("control", ["centred blob", "centre disc"])
def test_of_many_methods_the_centre_is_drawn_too(tmp_path, control):
    areas = {**{f"method {i}": (0.5, 0.1) for i in range(10)}, control: (0.3, 0.2)}
    chart = sections.faithfulness(read(tmp_path, evaluation={"areas": areas}))["charts"][0]["chart"]
    assert [key.name for key in chart.legend] == [control, *(f"method {i}" for i in range(7))]


@pytest.mark.parametrize(
    ("mask_from", "expected"),
    [
        ("saliency", "the image's own map"),
        ("other", "another image's mask"),
        ("centre", "centre disc"),
        ("whole", "whole image"),
        ("inverse", "inverted mask"),
        ("my_masks", "my_masks"),
    ],
)
def test_facts_call_the_controls_by_their_names(tmp_path, mask_from, expected):
    facts = dict(sections.facts(read(tmp_path, run={}, augmentation={"mask_from": mask_from})))
    assert facts["Kept pixels chosen by"] == expected
    assert facts["Augmentation settings"] == f"preset=paper, groups=16, mask_at=input, p=1.0, mask_from={mask_from}"
    assert facts["Augmentation layer"] == "layer4, 512 x 7 x 7" and facts["Parameters"] == "1,234,567"


def test_facts_leave_out_what_is_not_known(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"model": "Lit", "command": ""}))
    assert [name for name, _ in sections.facts(read_records(tmp_path))] == ["Model", "Records"]
