import shutil

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torchvision.transforms import v2

from groupcam_aug.recipes.data import ImageData
from groupcam_aug.recipes.epoch_order import EpochSampler


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


def test_what_is_held_out_is_said_when_a_training_begins(root, caplog):
    with caplog.at_level("INFO"):
        data = make(root / "train", val_fraction=0.4)
        data.setup("validate")
        assert not caplog.records
        data.setup("fit")
    counts = torch.bincount(torch.tensor([label for _, label in data.val_set])).tolist()
    each = ", ".join(f"{name} {count}" for name, count in zip(("ant", "bee", "cat"), counts))
    assert [record.getMessage() for record in caplog.records] == [
        f"validation: {sum(counts)} of 15 images, held out by their names ({each}). A class has so few that its accuracy says "
        "little: choose images yourself, in val/."
    ]
    caplog.clear()
    make(root).setup("fit")  # has val/
    assert not caplog.records


def test_of_many_classes_the_fewest_and_the_most_are_said(tmp_path, caplog):
    for c in range(13):
        (tmp_path / f"class {c}").mkdir()
        for i in range(20 + c):
            Image.new("L", (8, 8)).save(tmp_path / f"class {c}" / f"{i}.png")
    data = make(tmp_path, val_fraction=0.5)
    with caplog.at_level("INFO"):
        data.setup("fit")
    counts = torch.bincount(torch.tensor(data.val_set.dataset.targets)[data.val_set.indices]).tolist()
    told = caplog.records[0].getMessage()
    assert f"({min(counts)} to {max(counts)} a class)" in told and ("so few" in told) == (min(counts) < 5)


def test_held_out_split_is_stratified_seeded_and_disjoint(root):
    data = make(root / "train", val_fraction=0.4)
    kept, held_out = data.train_set.indices, data.val_set.indices
    assert sorted(kept + held_out) == list(range(15)) and 3 <= len(held_out) <= 12
    assert {label for _, label in data.val_set} == {label for _, label in data.train_set} == {0, 1, 2}
    assert make(root / "train", val_fraction=0.4).val_set.indices == held_out
    assert make(root / "train", val_fraction=0.4, seed=1).val_set.indices != held_out


def test_hidden_folders_are_no_classes(root):
    (root / "train" / ".cache").mkdir()
    data = make(root)
    assert data.class_names == ["ant", "bee", "cat"] and data.train_set[14][1] == 2


def test_a_folder_without_classes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no class folders"):
        make(tmp_path)


def test_an_empty_class_is_named(root):
    (root / "train" / "dog" / ".thumbnails").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(root / "train" / "dog" / ".thumbnails" / "0.png")
    with pytest.raises(ValueError, match="dog' holds no image"):
        make(root)


def test_a_linked_folder_of_images_counts(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("store")
    shutil.move(root / "train" / "cat", elsewhere / "cat")
    (root / "train" / "cat").mkdir()
    (root / "train" / "cat" / "more").symlink_to(elsewhere / "cat")
    assert len(make(root).train_set) == 15


def test_a_class_called_as_a_part_is_explained(tmp_path):
    for name in ("train", "bus"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 40)).save(tmp_path / name / "0.png")
    with pytest.raises(ValueError, match="a class cannot be called 'train'"):
        make(tmp_path)


@pytest.mark.parametrize("kind", ["torn", "float"])
def test_a_file_that_cannot_be_read_is_named_in_training(root, kind):
    path = root / "train" / "bee" / ("3.png" if kind == "torn" else "3.tif")
    if kind == "torn":
        path.write_bytes(path.read_bytes()[:60])
    else:
        Image.fromarray(np.ones((40, 40), np.float32)).save(path)
    with pytest.raises(ValueError, match=r"bee/3\.(png|tif)' cannot be read: "):
        list(make(root).train_dataloader())


def test_train_and_val_must_have_the_same_classes(root):
    shutil.move(root / "val" / "bee", root / "val" / "wasp")
    with pytest.raises(ValueError, match="only in train bee, only in val wasp"):
        make(root)


def test_val_without_train_is_refused(root):
    shutil.rmtree(root / "train")
    with pytest.raises(ValueError, match="no train/"):
        make(root)


