"""A folder of class folders: which classes and files count."""

import pytest
from PIL import Image

from groupcam_aug.recipes.image_folder import ClassFolders, class_folders


@pytest.fixture
def root(tmp_path):
    for part in ("train", "val"):
        for name in ("ant", "bee"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("L", (9, 7), 50).save(tmp_path / part / name / "0.png")
    return tmp_path


def test_a_missing_folder_says_what_is_there(root):
    with pytest.raises(FileNotFoundError, match=r"'.*trian' is no folder; .* has train, val"):
        class_folders(root / "trian")


def test_the_argument_is_named_as_the_user_knows_it(root):
    with pytest.raises(FileNotFoundError, match="Give test a folder of class folders"):
        class_folders(root / "trian", "test")


def test_samples_are_rgb_in_the_order_of_the_names(root):
    (root / "train" / ".cache").mkdir()
    data = ClassFolders(root / "train", lambda image: image.mode)
    assert [data[i] for i in range(len(data))] == [("RGB", 0), ("RGB", 1)] and data.classes == ["ant", "bee"]


def test_what_is_no_image_is_counted(root):
    for name in ("ant/a.gif", "ant/b.txt", "bee/c.gif", "bee/noname"):
        (root / "train" / name).touch()
    Image.new("L", (9, 7)).save(root / "train" / "stray.png")
    Image.new("RGB", (9, 7)).save(root / "train" / "bee" / "1.jfif", "jpeg")
    (root / "train" / "ant" / "loop").symlink_to(root / "train" / "ant")
    told = "2 .gif, 1 image outside the class folders, 1 .txt, 1 link to a folder that is there already, 1 without a suffix"
    with pytest.warns(UserWarning, match=rf"passed over in '.*train': {told} \(read: .jpg"):
        data = ClassFolders(root / "train", lambda image: image.size)
    assert data.names == ["ant/0.png", "bee/0.png", "bee/1.jfif"] and data[2] == ((9, 7), 1)


def test_an_empty_class_says_what_it_holds(root):
    (root / "train" / "cat").mkdir()
    (root / "train" / "cat" / "a.heic").touch()
    with pytest.raises(ValueError, match=r"cat' holds no image \(.jpg, .*\) \(it has 1 .heic\); add images or delete"):
        ClassFolders(root / "train", lambda image: image)


@pytest.mark.parametrize(("link", "target"), [("cat", "ant"), ("zloop", "."), ("bee/inside", "ant")])
def test_two_classes_of_the_same_files_are_refused(root, link, target):
    """A class folder that is a link to another one, to the folder of all, or that has a link to another one."""
    (root / "train" / link).symlink_to(root / "train" / target)
    other = link.partition("/")[0]
    with pytest.raises(ValueError, match=rf"class folders 'ant' and '{other}' in .*train' hold the same files, those in .*ant'"):
        ClassFolders(root / "train", lambda image: image)


def test_masks_below_the_root_are_no_class(root):
    """Neither as a class of their own nor as images of the class folder that they lie in."""
    train = root / "train"
    for folder in ("masks/ant", "deep/masks/ant", "bee/masks/ant"):
        (train / folder).mkdir(parents=True)
        Image.new("L", (9, 7), 255).save(train / folder / "0.png")
    for masks, classes in (("masks", ["ant", "bee", "deep"]), ("deep/masks", ["ant", "bee", "masks"])):
        assert class_folders(train, masks=train / masks) == classes
        assert ClassFolders(train, lambda image: image, train / masks).classes == classes
    data = ClassFolders(train, lambda image: image, train / "bee" / "masks")
    assert data.classes == ["ant", "bee", "deep", "masks"] and "bee/masks/ant/0.png" not in data.names
