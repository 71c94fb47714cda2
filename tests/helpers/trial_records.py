"""Records of a trial's runs, made from accuracies: nothing is trained."""

PARTS = {"keep_fraction": 0.46, "no_map": 0.03, "augmented": 1800, "object_kept": 0.7, "ground_kept": 0.4}
VERSIONS = {"groupcam-aug": "0.1.0", "torch": "2.9.0", "pytorch-lightning": "2.5.5", "python": "3.12.3"}


def record(arm="none", seed=0, accuracy=0.9, *, control=None, name="kept", classes=None, groups=None, **changes):
    """One finished run. `accuracy`: of the test set `name`, or {test set: accuracy}. `changes`: keys of the record."""
    tests = accuracy if isinstance(accuracy, dict) else {name: accuracy}
    maps = PARTS if control else dict.fromkeys(PARTS)
    made = {
        "arm": arm,
        "seed": seed,
        "about": f"what {arm} is",
        "control": control,
        "hash": f"hash of {arm}",
        "tests": {key: _test(value, classes, groups) for key, value in tests.items()},
        "train": {"seconds": 20.0 if control else 10.0, "epochs": 10, "steps": 370, "loss": 0.12, **maps},
        "pairing": {"start": f"start{seed}", "batches": f"batches{seed}"},
        "warnings": [],
        "folder": f"runs/{arm}__seed{seed}",
        "device": "cpu, 1 thread",
        "precision": "32-true",
        "versions": dict(VERSIONS),
    }
    return made | changes


def trial(accuracies, *, controls=None, name="kept", **changes):
    """Runs of several arms: {arm: accuracy by seed}, as a list from seed 0 on or as {seed: accuracy}."""
    controls = controls or {}
    return [
        record(arm, seed, accuracy, control=controls.get(arm), name=name, **changes)
        for arm, of_seeds in accuracies.items()
        for seed, accuracy in (of_seeds.items() if isinstance(of_seeds, dict) else enumerate(of_seeds))
    ]


def logged(arm, seed, value, *, metric="test/loss", **changes):
    """A run whose data are no classification: only what its module logs."""
    made = record(arm, seed, **changes)
    made["tests"] = {"kept": {"n": 50, "metrics": {metric: value}, "classes": {}, "groups": {}}}
    return made


def _test(accuracy, classes, groups):
    metrics = {"accuracy": accuracy, "mean_class_accuracy": accuracy, "worst_class_accuracy": accuracy - 0.1}
    if groups:
        metrics["worst_group_accuracy"] = accuracy - 0.2
    metrics |= {"test/acc": accuracy, "test/loss": 1 - accuracy}
    counts = {"climbing": [round(200 * accuracy), 200], "diving": [round(100 * accuracy), 100]} if classes is None else classes
    return {"n": 300, "metrics": metrics, "classes": counts, "groups": groups or {}}
