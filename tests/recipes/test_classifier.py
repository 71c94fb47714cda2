import copy
import math

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from groupcam_aug.recipes.classifier import Classifier, load_classifier, read_classifier
from groupcam_aug.recipes.export import export_state_dict
from groupcam_aug.recipes.networks import CIFARResNet

NETWORK = {"class_path": "groupcam_aug.recipes.networks.CIFARResNet", "init_args": {"depth": 8, "width": 4}}
INFO = {"num_classes": 3, "class_names": ["a", "b", "c"], "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2), "size": 16}


def loader(count=10, batch=4):
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.rand(count, 3, 16, 16, generator=generator), torch.arange(count) % 3), batch)


def fit(module, folder, epochs=1, **options):
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, enable_checkpointing=False, log_every_n_steps=1, **options,
    )  # fmt: skip
    trainer.fit(module, loader(), loader())
    return trainer


@pytest.fixture
def checkpoint(tmp_path):
    trainer = fit(Classifier(NETWORK, **INFO), tmp_path)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt", trainer.lightning_module


def test_fit_logs_loss_and_accuracy(tmp_path):
    trainer = fit(Classifier(NETWORK, **INFO), tmp_path)
    assert {"train/loss", "train/acc", "val/loss", "val/acc"} <= trainer.callback_metrics.keys()
    trainer.test(trainer.lightning_module, loader(), verbose=False)
    module = trainer.lightning_module.eval()
    images, labels = loader(10, 10).dataset.tensors
    assert trainer.callback_metrics["test/acc"] == pytest.approx((module(images).argmax(1) == labels).float().mean().item())


def test_defaults_are_the_papers():
    module = Classifier(NETWORK, 3)
    configured = module.configure_optimizers()
    group, schedule = configured["optimizer"].param_groups[0], configured["lr_scheduler"]
    assert isinstance(configured["optimizer"], torch.optim.SGD)
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (1e-3, 0.9, 1e-4)
    assert (schedule.step_size, schedule.gamma) == (15, 0.1)


def test_the_cosine_schedule_rises_then_falls_to_nothing(tmp_path):
    """60 steps: 3 of them (5 %) rise linearly, then half a cosine over all 60; the head by its factor."""
    rates = []

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            rates.append([group["lr"] for group in optimizer.param_groups])

    fit(Classifier(NETWORK, 3, lr=0.1, head_lr_factor=10, schedule="cosine"), tmp_path, epochs=20, callbacks=[Watch()])
    expected = [0.1 * min((step + 1) / 3, 0.5 * (1 + math.cos(math.pi * step / 60))) for step in range(60)]
    assert len(rates) == 60
    assert [rest for rest, _ in rates] == pytest.approx(expected) and [head / 10 for _, head in rates] == pytest.approx(expected)
    assert rates[0][0] == pytest.approx(0.1 / 3) and max(rates)[0] > 0.099 and rates[-1][0] < 1e-4


def test_the_schedule_is_kept_in_the_checkpoint_and_may_be_missing_there(tmp_path):
    fit(Classifier(NETWORK, **INFO, schedule="cosine"), tmp_path).save_checkpoint(tmp_path / "new.ckpt")
    assert load_classifier(tmp_path / "new.ckpt")[0].schedule == "cosine"
    content = torch.load(tmp_path / "new.ckpt", weights_only=True)
    del content["hyper_parameters"]["schedule"]
    torch.save(content, tmp_path / "old.ckpt")
    assert load_classifier(tmp_path / "old.ckpt")[0].schedule == "step"


def test_the_cosine_schedule_needs_an_end(tmp_path):
    with pytest.raises(ValueError, match="max_epochs or max_steps"):
        fit(Classifier(NETWORK, 3, schedule="cosine"), tmp_path, epochs=-1)


