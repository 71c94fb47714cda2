"""The callback under a real Trainer: what is augmented, what is not, and what stays bit for bit as without it."""

import copy
import itertools
import json
import pickle
import re
from collections import namedtuple
from dataclasses import dataclass

import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lit import SILENT, Fixed, Lit, Pictures, fit, loader, same, state
from models import PooledNet
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, default_collate

from groupcam_aug import GroupCAM, SaliencyBlur, compiled
from groupcam_aug.callbacks import GroupCAMAugmentation
from groupcam_aug.callbacks.augmentation import PRESETS
from groupcam_aug.callbacks.glue.batch import batch_generator


def make(**options):
    return GroupCAMAugmentation(**{"preset": "paper", "network": "net", "layer": "relu2", "groups": 4, **options})


def plain_run(module=None, **options):
    module = module or Lit()
    fit(module, [], **options)
    return module, state(module)


def test_every_training_batch_is_augmented_once_and_no_other():
    module = Lit()
    fit(module, [make()], val=loader(6), max_epochs=2, num_sanity_val_steps=2)
    raw = list(loader())
    assert len(module.seen) == 6
    assert all(not torch.equal(seen, x) for seen, (x, _) in zip(module.seen, [*raw, *raw]))
    assert [len(x) for x in module.seen] == [4, 4, 2] * 2, "the last small batch too"
    assert all(torch.equal(x, y[0]) for x, y in zip(module.evaluated, [*loader(6)] * 3, strict=True))


def test_first_batch_equals_the_functional_form():
    module = Lit()
    x, y = next(iter(loader()))
    expected = SaliencyBlur(GroupCAM.for_training(module.net, "relu2", groups=4))(x, y)
    fit(module, [make()])
    assert torch.equal(module.seen[0], expected)


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_other_stages_are_untouched(stage):
    module = Lit()
    trainer = fit(module, [make()])
    getattr(trainer, stage)(module, loader(), **({} if stage == "predict" else {"verbose": False}))
    assert all(torch.equal(x, y[0]) for x, y in zip(module.evaluated, loader(), strict=True))


@pytest.mark.parametrize("options", [{"p": 0.0}, {"start_epoch": 99}, {"stop_epoch": 1, "p": 0.0}, {"strength": 0.0}])
def test_switched_off_is_bit_identical_to_no_callback(options):
    _, expected = plain_run(max_epochs=2, train=loader(shuffle=True))
    module = Lit()
    fit(module, [make(**options)], max_epochs=2, train=loader(shuffle=True))
    assert same(state(module), expected)


class Noisy(Lit):
    """Remembers the raw images under the augmented ones, and the dropout it drew."""

    def __init__(self):
        super().__init__()
        self.order, self.dropped = [], []

    def on_before_batch_transfer(self, batch, dataloader_idx):
        if self.trainer.training:
            self.order.append(batch[0].clone())
        return batch

    def training_step(self, batch, batch_idx):
        self.dropped.append(F.dropout(torch.ones(50), 0.5))
        return super().training_step(batch, batch_idx)


def test_data_order_and_dropout_are_those_of_a_run_without_it():
    runs = []
    for callbacks in ([], [make()]):
        module = Noisy()
        fit(module, callbacks, max_epochs=3, train=loader(shuffle=True))
        module.rng = torch.get_rng_state()
        runs.append(module)
    plain, augmented = runs
    assert same(plain.order, augmented.order) and same(plain.dropped, augmented.dropped)
    assert not same(plain.seen, augmented.seen)
    assert torch.equal(plain.rng, augmented.rng)


def test_training_equals_one_that_is_given_the_same_images():
    """Row 4: frozen BatchNorm, running statistics and dropout are those of a run that finds the augmented images in its loader."""

    class Half(Lit):
        def on_fit_start(self):
            self.net.bn1.eval()

    module = Half()
    fit(module, [make()], train=Fixed([*loader(), *loader()]))
    batches = [[x, y[1]] for x, y in zip(module.seen, [*loader(), *loader()])]
    twin = Half()
    fit(twin, [], train=Fixed(batches))
    assert not module.net.bn1.training
    assert same(state(module)[:-1], state(twin)[:-1])


Pair = namedtuple("Pair", ["x", "y"])


@dataclass
class Sample:
    x: torch.Tensor
    y: torch.Tensor


