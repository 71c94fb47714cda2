"""`groupcam-aug report`: which folder it takes, and what it says where there is none."""

import pytest
import records
from page import check

from groupcam_aug.recipes.cli import main


def test_the_command_writes_the_report_again(tmp_path, capsys):
    records.run(tmp_path / "runs" / "version_0" / "groupcam", epochs=1)
    folder = tmp_path / "runs" / "version_1" / "groupcam"
    records.run(folder, epochs=1, model="Newer")
    (folder.parent / "checkpoints").mkdir()
    (folder.parent / "checkpoints" / "last.ckpt").touch()
    for path in (folder, folder.parent, tmp_path / "runs", tmp_path, folder.parent / "checkpoints" / "last.ckpt"):
        assert main(["report", str(path)]) == 0
        assert str(folder) in capsys.readouterr().out
        check((folder / "report.html").read_text())
        (folder / "report.html").unlink()
    assert main(["report", str(folder), "--out", str(tmp_path / "new" / "page.html")]) == 0
    assert "Newer" in check((tmp_path / "new" / "page.html").read_text()).words() and not (folder / "report.html").exists()


def test_the_command_without_a_folder_takes_the_newest_run_here(tmp_path, monkeypatch, capsys):
    records.run(tmp_path / "lightning_logs" / "version_0" / "groupcam", epochs=1)
    monkeypatch.chdir(tmp_path)
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    assert main(["report", "--open"]) == 0
    assert opened == [(tmp_path / "lightning_logs/version_0/groupcam/report.html").as_uri()]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("lightning_lags", "did you mean 'lightning_logs'?"),
        ("lightning_logs/version_O", "did you mean 'version_0'?"),
        ("empty", "holds no records of a run"),
    ],
)
def test_the_command_says_what_is_missing(tmp_path, monkeypatch, capsys, path, expected):
    records.run(tmp_path / "lightning_logs" / "version_0" / "groupcam", epochs=1)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["report", path]) == 1
    error = capsys.readouterr().err
    assert expected in error and "Traceback" not in error


def test_the_command_names_a_broken_record(tmp_path, capsys):
    records.run(tmp_path / "groupcam", epochs=1)
    (tmp_path / "groupcam" / "monitor.json").write_text("[]")
    assert main(["report", str(tmp_path)]) == 1
    assert "monitor.json holds list" in capsys.readouterr().err