def test_several_test_loaders_are_logged_by_name(tmp_path):
    trainer = fit(Classifier(NETWORK, **INFO), tmp_path)
    module = trainer.lightning_module
    images, labels = loader(10).dataset.tensors
    right = (module.eval()(images).argmax(1) == labels).float()
    parts = {"first": slice(0, 3), "second": slice(3, 10)}
    loaders = {name: DataLoader(TensorDataset(images[part], labels[part]), 2) for name, part in parts.items()}
    trainer.test(module, loaders, verbose=False)
    for name, part in parts.items():
        assert trainer.callback_metrics[f"test/acc/{name}"] == pytest.approx(right[part].mean().item()), name
        loss = nn.functional.cross_entropy(module(images[part]), labels[part])
        assert trainer.callback_metrics[f"test/loss/{name}"] == pytest.approx(loss.item(), rel=1e-5), name
    trainer.test(module, loaders["first"], verbose=False)
    assert trainer.callback_metrics["test/acc"] == pytest.approx(right[:3].mean().item())
    trainer.test(module, list(loaders.values()), verbose=False)
    assert trainer.callback_metrics["test/acc/dataloader_idx_1"] == pytest.approx(right[3:].mean().item())


def test_the_head_learns_faster_by_its_factor():
    module = Classifier(NETWORK, 3, lr=0.2, head_lr_factor=10)
    rest, head = module.configure_optimizers()["optimizer"].param_groups
    assert (rest["lr"], head["lr"]) == (0.2, 2.0)
    assert {id(p) for p in head["params"]} == {id(p) for p in module.network.linear.parameters()}
    assert len(rest["params"]) + 2 == len(list(module.parameters()))


def test_frozen_epochs_leave_all_but_the_head_as_it_is(tmp_path):
    module = Classifier(NETWORK, 3, lr=0.1, freeze_epochs=1)
    before = copy.deepcopy(module.network.state_dict())
    fit(module, tmp_path, epochs=1)
    changed = {name for name, value in module.network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"linear.weight", "linear.bias"}
    module = Classifier(NETWORK, 3, lr=0.1, freeze_epochs=1)
    before = copy.deepcopy(module.network.state_dict())
    fit(module, tmp_path, epochs=2)
    changed = {name for name, value in module.network.state_dict().items() if not torch.equal(value, before[name])}
    assert {"conv1.weight", "bn1.running_mean", "layer3.0.conv2.weight"} <= changed


def test_a_checkpoint_serves_alone(checkpoint):
    path, module = checkpoint
    loaded, info = load_classifier(path)
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(loaded(x), module.eval()(x)) and not loaded.training
    assert info == {"network": NETWORK, **INFO, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2], "resize": None}
    assert torch.equal(Classifier.load_from_checkpoint(path).eval()(x), loaded(x))


def test_a_checkpoint_needs_no_starting_weights(tmp_path):
    torch.save(CIFARResNet(8, 3, 4).state_dict(), tmp_path / "start.pt")
    inner = {"class_path": NETWORK["class_path"], "init_args": NETWORK["init_args"] | {"checkpoint": str(tmp_path / "start.pt")}}
    for i, module in enumerate((Classifier(NETWORK, 3, checkpoint=str(tmp_path / "start.pt")), Classifier(inner, 3))):
        fit(module, tmp_path).save_checkpoint(tmp_path / f"{i}.ckpt")
    (tmp_path / "start.pt").unlink()
    for i in range(2):
        assert load_classifier(tmp_path / f"{i}.ckpt")[1]["network"] == NETWORK


def test_a_checkpoint_of_before_the_file_was_called_checkpoint_is_read(checkpoint, tmp_path):
    """Its hyper-parameters say `weights`, of the module and of its network."""
    path, module = checkpoint
    content = torch.load(path, weights_only=True)
    arguments = content["hyper_parameters"]
    arguments["weights"] = "gone.safetensors"
    arguments["network"] = {**NETWORK, "init_args": NETWORK["init_args"] | {"weights": "gone.pt"}}
    torch.save(content, tmp_path / "old.ckpt")
    loaded, info = load_classifier(tmp_path / "old.ckpt")
    x = torch.rand(2, 3, 16, 16)
    assert info["network"] == NETWORK and torch.equal(loaded(x), module.eval()(x))
    kept = read_classifier(tmp_path / "old.ckpt")["hyper_parameters"]
    assert "weights" not in kept and kept["network"] == NETWORK and kept["lr"] == 1e-3


