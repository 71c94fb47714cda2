"""Which images are watched: given, drawn from the validation data, or taken from the first batch."""

import random

import numpy as np
import pytest
import torch
from lit import Fixed
from monitoring import Learner, Plain, batches, textures, watched
from pytorch_lightning import LightningDataModule
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import CombinedLoader
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

from groupcam_aug.callbacks import SaliencyMonitor
from groupcam_aug.callbacks.monitoring.probe_choice import stratified
from groupcam_aug.callbacks.monitoring.probes import Probes


class Taken(SaliencyMonitor):
    """Keeps the probes for the test to look at."""

    def _begin(self, *args):
        super()._begin(*args)
        if self._session is not None:
            self.taken = self._session.mapper.probes


def probes(tmp_path, val=False, module=None, train=None, num_sanity_val_steps=1, **settings):
    monitor = Taken(**{"num_images": 6, **settings})
    watched(tmp_path, module, monitor, val=val, train=train, max_epochs=1, num_sanity_val_steps=num_sanity_val_steps)
    return monitor.taken


def labelled(count=40, classes=4):
    """Images that tell their index: (count, 3, 16, 16) and labels, rising."""
    noise = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)) / 2
    images = torch.arange(count, dtype=torch.float32)[:, None, None, None] + noise
    return images, torch.arange(count) * classes // count


def indices(found):
    return found.images[:, 0, 0, 0].long().tolist()


class Quiet(Dataset):
    """Does not tell its labels beforehand; counts what is read, and draws from every random state when it is read."""

    def __init__(self, count=40, classes=4):
        self.images, self.classes = *labelled(count, classes)[:1], labelled(count, classes)[1]
        self.read = []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        self.read.append(int(i))
        noise = torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002
        return self.images[i] + 0.001 * noise, self.classes[i]


class Ignoring(Quiet):
    """Tells its labels only with its images; some are -100."""

    def __init__(self, labels):
        super().__init__()
        self.classes = labels


class Telling(Quiet):
    def __init__(self, count=40, classes=4):
        super().__init__(count, classes)
        self.targets = self.classes.tolist()


@pytest.mark.parametrize(
    "make",
    [
        lambda: TensorDataset(*labelled()),
        Telling,
        lambda: Quiet(20),  # all of it is loaded: 4 candidates a probe
        lambda: Subset(Telling(), range(40)),
        lambda: ConcatDataset([Telling(), Telling()]),
    ],
)
def test_as_many_of_each_class_as_can_be(tmp_path, make):
    found = probes(tmp_path, DataLoader(make(), 4), num_images=8)
    assert sorted(found.labels.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert torch.equal(probes(tmp_path, DataLoader(make(), 4), num_images=8).images, found.images), "the same in every run"
    assert not torch.equal(probes(tmp_path, DataLoader(make(), 4), num_images=8, seed=1).images, found.images)


def test_only_the_probes_are_loaded_where_labels_are_known_and_a_few_more_where_not(tmp_path):
    known, unknown, unasked = Telling(1000), Quiet(1000), Quiet(1000)
    for dataset, settings in ((known, {}), (unknown, {}), (unasked, {"target_key": None})):
        loader = DataLoader(dataset, 500)
        monitor = SaliencyMonitor(num_images=8, **settings)
        watched(tmp_path, monitor=monitor, val=loader, max_epochs=1, num_sanity_val_steps=0, limit_val_batches=1)
        before_validation = dataset.read[: -len(range(500))]
        assert len(before_validation) == {known: 8, unknown: 32, unasked: 8}[dataset]
        assert len(set(before_validation)) == len(before_validation) and max(before_validation) > 500


def test_drawing_leaves_random_numbers_alone_and_does_not_depend_on_them(tmp_path):
    def run(monitor, seed):
        random.seed(seed), np.random.seed(seed)  # noqa: NPY002
        options = {"val": DataLoader(Quiet(), 4), "max_epochs": 1, "limit_val_batches": 1, "num_sanity_val_steps": 0}
        watched(tmp_path, Learner(), monitor, seed=seed, **options)
        return torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    first, second = Taken(num_images=6), Taken(num_images=6)
    plain, with_it = run(False, 3), run(first, 3)
    assert torch.equal(plain[0], with_it[0]) and plain[1:] == with_it[1:]
    run(second, 4)
    assert torch.equal(first.taken.images, second.taken.images), "random transforms too"


def test_no_loader_is_iterated(tmp_path):
    class Once(DataLoader):
        rounds = 0

        def __iter__(self):
            type(self).rounds += 1
            return super().__iter__()

    probes(tmp_path, Once(TensorDataset(*labelled()), 4))
    assert Once.rounds == 2, "Lightning's own: sanity check and validation"


def test_before_training_even_without_a_sanity_check(tmp_path):
    monitor = Taken(num_images=6)
    watched(tmp_path, monitor=monitor, num_sanity_val_steps=0, max_epochs=2)
    assert [entry["epoch"] for entry in monitor.history] == [0, 1] and "the validation data" in monitor.taken.origin


@pytest.mark.parametrize("sanity", [1, 0])
def test_validation_data_serve_although_no_epoch_needs_them_yet(tmp_path, sanity):
    monitor, loader = Taken(num_images=6), DataLoader(TensorDataset(*labelled()), 4)
    watched(tmp_path, monitor=monitor, val=loader, check_val_every_n_epoch=3, num_sanity_val_steps=sanity, max_epochs=2)
    assert "the validation data" in monitor.taken.origin and [entry["epoch"] for entry in monitor.history] == [0, 1]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("sanity", [1, 0])
def test_a_resumed_run_goes_on_with_the_same_probes_where_validation_is_rare(tmp_path, sanity):
    def make():
        return Taken(num_images=6, target_key=None)

    settings = {"check_val_every_n_epoch": 2, "max_epochs": 6}
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=True)
    whole, _ = watched(tmp_path, monitor=make(), after=[saver], enable_checkpointing=True, **settings)
    resume = {"ckpt_path": tmp_path / "epoch=1.ckpt", "num_sanity_val_steps": sanity}
    again, _ = watched(tmp_path, Learner(seed=9), make(), **resume, **settings)
    assert again.fingerprint == whole.fingerprint and torch.equal(again.taken.images, whole.taken.images)
    assert torch.equal(again._state.targets, whole._state.targets)
    assert again.history == whole.history and [entry["epoch"] for entry in again.history] == [*range(6)]