BATCHES = {
    "list": (lambda x, y: [x, y], {}),
    "tuple": (lambda x, y: (x, y), {}),
    "dict": (lambda x, y: {"x": x, "y": y}, {"image_key": "x", "target_key": "y"}),
    "namedtuple": (lambda x, y: Pair(x, y), {"image_key": "x", "target_key": "y"}),
    "dataclass": (lambda x, y: Sample(x, y), {"image_key": "x", "target_key": "y"}),
    "nested": (lambda x, y: [{"deep": (x, 1)}, {"y": y}], {"image_key": [0, "deep", 0], "target_key": [1, "y"]}),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_batch_structures(kind):
    build, keys = BATCHES[kind]

    class Any(Lit):
        def read(self, batch):
            if kind == "nested":
                return batch[0]["deep"][0], batch[1]["y"]
            return (batch["x"], batch["y"]) if isinstance(batch, dict) else (batch.x, batch.y) if keys else batch

    module, reference = Any(), Lit()
    fit(module, [make(**keys)], train=loader(collate_fn=lambda items: build(*default_collate(items))))
    fit(reference, [make()])
    assert len(module.seen) == 3 and same(module.seen, reference.seen)


def test_the_dataset_is_never_written():
    data = Pictures()
    before = data.images.clone()
    views = [[data.images[i : i + 4], data.labels[i : i + 4]] for i in (0, 4)]  # cached views: already on the device
    module = Lit()
    fit(module, [make()], train=Fixed(views), max_epochs=3)
    assert torch.equal(data.images, before)
    assert all(views[i][0].data_ptr() == data.images[4 * i :].data_ptr() for i in (0, 1))
    assert not torch.equal(module.seen[0], before[:4])


def test_nothing_is_left_behind_after_fit_and_the_callback_serves_again():
    module, callback = Lit(), make()
    names = {name: sorted(vars(m)) for name, m in module.named_modules() if name}
    trainer = fit(module, [callback])
    assert "batch_to_device" not in vars(trainer.strategy) and "_groupcam_dispatcher" not in vars(trainer.strategy)
    assert {name: sorted(vars(m)) for name, m in module.named_modules() if name} == names
    assert "log" not in vars(module) and "log_dict" not in vars(module)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, loader())
    assert len(module.seen) == 6
    other = Lit()
    fit(other, [callback])
    assert len(other.seen) == 3 and not torch.equal(other.seen[0], Pictures().images[:4])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_released_after_an_error_or_ctrl_c(error):
    class Fails(Lit):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            raise error("planted")

    module = Fails()
    trainer = pl.Trainer(**SILENT, max_epochs=1, callbacks=[make()])
    with pytest.raises((error, SystemExit)):
        trainer.fit(module, loader())
    assert "batch_to_device" not in vars(trainer.strategy)
    assert len(module.seen) == 1 and module.net.training


def test_resume_in_the_middle_of_an_epoch_repeats_the_draws(tmp_path):
    def run(ckpt=None, **options):
        module = Lit()
        module.net.drop.p = 0.0  # its stream is the user's to restore
        trainer = pl.Trainer(**{**SILENT, "enable_checkpointing": True}, callbacks=[make(p=0.5)], **options)
        trainer.fit(module, Fixed(batches), ckpt_path=ckpt)
        return module, trainer

    batches = [[x, y] for x, y in loader(24)]  # 6 steps, fixed per step
    whole, _ = run(max_steps=6, default_root_dir=tmp_path)
    first, trainer = run(max_steps=4, default_root_dir=tmp_path)
    trainer.save_checkpoint(tmp_path / "mid.ckpt")
    assert torch.load(tmp_path / "mid.ckpt", weights_only=True)["global_step"] == 4
    resumed, _ = run(tmp_path / "mid.ckpt", max_steps=6, default_root_dir=tmp_path)
    assert same(whole.seen[4:], resumed.seen)
    assert same(state(whole)[:-1], state(resumed)[:-1])
    assert not same(state(whole)[:-1], state(first)[:-1]), "the last two steps trained something"


def test_draws_follow_seed_rank_and_batch():
    seen = []
    for seed in (0, 0, 1):
        module = Lit()
        fit(module, [make(p=0.5, seed=seed)], max_epochs=2)
        seen.append(module.seen)
    assert same(seen[0], seen[1]) and not same(seen[0], seen[2])


