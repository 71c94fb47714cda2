"""Maps from the moving average or from a teacher: what they are, where they are kept, and what never learns of them."""

import pickle

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lit import SILENT, Fixed, Lit, fit, loader, same, state
from models import PooledNet, assert_same, snapshot
from safetensors.torch import save_file

from groupcam_aug import GroupCAM, SaliencyBlur
from groupcam_aug.callbacks import GroupCAMAugmentation
from groupcam_aug.callbacks.glue.map_source import DECAY, MapSource
from groupcam_aug.moving_average import moving_average


def make(**options):
    return GroupCAMAugmentation(**{"preset": "paper", "network": "net", "layer": "relu2", "groups": 4, **options})


def teacher(classes=5):
    torch.manual_seed(5)
    return PooledNet(classes=classes)


def test_teacher_gives_the_maps_and_stays_as_it_was():
    net = teacher().train()
    before = snapshot(net)
    module = Lit()
    trainer = fit(module, [make(source=net)], max_epochs=2)
    batches = [*loader(), *loader()]
    expected = [SaliencyBlur(GroupCAM.for_training(net, "relu2", groups=4))(x, y) for x, y in batches]
    assert same(module.seen, expected), "the same maps in every epoch: the teacher does not train"
    after = snapshot(net)
    before.pop("rng"), after.pop("rng")
    assert_same(before, after)
    known = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert known == {id(p) for p in module.parameters()}


class Unshaped(Lit):
    """The classifier takes its shape in the first step."""

    def __init__(self):
        super().__init__()
        self.net.fc = torch.nn.LazyLinear(5)

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.conv1.parameters(), 0.05)


def test_average_of_lazy_modules_waits_for_their_shape():
    module = Unshaped()
    with pytest.warns(UserWarning, match="take their shape in the first step"):
        fit(module, [make(source="ema")], num_sanity_val_steps=0)
    raw = [x for x, _ in loader()]
    assert torch.equal(module.seen[0], raw[0]) and not torch.equal(module.seen[1], raw[1])


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".ckpt"])
def test_checkpoint_path_is_the_network_with_those_weights(tmp_path, suffix):
    net, path = teacher(), tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(net.state_dict(), path)
    elif suffix == ".pt":
        torch.save({f"module.{k}": v for k, v in net.state_dict().items()}, path)
    else:
        trainer = pl.Trainer(**SILENT, max_steps=0)
        trainer.strategy.connect(Lit(net))
        trainer.save_checkpoint(path)
    by_path, by_net = Lit(), Lit()
    fit(by_path, [make(source=str(path) if suffix == ".pt" else path)])
    fit(by_net, [make(source=net)])
    assert same(by_path.seen, by_net.seen)


def test_average_follows_the_optimiser_steps():
    """Maps of batch i come from the average after i steps."""

    class Watched(Lit):
        def on_train_batch_start(self, batch, batch_idx):
            self.weights = [*getattr(self, "weights", []), {k: v.clone() for k, v in self.net.state_dict().items()}]

    module = Watched()
    fit(module, [make(source="ema")], max_epochs=2)
    net = PooledNet()
    net.load_state_dict(module.weights[0])
    average = moving_average(net, DECAY)
    for i, (x, y) in enumerate([*loader(), *loader()]):
        if i:
            net.load_state_dict(module.weights[i])
            average.update_parameters(net)
        expected = SaliencyBlur(GroupCAM.for_training(average.module, "relu2", groups=4))(x, y)
        assert torch.equal(module.seen[i], expected), i


