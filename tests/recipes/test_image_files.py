"""Which files are images, and how one becomes 8-bit RGB."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groupcam_aug.recipes.image_files import BROKEN, as_rgb, find_images, images_in, is_image, open_rgb, shown, upright_size


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


def test_a_file_that_is_named_twice_is_there_once(folder):
    found = find_images(["in/a.png", "./in/a.png", str(folder / "in/a.png"), "in/b/../a.png", "in/b", "in/b/2.JPG"])
    assert [path.as_posix() for path in found] == ["in/a.png", "in/b/2.JPG"]


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


def corner(picture):
    """Which corner of the picture is red, the others blue, and its size."""
    pixels = np.asarray(picture).astype(int)
    red = [(y, x) for y in (0, -1) for x in (0, -1) if pixels[y, x, 0] > pixels[y, x, 2]]
    return red, picture.size


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "jfif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright_as_their_exif_says(tmp_path, orientation, suffix):
    """What a camera does: it stores the picture turned, and how a viewer turns it back."""
    scene = Image.new("RGB", (64, 32), (0, 0, 255))
    scene.paste((255, 0, 0), (0, 0, 24, 16))
    stored = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the turn that undoes the viewer's
    turned = scene.transpose(Image.Transpose(stored[orientation])) if orientation > 1 else scene
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned.save(tmp_path / f"a.{suffix}", format="jpeg" if suffix == "jfif" else None, exif=exif)
    assert corner(open_rgb(tmp_path / f"a.{suffix}")) == ([(0, 0)], (64, 32))
    assert upright_size(tmp_path / f"a.{suffix}") == (32, 64)


def test_sixteen_bits_are_turned_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.arange(6, dtype=np.uint16).reshape(2, 3) * 10_000).save(tmp_path / "a.png", exif=exif)
    assert open_rgb(tmp_path / "a.png").size == (2, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's
def test_damaged_exif_says_nothing_and_the_picture_is_read(tmp_path):
    Image.new("RGB", (6, 4), (9, 9, 9)).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xffnonsense")
    assert open_rgb(tmp_path / "a.jpg").size == (6, 4)
    Image.new("RGB", (6, 4)).save(tmp_path / "b.jpg", exif=b"Exif\x00\x00nonsense")
    assert open_rgb(tmp_path / "b.jpg").size == (6, 4)


@pytest.mark.parametrize(("size", "refused"), [((20_000, 2), True), ((2, 20_000), True), ((200, 2), False), ((1, 1), False)])
def test_absurd_shapes_are_refused_before_they_are_read(tmp_path, size, refused):
    Image.new("L", size).save(tmp_path / "a.png")
    if not refused:
        assert open_rgb(tmp_path / "a.png").size == size
        return
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} pixels, one side more than 100 times the other: crop it"):
        open_rgb(tmp_path / "a.png")


def test_pictures_of_other_kinds_are_counted(folder):
    for name in ("in/a.gif", "in/b/b.GIF", "in/c.avif", "in/d.jp2", "in/e.heic", "in/.hidden.gif", "in/table.csv"):
        Path(name).touch()
    Image.new("RGB", (4, 4)).save("in/f.jfif", "jpeg")
    with pytest.warns(UserWarning, match=r"passed over: 2 .gif, 1 .avif, 1 .jp2, 1 .heic \(read: .jpg, .* .jfif"):
        found = find_images(["in"], Path("in/out"))
    assert [path.name for path in found] == ["a.png", "2.JPG", "f.jfif"]
    Path("only").mkdir()
    Path("only/a.gif").touch()
    with pytest.raises(FileNotFoundError, match=r"'only' holds no image .*; passed over: 1 .gif"):
        find_images(["only"])


def test_links_are_followed_but_not_in_circles(folder, tmp_path_factory):
    """A loop, a link upwards, and two links to one place: every image once."""
    store = tmp_path_factory.mktemp("store")
    Image.new("RGB", (4, 4)).save(store / "far.png")
    (store / "back").symlink_to(folder / "in")
    for name, target in (("in/loop", "in"), ("in/b/up", "."), ("in/one", store), ("in/two", store), ("in/same", "in/b")):
        Path(name).symlink_to(Path(target).absolute())
    images, others = images_in(Path("in"))
    assert [path.as_posix() for path in images] == ["in/a.png", "in/b/2.JPG", "in/one/far.png", "in/out/drawn.png"]
    assert others == {"link to a folder that is there already": 5, ".txt": 1}
    with pytest.warns(UserWarning, match="passed over: 5 link to a folder that is there already"):
        find_images(["in"])
