"""The monitor in a Trainer: what it logs, that training does not notice it, that a resumed run sees the same."""

import copy
import json
import math
import pickle
import random
import warnings
from itertools import pairwise

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from lit import SILENT, Fixed, Lit, same, state
from monitoring import Learner, Plain, batches, textures, watched
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from groupcam_aug import GradCAM, GroupCAM
from groupcam_aug.callbacks import GroupCAMAugmentation, SaliencyMonitor, SaliencyReport
from groupcam_aug.callbacks import monitor as monitor_module
from groupcam_aug.callbacks.monitoring import probing_cost, session, snapshots
from groupcam_aug.callbacks.monitoring.map_stats import UNKNOWN
from groupcam_aug.files import read_lines

KEYS = {f"saliency/{name}" for name in UNKNOWN}


class Keep(pl.Callback):
    """Remembers what could be monitored at the end of each epoch, and the weights then."""

    def __init__(self):
        self.metrics, self.weights = [], []

    def on_train_start(self, trainer, module):
        self.weights.append(copy.deepcopy(module.net.state_dict()))

    def on_train_epoch_end(self, trainer, module):
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        self.weights.append(copy.deepcopy(module.net.state_dict()))


# What is logged


def test_every_key_every_epoch_finite_and_the_last_value_repeated(tmp_path):
    keep = Keep()
    monitor, trainer = watched(tmp_path, monitor=SaliencyMonitor(num_images=8, every_n_epochs=2), after=[keep], max_epochs=5)
    assert len(keep.metrics) == 5 and [entry["epoch"] for entry in monitor.history] == [1, 3]
    for metrics in keep.metrics:
        assert metrics.keys() >= KEYS and all(math.isfinite(metrics[key]) for key in KEYS)
    saliency = [{key: metrics[key] for key in KEYS} for metrics in keep.metrics]
    assert saliency[1] == saliency[2] and saliency[3] == saliency[4] and saliency[0] != saliency[1] != saliency[3]
    assert saliency[0]["saliency/change"] == saliency[1]["saliency/change"] == 1, "compared with untrained maps"
    assert saliency[0]["saliency/alive"] > 0, "known before training"
    assert 0 < saliency[3]["saliency/change"] < 1
    for entry, metrics in zip(monitor.history, (saliency[1], saliency[3])):
        assert {f"saliency/{name}": pytest.approx(entry[name], abs=1e-6) for name in UNKNOWN} == metrics


def test_numbers_are_those_of_the_maps_of_the_weights_at_each_epochs_end(tmp_path):
    """Against maps taken by hand from the weights, and scipy's rank correlation."""
    stats = pytest.importorskip("scipy.stats")
    keep, (images, labels) = Keep(), textures(6, seed=3)
    monitor, _ = watched(tmp_path, monitor=SaliencyMonitor(images=images, labels=labels, network="net"), after=[keep])
    net = Plain().eval()
    maps, mirrored = [], []
    for weights in keep.weights:
        net.load_state_dict(weights)
        cam = GradCAM(net, "act")
        for store, batch, turn in ((maps, images, False), (mirrored, images.flip(-1), True)):
            raw = F.adaptive_avg_pool2d(cam.raw(batch, labels), 14)
            raw = raw.flip(-1) if turn else raw
            store.append((raw / raw.amax((1, 2), keepdim=True).clamp(min=1e-30)).half().double().numpy())
    for epoch, entry in enumerate(monitor.history):
        before, now, back = maps[epoch], maps[epoch + 1], mirrored[epoch + 1]
        alive = [[each.max() > each.min() for each in moment] for moment in (before, now, back)]
        assert all(all(row) for row in alive), "the case that the formulas below are for"
        rho = [stats.spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(before, now)]
        noise = [min(max(1 - stats.spearmanr(a.ravel(), b.ravel()).statistic, 0), 1) for a, b in zip(now, back)]
        floor = [stats.spearmanr(a.ravel(), b.ravel()).statistic for a, b in pairwise(now)]
        shift = [abs(a / a.sum() - b / b.sum()).sum() / 2 for a, b in zip(before, now)]
        change = np.mean([min(max(1 - each, 0), 1) for each in rho]) if epoch else 1
        expected = {"change": change, "spearman": np.mean(rho), "noise": np.mean(noise), "floor": np.mean(floor)}
        expected |= {"mass_shift": np.mean(shift), "alive": 1, "counted": 6}
        assert {name: entry[name] for name in expected} == {
            name: pytest.approx(value, abs=1e-6) for name, value in expected.items()
        }
        with torch.no_grad():
            choices = []
            for weights in keep.weights[epoch : epoch + 2]:
                net.load_state_dict(weights)
                choices.append(net(images).argmax(1))
        right = (choices[0] == labels) & (choices[1] == labels)
        assert entry["correct"] == pytest.approx((choices[1] == labels).double().mean().item())
        assert entry["flip_rate"] == pytest.approx((choices[0] != choices[1]).double().mean().item())
        if epoch and right.any():
            assert entry["change_correct"] == pytest.approx(np.mean([1 - r for r, ok in zip(rho, right) if ok]), abs=1e-6)


def test_maps_that_are_not_finite_are_no_maps(tmp_path):
    class Bursting(Plain):
        def forward(self, x):
            return super().forward(x) * (float("nan") if not self.training else 1)

    with pytest.warns(UserWarning, match="no output is a finite number"):
        monitor, trainer = watched(tmp_path, Learner(Bursting), val=False, monitor=SaliencyMonitor(images=textures(4)))
    assert all(math.isfinite(float(trainer.callback_metrics[key])) for key in KEYS)
    assert monitor.values["alive"] == 0 and monitor.values["change"] == 1


