"""Figures from rows: by hand, by a plain loop, and in words."""

import numpy as np
import pytest
from evaluations import results_by_hand

from groupcam_aug.recipes.evaluation.datasets import Item
from groupcam_aug.recipes.evaluation.methods import METHODS
from groupcam_aug.recipes.evaluation.results_file import ResultsFile
from groupcam_aug.recipes.evaluation.statistics import ablation_rows, figures_of, reading


def test_figures_by_hand_paired_differences_and_the_pointing_game(tmp_path):
    items, chosen, results = results_by_hand(tmp_path)
    found = figures_of(items, chosen, results)
    group = found["Group-CAM"]
    assert (group["images"], group["undefined"], group["compared"]) == (4, 1, 2), "images 0 and 3 have a map with every method"
    assert group["insertion"]["auc"] == pytest.approx((0.9 + 0.7) / 2) and group["insertion"]["mean"] == pytest.approx([0, 0.8])
    assert group["overall"]["mean"] == pytest.approx(0.7) and found["centred blob"]["overall"]["mean"] == pytest.approx(0.1)
    assert found["Grad-CAM"]["overall"]["mean"] == pytest.approx((0.4 + 0.3) / 2)
    half = 12.7062 * 0.1 / 2  # Student's quantile for one degree of freedom, and the standard error of 0.8 and 0.6
    assert group["overall"]["interval"] == pytest.approx([0.7 - 2 * half, 0.7 + 2 * half], abs=1e-4)
    assert group["to_gradcam"]["images"] == 2 and group["to_gradcam"]["mean"] == pytest.approx((0.4 + 0.3) / 2)
    assert group["to_centre"]["images"] == 2 and group["to_centre"]["mean"] == pytest.approx((0.7 + 0.5) / 2)
    assert group["to_centre"]["verdict"] == "few"
    assert group["energy"]["mean"] == pytest.approx(0.375), "over all images, as is the pointing game"
    assert group["milliseconds"] == {"median": 2000.0, "iqr": 1000.0}, "of the calls after the first"
    assert group["pointing"]["macro"] == pytest.approx((2 / 3 + 1) / 2) and group["pointing"]["micro"] == 0.75
    assert group["pointing"]["classes"] == {"cat": pytest.approx(2 / 3, abs=1e-5), "dog": 1.0}
    assert "to_gradcam" not in found["Grad-CAM"] and "milliseconds" not in found["centred blob"]
    results.add({"file": "0", "stamp": "", "method": "gradcam", "insertion": 0.0, "deletion": 0.3, "undefined": False})
    assert figures_of(items[:1], chosen, results)["Grad-CAM"]["overall"]["mean"] == -0.3, "an area of 0 is an area"
    told = reading(found)
    assert told.startswith("Group-CAM has the highest over-all (0.700) on 2 images; no verdict beside the centred blob from 2 ")
    assert "at least 20 are needed" in told and "shown" not in told
    assert (
        "over the 2 of 4 images for which every method has a map, 2 left out (without one: Group-CAM for 1, Grad-CAM for" in told
    )


def scored(folder, areas):
    """Figures of methods, by key, with these areas of insertion (None: no map); deletion is 0."""
    results = ResultsFile(folder, {})
    for key, own in areas.items():
        for i, area in enumerate(own):
            curves = {f"{kind}_curve": None if area is None else [0.0] for kind in ("insertion", "deletion")}
            row = {"insertion": area, "deletion": None if area is None else 0.0, "undefined": area is None, **curves}
            results.add({"file": str(i), "stamp": "", "method": key, "label": "", **row})
    results.add({"fractions": [0.0]})
    count = len(next(iter(areas.values())))
    return figures_of([Item(str(i), folder / "gone") for i in range(count)], [m for m in METHODS if m.key in areas], results)


def test_a_verdict_is_said_from_twenty_images_on_and_what_is_not_shown_is_not_claimed(tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.05, 24)
    blob = np.full(24, 0.5)
    areas = {"groupcam": blob + 0.2 + noise, "gradcam": blob + noise - noise.mean(), "fast": blob - 0.2 - noise, "centre": blob}
    told = reading(scored(tmp_path / "24", {key: own.tolist() for key, own in areas.items()}))
    assert "shown above: Group-CAM; shown below: fast; no difference shown: Grad-CAM" in told and "no verdict" not in told
    told = reading(scored(tmp_path / "19", {key: own[:19].tolist() for key, own in areas.items()}))
    assert "no verdict beside the centred blob from 19 images: at least 20 are needed" in told and "shown" not in told
    told = reading(scored(tmp_path / "1", {"groupcam": [0.9], "centre": [0.1]}))
    assert told.startswith("Group-CAM has the highest over-all (0.900) on 1 image; no verdict") and "shown" not in told


def test_ties_name_all(tmp_path):
    assert reading(scored(tmp_path / "a", {"gradcam": [0.5], "fast": [0.5], "centre": [0.1]})).startswith(
        "fast and Grad-CAM have the highest over-all (0.500)"
    )
    assert reading(scored(tmp_path / "b", {"gradcam": [0.5], "fast": [0.50004]})).startswith("All methods have the same over-all")
    assert reading(scored(tmp_path / "c", {"gradcam": [0.5]})).startswith("Grad-CAM has the highest over-all")


