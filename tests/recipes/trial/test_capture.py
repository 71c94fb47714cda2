import logging
import signal
import warnings
from types import SimpleNamespace

import pytest

from groupcam_aug.recipes.trial.capture import captured, interruptible


def test_warnings_are_kept_once_and_prints_go_to_the_log(tmp_path, capsys):
    with captured(tmp_path) as heard:
        heard.append("ours")
        print("printed")
        for text in ("one", "one", "two"):
            warnings.warn(text)
        warnings.warn("of a library", DeprecationWarning)
    assert heard == ["one", "two", "ours"] and capsys.readouterr().out == ""
    assert (tmp_path / "log.txt").read_text() == "printed\none\ntwo\nours\n"


def test_an_error_leaves_the_log_and_the_levels_of_loggers(tmp_path):
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    level = logger.level
    with pytest.raises(RuntimeError), captured(tmp_path):
        print("printed")
        raise RuntimeError
    assert (tmp_path / "log.txt").read_text() == "printed\n" and logger.level == level


def test_ctrl_c_stays_what_it_is_though_lightning_answers_with_an_exit():
    before = signal.getsignal(signal.SIGINT)

    def exits():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise SystemExit(1)

    with pytest.raises(KeyboardInterrupt):
        interruptible(SimpleNamespace(interrupted=True), exits)
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(SystemExit):
        interruptible(SimpleNamespace(interrupted=False), exits)
    with pytest.raises(KeyboardInterrupt):
        interruptible(SimpleNamespace(interrupted=True), lambda: None)