def test_a_rate_of_zero_changes_exactly_nothing(tmp_path):
    """E10: without BatchNorm, whose statistics move at any rate."""
    for method in ("gradcam", "groupcam"):
        monitor = SaliencyMonitor(images=textures(6), method=method, groups=4)
        watched(tmp_path / method, Learner(lr=0.0), monitor, max_epochs=5)
        assert monitor.values["alive"] >= 0.5
        assert [entry["change"] for entry in monitor.history] == [1, 0, 0, 0, 0]
        assert [entry["mass_shift"] for entry in monitor.history] == [0] * 5
        assert monitor.converged_epoch is None and monitor.fell_with_lr_epoch == 3, "nothing was learned"


# Whoever monitors a key


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"val": False},
        {"val_check_interval": 0.5},
        {"check_val_every_n_epoch": 2, "num_sanity_val_steps": 0},
        {"limit_val_batches": 0},
        {"enable_checkpointing": True, "also": ModelCheckpoint},
        {"fast_dev_run": True},
        {"max_steps": 2},
    ],
    ids=str,
)
def test_early_stopping_on_the_change_finds_its_key_from_the_first_epoch(tmp_path, options):
    also = [options.pop("also")(tmp_path, monitor="saliency/change", save_top_k=2)] if "also" in options else []
    keep = Keep()
    stopping = EarlyStopping("saliency/change", patience=1000)
    _, trainer = watched(tmp_path, before=[stopping], after=[keep, *also], **options)
    assert keep.metrics and all(metrics.keys() >= KEYS for metrics in keep.metrics)
    assert trainer.fast_dev_run or math.isfinite(stopping.best_score)


def test_a_plateau_scheduler_may_follow_the_change(tmp_path):
    class Following(Learner):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "saliency/change"}}

    watched(tmp_path, Following())
    watched(tmp_path, Following(), val=False)


def test_validation_in_between_does_not_reach_the_logger(tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path)
    monitor, _ = watched(tmp_path, val_check_interval=0.5, logger=logger, log_every_n_steps=1)
    lines = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("saliency/change")
    values = [line.split(",")[column] for line in lines[1:]]
    assert sum(value != "" for value in values) == 3, "once an epoch"


def test_a_dev_run_maps_one_probe_to_see_whether_it_works_and_logs_what_is_known(tmp_path):
    keep, plain = Keep(), Keep()
    watched(tmp_path, monitor=False, fast_dev_run=True, after=[plain], recorded=False)
    monitor, _ = watched(tmp_path, fast_dev_run=True, after=[keep], recorded=False)
    assert all(torch.equal(a, b) for a, b in zip(keep.weights[1].values(), plain.weights[1].values()))
    assert keep.metrics[0].items() >= {f"saliency/{name}": value for name, value in UNKNOWN.items()}.items()
    assert monitor.history == [] and monitor.state_dict() == {} and not (tmp_path / "groupcam").exists()


def test_barebones_does_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(monitor_module, "ProbeMapper", None)
    monitor = SaliencyMonitor()
    trainer = pl.Trainer(
        barebones=True, max_epochs=1, accelerator="cpu", devices=1, callbacks=[monitor], default_root_dir=tmp_path
    )
    trainer.fit(Learner(), batches())
    assert monitor.history == [] and not list(tmp_path.iterdir())


# Training does not notice


class Rough(Learner):
    """Dropout, BatchNorm, noise that ignores the mode, a frozen part in eval mode, random data."""

    def __init__(self):
        super().__init__(net=lambda: Lit().net)
        self.net.conv1.requires_grad_(False)
        self.net.drop.eval()

    def training_step(self, batch, batch_idx):
        x = batch[0] + 0.1 * torch.randn_like(batch[0]) * random.random() * np.random.rand()  # noqa: NPY002
        return super().training_step([F.dropout(x, 0.1), batch[1]], batch_idx)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"accumulate_grad_batches": 4},
        {"method": "groupcam", "groups": 4},
        {"val": False},
        {"log_every_n_steps": 1, "evaluate": True},
    ],
    ids=str,
)
def test_training_is_the_same_bit_for_bit(tmp_path, options):
    options = dict(options)
    settings = {name: options.pop(name) for name in ("method", "groups", "evaluate") if name in options}

    def run(monitor, folder):
        random.seed(5), np.random.seed(5)  # noqa: NPY002
        module = Rough()
        if options.get("precision") == "bf16-true":
            module.net.bn1.track_running_stats = True
        watched(tmp_path / folder, module, monitor, train=batches(22, shuffle=True), **options)
        return [*state(module), *module.losses], random.getstate(), np.random.get_state()[1], module  # noqa: NPY002

    plain, with_it = run(False, "a"), run(SaliencyMonitor(num_images=6, **settings), "b")
    assert same(plain[0], with_it[0]) and len(plain[0]) > 20
    assert plain[1] == with_it[1] and (plain[2] == with_it[2]).all()
    for module in with_it[3].modules():
        assert not module._forward_hooks and not module._forward_pre_hooks and not module._backward_hooks
    assert [m.training for m in plain[3].modules()] == [m.training for m in with_it[3].modules()]
    assert "log" not in vars(with_it[3]) and not torch.equal(plain[3].losses[0], plain[3].losses[-1])


