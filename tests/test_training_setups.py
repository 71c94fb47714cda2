"""The 30 ways people train, by number: where each is tested with a real Trainer, and the tests that have no other home."""

import ast
import copy
import csv
import io
import pickle
import random
from contextlib import nullcontext
from pathlib import Path

import lit
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lit import SILENT, Fixed, Lit, Pictures, same, state
from models import PooledNet
from pytorch_lightning import callbacks as stock
from pytorch_lightning.tuner import Tuner
from pytorch_lightning.utilities import CombinedLoader
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset
from torchvision import tv_tensors

from groupcam_aug.callbacks import GroupCAMAugmentation

ROWS = {
    1: [
        "test_augmentation::test_every_training_batch_is_augmented_once_and_no_other",
        "test_augmentation::test_other_stages_are_untouched",
    ],
    2: [
        "test_augmentation::test_switched_off_is_bit_identical_to_no_callback",
        "test_training_setups::test_row2_other_random_states_stay",
    ],
    3: [
        "test_augmentation::test_batch_structures",
        "test_augmentation::test_bare_tensor_batches_and_no_target",
        "test_augmentation::test_refuses_batches_without_an_image",
        "test_training_setups::test_row3_object_with_getter_and_setter",
        "test_batch::test_get_and_replace",
    ],
    4: [
        "test_augmentation::test_training_equals_one_that_is_given_the_same_images",
        "test_augmentation::test_data_order_and_dropout_are_those_of_a_run_without_it",
    ],
    5: [
        "test_augmentation::test_precisions",
        "test_training_setups::test_row5_half_precision",
        "test_training_setups::test_row5_on_a_gpu",
    ],
    6: [
        "test_augmentation::test_resume_in_the_middle_of_an_epoch_repeats_the_draws",
        "test_training_setups::test_row6_checkpoint_written_without_it_loads_and_the_other_way_round",
        "test_kill::test_one_kill",
    ],
    7: [
        "test_augmentation::test_the_dataset_is_never_written",
        "test_training_setups::test_row7_loader_that_hands_out_cached_batches",
    ],
    8: [
        "test_ddp::test_two_nodes_of_one_process",
        "test_ddp::test_two_processes_spawned",
        "test_ddp::test_one_rank_may_skip_its_maps",
        "test_ddp::test_launched_by_torchrun",
    ],
    9: ["test_training_setups::test_row9_accumulation"],
    10: ["test_training_setups::test_row10_own_transfer_hooks"],
    11: ["test_training_setups::test_row11_compiled_net_after_validation"],
    12: ["test_training_setups::test_row12_compiled_as_without_it"],
    13: ["test_augmentation::test_released_after_an_error_or_ctrl_c", "test_training_setups::test_row13_stopped_early"],
    14: [
        "test_training_setups::test_row14_learning_rate_finders",
        "test_training_setups::test_row14_batch_size_finders",
        "test_training_setups::test_row14_out_of_memory_ends_the_search_as_usual",
    ],
    15: [
        "test_augmentation::test_nothing_is_left_behind_after_fit_and_the_callback_serves_again",
        "test_training_setups::test_row15_all_stages_on_one_trainer",
        "test_modes::test_fit_twice",
    ],
    16: ["test_training_setups::test_row16_manual_optimisation"],
    17: [
        "test_training_setups::test_row17_counts",
        "test_training_setups::test_row17_iterable_dataset",
        "test_training_setups::test_row17_reloaded_loaders",
    ],
    18: [
        "test_augmentation::test_refuses_an_unknown_network",
        "test_augmentation::test_refuses_a_module_without_forward_and_names_its_networks",
        "test_training_setups::test_row18_network_built_late",
    ],
    19: ["test_training_setups::test_row19_memory_formats", "test_training_setups::test_row19_views"],
    20: [
        "test_training_setups::test_row20_company",
        "test_training_setups::test_row20_stochastic_weight_averaging",
        "test_training_setups::test_row20_subclasses_with_arguments_of_their_own",
        "test_training_setups::test_row20_copies_in_the_middle_of_a_fit",
    ],
    21: [
        "test_training_setups::test_row21_loggers",
        "test_training_setups::test_row21_no_logging",
        "test_augmentation::test_logged_values_profile_and_plan",
    ],
    22: ["test_augmentation::test_refuses_torchmetrics_in_forward", "test_augmentation::test_log_in_forward_is_the_users_alone"],
    23: [
        "test_training_setups::test_row23_two_instances",
        "test_training_setups::test_row23_foreign_wrapper",
        "test_training_setups::test_row23_foreign_wrapper_that_exchanges_batches",
    ],
    24: ["test_training_setups::test_row24_command_line", "test_compat::test_augments_in_a_list_and_alone"],
    25: ["test_training_setups::test_row25_closures_called_again", "test_training_setups::test_row25_sharpness_aware_step"],
    26: [
        "test_training_setups::test_row26_sizes",
        "test_training_setups::test_row26_none_batch",
        "test_training_setups::test_row26_video_is_refused",
        "test_training_setups::test_row26_nobody_drawn",
    ],
    27: [
        "test_training_setups::test_row27_trainer_features",
        "test_training_setups::test_row27_profiler",
        "test_training_setups::test_row27_gradient_checkpointing",
    ],
    28: ["test_training_setups::test_row28_combined_loader", "test_training_setups::test_row28_step_signatures_and_skips"],
    29: [
        "test_augmentation::test_refuses_dataloader_iter",
        "test_augmentation::test_refuses_batches_without_an_image",
        "test_training_setups::test_row29_sharded_strategies_are_refused",
    ],
    30: [
        "test_training_setups::test_row30_layers_with_a_state_of_their_own",
        "test_training_setups::test_row30_lazy_modules",
        "test_training_setups::test_row30_tensor_subclasses",
        "test_training_setups::test_row30_inputs_that_require_gradients",
    ],
}


