import pytest
import pytorch_lightning as pl
import torch
from own_project import Mine, MyData, Squares
from torch.utils.data import DataLoader

from groupcam_aug.callbacks import GroupCAMAugmentation
from groupcam_aug.recipes.named_tests import run_tests
from groupcam_aug.recipes.trial.digests import digest_of
from groupcam_aug.recipes.trial.observers import ClassCounter, FitObserver


def trainer(tmp_path, *callbacks, **arguments):
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=list(callbacks),
        **{"max_epochs": 2, **arguments},
    )


def fitted(tmp_path, *callbacks, data=None, **arguments):
    pl.seed_everything(1, verbose=False)
    module = Mine()
    trainer(tmp_path, *callbacks, **arguments).fit(module, datamodule=data or MyData())
    return module


def test_observing_changes_nothing(tmp_path):
    with_it, without = fitted(tmp_path, FitObserver()), fitted(tmp_path)
    assert digest_of(with_it) == digest_of(without)
    assert digest_of(with_it) != digest_of(Mine())


def test_it_counts_steps_and_tells_how_far_it_is(tmp_path):
    said = []
    observer = FitObserver(said.append)
    fitted(tmp_path, observer)
    assert said == [i / 12 for i in range(1, 13)]  # 48 images in batches of 8, two epochs
    assert len(observer.seconds) == 12 and min(observer.seconds) > 0
    assert (observer.steps, observer.images, len(observer.losses)) == (6, 48, 6)


def test_the_digest_of_the_batches_is_that_of_what_was_fed_before_any_augmentation(tmp_path):
    plain, augmented, other = FitObserver(), FitObserver(), FitObserver()
    fitted(tmp_path, plain)
    fitted(tmp_path, augmented, GroupCAMAugmentation(preset="paper", image_key="image", target_key="label", groups=4))
    fitted(tmp_path, other, data=MyData(56))
    assert plain.batches == augmented.batches != other.batches
    assert plain.start == augmented.start and len(plain.start) == 16
    assert plain.data == augmented.data != other.data


def test_another_order_is_another_digest(tmp_path):
    class Shuffled(MyData):
        def train_dataloader(self):
            return DataLoader(self.train, 8, shuffle=True, generator=torch.Generator().manual_seed(5))

    one, two = FitObserver(), FitObserver()
    fitted(tmp_path, one)
    fitted(tmp_path, two, data=Shuffled())
    assert one.start == two.start and one.batches != two.batches


def test_it_leaves_the_line_after_an_error(tmp_path):
    observer = FitObserver()
    found = trainer(tmp_path, observer)
    with pytest.raises(RuntimeError, match="luck"):
        found.fit(Mine(fail_at=1), datamodule=MyData())
    assert "batch_to_device" not in vars(found.strategy)


def counted(tmp_path, module, data, **arguments):
    counter = ClassCounter(**{"image_key": "image", "target_key": "label", **arguments})
    run_tests(trainer(tmp_path, counter), module, data, before=lambda name, loader: counter.begin(loader), verbose=False)
    return counter


def test_accuracy_by_class_and_group(tmp_path):
    module = fitted(tmp_path)
    result = counted(tmp_path, module, MyData()).result(["red", "green", "blue"])
    data = Squares(30, 2)
    with torch.no_grad():
        right = module.eval()(data.images).argmax(1) == data.labels
    assert result["n"] == 30 and result["metrics"]["accuracy"] == pytest.approx(float(right.float().mean()))
    assert result["classes"] == {
        name: [int(right[data.labels == i].sum()), 10] for i, name in enumerate(("red", "green", "blue"))
    }
    assert result["groups"] == {"first": [int(right[:12].sum()), 12], "rest": [int(right[12:].sum()), 18]}
    shares = [count[0] / 10 for count in result["classes"].values()]
    assert result["metrics"]["mean_class_accuracy"] == pytest.approx(sum(shares) / 3)
    assert result["metrics"]["worst_class_accuracy"] == min(shares)
    assert result["metrics"]["worst_group_accuracy"] == min(a / n for a, n in result["groups"].values())


