"""A checkpoint from elsewhere: nothing in it is called or imported, and what is odd in it is refused in a sentence."""

import copy
import os
import sys

import pytest
import pytorch_lightning as pl
import torch
from lit import SILENT
from PIL import Image

from groupcam_aug.recipes.classifier import Classifier, load_classifier
from groupcam_aug.recipes.cli import main
from groupcam_aug.recipes.export import export_state_dict
from groupcam_aug.recipes.saved_classifier import check_network, described, is_harmless, kept_choices, read_classifier

NETWORK = {"class_path": "groupcam_aug.recipes.networks.CIFARResNet", "init_args": {"depth": 8, "width": 4}}
SHELL = {"class_path": "os.system", "init_args": {"command": "touch ran"}}
WAYS = {
    "a transform of the data": ("ImageData", {"train_transform": SHELL}),
    "a number of the data": ("ImageData", {"resize": SHELL}),
    "the seed": ("ImageData", {"seed": SHELL, "val_fraction": SHELL}),
    "a callable for a known class": (
        "hyper_parameters",
        {
            "network": {
                "class_path": "timm.layers.ConvNormAct",
                "init_args": {"in_channels": 3, "out_channels": 3, "act_layer": SHELL},
            }
        },
    ),
    "a class in a list": (
        "hyper_parameters",
        {"network": {"class_path": "timm.layers.ConvNormAct", "init_args": {"x": [[SHELL]]}}},
    ),
    "arguments beside the class": (
        "hyper_parameters",
        {"network": {"class_path": "timm.layers.ConvNormAct", "act_layer": SHELL}},
    ),
    "no network": ("hyper_parameters", {"network": SHELL}),
    "a module of the working directory": ("hyper_parameters", {"network": {"class_path": "evil.Net", "init_args": {}}}),
    "a module of that name": ("hyper_parameters", {"network": "evil.Net"}),
    "a network in a network": (
        "hyper_parameters",
        {
            "network": {
                "class_path": "groupcam_aug.recipes.classifier.Classifier",
                "init_args": {"network": {"class_path": "evil.Net"}},
            }
        },
    ),
    "a number": ("hyper_parameters", {"lr": SHELL}),
    "names": ("hyper_parameters", {"class_names": SHELL}),
    "a normalisation": ("hyper_parameters", {"mean": [SHELL, SHELL, SHELL]}),
    "an argument that there is not": ("hyper_parameters", {"train_transform": SHELL}),
    "notes of Lightning": ("hyper_parameters", {"_instantiator": "evil.make", "_class_path": "evil.Net"}),
    "notes on the data": ("datamodule_hyper_parameters", {"_instantiator": "evil.make", "_class_path": "evil.Net"}),
}
PASSED_OVER = ("a transform of the data", "notes of Lightning", "notes on the data")  # neither read nor refused
COMMANDS = ("validate", "test", "predict", "explain")


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    torch.manual_seed(0)
    module = Classifier(NETWORK, 2, class_names=["ant", "bee"], mean=[0.5] * 3, std=[0.25] * 3, size=32)
    trainer = pl.Trainer(**SILENT, max_steps=0)
    trainer.strategy.connect(module)
    path = tmp_path_factory.mktemp("good") / "good.ckpt"
    trainer.save_checkpoint(path)
    data = {"resize": None, "val_fraction": 0.5, "seed": 0, "order_seed": 0, "trained": torch.empty(0, dtype=torch.int64)}
    return {**torch.load(path, weights_only=True), "ImageData": data}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with images of two classes, and a module that leaves a file when it is imported."""
    monkeypatch.chdir(tmp_path)
    for c, name in enumerate(("ant", "bee")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (40, 33), (200 * c, 20 * i, 0)).save(tmp_path / "images" / name / f"{i}.png")
    (tmp_path / "evil.py").write_text(
        "import torch\nopen('ran', 'w').close()\nmake = print\n"
        "class Net(torch.nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("evil", None)


def words(command, path):
    if command == "explain":
        return ["explain", "images/ant/0.png", "--checkpoint", path, "--device", "cpu", "--groups", "4"]
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.logger", "false"]
    return [command, "--ckpt_path", path, "--data.root", "images", "--data.num_workers", "0", *quiet]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("way", WAYS)
def test_nothing_in_a_checkpoint_is_called_or_imported(folder, content, capsys, way, command):
    section, changes = WAYS[way]
    torch.save({**content, section: {**content.get(section, {}), **changes}}, "bad.ckpt")
    status = main(words(command, "bad.ckpt"))
    assert not (folder / "ran").exists() and "evil" not in sys.modules
    told = capsys.readouterr().err
    assert status == (0 if way in PASSED_OVER else 1) and "Traceback" not in told
    assert status == 0 or "bad.ckpt" in told or "ImageData" in told or "evil.Net" in told


class Reduced:
    """Runs a command where it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize("command", [*COMMANDS, "fit"])