def test_every_row_has_its_tests():
    folder = Path(__file__).parent
    named = {name for names in ROWS.values() for name in names}
    found = set()
    for file in {name.partition("::")[0] for name in named}:
        tree = ast.parse(next(folder.rglob(f"{file}.py")).read_text())
        found |= {f"{file}::{node.name}" for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert named <= found, named - found
    assert set(ROWS) == set(range(1, 31)) and all(ROWS.values())


def loader(count=12, **options):
    """Three batches of four: some image of each has a map."""
    return lit.loader(count, **options)


def cached():
    """The same batches in every epoch, as they stand."""
    return DataLoader([*loader()], batch_size=None)


def fit(module, callbacks, train=None, **options):
    return lit.fit(module, callbacks, loader() if train is None else train, **options)


def make(**options):
    return GroupCAMAugmentation(**{"preset": "paper", "network": "net", "layer": "relu2", "groups": 4, **options})


def counted(**options):
    """A callback that counts its augmentations in `.calls`."""
    callback = make(**options)
    inner, callback.calls = callback.augment.augment_at, 0

    def apply(*args, **options):
        callback.calls += 1
        return inner(*args, **options)

    callback.augment.augment_at = apply
    return callback


def changed(module, raw=None):
    """Which of the batches that arrived differ from those of the loader (all epochs alike)."""
    raw = [x for x, _ in loader()] if raw is None else raw
    return [not torch.equal(x, raw[i % len(raw)]) for i, x in enumerate(module.seen)]


def released(trainer, module):
    own = vars(trainer.strategy)
    return "batch_to_device" not in own and "_groupcam_dispatcher" not in own and "log" not in vars(module)


def equals_a_run_given_the_same_images(build, callback=None, raw=None, **options):
    """Train with the callback, then a twin without it on the images that arrived: weights and buffers must be equal."""
    raw = list(loader()) if raw is None else raw
    module, twin = build(), build()
    fit(module, [callback or make()], train=Fixed(raw), **options)
    assert len(module.seen) == len(raw) and all(changed(module, [x for x, _ in raw]))
    fit(twin, [], train=Fixed([[x, y] for x, (_, y) in zip(module.seen, raw)]), **options)
    assert same(state(module)[:-1], state(twin)[:-1])
    return module


@pytest.mark.parametrize("options", [{"p": 0.0}, {"start_epoch": 9}, {}])
def test_row2_other_random_states_stay(options):
    """numpy's and Python's own, which data sets use; with augmentation switched on as well."""
    states = []
    for callbacks in ([], [make(**options)]):
        random.seed(3), np.random.seed(3)  # noqa: NPY002
        fit(Lit(), callbacks)
        states.append((random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state().tolist()))  # noqa: NPY002
    assert states[0] == states[1]


class Parcel:
    """A batch of one's own: neither sequence nor mapping, but Lightning can move it."""

    def __init__(self, x, y):
        self._content = x, y

    def to(self, device, **_):
        return Parcel(*(part.to(device) for part in self._content))


def unpack(parcel):
    return parcel._content[0]


def repack(parcel, images):
    return Parcel(images, parcel._content[1])


def labels_of(parcel):
    return parcel._content[1]


def test_row3_object_with_getter_and_setter():
    class Reads(Lit):
        def read(self, batch):
            return batch._content

    module, reference = Reads(), Lit()
    fit(
        module,
        [make(image_key=(unpack, repack), target_key=(labels_of, repack))],
        train=Fixed([Parcel(x, y) for x, y in loader()]),
    )
    fit(reference, [make()], train=Fixed([*loader()]))
    assert len(module.seen) == 3 and same(module.seen, reference.seen) and all(changed(module))


@pytest.mark.filterwarnings("ignore:.*precision='16-mixed'.*")
@pytest.mark.filterwarnings("ignore:.*precision=16.*")
@pytest.mark.parametrize("precision, dtype", [("16-true", torch.float16), ("16-mixed", torch.float32)])
def test_row5_half_precision(precision, dtype):
    module = Lit()
    fit(module, [make()], precision=precision)
    assert len(module.seen) == 3 and all(x.dtype == dtype and x.isfinite().all() for x in module.seen)
    assert all(changed(module, [x.to(dtype) for x, _ in loader()]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed", "bf16-true"])
def test_row5_on_a_gpu(precision):
    """Images stay on the device and in their type, and the device's random numbers are those of a run without it."""
    states = []
    for callbacks in ([], [make()]):
        module = Lit()
        torch.cuda.manual_seed(5)
        fit(module, callbacks, precision=precision, accelerator="gpu", max_epochs=2)
        assert len(module.seen) == 6 and all(x.is_cuda and x.isfinite().all() for x in module.seen)
        states.append(torch.cuda.get_rng_state())
    assert all(changed(module, [x.cuda().to(module.seen[0].dtype) for x, _ in loader()]))
    assert torch.equal(*states)


@pytest.mark.parametrize("before, after", [([], [make()]), ([make()], [])])
def test_row6_checkpoint_written_without_it_loads_and_the_other_way_round(before, after, tmp_path):
    options = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    fit(Lit(), before, **options).save_checkpoint(tmp_path / "one.ckpt")
    module = Lit()
    trainer = pl.Trainer(**{**SILENT, **options}, max_epochs=2, callbacks=after)
    named = pytest.warns(UserWarning, match="add the following callbacks: .'GroupCAMAugmentation'") if before else nullcontext()
    with named:
        trainer.fit(module, loader(), ckpt_path=tmp_path / "one.ckpt")
    assert changed(module) == [bool(after)] * 3


def test_row7_loader_that_hands_out_cached_batches():
    """`batch_size=None` over a list of batches: the very tensors of the data set reach Lightning, three times."""
    held = [[x, y] for x, y in loader()]
    before = copy.deepcopy(held)
    at = [x.data_ptr() for x, _ in held]
    module = Lit()
    fit(module, [make()], train=DataLoader(held, batch_size=None), max_epochs=3)
    assert changed(module) == [True] * 9
    assert [x.data_ptr() for x, _ in held] == at and all(same(a, b) for a, b in zip(held, before))


@pytest.mark.parametrize("accumulate", [2, 4])
def test_row9_accumulation(accumulate):
    module, callback = Lit(), counted()
    trainer = fit(module, [callback], train=loader(40), accumulate_grad_batches=accumulate, max_epochs=2)
    assert callback.calls == len(module.seen) == 20, "one per micro-batch"
    assert trainer.global_step == 2 * -(-10 // accumulate)


class Shifts:
    """Transfer hooks that leave their mark on the image."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return [batch[0] + 1, batch[1]]

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return [batch[0].to(device) * 2, batch[1].to(device)]

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [batch[0] - 3, batch[1]]


class ShiftingModule(Shifts, Lit):
    pass


class ShiftingData(Shifts, pl.LightningDataModule):
    def __init__(self):
        super().__init__()
        self.batches = Fixed([*loader()])

    def train_dataloader(self):
        return self.batches


@pytest.mark.parametrize("whose", ["module", "data module"])
def test_row10_own_transfer_hooks(whose):
    """They come first: what is augmented is the image that training_step would have seen."""
    module = ShiftingModule() if whose == "module" else Lit()
    fit(module, [make()], train=Fixed([*loader()]) if whose == "module" else ShiftingData())
    reference = Lit()
    shifted = [[(x + 1) * 2 - 3, y] for x, y in loader()]
    fit(reference, [make()], train=Fixed(shifted))
    assert len(module.seen) == 3 and same(module.seen, reference.seen)
    assert all(changed(module, [x for x, _ in shifted]))


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


class CompiledNet(Lit):
    def __init__(self, how="net"):
        super().__init__()
        self.net.drop = nn.Identity()  # whose stream of random numbers dynamo would not share
        if how == "net":
            self.net = torch.compile(self.net, backend="eager")
        elif how == "in place":
            self.net.compile(backend="eager")

    def on_train_batch_start(self, batch, batch_idx):
        self.seen.append(batch[0].clone())  # not in the step: a list that grows would be a reason to compile again

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self(batch[0])


COMPILED = ["net", "in place", "module"]


def compiled_run(how, callbacks, **options):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    module = CompiledNet(how)
    given = torch.compile(module, backend="eager") if how == "module" else module
    fit(given, callbacks, train=cached(), **options)
    return module, graphs()


@pytest.mark.parametrize("how", COMPILED)
def test_row11_compiled_net_after_validation(how):
    """Sanity check and validation have compiled the eval graph already: the silent case, in which no hook fires."""
    module, first = compiled_run(how, [make()], val=loader(8), num_sanity_val_steps=1, max_epochs=1)
    assert changed(module, [x for x, _ in loader()]) == [True] * 3
    module, later = compiled_run(how, [make()], val=loader(8), num_sanity_val_steps=1, max_epochs=7)
    assert changed(module, [x for x, _ in loader()]) == [True] * 21
    assert later == first > 0, "no more graphs over 20 steps"


@pytest.mark.parametrize("how", COMPILED)
def test_row12_compiled_as_without_it(how):
    """As many graphs as without the callback, and the augmented images of the net that is not compiled."""
    _, expected = compiled_run(how, [], max_epochs=2)
    module, found = compiled_run(how, [make(p=0.5)], max_epochs=2)
    assert found == expected > 0
    plain = CompiledNet("not at all")
    fit(plain, [make(p=0.5)], train=cached(), max_epochs=2)
    for a, b in zip(module.seen, plain.seen, strict=True):
        torch.testing.assert_close(a, b)


class Stops(pl.Callback):
    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = True


@pytest.mark.parametrize("callbacks, options", [([Stops()], {}), ([], {"max_time": {"seconds": 0}}), ([], {"max_steps": 1})])
def test_row13_stopped_early(callbacks, options):
    module = Lit()
    trainer = fit(module, [make(), *callbacks], max_epochs=5, **options)
    assert len(module.seen) <= 3 and released(trainer, module)
    assert module.net.training and module.net.bn1.training


class Rate(Lit):
    """Has what the tuners tune."""

    def __init__(self):
        super().__init__()
        self.lr, self.batch_size, self.sizes = 0.05, 4, []

    def train_dataloader(self):
        return DataLoader(Pictures(32), batch_size=self.batch_size)

    def val_dataloader(self):
        return DataLoader(Pictures(4), batch_size=4)

    def training_step(self, batch, batch_idx):
        self.sizes.append(len(batch[0]))
        position = self.trainer.fit_loop.epoch_loop.batch_idx * len(batch[0])
        self.last_raw = Pictures(32).images[position : position + len(batch[0])]
        self.augmented = [*getattr(self, "augmented", []), not torch.equal(batch[0], self.last_raw)]
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


def tuned(by, what, callbacks, tmp_path):
    """A module after a tuner's trial and a fit, with the trainer."""
    module = Rate()
    sizes = {"mode": "power", "steps_per_trial": 2, "max_trials": 2, "init_val": 4}
    options = {**SILENT, "enable_checkpointing": True, "default_root_dir": tmp_path, "max_epochs": 1}
    torch.manual_seed(11)
    if by == "Tuner":
        trainer = pl.Trainer(**options, callbacks=callbacks)
        if what == "rate":
            Tuner(trainer).lr_find(module, num_training=4)
        else:
            Tuner(trainer).scale_batch_size(module, **sizes)
        assert released(trainer, module) and len(module.sizes) >= 4
    else:
        finder = stock.LearningRateFinder(num_training_steps=4) if what == "rate" else stock.BatchSizeFinder(**sizes)
        trainer = pl.Trainer(**options, callbacks=[*callbacks, finder])
    trainer.fit(module)
    return module, trainer


@pytest.mark.filterwarnings("ignore:.*Failed to compute suggestion.*")
@pytest.mark.parametrize("by", ["Tuner", "callback"])
def test_row14_learning_rate_finders(by, tmp_path):
    """The tuner takes the callbacks away for its trial: their batches are augmented all the same, as many as without us."""
    callback = counted()
    module, trainer = tuned(by, "rate", [callback], tmp_path)
    plain, _ = tuned(by, "rate", [], tmp_path)
    assert module.sizes == plain.sizes and callback.calls == len(module.seen) >= 8
    assert all(module.augmented) and released(trainer, module)


@pytest.mark.parametrize("by", ["Tuner", "callback"])
def test_row14_batch_size_finders(by, tmp_path):
    """The memory of the saliency passes is part of the trial, or the batch size found would be too large."""
    callback = counted()
    module, trainer = tuned(by, "size", [callback], tmp_path)
    plain, _ = tuned(by, "size", [], tmp_path)
    assert module.sizes == plain.sizes and module.sizes[:4] == [4, 4, 8, 8] and len(module.sizes) > 4
    assert callback.calls == len(module.sizes) and all(module.augmented) and released(trainer, module)


class Small(PooledNet):
    """Takes no image in eval mode while batches are larger than 8, and says so as torch does on a CPU."""

    def __init__(self, owner):
        super().__init__()
        self.owner = [owner]  # in a list: no sub-module

    def forward(self, x):
        if self.owner[0].batch_size > 8 and not self.training:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate too much")
        return super().forward(x)


def test_row14_out_of_memory_ends_the_search_as_usual(tmp_path):
    """Planted in the saliency pass only: the error must reach the search unchanged, and the search go on from there."""
    module = Rate()
    module.net = Small(module)
    trainer = pl.Trainer(**{**SILENT, "enable_checkpointing": True}, default_root_dir=tmp_path, max_epochs=1, callbacks=[make()])
    assert Tuner(trainer).scale_batch_size(module, mode="power", steps_per_trial=1, max_trials=4, init_val=4) == 8
    assert released(trainer, module) and module.net.training


def test_row15_all_stages_on_one_trainer():
    module = Lit()
    trainer = fit(module, [make()], val=loader(6))
    for stage in ("validate", "test", "predict"):
        module.evaluated.clear()
        getattr(trainer, stage)(module, loader(), **({} if stage == "predict" else {"verbose": False}))
        assert all(torch.equal(x, y) for x, (y, _) in zip(module.evaluated, loader(), strict=True)), stage
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, loader())
    assert changed(module) == [True] * 6 and released(trainer, module)


class Adversaries(Lit):
    """Two optimizers by hand, as a GAN has: global_step counts both, so batches must be counted otherwise."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Linear(5, 5)

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        loss = super().training_step(batch, batch_idx)
        first.zero_grad(), self.manual_backward(loss), first.step()
        second.zero_grad()
        self.manual_backward(self.other(self(batch[0]).detach()).pow(2).mean())
        second.step()

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), 0.05), torch.optim.SGD(self.other.parameters(), 0.05)


def test_row16_manual_optimisation():
    module, callback = Adversaries(), counted(every_n_steps=2)
    trainer = fit(module, [callback], max_epochs=2)
    assert trainer.global_step == 12
    assert changed(module) == [True, False] * 3 and callback.calls == 3


@pytest.mark.filterwarnings("ignore:.*overfit.*")
@pytest.mark.parametrize(
    "options, steps",
    [
        ({"overfit_batches": 2, "max_epochs": 3}, 6),
        ({"fast_dev_run": 2, "max_epochs": 1}, 2),
        ({"limit_train_batches": 2, "max_epochs": 2}, 4),
        ({"limit_train_batches": 0.7, "max_epochs": 2}, 4),
        ({"val_check_interval": 1, "max_epochs": 2, "val": loader(6)}, 6),
        ({"val_check_interval": 0.5, "max_epochs": 2, "val": loader(6)}, 6),
        ({"check_val_every_n_epoch": None, "val_check_interval": 2, "max_epochs": 2, "val": loader(6)}, 6),
        ({"min_steps": 7, "max_steps": 7, "max_epochs": -1}, 7),
    ],
)
def test_row17_counts(options, steps):
    module, callback = Lit(), counted()
    fit(module, [callback], **options)
    assert changed(module) == [True] * steps and callback.calls == steps
    raw = [y for y, _ in loader(6)]
    assert all(any(torch.equal(x, y) for y in raw) for x in module.evaluated)


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(Pictures().images, Pictures().labels)


def test_row17_iterable_dataset():
    module, callback = Lit(), counted()
    fit(module, [callback], train=DataLoader(Stream(), 4), max_epochs=2)
    assert changed(module) == [True] * 6 and callback.calls == 6


def test_row17_reloaded_loaders():
    class Reloads(Lit):
        def train_dataloader(self):
            return loader(4 * (self.trainer.current_epoch + 1))

    module, callback = Reloads(), counted()
    torch.manual_seed(0)
    pl.Trainer(**SILENT, max_epochs=3, reload_dataloaders_every_n_epochs=1, callbacks=[callback]).fit(module)
    assert len(module.seen) == callback.calls == 6


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
def test_row18_network_built_late(hook):
    """After Callback.setup, and under another attribute, some way down."""

    class Late(Lit):
        def __init__(self):
            super().__init__()
            del self.net

        def forward(self, x):
            return self.model.backbone(x)

        def build(self, *_, **__):
            torch.manual_seed(7)
            if not hasattr(self, "model"):
                self.model = nn.ModuleDict({"backbone": PooledNet()})
                self.model.backbone = self.model["backbone"]

    setattr(Late, hook, Late.build)
    module = Late()
    fit(module, [make(network="model.backbone")])
    reference = Lit()
    fit(reference, [make()])
    assert len(module.seen) == 3 and all(changed(module)) and torch.equal(module.seen[0], reference.seen[0])


@pytest.mark.parametrize("of_net", [False, True])
@pytest.mark.parametrize("p", [1.0, 0.5])
def test_row19_memory_formats(of_net, p):
    class Keeps(Lit):
        def training_step(self, batch, batch_idx):
            assert batch[0].is_contiguous(memory_format=torch.channels_last)
            return super().training_step(batch, batch_idx)

    module = Keeps()
    if of_net:
        module.net.to(memory_format=torch.channels_last)
    fit(module, [make(p=p)], train=Fixed([[x.contiguous(memory_format=torch.channels_last), y] for x, y in loader()]))
    assert len(module.seen) == 3 and any(changed(module))


@pytest.mark.parametrize(
    "view",
    [lambda x: x[:, :1].expand(-1, 3, -1, -1), lambda x: x.transpose(2, 3), lambda x: x.flip(3)[..., ::2]],
    ids=["expanded", "transposed", "strided"],
)
def test_row19_views(view):
    raw = [[view(x), y] for x, y in loader()]
    module, dense = Lit(), Lit()
    fit(module, [make()], train=Fixed(raw))
    fit(dense, [make()], train=Fixed([[x.contiguous(), y] for x, y in raw]))
    assert all(changed(module, [x for x, _ in raw]))
    for a, b in zip(module.seen, dense.seen, strict=True):
        torch.testing.assert_close(a, b)


class Scored(Lit):
    """Logs something to be watched."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))
        self.evaluated.append(batch[0].clone())


def test_row20_company(tmp_path):
    """Averaged weights, checkpoints, early stopping and a monitor beside it: each does its work, and the images are those
    of a run without them."""
    module, alone, callback = Scored(), Scored(), counted()
    averages = hasattr(stock, "EMAWeightAveraging")  # Lightning 2.6 and later
    average = stock.EMAWeightAveraging(decay=0.9) if averages else stock.Timer()
    best = stock.ModelCheckpoint(tmp_path / "best", monitor="val_loss", save_last=True)
    company = [average, best, stock.EarlyStopping("val_loss", patience=9), stock.LearningRateMonitor()]
    options = {"logger": pl.loggers.CSVLogger(tmp_path), "enable_checkpointing": True, "max_epochs": 3, "log_every_n_steps": 1}
    trainer = fit(module, [*company[:2], callback, *company[2:]], val=loader(6), **options)
    assert callback.calls == 9 and changed(module) == [True] * 9
    fit(alone, [make()], val=loader(6), max_epochs=3)
    assert same(module.seen, alone.seen), "the maps are those of the network in training, not of the average"
    assert Path(best.best_model_path).exists() and Path(best.last_model_path).exists()
    moved = not same([*module.net.parameters()], [*alone.net.parameters()])
    assert moved == averages, "the average was put in place at the end"
    assert all(torch.equal(x, y) for x, (y, _) in zip(module.evaluated[-2:], loader(6), strict=True))
    assert "lr-SGD" in (Path(trainer.logger.log_dir) / "metrics.csv").read_text()
    again = Scored()
    pl.Trainer(**{**SILENT, **options, "max_epochs": 4}, callbacks=[callback, *company[:3]]).fit(
        again, loader(), loader(6), ckpt_path=best.last_model_path
    )
    assert changed(again) == [True] * 3


def test_row20_stochastic_weight_averaging():
    """It runs one more epoch, without training, for the statistics of BatchNorm: those batches are augmented like the rest."""
    module, callback = Lit(), counted()
    average = stock.StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=2)
    trainer = fit(module, [average, callback], max_epochs=3)
    assert changed(module) == [True] * 12 and callback.calls == 12
    plain = fit(Lit(), [stock.StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=2)], max_epochs=3)
    assert trainer.global_step == plain.global_step and released(trainer, module)


class Copies(pl.Callback):
    """Takes copies in the middle of a fit, as other callbacks do."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 1:
            ours = next(c for c in trainer.callbacks if isinstance(c, GroupCAMAugmentation))
            self.modules = copy.deepcopy(module), pickle.loads(pickle.dumps(module))
            self.callbacks = copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))
            buffer = io.BytesIO()
            torch.save(module, buffer)


def test_row20_copies_in_the_middle_of_a_fit():
    module, copies = Lit(), Copies()
    fit(module, [make(), copies])
    assert changed(module) == [True] * 3
    for twin in copies.modules:
        twin.seen.clear()
        fit(twin, [make()])
        assert changed(twin) == [True] * 3, "a copy is a module like any other"
    for twin in copies.callbacks:
        other = Lit()
        fit(other, [twin])
        assert same(other.seen[:1], module.seen[:1]) and changed(other) == [True] * 3


def rows_of(folder):
    with (Path(folder) / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_row21_loggers(tmp_path):
    """Two loggers, one a real event file: our values stand at the steps of the user's own."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = [pl.loggers.CSVLogger(tmp_path, "csv"), pl.loggers.TensorBoardLogger(tmp_path, "board")]
    fit(Scored(), [make()], logger=loggers, log_every_n_steps=2, max_epochs=2)
    events = EventAccumulator(loggers[1].log_dir)
    events.Reload()
    tags = ["groupcam/keep_fraction", "groupcam/no_map", "groupcam/seconds"]
    assert set(tags) <= set(events.Tags()["scalars"])
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in [*tags, "loss"]}
    assert all(at == [1, 3, 5] for at in steps.values()), steps
    rows = rows_of(loggers[0].log_dir)
    ours = [int(row["step"]) for row in rows if row["groupcam/keep_fraction"]]
    assert ours == [int(row["step"]) for row in rows if row["loss"]] == [1, 3, 5]
    assert all(0 < event.value <= 1 for event in events.Scalars("groupcam/keep_fraction"))