def test_a_live_network_must_be_given_again(tmp_path):
    module = Classifier(CIFARResNet(8, 3, 4))
    assert module.num_classes == 3
    fit(module, tmp_path).save_checkpoint(tmp_path / "live.ckpt")
    with pytest.raises(ValueError, match="pass network="):
        load_classifier(tmp_path / "live.ckpt")
    loaded, info = load_classifier(tmp_path / "live.ckpt", network=CIFARResNet(8, 3, 4))
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(loaded(x), module.eval()(x)) and info["network"] is None


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_exported_state_dict_fits_the_bare_network(checkpoint, suffix):
    path, module = checkpoint
    out = export_state_dict(path, path.parent / "new" / f"network{suffix}")
    network = CIFARResNet(8, 3, 4, checkpoint=str(out)).eval()
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(network(x), module.eval()(x))


def test_other_files_are_refused(tmp_path, checkpoint):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_classifier(tmp_path / "nowhere.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="not a checkpoint of"):
        load_classifier(tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"\.safetensors, \.pt or \.pth"):
        export_state_dict(checkpoint[0], tmp_path / "out.onnx")


def test_predictions_are_probabilities():
    module = Classifier(NETWORK, 3).eval()
    x = torch.rand(5, 3, 16, 16)
    for batch in (x, [x, torch.zeros(5)]):
        p = module.predict_step(batch, 0)
        assert p.shape == (5, 3) and torch.allclose(p.sum(1), torch.ones(5))


class Sometimes(nn.Module):
    """No numbers for images that are black."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        return self.head(x.mean(dim=(2, 3))) / x.amax(dim=(1, 2, 3)).sign()[:, None]


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_outputs_that_are_no_numbers_are_counted(tmp_path, command):
    trainer, module = fit(Classifier(NETWORK, **INFO), tmp_path), Classifier(Sometimes())
    images, labels = loader(10).dataset.tensors
    images = images.clone()
    run = getattr(trainer, command)
    run(module, DataLoader(TensorDataset(images, labels), 4))
    images[[1, 2, 9]] = 0
    for _ in range(2):  # counted anew
        with pytest.warns(
            UserWarning, match="returns no finite numbers for 3 of 10 images: the parameters of Sometimes are finite"
        ):
            run(module, DataLoader(TensorDataset(images, labels), 4))
    with pytest.warns(UserWarning, match="for 10 of 10 images"):  # a live network: its training is compared by its accuracy
        run(module, DataLoader(TensorDataset(images * 0, labels), 4))
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    with pytest.raises(ValueError, match=r"own.ckpt': the network returns no finite numbers for 10 of 10 images"):
        run(module, DataLoader(TensorDataset(images * 0, labels), 4), ckpt_path=tmp_path / "own.ckpt")


def test_soft_labels_train():
    module = Classifier(NETWORK, 3)
    module.log = lambda *_, **__: None
    x, hard = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    module.eval()
    soft = module.training_step([x, nn.functional.one_hot(hard, 3).float()], 0)
    assert torch.allclose(soft, module.training_step([x, hard], 0))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "num_classes=None"),
        ({"num_classes": 1}, "num_classes=1"),
        ({"num_classes": 3, "schedule": "linear"}, "schedule='linear' is neither 'step' nor 'cosine'"),
        ({"num_classes": 3, "class_names": ["a"]}, "1 class_names for num_classes=3"),
        ({"num_classes": 3, "pretrained": True, "checkpoint": "w.pt"}, "checkpoint='w.pt'; choose one"),
    ],
)
def test_wrong_options_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        Classifier(NETWORK, **options)


def test_labels_are_smoothed_in_training_only():
    module = Classifier(NETWORK, 3, label_smoothing=0.3).eval()
    module.log = lambda *_, **__: logged.append(_)
    x, labels = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    logits = module(x)
    for step, smoothing in ((module.training_step, 0.3), (module.validation_step, 0.0), (module.test_step, 0.0)):
        logged = []
        step([x, labels], 0)
        expected = nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        assert float(logged[0][1].detach()) == pytest.approx(float(expected.detach())), step
