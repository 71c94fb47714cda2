"""JSON lines and exchanged files: what a crash, a full disk or a second writer cannot spoil."""

import json
import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from groupcam_aug.files import add_line, put_file, read_lines, replacing


def test_lines_come_back_in_order_and_plain(tmp_path):
    add_line(tmp_path / "new", "run", {"epoch": 0, "loss": torch.tensor(0.5), "names": ("a", "ü"), "bad": float("nan")})
    add_line(
        tmp_path / "new", "run", {"epoch": 1, "loss": np.float32(0.25), "masks": torch.tensor([True, False]), 3: float("inf")}
    )
    assert read_lines(tmp_path / "new", "run") == [
        {"epoch": 0, "loss": 0.5, "names": ["a", "ü"], "bad": None},
        {"epoch": 1, "loss": 0.25, "masks": [True, False], "3": None},
    ]
    for line in (tmp_path / "new" / "run.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert read_lines(tmp_path, "absent") == []


def test_lines_of_several_writers_stay_whole(tmp_path):
    text = "x" * 100_000  # more than any buffer

    def write(writer):
        for number in range(20):
            add_line(tmp_path, "run", {"writer": writer, "number": number, "text": text})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    lines = read_lines(tmp_path, "run")
    assert sorted((line["writer"], line["number"]) for line in lines) == [(w, n) for w in range(4) for n in range(20)]


@pytest.mark.parametrize("torn", ['{"epoch": 2, "lo', '{"epoch": 2, "loss": 1}'[:-1], "\x00\x00\x00", '"text"', "[1, 2]", ""])
def test_a_torn_line_is_left_out_and_harms_no_other(tmp_path, torn):
    for epoch in range(2):
        add_line(tmp_path, "run", {"epoch": epoch})
    with (tmp_path / "run.jsonl").open("a") as file:
        file.write(torn)
    assert [line["epoch"] for line in read_lines(tmp_path, "run")] == [0, 1]
    add_line(tmp_path, "run", {"epoch": 2})  # the run goes on
    assert [line["epoch"] for line in read_lines(tmp_path, "run")] == [0, 1, 2]


def test_bytes_cut_within_a_letter_are_no_error(tmp_path):
    (tmp_path / "run.jsonl").write_bytes('{"epoch": 0}\n{"name": "Grün'.encode()[:-2])
    assert read_lines(tmp_path, "run") == [{"epoch": 0}]


def test_a_resumed_run_replaces_its_epochs_and_those_after(tmp_path):
    for epoch, value in [(0, "a"), (1, "a"), (2, "a"), (3, "a"), (1, "b"), (2, "b")]:
        add_line(tmp_path, "run", {"epoch": epoch, "value": value})
    assert [(line["epoch"], line["value"]) for line in read_lines(tmp_path, "run")] == [(0, "a"), (1, "b"), (2, "b")]
    add_line(tmp_path, "run", {"epoch": 0, "value": "c"})  # started anew in the same folder
    assert [(line["epoch"], line["value"]) for line in read_lines(tmp_path, "run")] == [(0, "c")]
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == 7, "nothing is deleted"


def test_lines_without_an_epoch_stay(tmp_path):
    for line in ({"epoch": 3}, {"told": "hello"}, {"epoch": 1}, {"epoch": None}):
        add_line(tmp_path, "run", line)
    assert read_lines(tmp_path, "run") == [{"epoch": 3}, {"told": "hello"}, {"epoch": 1}, {"epoch": None}]


def test_a_file_is_exchanged_whole(tmp_path, monkeypatch):
    put_file(tmp_path / "a", "b/c.txt", "old ü")
    assert (tmp_path / "a/b/c.txt").read_text(encoding="utf-8") == "old ü"
    with (tmp_path / "a/b/c.txt").open(encoding="utf-8") as reader:
        put_file(tmp_path / "a", "b/c.txt", b"\x00new")
        assert reader.read() == "old ü", "who was reading reads on in the old one"
    assert (tmp_path / "a/b/c.txt").read_bytes() == b"\x00new"

    def full(path, content):
        path.open("wb").close()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match=r"No space left on device: '.*/a/b/c\.txt'$"):
        patched.setattr(Path, "write_bytes", full)
        put_file(tmp_path / "a", "b/c.txt", b"newer")
    assert (tmp_path / "a/b/c.txt").read_bytes() == b"\x00new", "the old one stands"
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["c.txt"], "and nothing beside it"


