import shutil

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from groupcam_aug.recipes.data import ImageData, class_folders, eval_transform, stratified_split, train_transform


@pytest.fixture
def root(tmp_path):
    """train/ and val/ with three classes, five and two images each, of odd sizes, one of them grey."""
    for part, count in (("train", 5), ("val", 2)):
        for c, name in enumerate(("ant", "bee", "cat")):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                image = Image.new("RGB", (41 + i, 35), (80 * c, 10 * i, 0))
                (image.convert("L") if i == 1 else image).save(tmp_path / part / name / f"{i}.png")
    return tmp_path


def make(root, **options):
    return ImageData(str(root), **({"size": 32, "batch_size": 4, "num_workers": 0} | options))


def test_folder_with_train_and_val(root):
    data = make(root)
    assert data.class_names == ["ant", "bee", "cat"] and data.num_classes == 3 and data.size == 32
    batches = list(data.train_dataloader())
    assert [len(labels) for _, labels in batches] == [4, 4, 4, 3]
    assert batches[0][0].shape == (4, 3, 32, 32) and batches[0][0].dtype == torch.float32
    assert len(data.val_set) == len(data.test_set) == 6


def test_images_are_normalised_once(root):
    image = make(root, mean=(0.5, 0.5, 0.5), std=(0.1, 0.2, 0.5)).val_set[2][0]  # class bee, image 0: (80, 0, 0)
    expected = (torch.tensor([80 / 255, 0, 0]) - 0.5) / torch.tensor([0.1, 0.2, 0.5])
    assert torch.allclose(image.amax((1, 2)), expected, atol=1e-5)
    assert type(image) is torch.Tensor


def test_own_test_folder_is_used(root):
    shutil.copytree(root / "val", root / "test")
    (root / "test" / "ant" / "1.png").unlink()
    assert len(make(root).test_set) == 5


def test_held_out_split_is_stratified_seeded_and_disjoint(root):
    data = make(root / "train", val_fraction=0.4)
    kept, held_out = data.train_set.indices, data.val_set.indices
    assert sorted(kept + held_out) == list(range(15)) and len(held_out) == 6
    assert [data.val_set[i][1] for i in range(6)] == [0, 0, 1, 1, 2, 2]
    assert make(root / "train", val_fraction=0.4).val_set.indices == held_out
    assert make(root / "train", val_fraction=0.4, seed=1).val_set.indices != held_out


def test_every_class_keeps_and_lends_at_least_one():
    assert [len(part) for part in stratified_split([0, 0, 1, 1], 0.01, 0)] == [2, 2]
    assert [len(part) for part in stratified_split([0, 0, 1, 1], 0.99, 0)] == [2, 2]
    with pytest.raises(ValueError, match="one image"):
        stratified_split([0, 0, 1], 0.2, 0)


def test_hidden_folders_are_no_classes(root):
    (root / "train" / ".cache").mkdir()
    data = make(root)
    assert data.class_names == ["ant", "bee", "cat"] and data.train_set[14][1] == 2


def test_a_missing_folder_says_what_is_there(root):
    with pytest.raises(FileNotFoundError, match=r"'.*trian' is no folder; .* has train, val"):
        class_folders(root / "trian")


def test_a_folder_without_classes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no class folders"):
        make(tmp_path)


def test_an_empty_class_is_named(root):
    (root / "train" / "dog").mkdir()
    with pytest.raises(ValueError, match="dog' holds no image"):
        make(root)


def test_train_and_val_must_have_the_same_classes(root):
    shutil.move(root / "val" / "bee", root / "val" / "wasp")
    with pytest.raises(ValueError, match="only in train bee, only in val wasp"):
        make(root)


def test_val_without_train_is_refused(root):
    shutil.rmtree(root / "train")
    with pytest.raises(ValueError, match="no train/"):
        make(root)


def test_train_without_val_is_refused(root):
    shutil.rmtree(root / "val")
    with pytest.raises(FileNotFoundError, match=r"val' is no folder"):
        make(root)


@pytest.mark.parametrize("name", ["crop-resize", "pad-crop", "none"])
@pytest.mark.parametrize("image_size", [(20, 90), (224, 224), (63, 41)])
def test_train_transforms_give_the_size(name, image_size):
    assert train_transform(name, 48)(Image.new("RGB", image_size)).size == (48, 48)


def test_validation_takes_the_centre():
    image = Image.new("RGB", (512, 256))
    image.paste((255, 255, 255), (144, 16, 368, 240))  # the centre 224 after resizing the shorter side to 256
    assert all(low == 255 for low, _ in eval_transform(224)(image).getextrema())
    assert any(low == 0 for low, _ in eval_transform(224, 224)(image).getextrema())


def test_a_callable_may_be_the_train_transform(root):
    data = make(root, train_transform=v2.Resize((32, 32)))
    assert data.train_set[0][0].shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"size": 0}, "size=0"),
        ({"val_fraction": 1.0}, "val_fraction=1.0"),
        ({"train_transform": "crop"}, "crop-resize"),
        ({"resize": 16}, "resize=16 is smaller"),
        ({"dataset": "cifar11"}, "cifar10"),
        ({"dataset": "imagenet", "download": True}, "cannot be downloaded"),
    ],
)
def test_wrong_options_name_the_way_out(root, options, told):
    with pytest.raises(ValueError, match=told):
        make(root, **options)


@pytest.mark.parametrize("name", ["CIFAR10", "imagenette", "flowers102", "oxfordiiitpet", "imagenet"])
def test_a_torchvision_set_that_is_not_there_is_said(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"is not in root=.*(set download|give root)"):
        make(tmp_path, dataset=name)


def test_a_torchvision_set_is_read(tmp_path):
    for part in ("train", "val"):
        for wnid in ("n01440764", "n02102040", "n02979186", "n03000684", "n03028079"):
            folder = tmp_path / "imagenette2" / part / wnid
            folder.mkdir(parents=True)
            Image.new("RGB", (40, 40)).save(folder / f"{wnid}_0.JPEG")
    data = make(tmp_path, dataset="imagenette")
    assert data.num_classes == len(data.class_names) >= 5 and all(isinstance(name, str) for name in data.class_names)
    assert data.train_set[0][0].shape == (3, 32, 32)
