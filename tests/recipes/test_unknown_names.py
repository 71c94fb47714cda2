"""Names in a command line and its configs that nothing has: found in them, whatever a parser's message says."""

from pathlib import Path

import pytest

from groupcam_aug.recipes import classifier, data, lightning_cli  # noqa: F401  (classes are looked up where their modules are imported)
from groupcam_aug.recipes.lightning_cli import USUAL
from groupcam_aug.recipes.unknown_names import (
    full_name,
    given_options,
    imported_class,
    names_class,
    nearest,
    stated,
    unknown_names,
)

OPTIONS = ["config", "model", "model.help", "data", "data.help", "trainer", "trainer.max_epochs", "trainer.callbacks"]
OPTIONS += ["trainer.callbacks.help", "ckpt_path", "seed_everything"]
RIGHT = """
seed_everything: 3
model: {class_path: groupcam_aug.recipes.classifier.Classifier, init_args: {lr: 1, network: {class_path: x.Y, init_args: {z: 1}}}}
data: {root: images}
trainer: {max_epochs: 3, callbacks: [{class_path: nowhere.Callback, init_args: {anything: 1}}]}
"""


def unknown(*words):
    return "".join(unknown_names(list(words), OPTIONS, USUAL))


def test_right_names_say_nothing(tmp_path):
    (tmp_path / "right.yaml").write_text(RIGHT)
    words = ["--model.lr=3", "--model", "Classifier", "--data.init_args.root", "x", "--trainer.max_epochs", "3", "--ckpt_path=x"]
    assert unknown("--config", str(tmp_path / "right.yaml"), *words, "--trainer.callbacks+=X", "--trainer.callbacks.a=1") == ""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--model.netwrk=x"],
            "; Classifier takes no 'netwrk'; did you mean 'network'? (it takes network, num_classes, pretrained",
        ),
        (["--data.init_args.rot", "x"], "; ImageData takes no 'rot'; did you mean 'root'? (it takes root, dataset"),
        (["--trainer.max_epox", "3"], "; did you mean 'trainer.max_epochs'?"),
        (
            ["--trainer.callbacks+=groupcam_aug.callbacks.GroupCAMAugmentation", "--trainer.callbacks.netwrk", "model"],
            "; GroupCAMAugmentation takes no 'netwrk'; did you mean 'network'?",
        ),
        (
            ["--trainer.callbacks", "SaliencyReport", "--trainer.callbacks.dirpth=x"],
            "; SaliencyReport takes no 'dirpth'; did you mean 'dirpath'?",
        ),
        (["--model.weights", "x"], "; Classifier takes no 'weights'; it is called 'checkpoint' now (it takes"),
        (["--lr", "0.1"], "; did you mean 'model.lr'?"),
        (["--learning_rate=0.1"], "; did you mean 'model.lr'?"),
        (["--batch_size", "8"], "; did you mean 'data.batch_size'?"),
        (["--epochs", "3"], "; did you mean 'trainer.max_epochs'?"),
        (["--trainer.epochs", "3"], "; did you mean 'trainer.max_epochs'?"),
        (["--model.learning_rate", "1"], "; Classifier takes no 'learning_rate'; did you mean 'lr'?"),
        (
            ["--model=groupcam_aug.recipes.networks.CIFARResNet", "--model.dept=8"],
            "; CIFARResNet takes no 'dept'; did you mean 'depth'?",
        ),
    ],
)
def test_wrong_names_of_a_command_line(words, expected):
    assert unknown(*words).startswith(expected)


def test_an_option_cut_short_is_right():
    assert unknown("--trainer.max_epoch", "3", "--ckpt=x") == ""


def test_a_config_of_the_model_alone(tmp_path):
    (tmp_path / "model.yaml").write_text("{class_path: groupcam_aug.recipes.classifier.Classifier, init_args: {weights: w.pt}}")
    assert unknown("--model", str(tmp_path / "model.yaml")).startswith(
        "; Classifier takes no 'weights'; it is called 'checkpoint'"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trainer: {max_epoks: 1}", "; did you mean 'trainer.max_epochs'?"),
        ("modle: {lr: 1}", "; did you mean 'model'?"),
        ("model: {lrr: 1}", "; Classifier takes no 'lrr'; did you mean 'lr'?"),
        ("data: {init_args: {rooot: x}}", "; ImageData takes no 'rooot'; did you mean 'root'?"),
        (
            "trainer: {callbacks: [{class_path: groupcam_aug.callbacks.GroupCAMAugmentation, init_args: {prest: fast}}]}",
            "; GroupCAMAugmentation takes no 'prest'; did you mean 'preset'?",
        ),
        (
            "model: {network: {class_path: groupcam_aug.recipes.networks.CIFARResNet, init_args: {weights: x}}}",
            "; CIFARResNet takes no 'weights'; it is called 'checkpoint' now",
        ),
    ],
)
def test_wrong_names_of_a_config(tmp_path, text, expected):
    import groupcam_aug.callbacks  # noqa: F401

    (tmp_path / "own.yaml").write_text(text)
    assert unknown("--config", str(tmp_path / "own.yaml")).startswith(expected)
    assert unknown(f"--config={tmp_path / 'own.yaml'}").startswith(expected)


