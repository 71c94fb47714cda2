"""Which files are images, and how one becomes 8-bit RGB."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groupcam_aug.recipes.image_files import BROKEN, as_rgb, find_images, is_image, open_rgb, shown


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("in/b/2.JPG", "in/a.png", "in/b/.hidden/3.png", "in/.4.png", "in/notes.txt", "in/out/drawn.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(name, "png")
    return tmp_path


def test_folders_are_searched_in_order_but_for_hidden_parts_and_for_what_was_written(folder):
    found = [path.as_posix() for path in find_images(["in"])]
    assert found == ["in/a.png", "in/b/2.JPG", "in/out/drawn.png"]
    assert [path.as_posix() for path in find_images(["in"], Path("in/out"))] == ["in/a.png", "in/b/2.JPG"]
    assert [path.as_posix() for path in find_images(["in/notes.txt", "in/b"])] == ["in/notes.txt", "in/b/2.JPG"], (
        "files as they are"
    )


@pytest.mark.parametrize(
    ("paths", "out", "error", "message"),
    [
        (["nowhere"], None, FileNotFoundError, "'nowhere' is not there"),
        (["in/b/.hidden"], "in/b/.hidden", ValueError, "is the folder to write to"),
        (["empty"], None, FileNotFoundError, "'empty' holds no image"),
    ],
)
def test_what_cannot_be_found_is_said(folder, paths, out, error, message):
    Path("empty").mkdir()
    with pytest.raises(error, match=message):
        find_images(paths, None if out is None else Path(out))


def test_hidden_is_what_begins_with_a_dot_below_the_root():
    assert is_image("/data/.cache/set/a.PNG", Path("/data/.cache/set")) and not is_image("/data/.cache/set/a.png", Path("/data"))
    assert not is_image("/data/a.txt", Path("/data"))


def test_a_damaged_file_raises_what_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(BROKEN):
        open_rgb(tmp_path / "a.png")


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are UTF-8 there")
def test_names_that_are_not_utf_8_can_be_shown():
    assert shown(Path(os.fsdecode(b"caf\xe9.png"))) == "caf\ufffd.png" and shown(Path("café.png")) == "café.png"


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    ramp = np.linspace(0, 65535, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / f"ramp.{suffix}")
    with Image.open(tmp_path / f"ramp.{suffix}") as picture:
        found = np.asarray(as_rgb(picture))
    assert found.shape == (64, 64, 3) and found.dtype == np.uint8
    np.testing.assert_array_equal(found[..., 0], (ramp / 257).round())


@pytest.mark.parametrize(("dtype", "told"), [(np.float32, r"mode 'F' \(0 to 1\)"), (np.int32, r"mode 'I' \(0 to 1\)")])
def test_pixels_without_a_known_range_are_refused(tmp_path, dtype, told):
    Image.fromarray(np.linspace(0, 1, 64).reshape(8, 8).astype(dtype)).save(tmp_path / "odd.tiff")
    with Image.open(tmp_path / "odd.tiff") as picture, pytest.raises(ValueError, match=told):
        as_rgb(picture)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_modes_become_rgb(mode):
    assert as_rgb(Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode)).getpixel((0, 0)) == (255, 255, 255)
