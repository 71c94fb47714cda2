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
    assert (group["images"], group["undefined"]) == (4, 1) and group["insertion"]["auc"] == pytest.approx(0.8)
    assert group["insertion"]["mean"] == pytest.approx([0, 0.8]) and group["overall"]["mean"] == pytest.approx(0.7)
    assert group["to_gradcam"]["images"] == 2 and group["to_gradcam"]["mean"] == pytest.approx((0.4 + 0.3) / 2)
    assert group["to_centre"]["images"] == 3 and group["to_centre"]["mean"] == pytest.approx((0.7 + 0.6 + 0.5) / 3)
    assert group["milliseconds"] == {"median": 2000.0, "iqr": 1000.0}, "of the calls after the first"
    assert group["pointing"]["macro"] == pytest.approx((2 / 3 + 1) / 2) and group["pointing"]["micro"] == 0.75
    assert group["pointing"]["classes"] == {"cat": pytest.approx(2 / 3, abs=1e-5), "dog": 1.0}
    assert "to_gradcam" not in found["Grad-CAM"] and "milliseconds" not in found["centred blob"]
    results.add({"file": "0", "stamp": "", "method": "gradcam", "insertion": 0.0, "deletion": 0.3, "undefined": False})
    assert figures_of(items[:1], chosen, results)["Grad-CAM"]["overall"]["mean"] == -0.3, "an area of 0 is an area"
    told = reading(found)
    assert told.startswith("Group-CAM has the highest over-all (0.700); beside the centred blob")
    assert "at 95 %, surely above: Group-CAM, Grad-CAM; images without" in told
    found["Grad-CAM"]["to_centre"]["interval"][0] = -0.1
    assert "surely above: Group-CAM; not surely either: Grad-CAM" in reading(found)
    found["Grad-CAM"]["to_centre"]["interval"][1] = -0.05
    assert "surely above: Group-CAM; surely below: Grad-CAM" in reading(found)


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


def test_a_single_trial_has_an_interval_without_width(tmp_path):
    figures = pointed(tmp_path, [True], ["dog"])
    assert figures["interval"] == figures["micro_interval"] == [1.0, 1.0] and figures["classes"] == {"dog": 1.0}


def test_rows_of_an_ablation_are_the_figures_of_its_methods(tmp_path):
    items, chosen, results = results_by_hand(tmp_path)
    figures = figures_of(items, chosen, results)
    first, second = ablation_rows({1.0: chosen[0], 4.0: chosen[1]}, items, results)
    assert (first["value"], second["value"]) == (1.0, 4.0) and first["overall"] == figures["Group-CAM"]["overall"]
    assert first["insertion"] == {
        name: figures["Group-CAM"]["insertion"][key] for name, key in (("mean", "auc"), ("interval", "interval"))
    }
    assert second["undefined"] == 1 and second["images"] == 4


def test_reading_of_the_pointing_game_alone(tmp_path):
    figures = {name: {"kind": "ours", "undefined": 0, "pointing": {"macro": share}} for name, share in (("A", 0.5), ("B", 0.75))}
    assert reading(figures) == "B points best (75.0% of a class's images, mean over classes)." and reading({}) == ""
