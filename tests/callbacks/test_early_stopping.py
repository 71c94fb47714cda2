"""When maps have settled, and when that ends a training."""

import pytest
import pytorch_lightning as pl
import torch
from monitoring import Learner, batches, textures, watched
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from groupcam_aug.callbacks import SaliencyEarlyStopping, SaliencyMonitor
from groupcam_aug.callbacks.monitoring import session
from groupcam_aug.callbacks.monitoring.map_stats import UNKNOWN
from groupcam_aug.files import read_lines


@pytest.fixture
def scripted(monkeypatch):
    """Makes the monitor read the changes that a test wants it to."""

    def script(*changes, alive=1.0):
        values = iter(changes)

        def statistics(before, now, **_):
            change = 1.0 if before is None else next(values, changes[-1])
            return {**UNKNOWN, "change": change, "alive": alive, "spearman": 1 - change}

        monkeypatch.setattr(session, "map_statistics", statistics)

    return script


def small(**settings):
    return SaliencyMonitor(images=textures(2), **settings)


@pytest.mark.parametrize("first", [True, False])
def test_stops_at_the_third_low_probing_in_a_row_wherever_it_stands(tmp_path, scripted, first, caplog):
    scripted(1, 0.04, 0.5, 0.04, 0.03, 0.02)
    stopping = SaliencyEarlyStopping()
    order = {"before" if first else "after": [stopping]}
    with caplog.at_level("INFO"):
        monitor, trainer = watched(tmp_path, monitor=small(), max_epochs=20, **order)
    assert trainer.current_epoch == 6 and stopping.stopped_epoch == 5
    assert stopping.converged_epoch == monitor.converged_epoch == 3
    told = [record.message for record in caplog.records if "aliency" in record.message]
    assert sum("Saliency maps have settled since epoch 3: change 0.020 <= 0.05 for 3 probings" in each for each in told) == 1
    assert sum("SaliencyEarlyStopping: saliency/change stayed at 0.05 or below" in each for each in told) == 1
    assert read_lines(tmp_path / "groupcam", "monitor")[-1]["converged_epoch"] == 3
    assert isinstance(stopping, EarlyStopping) and trainer.early_stopping_callback is stopping


def test_the_monitor_alone_only_reports(tmp_path, scripted):
    scripted(1, 0.01)
    monitor, trainer = watched(tmp_path, monitor=small(), max_epochs=8)
    assert trainer.current_epoch == 8 and monitor.converged_epoch == 1
    lines = read_lines(tmp_path / "groupcam", "monitor")
    assert [line["converged_epoch"] for line in lines] == [None, None, None, 1, 1, 1, 1, 1]


def test_a_single_dip_does_not_stop_where_lightnings_own_threshold_does(tmp_path, scripted):
    scripted(1, 0.01, 0.5)
    own = EarlyStopping("saliency/change", stopping_threshold=0.05, patience=1000)
    assert watched(tmp_path, monitor=small(), after=[SaliencyEarlyStopping()], max_epochs=7)[1].current_epoch == 7
    scripted(1, 0.01, 0.5)
    assert watched(tmp_path, monitor=small(), after=[own], max_epochs=7)[1].current_epoch == 2


def test_a_cut_of_the_learning_rate_does_not_stop_and_is_told(tmp_path, scripted, caplog):
    scripted(1, 0.5, 0.5, 0.01)
    with caplog.at_level("INFO"):
        monitor, trainer = watched(tmp_path, Learner(cuts=[3]), small(), before=[SaliencyEarlyStopping()], max_epochs=9)
    assert trainer.current_epoch == 9 and monitor.converged_epoch is None and monitor.fell_with_lr_epoch == 5
    assert any("the learning rate is 0.0005, at most 0.05 before: change fell with" in each.message for each in caplog.records)


def test_a_peak_of_the_rate_within_an_epoch_is_seen(tmp_path, scripted):
    class Cycling(Learner):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), 0.001)
            steps = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 100 if step == 1 else 1)
            return [optimizer], [{"scheduler": steps, "interval": "step"}]

    scripted(1, 0.01)
    monitor, _ = watched(tmp_path, Cycling(), small(), max_epochs=5)
    assert monitor.history[0]["max_lr"] == pytest.approx(0.1) and monitor.converged_epoch is None


def test_too_few_maps_do_not_stop(tmp_path, scripted):
    scripted(1, 0.01, alive=0.4)
    assert watched(tmp_path, monitor=small(), after=[SaliencyEarlyStopping()], max_epochs=6)[1].current_epoch == 6
    scripted(1, 0.01, alive=0.4)
    stopping = SaliencyEarlyStopping(min_alive=0.3)
    assert watched(tmp_path, monitor=small(), after=[stopping], max_epochs=6)[1].current_epoch == 4


def test_its_own_measures_or_the_monitors(tmp_path, scripted):
    for settings, own, epochs in (
        ({}, {}, 5),
        ({"patience": 2}, {}, 4),
        ({"patience": 2}, {"patience": 4}, 6),
        ({"threshold": 0.01}, {}, 7),
        ({}, {"threshold": 0.01}, 7),
        ({"every_n_epochs": 2, "patience": 1}, {}, 6),  # probings at epochs 1, 3 and 5
    ):
        scripted(1, 0.5, 0.02)
        stopping = SaliencyEarlyStopping(**own)
        _, trainer = watched(tmp_path, monitor=small(**settings), after=[stopping], max_epochs=7)
        assert trainer.current_epoch == epochs, (settings, own)


def test_the_trainers_least_number_of_epochs_holds(tmp_path, scripted):
    scripted(1, 0.01)
    _, trainer = watched(tmp_path, monitor=small(), after=[SaliencyEarlyStopping()], max_epochs=9, min_epochs=7)
    assert trainer.current_epoch == 7