def test_a_pickled_object_is_not_unpickled(folder, content, capsys, command):
    torch.save({**content, "extra": Reduced()}, "bad.ckpt")
    model = ["--model.network", "timm/resnet18"] if command == "fit" else []
    assert main([*words(command, "bad.ckpt"), *model]) == 1
    assert not (folder / "ran").exists() and "no file of tensors and plain values" in capsys.readouterr().err


def test_a_class_of_elsewhere_needs_trust_or_a_config_that_names_it(folder, content, capsys):
    import evil

    network = {"class_path": "evil.Net", "init_args": {}}
    state = {f"network.{key}": value for key, value in evil.Net().state_dict().items()}
    changed = {**content, "state_dict": state, "hyper_parameters": {**content["hyper_parameters"], "network": network}}
    torch.save(changed, "own.ckpt")
    for command in ("test", "explain"):
        assert main(words(command, "own.ckpt")) == 1
        assert "'evil.Net', not one of timm, torchvision, groupcam_aug; making it may run any code: add --trust" in (
            " ".join(capsys.readouterr().err.split())
        )
    assert main([*words("test", "own.ckpt"), "--trust"]) == 0
    assert main(["test", "--trust", *words("predict", "own.ckpt")[1:]]) == 0
    assert main([*words("test", "own.ckpt"), "--model.network", '{"class_path": "evil.Net"}']) == 0
    with pytest.raises(ValueError, match="trust=True"):
        load_classifier("own.ckpt")
    assert type(load_classifier("own.ckpt", trust=True)[0].network) is evil.Net


@pytest.mark.parametrize(
    ("section", "name", "values"),
    [
        ("hyper_parameters", "num_classes", [None, 1, 2.0, True, float("nan"), "2", 3, 10**12]),
        ("hyper_parameters", "class_names", ["ab", [1, 2], ["ant"], {"ant": 0, "bee": 1}]),
        ("hyper_parameters", "mean", [[], [None] * 3, [float("nan")] * 3, 0.5, "0.5", [0.5], [0.5] * 5]),
        ("hyper_parameters", "std", [[0.0] * 3, [float("inf")] * 3, [-1.0], [0.5], [1e-300] * 3]),
        ("hyper_parameters", "size", [0, 32.0, float("nan"), "32", [32], 10**6]),
        ("hyper_parameters", "network", [3, [], {}, {"class_path": 3}, {"class_path": "timm.layers.Mlp", "init_args": [1]}]),
        ("hyper_parameters", "lr", [None, float("nan"), float("inf"), "0.1"]),
        ("hyper_parameters", "lr_step", [None, 1.5, float("nan")]),
        ("hyper_parameters", "schedule", [None, "linear"]),
        ("ImageData", "resize", [0, float("nan"), "40", 40.0, 10**6]),
        ("ImageData", "val_fraction", [None, 0, 1, float("nan"), "0.2"]),
        ("ImageData", "seed", [None, 0.5, float("nan"), "0"]),
        ("ImageData", "trained", [None, "abc", 3, torch.rand(3), torch.ones(2, 2, dtype=torch.int64)]),
        ("ImageData", "order_seed", ["abc", 0.5, True]),
    ],
)
def test_odd_values_are_refused_by_name(content, tmp_path, section, name, values):
    for value in values:
        torch.save({**content, section: {**content[section], name: value}}, tmp_path / "odd.ckpt")
        with pytest.raises(ValueError, match=f"{name}|names"):
            load_classifier(tmp_path / "odd.ckpt")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("pytorch-lightning_version", [None, 5, "\x1b]0;mine\x07", ""]),
        ("loops", ["abc", [1], {"fit_loop": 3}]),
        ("callbacks", ["abc", ["abc"], {"ModelCheckpoint": "abc"}]),
        ("ImageData", [None, "abc", [1]]),
    ],
)
def test_odd_parts_that_lightning_would_stumble_over_are_refused_by_name(content, tmp_path, name, values):
    for value in values:
        torch.save({**content, name: value}, tmp_path / "odd.ckpt")
        with pytest.raises(ValueError, match=rf"odd.ckpt.*{name}=.* is no ") as error:
            load_classifier(tmp_path / "odd.ckpt")
        assert "\n" not in str(error.value)
    torch.save({key: part for key, part in content.items() if key != name}, tmp_path / "less.ckpt")
    if name == "pytorch-lightning_version":
        with pytest.raises(ValueError, match=rf"{name}=None is no version of Lightning"):
            load_classifier(tmp_path / "less.ckpt")
    else:
        load_classifier(tmp_path / "less.ckpt")


