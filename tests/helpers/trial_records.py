"""Records of trial runs, made by hand."""

from groupcam_aug.recipes.trial import backgrounds
from groupcam_aug.recipes.trial.arms import read_arm
from groupcam_aug.recipes.trial.regimes import settings_hash
from groupcam_aug.recipes.trial.run import Trial
from groupcam_aug.recipes.trial.training import Machine


def records(values, regime="rho0.95", metric="swapped", **more):
    """Records of a study from shares by arm, one per seed."""
    settings = backgrounds.regimes("cpu")[regime]
    made = []
    for arm, shares in values.items():
        for seed, share in enumerate(shares):
            if share is None:
                continue
            trial = Trial(settings, read_arm(arm), seed, Machine())
            metrics = {one.name: 0.5 for one in settings.metrics} | {metric: share}
            pairing = {"data": f"d{seed}", "start": f"s{seed}", "batches": None if arm == "frozen" else f"b{seed}"}
            whole = trial.settings()
            made.append(
                {"study": "backgrounds", "regime": regime, "size": "cpu", "arm": trial.arm.name, "seed": seed, "metrics": metrics}
                | {"facts": {"alignment": 1.5} if trial.arm.kind == "map" else {}, "pairing": pairing, "seconds": 10.0}
                | {"cpu_seconds": 5.0 * (1 + len(arm)), "settings": whole, "hash": settings_hash(whole), "device": "cpu"}
                | {"versions": {"torch": "2.6"}}
                | more
            )
    return made