def test_a_sampler_says_which_samples_are_the_validation_data(tmp_path):
    shared = TensorDataset(*labelled())
    found = probes(tmp_path, DataLoader(shared, 4, sampler=SubsetRandomSampler(range(30, 40))))
    assert set(indices(found)) <= set(range(30, 40)) and len(found) == 6


def test_the_first_loader_that_can_be_used(tmp_path):
    class Endless(IterableDataset):
        def __iter__(self):
            yield from zip(*textures(4))

    loaders = [DataLoader(Endless(), 2), DataLoader(TensorDataset(*labelled()), 4)]

    class Two(Learner):
        def validation_step(self, batch, batch_idx, dataloader_idx):
            pass

    assert "TensorDataset" in probes(tmp_path, loaders, Two()).origin


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_loaders_may_lie_in_mappings_and_lists_of_each_other(tmp_path):
    class Mixed(Learner):
        def training_step(self, batch, batch_idx):
            return None if batch["few"] is None else super().training_step(batch["few"], batch_idx)

        def validation_step(self, batch, batch_idx):
            pass

    few = DataLoader(TensorDataset(*labelled()), 4)
    nested = CombinedLoader({"many": [DataLoader(Stream(), 4)], "few": few}, "max_size")
    assert "TensorDataset" in probes(tmp_path, nested, Mixed(), {"few": batches(4), "many": batches(12)}).origin
    train = CombinedLoader({"few": batches(4), "many": batches(12)}, "max_size")  # None after the first batch
    found = probes(tmp_path, False, Mixed(), train, image_key=["few", 0], target_key=["few", 1])
    assert torch.equal(found.images, textures(4)[0])
    with pytest.raises(
        MisconfigurationException, match=r"'few' is not in .*Probes come from the validation data \(TensorDataset\)"
    ):
        probes(tmp_path, few, Mixed(), {"few": batches(4), "many": batches(12)}, image_key=["few", 0])


def test_images_labelled_as_to_be_ignored_are_no_probes(tmp_path):
    images, labels = labelled()
    labels[::2] = -100
    for dataset in (TensorDataset(images, labels), Subset(TensorDataset(images, labels), range(40)), Ignoring(labels)):
        found = probes(tmp_path, DataLoader(dataset, 4), num_images=8)
        assert sorted(found.labels.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3] and all(i % 2 for i in indices(found))
    labels[:] = -100
    assert probes(tmp_path, DataLoader(TensorDataset(images, labels), 4)).labels is None, "the network's own first choice"