@pytest.mark.filterwarnings("ignore:.*sampler has shuffling enabled.*")
def test_groups_need_samples_in_order(tmp_path):
    class Shuffled(MyData):
        def test_dataloader(self):
            return DataLoader(self.test, 12, shuffle=True)

    result = counted(tmp_path, Mine(), Shuffled()).result(None)
    assert (
        result["groups"] == {} and "worst_group_accuracy" not in result["metrics"] and list(result["classes"]) == ["0", "1", "2"]
    )


class Given(MyData):
    """Labels of the test images as given."""

    def __init__(self, labels, images=None):
        super().__init__()
        self.given, self.images = labels, images

    def setup(self, stage):
        super().setup(stage)
        self.test.labels = torch.tensor(self.given)
        self.test.images = self.test.images[: len(self.given)] if self.images is None else self.images


@pytest.mark.parametrize("missing", [-1, -100])
def test_negative_labels_are_no_class(missing, tmp_path):
    counter = counted(tmp_path, Mine(), Given([missing] * 12 + [0, 1] * 9))
    result = counter.result(["red", "green", "blue"])
    assert result["n"] == 18 and result["unlabelled"] == 12 and set(result["classes"]) == {"red", "green"}
    assert result["metrics"]["accuracy"] == pytest.approx(sum(right for right, _ in result["classes"].values()) / 18)
    assert set(result["groups"]) == {"rest"} and result["groups"]["rest"][1] == 18, "the first twelve are the other group"
    nothing = counted(tmp_path, Mine(), Given([missing] * 30))
    assert "metrics" not in nothing.result(None) and "no label of 30 images" in nothing.problem


def test_classes_of_one_name_are_two(tmp_path):
    result = counted(tmp_path, Mine(), Given([0, 1, 2, 3] * 6)).result(["cat", "cat", "dog"])
    assert {name: n for name, (_, n) in result["classes"].items()} == {"cat (0)": 6, "cat (1)": 6, "dog": 6, "3": 6}


def test_a_network_that_diverged_has_no_accuracy(tmp_path):
    images = torch.randn(24, 3, 16, 16)
    images[20:] = float("nan")
    counter = counted(tmp_path, Mine(), Given([0, 1, 2] * 8, images))
    result = counter.result(None)
    assert result["not_finite"] == 4 and result["n"] == 24 and "metrics" not in result
    assert counter.problem == "the network's logits are not finite for 4 of 24 images: it diverged"


def test_minus_infinity_rules_classes_out(tmp_path):
    ruled_out = lambda logits: torch.cat([torch.full_like(logits[:, :1], -torch.inf), logits[:, 1:]], dim=1)  # noqa: E731
    result = counted(tmp_path, Mine(), MyData(), output=ruled_out).result(None)
    assert result["n"] == 30 and result["classes"]["0"][0] == 0


def test_the_digest_of_a_test_set_is_that_of_its_batches(tmp_path):
    class Changing(Mine):
        def test_step(self, batch, batch_idx):
            super().test_step(batch, batch_idx)
            batch["image"].normal_()

    def digest(module, data):
        return counted(tmp_path, module, data).result(None)["digest"]

    plain = digest(Mine(), MyData())
    assert plain == digest(Changing(), MyData()), "before the module does anything to them"
    assert len({plain, digest(Mine(), Given([1] * 30)), digest(Mine(), MyData(several=True))}) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_key": "picture"}, "'picture' is not in the batch"),
        ({"network": "spine"}, "no network 'spine'"),
        ({"network": "backbone"}, r"the network gives \(12, 16, 16, 16\)"),
        ({"preprocess": lambda images: images / 0 if images is None else images[:, :1]}, "RuntimeError"),
    ],
)
def test_what_cannot_be_counted_is_said_and_ends_nothing(arguments, message, tmp_path):
    counter = counted(tmp_path, Mine(), MyData(), **arguments)
    assert "metrics" not in counter.result(None)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(counter.problem)


def test_labels_that_are_no_class_index(tmp_path):
    counter = counted(tmp_path, Mine(), MyData(), target_key="image")
    assert "one class index per image" in counter.problem and "(12, 3, 16, 16)" in counter.problem