def test_a_method_without_any_map_costs_no_images_and_one_with_others_maps_costs_all(tmp_path):
    found = scored(tmp_path / "a", {"gradcam": [0.5, 0.6], "fast": [None, None]})
    assert found["Grad-CAM"]["compared"] == 2 and found["fast"]["compared"] == 0 and "overall" not in found["fast"]
    assert "left out" not in reading(found)
    found = scored(tmp_path / "b", {"gradcam": [0.5, None], "fast": [None, 0.6]})
    assert not any("overall" in own for own in found.values())
    assert reading(found).startswith("Means are over the 0 of 2 images") and "compare fewer methods by --methods" in reading(
        found
    )


def pointed(folder, hits, labels):
    results = ResultsFile(folder, {})
    for i, (hit, label) in enumerate(zip(hits, labels, strict=True)):
        results.add({"file": str(i), "stamp": "", "method": "gradcam", "undefined": False, "hit": bool(hit), "label": label})
    methods = [method for method in METHODS if method.key == "gradcam"]
    return figures_of([Item(str(i), folder / "gone") for i in range(len(hits))], methods, results)["Grad-CAM"]["pointing"]


def test_the_pointing_game_s_interval_is_that_of_a_plain_loop(tmp_path):
    """Trials are drawn again, each with its class; a class that is not drawn is in no mean."""
    rng = np.random.default_rng(5)
    labels = np.array(["dog"] * 30 + ["cat"] * 12 + ["owl"] * 2)
    hits = rng.random(44) < np.where(labels == "dog", 0.9, 0.4)
    figures = pointed(tmp_path, hits, labels.tolist())
    means = []
    for _ in range(4000):
        drawn = rng.integers(44, size=44)
        means.append(np.mean([hits[drawn][labels[drawn] == label].mean() for label in set(labels[drawn])]))
    assert figures["interval"] == pytest.approx(np.percentile(means, [2.5, 97.5]).tolist(), abs=0.03)
    assert figures["macro"] == pytest.approx(np.mean([hits[labels == label].mean() for label in set(labels)]), abs=1e-6)
    low, high = figures["micro_interval"]
    assert low < figures["micro"] < high and figures["micro"] == pytest.approx(hits.mean(), abs=1e-6)
    assert high - low < figures["interval"][1] - figures["interval"][0], "two trials make a third of the mean over classes"


def test_few_trials_have_wilson_s_interval_and_the_mean_over_classes_none(tmp_path):
    figures = pointed(tmp_path / "one", [True], ["dog"])
    assert figures["interval"] is None and figures["classes"] == {"dog": 1.0}
    z = 1.959964  # Wilson's lower end of 1 of 1: 1 / (1 + z^2)
    assert figures["micro_interval"] == pytest.approx([1 / (1 + z**2), 1], abs=1e-5)
    assert pointed(tmp_path / "alike", [True] * 30, ["dog"] * 30)["interval"] is None, "the bootstrap would be sure"


def test_rows_of_an_ablation_are_the_figures_of_its_methods(tmp_path):
    items, chosen, results = results_by_hand(tmp_path)
    figures = figures_of(items, [chosen[0], chosen[2]], results)
    first, second = ablation_rows({1.0: chosen[0], 4.0: chosen[2]}, items, results)
    assert (first["value"], second["value"]) == (1.0, 4.0) and first["overall"] == figures["Group-CAM"]["overall"]
    assert first["insertion"] == {
        name: figures["Group-CAM"]["insertion"][key] for name, key in (("mean", "auc"), ("interval", "interval"))
    }
    assert first["undefined"] == 1 and second["images"] == 4 and second["compared"] == 3
    first, second = ablation_rows({1.0: chosen[0], 2.0: chosen[1]}, items, results)
    assert first["compared"] == second["compared"] == 2, "of Group-CAM and Grad-CAM both"
    assert first["insertion"]["mean"] == pytest.approx(0.8) and second["insertion"]["mean"] == pytest.approx(0.45)


def test_reading_of_boxes_alone():
    figures = {name: {"kind": "ours", "undefined": 1, "images": 3, "compared": 2, "box_error": {"mean": 1 / 3}} for name in "AB"}
    assert reading(figures) == "All have the fewest wrong boxes (33.3%) in 3 trials."
    figures["B"]["box_error"] = {"mean": 0.0}
    assert reading(figures) == "B has the fewest wrong boxes (0.0%) in 3 trials."


def test_reading_of_the_pointing_game_alone(tmp_path):
    figures = {
        name: {"kind": "ours", "undefined": 0, "images": 8, "pointing": {"macro": share}}
        for name, share in (("A", 0.5), ("B", 0.75))
    }
    assert reading(figures) == "B points best (75.0% of a class's images, mean over classes) in 8 trials." and reading({}) == ""