def test_without_val_a_share_of_train_is_held_out(root):
    shutil.move(root / "val", root / "test")
    data = make(root, val_fraction=0.4)
    assert len(data.train_set) + len(data.val_set) == 15 and len(data.test_set) == 6
    assert isinstance(data.test_set, type(data.val_set.dataset)) and set(data.train_set.indices).isdisjoint(data.val_set.indices)


def test_a_test_folder_without_classes_is_no_hindrance_to_training(root):
    (root / "test" / ".ipynb_checkpoints").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(root / "test" / "unknown.png")
    data = make(root)
    assert len(list(data.val_dataloader())) == 2
    with pytest.raises(ValueError, match="test' has no class folders"):
        data.test_dataloader()


@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "validation")])
def test_parts_are_not_taken_for_classes(root, names):
    for old, new in zip(("train", "val"), names):
        shutil.move(root / old, root / f"{new}_")
        shutil.move(root / f"{new}_", root / new)
    if (root / "train").exists():
        pytest.skip("this file system does not tell Train from train")
    with pytest.raises(ValueError, match="which are no classes; name the parts train/, val/"):
        make(root)


@pytest.mark.parametrize("name", ["valid", "validation", "Val"])
def test_a_part_under_another_name_is_not_passed_over(root, name):
    shutil.move(root / "val", root / "v")
    shutil.move(root / "v", root / name)
    if (root / "val").exists():
        assert len(make(root).val_set) == 6  # this file system does not tell Val from val
        return
    with pytest.raises(ValueError, match=f"has {name} beside train/; name the parts"):
        make(root)


def test_statistics_may_be_arrays(root):
    data = make(root, mean=np.array([0.5, 0.5, 0.5]), std=np.array([0.2, 0.2, 0.2]))
    assert data.val_set[0][0].shape == (3, 32, 32)


def test_hidden_copies_are_no_images(root):
    copy = root / "train" / "ant" / ".ipynb_checkpoints"
    copy.mkdir()
    shutil.copy(root / "train" / "ant" / "0.png", copy)
    assert len(make(root).train_set) == 15


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


