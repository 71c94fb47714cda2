"""What holds in every mode of the callback. A mode that tests/helpers/modes.py does not have fails here."""

import copy
import inspect
import pickle
import types
import typing
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from lit import SILENT, Pictures, same, state
from modes import MODES
from torch import nn

from groupcam_aug.callbacks import GroupCAMAugmentation
from groupcam_aug.callbacks.augmentation import PRESETS

every_mode = pytest.mark.parametrize("name", MODES)


def fit(module, callbacks, train, **options):
    torch.manual_seed(11)
    trainer = pl.Trainer(**{**SILENT, "max_epochs": 2, "callbacks": callbacks, **options})
    trainer.fit(module, train)
    return trainer


class Saves(pl.Callback):
    """A checkpoint at the end of an epoch, while the fit goes on."""

    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer, module):
        trainer.save_checkpoint(self.path)


def changed(module):
    """How many images of each batch differ from the loader's."""
    raw = Pictures(12).images.split(6)
    return [int((x != raw[i % 2]).flatten(1).any(1).sum()) for i, x in enumerate(module.seen)]


def choices(annotation):
    """The values that a Literal (or a Literal within a union) allows."""
    if typing.get_origin(annotation) is typing.Literal:
        return {*typing.get_args(annotation)}
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return set().union(*(choices(part) for part in typing.get_args(annotation)))
    return set()


def kinds(annotation):
    """What else it allows: a callable, None."""
    parts = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else ()
    return {"callable" for part in parts if typing.get_origin(part) is not None and "Callable" in repr(part)}


def holds_code(value):
    """Whether it is a callable, or a (getter, setter) pair, or a list of such."""
    return callable(value) or isinstance(value, tuple) or (isinstance(value, list) and any(map(holds_code, value)))


def missing():
    """Arguments, their Literal choices and their callables that no mode has."""
    hints = typing.get_type_hints(GroupCAMAugmentation.__init__)
    lacking = []
    for name in inspect.signature(GroupCAMAugmentation).parameters:
        given = [mode.callback()._call[1].get(name) for mode in MODES.values() if name in {**mode.common, **mode.arguments}]
        if not given:
            lacking.append(name)
        lacking += [f"{name}={choice!r}" for choice in choices(hints[name]) if choice not in given]
        if kinds(hints[name]) and not any(map(holds_code, given)):
            lacking.append(f"{name}=callable")
    sources = [mode.arguments.get("source") for mode in MODES.values()]
    lacking += [f"source={choice!r}" for choice in ("self", "ema", "masks") if choice not in sources]
    lacking += [] if any(isinstance(source, nn.Module) for source in sources) else ["source=network"]
    lacking += [] if any(Path(str(source)).suffix == ".ckpt" for source in sources) else ["source=checkpoint"]
    for place in ("input", "stage", "target", "relu1"):
        if not any(mode.arguments.get("mask_at") == place for mode in MODES.values()):
            lacking.append(f"mask_at={place!r}")
    return lacking + [
        f"preset={name!r}" for name in PRESETS if not any(m.arguments.get("preset") == name for m in MODES.values())
    ]


def test_no_mode_is_missing():
    assert missing() == []


def test_a_missing_mode_is_noticed(monkeypatch):
    """Guards the guard: an argument, a choice of one, a callable."""
    for gone in ("chunk", "fill noise", "fill callable", "preset fast", "mask_at a layer", "start_epoch"):
        monkeypatch.delitem(MODES, gone)
    assert {"chunk", "fill='noise'", "fill=callable", "preset='fast'", "mask_at='relu1'", "start_epoch"} <= set(missing())


@every_mode
def test_trains_and_augments(name):
    mode = MODES[name]
    module, callback = mode.module(), mode.callback()
    before = [p.clone() for p in module.parameters()]
    trainer = fit(module, [callback], mode.loader())
    assert len(module.seen) == 4 and all(x.isfinite().all() for x in module.seen)
    assert not same(before, [*module.parameters()])
    counts = changed(module)
    due = [
        callback._is_due(epoch, 2 * epoch + batch) and not mode.quiet and callback.augment.strength > 0
        for epoch in range(2)
        for batch in range(2)
    ]
    assert [count > 0 for count in counts] == due, counts
    if callback.augment.p < 1:
        assert sum(counts) < 24
    assert "batch_to_device" not in vars(trainer.strategy)


@every_mode
def test_repeats_and_resumes(name, tmp_path):
    """The same run twice is the same to the bit, and so is one that goes on from a checkpoint in between."""
    mode = MODES[name]
    whole, first, resumed = mode.module(), mode.module(), mode.module()
    fit(whole, [mode.callback()], mode.loader())
    fit(first, [mode.callback(), Saves(tmp_path / "one.ckpt")], mode.loader(), max_epochs=1)
    trainer = pl.Trainer(**SILENT, max_epochs=2, callbacks=[mode.callback()])
    trainer.fit(resumed, mode.loader(), ckpt_path=tmp_path / "one.ckpt")
    assert same(whole.seen[:2], first.seen) and same(whole.seen[2:], resumed.seen)
    assert same(state(whole)[:-1], state(resumed)[:-1]) and not same(state(whole)[:-1], state(first)[:-1])


def test_checkpoint_after_the_fit_holds_the_average(tmp_path):
    """`trainer.save_checkpoint` when all is done, then some epochs more: the average must not start anew."""
    mode = MODES["source ema"]
    whole, resumed = mode.module(), mode.module()
    fit(whole, [mode.callback()], mode.loader())
    fit(mode.module(), [mode.callback()], mode.loader(), max_epochs=1).save_checkpoint(tmp_path / "one.ckpt")
    trainer = pl.Trainer(**SILENT, max_epochs=2, callbacks=[mode.callback()])
    trainer.fit(resumed, mode.loader(), ckpt_path=tmp_path / "one.ckpt")
    assert same(whole.seen[2:], resumed.seen)


@every_mode
def test_fit_twice(name):
    """The same callback again, for another module: it keeps nothing of the first run."""
    mode = MODES[name]
    callback, first, second = mode.callback(), mode.module(), mode.module()
    fit(first, [callback], mode.loader())
    fit(second, [callback], mode.loader())
    assert len(second.seen) == 4 and same(first.seen, second.seen)


@every_mode
def test_copies_and_repr(name):
    """A deep copy, a pickle and (without callables) the repr make the same callback."""
    mode = MODES[name]
    callback, reference = mode.callback(), mode.module()
    twins = [copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))]
    if not any(isinstance(value, nn.Module) or holds_code(value) for value in mode.arguments.values()):
        twins.append(eval(repr(callback)))
    fit(reference, [callback], mode.loader(), max_epochs=1)
    for twin in twins:
        assert repr(twin) == repr(callback)
        module = mode.module()
        fit(module, [twin], mode.loader(), max_epochs=1)
        assert same(module.seen, reference.seen)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["preset balanced", "weights gradient", "fill noise", "image_key nested", "output callable"])
def test_two_processes(name, tmp_path):
    """One run of two spawned processes: weights equal, batches of each rank augmented with masks of its own."""
    from processes import run_ranks

    ranks = run_ranks(tmp_path, "spawn", mode=name)
    assert same(ranks[0]["weights"], ranks[1]["weights"])
    raw = Pictures(12).images.split(6)
    for rank, told in ranks.items():
        assert len(told["seen"]) == told["calls"] == 1, "one of the two batches each"
        assert not torch.equal(told["seen"][0], raw[rank])
    assert ranks[0]["during maps"] == ranks[1]["during maps"] == []
