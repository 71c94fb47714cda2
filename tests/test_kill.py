"""A run killed with SIGKILL goes on from its last checkpoint and ends with the weights of the run that was left alone."""

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from lit import same, state
from processes import HELPERS, environment
from run_to_kill import EVERY, STEPS, main

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*there is no last checkpoint available.*"),
    # A checkpoint in the middle of an epoch: our loader goes on where it was, which Lightning cannot know.
    pytest.mark.filterwarnings("ignore:.*resuming from a checkpoint that ended before the epoch.*"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Weights and images of the run that nobody kills."""
    module, trainer = main(tmp_path_factory.mktemp("whole"))
    assert trainer.global_step == STEPS and len(module.seen) == STEPS
    return module


def start_and_kill(folder, line, *, after=0.0, **slow):
    """Start the run, wait until it says `line`, then `after` seconds more, and kill it. Returns the last step it began."""
    process = subprocess.Popen(
        [sys.executable, str(HELPERS / "run_to_kill.py"), str(folder)],
        env=environment(**slow),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    last = -1
    try:
        for told in process.stdout:
            if told.startswith("step"):
                last = int(told.split()[1])
            if told.strip() == line:
                break
        else:
            pytest.fail(f"the run ended without saying {line!r}")
        time.sleep(after)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -9
    return last


def check_goes_on(folder, whole, began):
    """Continue in `folder`: only the steps since the last checkpoint are repeated, and the end is the same to the bit."""
    module, trainer = main(folder)
    assert trainer.global_step == STEPS
    first = STEPS - len(module.seen)
    # A checkpoint comes after every fourth step; the step that was begun may have been finished before the kill.
    assert first % EVERY == 0 and began - EVERY <= first <= began + 1
    assert same(module.seen, whole.seen[first:])
    assert same(state(module)[:-1], state(whole)[:-1])


def test_one_kill(tmp_path, whole):
    """In the middle of a step, in the middle of the second epoch."""
    began = start_and_kill(tmp_path, "step 9", after=0.01, SLOW_STEP="0.05")
    assert began == 9
    check_goes_on(tmp_path, whole, began)


@pytest.mark.slow
@pytest.mark.parametrize("kill", range(7))
def test_kills_at_random_moments(tmp_path, whole, kill):
    """Wherever it falls: between steps, in a step, before the first checkpoint, at the end of an epoch."""
    dice = random.Random(kill)
    step, slow = dice.randrange(STEPS), 0.05
    began = start_and_kill(tmp_path, f"step {step}", after=dice.uniform(0, 0.1), SLOW_STEP=str(slow))
    check_goes_on(tmp_path, whole, began)


@pytest.mark.slow
@pytest.mark.parametrize("write", [1, 2, 5])
def test_killed_while_a_checkpoint_is_written(tmp_path, whole, write):
    """Lightning writes elsewhere and renames: half a checkpoint never stands under the name of the last one."""
    process = subprocess.Popen(
        [sys.executable, str(HELPERS / "run_to_kill.py"), str(tmp_path)],
        env=environment(SLOW_WRITE="0.5", TMPDIR=str(tmp_path.parent)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    began, writes = -1, 0
    for told in process.stdout:
        began = int(told.split()[1]) if told.startswith("step") else began
        writes += told.strip() == "saving"
        if writes == write:
            break
    process.kill()
    assert process.wait() == -9 and writes == write
    for path in tmp_path.glob("*.ckpt"):
        torch.load(path, weights_only=True)
    check_goes_on(tmp_path, whole, began)


def another_file_system(folder):
    """A folder for temporary files that cannot be renamed into `folder`."""
    shm = Path("/dev/shm")
    if not (shm.is_dir() and os.access(shm, os.W_OK)) or shm.stat().st_dev == folder.stat().st_dev:
        pytest.skip("needs a second file system")
    return shm


@pytest.mark.slow
def test_temporary_folder_on_another_file_system(tmp_path, whole):
    """Then Lightning copies instead of renaming, and a kill leaves half a last.ckpt (its own limit, not ours: keep TMPDIR on
    the file system of the checkpoints). The numbered checkpoint beside it was written first and is whole: go on from that."""
    with tempfile.TemporaryDirectory(dir=another_file_system(tmp_path)) as elsewhere:
        began = start_and_kill(tmp_path, "copying last.ckpt", SLOW_COPY="0.5", TMPDIR=elsewhere)
    with pytest.raises((OSError, RuntimeError)):  # what torch.load makes of half a file
        main(tmp_path)
    (tmp_path / "last.ckpt").unlink()
    (numbered,) = tmp_path.glob("epoch=*.ckpt")
    numbered.rename(tmp_path / "last.ckpt")
    check_goes_on(tmp_path, whole, began)
