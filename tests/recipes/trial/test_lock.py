import os
import signal
import subprocess
import sys

import pytest
from processes import HOLD, environment

from groupcam_aug.recipes.trial import lock
from groupcam_aug.recipes.trial.lock import locked


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock of `tmp_path / "out"`."""
    call = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    process = subprocess.Popen(call, env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_another_process_is_named_until_it_ends_however_that_is(other, tmp_path):
    with pytest.raises(FileExistsError, match=rf"another trial runs in .*out' \(pid {other.pid}\): wait for it"):
        with locked(tmp_path / "out"):
            pytest.fail("two at once")
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with locked(tmp_path / "out"):
        assert (tmp_path / "out" / ".trial.lock").read_text() == str(os.getpid())


def test_it_is_free_after_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with locked(tmp_path):
            raise KeyboardInterrupt
    with locked(tmp_path):
        pass


def test_a_link_is_not_written_through(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".trial.lock").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError):
        with locked(tmp_path):
            pass
    assert (tmp_path / "mine").read_text() == "mine"


def test_without_such_locks_the_file_is_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    with locked(tmp_path):
        with pytest.raises(FileExistsError, match=rf"pid {os.getpid()}\).*delete '.*\.trial\.lock' if that process is gone"):
            with locked(tmp_path):
                pass
    with locked(tmp_path):
        pass
