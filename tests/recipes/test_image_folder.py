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
