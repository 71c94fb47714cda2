import pytest
from trial_records import logged, record, trial

from groupcam_aug.recipes.trial.summary import summarise
from groupcam_aug.recipes.trial.verdict import difference_text, judge, number_text, verdict

BASE = [0.80, 0.82, 0.81, 0.79, 0.83]
NOISE = [0.001, -0.002, 0.002, 0.0, -0.001]
OPEN = [0.05, -0.04, 0.03, -0.03, 0.02]


def moved(by, noise=NOISE, base=BASE):
    return [value + by + one for value, one in zip(base, noise, strict=True)]


def one(**changes):
    return {"n": 5, "low": -1.0, "high": 1.0, "equivalence": 0.5, "paired": True} | changes


@pytest.mark.parametrize(
    "comparison, in_max, in_min",
    [
        (one(low=0.1), "gain", "loss"),
        (one(high=-0.1), "loss", "gain"),
        (one(low=0.1, equivalence=0.01), "gain", "loss"),
        (one(equivalence=0.049), "equal", "equal"),
        (one(equivalence=0.05), "open", "open"),
        (one(low=0.0), "open", "open"),
        (one(n=1, low=None, high=None, equivalence=None), "one seed", "one seed"),
        (one(low=None, high=None, equivalence=None), "no spread", "no spread"),
        (one(low=0.1, paired=False), "not paired", "not paired"),
    ],
)
def test_judging(comparison, in_max, in_min):
    assert judge(comparison) == in_max and judge(comparison, mode="min") == in_min


def test_numbers_in_words():
    assert difference_text({"mean": 0.31, "low": -0.42, "high": 1.04}, "points") == "+0.3 [-0.4, +1.0] points"
    assert difference_text({"mean": 0.31, "low": 0.02, "high": 0.6}, "points") == "+0.31 [+0.02, +0.60] points"  # not [+0.0
    assert difference_text({"mean": -0.01234, "low": None, "high": None}, "") == "-0.0123"
    assert (number_text(91.26, "%"), number_text(0.12345, ""), number_text(None, "%")) == ("91.3", "0.123", "–")


def say(accuracies, controls=None, **settings):
    return verdict(summarise(trial(accuracies, controls=controls), **settings))


def text_of(said, arm):
    return next(sentence["text"] for sentence in said["sentences"] if sentence["arm"] == arm)


def test_a_gain_above_its_control():
    accuracies = {"none": BASE, "fast": moved(0.03), "fast-other": moved(0, NOISE[::-1])}
    said = say(accuracies, {"fast": "fast-other"})
    # Differences of 3 points + NOISE: Student's quantile 2.7764, standard error 0.1 / sqrt(2) = 0.0707.
    assert text_of(said, "fast").startswith("fast: +3.0 [+2.8, +3.2] points over none on 5 seeds, kept: gain shown. +3.0 [")
    assert text_of(said, "fast").endswith("points over its control fast-other: the place of the mask counts.")
    first, second, *_ = said["conclusion"].splitlines()
    assert first == "Shown gain over none: fast (kept)."
    assert second.startswith(
        "fast: +3.0 [+2.8, +3.2] points on kept, at 2.00 times the training time. It is also above its control"
    )
    kinds = {sentence["arm"]: (sentence["kind"], sentence["control"]) for sentence in said["sentences"]}
    assert kinds == {"fast": ("gain", "gain"), "fast-other": ("equal", None)}


def test_a_gain_that_the_control_has_too():
    accuracies = {"none": BASE, "fast": moved(0.03), "fast-other": moved(0.03, NOISE[::-1])}
    said = say(accuracies, {"fast": "fast-other"})
    assert (
        "The same augmentation elsewhere (fast-other) does as well: no evidence that saliency is what helps."
        in said["conclusion"]
    )
    assert "above its control" not in said["conclusion"]
    wide = say(accuracies | {"fast-other": moved(0.02, OPEN)}, {"fast": "fast-other"})
    assert "It is not shown to be above its control fast-other: no evidence that saliency is what helps." in wide["conclusion"]
    other = {"kept": moved(0, NOISE[::-1]), "shifted": moved(0.03, NOISE[::-1])}
    arms = {"none": [BASE, BASE], "fast": [moved(0.03)] * 2, "fast-other": other.values()}
    some = [
        record(arm, seed, {"kept": a, "shifted": b}, control="fast-other" if arm == "fast" else None)
        for arm, of in arms.items()
        for seed, (a, b) in enumerate(zip(*of, strict=True))
    ]
    assert "above its control fast-other on some of them only: little evidence" in verdict(summarise(some))["conclusion"]
    missing = say({"none": BASE, "fast": moved(0.03)}, {"fast": "fast-other"})
    assert "Its control fast-other was not compared: whether saliency is what helps is open." in missing["conclusion"]
    assert any(caveat.startswith("fast-other, the control of fast, has no finished run") for caveat in missing["caveats"])