def test_lightning_runs_it_after_every_other_callback(tmp_path):
    order = []

    class Stopping(SaliencyEarlyStopping):
        def on_train_epoch_end(self, trainer, module):
            order.append(("stopping", len(self._watched.history)))
            super().on_train_epoch_end(trainer, module)

    class Saving(Checkpoint):
        def on_train_epoch_end(self, trainer, module):
            order.append(("saving", len(monitor.history)))

    monitor = small()
    watched(tmp_path, monitor=monitor, before=[Stopping(), Saving()], max_epochs=2, enable_checkpointing=True)
    assert order == [("stopping", 1), ("saving", 1), ("stopping", 2), ("saving", 2)]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_its_count_goes_on_from_a_checkpoint(tmp_path, scripted):
    scripted(1, 0.04, 0.03, 0.02)
    saver = ModelCheckpoint(tmp_path / "saved", save_last=True)
    callbacks = {"after": [SaliencyEarlyStopping(), saver], "enable_checkpointing": True}
    watched(tmp_path, monitor=small(), max_epochs=3, **callbacks)
    state = torch.load(tmp_path / "saved" / "last.ckpt", weights_only=True)["callbacks"]
    (own,) = [value for key, value in state.items() if key.startswith("SaliencyEarlyStopping")]
    assert own["convergence"]["settled"] == 2
    scripted(0.02)
    stopping = SaliencyEarlyStopping()
    monitor, trainer = watched(
        tmp_path, monitor=small(), after=[stopping], ckpt_path=tmp_path / "saved" / "last.ckpt", max_epochs=9
    )
    assert trainer.current_epoch == 4 and stopping.stopped_epoch == 3
    assert stopping.converged_epoch == monitor.converged_epoch == 1
    watched(tmp_path, monitor=small(), after=[stopping], max_epochs=2)
    assert stopping.converged_epoch is None, "another fit begins anew"


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_its_count_begins_anew_with_other_maps(tmp_path, scripted):
    scripted(0.5, 0.01, 0.01)
    stop, saver = SaliencyEarlyStopping(), ModelCheckpoint(tmp_path / "saved", save_last=True)
    watched(tmp_path, monitor=small(), after=[stop, saver], enable_checkpointing=True, max_epochs=3)
    assert stop.wait_count == 2
    scripted(0.01)
    again = SaliencyEarlyStopping()
    with pytest.warns(UserWarning, match="starts anew"):
        _, trainer = watched(
            tmp_path, monitor=small(layer="net.conv"), after=[again], ckpt_path=tmp_path / "saved" / "last.ckpt", max_epochs=12
        )
    assert trainer.current_epoch == 6, "three quiet probings of the new maps, not one"


def test_beside_an_early_stopping_of_lightnings_own(tmp_path):
    both = [SaliencyEarlyStopping(), EarlyStopping("saliency/change"), EarlyStopping("accuracy", mode="max")]
    saver = ModelCheckpoint(tmp_path / "saved", save_last=True)
    watched(tmp_path, monitor=small(), before=both, after=[saver], enable_checkpointing=True, max_epochs=1)


@pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"barebones": True}])
def test_where_nothing_is_mapped_nothing_stops(tmp_path, options):
    settings = {"accelerator": "cpu", "devices": 1, "default_root_dir": tmp_path, "max_epochs": 1, **options}
    if "fast_dev_run" in options:
        settings |= {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(**settings, callbacks=[SaliencyEarlyStopping(), small()])
    trainer.fit(Learner(), batches())
    assert not trainer.should_stop


def test_without_a_monitor_or_with_several_it_says_what_to_do(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"there is none: Trainer\(callbacks=\[SaliencyMonitor\(\), Sal"):
        watched(tmp_path, monitor=False, before=[SaliencyEarlyStopping()])
    second = small(prefix="second/")
    with pytest.raises(MisconfigurationException, match=r"prefixes \['second/', 'saliency/'\]: say which with prefix="):
        watched(tmp_path, monitor=small(), before=[SaliencyEarlyStopping(), second])
    with pytest.raises(MisconfigurationException, match=r"needs a SaliencyMonitor\(prefix='third/'\).*\['saliency/'\]"):
        watched(tmp_path, monitor=small(), before=[SaliencyEarlyStopping(prefix="third/")])
    stopping = SaliencyEarlyStopping(prefix="second/")
    watched(tmp_path, monitor=small(), before=[stopping, small(prefix="second/")], max_epochs=1)
    assert stopping.monitor == "second/change"


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"threshold": -0.1}, ValueError, "threshold must be a number from 0 to 1, got -0.1"),
        ({"patience": 1.5}, ValueError, "patience must be a whole number of at least 1, got 1.5"),
        ({"min_lr_share": 2}, ValueError, "min_lr_share must be a number from 0 to 1, got 2"),
        ({"min_alive": True}, ValueError, "min_alive must be a number from 0 to 1, got True"),
        ({"prefix": 3}, TypeError, r"prefix must be the prefix= of a SaliencyMonitor \(str\) or None, got int"),
        ({"monitor": "val_loss"}, TypeError, "unexpected keyword argument 'monitor'"),
    ],
)
def test_misuse_says_what_is_wrong(arguments, kind, message):
    with pytest.raises(kind, match=message):
        SaliencyEarlyStopping(**arguments)


def test_the_rate_of_an_epoch_is_the_one_it_was_trained_with(tmp_path):
    """At an epoch's end a scheduler has set the next one's already: a cut must not be seen an epoch too early."""
    monitor, _ = watched(tmp_path, Learner(cuts=[2]), small(), max_epochs=4)
    rates = [entry["lr"] for entry in monitor.history]
    assert rates[0] == rates[1] > rates[2] == rates[3], rates