def test_gradients_in_the_making_are_left_alone(tmp_path):
    """A probing while gradients wait for the next step, as manual optimisation may leave them at the end of an epoch."""

    class Manual(Learner):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.manual_backward(loss)
            if len(self.losses) % 4 == 0:  # three batches an epoch
                self.optimizers().step(), self.optimizers().zero_grad()

    class Look(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            self.grads = [p.grad.clone() for p in module.parameters()]

    def run(monitor, folder):
        module, look = Manual(), Look()
        watched(tmp_path / folder, module, monitor, after=[look], max_epochs=2, val=False)  # which zeroes them
        return [*state(module), *look.grads]

    assert same(run(False, "a"), run(SaliencyMonitor(num_images=4), "b"))


# Resuming

no_saver = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # in the run that goes on


def resumed(tmp_path, make, name="epoch=1-step=6", epochs=4, train=batches, **when):
    """A run that never stopped, one that was taken up again from a checkpoint of it, and the checkpoint."""
    saver = ModelCheckpoint(tmp_path / "saved", filename="{epoch}-{step}", save_top_k=-1, **when)
    settings = {"monitor": make(), "after": [saver], "enable_checkpointing": True, "max_epochs": epochs}
    whole, _ = watched(tmp_path / "whole", train=train(), **settings)
    path = tmp_path / "saved" / f"{name}.ckpt"
    again, _ = watched(tmp_path / "again", Learner(seed=99), make(), train=train(), ckpt_path=path, max_epochs=epochs)
    return whole, again, path


@no_saver
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("labels", [True, False])
def test_a_resumed_run_has_the_history_of_one_that_never_stopped(tmp_path, every, labels):
    def make():
        return SaliencyMonitor(num_images=6, every_n_epochs=every, target_key=1 if labels else None)

    whole, again, path = resumed(tmp_path, make, every_n_epochs=1, save_on_train_epoch_end=True)
    assert len(whole.history) == 4 // every and whole.history == again.history
    assert whole.state_dict()["convergence"] == again.state_dict()["convergence"]
    strips = [monitor._state.film.frames for monitor in (whole, again)]
    assert [frame[0] for frame in strips[0].values()] == [frame[0] for frame in strips[1].values()]
    saved = torch.load(path, weights_only=True)["callbacks"]
    (own,) = [value for name, value in saved.items() if "SaliencyMonitor" in name]
    assert own["reading"]["maps"].dtype == torch.float16 and len(own["reading"]["maps"]) == 6
    lines = read_lines(tmp_path / "again" / "groupcam", "monitor")
    assert [line["epoch"] for line in lines] == [entry["epoch"] for entry in whole.history[2 // every :]]


@no_saver
def test_resuming_within_an_epoch_keeps_the_reference_of_its_start(tmp_path):
    def make():
        return SaliencyMonitor(images=textures(5, seed=4))

    def train():
        return Fixed(list(batches()))  # goes on where it stopped

    whole, again, _ = resumed(tmp_path, make, "epoch=1-step=5", 3, train, every_n_train_steps=5)
    assert len(whole.history) == 3 and whole.history == again.history


@no_saver
@pytest.mark.parametrize("when", [{"every_n_train_steps": 3}, {"every_n_epochs": 1, "save_on_train_epoch_end": False}])
def test_resuming_from_the_end_of_an_epoch_before_its_probing(tmp_path, when):
    """Of the last step: Lightning calls no hook for that epoch's end any more. Of a validation: the rate was cut after it."""
    saver = ModelCheckpoint(tmp_path / "saved", filename="{epoch}-{step}", save_top_k=-1, **when)
    settings = {"max_epochs": 4, "images": textures(5, seed=4)}
    whole, _ = watched(
        tmp_path / "whole",
        Learner(cuts=(2,)),
        SaliencyMonitor(images=settings["images"]),
        after=[saver],
        enable_checkpointing=True,
        max_epochs=4,
    )
    path = tmp_path / "saved" / "epoch=1-step=6.ckpt"
    again, _ = watched(
        tmp_path / "again", Learner(cuts=(2,), seed=99), SaliencyMonitor(images=settings["images"]), ckpt_path=path, max_epochs=4
    )
    assert [entry["lr"] for entry in whole.history] == pytest.approx([0.05, 0.05, 0.0005, 0.0005])
    assert again.history == whole.history


@no_saver
@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"images": textures(6, seed=9)}, "probes"),
        ({"layer": "conv"}, "layer"),
        ({"method": "groupcam", "groups": 4}, "method and groups and mask_at"),
    ],
)
def test_a_checkpoint_of_other_maps_is_not_compared_with(tmp_path, other, named):
    settings = {"images": textures(6, seed=4), "network": "net", "layer": "act"}
    saver = ModelCheckpoint(tmp_path / "saved", save_last=True)
    watched(tmp_path, monitor=SaliencyMonitor(**settings), after=[saver], enable_checkpointing=True, max_epochs=2)
    monitor = SaliencyMonitor(**{**settings, **other})
    with pytest.warns(UserWarning, match=f"other {named}: SaliencyMonitor starts anew"):
        watched(tmp_path, monitor=monitor, ckpt_path=tmp_path / "saved" / "last.ckpt", max_epochs=4)
    assert [entry["epoch"] for entry in monitor.history] == [0, 1, 2, 3]
    assert 0 <= monitor.history[2]["change"] < 1, "the reference was taken from the restored weights"


@no_saver
def test_a_checkpoint_without_the_monitor_and_one_with_it_serve_anyone(tmp_path):
    saver = ModelCheckpoint(tmp_path / "saved", save_last=True)
    watched(tmp_path, Learner(), False, after=[saver], enable_checkpointing=True, max_epochs=1)
    monitor, _ = watched(tmp_path, ckpt_path=tmp_path / "saved" / "last.ckpt", max_epochs=2)
    assert [entry["epoch"] for entry in monitor.history] == [1]
    saver = ModelCheckpoint(tmp_path / "more", save_last=True)
    watched(tmp_path, after=[saver], enable_checkpointing=True, max_epochs=1)
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
        watched(tmp_path, Learner(), False, ckpt_path=tmp_path / "more" / "last.ckpt", max_epochs=2)


