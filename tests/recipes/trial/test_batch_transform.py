import pytest
import pytorch_lightning as pl
import torch
from lit import Fixed, Lit, fit

from groupcam_aug.callbacks import GroupCAMAugmentation
from groupcam_aug.recipes.trial.batch_transform import BatchTransform, random_erasing

CLASSES = 5


class Watching(Lit):
    """Remembers images and labels of each training step, and the global random state there."""

    def __init__(self):
        super().__init__()
        self.labels, self.states = [], []

    def training_step(self, batch, batch_idx):
        self.labels.append(self.read(batch)[1].clone())
        self.states.append(torch.get_rng_state())
        return super().training_step(batch, batch_idx)


class WatchingDict(Watching):
    def read(self, batch):
        return batch["picture"], batch["class"]


def batches(count=6, size=8):
    """Every pixel of image i of a batch is i + 1; its label i % 5."""
    images = torch.arange(1.0, size + 1).view(-1, 1, 1, 1).expand(size, 3, 20, 16).contiguous()
    return [[images.clone(), torch.arange(size) % CLASSES] for _ in range(count)]


def run(callback, module=None, data=None, **options):
    module = module or Watching()
    fit(module, [callback] if isinstance(callback, BatchTransform) else callback, Fixed(data or batches()), **options)
    return module


def is_whole(image):
    return bool((image == image[0, 0, 0]).all())


def test_cutmix_gives_a_rectangle_of_the_neighbour_and_labels_in_proportion():
    module = run(BatchTransform("cutmix", p=1.0, num_classes=CLASSES))
    shares = []
    for images, rows in zip(module.seen, module.labels, strict=True):
        assert rows.shape == (8, CLASSES) and rows.dtype == torch.float32
        for i in range(8):
            j = (i - 1) % 8
            foreign = (images[i, 0] != i + 1).float()
            assert torch.equal(images[i, 0] == j + 1, foreign.bool())
            at = foreign.nonzero()
            assert len(at) == 0 or foreign.sum() == ((at.amax(0) - at.amin(0)) + 1).prod()  # a rectangle
            expected = torch.zeros(CLASSES)
            expected[i % CLASSES] += 1 - foreign.mean()
            expected[j % CLASSES] += foreign.mean()
            assert torch.allclose(rows[i], expected, atol=1e-6)
        shares.append(float((images[0, 0] != 1).float().mean()))
    assert len(set(shares)) > 3  # another rectangle in every batch


def test_cutmix_takes_a_share_p_of_the_batches_and_leaves_the_others():
    module = run(BatchTransform("cutmix", p=0.5, num_classes=CLASSES), data=batches(60))
    hard = [labels.ndim == 1 for labels in module.labels]
    assert 18 <= sum(hard) <= 42
    for images, labels, left in zip(module.seen, module.labels, hard, strict=True):
        if left:
            assert all(map(is_whole, images)) and torch.equal(labels, torch.arange(8) % CLASSES)


def test_what_is_drawn_does_not_decide_how_much_is_taken():
    """With one stream of numbers for both, the second image's draw would also be the size of the first one's rectangle."""
    module = run(BatchTransform("erase", p=0.5, area=0.5), data=batches(300))
    areas = torch.stack([(images[:2] == 0).all(dim=1).float().mean(dim=(1, 2)) for images in module.seen])
    first, second = areas[areas[:, 0] > 0].unbind(1)
    assert abs(float(first[second > 0].mean() - first[second == 0].mean())) < 0.03


def test_soft_labels_are_mixed_as_they_are():
    rows = torch.eye(CLASSES)[torch.arange(8) % CLASSES] * 0.8 + 0.04
    module = run(BatchTransform("cutmix", p=1.0), data=[[batches(1)[0][0], rows]])
    share = (module.seen[0][0, 0] != 1).float().mean()
    assert torch.allclose(module.labels[0][0], rows[0] * (1 - share) + rows[7] * share, atol=1e-6)


@pytest.mark.parametrize("area", [0.05, 0.18, 0.5, 0.8])
def test_erasing_takes_the_mean_area_asked_for(area):
    torch.manual_seed(0)
    erasing = random_erasing(area, 32, 32)
    taken = torch.tensor([float((erasing(torch.ones(3, 32, 32))[0] == 0).float().mean()) for _ in range(600)])
    assert abs(float(taken.mean()) - area) < 0.01 and float(taken.min()) > 0


def test_half_of_the_images_are_erased_and_labels_stay():
    module = run(BatchTransform("erase", p=0.5, area=0.18), data=batches(40))
    images = torch.cat(module.seen)
    zero = (images == 0).all(dim=1).float().mean(dim=(1, 2))
    assert 0.4 < float((zero > 0).float().mean()) < 0.6
    assert abs(float(zero[zero > 0].mean()) - 0.18) < 0.015
    own = (torch.arange(320) % 8 + 1).view(-1, 1, 1, 1)
    assert bool(((images == own) | (images == 0)).all())
    assert all(torch.equal(labels, torch.arange(8) % CLASSES) for labels in module.labels)


