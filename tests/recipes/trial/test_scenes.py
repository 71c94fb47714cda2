import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from groupcam_aug.recipes.classifier import Classifier
from groupcam_aug.recipes.trial.scenes import CLASSES, Scenes, ScenesDataModule

NAMES = CLASSES[:3]


def red_of(part, label, i):
    """The red of a photograph says which one it is; its green says the class."""
    return (0 if part == "train" else 100) + 8 * i


@pytest.fixture
def root(tmp_path):
    for part, count in (("train", 10), ("test", 6)):
        for label, name in enumerate(NAMES):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                colour = (red_of(part, label, i), 60 * label, 250)
                Image.new("RGB", (32, 32), colour).save(tmp_path / part / name / f"{i:04d}.png")
    return tmp_path


def make(root, **options):
    return ScenesDataModule(str(root), **{"train": 12, "val": 6, "test": 12, "batch_size": 4, "seed": 0, "kinds": 3, **options})


def photographs(dataset):
    """Part-wide red, and class by green, of the photograph in each sample: the median colour of its mask."""
    images, labels, masks = dataset.tensors()
    colours = [image[:, mask].float().median(dim=1).values for image, mask in zip(images, masks, strict=True)]
    return [(round(float(c[0])), round(float(c[1]) / 60)) for c in colours], labels.tolist()


def test_samples_show_photographs_of_their_class_and_part(root):
    data = make(root)
    found, labels = photographs(data.train_set)
    assert labels == [i % 3 for i in range(12)] == [label for _, label in found]
    for label in range(3):
        reds = [red for red, other in found if other == label]
        assert len(set(reds)) == 4 and set(reds) <= {8 * i for i in range(8)}  # four fifths, each once
    reds = {red for red, _ in photographs(data.val_set)[0]}
    assert reds <= {64, 72}
    assert {red for red, _ in photographs(data.test_sets["rand"])[0]} <= {100 + 8 * i for i in range(6)}


def test_photographs_come_again_when_there_are_too_few(root):
    found, _ = photographs(make(root, train=60).train_set)
    for label in range(3):
        reds = sorted(red for red, other in found if other == label)
        assert len(reds) == 20 and set(reds) == {8 * i for i in range(8)} and max(map(reds.count, reds)) == 3


def test_only_what_is_needed_is_read(root):
    for part in ("train", "test"):
        (root / part / NAMES[2] / "0000.png").write_bytes(b"broken")
        (root / part / NAMES[0] / ".hidden.png").write_bytes(b"broken")
    make(root, kinds=2, train=40).train_set.tensors()
    with pytest.raises(OSError):
        make(root, train=30).train_set.tensors()


def families(data, split, rho, count=300, kinds=3):
    return Scenes(data, split, count, shortcut="texture", rho=rho, pixels=32, kinds=kinds, seed=0).families()


def test_rho_is_the_share_of_usual_scenes(root):
    labels = torch.arange(300) % 3
    for rho in (0.0, 0.6, 1.0):
        share = float((families(root, "train", rho) == labels).float().mean())
        assert abs(share - rho) < (0.08 if 0 < rho < 1 else 1e-9)
    anywhere = families(root, "test", None)
    assert abs(float((anywhere == labels).float().mean()) - 1 / 3) < 0.08 and set(anywhere.tolist()) == {0, 1, 2}
    other = families(root, "train", 0.0)
    assert {(int(a), int(b)) for a, b in zip(labels, other, strict=True)} == {
        (a, b) for a in range(3) for b in range(3) if a != b
    }


def test_test_sets_show_the_same_photographs_and_name_their_groups(root):
    data = make(root)
    same, rand = data.test_sets["same"], data.test_sets["rand"]
    assert photographs(same) == photographs(rand) and torch.equal(same.tensors()[2], rand.tensors()[2])
    found = Scenes(root, "test", 12, shortcut="texture", rho=None, pixels=48, kinds=3, seed=0).families().tolist()
    expected = [f"{NAMES[i % 3]} in {'its usual' if k == i % 3 else 'another'} scene" for i, k in enumerate(found)]
    assert rand.groups == expected and len(set(expected)) > 3
    for i, name in enumerate(rand.groups):  # what is drawn is what the group says
        assert torch.equal(same.tensors()[0][i], rand.tensors()[0][i]) == ("usual" in name)


def test_loaders_and_attributes(root):
    data = make(root, train=14)
    assert [len(labels) for _, labels in data.train_dataloader()] == [4, 4, 4]
    assert list(data.test_dataloader()) == ["same", "rand"] and len(data.predict_dataloader().dataset) == 24
    assert (data.num_classes, data.class_names, data.size) == (3, list(NAMES), 48)
    images = next(iter(data.val_dataloader()))[0]
    assert torch.allclose(images[0], (data.val_set.tensors()[0][0].float() / 255 - 0.5) / 0.25, atol=1e-6)


def test_masks_are_in_training_batches_only_and_change_no_image(root):
    def epoch(masks):
        torch.manual_seed(0)
        return list(make(root, masks=masks, shortcut="colour").train_dataloader())

    plain, masked = epoch(False), epoch(True)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(plain, masked, strict=True))
    assert masked[0][2].shape == (4, 48, 48) and masked[0][2].dtype == torch.bool and masked[0][2].any()
    assert len(next(iter(make(root, masks=True).test_dataloader()["same"]))) == 2


def test_only_colours_are_flipped_unless_asked(root):
    assert [make(root, shortcut=name).train_set.flip for name in ("texture", "colour")] == [False, True]
    assert make(root, flip=True).train_set.flip and not make(root, shortcut="colour", flip=False).train_set.flip


def test_everything_follows_from_the_seed_which_may_be_the_runs(root, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "4")
    state = torch.get_rng_state()
    run, four, other = (make(root, seed=seed).train_set.tensors()[0] for seed in (None, 4, 5))
    assert torch.equal(run, four) and not torch.equal(four, other) and torch.equal(state, torch.get_rng_state())


def test_a_classifier_trains_and_is_tested_on_both_sets(root, tmp_path):
    data = make(root, pixels=32)
    network = {"class_path": "groupcam_aug.recipes.networks.CIFARResNet", "init_args": {"depth": 8, "width": 4}}
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    module = Classifier(network, data.num_classes, schedule="cosine")
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    assert {"test/acc/same", "test/acc/rand", "test/loss/same", "test/loss/rand"} == set(trainer.callback_metrics)


def test_missing_and_wrong_files_are_named(root):
    with pytest.raises(FileNotFoundError, match="train/horse.* is no folder; give root="):
        make(root, kinds=5)
    Image.new("RGB", (40, 32)).save(root / "test" / NAMES[0] / "0000.png")
    with pytest.raises(ValueError, match="40 x 32 pixels"):
        make(root, test=18).test_sets["same"].tensors()
    for path in (root / "train" / NAMES[1]).iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=f"{NAMES[1]}' has 0 images"):
        make(root).train_set.tensors()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shortcut": "shape"}, "shortcut='shape'"),
        ({"rho": 1.1}, "rho=1.1"),
        ({"kinds": 11}, "kinds=11"),
        ({"pixels": 8}, "pixels=8"),
        ({"train": 3}, "train=3, batch_size=4"),
    ],
)
def test_wrong_arguments_are_refused(root, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(root, **arguments)