def test_a_file_that_is_written_by_others_is_exchanged_whole(tmp_path):
    path = tmp_path / "deep" / ("x" * 200 + ".pt")
    with replacing(path) as part:
        part.write_text("old")
        assert not path.exists() and part.parent == path.parent
    with pytest.raises(RuntimeError), replacing(path) as part:
        part.write_text("half")
        raise RuntimeError("full")
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode == _new_file(tmp_path).stat().st_mode


def test_a_link_in_the_way_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "private").write_text("mine")
    (tmp_path / "page.html").symlink_to(tmp_path / "private")
    put_file(tmp_path, "page.html", "new")
    assert (tmp_path / "private").read_text() == "mine" and not (tmp_path / "page.html").is_symlink()


def _new_file(folder):
    (folder / "new").write_text("")
    return folder / "new"


def test_a_placed_link_is_not_followed(tmp_path, monkeypatch):
    """In a folder from elsewhere: under the name itself, under every name that could be foreseen, and as a folder."""
    folder, outside = tmp_path / "run", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "kept").write_text("private")
    for name in ("report.html", f".report.html.{os.getpid()}.part", ".report.html.part", "run.jsonl"):
        (folder / name).symlink_to(outside / "kept")
    (folder / "gallery").symlink_to(outside)
    put_file(folder, "report.html", "new")
    assert (folder / "report.html").read_text() == "new" and not (folder / "report.html").is_symlink()
    with pytest.raises(OSError, match=r"run\.jsonl' is a link"):
        add_line(folder, "run", {"epoch": 0})
    with pytest.raises(OSError, match="gallery' is a link that leaves the folder"):
        put_file(folder, "gallery/epoch.png", b"new")
    with pytest.raises(OSError, match=r"run\.jsonl' is a link that leaves the folder"):
        read_lines(folder, "run")
    assert (outside / "kept").read_text() == "private" and [path.name for path in outside.iterdir()] == ["kept"]
    monkeypatch.setattr(secrets, "token_hex", lambda size: "guessed")
    (folder / ".guessed.part").symlink_to(outside / "kept")
    with pytest.raises(FileExistsError):
        put_file(folder, "report.html", "newer")
    assert (outside / "kept").read_text() == "private"


def test_links_within_the_folder_and_to_it_are_followed(tmp_path):
    (tmp_path / "disk" / "run" / "a").mkdir(parents=True)
    (tmp_path / "logs").symlink_to(tmp_path / "disk" / "run")
    (tmp_path / "disk" / "run" / "b").symlink_to("a")
    put_file(tmp_path / "logs", "b/c.txt", "new")
    add_line(tmp_path / "logs", "run", {"epoch": 0})
    assert (tmp_path / "disk/run/a/c.txt").read_text() == "new" and read_lines(tmp_path / "logs", "run") == [{"epoch": 0}]


@pytest.mark.parametrize("epoch", ['"two"', "[1]", "null", "true", "{}"])
def test_an_epoch_that_is_no_number_replaces_nothing(tmp_path, epoch):
    (tmp_path / "run.jsonl").write_text(f'{{"epoch": 0}}\n{{"epoch": {epoch}}}\n{{"epoch": 1}}\n{"[" * 100_000}\n')
    assert [line["epoch"] for line in read_lines(tmp_path, "run")] == [0, json.loads(epoch), 1]
