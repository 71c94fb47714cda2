"""`groupcam-aug report`: which folder it takes, and what it says where there is none."""

import pytest
import records
from page import check
from PIL import Image

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


def test_the_command_names_a_broken_record_and_does_without(tmp_path, capsys):
    records.run(tmp_path / "groupcam", epochs=1)
    (tmp_path / "groupcam" / "monitor.json").write_text("[]")
    assert main(["report", str(tmp_path)]) == 1
    assert "left out: monitor.json holds list, not an object" in capsys.readouterr().err
    words = check((tmp_path / "groupcam" / "report.html").read_text()).words()
    assert "Finished: 1 epoch" in words and "monitor.json holds list" in words
    (tmp_path / "groupcam" / "run.json").unlink()
    (tmp_path / "groupcam" / "run.jsonl").unlink()
    assert main(["report", str(tmp_path)]) == 1
    assert "can be read: monitor.json holds list" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["monitor/probes.png", "monitor/epoch_00001.png", "gallery/epoch_00005.png"])
def test_a_private_picture_does_not_come_into_the_page(tmp_path, capsys, name):
    folder = tmp_path / "run" / "groupcam"
    records.full_run(folder)
    assert main(["report", str(folder)]) == 0
    private = tmp_path / "private.png"
    (folder / name).rename(private)
    (folder / name).symlink_to(private)
    before = (folder / "report.html").read_text()
    assert main(["report", str(folder)]) == 1
    said = capsys.readouterr()
    assert f"left out: {name} cannot be read: " in said.err and "is a link that leaves the folder" in said.err
    page = (folder / "report.html").read_text()
    assert len(page) < len(before) and f"{name} cannot be read" in page


def test_records_behind_a_link_are_not_read(tmp_path, capsys):
    records.full_run(tmp_path / "private" / "groupcam")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "groupcam").symlink_to(tmp_path / "private" / "groupcam")
    for path in (tmp_path / "run", tmp_path):
        (tmp_path / "private" / "groupcam" / "run.json").touch()
        assert main(["report", str(path), "--out", str(tmp_path / "page.html")]) == (1 if path.name == "run" else 0)
    assert "is a link that leaves the folder" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "private")]) == 0


@pytest.mark.parametrize("picture", [b"", b"no picture", "truncated", "huge"])
def test_a_damaged_picture_is_named(tmp_path, capsys, picture):
    records.full_run(tmp_path)
    path = tmp_path / "gallery" / "epoch_00005.png"
    if picture == "huge":
        Image.new("1", (20_000, 20_000)).save(path)
    else:
        path.write_bytes(path.read_bytes()[:2000] if picture == "truncated" else picture)
    assert main(["report", str(tmp_path)]) == 1
    assert "left out: gallery/epoch_00005.png cannot be read: " in capsys.readouterr().err
    assert "Samples of epoch 0" in check((tmp_path / "report.html").read_text()).words()


def test_names_steer_no_terminal(tmp_path, capsys):
    folder = tmp_path / "a\x1b[2J[/]b"
    records.run(folder, epochs=1)
    (folder / "monitor.json").write_text('{"shown": "\\u001b]0;x[/]"}')
    assert main(["report", str(folder)]) == 1
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err and "a\\x1b[2J[/]b" in said.out
    assert main(["report", str(tmp_path / "b\x1b[2J")]) == 1
    assert "\x1b" not in capsys.readouterr().err
