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
