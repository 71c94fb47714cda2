"""Whether the monitor's numbers tell what they are for: learning from memorising, settled maps from a cut learning rate (E10).

Four textures somewhere in noise, 384 images, a network of 16 to 32 channels, SGD at 0.1. Over seeds 0 to 4, from the third epoch
on: change at most .05 with the labels, at least .26 with shuffled ones; flip-noise at most .20 and at least .69.
"""

import pytest
from monitoring import Deep, Learner, batches, textures, watched

from groupcam_aug.callbacks import SaliencyEarlyStopping, SaliencyMonitor

EPOCHS = 6


def learn(folder, seed, *, shuffled=False, cuts=(), epochs=EPOCHS, after=(), **settings):
    monitor = SaliencyMonitor(images=textures(48, seed=1), **settings)
    train = batches(384, batch_size=32, shuffle=True, shuffled=shuffled)
    module = Learner(Deep, lr=0.1, cuts=cuts, seed=seed)
    _, trainer = watched(folder, module, monitor, train=train, val=False, seed=seed, max_epochs=epochs, after=after)
    return monitor, trainer


def check(folder, seed, **settings):
    clean, _ = learn(folder / "clean", seed, **settings)
    shuffled, _ = learn(folder / "shuffled", seed, shuffled=True, **settings)
    change, noise = ([[e[name] for e in monitor.history] for monitor in (clean, shuffled)] for name in ("change", "noise"))
    told = f"change {change}, noise {noise}"
    assert max(change[0][2:]) < 0.1 and min(change[1][1:]) > 0.2 and change[1][-1] > 0.3, told
    assert max(noise[0][2:]) < 0.3 and min(noise[1][2:]) > 0.5, told
    assert clean.converged_epoch is not None and shuffled.converged_epoch is None, told
    assert clean.history[-1]["correct"] == 1 and clean.history[-1]["alive"] >= 0.9
    assert clean.history[-1]["floor"] < 0.5, "maps of different images are not the same map"


def test_learning_settles_and_memorising_does_not(tmp_path):
    check(tmp_path, 0)


def test_a_cut_rate_is_told_from_convergence(tmp_path):
    """The rate drops to a hundredth before the maps have settled: they hardly change any more, and nothing stops."""
    monitor, trainer = learn(tmp_path, 1, cuts=[1], after=[SaliencyEarlyStopping()])
    assert monitor.fell_with_lr_epoch is not None and monitor.converged_epoch is None
    assert trainer.current_epoch == EPOCHS and monitor.history[-1]["change"] < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_learning_settles_over_seeds(tmp_path, seed):
    check(tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_early_stopping_ends_a_clean_run_and_not_a_shuffled_one(tmp_path, seed):
    clean, stopped = learn(tmp_path / "clean", seed, epochs=12, after=[SaliencyEarlyStopping()])
    assert stopped.current_epoch < 12 and clean.history[-1]["correct"] == 1
    _, went_on = learn(tmp_path / "shuffled", seed, shuffled=True, epochs=8, after=[SaliencyEarlyStopping()])
    assert went_on.current_epoch == 8


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_group_cam_settles_too(tmp_path, seed):
    monitor, _ = learn(tmp_path, seed, method="groupcam", groups=8)
    assert monitor.history[-1]["change"] < 0.15 and monitor.history[-1]["alive"] > 0.5
