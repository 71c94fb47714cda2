"""fit, validate, test and predict as one types them."""

import csv
import inspect
import json
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from pytorch_lightning import Trainer

from groupcam_aug.recipes.checkpoint_options import from_checkpoint
from groupcam_aug.recipes.classifier import load_classifier
from groupcam_aug.recipes.cli import main

NETWORK = '{"class_path": "groupcam_aug.recipes.networks.CIFARResNet", "init_args": {"depth": 8, "width": 4}}'
DATA = ["--data.root", "images", "--data.num_workers", "0"]
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with images/train and images/val, two classes of three images."""
    monkeypatch.chdir(tmp_path)
    for part in ("train", "val"):
        for c, name in enumerate(("ant", "bee")):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (40, 33), (200 * c, 20 * i, 0)).save(tmp_path / "images" / part / name / f"{i}.png")
    return tmp_path


@pytest.fixture
def checkpoint(folder):
    words = ["--data.root", "images", "--data.size", "32", "--data.num_workers", "0", "--data.mean", "[0.1, 0.2, 0.3]"]
    limits = ["--trainer.max_epochs", "1", "--trainer.logger", "false", "--trainer.default_root_dir", "run"]
    assert main(["fit", *words, "--model.network", NETWORK, *limits, *QUIET]) == 0
    return next((folder / "run").rglob("*.ckpt"))


def test_fit_ends_with_where_everything_is_and_what_comes_next(capsys, checkpoint):
    told = capsys.readouterr().out
    assert f"best checkpoint  {checkpoint.relative_to(checkpoint.parents[2])}" in told
    lines = told[told.index("next:\n") :].splitlines()[1:4]
    assert [line.split()[1] for line in lines] == ["test", "explain", "trial"]
    assert main(shlex.split(lines[1])[1:]) == 0  # as pasted


def test_a_checkpoint_without_finite_outputs_is_refused(checkpoint, capsys):
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["network.linear.weight"].fill_(float("inf"))
    torch.save(content, "inf.ckpt")
    for command in ("validate", "test", "predict"):
        assert main([command, "--ckpt_path", "inf.ckpt", *DATA, *QUIET, "--trainer.logger", "false"]) == 1
        told = capsys.readouterr()
        assert "checkpoint 'inf.ckpt': the network returns no finite numbers for 6 of 6 images: 'linear.weight' of " in told.err
        assert "nan" not in told.out
    assert not Path("predictions.csv").exists()


@pytest.mark.parametrize(
    ("command", "limit"),
    [("validate", "limit_val_batches"), ("test", "limit_test_batches"), ("predict", "limit_predict_batches")],
)
def test_a_limit_that_leaves_nothing_is_refused(checkpoint, capsys, command, limit):
    words = [command, "--ckpt_path", str(checkpoint), *DATA, *QUIET, "--trainer.logger", "false", f"--trainer.{limit}", "0"]
    assert main(words) == 1
    assert f"--trainer.{limit} 0 leaves nothing to {command}: give 1 or more" in capsys.readouterr().err


def test_a_checkpoint_in_the_place_of_a_config_is_a_sentence(folder, capsys):
    (folder / "last.ckpt").write_bytes(b"PK\x03\x04\xff\xfe")
    assert main(["fit", "--config", "last.ckpt"]) == 1
    told = capsys.readouterr().err
    assert "last.ckpt' is no text" in told and "a checkpoint is for --ckpt_path" in told and told.count("\n") == 1


@pytest.mark.parametrize("name", ["shapes_demo", "shapes_demo.yaml"])
def test_fit_finds_a_shipped_recipe_by_name(folder, capsys, name):
    assert main(["fit", "--config", name, "--print_config"]) == 0
    assert "CIFARResNet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--data.rot", "images"], "did you mean 'root'?"),
        (["--model.netwrk", "resnet18"], "did you mean 'network'?"),
        (["--trainer.max_epox", "3"], "did you mean 'trainer.max_epochs'?"),
        (["--model.weights", "w.pt"], "Classifier takes no 'weights'; it is called 'checkpoint' now"),
    ],
)
def test_an_unknown_option_suggests_the_nearest(folder, capsys, words, told):
    assert main(["fit", *words]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("trainer: {max_epoks: 3}", "did you mean 'trainer.max_epochs'?"),
        ("model: {class_path: groupcam_aug.recipes.classifier.Classifier, init_args: {weight_decy: 1}}", "'weight_decay'"),
        (
            "trainer: {callbacks: [{class_path: groupcam_aug.callbacks.GroupCAMAugmentation, init_args: {prest: fast}}]}",
            "'preset'",
        ),
        ("modle: {lr: 1}", "did you mean 'model'?"),
        (
            "model: {class_path: groupcam_aug.recipes.classifier.Classifier, init_args: {weights: w.pt}}",
            "is called 'checkpoint' now",
        ),
    ],
)
def test_an_unknown_config_key_suggests_the_nearest(folder, capsys, text, told):
    (folder / "logs").mkdir()  # the parser goes there while it reads
    (folder / "logs" / "own.yaml").write_text(text)
    assert main(["fit", "--config", "logs/own.yaml"]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(("value", "status"), [("null", 0), ("w.pt", 2)])
def test_a_config_that_an_earlier_run_saved_serves_or_says_how_the_file_is_called_now(folder, capsys, value, status):
    assert main(["fit", "--config", "shapes_demo", "--print_config"]) == 0
    text = capsys.readouterr().out
    assert "    checkpoint: null\n" in text and "        depth: 8\n" in text
    text = text.replace("        depth: 8\n", "        depth: 8\n        weights: null\n")  # of the network
    (folder / "config.yaml").write_text(text.replace("    checkpoint: null\n", f"    weights: {value}\n"))
    quick = ["--trainer.fast_dev_run", "true", "--data.train", "64"]
    assert main(["fit", "--config", "config.yaml", *quick]) == status
    assert ("Classifier takes no 'weights'; it is called 'checkpoint' now" in capsys.readouterr().err) == (status == 2)


def test_callbacks_may_be_named_by_their_classes_alone(folder):
    model = f"{{class_path: groupcam_aug.recipes.classifier.Classifier, init_args: {{network: {NETWORK}}}}}"
    (folder / "short.yaml").write_text(f"model: {model}\ntrainer: {{callbacks: [{{class_path: SaliencyReport}}]}}\n")
    words = ["fit", "--config", "short.yaml", "--print_config"]
    # In a process of its own, where nothing else has imported the callbacks.
    done = subprocess.run([sys.executable, "-m", "groupcam_aug.recipes.cli", *words], capture_output=True, text=True)
    assert done.returncode == 0 and "class_path: groupcam_aug.callbacks.SaliencyReport" in done.stdout, done.stderr[-2000:]


def test_a_refusal_is_one_line_without_a_traceback(folder, capsys):
    assert main(["fit", "--data.root", "nowhere", "--model.network", NETWORK]) == 1
    told = capsys.readouterr().err
    assert "'nowhere' is no folder" in told and "images" in told and "Traceback" not in told
    assert main(["fit", "--data.root", "images", "--data.size", "32", "--model.network", "resnet5O"]) == 1
    assert "resnet50" in capsys.readouterr().err


def test_the_network_of_a_config_says_how_its_file_is_called_now(folder, capsys):
    network = '{"class_path": "groupcam_aug.recipes.networks.CIFARResNet", "init_args": {"depth": 8, "weights": "w.pt"}}'
    assert main(["fit", "--data.root", "images", "--data.size", "32", "--model.network", network]) == 1
    assert "CIFARResNet takes no 'weights'; it is called 'checkpoint' now" in capsys.readouterr().err


def test_the_data_tell_the_model_its_classes(checkpoint):
    kept = torch.load(checkpoint, weights_only=True)["hyper_parameters"]
    assert kept["class_names"] == ["ant", "bee"] and kept["num_classes"] == 2 and kept["size"] == 32
    assert kept["mean"] == [0.1, 0.2, 0.3] and kept["network"]["init_args"] == {"depth": 8, "width": 4}


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_checkpoint_serves_alone(checkpoint, folder, capsys, caplog, command):
    shutil.rmtree(folder / "images" / "train" / "ant")  # the training data may be gone: class folders are all that is needed
    shutil.copytree(folder / "images" / "val" / "ant", folder / "images" / "train" / "ant")
    words = ["--ckpt_path", str(checkpoint), "--data.root", "images", "--data.num_workers", "0", "--trainer.logger", "false"]
    assert main([command, *words, *QUIET, "--trainer.default_root_dir", str(folder)]) == 0
    told = capsys.readouterr().out
    if command == "predict":
        lines = list(csv.reader((folder / "predictions.csv").open()))
        assert lines[0] == ["file", "label", "class", "probability", "ant", "bee"] and len(lines) == 7
        assert [line[1] for line in lines[1:]] == ["ant"] * 3 + ["bee"] * 3 and "predictions.csv" in told
        assert main([command, *words, *QUIET, "--trainer.default_root_dir", str(folder), "--top", "2"]) == 0
        lines = list(csv.reader((folder / "predictions.csv").open()))
        assert lines[0] == ["file", "label", "class", "probability", "class 2", "probability 2"] and len(lines) == 7
        assert "predict: 6 images" in caplog.text
        caplog.clear()
        assert main([command, *words, *QUIET, "--top", "3"]) == 1
        assert "--top 3: give a number from 1 to 2" in capsys.readouterr().err
        assert "predict: 6 images" not in caplog.text, "before it begins"
    else:
        assert ("val/acc" if command == "validate" else "test/acc") in told
    if command == "test":
        record = json.loads((folder / "test.json").read_text())
        assert record["checkpoint"] == str(checkpoint) and set(record["results"]["test"]) == {"test/loss", "test/acc"}
        assert f"wrote {folder / 'test.json'}" in told


def test_a_checkpoint_of_before_the_file_was_called_checkpoint_is_tested(checkpoint, folder, capsys):
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"] |= {"weights": "gone.safetensors"}
    torch.save(content, folder / "old.ckpt")
    words = ["--data.root", "images", "--data.num_workers", "0", "--trainer.logger", "false", *QUIET]
    assert main(["test", "--ckpt_path", "old.ckpt", *words]) == 0
    assert "test/acc" in capsys.readouterr().out


def test_a_wrong_checkpoint_is_refused(folder, capsys):
    assert main(["test", "--ckpt_path", "nowhere.ckpt", "--data.root", "images"]) == 1
    assert "nowhere.ckpt" in capsys.readouterr().err


def test_data_of_other_classes_are_refused(checkpoint, folder, capsys):
    for part in ("train", "val"):
        (folder / "images" / part / "bee").rename(folder / "images" / part / "wasp")
    assert main(["test", "--ckpt_path", str(checkpoint), "--data.root", "images", *QUIET]) == 1
    assert "trained on the classes ant, bee (2); the data have ant, wasp (2)" in capsys.readouterr().err


def test_any_model_and_data_run_by_class_path(folder):
    boring = "pytorch_lightning.demos.boring_classes.Boring"
    words = ["--model", f"{boring}Model", "--data", f"{boring}DataModule", "--trainer.fast_dev_run", "true"]
    assert main(["fit", *words, *QUIET]) == 0


def test_a_model_that_takes_some_links_gets_those(folder, monkeypatch):
    (folder / "own_model.py").write_text(
        "from pytorch_lightning.demos.boring_classes import BoringModel\n"
        "class Own(BoringModel):\n"
        "    def __init__(self, num_classes: int, lr: float = 1.0):\n"
        "        super().__init__()\n"
        "        assert num_classes == 2\n"
        "    def training_step(self, batch, batch_idx):\n"
        "        return self.layer.weight.sum()\n"
        "    def validation_step(self, batch, batch_idx):\n"
        "        pass\n"
    )
    monkeypatch.syspath_prepend(folder)
    words = ["--model", "own_model.Own", "--data.root", "images", "--data.size", "32", "--data.num_workers", "0"]
    assert main(["fit", *words, "--trainer.fast_dev_run", "true", *QUIET]) == 0


def test_what_a_model_was_given_is_not_overwritten_by_data_that_do_not_know_it(folder, monkeypatch):
    (folder / "own_two.py").write_text(
        "from pytorch_lightning.demos.boring_classes import BoringModel\n"
        "class Own(BoringModel):\n"
        "    def __init__(self, num_classes: int = 5, size: str = 'small', mean: float = 0.25, std: list[float] | None = None):\n"
        "        super().__init__()\n"
        "        print('got', num_classes, size, mean, std)\n"
        "class Inner(Own):\n"
        "    pass\n"
        "Own.Inner = Inner\n"
        "Inner.__qualname__ = 'Own.Inner'\n"
    )
    monkeypatch.syspath_prepend(folder)
    boring = "pytorch_lightning.demos.boring_classes.BoringDataModule"
    own = ["--model", "own_two.Own", "--model.num_classes", "7"]
    images = ["--data.root", "images", "--data.size", "32"]
    for words, told in (
        ([*own, "--data", boring], "got 7 small 0.25 None"),
        ([*own, *images, "--data.std", "[0.5,0.5,0.5]"], "got 7 small 0.25 [0.5, 0.5, 0.5]"),
        (["--model", "own_two.Own", "--data", boring], "got 5 small 0.25 None"),
        (["--model", "own_two.Own.Inner", *images], "got 2 small 0.25 [0.229, "),
    ):
        found = subprocess.run(
            [sys.executable, "-m", "groupcam_aug.recipes.cli", "fit", *words, "--trainer.fast_dev_run", "true", *QUIET],
            capture_output=True,
            text=True,
            cwd=folder,
        )
        assert told in found.stdout, found.stderr[-2000:]


def test_a_checkpoint_brings_the_split_it_was_trained_on(folder):
    words = ["--data.root", "images/train", "--data.size", "32", "--data.num_workers", "0", "--data.seed", "3"]
    words += ["--data.val_fraction", "0.4", "--data.resize", "40"]
    limits = ["--trainer.max_epochs", "1", "--trainer.logger", "false", "--trainer.default_root_dir", "run"]
    assert main(["fit", *words, "--model.network", NETWORK, *limits, *QUIET]) == 0
    path = str(next((folder / "run").rglob("*.ckpt")))
    found = from_checkpoint(["--ckpt_path", path, "--data.root", "images/train"], "test")[0]
    assert [found[found.index(f"--data.{name}") + 1] for name in ("seed", "val_fraction", "resize")] == ["3", "0.4", "40"]
    assert "--data.seed" not in from_checkpoint(["--ckpt_path", path, "--data", "ShapesDataModule"], "test")[0]
    assert load_classifier(path)[1]["resize"] == 40
    larger = from_checkpoint(["--ckpt_path", path, "--data.size", "64"], "test")[0]
    assert "--data.resize" not in larger, "which belongs to the other size"
    assert main(["predict", "--ckpt_path", path, "--data.root", "images/train", "--trainer.logger", "false", *QUIET]) == 0
    lines = list(csv.reader((folder / "predictions.csv").open()))
    assert lines[0][0] == "file" and len(lines) == 3 and all("images/train" in line[0] for line in lines[1:])


def test_predictions_on_several_folders_name_the_files_of_all(checkpoint, folder):
    shutil.copytree(folder / "images" / "val", folder / "images" / "kept")
    shutil.copytree(folder / "images" / "val", folder / "images" / "moved")
    (folder / "images" / "moved" / "ant" / "1.png").unlink()
    words = ["--ckpt_path", str(checkpoint), "--data.root", "images", "--data.num_workers", "0", "--trainer.logger", "false"]
    tests = ["--data.test", '{"moved": "moved", "kept": "kept"}', "--trainer.default_root_dir", str(folder)]
    assert main(["predict", *words, *tests, *QUIET]) == 0
    files = [line[0] for line in list(csv.reader((folder / "predictions.csv").open()))[1:]]
    names = [f"images/moved/{name}.png" for name in ("ant/0", "ant/2", "bee/0", "bee/1", "bee/2")]
    assert files == names + [f"images/kept/{name}/{i}.png" for name in ("ant", "bee") for i in range(3)]
    assert main(["predict", *words, "--data.test", "moved", *tests[2:], *QUIET]) == 0
    assert [line[0] for line in list(csv.reader((folder / "predictions.csv").open()))[1:]] == names


def test_masks_of_the_data_reach_the_augmentation(folder):
    for name in ("ant", "bee"):
        (folder / "images" / "masks" / "train" / name).mkdir(parents=True)
        for i in range(3):
            mask = Image.new("1", (40, 33))
            mask.paste(1, (0, 0, 20, 33))
            mask.save(folder / "images" / "masks" / "train" / name / f"{i}.png")
    words = ["--data.root", "images", "--data.size", "32", "--data.num_workers", "0", "--data.masks", "masks"]
    augmentation = '{"class_path": "GroupCAMAugmentation", "init_args": {"mask_key": 2, "network": "network", "p": 1}}'
    limits = ["--trainer.max_epochs", "1", "--trainer.callbacks", augmentation, "--trainer.default_root_dir", "run"]
    assert main(["fit", *words, "--model.network", NETWORK, *limits, *QUIET]) == 0
    (path,) = (folder / "run").rglob("augmentation.jsonl")
    line = json.loads(path.read_text())
    assert line["object_kept"] == 1 and line["ground_kept"] == 0 and line["drawn"] == 6


def test_checkpoints_of_other_models_are_not_looked_into(folder, monkeypatch):
    """They may hold what is only read with trust, which is Lightning's to decide."""
    (folder / "own_trusted.py").write_text(
        "from pathlib import Path\n"
        "import torch\n"
        "from pytorch_lightning import LightningModule\n"
        "class Own(LightningModule):\n"
        "    def __init__(self, where=None):\n"
        "        super().__init__()\n"
        "        self.save_hyperparameters({'where': Path('x')})\n"
        "        self.layer = torch.nn.Linear(1, 1)\n"
        "    def training_step(self, batch, batch_idx):\n"
        "        return self.layer(batch[0].mean().reshape(1, 1)).sum()\n"
        "    def validation_step(self, batch, batch_idx):\n"
        "        self.log('seen', 1.0)\n"
        "    def test_step(self, batch, batch_idx):\n"
        "        self.log('seen', 1.0)\n"
        "    def configure_optimizers(self):\n"
        "        return torch.optim.SGD(self.parameters(), 0.1)\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    words = ["--model", "own_trusted.Own", "--data.root", "images", "--data.size", "32", "--data.num_workers", "0", *QUIET]
    limits = ["--trainer.max_epochs", "1", "--trainer.logger", "false", "--trainer.default_root_dir", "run"]
    assert main(["fit", *words, *limits]) == 0
    path = str(next((folder / "run").rglob("*.ckpt")))
    trust = ["--weights_only", "false"] if "weights_only" in inspect.signature(Trainer.test).parameters else []
    assert main(["test", *words, "--trainer.logger", "false", "--ckpt_path", path, *trust]) == 0


def test_exported_weights_are_not_taken_for_a_checkpoint(checkpoint, capsys):
    assert main(["export", str(checkpoint), "out.safetensors"]) == 0
    assert main(["test", "--ckpt_path", "out.safetensors", "--data.root", "images"]) == 1
    assert "takes the .ckpt that it was exported from" in capsys.readouterr().err


def test_predict_is_for_one_process(checkpoint, folder, capsys):
    words = ["--ckpt_path", str(checkpoint), "--data.root", "images", "--data.num_workers", "0", "--trainer.devices", "2"]
    assert main(["predict", *words, "--trainer.strategy", "ddp_spawn", *QUIET]) == 1
    assert "of one process, not of 2: add --trainer.devices 1" in capsys.readouterr().err


def test_test_images_without_classes_are_refused_before_they_are_needed(checkpoint, folder, capsys):
    (folder / "images" / "test").mkdir()
    assert main(["test", "--ckpt_path", str(checkpoint), "--data.root", "images", *QUIET]) == 1
    assert "test' has no class folders" in capsys.readouterr().err


def test_another_class_keeps_its_own_defaults(capsys, tmp_path):
    """`Mine.lr` and `ShapesDataModule.size` have the names of arguments of our default classes."""
    assert (
        main(["fit", "--model", "own_project.Mine", "--data", "groupcam_aug.recipes.shapes.ShapesDataModule", "--print_config"])
        == 0
    )
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["init_args"]["lr"] == 0.1
    data = config["data"]["init_args"]
    assert (data["size"], data["batch_size"], data["mean"]) == (32, 64, [0.5, 0.5, 0.5])
    (tmp_path / "mine.yaml").write_text("model: {class_path: own_project.Mine}\ndata: {class_path: own_project.MyData}\n")
    assert main(["fit", "--config", str(tmp_path / "mine.yaml"), "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["lr"] == 0.1


STOP = """
import os, signal
from pytorch_lightning import Callback

class Stop(Callback):
    def __init__(self, how: str = "ctrl-c"):
        self.how = how

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1:
            if self.how == "sigterm":
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                raise KeyboardInterrupt
"""


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize(("how", "status", "told"), [("ctrl-c", 130, "stopped"), ("sigterm", 143, "ended by SIGTERM")])
def test_a_training_that_is_stopped_says_how_it_goes_on(folder, monkeypatch, capsys, how, status, told):
    (folder / "own_stop.py").write_text(STOP)
    monkeypatch.syspath_prepend(folder)
    words = ["--model.network", NETWORK, "--data.root", "images", "--data.size", "32", "--data.num_workers", "0"]
    words += ["--data.batch_size", "2", "--trainer.callbacks", "own_stop.Stop", "--trainer.callbacks.how", how]
    before = signal.getsignal(signal.SIGINT)
    try:
        assert main(["fit", *words, "--trainer.max_epochs", "3", *QUIET]) == status
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning leaves it ignored
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"groupcam-aug: {told}; go on with: groupcam-aug fit --config ")
    # As it stands, but for the callback that stopped it.
    again = shlex.split(last.partition("go on with: groupcam-aug ")[2])
    assert main([*again, "--trainer.callbacks", "null", *QUIET]) == 0
    newest = max(folder.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    assert torch.load(newest, weights_only=True)["epoch"] == 2


def test_a_training_stopped_before_its_first_checkpoint_says_so(folder, monkeypatch, capsys):
    (folder / "own_stop.py").write_text(STOP)
    monkeypatch.syspath_prepend(folder)
    words = ["--model.network", NETWORK, "--data.root", "images", "--data.size", "32", "--data.num_workers", "0"]
    words += ["--trainer.callbacks", "own_stop.Stop", "--trainer.enable_checkpointing", "false"]
    before = signal.getsignal(signal.SIGINT)
    try:
        assert main(["fit", *words, "--trainer.max_epochs", "3", *QUIET]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.splitlines()[-1] == "groupcam-aug: stopped; no checkpoint was written yet"


def test_callbacks_of_lightning_go_by_their_classes_alone(folder, capsys):
    for name in ("EarlyStopping", "SaliencyEarlyStopping", "ModelCheckpoint", "SaliencyMonitor"):
        words = ["--trainer.callbacks", name, *(["--trainer.callbacks.monitor", "val/loss"] if name == "EarlyStopping" else [])]
        assert main(["fit", "--config", "shapes_demo", *words, "--print_config"]) == 0
        assert f".callbacks.{name}\n" in capsys.readouterr().out


def test_a_recipe_s_augmentation_is_changed_on_the_line(folder, capsys):
    for name in ("resnet50_folder", "resnet50_imagenet", "shapes_demo"):
        words = ["--trainer.callbacks.preset", "balanced", "--trainer.callbacks.p=0.25"]
        assert main(["fit", "--config", name, *words, "--print_config"]) == 0
        *_, augmentation = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"]
        assert augmentation["class_path"] == "groupcam_aug.callbacks.GroupCAMAugmentation"
        assert (augmentation["init_args"]["preset"], augmentation["init_args"]["p"]) == ("balanced", 0.25)
        assert main(["fit", "--config", name, "--trainer.callbacks.prest", "fast"]) == 2
        assert "GroupCAMAugmentation takes no 'prest'; did you mean 'preset'?" in capsys.readouterr().err


def test_refusals_in_training_are_one_sentence(folder, monkeypatch, capsys):
    words = ["--model.network", NETWORK, "--data.root", "images", "--data.size", "32", "--data.num_workers", "0", *QUIET]
    augmentation = '{"class_path": "GroupCAMAugmentation", "init_args": {"network": "netwrk"}}'
    assert main(["fit", *words, "--trainer.callbacks", augmentation, "--trainer.fast_dev_run", "true"]) == 1
    told = capsys.readouterr().err
    assert "'netwrk'" in told.splitlines()[-1] and "Traceback" not in told
    assert main(["fit", *words, "--trainer.max_epochs", "-1", "--model.schedule", "cosine"]) == 1
    assert "give the Trainer max_epochs or max_steps" in capsys.readouterr().err.splitlines()[-1]


def test_a_size_that_the_network_cannot_take_is_refused_in_a_sentence(folder, capsys):
    words = ["--data.root", "images", "--data.num_workers", "0", *QUIET]
    for network, size in (("timm/vit_tiny_patch16_224", 64), ("torchvision/vit_b_32", 64), ("timm/mixer_s32_224", 96)):
        assert main(["fit", *words, "--model.network", network, "--data.size", str(size)]) == 1
        told = capsys.readouterr().err.splitlines()[-1]
        assert f"{network} cannot take images of {size} x {size} px" in told and "(it was made for 224)" in told


def test_the_line_holds_over_a_config_wherever_it_stands(folder, capsys):
    (folder / "more.yaml").write_text("trainer: {max_epochs: 7, max_steps: 9}\n")
    epochs, configs = ["--trainer.max_epochs", "2"], ["--config", "shapes_demo", "-c", "more.yaml"]
    for words in ([*epochs, *configs], [*configs, *epochs], [*configs[:2], *epochs, "--conf=more.yaml"]):
        assert main(["fit", *words, "--print_config"]) == 0
        trainer = yaml.safe_load(capsys.readouterr().out)["trainer"]
        assert (trainer["max_epochs"], trainer["max_steps"]) == (2, 9)
    assert main(["fit", "--config"]) == 2
