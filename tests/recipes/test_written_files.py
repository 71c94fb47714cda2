"""Files of a command in a folder of the user's."""

import pytest

from groupcam_aug.recipes.written_files import WrittenFiles


def test_its_files_may_be_written_again_and_others_not(tmp_path):
    first = WrittenFiles(tmp_path / "out", "explained")
    first.check(["a.png", "b.png"])
    first.put("a.png", b"one")
    (tmp_path / "out" / "b.png").write_bytes(b"the user's")
    again = WrittenFiles(tmp_path / "out", "explained")
    again.check(["a.png", "c.png"])
    with pytest.raises(FileExistsError, match=r"b\.png' is there and would be overwritten: give another folder by --out"):
        again.check(["a.png", "b.png"])
    with pytest.raises(FileExistsError):
        WrittenFiles(tmp_path / "out", "other").check(["a.png"])


def test_what_the_user_changed_since_is_the_users(tmp_path):
    WrittenFiles(tmp_path, "explained").put("a.png", b"one")
    WrittenFiles(tmp_path, "explained").put("a.png", b"two")
    WrittenFiles(tmp_path, "explained").check(["a.png"])
    (tmp_path / "a.png").write_bytes(b"three")
    with pytest.raises(FileExistsError):
        WrittenFiles(tmp_path, "explained").check(["a.png"])


def test_a_link_is_none_of_its_files(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(FileExistsError):
        WrittenFiles(tmp_path, "explained").check(["a.png"])


def test_files_of_a_version_without_a_list_are_adopted_by_what_the_first_of_them_holds(tmp_path):
    names, shape = ("a.json", "a.png", "gone.png"), {"kind": str}
    for name, text in (("a.png", "x"), ("b.png", "x"), ("a.json", '{"other": 1}')):
        (tmp_path / name).write_text(text)
    files = WrittenFiles(tmp_path, "explained")
    for text in ('{"other": 1}', "no JSON", "[" * 100_000):
        (tmp_path / "a.json").write_text(text)
        files.adopt(names, shape)
        with pytest.raises(FileExistsError):
            files.check(["a.png"])
    (tmp_path / "a.json").write_text('{"kind": "ours"}')
    files.adopt(names, shape)
    files.check(names)
    with pytest.raises(FileExistsError):
        files.check(["b.png"])
    files.put("a.png", b"new")
    (tmp_path / "a.json").write_text('{"kind": "changed"}')
    again = WrittenFiles(tmp_path, "explained")
    again.adopt(names, shape)
    with pytest.raises(FileExistsError):
        again.check(["a.json"])  # there is a list now


def test_only_its_own_files_are_removed(tmp_path):
    files = WrittenFiles(tmp_path, "explained")
    files.put("a.png", b"one")
    (tmp_path / "b.png").write_bytes(b"the user's")
    files.remove("a.png")
    files.remove("never.png")
    with pytest.raises(FileExistsError):
        files.remove("b.png")
    assert (tmp_path / "b.png").read_bytes() == b"the user's" and not (tmp_path / "a.png").exists()