@pytest.mark.parametrize("options", [{"logger": False}, {"barebones": True}, {"logger": []}])
def test_row21_no_logging(options, capsys):
    module = Lit()
    fit(module, [make()], **options)
    assert changed(module) == [True] * 3


def test_row23_two_instances():
    """Two modes, one before and one after: each has its epochs; and both at once: the second works on the first's images."""
    module = Lit()
    trainer = fit(module, [make(fill="mean", stop_epoch=1), make(fill="noise", start_epoch=1)], max_epochs=2)
    means, noises = Lit(), Lit()
    fit(means, [make(fill="mean", stop_epoch=1)], max_epochs=1)
    assert same(module.seen[:3], means.seen) and changed(module) == [True] * 6 and released(trainer, module)
    first, second = counted(fill="mean"), counted(mask_from="whole")
    both = Lit()
    fit(both, [first, second], limit_train_batches=1)
    fit(noises, [make(fill="mean")], limit_train_batches=1)
    assert first.calls == second.calls == 1
    assert torch.equal(both.seen[0], second.augment(noises.seen[0])), "everything blurred, last"


class Foreign(pl.Callback):
    """Wraps the same method, and puts back what it found (as TraceML does, to time the transfer)."""

    def __init__(self, exchange=False):
        self.exchange, self.seen = exchange, 0

    def setup(self, trainer, module, stage):
        self.below = below = trainer.strategy.batch_to_device

        def timed(*args, **kwargs):
            self.seen += 1
            batch = below(*args, **kwargs)
            return [*batch] if self.exchange else batch

        trainer.strategy.batch_to_device = timed

    def teardown(self, trainer, module, stage):
        trainer.strategy.batch_to_device = self.below