@pytest.fixture
def half(tmp_path):
    """One class of eight pictures with a white left half, one of black ones."""
    for name in ("left", "none"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(8):
            picture = np.zeros((40, 40, 3), np.uint8)
            picture[:, :20] = 255 * (name == "left")
            Image.fromarray(picture).save(tmp_path / "pictures" / name / f"{i}.png")
    return tmp_path / "pictures"


@pytest.mark.parametrize("size", [32, 96])
@pytest.mark.parametrize("parts", [False, True])
def test_training_images_are_augmented_and_others_are_not(half, tmp_path, size, parts):
    if parts:
        for name in ("train", "val"):
            shutil.copytree(half, tmp_path / "both" / name)
        half = tmp_path / "both"
    data = make(half, size=size, val_fraction=0.25)
    assert isinstance(data.train_dataloader().sampler, EpochSampler)
    assert isinstance(data.val_dataloader().sampler, torch.utils.data.SequentialSampler)
    white = [i for i in range(len(data.train_set)) if data.train_set[i][1] == 0]
    torch.manual_seed(0)
    seen = [data.train_set[i][0] for i in white for _ in range(4)]
    brighter = {bool(image[..., : size // 2].mean() > image[..., size // 2 :].mean()) for image in seen}
    assert brighter == {True, False}, "flips"
    assert len({image.numpy().tobytes() for image in seen}) > 2, "crops"
    for dataset in (data.val_set, data.test_set):
        for image, label in (dataset[i] for i in range(len(dataset))):
            if label == 0:
                assert image[..., : size // 2].mean() > image[..., size // 2 :].mean()
        assert torch.equal(dataset[0][0], dataset[0][0])
    resized = any(isinstance(step, v2.RandomResizedCrop) for step in data._train_transform.first.transforms)
    assert resized == (size > 64), "small images are padded and cropped, not resized"


@pytest.fixture
def several(root):
    """`root` with two more parts to test on: kept, of two images a class, and moved, of one."""
    shutil.copytree(root / "val", root / "test_kept")
    shutil.copytree(root / "val", root / "test_moved")
    for name in ("ant", "bee", "cat"):
        (root / "test_moved" / name / "0.png").unlink()
    return root


NAMED = {"kept": "test_kept", "moved": "test_moved"}


def test_several_test_folders_by_name(several):
    data = make(several, test=NAMED)
    assert {name: len(dataset) for name, dataset in data.test_sets.items()} == {"kept": 6, "moved": 3}
    loaders = data.test_dataloader()
    assert [*loaders] == ["kept", "moved"] and [len(loader.dataset) for loader in loaders.values()] == [6, 3]
    assert torch.cat([labels for _, labels in data.predict_dataloader()]).tolist() == [0, 0, 1, 1, 2, 2, 0, 1, 2]
    assert torch.equal(data.test_sets["kept"][0][0], data.val_set[0][0]), "not augmented"


def test_the_trainer_tests_each_folder(several):
    class Counts(pl.LightningModule):
        def test_step(self, batch, batch_idx, dataloader_idx=0):
            self.log("images", float(len(batch[1])), reduce_fx="sum")

    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    kept, moved = pl.Trainer(**options).test(Counts(), datamodule=make(several, test=NAMED), verbose=False)
    assert kept == {"images/dataloader_idx_0": 6.0} and moved == {"images/dataloader_idx_1": 3.0}


@pytest.mark.parametrize("absolute", [False, True])
def test_one_test_folder_without_a_name_is_one_loader(several, absolute):
    data = make(several, test=str(several / "test_moved") if absolute else "test_moved")
    assert [*data.test_sets] == ["test"] and len(data.test_dataloader().dataset) == 3
    assert isinstance(make(several, test={"only": "test_moved"}).test_dataloader(), dict), "a name asked for is given"


def test_the_test_folder_replaces_test_and_may_have_its_name(several):
    (several / "test" / "nothing").mkdir(parents=True)
    (several / "test_kept").rename(several / "testing")
    assert len(make(several, test="testing").test_set) == 6


def test_unnamed_test_sets_are_those_of_today(root):
    data = make(root)
    assert data.test_sets == {"test": data.val_set} and data.test_set is data.val_set


def test_test_folders_must_be_there_and_have_the_classes_of_the_training(several):
    with pytest.raises(FileNotFoundError, match="is no folder; .* Give test a folder"):
        make(several, test="nowhere")
    shutil.move(several / "test_moved" / "bee", several / "test_moved" / "wasp")
    with pytest.raises(ValueError, match="test_moved/ and train/ in .*only in train bee, only in test_moved wasp"):
        make(several, test=NAMED)
    with pytest.raises(ValueError, match="names no folder"):
        make(several, test={})


@pytest.mark.parametrize("name", ["test", "masks", "groups"])
def test_folders_do_not_go_with_a_torchvision_set(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} go with folders in root, not with dataset='cifar10'"):
        make(tmp_path, dataset="cifar10", **{name: "somewhere"})


@pytest.fixture
def masked(root):
    """`root` with masks of what is red in the images of bee, and none of ant."""
    for part in ("train", "val"):
        for i in range(5 if part == "train" else 2):
            for name in ("bee", "cat"):
                (root / "masks" / part / name).mkdir(parents=True, exist_ok=True)
                mask = np.zeros((35, 41 + i), bool)
                mask[:, :20] = True
                Image.fromarray(mask).save(root / "masks" / part / name / f"{i}.png")
    return root


@pytest.mark.parametrize("size", [32, 80])
def test_training_batches_hold_masks_and_the_same_images(masked, size):
    batches = []
    for masks in (None, "masks", str(masked / "masks")):
        torch.manual_seed(3)
        data = make(masked, size=size, masks=masks)
        batches.append([*data.train_dataloader(), *data.train_dataloader()])
    plain, *with_masks = batches
    for found in with_masks:
        for (x, y), (images, labels, drawn) in zip(plain, found, strict=True):
            assert torch.equal(x, images) and torch.equal(y, labels)
            assert drawn.shape == (len(x), size, size) and drawn.dtype == torch.bool
    labels, drawn = (torch.cat([batch[i] for batch in with_masks[0]]) for i in (1, 2))
    assert not drawn[labels == 0].any() and drawn[labels == 1].flatten(1).any(1).float().mean() > 0.7
    assert all(len(batch) == 2 for batch in [*data.val_dataloader(), *data.test_dataloader()])


def test_masks_lie_relative_to_root_where_classes_do(masked):
    shutil.move(masked / "masks" / "train", masked / "elsewhere")
    data = make(masked / "train", masks=str(masked / "elsewhere"), val_fraction=0.4)
    assert len(data.train_set[0]) == 3 and len(data.val_set[0]) == 2 and any(mask.any() for *_, mask in data.train_set)


def test_masks_below_a_root_of_classes_are_no_class(masked):
    shutil.move(masked / "masks" / "train", masked / "train" / "masks")
    data = make(masked / "train", masks="masks", test=".")
    assert data.class_names == ["ant", "bee", "cat"] and len(data.train_set) + len(data.val_set) == len(data.test_set) == 15


def test_masks_of_no_image_and_transforms_of_images_alone_are_refused(masked):
    with pytest.raises(ValueError, match="mask' holds the mask of no training image"):
        make(masked, masks="mask")
    with pytest.raises(TypeError, match="takes an image alone, but there are masks"):
        make(masked, masks="masks", train_transform=lambda image: image)


def test_so_many_of_each_class_after_the_held_out_split(root):
    whole = make(root / "train", val_fraction=0.4)
    data = make(root / "train", val_fraction=0.4, per_class=1)
    assert data.val_set.indices == whole.val_set.indices and set(data.train_set.indices) < set(whole.train_set.indices)
    assert [data.train_set[i][1] for i in range(3)] == [0, 1, 2]
    assert [make(root, per_class=2).train_set[i][1] for i in range(6)] == [0, 0, 1, 1, 2, 2]
    assert make(root, per_class=2, seed=1).train_set.indices != make(root, per_class=2).train_set.indices
    with pytest.raises(ValueError, match="has 5 training images, fewer than per_class=6"):
        make(root, per_class=6)
    with pytest.raises(ValueError, match="per_class must be at least 1, got 0"):
        make(root, per_class=0)


def test_the_seed_may_be_that_of_the_run(root, monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert make(root, seed=None).seed == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    data = make(root / "train", val_fraction=0.4, seed=None)
    assert data.val_set.indices == make(root / "train", val_fraction=0.4, seed=5).val_set.indices
    assert data.state_dict()["seed"] == 5, "a test from the checkpoint holds out the same"
    assert make(root).seed == 0


def test_groups_of_the_test_images_in_their_order(several):
    lines = [f"{part}/{name}/{i}.png,{part[5:]}{i}" for part in NAMED.values() for name in ("ant", "bee", "cat") for i in (1, 0)]
    (several / "index.csv").write_text("\n".join(["file,place", *lines]))
    data = make(several, test=NAMED, groups="index.csv", group_column="place")
    assert data.test_sets["kept"].groups[:3] == ["ant, kept0", "ant, kept1", "bee, kept0"]
    assert data.test_sets["moved"].groups == ["ant, moved1", "bee, moved1", "cat, moved1"]
    with pytest.raises(ValueError, match="'val/ant/0.png' is tested on, but"):
        make(several, groups="index.csv", group_column="place")


def test_groups_of_held_out_images_are_those_of_their_files(root):
    lines = [f"{name}/{i}.png,{i}" for name in ("ant", "bee", "cat") for i in range(5)]
    (root / "index.csv").write_text("\n".join(["file,group", *lines]))
    data = make(root / "train", groups=str(root / "index.csv"), val_fraction=0.4)
    files = [data.val_set.dataset.samples[i][0] for i in data.val_set.indices]
    assert data.test_set.groups == [f"{file.split('/')[-2]}, {file[-5]}" for file in files]


@pytest.mark.parametrize(("name", "table"), [("bar", None), ("clothing_bg", "index.csv")])
def test_real_photographs_with_masks(name, table, data_folder, tmp_path):
    shutil.unpack_archive(data_folder / f"{name}.zip", tmp_path)
    folder = tmp_path / name
    test = {"kept": "test_kept", "shifted": "test_shift"}
    data = make(folder, size=96, test=test, masks="masks", groups=table, group_column="background", per_class=10)
    images, labels, masks = next(iter(data.train_dataloader()))
    assert images.shape == (4, 3, 96, 96) and masks.shape == (4, 96, 96)
    assert 0.02 < torch.stack([mask for *_, mask in data.train_set]).float().mean() < 0.8
    assert [len(part) for part in data.test_sets.values()] == ([388, 654] if name == "bar" else [152, 720])
    if table:
        assert all(", " in group for part in data.test_sets.values() for group in part.groups)