class Labelled(Lit):
    """Remembers labels too."""

    def training_step(self, batch, batch_idx):
        self.labels = [*getattr(self, "labels", []), batch[1].clone()]
        return super().training_step(batch, batch_idx)


def test_mixed_labels_reach_the_step():
    """Rows that say whose pixels are there; where nobody is drawn, and in validation, class indices as they were."""
    module, own = Labelled(), Lit()
    options = {"fill": "other", "mask_at": "target", "p": 0.5, "every_n_steps": 2}
    trainer = fit(module, [make(labels="mixed", **options)], val=loader(6))
    fit(own, [make(**options)])
    raw = list(loader())
    assert torch.equal(module.seen[0], own.seen[0]) and not torch.equal(module.seen[0], raw[0][0])
    assert torch.equal(module.labels[1], raw[1][1]), "every second batch is left"
    for rows, seen, (x, y) in zip(module.labels[::2], module.seen[::2], raw[::2], strict=True):
        kept = (seen == x).all(dim=1).float().mean(dim=(1, 2))
        expected = kept[:, None] * F.one_hot(y, 5) + (1 - kept[:, None]) * F.one_hot(y.roll(-1), 5)
        torch.testing.assert_close(rows, expected)
    assert all(y.ndim == 1 for _, y in loader(6)) and trainer.global_step == 3


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_mixed_labels_in_other_precisions(precision):
    module = Labelled()
    fit(module, [make(fill="other", labels="mixed")], precision=precision)
    assert [tuple(rows.shape) for rows in module.labels] == [(4, 5), (4, 5), (2, 5)]
    assert all(torch.allclose(rows.sum(dim=1), torch.ones(len(rows))) for rows in module.labels)


def test_labels_that_cannot_be_mixed_are_refused():
    batches = Fixed([[x, y.tolist()] for x, y in loader()])
    with pytest.raises(MisconfigurationException, match="labels must be .* got list"):
        fit(Lit(), [make(fill="other", labels="mixed")], train=batches)