def test_one_trainer_goes_on_and_another_begins_anew(tmp_path):
    monitor, module = SaliencyMonitor(num_images=6), Learner()
    _, trainer = watched(tmp_path, module, monitor, max_epochs=2)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, batches(), batches(8, seed=1))
    assert [entry["epoch"] for entry in monitor.history] == [0, 1, 2, 3] and monitor.history[2]["change"] < 1
    watched(tmp_path, Learner(), monitor, max_epochs=1)
    assert [entry["epoch"] for entry in monitor.history] == [0] and monitor.history[0]["change"] == 1


# Records, cost, evaluation


def test_what_is_written_for_the_report(tmp_path):
    names = ["stripes", "columns", "checks", "plain"]
    monitor, trainer = watched(tmp_path, monitor=SaliencyMonitor(num_images=16, class_names=names))
    folder = tmp_path / "groupcam"
    facts = json.loads((folder / "monitor.json").read_text())
    assert facts["method"] == "gradcam" and facts["layer"] == "net.act" and facts["num_probes"] == 8 == len(facts["labels"])
    assert facts["class_names"] == names and facts["shown"] == list(range(8)) and facts["every_n_epochs"] == 1
    lines = read_lines(folder, "monitor")
    expected = "epoch step change spearman mass_shift noise alive floor change_correct spearman_correct noise_correct correct"
    assert lines[2].keys() >= {*expected.split(), "flip_rate", "seconds", "converged_epoch", "probe_alive"}
    assert [line["step"] for line in lines] == [3, 6, 9] and [len(line["probe_alive"]) for line in lines] == [8] * 3
    assert lines[2]["seconds"] > 0 and lines[2]["overhead"] == monitor.overhead > 0


def test_a_run_without_logger_and_checkpoints_leaves_nothing_on_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="evaluate=True is without effect in a run that leaves no records"):
        monitor, _ = watched(None, monitor=SaliencyMonitor(num_images=4, evaluate=True), recorded=False)
    assert len(monitor.history) == 3 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_report_asks_for_records_wherever_it_stands(tmp_path, where):
    monitor = SaliencyMonitor(num_images=4)
    watched(tmp_path, monitor=monitor, recorded=False, max_epochs=2, **{where: [SaliencyReport()]})
    assert (tmp_path / "groupcam" / "monitor.json").is_file() and len(read_lines(tmp_path / "groupcam", "monitor")) == 2


def test_what_is_watched_is_written_down_at_the_first_batch(tmp_path):
    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            self.found = getattr(self, "found", (tmp_path / "groupcam" / "monitor.json").is_file())

    look = Look()
    watched(tmp_path, after=[look], max_epochs=1)
    assert look.found


def test_the_grid_of_the_maps_is_written_down(tmp_path):
    watched(tmp_path, max_epochs=1)
    assert json.loads((tmp_path / "groupcam" / "monitor.json").read_text())["cells"] == [14, 14]


def test_cost_is_predicted_in_forward_units_and_told(tmp_path, caplog):
    assert SaliencyMonitor(num_images=60).predict_overhead(2800) == pytest.approx(60 * 3 / 8400)
    assert SaliencyMonitor(images=(torch.zeros(5, 3, 8, 8), [0] * 5)).predict_overhead(100) == pytest.approx(5 * 3 / 300)
    slow = SaliencyMonitor(num_images=60, method="groupcam", groups=16, every_n_epochs=5)
    assert slow.predict_overhead(41000) == pytest.approx(60 * 37 / (3 * 41000 * 5))
    with caplog.at_level("INFO"):
        watched(tmp_path, train=batches(12, batch_size=4), max_epochs=1)
    (told,) = [record.message for record in caplog.records if record.message.startswith("Saliency monitor")]
    assert "Grad-CAM at net.act (16 x 16)" not in told and "Grad-CAM at net.act (14 x 14) of 8 probes" in told
    assert "the validation data (TensorDataset), explaining their labels" in told and f"+{8 * 3 / 36:.1%}" in told


def test_too_much_of_it_is_warned_about_once_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(probing_cost, "NOTICEABLE", 0.0)
    with pytest.warns(UserWarning, match=r"every_n_epochs=\d+\) stays below 2%") as told:
        monitor, _ = watched(tmp_path, max_epochs=5)
    assert sum("every_n_epochs" in str(each.message) for each in told) == 1
    assert monitor.overhead > 0.02
    watched(tmp_path, monitor=SaliencyMonitor(num_images=4, max_overhead=None), max_epochs=4)
    monkeypatch.setattr(probing_cost, "NOTICEABLE", 60.0)
    watched(tmp_path, max_epochs=4)


def test_evaluation_at_the_end(tmp_path):
    module = Learner()
    watched(tmp_path, module, SaliencyMonitor(num_images=6, network="net", evaluate=True), max_epochs=2)
    found = json.loads((tmp_path / "groupcam" / "evaluation.json").read_text())
    assert list(found["methods"]) == ["Grad-CAM", "centred blob", "random cells"]
    for method in found["methods"].values():
        for kind in ("insertion", "deletion"):
            curve = method[kind]
            area = torch.trapezoid(torch.tensor(curve["mean"]), torch.tensor(curve["fractions"])).item()
            assert len(curve["fractions"]) == len(curve["mean"]) == 29 and curve["fractions"][0] == 0
            assert curve["interval"][0] <= curve["auc"] <= curve["interval"][1]
            assert curve["auc"] == pytest.approx(area, abs=1e-6)
    sanity = found["sanity"]
    assert sanity["mode"] == "cascading" and sanity["stages"] == ["fc", "conv"] and len(sanity["spearman"]) == 2
    assert set(sanity["floors"]) == {"other_image", "zero"} and "Grad-CAM at act on 6 probes" in found["told"]