def test_no_gain_a_loss_and_equivalence():
    said = say({"none": BASE, "open": moved(0, OPEN), "worse": moved(-0.05), "same": moved(0)})
    assert text_of(said, "open").endswith("kept: no gain shown.")
    assert text_of(said, "worse").endswith("kept: loss shown.")
    assert text_of(said, "same").endswith("kept: no difference beyond ±1 point.")
    assert said["conclusion"].splitlines() == [
        "No arm has a shown gain over none.",
        "Shown to lose: worse (kept).",
        "Shown to lie within ±1 point: same (kept).",
        "A gain that is not shown may still be there: more seeds make the intervals narrower.",
    ]


def test_a_gain_within_the_margin_says_so():
    said = say({"none": BASE, "fast": moved(0.004)})
    assert text_of(said, "fast").endswith("gain shown, smaller than 1 point.")
    assert "on kept (smaller than 1 point)" in said["conclusion"]


def test_what_a_gaining_arm_loses_elsewhere():
    sets = {"none": [(one, one) for one in BASE], "fast": list(zip(moved(0.03), moved(-0.04), strict=True))}
    records = [record(arm, seed, {"shifted": a, "kept": b}) for arm, pairs in sets.items() for seed, (a, b) in enumerate(pairs)]
    said = verdict(summarise(records))["conclusion"]
    assert said.startswith("Shown gain over none: fast (shifted).")
    assert "It has a shown loss: -4.0 [-4.2, -3.8] points on kept, -4.0 [-4.2, -3.8] points for the worst class on kept." in said
    level = [
        record(arm, seed, {"shifted": a, "kept": 0.5 + 0.01 * seed}) for arm, of in sets.items() for seed, (a, _) in enumerate(of)
    ]
    assert "No gain is shown on kept." in verdict(summarise(level))["conclusion"]


def test_one_seed_says_nothing():
    said = say({"none": [0.8], "fast": [0.9]})
    assert text_of(said, "fast") == "fast: +10.0 points over none on 1 seed, kept: one seed, so nothing can be said."
    assert said["conclusion"].startswith("Every arm has one seed in common with none") and "shown" not in said["conclusion"]
    assert said["comparisons"] == 0 and said["caveats"] == []


@pytest.mark.parametrize("n, least", [(2, "0.5"), (3, "0.25"), (4, "0.125"), (5, "0.0625")])
def test_few_seeds_are_said_to_be_few(n, least):
    caveats = say({"none": BASE[:n], "fast": moved(0.03)[:n]})["caveats"]
    assert caveats[0].startswith(f"{n} seeds are few: intervals are wide, and the exact sign-flip p cannot be below {least},")


def test_enough_seeds_and_the_number_of_comparisons():
    said = say({"none": [*BASE, 0.8], "fast": [*moved(0.03), 0.82], "slow": [*moved(0.02), 0.82]}, {"fast": "slow"})
    # fast and slow to none, fast to slow; each in accuracy and for the worst class
    assert said["comparisons"] == 6
    (caveat,) = said["caveats"]
    assert caveat.startswith("6 comparisons were made and none is corrected") and caveat.endswith(
        "one in twenty would exclude zero by chance alone, here 0.3."
    )


def test_the_same_difference_on_every_seed_shows_nothing():
    said = say({"none": BASE, "fast": moved(0.03, [0] * 5)})
    assert "no spread to judge it by, so nothing is shown" in text_of(said, "fast")
    assert said["conclusion"].startswith("No arm has a shown gain")


def test_runs_that_are_not_paired_show_nothing():
    records = trial({"none": BASE, "fast": moved(0.03)})
    records[-1]["pairing"]["start"] = "another"
    said = verdict(summarise(records))
    assert text_of(said, "fast").endswith("the runs are not paired, so nothing is shown.")
    assert said["conclusion"].startswith("No arm has a shown gain") and "did not start alike" in said["conclusion"]
    assert said["caveats"][0].startswith("Seed 4: not all arms had the same initial weights (none / fast).")


def test_notes_are_among_the_caveats():
    records = trial({"none": BASE, "fast": moved(0.03)}, hash="1")
    assert verdict(summarise(records))["caveats"][0].startswith("none and fast are the same config")


def test_where_lower_is_better():
    values = {"none": [0.5, 0.6, 0.55], "fast": [0.4, 0.49, 0.46], "worse": [0.8, 0.91, 0.83]}
    records = [logged(arm, seed, value) for arm, of in values.items() for seed, value in enumerate(of)]
    said = verdict(summarise(records, metric="test/loss", mode="min"))
    assert text_of(said, "fast").endswith("over none on 3 seeds, kept, test/loss (lower is better): gain shown.")
    assert text_of(said, "worse").endswith(
        "(lower is better): shown to be worse."
    )  # "loss shown" of a loss could be read as a good thing
    assert said["conclusion"].startswith("Shown gain over none: fast (kept).\nfast: -0.1 [")


def test_nothing_to_compare_is_said():
    assert verdict(summarise([]))["conclusion"] == "No run finished: nothing can be said."
    assert say({"fast": BASE})["conclusion"].startswith("No run of the reference none finished")
    assert say({"none": {0: 0.8}, "fast": {1: 0.8}})["conclusion"].startswith("No arm shares a seed with none")
    other = verdict(summarise([logged("none", 0, 0.5), logged("fast", 0, 0.4)]))
    assert other["conclusion"] == "No run measured accuracy, so no arms are compared. Measured: test/loss."
    assert other["sentences"] == []
