"""The arrows of the house point down, the packages on disk are the packages declared, imports stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
ROOMS = {
    "groupcam_aug": set(),
    "groupcam_aug.callbacks": {"groupcam_aug"},
    "groupcam_aug.recipes": {"groupcam_aug", "groupcam_aug.callbacks"},
}
FOLDERS = {"groupcam_aug": "groupcam_aug", "groupcam_aug.callbacks": "callbacks", "groupcam_aug.recipes": "recipes"}


def room_of(module):
    for room in ("groupcam_aug.callbacks", "groupcam_aug.recipes"):
        if module == room or module.startswith(room + "."):
            return room
    return "groupcam_aug" if module.split(".")[0] == "groupcam_aug" else None


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            if node.module == "groupcam_aug":
                yield from (f"groupcam_aug.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_point_down(room):
    for path in (ROOT / FOLDERS[room]).glob("*.py"):
        for name in imports(path):
            target = room_of(name)
            assert target in {None, room} | ROOMS[room], f"{path.name} imports {name}"
            if room == "groupcam_aug":
                top = name.split(".")[0]
                assert top not in {"pytorch_lightning", "lightning", "timm", "jsonargparse"}, f"{path.name} imports {name}"
                assert top != "torchmetrics" or path.name == "metrics.py", f"{path.name} imports torchmetrics"
            assert target is not None or name.split(".")[0] not in {"callbacks", "recipes", "benchmarks", "tests"}


def test_declared_packages_are_the_folders_on_disk():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join(["groupcam_aug", *(() if folder == "groupcam_aug" else (folder,)), *p.relative_to(ROOT / folder).parts[:-1]])
        for folder in FOLDERS.values()
        for p in (ROOT / folder).rglob("*.py")
        if not any(part in ("callbacks", "recipes") for part in p.relative_to(ROOT / folder).parts[:-1])
    }
    assert found == set(setup["packages"]) == set(setup["package-dir"])
    assert setup["package-dir"] == FOLDERS
    for folder in ("callbacks", "recipes"):
        link = ROOT / "groupcam_aug" / folder
        assert link.is_symlink() and str(link.readlink()) == f"../{folder}"


def test_version_is_said_once_and_the_same():
    import groupcam_aug

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert groupcam_aug.__version__ == project["version"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_import_brings_no_lightning_and_touches_no_global_flag():
    code = """
import sys, torch
flags = lambda: (torch.get_default_dtype(), torch.backends.cudnn.benchmark, torch.get_num_threads(), torch.is_grad_enabled(),
                 torch.get_rng_state().sum().item(), torch.are_deterministic_algorithms_enabled())
before = flags()
import groupcam_aug
assert flags() == before
bad = {"pytorch_lightning", "lightning", "timm", "jsonargparse", "matplotlib", "torchmetrics"} & set(sys.modules)
assert not bad, bad
print("fine")
"""
    assert run(code) == "fine\n"


def test_every_public_name_exists_and_is_documented():
    import importlib
    import inspect

    for room, folder in FOLDERS.items():
        for path in (ROOT / folder).glob("*.py"):
            module = importlib.import_module(room if path.stem == "__init__" else f"{room}.{path.stem}")
            assert module.__doc__, path
            for name in getattr(module, "__all__", ()):
                value = getattr(module, name)
                if inspect.isclass(value) or inspect.isfunction(value):
                    assert inspect.getdoc(value), f"{path.name}: {name}"


@pytest.mark.slow
def test_wheel_holds_everything_and_nothing_at_the_top(tmp_path):
    import zipfile

    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"groupcam_aug", next(n for n in names if "dist-info" in n).split("/")[0]}
    assert len(names) == len(set(names))
    for expected in (
        "py.typed",
        "callbacks/augmentation.py",
        "callbacks/report.html.j2",
        "recipes/cli.py",
        "recipes/configs/shapes_demo.yaml",
    ):
        assert f"groupcam_aug/{expected}" in names