class Fails(pl.Callback):
    """From the second epoch on, an error in the monitor's passes, of any class: of a layer's own assertion, of memory."""

    def __init__(self, monitor, error):
        self.monitor, self.error = monitor, error

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1:
            module.net.register_forward_pre_hook(self.fail)

    def fail(self, *_):
        if self.monitor.in_extra_forward:
            raise self.error


@pytest.mark.parametrize("error", [AssertionError("odd activations"), MemoryError("no room")])
def test_a_probing_that_fails_does_not_take_the_training_with_it(tmp_path, error):
    whole, _ = watched(tmp_path / "whole", max_epochs=3)
    monitor = SaliencyMonitor(num_images=6)
    with pytest.warns(UserWarning, match=f"SaliencyMonitor maps nothing from here on: .*{error}.*last values") as said:
        _, trainer = watched(tmp_path / "fails", monitor=monitor, max_epochs=3, after=[Fails(monitor, error)])
    assert trainer.state.finished and len(monitor.history) == 1 and len(whole.history) == 3
    assert sum("maps nothing" in str(one.message) for one in said) == 1
    assert float(trainer.callback_metrics["saliency/alive"]) == monitor.history[0]["alive"]


@pytest.mark.parametrize("kind", [RuntimeError, AssertionError, MemoryError])
def test_an_evaluation_that_fails_does_not_take_the_training_with_it(tmp_path, monkeypatch, kind):
    def failing(*_args, **_kwargs):
        raise kind("no memory left")

    monkeypatch.setattr(session, "assess", failing)
    with pytest.warns(UserWarning, match=f"could not evaluate its maps: {kind.__name__}: no memory left. The training itself is"):
        _, trainer = watched(tmp_path, monitor=SaliencyMonitor(num_images=6, evaluate=True), max_epochs=1)
    assert trainer.state.finished


@pytest.mark.parametrize("fails", ["put_file", "add_line"])
def test_a_full_disk_does_not_take_the_training_with_it(tmp_path, monkeypatch, fails):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    whole, _ = watched(tmp_path / "whole")
    monkeypatch.setattr(session if fails == "add_line" else snapshots, fails, full)
    with pytest.warns(UserWarning, match="writes nothing from here on: .*No space left"):
        monitor, trainer = watched(tmp_path / "full")
    assert trainer.state.finished and monitor.history == whole.history


# Modules of all kinds


def test_two_monitors_need_two_prefixes(tmp_path):
    with pytest.raises(RuntimeError, match="Found more than one stateful callback of type `SaliencyMonitor`"):
        watched(tmp_path, before=[SaliencyMonitor()])
    second = SaliencyMonitor(num_images=4, prefix="groupcam_maps/", method="groupcam", groups=4)
    saver = ModelCheckpoint(tmp_path / "saved", save_last=True)
    _, trainer = watched(tmp_path, before=[second], after=[saver], enable_checkpointing=True)
    assert {"saliency/change", "groupcam_maps/change"} <= trainer.callback_metrics.keys()
    assert (
        len(read_lines(tmp_path / "groupcam", "monitor_groupcam_maps")) == 3 == len(read_lines(tmp_path / "groupcam", "monitor"))
    )
    keys = torch.load(tmp_path / "saved" / "last.ckpt", weights_only=True)["callbacks"]
    assert sum("SaliencyMonitor" in key for key in keys) == 2


def test_beside_the_augmentation_the_probes_are_clean(tmp_path):
    augmentation = GroupCAMAugmentation(preset="paper", network="net", groups=4)
    monitor, _ = watched(tmp_path, before=[augmentation])
    alone, _ = watched(tmp_path)
    assert monitor.fingerprint == alone.fingerprint != {} and len(monitor.history) == 3


class Loud(Learner):
    """Logs in forward."""

    def forward(self, x):
        self.log("seen", 1.0 if self.training else 100.0, batch_size=1)
        self.log_dict({"also": 1.0 if self.training else 100.0}, batch_size=1)
        return super().forward(x)


def test_what_forward_logs_is_not_logged_for_the_monitor(tmp_path):
    module, keep = Loud(), Keep()
    monitor, _ = watched(tmp_path, module, SaliencyMonitor(images=textures(4)), after=[keep], val=False, max_epochs=2)
    assert all(metrics["seen"] == metrics["also"] == 1 for metrics in keep.metrics) and len(monitor.history) == 2


class Counting(Learner):
    def __init__(self):
        super().__init__()
        self.accuracy = MulticlassAccuracy(4)

    def forward(self, x):
        logits = super().forward(x)
        self.accuracy.update(logits, torch.zeros(len(x), dtype=torch.long))
        return logits


class Stepping(pl.LightningModule):
    """Has no forward of its own."""

    def __init__(self):
        super().__init__()
        self.net = Plain()

    training_step, validation_step = Learner.training_step, Learner.validation_step
    configure_optimizers = Learner.configure_optimizers


