"""The measuring scripts run from one command and leave the table they promise, here at a size that measures nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PACKAGE = BENCHMARKS.parent / "groupcam_aug"


def run(folder, script, *words):
    environment = {**os.environ, "GROUPCAM_RESULTS": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(BENCHMARKS / script), *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return {path.stem.partition("_cpu_")[0]: json.loads(path.read_text())["rows"] for path in folder.glob("*.json")}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_speed(tmp_path, precision):
    words = ["--network", "resnet18", "--size", 64, "--batch", 4, "--repeats", 2, "--precision", precision, "--channels-last"]
    half = "" if precision == "fp32" else f"_{precision}"
    tables = {name.removesuffix(half): rows for name, rows in run(tmp_path, "speed.py", *words).items()}
    maps = {row["method"]: row for row in tables["speed_maps"]}
    assert maps["bare forward (F)"]["in F"] == 1 < maps["balanced, G=16"]["in F"] < maps["paper, G=16"]["in F"]
    assert 0 <= maps["paper, G=16"]["share outside the network"] < 0.5
    steps = {row["step"]: row["x plain"] for row in tables["speed_steps"]}
    assert steps["plain"] == 1 < steps["paper"]
    assert tables["speed_profile"][0]["share"] == 1


@pytest.mark.slow
def test_scaling(tmp_path):
    tables = run(tmp_path, "scaling.py", "--batch", 2, 4, "--size", 32, 64, "--groups", 4, "--repeats", 1)
    assert [row["grows"] for row in tables["scaling"]] == ["batch", "batch", "side", "side", "G"]
    assert [row["DDP processes"] for row in tables["scaling_processes"]] == [1, 2]


@pytest.mark.slow
def test_peers(tmp_path, data_folder):
    pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed")
    pytest.importorskip("torchcam", reason="torchcam is not installed")
    tables = run(tmp_path, "peers.py", "--images", 2, "--groups", 4, "--repeats", 1, "--no-dear")
    methods = [row["method"] for row in tables["peers_squeezenet_fp32"]]
    assert methods[0].startswith("loop") and "torch-cam GradCAM" in methods


@pytest.mark.slow
def test_fidelity(tmp_path, data_folder):
    words = ["--networks", "squeezenet", "--photographs", 4, "--curves", 2, "--steps", 2, "--batch", 4, "--channels-last"]
    rows = run(tmp_path, "fidelity.py", *words)["fidelity_squeezenet"]
    assert rows[0]["mode"] == "paper" and rows[0]["IoU with paper"] == 1 and 0 < rows[-1]["IoU with paper"] <= 1


@pytest.mark.slow
def test_code_path(tmp_path):
    tables = run(tmp_path, "code_path.py")
    walks = {row["what"]: row for row in tables["code_path"]}
    for what, row in walks.items():
        names = row["in the order of the first visit"].split(", ")
        assert row["files"] == len(set(names)) and all((PACKAGE / name).is_file() for name in names)
        assert {"cam.py", "saliency.py", "borrow.py"} < set(names), what
        assert len(names) - 1 <= row["changes of file by calls"] <= row["by calls and returns"]
    assert "blur.py" in walks["a training batch, paper"]["in the order of the first visit"]
    assert "partial_forward.py" in walks["a training batch, fast"]["in the order of the first visit"]
    assert "callbacks/monitor.py" in walks["a probing of 8 images"]["in the order of the first visit"]
    rooms = {row["room"]: row for row in tables["code_path_rooms"]}
    files = [path for folder in ("groupcam_aug", "callbacks", "recipes") for path in (PACKAGE.parent / folder).rglob("*.py")]
    assert sum(room["files"] for room in rooms.values()) == len({path.resolve() for path in files})
    assert sum(room["lines"] for room in rooms.values()) > 50 * len(files)
    assert "callbacks" not in rooms["groupcam_aug"]["modules that import from"], "arrows point down"
    assert "groupcam_aug" in rooms["callbacks"]["modules that import from"]


@pytest.mark.slow
def test_photographs(tmp_path, data_folder):
    run(tmp_path, "photographs.py", "--epochs", 2, "--size", 64, "--per-class", 4, "--out", tmp_path / "docs")
    for name in ("photographs.jpg", "settling.jpg"):
        with Image.open(tmp_path / "docs" / name) as picture:
            assert min(picture.size) > 200 and picture.format == "JPEG"


def all_of(folder, *words, status=0):
    environment = {**os.environ, "GROUPCAM_RESULTS": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(BENCHMARKS / "all.py"), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_a_dry_run_lists_all_steps_and_runs_none(tmp_path):
    assert "7 of 7 steps" in (listed := all_of(tmp_path, "--gpu", "--dry-run")) and "--compile" in listed
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_one_command_runs_and_goes_on(tmp_path):
    assert "no step 'speed'" in all_of(tmp_path, "--gpu", "--toy", "--only", "speed", status=2)
    assert "1 of 1 steps" in all_of(tmp_path, "--gpu", "--toy", "--only", "insertion")
    (notes,) = tmp_path.glob("all_gpu_*.json")
    assert json.loads(notes.read_text())["insertion"]["command"][0] == "insertion_speed.py"
    assert [*tmp_path.glob("insertion_speed_*.json")]
    again = all_of(tmp_path, "--gpu", "--toy", "--only", "insertion")
    assert "0 of 1 steps" in again and "==" not in again
    assert "1 of 1 steps" in all_of(tmp_path, "--gpu", "--only", "insertion", "--dry-run"), "that was a toy"


@pytest.mark.slow
def test_a_step_that_fails_is_named_and_not_noted(tmp_path):
    hindered = tmp_path / "file"
    hindered.write_text("in the place of the results' folder")
    told = all_of(hindered, "--gpu", "--toy", "--only", "insertion", status=1)
    assert "failed with status 1" in told and "not done: insertion" in told


@pytest.mark.slow
def test_the_gpus_command_runs_as_a_whole_without_jsonargparse(tmp_path, monkeypatch):
    """What a bare machine has: torch, Lightning, timm, torchmetrics; a module in front hides the others."""
    for name in ("jsonargparse", "safetensors"):
        (tmp_path / "hidden" / name).mkdir(parents=True)
        (tmp_path / "hidden" / name / "__init__.py").write_text(f"raise ModuleNotFoundError('no {name} here')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "hidden"), os.environ.get("PYTHONPATH", "")]))
    steps = ["maps and steps", "compiled", "images per pass", "scaling", "insertion", "monitor"]
    told = all_of(tmp_path / "results", "--gpu", "--toy", "--only", *steps)
    assert told.count(": done after") == 6 and "all done" in told
    found = {path.stem.partition("_cpu_")[0] for path in (tmp_path / "results").glob("*.json")}
    assert {"speed_maps", "speed_steps", "speed_maps_compiled", "speed_maps_chunks", "scaling", "monitor_cost"} <= found


@pytest.mark.slow
def test_more_inputs(tmp_path):
    run(tmp_path, "more_inputs.py", "--steps", 20, "--pictures", 3, "--out", tmp_path / "docs")
    with Image.open(tmp_path / "docs" / "more_inputs.jpg") as picture:
        assert min(picture.size) > 200 and picture.format == "JPEG"