@pytest.mark.parametrize("ours_first", [True, False])
def test_row23_foreign_wrapper(ours_first):
    """Whoever leaves first: no stale wrapper augments anything, and a second fit is augmented once again."""
    module, callback, foreign = Lit(), counted(), Foreign()
    trainer = fit(module, [callback, foreign] if ours_first else [foreign, callback])
    assert changed(module) == [True] * 3 and callback.calls == foreign.seen == 3
    batch = next(iter(loader()))
    assert torch.equal(trainer.strategy.batch_to_device(batch)[0], batch[0]), "what is left passes batches through"
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, loader())
    assert changed(module) == [True] * 6 and callback.calls == 6 and foreign.seen == 6


def test_row23_foreign_wrapper_that_exchanges_batches():
    """Augmented and then exchanged: still augmented, but the user is told."""
    module = Lit()
    with pytest.warns(UserWarning, match="exchanged the batch after GroupCAMAugmentation"):
        fit(module, [make(), Foreign(exchange=True)])
    assert changed(module) == [True] * 3


@pytest.mark.parametrize("form", ["yaml", "+="])
def test_row24_command_line(form, tmp_path, capsys, monkeypatch):
    """LightningCLI: from a file, from the command line, and once more from the configuration it saved."""
    from pytorch_lightning.cli import LightningCLI

    path = "groupcam_aug.callbacks.GroupCAMAugmentation"
    if form == "yaml":
        (tmp_path / "aug.yaml").write_text(
            f"trainer:\n  callbacks:\n    - class_path: {path}\n      init_args: {{network: net, layer: relu2, groups: 4, "
            "threshold: q0.6, image_key: 0, target_key: 1}\n"
        )
        given = ["--config", str(tmp_path / "aug.yaml")]
    else:
        given = [f"--trainer.callbacks+={path}", "--trainer.callbacks.network=net", "--trainer.callbacks.layer=relu2"]
        given += ["--trainer.callbacks.groups=4", "--trainer.callbacks.threshold=q0.6"]
    quiet = {**SILENT, "max_epochs": 1, "default_root_dir": str(tmp_path)}

    def run(args):
        monkeypatch.setattr("sys.argv", ["fit.py"])
        cli = LightningCLI(
            Lit, args=args, trainer_defaults=quiet, run=False, save_config_callback=None, seed_everything_default=False
        )
        callback = next(c for c in cli.trainer.callbacks if isinstance(c, GroupCAMAugmentation))
        torch.manual_seed(11)
        cli.trainer.fit(cli.model, loader())
        return cli, callback

    cli, callback = run(given)
    assert repr(callback) == "GroupCAMAugmentation(network='net', layer='relu2', groups=4, threshold='q0.6')"
    assert changed(cli.model) == [True] * 3
    (tmp_path / "saved.yaml").write_text(cli.parser.dump(cli.config, skip_none=False))
    again, twin = run(["--config", str(tmp_path / "saved.yaml")])
    assert repr(twin) == repr(callback) and same(again.model.seen, cli.model.seen)
    with pytest.raises(SystemExit):
        run([f"--trainer.callbacks.help={path}"])
    assert "probability of an image to be augmented" in " ".join(capsys.readouterr().out.split())