@pytest.mark.filterwarnings("ignore:train_dataloader yielded None", "ignore:`training_step` returned `None`")
def test_batches_of_none_are_waited_through(tmp_path):
    class Skipping(Learner):
        def training_step(self, batch, batch_idx):
            return None if batch is None else super().training_step(batch, batch_idx)

    found = probes(tmp_path, False, Skipping(), Fixed([None, *batches(8)]))
    assert torch.equal(found.images, textures(8)[0][:4])


def test_batches_of_another_shape_go_through_the_loaders_own_collate(tmp_path):
    def collate(samples):
        images, labels = zip(*samples)
        return {"picture": {"rgb": torch.stack(images)}, "label": torch.stack(labels), "names": ["x"] * len(labels)}

    class Keyed(Learner):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch["picture"]["rgb"], batch["label"]), batch_idx)

        def validation_step(self, batch, batch_idx):
            pass

    val = DataLoader(TensorDataset(*labelled()), 4, collate_fn=collate)
    train = DataLoader(TensorDataset(*textures(8)), 4, collate_fn=collate)
    found = probes(tmp_path, val, Keyed(), train, image_key=["picture", "rgb"], target_key="label")
    assert len(found) == 6 and len(set(found.labels.tolist())) == 4


def test_probes_meet_the_modules_transfer_hooks_as_validation_batches_do(tmp_path):
    class Hooked(Learner):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            stage = "training" if self.trainer.training else "validating" if self.trainer.validating else "checking"
            stages.append(stage)
            return [batch[0] + {"training": 100, "validating": 1000, "checking": 0}[stage], batch[1]]

    stages = []
    images = probes(tmp_path, DataLoader(TensorDataset(*labelled()), 40), Hooked()).images
    assert (images >= 1000).all()
    assert stages == ["checking", "validating", *["training"] * 3, "validating"], "the second are the probes"


@pytest.mark.filterwarnings("ignore:You have overridden `on_before_batch_transfer`")
def test_a_data_modules_own_hooks_come_before_the_modules(tmp_path):
    class Hooked(Learner):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return [batch[0] + 100, batch[1]]

    class Data(LightningDataModule):
        def train_dataloader(self):
            return batches()

        def val_dataloader(self):
            return DataLoader(TensorDataset(*labelled()), 40)

    class Hooking(Data):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            assert self.trainer.training != self.trainer.validating
            return [batch[0] + 1000, batch[1]]

    for data, least in ((Hooking(), 1000), (Data(), 100)):
        found = probes(tmp_path, train=data, module=Hooked(), num_sanity_val_steps=0)
        assert least <= found.images.min() and found.images.max() < least + 100


def test_half_precision_batches_become_half_precision_probes(tmp_path):
    monitor = Taken(num_images=6)
    watched(tmp_path, monitor=monitor, val=DataLoader(TensorDataset(*labelled()), 4), precision="bf16-true", max_epochs=1)
    assert monitor.taken.images.dtype == torch.bfloat16 and len(monitor.taken.fingerprint()) == 64
    images, labels = textures(4)
    given, _ = watched(tmp_path, monitor=SaliencyMonitor(images=images, labels=labels), precision="bf16-true", max_epochs=1)
    assert given.history[0]["alive"] > 0


class Named(Learner):
    def training_step(self, batch, batch_idx):
        return super().training_step((batch["image"], batch["label"]), batch_idx)

    def validation_step(self, batch, batch_idx):
        pass


# Without validation data


class Stream(IterableDataset):
    def __init__(self):
        self.images, self.labels = textures(12, seed=5)

    def __iter__(self):
        yield from zip(self.images, self.labels)


class Batched(Dataset):
    """Items that are batches already."""

    def __len__(self):
        return 2

    def __getitem__(self, i):
        return [part[4 * i : 4 * i + 4] for part in textures(8)]


@pytest.mark.parametrize("val", [False, lambda: DataLoader(Stream(), 4), lambda: DataLoader(Batched(), None)])
def test_otherwise_the_first_training_batch_and_it_is_said(tmp_path, val, caplog):
    with caplog.at_level("INFO"):
        found = probes(tmp_path, val and val(), train=DataLoader(Stream(), 5), num_images=4)
    assert torch.equal(found.images, Stream().images[:4]) and torch.equal(found.labels, Stream().labels[:4])
    assert any("of 4 probes from the first training batch, as training_step gets it" in each.message for each in caplog.records)


def test_validation_switched_off_counts_as_none(tmp_path):
    monitor = Taken(num_images=4)
    watched(tmp_path, monitor=monitor, limit_val_batches=0, max_epochs=1)
    assert "first training batch" in monitor.taken.origin and monitor.values["alive"] > 0


def named(convert):
    """Batches that are mappings."""
    return DataLoader([{"image": image, "label": convert(label)} for image, label in zip(*textures(8))], 4)


