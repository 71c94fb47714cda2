"""The torchmetrics classes: doctests, sums under names of their own, ranks, pickling, what is never kept."""

import doctest
import inspect
import os
import pickle
import subprocess
import sys
from pathlib import Path

import metric_ranks
import pytest
import torch
from torch import nn
from torchmetrics import Metric, MetricCollection, MetricTracker

from groupcam_aug import metrics
from groupcam_aug.metrics import summed_metric

CLASSES = [value for value in vars(metrics).values() if isinstance(value, type) and issubclass(value, Metric)]
NAMES = ["insertion", "deletion", "overall", "pointing", "macro", "energy", "iou", "localisation", "change"]


def filled(batches=((0, 7),)):
    collection, arguments = metric_ranks.made()
    for start, end in batches:
        for name, metric in collection.items():
            metric.update(*arguments(name, slice(start, end)))
    return collection


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=0, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_doctests(kind):
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    for example in finder.find(kind, kind.__name__, sys.modules[kind.__module__]):
        runner.run(example)
    assert runner.summarize().failed == 0 and runner.tries >= 5


def test_public_names_are_here():
    for name in metrics.__all__:
        assert hasattr(metrics, name), name
    assert {kind.__name__ for kind in CLASSES} <= set(metrics.__all__) and len(CLASSES) == 8
    for kind in CLASSES:  # the class of a measure stands in the file of its function
        assert any(inspect.isfunction(value) for value in vars(sys.modules[kind.__module__]).values()), kind


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_conventions(kind):
    metric = kind()
    assert metric.full_state_update is False and metric.is_differentiable is False
    assert metric.higher_is_better in ((None,) if kind is metrics.InsertionDeletion else (True, False))
    assert metric.plot_upper_bound == 1 and kind.update.__doc__ and kind.compute.__doc__
    assert all(reduction is torch.sum or reduction.__name__ == "dim_zero_sum" for reduction in metric._reductions.values())
    assert any(name.endswith("undefined") for name in metric._defaults)


def test_state_names_are_distinct():
    names = [name for kind in CLASSES for name in kind()._defaults]
    assert len(names) == len(set(names)), "MetricCollection fuses metrics whose states are equal"
    assert not set(names) & {"total", "count", "sum"}


def test_a_collection_keeps_them_apart():
    """All equal after the first batch: nothing was counted yet."""
    maps, masks = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool)
    together = MetricCollection([metrics.EnergyPointingGame(), metrics.MaskIoU(), metrics.PointingGame()])
    for _ in range(2):
        together.update(maps, masks)
        maps, masks = torch.eye(4).expand(2, 4, 4), torch.eye(4).bool().expand(2, 4, 4).clone()
        masks[1, 0] = True
    assert len(together.compute_groups) == 3
    found = {name: round(value.item(), 4) for name, value in together.compute().items()}
    assert found == {"EnergyPointingGame": 1.0, "MaskIoU": round((1 + 4 / 7) / 2, 4), "PointingGame": 1.0}


def test_values_do_not_depend_on_batches():
    whole = metric_ranks.values(filled())
    assert_equal(whole, metric_ranks.values(filled(((0, 1), (1, 5), (5, 7)))))
    assert_equal(whole, metric_ranks.values(filled(tuple((i, i + 1) for i in range(7)))))