def test_numbers_that_would_fill_the_memory_are_refused_before_a_network_is_made(content, tmp_path):
    for name, value, told in (("num_classes", 10**12, "2 to 1,000,000"), ("size", 10**6, "1 to 16,384")):
        changed = {**content["hyper_parameters"], "class_names": None, name: value}
        torch.save({**content, "hyper_parameters": changed}, tmp_path / "odd.ckpt")
        with pytest.raises(ValueError, match=f"odd.ckpt', hyper_parameters: {name}={value} is no count from {told}"):
            read_classifier(tmp_path / "odd.ckpt")


def test_a_network_that_cannot_be_made_is_a_sentence(content, tmp_path):
    block = {"class_path": "torchvision.models.resnet.ResNet", "init_args": {"block": "os.system", "layers": [1, 1, 1, 1]}}
    torch.save({**content, "hyper_parameters": {**content["hyper_parameters"], "network": block}}, tmp_path / "odd.ckpt")
    with pytest.raises(ValueError, match=r"odd.ckpt' describes no network that can be made, .*ResNet.*: ") as error:
        load_classifier(tmp_path / "odd.ckpt")
    assert "\n" not in str(error.value)


def test_a_normalisation_of_other_channels_is_for_networks_whose_images_nobody_tried(content, tmp_path):
    grey = {**content["hyper_parameters"], "mean": [0.5], "std": [0.25], "size": None}
    torch.save({**content, "hyper_parameters": grey}, tmp_path / "grey.ckpt")
    assert load_classifier(tmp_path / "grey.ckpt")[1]["mean"] == [0.5]
    torch.save({**content, "hyper_parameters": {**grey, "std": [0.25, 0.25]}}, tmp_path / "odd.ckpt")
    with pytest.raises(ValueError, match=r"mean=\[0.5\] and std=\[0.25, 0.25\] do not have a number for each channel"):
        load_classifier(tmp_path / "odd.ckpt")