def test_row25_closures_called_again():
    """LBFGS evaluates the step several times: its objective may not change in between."""

    class Newton(Lit):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), 0.1, max_iter=3)

    module, callback = Newton(), counted(p=0.5)
    fit(module, [callback], train=loader(16))
    assert callback.calls == 4 and len(module.seen) > 4
    distinct = {x.sum().item() for x in module.seen}
    assert len(distinct) == 4, "the same images in all evaluations of a step"


def test_row25_sharpness_aware_step():
    class Sam(Lit):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            for _ in range(2):
                optimizer.zero_grad()
                self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    module, callback = Sam(), counted()
    fit(module, [callback])
    assert callback.calls == 3 and len(module.seen) == 6
    assert all(torch.equal(a, b) for a, b in zip(module.seen[::2], module.seen[1::2]))


@pytest.mark.parametrize(
    "count, channels, size",
    [(1, 3, (24, 20)), (9, 3, (23, 17)), (5, 1, (24, 20)), (6, 4, (11, 31)), (4, 3, (3, 5))],
    ids=["one image", "odd", "grey", "four channels", "tiny"],
)
def test_row26_sizes(count, channels, size):
    """Batches of four, the last one smaller, down to a single image. (BatchNorm takes one image where its grid is larger.)"""
    torch.manual_seed(2)
    module, callback = Lit(PooledNet(in_channels=channels)), counted()
    given = loader(count, channels=channels, size=size, seed=1)
    fit(module, [callback], train=given)
    raw = [x for x, _ in given]
    assert [x.shape for x in module.seen] == [x.shape for x in raw] and callback.calls == len(raw)
    assert all(x.isfinite().all() for x in module.seen) and any(changed(module, raw))


