"""The user's network for a callback: found by its name, muted, in the Trainer's precision, given back as it was."""

import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lit import SILENT, Lit, fit, loader
from models import PooledNet
from torch import nn

from groupcam_aug.callbacks import GroupCAMAugmentation, SaliencyMonitor
from groupcam_aug.callbacks.glue.network import borrowed_network, find_network, has_lazy_parameters, refuse


def connected(module, **options):
    trainer = pl.Trainer(**SILENT, **options)
    trainer.strategy.connect(module)
    return trainer


def test_a_network_is_found_by_its_dotted_name():
    module = Lit()
    module.inner = nn.ModuleDict({"deep": PooledNet()})
    trainer = connected(module)
    assert find_network(trainer, module, None) is module
    assert find_network(trainer, module, "net") is module.net
    assert find_network(trainer, module, "inner.deep") is module.inner["deep"]
    with pytest.raises(MisconfigurationException, match=r"no network 'inner.shallow' \(found NoneType\).*\['net', 'inner'\]"):
        find_network(trainer, module, "inner.shallow")
    with pytest.raises(
        MisconfigurationException, match=r"no network 'inner.depe' .*; did you mean 'inner.deep'\? Its modules are"
    ):
        find_network(trainer, module, "inner.depe")


def test_lazy_modules_are_noticed():
    assert has_lazy_parameters(nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3)))
    assert not has_lazy_parameters(PooledNet())


class Strategy:
    """Stands for Lightning's, which needs several GPUs."""


FSDPStrategy = type("FSDPStrategy", (Strategy,), {})


def test_sharded_strategies_are_refused_by_name(monkeypatch):
    trainer = connected(Lit())
    refuse(trainer, Lit(), "net", "Me", "Do that.")
    monkeypatch.setattr(pl.Trainer, "strategy", FSDPStrategy())
    with pytest.raises(
        MisconfigurationException, match="Me cannot run the network outside its own step under FSDPStrategy.*Do that"
    ):
        refuse(trainer, Lit(), "net", "Me", "Do that.")


class Logs(Lit):
    def forward(self, x):
        self.log("inside", 1.0)
        return self.net(x)


def test_logging_is_muted_and_comes_back():
    module = Logs()
    trainer = connected(module)
    mine = module.log_dict = lambda *_a, **_k: None  # one that the user put there
    with borrowed_network(trainer, module, "Me"):
        module(torch.zeros(2, 3, 8, 8))  # outside a loop `log` would raise
        assert not torch.is_grad_enabled()
    assert vars(module)["log_dict"] is mine and "log" not in vars(module) and torch.is_grad_enabled()
    with pytest.raises(KeyError), borrowed_network(trainer, module, "Me"):
        raise KeyError
    assert vars(module)["log_dict"] is mine and "log" not in vars(module)


def test_precision_is_the_trainers():
    module = Lit()
    with borrowed_network(connected(module, precision="bf16-mixed"), module.net, "Me"):
        assert module.net(torch.zeros(2, 3, 8, 8)).dtype == torch.bfloat16
    with borrowed_network(connected(module), module.net, "Me"):
        assert module.net(torch.zeros(2, 3, 8, 8)).dtype == torch.float32


@pytest.mark.parametrize("network", [None, "net"])
def test_a_forward_that_needs_more_than_the_images_is_refused_with_the_way_out(network):
    class Inner(PooledNet):
        def forward(self, x, *, where):
            return super().forward(x)

    class Needs(Lit):
        def forward(self, images, labels):
            return self.net(images)

    module = Needs(Inner() if network else None)
    callback = GroupCAMAugmentation(preset="paper", network=network, layer="relu2" if network else "net.relu2", groups=2)
    with pytest.raises(
        MisconfigurationException,
        match=rf"{'Inner' if network else 'Needs'} cannot be run on images alone: .*missing 1 required .*'(labels|where)'.*"
        r"GroupCAMAugmentation\(network=\.\.\.\), one of \['net'\]",
    ):
        fit(module, [callback])


class InTwoParts(Lit):
    """Features in `net`, classes behind them in `head`; `aside` takes as many but is not trained, `loss` is not behind."""

    def __init__(self, wide=5):
        super().__init__()
        self.head, self.aside, self.loss = nn.Linear(wide, 5), nn.Linear(5, 5).requires_grad_(False), nn.Linear(5, 5)
        self.wide = wide

    def forward(self, x):
        features = self.net(x)
        return self.head(torch.cat([features, features], dim=1)[:, : self.wide])


@pytest.mark.parametrize("make", [GroupCAMAugmentation, SaliencyMonitor])
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}])
def test_a_classifier_behind_the_mapped_network_is_noticed_once(make, options):
    with pytest.warns(UserWarning) as said:
        fit(InTwoParts(), [make(network="net", layer="relu2", groups=2)], val=loader(), **options)
    text = [str(one.message) for one in said if "behind" in str(one.message)]
    (only,) = text
    assert f"{make.__name__}(network='net') maps the 5 outputs of 'net'" in only and "'head' takes as many" in only
    assert "forward() through both and leave network= out" in only


@pytest.mark.parametrize("make", [GroupCAMAugmentation, SaliencyMonitor])
def test_what_is_not_behind_it_is_not_warned_of(make):
    """Another width, no network by name, another network that is mapped: warnings are errors here."""
    fit(InTwoParts(wide=7), [make(network="net", layer="relu2", groups=2)], val=loader())
    fit(InTwoParts(), [make(layer="net.relu2", groups=2)], val=loader())
    if make is GroupCAMAugmentation:
        fit(InTwoParts(), [make(network="net", layer="relu2", groups=2, source=PooledNet())])


def test_another_type_error_is_raised_as_it_is():
    trainer = connected(module := Lit())
    with pytest.raises(TypeError, match="^something else$"), borrowed_network(trainer, module, "Me"):
        raise TypeError("something else")


def test_metrics_in_forward_are_refused_unless_nobody_looks():
    class Counts(Lit):
        def __init__(self):
            super().__init__()
            self.accuracy = torchmetrics.MeanMetric()

        def forward(self, x):
            self.accuracy.update(1.0)
            return self.net(x)

    module = Counts()
    trainer = connected(module)
    with pytest.raises(MisconfigurationException, match="updates torchmetrics"), borrowed_network(trainer, module, "Me"):
        module(torch.zeros(2, 3, 8, 8))
    with borrowed_network(trainer, module, "Me", check=False):
        module(torch.zeros(2, 3, 8, 8))