def test_export_refuses_what_is_not_the_network(content, tmp_path):
    state, out = content["state_dict"], tmp_path / "out.safetensors"
    others = {f"net.{key}": value for key, value in state.items()}
    compiled = {key.replace("network.", "network._orig_mod."): value for key, value in state.items()}
    for found, message in ((others, "no name of its .* begins with 'network.'"), (compiled, "not those of its network")):
        torch.save({**content, "state_dict": found}, tmp_path / "odd.ckpt")
        with pytest.raises(ValueError, match=message):
            export_state_dict(tmp_path / "odd.ckpt", out)
        assert not out.exists()
    torch.save({**content, "hyper_parameters": {**content["hyper_parameters"], "network": "timm/x"}}, tmp_path / "odd.ckpt")
    with pytest.raises(ValueError, match="no network that can be made"):
        export_state_dict(tmp_path / "odd.ckpt", out)
    elsewhere = {**content["hyper_parameters"], "network": {"class_path": "evil.Net", "init_args": {}}}
    torch.save({**content, "hyper_parameters": elsewhere}, tmp_path / "own.ckpt")
    assert export_state_dict(tmp_path / "own.ckpt", out) == out and "evil" not in sys.modules


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of quantised and sparse tensors
def test_odd_weights_are_refused(content, tmp_path):
    state = content["state_dict"]
    weight = state["network.linear.weight"]
    whole = torch.quantize_per_tensor(weight, 1, 0, torch.qint8)
    nan = {**state, "network.linear.bias": torch.tensor([0.0, float("nan")])}
    cases = {
        "no weights under state_dict": [None, [], 3, {1: torch.ones(1)}, {**state, "network.linear.bias": None}],
        "not numbers .'network.linear.bias'.: its training diverged": [nan],
        "'network.linear.weight' is .*, no dense tensor of real numbers": [
            {**state, "network.linear.weight": odd} for odd in (weight.to_sparse(), weight.to("meta"), weight.cfloat(), whole)
        ],
        "'network.linear.weight' is torch.int8, in the network torch.float32": [
            {**state, "network.linear.weight": weight.char()}
        ],
        "not those of its network": [
            {},
            {**state, "network.linear.bias": torch.ones(7)},
            {**state, "network.more": torch.ones(1)},
        ],
    }
    for message, found in cases.items():
        for value in found:
            torch.save({**content, "state_dict": value}, tmp_path / "odd.ckpt")
            with pytest.raises(ValueError, match=message) as error:
                load_classifier(tmp_path / "odd.ckpt")
            assert "\n" not in str(error.value) and "odd.ckpt" in str(error.value)
    for whole in (None, 3, [], {}, {"hyper_parameters": None}, {"hyper_parameters": [1]}):
        torch.save(whole, tmp_path / "odd.ckpt")
        with pytest.raises(ValueError, match="not a checkpoint of `groupcam-aug fit`"):
            load_classifier(tmp_path / "odd.ckpt")


@pytest.mark.slow
def test_damaged_files_are_refused_by_name(content, tmp_path):
    torch.save(content, tmp_path / "whole.ckpt")
    whole = bytearray((tmp_path / "whole.ckpt").read_bytes())
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        damaged = copy.copy(whole)
        for at in torch.randint(0, len(whole), (40,), generator=generator).tolist():
            damaged[at] ^= int(torch.randint(1, 256, (1,), generator=generator))
        cut = int(torch.randint(0, len(whole), (1,), generator=generator))
        for part in (damaged, whole[:cut], damaged[:cut]):
            (tmp_path / "torn.ckpt").write_bytes(part)
            try:
                load_classifier(tmp_path / "torn.ckpt")
            except ValueError as error:
                assert "torn.ckpt" in str(error) or "ImageData" in str(error)


def test_a_good_one_comes_back_whole(content, tmp_path):
    torch.save({**content, "ImageData": {**content["ImageData"], "resize": 40, "files": ["a.png"]}}, tmp_path / "good.ckpt")
    found = read_classifier(tmp_path / "good.ckpt")
    assert found["hyper_parameters"]["network"] == NETWORK and found["hyper_parameters"]["class_names"] == ["ant", "bee"]
    assert kept_choices(found) == {"resize": 40, "val_fraction": 0.5, "seed": 0}
    assert kept_choices({}) == {}


def test_which_descriptions_are_harmless():
    for network in (
        None,
        "timm/resnet18",
        NETWORK,
        {"class_path": "torchvision.models.ResNet", "init_args": {"x": [1, (2.0, "a")]}},
    ):
        check_network(network, "x.ckpt")
        assert is_harmless(network)
    for network in ({"class_path": "timmy.X", "init_args": {}}, {"class_path": "os.system", "init_args": {}}):
        with pytest.raises(ValueError, match="add --trust"):
            check_network(network, "x.ckpt")
        assert not is_harmless(network)
    with pytest.raises(ValueError, match="an argument depth={'class_path': 'os.system'}, no number"):
        check_network({**NETWORK, "init_args": {"depth": {"class_path": "os.system"}}}, "x.ckpt")
    assert described(torch.nn.Identity()) is None and described("resnet18") == "resnet18"
    assert described({**NETWORK, "checkpoint": "gone.pt", "width": 8})["init_args"] == {"depth": 8, "width": 8}