@pytest.mark.parametrize("text", ["a: [", "- 1", "", "\x00"])
def test_a_config_that_is_none_says_nothing(tmp_path, text):
    (tmp_path / "own.yaml").write_text(text)
    assert unknown("--config", str(tmp_path / "own.yaml")) == "" == unknown("--config", str(tmp_path / "nowhere.yaml"))


def test_options_with_their_values():
    words = ["fit", "--a=1", "--b", "2", "-c", "d.yaml", "--e"]
    assert list(given_options(words)) == [("--a", "1"), ("--b", "2"), ("--config", "d.yaml"), ("--e", "")]


def test_a_class_is_found_where_its_module_is_imported():
    assert imported_class("groupcam_aug.recipes.classifier.Classifier") is classifier.Classifier
    assert imported_class("groupcam_aug.recipes.classifier.Classifier.forward") is classifier.Classifier.forward
    assert imported_class("never.imported.Thing") is None is imported_class("Classifier")


def test_a_suggestion_names_what_was_renamed_before_what_is_near():
    assert nearest("weights", ["width", "checkpoint"], {"weights": "checkpoint"}) == "; it is called 'checkpoint' now"
    assert nearest("weights", ["weight", "width"], {"weights": "checkpoint"}) == "; did you mean 'weight'?", "not here"
    assert nearest("zzz", ["width"]) == ""


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--data", "package.Mine"], True),
        (["--data=package.Mine"], True),
        (["--data.class_path", "package.Mine"], True),
        (["--data", '{"class_path": "package.Mine"}'], True),
        (["--data", '{"init_args": {"size": 32}}'], False),
        (["--data.size", "32"], False),
        (["--model", "package.Mine"], False),
        (["--config", "with.yaml"], True),
        (["--config", "without.yaml"], False),
        (["--data", "part.yaml"], True),
    ],
)
def test_a_class_is_named_on_the_line_or_in_a_config(words, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("with.yaml").write_text("data: {class_path: package.Mine}")
    Path("without.yaml").write_text("data: {init_args: {size: 32}}\nmodel: {class_path: package.Mine}")
    Path("part.yaml").write_text("class_path: package.Mine")
    assert names_class(words, "data") is named


def test_what_a_line_and_its_configs_state(tmp_path):
    (tmp_path / "part.yaml").write_text("class_path: own.Net\ninit_args: {lr: 1, depth: 2}\n")
    (tmp_path / "whole.yaml").write_text("model: {class_path: Classifier, init_args: {lr: 3}, size: 5}\ndata: {root: x}\n")
    (tmp_path / "link.yaml").write_text("model: part.yaml\n")
    whole, link = ["--config", str(tmp_path / "whole.yaml")], ["--conf", str(tmp_path / "link.yaml")]
    assert stated(whole, "model") == {"class_path": ("Classifier", False), "lr": (3, False), "size": (5, False)}
    assert stated([*whole, "--model.init_args.lr=4", "--model.network.init_args.depth", "8"], "model") == {
        "class_path": ("Classifier", False),
        "lr": (4, True),
        "size": (5, False),
        "network.init_args.depth": (8, True),
    }
    assert stated([*whole, "--model", "own.Net"], "model") == {"class_path": ("own.Net", True)}
    assert stated(link, "model") == {"class_path": ("own.Net", False), "lr": (1, False), "depth": (2, False)}
    assert stated(["--model", str(tmp_path / "part.yaml")], "model")["depth"] == (2, True)
    assert stated(['--data={"root": "y"}', "--data.help"], "data") == {"root": ("y", True)} and stated(whole, "trainer") == {}


def test_flags_that_are_cut_short():
    assert [full_name(flag) for flag in ("--ckpt", "--ck", "--c", "--con", "-c", "--ckpt_pathx", "--model")] == [
        *("--ckpt_path", "--ckpt_path", "--c", "--config", "--config", "--ckpt_pathx", "--model")
    ]
