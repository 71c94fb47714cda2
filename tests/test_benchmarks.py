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
