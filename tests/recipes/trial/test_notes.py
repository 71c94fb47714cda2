from trial_records import record

from groupcam_aug.recipes.trial.notes import are_paired, distinct, notes, unpaired_seeds
from groupcam_aug.recipes.trial.summary import summarise


def test_runs_are_paired_by_start_and_batches():
    one = record(pairing={"start": "a", "batches": "b"})
    assert are_paired(one, record(pairing={"start": "a", "batches": "b"}))
    assert are_paired(one, record(pairing={"start": "a", "batches": None})), "unknown: a note says so"
    assert not are_paired(one, record(pairing={"start": "x", "batches": "b"}))
    assert not are_paired(one, record(pairing={"start": "a", "batches": "x"}))


def test_unpaired_seeds_say_who_differs():
    records = [
        record("none", 3),
        record("fast", 3),
        record("whole", 3, pairing={"start": "x", "batches": "batches3"}),
        record("none", 4),
    ]
    (one,) = unpaired_seeds(records)
    assert (one["seed"], one["what"], one["arms"]) == (3, "start", [["none", "fast"], ["whole"]])
    assert one["text"].startswith("Seed 3: not all arms had the same initial weights (none, fast / whole).")
    assert unpaired_seeds([record("none", 0), record("fast", 0), record("fast", 1)]) == []


def with_digests(arm, seed, data="d", test="t", **train):
    made = record(arm, seed)
    made["pairing"]["data"], made["tests"]["kept"]["digest"] = data, test
    made["train"] |= train
    return made


def test_arms_of_a_seed_that_were_tested_on_other_images_are_not_paired():
    one, other, unknown = with_digests("none", 0), with_digests("fast", 0, test="x"), record("slow", 0)
    assert not are_paired(one, other, "kept") and are_paired(one, other, "shifted") and are_paired(one, unknown, "kept")
    (found,) = unpaired_seeds([one, other, unknown])
    assert found["text"].startswith("Seed 0: not all arms had the same test images of kept (none / fast).")
    assert notes([one, other, unknown]) == [], "said already"


def test_arms_whose_difference_had_no_effect_are_noted():
    """As a one-epoch trial of an augmentation that begins in the second epoch."""
    weights = {"none": "ab", "fast": "ab", "slow": "cb"}
    records = [record(arm, seed, weights=of[seed] + str(seed)) for arm, of in weights.items() for seed in (0, 1)]
    assert notes(records) == [
        "none and fast ended with the same weights on every seed: what tells them apart had no effect (an augmentation that "
        "begins after the last epoch, for instance)."
    ]
    assert notes(records[:1] + records[2:3] + [record("none", 1, weights="x"), record("fast", 1, weights="y")]) == []
    assert notes([record("none", 0), record("fast", 0)]) == [], "older records do not know"
    same = [record(arm, 0, weights="a", hash="h") for arm in ("none", "again")]
    assert len(notes(same)) == 1, "the same config: said already"


def test_data_that_differ_between_seeds_are_noted():
    records = [with_digests(arm, seed, test="x" if seed == 2 else "t") for seed in range(3) for arm in ("none", "fast")]
    assert notes(records) == [
        "Test images of kept differ between seeds (seeds 0, 1 and seed 2): drawn by the seed, or changed in between."
    ]
    both = notes([with_digests("none", seed, data=str(seed), test=str(seed)) for seed in range(2)])
    assert both == ["Training data and test images of kept differ from seed to seed: drawn by the seed, or changed in between."]
    assert notes([with_digests("none", 0), record("none", 1)]) == [], "an older record knows of neither"


def test_runs_that_ended_early_or_unlike_others_are_noted():
    short = with_digests("fast", 0, epochs=3, steps=111, planned=10), with_digests("slow", 0, epochs=3, steps=111, planned=10)
    assert notes([with_digests("none", 0, planned=10), *short]) == [
        "fast, seed 0; slow, seed 0: the training was ended in epoch 3 of 10.",
        "The arms had different numbers of steps (none 370, fast 111, slow 111; seed 0).",
    ]
    assert notes([with_digests("none", 0, epochs=3, planned=None)]) == []


def test_images_that_are_not_counted_are():
    one, other = record("none", 0), record("fast", 0)
    one["tests"]["kept"]["unlabelled"] = other["tests"]["kept"]["unlabelled"] = 7
    other["tests"]["kept"]["not_finite"] = 40
    assert notes([one, other]) == [
        "kept: 7 images have a negative label, which is no class; they are not counted.",
        "fast, seed 0, kept: the logits of 40 images are not finite, the network diverged; no accuracy is counted.",
    ]


def test_nothing_to_note():
    assert notes([record("none", 0), record("fast", 0), record("none", 1)]) == [] == notes([])


def test_equal_configs_unknown_batches_and_mixed_runs_are_noted():
    same = notes([record("a", hash="1"), record("b", hash="1"), record("c", hash="2")])
    assert same == ["a and b are the same config: no difference between them means anything."]
    (unknown,) = notes([record("none"), record("fast", pairing={"start": "start0", "batches": None})])
    assert "could not be checked" in unknown and unknown.endswith(": fast.")
    records = [record(seed=0), record(seed=1, device="NVIDIA", precision="bf16-mixed", versions={"torch": "2.6.0"})]
    records[1]["tests"]["kept"]["n"] = 200
    mixed = notes(records)
    assert "The runs had different devices: cpu, 1 thread; NVIDIA." in mixed
    assert "The runs had different precisions: 32-true; bf16-mixed." in mixed
    assert any(text.endswith("python 3.12.3; torch 2.6.0.") for text in mixed)
    assert "kept: the runs were tested on different numbers of images (200, 300)." in mixed and len(mixed) == 4
    assert distinct(records, "device") == ["cpu, 1 thread", "NVIDIA"]


def test_sizes_that_some_runs_do_not_know_are_no_difference():
    known, unknown = record("none"), record("fast")
    unknown["tests"]["kept"]["n"] = None
    assert not [note for note in notes([known, unknown]) if "numbers of images" in note]
    assert summarise([known, unknown])["test_sets"]["kept"]["sizes"] == [None, 300]