@pytest.mark.parametrize("kind", ["cutmix", "erase"])
def test_global_random_numbers_and_the_users_batches_stay_as_they_are(kind):
    data = batches()
    plain, changed = run([], data=data), run(BatchTransform(kind, p=1.0, num_classes=CLASSES), data=data)
    assert all(torch.equal(a, b) for a, b in zip(plain.states, changed.states, strict=True))
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(data, batches(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(plain.seen, changed.seen, strict=True))


@pytest.mark.parametrize("kind", ["cutmix", "erase"])
def test_draws_follow_from_the_seed(kind):
    def seen(seed):
        return run(BatchTransform(kind, p=1.0, num_classes=CLASSES, seed=seed)).seen

    first, again, other = seen(1), seen(1), seen(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_epochs_before_the_start_are_untouched():
    module = run(BatchTransform("erase", p=1.0, start_epoch=2), data=batches(3), max_epochs=3)
    whole = [all(map(is_whole, images)) for images in module.seen]
    assert whole == [True] * 6 + [False] * 3


def test_only_training_batches_are_changed():
    callback = BatchTransform("erase", p=1.0)
    module = Watching()
    trainer = fit(module, [callback], Fixed(batches(2)), val=Fixed(batches(2)), num_sanity_val_steps=1)
    trainer.test(module, Fixed(batches(2)), verbose=False)
    assert len(module.evaluated) >= 4 and all(is_whole(image) for images in module.evaluated for image in images)


def test_batches_may_be_dicts():
    data = [{"class": labels, "picture": images, "name": ["x"] * 8} for images, labels in batches(3)]
    for callback in (
        BatchTransform("cutmix", p=1.0, image_key="picture", target_key="class", num_classes=CLASSES),
        BatchTransform("erase", p=1.0, image_key="picture", target_key=None),
    ):
        module = run(callback, WatchingDict(), data)
        assert all(not is_whole(images[i]) for images in module.seen for i in range(1, 8))
        assert {labels.ndim for labels in module.labels} == {2 if callback.kind == "cutmix" else 1}


@pytest.mark.parametrize("where", ["module", "data"])
def test_the_number_of_classes_comes_from_module_or_data(where):
    class Data(pl.LightningDataModule):
        num_classes = 7

        def train_dataloader(self):
            return Fixed(batches(2))

    module = Watching()
    count = 7
    if where == "module":
        count = module.num_classes = 6
    module.net.fc = torch.nn.Linear(8, count)
    fit(module, [BatchTransform("cutmix", p=1.0)], Data())
    assert module.labels[0].shape == (8, count)


def test_cutmix_without_a_number_of_classes_says_what_to_give():
    with pytest.raises(pl.utilities.exceptions.MisconfigurationException, match=r"BatchTransform\(num_classes="):
        run(BatchTransform("cutmix", p=0.0))


def test_cutmix_refuses_what_are_no_labels():
    data = [[images, torch.zeros(3, dtype=torch.int64)] for images, _ in batches(1)]
    with pytest.raises(pl.utilities.exceptions.MisconfigurationException, match=r"8 images; target_key=1 gives .*\(3,\)"):
        run(BatchTransform("cutmix", num_classes=CLASSES), data=data)


def test_it_works_beside_the_augmentation():
    """One after the other, in the order of the callbacks: what CutMix mixed is then blurred for its mixed labels."""
    cutmix = BatchTransform("cutmix", p=1.0, num_classes=CLASSES)
    both, mixed = run([cutmix, GroupCAMAugmentation(preset="fast", network="net", p=1.0, groups=4)]), run(cutmix)
    assert all(torch.equal(a, b) for a, b in zip(both.labels, mixed.labels, strict=True))
    assert not torch.equal(both.seen[0], mixed.seen[0])


def test_the_strategy_comes_back_after_the_fit_and_after_an_error():
    class Failing(Watching):
        def training_step(self, batch, batch_idx):
            raise ZeroDivisionError

    strategies = []

    class Keep(pl.Callback):
        def setup(self, trainer, pl_module, stage):
            strategies.append(trainer.strategy)
            assert "batch_to_device" in vars(trainer.strategy)

    callback = BatchTransform("erase")
    run([callback, Keep()])
    with pytest.raises(ZeroDivisionError):
        run([callback, Keep()], Failing())
    assert len(strategies) == 2 and not any("batch_to_device" in vars(strategy) for strategy in strategies)
    assert callback._fit is None


def test_a_batch_that_goes_another_way_is_an_error():
    class Bypass(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            trainer.strategy.batch_to_device = lambda batch, *args, **kwargs: batch

    with pytest.raises(pl.utilities.exceptions.MisconfigurationException, match="without passing BatchTransform"):
        run([BatchTransform("erase"), Bypass()])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "mixup"}, "kind must be one of .* got 'mixup'"),
        ({"kind": "erase", "p": 1.5}, "p must be a number from 0 to 1, got 1.5"),
        ({"kind": "erase", "area": 0.9}, "area must be .* got 0.9"),
        ({"kind": "cutmix", "alpha": 0}, "alpha must be a number above 0, got 0"),
        ({"kind": "erase", "start_epoch": -1}, "start_epoch must be .* got -1"),
        ({"kind": "cutmix", "num_classes": 1}, "num_classes must be .* at least 2 or None, got 1"),
        ({"kind": "cutmix", "target_key": None}, "give target_key"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BatchTransform(**arguments)


def test_it_shows_and_copies_its_arguments():
    import pickle

    callback = BatchTransform("erase", p=0.3)
    assert repr(callback) == "BatchTransform('erase', p=0.3)" and repr(pickle.loads(pickle.dumps(callback))) == repr(callback)