def test_average_counts_optimiser_steps_not_batches():
    callback, seen = make(source="ema"), []

    class Spy(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            seen.append(int(callback._fit.source.average.n_averaged))

    fit(Lit(), [callback, Spy()], train=loader(24), accumulate_grad_batches=3)
    assert seen == [0, 0, 1, 1, 1, 2]


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation as it is around: a wrapper that is stepped by hand, past Lightning's counter."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
        self.base = torch.optim.SGD(self.param_groups, lr=lr)

    @torch.no_grad()
    def first_step(self):
        for p in self.param_groups[0]["params"]:
            self.state[p]["old"] = p.data.clone()
            p.add_(0.01 * p.grad)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for p in self.param_groups[0]["params"]:
            p.data = self.state[p]["old"]
        self.base.step()
        self.zero_grad()


class ByHand(Lit):
    """Manual optimisation: by SAM, or by an optimiser that Lightning counts."""

    def __init__(self, sam, every=1):
        super().__init__()
        self.automatic_optimization, self.sam, self.every = False, sam, every

    def configure_optimizers(self):
        return SAM(self.parameters(), lr=0.05) if self.sam else super().configure_optimizers()

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx))
        if self.sam:
            optimizer.first_step()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.second_step()
        elif batch_idx % self.every == self.every - 1:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize(
    "module, expected",
    [
        (ByHand(sam=True), [1, 2, 3, 4, 5, 6]),
        (ByHand(sam=False), [1, 2, 3, 4, 5, 6]),
        (ByHand(False, every=3), [1, 2, 3, 3, 3, 4]),
    ],
)
def test_average_under_manual_optimisation(module, expected):
    """Where Lightning counts no step at all every batch is one; the average of weights that have not moved is the same."""
    callback, seen = make(source="ema"), []

    class Spy(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            average = callback._fit.source.average
            seen.append(int(average.n_averaged))
            self.moved = not torch.equal(average.module.fc.weight, start)

    start, spy = module.net.fc.weight.detach().clone(), Spy()
    fit(module, [callback, spy], train=loader(24))
    assert seen == expected and spy.moved


def test_average_is_in_the_checkpoint_and_resumes(tmp_path):
    batches = [[x, y] for x, y in loader(24)]

    def run(ckpt=None, **options):
        module = Lit()
        module.net.drop.p = 0.0
        trainer = pl.Trainer(**{**SILENT, "enable_checkpointing": True}, callbacks=[make(source="ema", p=0.5)], **options)
        trainer.fit(module, Fixed(batches), ckpt_path=ckpt)
        return module, trainer

    whole, _ = run(max_steps=6, default_root_dir=tmp_path)

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "mid.ckpt")

    module = Lit()
    module.net.drop.p = 0.0
    options = {**SILENT, "enable_checkpointing": True, "default_root_dir": tmp_path}
    pl.Trainer(**options, callbacks=[make(source="ema", p=0.5), Save()], max_steps=4).fit(module, Fixed(batches))
    saved = torch.load(tmp_path / "mid.ckpt", weights_only=True)
    assert any(key.startswith("module.conv1") for key in saved["groupcam_aug.average"])
    assert not any("average" in key for key in saved["state_dict"])
    resumed, _ = run(ckpt=tmp_path / "mid.ckpt", max_steps=6, default_root_dir=tmp_path)
    assert same(whole.seen[4:], resumed.seen) and same(state(whole)[:-1], state(resumed)[:-1])


def test_checkpoint_without_an_average_starts_one(tmp_path):
    module = Lit()
    trainer = fit(module, [])
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    assert "groupcam_aug.average" not in torch.load(tmp_path / "plain.ckpt", weights_only=True)
    again = Lit()
    trainer = pl.Trainer(**SILENT, max_epochs=2, callbacks=[make(source="ema")])
    trainer.fit(again, loader(), ckpt_path=tmp_path / "plain.ckpt")
    assert len(again.seen) == 3


def test_an_average_that_is_no_longer_followed_is_not_passed_on(tmp_path):
    trainer = fit(Lit(), [make(source="ema")])
    trainer.save_checkpoint(tmp_path / "average.ckpt")
    assert "groupcam_aug.average" in torch.load(tmp_path / "average.ckpt", weights_only=True)
    trainer = pl.Trainer(**SILENT, max_epochs=2, callbacks=[make(p=0.0)])
    trainer.fit(Lit(), loader(), ckpt_path=tmp_path / "average.ckpt")
    trainer.save_checkpoint(tmp_path / "later.ckpt")
    assert "groupcam_aug.average" not in torch.load(tmp_path / "later.ckpt", weights_only=True)


def test_switched_off_average_changes_nothing():
    plain, off = Lit(), Lit()
    fit(plain, [], max_epochs=2)
    fit(off, [make(source="ema", p=0.0)], max_epochs=2)
    assert same(state(plain), state(off))


def test_a_teacher_of_other_classes_maps_its_first_choice():
    net, module = teacher(7), Lit()
    fit(module, [make(source=net, source_target="top1")])
    blur = SaliencyBlur(GroupCAM.for_training(net, "relu2", groups=4))
    assert same(module.seen, [blur(x, None) for x, _ in loader()])
    assert not any(torch.equal(blur(x, y), blur(x, None)) for x, y in loader()), "labels would give other maps"


def test_precision_of_the_teacher_follows():
    module = Lit()
    fit(module, [make(source=teacher())], precision="bf16-true")
    assert len(module.seen) == 3 and module.seen[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    "source, message",
    [
        (lambda tmp: "nowhere.ckpt", "neither 'self', 'ema' nor a file"),
        (lambda tmp: str(tmp / "other.pt"), "does not hold the weights of PooledNet"),
        (lambda tmp: teacher(7), "source network has 7 classes, the one in training 5: .*source_target='top1'"),
    ],
)
def test_refused(source, message, tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    module = Lit()
    with pytest.raises(MisconfigurationException, match=message):
        fit(module, [make(source=source(tmp_path))])
    assert not module.seen


def test_source_survives_pickling():
    assert pickle.loads(pickle.dumps(make(source="ema"))).source == "ema"
    net = teacher()
    copied = pickle.loads(pickle.dumps(make(source=net))).source
    assert same(list(copied.state_dict().values()), list(net.state_dict().values()))


def test_nothing_is_mapped_before_it_is_chosen():
    source = MapSource(pl.Trainer(**SILENT), "net", "self", GroupCAM.for_training)
    with pytest.raises(RuntimeError, match="before MapSource.start"), source.borrowed(torch.zeros(1, 3, 8, 8), "me"):
        pass
    with pytest.raises(RuntimeError, match="before MapSource.start"):
        source.classes(torch.zeros(1, 3, 8, 8))