@pytest.mark.parametrize(
    ("module", "settings", "message"),
    [
        (Counting, {}, r"updates torchmetrics.*SaliencyMonitor\(network=...\), one of \['net'\]"),
        (Stepping, {}, r"Stepping defines no forward.*one of \['net'\]"),
        (Learner, {"network": "model.body"}, r"no network 'model.body' \(found NoneType\); its modules are \['net'\]"),
        (Learner, {"network": "net", "layer": "layer4"}, "layer4"),
        (Learner, {"network": "net", "layer": "fc"}, "fc"),
        (Learner, {"images": textures(4)[0], "labels": [0, 1, 2, 9]}, "target 9 is outside the 4 classes"),
        (
            Learner,
            {"images": torch.ones(2, 1, 32, 32)},
            r"have 3 channels.*probes: the given images, a float32 tensor \(2, 1",
        ),
        (Learner, {"images": textures(2)[0].double()}, r"\(double\).*probes: the given images, a float64 tensor"),
        (Learner, {"image_key": "pixels"}, r"'pixels' is not in the batch.*image_key"),
        (Learner, {"image_key": 1}, r"image_key=1 gives a int64 tensor \(8,\), not floating-point images"),
        (Learner, {"target_key": 0}, r"target_key=0: labels of shape \(8, 3, 32, 32\) do not fit 8 images"),
        (Learner, {"method": "groupcam"}, "groups=32, but layer 'net.act' has only 8 channels"),
        (Learner, {"output": "logits"}, "logits"),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.parametrize("dev", [False, True])
def test_what_cannot_work_is_refused_before_the_first_step(tmp_path, module, settings, message, dev):
    module = module()
    if dev:  # which draws one probe
        message = message.replace("(8", "(1").replace("8 images", "1 images")
    with pytest.raises((MisconfigurationException, TypeError), match=message):
        watched(tmp_path, module, SaliencyMonitor(num_images=8, every_n_epochs=5, **settings), fast_dev_run=dev)
    assert getattr(module, "losses", []) == [] and not any(m._forward_hooks for m in module.modules())


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"])
def test_sharded_strategies_are_refused(name, monkeypatch):
    trainer = pl.Trainer(**SILENT, callbacks=[SaliencyMonitor()])
    monkeypatch.setattr(trainer.strategy, "__class__", type(name, (type(trainer.strategy),), {}))
    with pytest.raises(MisconfigurationException, match=f"outside its own step under {name}"):
        trainer.callbacks[0].setup(trainer, Learner(), "fit")


def test_lazy_modules_are_watched_from_their_first_shape_on(tmp_path):
    class Lazy(Plain):
        def __init__(self):
            super().__init__()
            self.fc = nn.LazyLinear(4)

    class Warm(Learner):
        def __init__(self):
            super().__init__(Lazy)

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.conv.parameters(), 0.05)

    keep = Keep()
    keep.on_train_start = lambda *_: None
    with pytest.warns(UserWarning, match="starts after the first epoch"):
        monitor, _ = watched(tmp_path, Warm(), after=[keep], num_sanity_val_steps=0)
    assert [entry["epoch"] for entry in monitor.history] == [1, 2] and monitor.history[0]["change"] < 1
    assert keep.metrics[0].keys() >= KEYS and keep.metrics[0]["saliency/alive"] > 0


def test_a_layer_that_lazy_modules_do_not_have_is_refused_before_the_first_step(tmp_path):
    class Lazy(Plain):
        def __init__(self):
            super().__init__()
            self.fc = nn.LazyLinear(4)

    module = Learner(Lazy)
    with pytest.raises(MisconfigurationException, match="no layer 'layer4'"):
        watched(tmp_path, module, SaliencyMonitor(num_images=4, layer="layer4"), num_sanity_val_steps=0)
    assert module.losses == []


def test_lazy_modules_without_validation_data_are_watched_on_the_first_batch(tmp_path):
    class Lazy(Plain):
        def __init__(self):
            super().__init__()
            self.fc = nn.LazyLinear(4)

    class Warm(Learner):
        validation_step = None

        def __init__(self):
            super().__init__(Lazy)

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.conv.parameters(), 0.05)

    with pytest.warns(UserWarning, match="starts after the first epoch"):
        monitor, _ = watched(tmp_path, Warm(), val=False, max_epochs=2)
    assert monitor.fingerprint and [entry["epoch"] for entry in monitor.history] == [1] and monitor.values["alive"] > 0


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`", "ignore:You're resuming from a checkpoint that ended")
def test_an_epoch_resumed_in_the_middle_without_validation_data_is_probed(tmp_path):
    class Plainest(Learner):
        validation_step = None

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if (trainer.current_epoch, batch_idx) == (1, 0):
                trainer.save_checkpoint(tmp_path / "mid.ckpt")

    watched(tmp_path, Plainest(), val=False, after=[Save()], max_epochs=2)
    again, _ = watched(tmp_path, Plainest(), val=False, max_epochs=2, ckpt_path=tmp_path / "mid.ckpt")
    assert [entry["epoch"] for entry in again.history] == [0, 1]


def test_single_logit_and_soft_labels(tmp_path):
    class Binary(Learner):
        def __init__(self):
            super().__init__(lambda: Plain(classes=1))

        def training_step(self, batch, batch_idx):
            return F.binary_cross_entropy_with_logits(self(batch[0])[:, 0], (batch[1] > 1).float())

    images, labels = textures(6)
    settings = {"images": images, "labels": (labels > 1).float(), "activation": "sigmoid"}
    monitor, _ = watched(tmp_path, Binary(), SaliencyMonitor(**settings), val=False)
    choice = (monitor.state_dict()["reading"]["chosen"] == (labels > 1)).tolist()
    assert monitor.state_dict()["reading"]["right"].tolist() == choice
    assert json.loads((tmp_path / "groupcam" / "monitor.json").read_text())["labels"] == (labels > 1).long().tolist()
    with pytest.raises(MisconfigurationException, match="activation='sigmoid'"):
        watched(tmp_path, Binary(), SaliencyMonitor(images=images, labels=labels % 2), val=False)
    soft = F.one_hot(labels, 4).float() * 0.9 + 0.025
    rows, _ = watched(tmp_path / "soft", monitor=SaliencyMonitor(images=(images, soft)))
    hard, _ = watched(tmp_path / "hard", monitor=SaliencyMonitor(images=(images, labels)))
    for one, other in zip(rows.history, hard.history):
        assert one["correct"] == other["correct"] and one["flip_rate"] == other["flip_rate"]


def test_preprocess_and_output_lead_to_the_logits(tmp_path):
    class Wrapped(Plain):
        def forward(self, x):
            return {"scores": super().forward(x / 255), "rest": None}

    class Unpacking(Learner):
        def __init__(self):
            super().__init__(Wrapped)

        def forward(self, x):
            return self.net(x * 255)["scores"]

    settings = {"network": "net", "output": "scores", "preprocess": lambda x: x * 255}
    monitor, _ = watched(tmp_path, Unpacking(), SaliencyMonitor(num_images=4, **settings))
    same_net, _ = watched(tmp_path, Learner(), SaliencyMonitor(num_images=4, network="net"))
    assert monitor.history[2]["noise"] == pytest.approx(same_net.history[2]["noise"], abs=0.05)


@pytest.mark.parametrize("settings", [{"warmup_epochs": 0}, {"warmup_epochs": 3}, {"min_alive": 0.2}, {"min_alive": 0.6}])
def test_warm_up_and_the_least_share_of_maps_are_passed_on(tmp_path, settings):
    images, labels = textures(4)
    images[1:3] = float("nan")  # two of four have no map
    monitor, _ = watched(
        tmp_path, monitor=SaliencyMonitor(images=images, labels=labels, **settings), recorded=False, max_epochs=4
    )
    assert [entry["alive"] for entry in monitor.history] == [0.5] * 4
    first = settings.get("warmup_epochs", 1) if settings.get("min_alive", 0.5) <= 0.5 else 4
    assert [entry["change"] == 1 for entry in monitor.history] == [epoch < first for epoch in range(4)]


@pytest.mark.parametrize(
    "settings", [{"mask_at": "target", "chunk": 3, "groups": 4}, {"layer": "conv", "groups": 2, "grid": 5}], ids=str
)
def test_maps_are_those_of_the_settings(tmp_path, monkeypatch, settings):
    class Kept(monitor_module.ProbeMapper):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            kept.append(self.cam)

    kept, (images, labels) = [], textures(5, seed=4)
    monkeypatch.setattr(monitor_module, "ProbeMapper", Kept)
    monitor = SaliencyMonitor(images=images, labels=labels, method="groupcam", network="net", **settings)
    module = Learner()
    watched(tmp_path, module, monitor, max_epochs=1, recorded=False)
    options = {"layer": "act", **settings}
    grid = options.pop("grid", 14)
    pooled = F.adaptive_avg_pool2d(GroupCAM(module.net, **options).raw(images, labels), grid)
    expected = pooled / pooled.amax((1, 2), keepdim=True).clamp(min=1e-30)
    assert torch.equal(monitor.state_dict()["reading"]["maps"], expected.half()) and kept[0].chunk == settings.get("chunk")


@pytest.mark.filterwarnings("ignore:out of memory")
def test_memory_that_runs_out_keeps_its_kind(tmp_path):
    """Lightning's search for a batch size looks for it."""

    class Huge(Plain):
        def forward(self, x):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        watched(tmp_path, Learner(Huge), SaliencyMonitor(num_images=4, layer="net.act"), num_sanity_val_steps=0)


@pytest.mark.parametrize("method", ["gradcam", "groupcam"])
def test_a_forward_that_switches_gradients_on_leaves_no_graph(tmp_path, method):
    class Probe(Plain):
        def forward(self, x):
            with torch.set_grad_enabled(True):
                return super().forward(x)

    monitor, _ = watched(tmp_path, Learner(Probe), SaliencyMonitor(num_images=4, method=method, groups=4, mask_at="target"))
    plain, _ = watched(tmp_path, Learner(), SaliencyMonitor(num_images=4, method=method, groups=4, mask_at="target"))
    assert not any(part.requires_grad for part in monitor.state_dict()["reading"].values())
    assert monitor.history == plain.history


def test_a_network_that_ends_in_a_sigmoid_is_scored_by_what_it_returns(tmp_path):
    class Ends(Plain):
        def __init__(self):
            super().__init__(classes=1)

        def forward(self, x):
            return super().forward(x).sigmoid()

    class Binary(Learner):
        def training_step(self, batch, batch_idx):
            return F.binary_cross_entropy(self(batch[0])[:, 0], (batch[1] > 1).float())

    images, labels = textures(6)
    module, settings = Binary(Ends, lr=1.0), {"images": images, "labels": (labels > 1).long(), "activation": "sigmoid"}
    with pytest.warns(UserWarning, match="ends in a softmax or sigmoid"):
        monitor, _ = watched(tmp_path, module, SaliencyMonitor(**settings), val=False)
    reading, p = monitor.state_dict()["reading"], module(images).detach()[:, 0]
    torch.testing.assert_close(reading["score"], torch.where(labels > 1, p, 1 - p))
    assert torch.equal(reading["chosen"], (p > 0.5).long()) and torch.equal(reading["right"], (p > 0.5) == (labels > 1))


def test_users_hooks_can_tell_the_monitors_passes(tmp_path):
    class Listening(Plain):
        def forward(self, x):
            passes.append(monitor.in_extra_forward)
            return super().forward(x)

    passes, monitor = [], SaliencyMonitor(images=textures(4))
    watched(tmp_path, Learner(Listening), monitor, val=False, max_epochs=1)
    batch = passes.index(False)
    assert (
        passes[batch : batch + 3] == [False] * 3 and all(passes[:batch]) and all(passes[batch + 3 :]) and len(passes) > batch + 3
    )


def test_warning_filters_are_as_they_were(tmp_path):
    before = list(warnings.filters)
    watched(tmp_path, max_epochs=1)
    assert warnings.filters == before


def test_an_error_leaves_nothing_behind(tmp_path):
    class Failing(Learner):
        def training_step(self, batch, batch_idx):
            if self.current_epoch == 1:
                raise ZeroDivisionError
            return super().training_step(batch, batch_idx)

    module, monitor = Failing(), SaliencyMonitor(num_images=4)
    with pytest.raises(ZeroDivisionError):
        watched(tmp_path, module, monitor)
    assert monitor._session is None and len(monitor.history) == 1
    assert monitor.state_dict()["epochs"] == 1, "for a checkpoint written on the way out"


def test_only_arguments_travel(tmp_path):
    monitor = SaliencyMonitor(num_images=4, layer="act", network="net", images=textures(4))
    watched(tmp_path, monitor=monitor, max_epochs=1)
    for twin in (copy.deepcopy(monitor), pickle.loads(pickle.dumps(monitor))):
        assert twin.history == [] and twin.layer == "act" and len(twin._given) == 4
        watched(tmp_path, monitor=twin, max_epochs=1)
        assert twin.history == monitor.history
    assert repr(monitor) == "SaliencyMonitor(images=..., num_images=4, network='net', layer='act')"
    assert repr(SaliencyMonitor()) == "SaliencyMonitor()"


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"method": "scorecam"}, ValueError, "method must be one of 'gradcam', 'groupcam'; got 'scorecam'"),
        ({"images": torch.zeros(3, 8, 8)}, ValueError, r"batch \(N, C, H, W\), got the shape \(3, 8, 8\)"),
        ({"images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, TypeError, "floating point"),
        ({"images": torch.zeros(0, 3, 8, 8)}, ValueError, "images holds no image"),
        ({"images": "folder"}, TypeError, "got str"),
        ({"images": torch.zeros(2, 3, 8, 8), "labels": [1]}, ValueError, r"labels of shape \(1,\) do not fit 2 images"),
        ({"images": torch.zeros(2, 3, 8, 8), "labels": "ab"}, TypeError, "labels must be a tensor or a list"),
        ({"images": (torch.zeros(2, 3, 8, 8), [0, 1]), "labels": [0, 1]}, ValueError, "2 items and labels"),
        ({"images": (torch.zeros(2, 3, 8, 8),)}, ValueError, "got 1 items"),
        ({"labels": [0, 1]}, ValueError, "labels= belongs to images="),
        ({"num_images": 0}, ValueError, "num_images must be a whole number of at least 1, got 0"),
        ({"num_images": 2.5}, ValueError, "num_images must be a whole number of at least 1, got 2.5"),
        ({"every_n_epochs": 0}, ValueError, "every_n_epochs must be a whole number of at least 1, got 0"),
        ({"every_n_epochs": True}, ValueError, "every_n_epochs .* got True"),
        ({"network": nn.Identity()}, TypeError, r"network must be a name \(str\) or None, got Identity"),
        ({"mask_at": 1.5}, TypeError, r"mask_at must be a name \(str\) or None, got float"),
        ({"image_key": 1.5}, TypeError, "image_key must be an index, a key, a list of them or a .*; got 1.5"),
        ({"target_key": []}, TypeError, r"target_key must be an index, .*; got \[\]"),
        ({"class_names": 4}, TypeError, "class_names must be a list of names, one per class, got 4"),
        ({"mean": "x", "std": 1}, ValueError, "mean must be numbers"),
        ({"layer": ["a", "b"]}, TypeError, r"layer must be a name \(str\) or None, got list"),
        ({"class_names": "cats"}, TypeError, "class_names must be a list of names, one per class, got 'cats'"),
        ({"class_names": [1, 2]}, TypeError, "class_names must be a list of names"),
        ({"mean": (0.5,)}, ValueError, "both mean and std"),
        ({"threshold": 5}, ValueError, "threshold must be a number from 0 to 1, got 5"),
        ({"patience": 0}, ValueError, "patience must be a whole number of at least 1, got 0"),
        ({"min_lr_share": -1}, ValueError, "min_lr_share must be a number from 0 to 1, got -1"),
        ({"min_alive": "half"}, ValueError, "min_alive must be a number from 0 to 1, got 'half'"),
        ({"warmup_epochs": -1}, ValueError, "warmup_epochs must be a whole number of at least 0, got -1"),
        ({"activation": "tanh"}, ValueError, "activation must be one of"),
        ({"groups": 0}, ValueError, "groups must be a whole number of at least 1, got 0"),
        ({"chunk": 0}, ValueError, "chunk must be a whole number of at least 1"),
        ({"grid": 1}, ValueError, "grid must be a whole number of at least 2, got 1"),
        ({"max_overhead": 0}, ValueError, "max_overhead must be a number above 0 or None, got 0"),
        ({"prefix": "/"}, ValueError, "prefix must be a name"),
        ({"seed": -1}, ValueError, "seed must be a whole number of at least 0, got -1"),
    ],
    ids=str,
)
def test_misuse_says_what_is_wrong(arguments, kind, message):
    with pytest.raises(kind, match=message):
        SaliencyMonitor(**arguments)