@pytest.mark.parametrize(
    "precision, dtype", [("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16), ("64-true", torch.float64)]
)
def test_precisions(precision, dtype):
    module = Lit()
    fit(module, [make()], precision=precision)
    assert len(module.seen) == 3 and all(x.dtype == dtype and x.isfinite().all() for x in module.seen)
    assert not torch.equal(module.seen[0], Pictures().images[:4].to(dtype))


def test_maps_alone_in_half_precision(caplog):
    """The batches are those of maps under autocast; the training step stays in float32."""
    caplog.set_level("INFO")
    module, dtypes = Lit(), set()
    x, y = next(iter(loader()))
    with torch.autocast("cpu", torch.bfloat16):
        maps = GroupCAM.for_training(module.net, "relu2", groups=4)(x, y)
    expected = SaliencyBlur(lambda *_: maps)(x, y)
    module.net.conv1.register_forward_hook(lambda net, _, output: dtypes.add((net.training, output.dtype)))
    fit(module, [make(precision="bf16-mixed")])
    assert torch.equal(module.seen[0], expected) and module.seen[0].dtype == torch.float32
    assert (False, torch.bfloat16) in dtypes and (True, torch.bfloat16) not in dtypes
    assert "forward passes (counted, in bf16-mixed), so less than +" in caplog.text
    with pytest.raises(MisconfigurationException, match="precision='bf16-mixed' is for images and networks in float32"):
        fit(Lit(), [make(precision="bf16-mixed")], precision="64-true")


def test_logged_values_profile_and_plan(tmp_path, caplog):
    caplog.set_level("INFO")
    logger = pl.loggers.CSVLogger(tmp_path)
    module = Lit()
    trainer = fit(module, [make()], logger=logger, log_every_n_steps=1, profiler="simple")
    rows = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    assert {"groupcam/keep_fraction", "groupcam/no_map", "groupcam/seconds"} <= set(rows[0].split(",")) and len(rows) == 5, (
        "and the epoch's means"
    )
    assert 0 < trainer.callback_metrics["groupcam/keep_fraction"] <= 1
    assert 0 <= trainer.callback_metrics["groupcam/no_map"] <= 1 and trainer.callback_metrics["groupcam/seconds"] > 0
    assert "[Callback]GroupCAMAugmentation.augment" in trainer.profiler.summary()
    told = [r.getMessage() for r in caplog.records if "Group-CAM augmentation" in r.getMessage()]
    assert told == [
        "Group-CAM augmentation: relu2, 8 x 12 x 10, G=4, every image: a map costs 6.7 forward passes (counted), so about "
        "+222% of a step"  # 6 of them masked, blurred or plain; a network as small as this one is hardly more than a blur
    ]


def test_compiled_passes_give_the_same_batches_and_the_plan_tells_what_they_took(monkeypatch, caplog):
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    caplog.set_level("INFO")
    eager, quick = Lit(), Lit()
    quick.load_state_dict(eager.state_dict())
    for module, options in ((eager, {}), (quick, {"compile": True, "chunk": 4})):
        fit(module, [make(**options)], max_epochs=2)
    for one, other in zip(eager.seen, quick.seen, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-5)
    plain, told = [r.getMessage() for r in caplog.records if "Group-CAM augmentation" in r.getMessage()]
    assert re.fullmatch(re.escape(plain) + r"; scoring passes compiled in \d+ s, 1 graph", told)


@pytest.mark.parametrize("options", [{"mask_from": "whole"}, {"mask_from": lambda x, y: x[:, 0] > 0}])
def test_the_plan_promises_no_pass_where_no_map_is_made(options, caplog):
    caplog.set_level("INFO")
    fit(Lit(), [make(**options)])
    (told,) = [r.getMessage() for r in caplog.records if "Group-CAM augmentation" in r.getMessage()]
    assert told.endswith("masks, every image: no extra forward pass")


def test_logged_seconds_stay_off_the_device():
    """Lightning takes a number to the device and waits for it; a tensor stays where it is."""
    logged = {}

    class Logging(Lit):
        def log(self, name, value, **options):
            logged[name] = value
            super().log(name, value, **options)

    fit(Logging(), [make()])
    assert all(isinstance(value, torch.Tensor) for name, value in logged.items() if name.startswith("groupcam/"))
    assert logged["groupcam/seconds"].device.type == "cpu"


def test_keep_fraction_is_the_share_of_untouched_pixels(tmp_path):
    module = Lit()
    trainer = fit(module, [make()], limit_train_batches=1)
    raw = next(iter(loader()))[0]
    kept = (module.seen[0] == raw).all(dim=1).float().mean()
    torch.testing.assert_close(trainer.callback_metrics["groupcam/keep_fraction"], kept)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset):
    callback = GroupCAMAugmentation(preset=preset, network="net", layer="relu2", groups=4)
    assert callback.augment.p == PRESETS[preset]["p"] and callback.mask_at == PRESETS[preset]["mask_at"]
    module = Lit()
    fit(module, [callback], train=loader(16))
    changed = sum(int((a != b[0]).flatten(1).any(1).sum()) for a, b in zip(module.seen, loader(16)))
    assert (8 < changed <= 16) if preset == "paper" else (0 < changed < 16)


def test_schedule():
    module = Lit()
    fit(module, [make(start_epoch=1, stop_epoch=3, every_n_steps=2)], max_epochs=4)
    raw = [x for x, _ in loader()] * 4
    changed = [i for i, (a, b) in enumerate(zip(module.seen, raw)) if not torch.equal(a, b)]
    assert changed == [4, 6, 8]  # batches 3..8 are inside the window, every second of the run's batches is due


class Bare(pl.LightningModule):
    """No forward of its own; net, targets and outputs in whatever form."""

    def __init__(self, net):
        super().__init__()
        self.backbone = net

    def training_step(self, batch, batch_idx):
        return self.backbone(batch[0]).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_refuses_a_module_without_forward_and_names_its_networks():
    with pytest.raises(MisconfigurationException, match=r"network=.*\['backbone'\]"):
        fit(Bare(PooledNet()), [GroupCAMAugmentation(preset="paper", groups=4)])
    fit(Bare(PooledNet()), [GroupCAMAugmentation(preset="paper", network="backbone", groups=4)])


def test_refuses_an_unknown_network():
    with pytest.raises(MisconfigurationException, match=r"no network 'model'.*\['net'\]"):
        fit(Lit(), [GroupCAMAugmentation(preset="paper", network="model")])


def test_the_module_itself_as_network():
    module, named = Lit(), Lit()
    fit(module, [GroupCAMAugmentation(preset="paper", groups=4)])
    fit(named, [GroupCAMAugmentation(preset="paper", network="net", groups=4)])
    assert same(module.seen, named.seen)


def test_refuses_torchmetrics_in_forward():
    class Counting(Lit):
        def __init__(self):
            super().__init__()
            self.mean = torchmetrics.MeanMetric()

        def forward(self, x):
            self.mean.update(x.mean())
            return self.net(x)

    module = Counting()
    with pytest.raises(MisconfigurationException, match="updates torchmetrics.*network="):
        fit(module, [GroupCAMAugmentation(preset="paper", groups=4)])
    assert not module.seen, "before the first step"


def test_log_in_forward_is_the_users_alone(tmp_path):
    class Logging(Lit):
        def forward(self, x):
            self.log("mean", x.mean(), on_epoch=True, on_step=False, batch_size=len(x))
            return self.net(x)

    module = Logging()
    trainer = fit(module, [GroupCAMAugmentation(preset="paper", groups=4)])
    expected = sum(x.mean() * len(x) for x in module.seen) / 10
    torch.testing.assert_close(trainer.callback_metrics["mean"], expected)


@pytest.mark.parametrize(
    "collate, options, message",
    [
        (lambda x, y: {"pixels": x, "y": y}, {}, r"0 is not in the batch, which holds \{'pixels': float32 tensor"),
        (lambda x, y: [y, x], {}, r"image_key=0 gives a int64 tensor.*1: float32 tensor"),
        (lambda x, y: [x], {}, "1 is not in the batch.*target_key=None"),
        (lambda x, y: [(x * 255).byte(), y], {}, "uint8 tensor.*normalise"),
        (lambda x, y: [x.flatten(1), y], {}, "not floating-point images"),
    ],
)
def test_refuses_batches_without_an_image(collate, options, message):
    module = Lit()
    with pytest.raises(MisconfigurationException, match=message):
        fit(module, [make(**options)], train=loader(collate_fn=lambda items: collate(*default_collate(items))))
    assert not module.seen


def test_refuses_labels_outside_the_classes():
    with pytest.raises(MisconfigurationException, match="target 9 is outside the 5 classes"):
        fit(Lit(), [make()], train=loader(collate_fn=lambda items: [default_collate(items)[0], torch.full((len(items),), 9)]))


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
def test_refuses_dataloader_iter():
    class Iter(Lit):
        def training_step(self, dataloader_iter):
            batch, _, _ = next(dataloader_iter)
            return self(batch[0]).sum()

    with pytest.raises(MisconfigurationException, match="dataloader_iter.*SaliencyBlur"):
        fit(Iter(), [make()])


def test_refuses_a_bypass():
    class Bypass(pl.Callback):
        def on_train_start(self, trainer, module):
            kind = type(trainer.strategy)
            trainer.strategy.batch_to_device = lambda *a, **k: kind.batch_to_device(trainer.strategy, *a, **k)

    module = Lit()
    with pytest.raises(MisconfigurationException, match="without passing GroupCAMAugmentation"):
        fit(module, [make(), Bypass()])
    assert not module.seen


def test_bare_tensor_batches_and_no_target():
    class Autoencoder(Lit):
        def training_step(self, batch, batch_idx):
            x = batch if isinstance(batch, torch.Tensor) else batch[0]
            self.seen.append(x.clone())
            return self(x).sum()

    module, pairs = Autoencoder(), Autoencoder()
    fit(module, [make()], train=DataLoader(Pictures().images, 4))
    fit(pairs, [make(target_key=None)])
    assert len(module.seen) == 3 and same(module.seen, pairs.seen)
    assert not torch.equal(module.seen[0], Pictures().images[:4])


def test_output_and_preprocess():
    class Rich(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = PooledNet()

        def forward(self, x):
            return {"features": x, "scores": self.inner(x)}

    class Normalises(Lit):
        def training_step(self, batch, batch_idx):
            x, y = batch
            self.seen.append(x)
            return F.cross_entropy(self.net((x - 0.5) * 2)["scores"], y)

    torch.manual_seed(3)
    module = Normalises(Rich())
    x, y = next(iter(loader()))
    cam = GroupCAM.for_training(lambda_net := module.net, "inner.relu2", groups=4, output="scores", preprocess=centred)
    expected = SaliencyBlur(cam)(x, y)
    assert lambda_net is module.net
    fit(module, [make(layer="inner.relu2", output="scores", preprocess=centred)])
    assert torch.equal(module.seen[0], expected)


def centred(x):
    return (x - 0.5) * 2


def test_repr_pickle_and_copies_rebuild_it():
    callback = make(p=0.25, threshold="q0.6", fill="mean")
    text = repr(callback)
    assert text == (
        "GroupCAMAugmentation(preset='paper', network='net', layer='relu2', groups=4, p=0.25, threshold='q0.6', fill='mean')"
    )
    for twin in (eval(text), pickle.loads(pickle.dumps(callback)), copy.deepcopy(callback)):
        assert repr(twin) == text and twin.augment.p == 0.25


@pytest.mark.parametrize(
    "options, message",
    [
        ({"preset": "quick"}, "preset must be one of 'paper', 'balanced', 'fast'"),
        ({"p": 2}, "p must be a number from 0 to 1, got 2"),
        ({"every_n_steps": 0}, "every_n_steps"),
        ({"start_epoch": 3, "stop_epoch": 3}, "stop_epoch must be a whole number of at least 4 or None, got 3"),
        ({"groups": 0}, "groups must be a whole number of at least 1, got 0"),
        ({"weights": "grad"}, "weights must be one of"),
        ({"threshold": "median"}, "threshold"),
        ({"labels": "soft"}, "labels must be one of 'own', 'mixed'; got 'soft'"),
        ({"source_target": "top2"}, "source_target must be one of 'label', 'top1'; got 'top2'"),
        ({"source": nn.Identity(), "source_target": "top1", "labels": "mixed", "fill": "other"}, "may have others"),
        ({"labels": "mixed"}, "labels='mixed' needs fill='other'"),
        ({"labels": "mixed", "fill": "other", "target_key": None}, "and a target_key"),
    ],
)
def test_bad_arguments_raise_where_they_are_given(options, message):
    with pytest.raises(ValueError, match=message):
        GroupCAMAugmentation(**options)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "rows, options, warned",
    [
        ([[1, 1, 0, 0, 0]] * 4, {}, True),
        ([[1, 1, 0, 0, 0]] * 4, {"activation": "sigmoid"}, False),
        ([[0.3, 0.7, 0, 0, 0]] * 4, {}, False),
    ],
)
def test_several_labels_an_image_under_softmax_are_pointed_out(rows, options, warned, recwarn):
    batch = [next(iter(loader()))[0], torch.tensor(rows, dtype=torch.float32)]
    pl.Trainer(**SILENT, max_steps=1, callbacks=[make(**options)]).fit(Lit(), Fixed([batch]))
    assert any("activation='sigmoid'" in str(each.message) for each in recwarn) == warned


CAM_ARGUMENTS = {"layer", "groups", "weights", "mask_at", "baseline", "activation", "output", "preprocess", "chunk"}
# The first argument of each has a value that no preset has.
FORWARDED = [
    {"layer": "relu1", "mask_at": "input", "baseline": "blur"},
    {"groups": 2},
    {"weights": "gradient"},
    {"mask_at": "conv2"},
    {"baseline": "zero", "mask_at": "conv2"},
    {"baseline": "blur", "mask_at": "target"},
    {"activation": "sigmoid"},
    {"output": lambda logits: logits.roll(1, dims=1)},
    {"preprocess": lambda images: images * 2 - 1},
    {"strength": 0.5},
    {"threshold": 0.8},
    {"threshold": "q0.6"},
    {"fill": "mean"},
    {"fill": "noise"},
    {"fill": "other"},
    {"mask_from": "other"},
    {"mask_from": "centre"},
    {"mask_from": "whole"},
    {"mask_from": "inverse"},
    {"p": 0.25},
    {"seed": 3, "p": 0.25},
]


def functional(net, batch, options):
    """The first training batch as the functional form augments it, given the callback's arguments."""
    images, targets = batch
    seed = options.pop("seed", 0)
    preset = PRESETS[options.pop("preset")]
    options = {"layer": "relu2", "groups": 4, **preset, **options}
    cam = GroupCAM.for_training(net, **{name: options.pop(name) for name in [*options] if name in CAM_ARGUMENTS})
    return SaliencyBlur(cam, generator=batch_generator(seed, 0, 0), **options)(images, targets)


def case_name(options):
    return ", ".join(name if callable(value) else f"{name}={value}" for name, value in options.items()) or "defaults"


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("options", [{}, *FORWARDED], ids=case_name)
def test_every_argument_reaches_the_maps_and_the_blend(preset, options):
    module, batch = Lit(), next(iter(loader(16, batch_size=16)))
    net = copy.deepcopy(module.net)
    fit(module, [make(preset=preset, **options)], train=loader(16, batch_size=16))
    assert torch.equal(module.seen[0], functional(net, batch, {"preset": preset, **options}))
    rest = dict([*options.items()][1:])
    if options:
        without = functional(net, batch, {"preset": preset, **rest})
        same_by_preset = all(PRESETS[preset].get(name) == value for name, value in [*options.items()][:1])
        assert torch.equal(module.seen[0], without) == same_by_preset, "the argument makes a difference here"


@pytest.mark.parametrize("rank", [0, 1])
def test_draws_are_those_of_the_seed_the_rank_and_the_number_of_the_batch(rank, monkeypatch):
    monkeypatch.setattr(pl.Trainer, "global_rank", property(lambda self: rank))
    module, options = Lit(), {"mask_from": "whole", "fill": "noise", "p": 0.5}
    fit(module, [make(seed=4, **options)], train=loader(12), max_epochs=2)
    expected = [
        SaliencyBlur(None, generator=batch_generator(4, rank, number), **options)(*batch)
        for number, batch in enumerate([*loader(12), *loader(12)])
    ]
    assert same(module.seen, expected)


def test_every_seed_rank_and_batch_has_a_stream_of_its_own():
    streams = {float(torch.rand(1, generator=batch_generator(*key)).double()) for key in itertools.product((0, 1, 12), repeat=3)}
    assert len(streams) == 27


class Whole(GroupCAMAugmentation):
    """Has arguments of its own, and says the others itself."""

    def __init__(self, strong=True):
        super().__init__(network="net", layer="relu2", groups=4, mask_from="whole", fill="mean")


def test_records_hold_the_settings_of_subclasses_too(tmp_path):
    fit(Lit(), [Whole()], logger=CSVLogger(tmp_path))
    (path,) = tmp_path.rglob("augmentation.json")
    facts = json.loads(path.read_text())
    assert (facts["mask_from"], facts["fill"], facts["groups"], facts["preset"]) == ("whole", "mean", 4, "fast")


def test_settings_changed_after_construction_hold():
    module, batch = Lit(), next(iter(loader(16, batch_size=16)))
    net, callback = copy.deepcopy(module.net), make()
    callback.mask_at, callback.groups = "target", 2
    fit(module, [callback], train=loader(16, batch_size=16))
    expected = {"preset": "paper", "mask_at": "target", "groups": 2}
    assert torch.equal(module.seen[0], functional(net, batch, expected))


def test_a_batch_whose_maps_failed_is_not_kept():
    class Fails(nn.Module):
        def forward(self, x):
            raise MemoryError("no room")

    callback, module = make(), Lit()
    callback.on_exception = lambda *_: None  # as in a tuner's trial, which calls no hook
    module.net.pool = Fails()
    with pytest.raises(MemoryError):
        fit(module, [callback])
    assert not len(callback._fit.step.images) and callback._fit.step.due == 4


def test_presets_differ_in_their_maps():
    net, batch = PooledNet(), next(iter(loader(16, batch_size=16)))
    paper, balanced, fast = (functional(net, batch, {"preset": preset, "p": 1.0}) for preset in PRESETS)
    assert not torch.equal(paper, balanced) and not torch.equal(balanced, fast) and not torch.equal(paper, fast)


@pytest.mark.parametrize("chunk", [None, 3])
def test_chunk_bounds_the_rows_of_a_pass(chunk):
    module, rows = Lit(), []
    callback = make(chunk=chunk)
    module.net.conv1.register_forward_hook(
        lambda _m, inputs, _o: rows.append(len(inputs[0])) if callback.in_extra_forward else None
    )
    fit(module, [callback], train=loader(8, batch_size=8))
    assert rows and (max(rows) <= 3) == (chunk == 3)