def test_two_ranks_equal_one(tmp_path):
    """Two gloo processes with 2 and 5 images, undefined maps and empty masks among them."""
    tests = Path(metric_ranks.__file__).parent
    environment = {
        **{key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "MASTER_PORT")},
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent.parent)]),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONWARNINGS": "ignore",
    }
    call = [sys.executable, str(tests / "metric_ranks.py"), str(tmp_path)]
    running = [
        subprocess.Popen([*call, str(rank)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in range(2)
    ]
    try:
        told = [process.communicate(timeout=120)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert all(process.returncode == 0 for process in running), "\n".join(text[-3000:] for text in told)
    expected = metric_ranks.values(filled())
    assert expected["pointing pointing_skipped"] == 1 and expected["overall overall_undefined"] == 2
    for rank in range(2):
        assert_equal(expected, torch.load(tmp_path / f"rank{rank}.pt"))


@pytest.mark.filterwarnings("ignore:.*was called before the ``update`` method.*")
def test_nothing_counted_is_never_nan():
    for kind in CLASSES:
        found = kind().compute()
        expected = 1 if kind is metrics.MapChange else 0
        for value in found.values() if isinstance(found, dict) else [found]:
            assert value.item() == expected, kind


@pytest.mark.parametrize("name", NAMES)
def test_forward_pickle_clone_and_reset(name):
    collection, arguments = metric_ranks.made()
    metric = collection[name]
    own = metric(*arguments(name, slice(0, 2)))
    metric(*arguments(name, slice(2, 7)))
    whole = metric.compute()
    first = filled(((0, 2),))[name].compute()
    torch.testing.assert_close(own, first, msg="forward returns the value of the batch")
    torch.testing.assert_close(whole, filled()[name].compute())
    for copy in (pickle.loads(pickle.dumps(metric)), metric.clone()):
        torch.testing.assert_close(copy.compute(), whole)
        copy.update(*arguments(name, slice(0, 2)))
        assert isinstance(copy, Metric)
    metric.reset()
    metric.update(*arguments(name, slice(0, 2)))
    torch.testing.assert_close(metric.compute(), first)


def test_checkpoints_and_trackers():
    metric = metrics.EnergyPointingGame()
    metric.persistent(True)
    metric.update(torch.ones(1, 2, 2), torch.eye(2)[None])
    other = metrics.EnergyPointingGame()
    other.load_state_dict(metric.state_dict())
    assert other.energy_sum.item() == 0.5
    tracker = MetricTracker(metrics.MapChange(), maximize=metrics.MapChange.higher_is_better)  # which newer ones read
    for maps in (torch.eye(3)[None], torch.arange(9.0).view(1, 3, 3)):
        tracker.increment()
        tracker.update(torch.arange(9.0).view(1, 3, 3), maps)
    assert tracker.best_metric(return_step=True) == (0.0, 1), "lower is better"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_module_in_low_precision_leaves_the_sums_as_they_are(dtype):
    """Lightning's `bf16-true` casts the module with all its metrics; counts in bfloat16 stop growing at 256."""
    module = torch.nn.ModuleDict({"metric": metrics.EnergyPointingGame()})
    maps, masks = torch.ones(4, 4, 4), torch.zeros(4, 4, 4, dtype=torch.bool)
    masks[:, :2] = True
    module["metric"].update(maps, masks)
    module.to(dtype=dtype)
    for _ in range(300):
        module["metric"].update(maps, masks)
    assert module["metric"].energy_count == 4 * 301 and module["metric"].compute() == 0.5
    module["metric"].reset()
    assert module["metric"].energy_sum.dtype == torch.float64


def test_a_device_without_float64(monkeypatch):
    """MPS has no float64: the states become float32 on the way there. The meta device stands for it."""
    monkeypatch.setattr(summed_metric, "_NO_FLOAT64", {"meta"})
    module = nn.ModuleDict({"metric": metrics.EnergyPointingGame(), "curve": metrics.InsertionAUC()})
    module.to("meta")
    assert module["metric"].energy_sum.dtype == module["curve"].insertion_curve.dtype == torch.float32
    module["metric"].reset()
    assert module["metric"].energy_sum.dtype == torch.float32 and module["metric"].energy_sum.is_meta
    cast = []
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *a, own=torch.Tensor.to: (cast.append((x.is_meta, a)), own(x, *a))[1])
    module.half()
    assert module["metric"].energy_sum.dtype == torch.float32
    assert not [a for is_meta, a in cast if is_meta and torch.float64 in a], "which such a device refuses"
    assert metrics.EnergyPointingGame().to("cpu").energy_sum.dtype == torch.float64


def test_plots():
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot

    for metric in filled().values():
        figure, _axes = metric.plot()
        pyplot.close(figure)
    curve = filled()["overall"]
    over_time, _axes = curve.plot([curve.compute(), curve.compute()])
    pyplot.close(over_time)