@pytest.mark.filterwarnings("ignore:.*yielded `?None.*")
def test_row26_none_batch():
    batches = list(loader())
    module, callback = Lit(), counted()
    fit(module, [callback], train=Fixed([None, *batches]))
    assert changed(module) == [True] * 3 and callback.calls == 3


def test_row26_video_is_refused():
    class Video(Lit):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch[0][:, :, 0]), batch[1])

    with pytest.raises(
        MisconfigurationException, match=r"float32 tensor \(4, 3, 2, 24, 20\), not floating-point images \(N, C, H, W\)"
    ):
        fit(Video(), [make()], train=Fixed([[x[:, :, None].repeat(1, 1, 2, 1, 1), y] for x, y in loader()]))


def test_row26_nobody_drawn():
    """A batch of which no image is drawn arrives as the very object that Lightning made."""
    objects = [[x, y] for x, y in loader(8, batch_size=1)]

    class Watches(Lit):
        def training_step(self, batch, batch_idx):
            self.same = [*getattr(self, "same", []), batch[0] is objects[batch_idx][0]]
            return super().training_step(batch, batch_idx)

    module, callback = Watches(), counted(p=0.5)
    fit(module, [callback], train=Fixed(objects))
    assert module.same[0], "none of the first batch: one image is mapped as a check, and dropped"
    assert 0 < callback.calls - 1 == module.same.count(False) < 8


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize(
    "options",
    [
        {"detect_anomaly": True},
        {"gradient_clip_val": 0.1},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"deterministic": True},
        {"inference_mode": False},
        {"max_epochs": 1, "accumulate_grad_batches": 2},
    ],
    ids=lambda options: next(iter(options)),
)
def test_row27_trainer_features(options):
    try:
        equals_a_run_given_the_same_images(Lit, **options)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("profiler", ["simple", "advanced"])