@pytest.mark.parametrize(
    ("settings", "val", "message"),
    [
        ({"image_key": "picture"}, None, r"'picture' is not in the batch.*the first training batch"),
        ({}, named(int), r"0 is not in the batch, which holds {'image': .*the validation data \(list\)"),
        (
            {"image_key": "image", "target_key": "lable"},
            named(int),
            r"target_key='lable': 'lable' is not in the batch.*target_key=None",
        ),
        ({"image_key": "image", "target_key": "label"}, named(str), "labels must be .* a list of class indices, got list of str"),
        ({"image_key": "label"}, named(float), r"image_key='label' gives a float64 tensor \(\d,\), not floating-point images"),
        (
            {},
            DataLoader(TensorDataset(torch.rand(8, 32, 32, 3), torch.arange(8)), 4),
            r"\(\d, 32, 32, 3\) with the channels last",
        ),
        ({}, DataLoader(TensorDataset(torch.rand(8, 3, 32, 32) > 0.5, torch.arange(8)), 4), "gives a bool tensor"),
    ],
)
@pytest.mark.parametrize("dev", [False, True])
def test_what_is_not_in_a_batch_is_named_before_training(tmp_path, settings, val, message, dev):
    module = Learner()
    with pytest.raises(MisconfigurationException, match=message):
        watched(
            tmp_path,
            module,
            SaliencyMonitor(num_images=6, **settings),
            val=val or False,
            fast_dev_run=dev,
            num_sanity_val_steps=0,
        )
    assert module.losses == []


def test_labels_need_no_key_of_their_own_where_there_are_none(tmp_path):
    found = probes(tmp_path, named(int), Named(), named(int), image_key="image")
    assert found.labels is None and len(found) == 6
    assert probes(tmp_path, named(int), Named(), named(int), image_key="image", target_key="label").labels.shape == (6,)


# Without labels


def test_without_labels_the_first_choice_at_the_start_is_kept(tmp_path, caplog):
    class Bare(Learner):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch, torch.zeros(len(batch), dtype=torch.long)), batch_idx)

        def validation_step(self, batch, batch_idx):
            pass

    class Unlabelled(Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, i):
            return textures(8)[0][i]

    module, monitor = Bare(lr=0.5), SaliencyMonitor(num_images=6)
    before = Learner().net  # of the same seed
    with caplog.at_level("INFO"):
        watched(tmp_path, module, monitor, train=DataLoader(Unlabelled(), 4), val=DataLoader(Unlabelled(), 4))
    assert any("explaining the first choice at the start" in record.message for record in caplog.records)
    kept = monitor.state_dict()
    images = textures(8)[0]
    drawn = stratified(torch.zeros(8, dtype=torch.long), 6)
    assert kept["targets"].shape == (6,) and set(kept["targets"].tolist()) <= set(before(images).argmax(1).tolist()), drawn
    assert monitor.history[0]["flip_rate"] > 0 and monitor.history[-1]["correct"] < 1, "later choices are others"


def test_labels_of_a_given_pair_are_explained(tmp_path):
    images, labels = textures(4)
    by_pair = Taken(images=(images, labels.tolist()))
    watched(tmp_path, monitor=by_pair, max_epochs=1)
    images += 100  # a copy was taken
    assert torch.equal(by_pair.taken.labels, labels) and by_pair.taken.images.max() < 50
    by_choice = Taken(images=textures(4)[0])
    watched(tmp_path, monitor=by_choice, max_epochs=1)
    assert by_choice.taken.labels is None and by_choice.state_dict()["targets"].shape == (4,)
    assert by_pair.taken.fingerprint() != by_choice.taken.fingerprint()


def test_shown_probes_are_of_many_classes(tmp_path):
    found = probes(
        tmp_path, DataLoader(TensorDataset(*labelled(400, 20)), 40), num_images=64, module=Learner(lambda: Plain(classes=20))
    )
    shown = found.shown(12)
    assert len(shown) == 12 and shown == sorted(shown) and len(set(found.labels[shown].tolist())) == 12


@pytest.mark.parametrize(
    ("labels", "single"),
    [
        (None, False),
        (torch.tensor([0, 1]), True),
        (torch.tensor([[0.0], [1.0]]), True),
        (torch.tensor([[0.3, 0.7], [0.0, 1.0]]), True),
        (torch.tensor([[1, 0, 1], [0, 1, 0]]), False),
    ],
)
def test_one_label_a_probe_or_several(labels, single):
    assert Probes(torch.zeros(2, 3, 4, 4), labels, "here").has_single_labels is single