def test_row27_profiler(profiler, tmp_path):
    module = Lit()
    kind = pl.profilers.SimpleProfiler if profiler == "simple" else pl.profilers.AdvancedProfiler
    fit(module, [make()], profiler=kind(tmp_path, "told"))
    assert changed(module) == [True] * 3
    assert "[Callback]GroupCAMAugmentation.augment" in (tmp_path / "fit-told.txt").read_text()


# The reentrant form says, as ever without gradients, that none of its inputs requires any: torch's own word, shown once.
@pytest.mark.parametrize(
    "reentrant",
    [pytest.param(True, marks=pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")), False],
)
def test_row27_gradient_checkpointing(reentrant):
    """The same gradients, and from the plain form no warning (warnings are errors here)."""

    class Thrifty(PooledNet):
        def forward(self, x):
            x = self.relu1(self.bn1(self.conv1(x)))
            x = checkpoint(lambda h: self.relu2(self.conv2(h)), x, use_reentrant=reentrant)
            return self.fc(self.drop(self.pool(x).flatten(1)))

    def build():
        torch.manual_seed(7)
        return Lit(Thrifty())

    equals_a_run_given_the_same_images(build)


def test_row20_subclasses_with_arguments_of_their_own():
    """Trainer writes every callback into its debug log, so a repr that fails would keep the run from starting."""

    class Own(GroupCAMAugmentation):
        def __init__(self, **options):
            super().__init__(network="net", **options)

    module, callback = Lit(), Own(groups=4)
    fit(module, [callback])
    assert changed(module) == [True] * 3 and "groups=4" in repr(callback)


def test_row28_combined_loader():
    """Of several loaders the chosen one alone is augmented."""

    class Both(Lit):
        def training_step(self, batch, batch_idx):
            self.others = [*getattr(self, "others", []), batch["plain"][0].clone()]
            return super().training_step(batch["chosen"], batch_idx)

    module, callback = Both(), counted(image_key=["chosen", 0], target_key=["chosen", 1])
    fit(module, [callback], train=CombinedLoader({"chosen": loader(), "plain": loader(seed=3)}, "min_size"))
    assert changed(module) == [True] * 3 and callback.calls == 3
    assert all(torch.equal(x, y) for x, (y, _) in zip(module.others, loader(seed=3), strict=True))


class NoIndex(Lit):
    def training_step(self, batch):
        return super().training_step(batch, 0)


class SkipsRest(Lit):
    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx == 2 else None


class ReturnsNothing(Lit):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx == 1 else loss


@pytest.mark.filterwarnings("ignore:.*training_step. returned .None.*")
@pytest.mark.parametrize("kind, steps, calls, optimized", [(NoIndex, 6, 6, 6), (SkipsRest, 4, 6, 4), (ReturnsNothing, 6, 6, 6)])
def test_row28_step_signatures_and_skips(kind, steps, calls, optimized):
    module, callback = kind(), counted()
    trainer = fit(module, [callback], max_epochs=2)
    assert len(module.seen) == steps and callback.calls == calls and released(trainer, module)
    raw = [x for x, _ in loader()][: steps // 2]
    assert all(changed(module, raw)) and trainer.global_step == optimized


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"])
def test_row29_sharded_strategies_are_refused(name):
    """At setup, before a batch is fetched, naming the way that works. (By name: two of them need GPUs to be built.)"""
    kind = type(name, (pl.strategies.SingleDeviceStrategy,), {})
    derived = type("Own", (kind,), {})
    for strategy in (kind, derived):
        module = Lit()
        with pytest.raises(MisconfigurationException, match=f"under {name}.*SaliencyBlur"):
            fit(module, [make()], strategy=strategy(device="cpu"))
        assert not module.seen
    for real in (pl.strategies.FSDPStrategy, pl.strategies.DeepSpeedStrategy, pl.strategies.ModelParallelStrategy):
        assert real.__name__ in ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"), "the names are still those"


class Observer(nn.Module):
    """A quantisation observer in small: keeps the largest value it has seen, in eval mode too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("largest", torch.zeros(()))

    def forward(self, x):
        self.largest = torch.maximum(self.largest, x.detach().abs().amax())
        return x


def with_spectral_norm(net, kind):
    net.conv2 = kind(net.conv2)
    return net


def with_sync(net):
    return nn.SyncBatchNorm.convert_sync_batchnorm(net)


def with_observer(net):
    net.drop = Observer()
    return net


def with_batch_statistics(net):
    net.bn1 = nn.BatchNorm2d(8, track_running_stats=False)
    return net


LAYERS = {
    "SyncBatchNorm": with_sync,
    "spectral_norm": lambda net: with_spectral_norm(net, nn.utils.parametrizations.spectral_norm),
    "spectral_norm with hooks": lambda net: with_spectral_norm(net, nn.utils.spectral_norm),
    "weight_norm": lambda net: with_spectral_norm(net, nn.utils.parametrizations.weight_norm),
    "observer": with_observer,
    "BatchNorm of the batch": with_batch_statistics,
}


@pytest.mark.filterwarnings("ignore:in PooledNet the images of a batch influence each other")
@pytest.mark.parametrize("name", LAYERS)
def test_row30_layers_with_a_state_of_their_own(name):
    """Power iterations, observers, running statistics: none moves by a saliency pass."""

    def build():
        torch.manual_seed(4)
        return Lit(LAYERS[name](PooledNet()))

    equals_a_run_given_the_same_images(build)


class LazyNet(PooledNet):
    def __init__(self):
        super().__init__()
        self.conv1, self.fc = nn.LazyConv2d(8, 3, stride=2, padding=1), nn.LazyLinear(5)
        self.bn1 = nn.LazyBatchNorm2d()


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.filterwarnings("ignore:the network's lazy modules take their shape")
def test_row30_lazy_modules():
    """The first batch makes their parameters, from the user's random numbers, as in a run without the callback."""
    runs = []
    for callbacks in ([], [make()]):
        torch.manual_seed(4)
        module = Lit(LazyNet())
        fit(module, callbacks, limit_train_batches=1)
        first = module.seen[0]
        runs.append((module, torch.get_rng_state()))
    (plain, rng), (module, other) = runs
    assert torch.equal(rng, other), "initialised from the same random numbers"
    assert torch.equal(first, next(iter(loader()))[0]), "a batch that still has to make the parameters is left alone"
    assert same([*plain.net.parameters()], [*module.net.parameters()])
    longer = Lit(LazyNet())
    fit(longer, [make()])
    assert changed(longer) == [False, True, True]


def test_row30_tensor_subclasses():
    class Typed(Lit):
        def training_step(self, batch, batch_idx):
            assert type(batch[0]) is tv_tensors.Image
            return super().training_step([batch[0].as_subclass(torch.Tensor), batch[1]], batch_idx)

    module = Typed()
    fit(module, [make()], train=Fixed([[tv_tensors.Image(x), y] for x, y in loader()]))
    assert changed(module) == [True] * 3


@pytest.mark.parametrize("where", ["loader", "step"])
def test_row30_inputs_that_require_gradients(where):
    """Set in the step (adversarial training): works on the augmented images. Set in the loader: what arrives is new, and a leaf."""

    class Gradient(Lit):
        def training_step(self, batch, batch_idx):
            x, y = batch
            assert x.is_leaf and not x.requires_grad
            x = x.requires_grad_()
            (self.slope,) = torch.autograd.grad(F.cross_entropy(self(x), y), x)
            return super().training_step([x.detach() + 0.1 * self.slope.sign(), y], batch_idx)

    raw = [[x.requires_grad_(where == "loader"), y] for x, y in loader()]
    module, callback = Gradient(), counted()
    fit(module, [callback], train=Fixed(raw))
    assert callback.calls == len(module.seen) == 3 and module.slope.abs().sum() > 0
    assert all(x.grad is None for x, _ in raw)
