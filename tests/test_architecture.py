"""The arrows of the house point down, the packages on disk are the packages declared, tests mirror modules, imports stay light."""

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
FOLDERS = {"groupcam_aug": "groupcam_aug", "groupcam_aug.callbacks": "callbacks", "groupcam_aug.recipes": "recipes"}

# Who may import whom. A room is a package, or a module where its own arrows matter; what is not named belongs to the nearest
# name above it, and a room may always import itself.
CORE = {"groupcam_aug", "groupcam_aug.metrics"}
CALLBACKS, RECIPES = "groupcam_aug.callbacks", "groupcam_aug.recipes"
ROOMS = {
    "groupcam_aug": {"groupcam_aug.metrics"},
    "groupcam_aug.metrics": {"groupcam_aug"},
    f"{CALLBACKS}.glue": CORE,
    f"{CALLBACKS}.records": CORE | {f"{CALLBACKS}.glue"},
    f"{CALLBACKS}.monitoring": CORE | {f"{CALLBACKS}.glue", f"{CALLBACKS}.records"},
    f"{CALLBACKS}.report_page": CORE | {f"{CALLBACKS}.records"},
    f"{CALLBACKS}.augmentation": CORE | {f"{CALLBACKS}.glue", f"{CALLBACKS}.records"},
    f"{CALLBACKS}.monitor": CORE | {f"{CALLBACKS}.glue", f"{CALLBACKS}.records", f"{CALLBACKS}.monitoring"},
    f"{CALLBACKS}.early_stopping": CORE | {f"{CALLBACKS}.glue", f"{CALLBACKS}.monitoring", f"{CALLBACKS}.monitor"},
    f"{CALLBACKS}.report": CORE | {f"{CALLBACKS}.glue", f"{CALLBACKS}.records", f"{CALLBACKS}.report_page"},
    CALLBACKS: {f"{CALLBACKS}.{name}" for name in ("augmentation", "monitor", "early_stopping", "report")},
    # Recipes use callbacks as anybody does: the four public names, and the page that a run folder is rendered to.
    RECIPES: CORE | {CALLBACKS, f"{CALLBACKS}.report"},
    f"{RECIPES}.evaluation": CORE | {RECIPES, f"{CALLBACKS}.report"},
    f"{RECIPES}.explain_methods": CORE | {RECIPES, f"{RECIPES}.evaluation"},
    f"{RECIPES}.curve_picture": CORE | {RECIPES, f"{RECIPES}.evaluation"},
    f"{RECIPES}.explain": CORE | {RECIPES, *(f"{RECIPES}.{part}" for part in ("evaluation", "explain_methods", "curve_picture"))},
    f"{RECIPES}.trial": CORE | {RECIPES, CALLBACKS, f"{CALLBACKS}.glue", f"{CALLBACKS}.report"},
}
HEAVY = {"pytorch_lightning", "lightning", "timm", "jsonargparse"}  # not in the core


def modules():
    """(dotted name, file) of every module of the package."""
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if folder == "groupcam_aug" and parts[0] in ("callbacks", "recipes"):
                continue  # the links
            yield ".".join([package, *(part for part in parts if part != "__init__")]), path


MODULES = dict(modules())


def room_of(name):
    """The room that a module, or a name in one, is in; None outside the package."""
    while name and name not in ROOMS:
        name = name.rpartition(".")[0]
    return name or None


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inner = [f"{node.module}.{alias.name}" for alias in node.names if f"{node.module}.{alias.name}" in MODULES]
            yield from inner
            if len(inner) < len(node.names):
                yield node.module


@pytest.mark.parametrize("name", MODULES)
def test_arrows_point_down(name):
    room = room_of(name)
    for target in imports(MODULES[name]):
        top = target.split(".")[0]
        assert top not in {"callbacks", "recipes", "benchmarks", "tests"}, f"{name} imports {target}"
        if top == "groupcam_aug":
            there = room_of(target)
            assert there in {room} | ROOMS[room], f"{name} imports {target}"
        if room in CORE:
            assert top not in HEAVY, f"{name} imports {target}"
            assert top != "torchmetrics" or room == "groupcam_aug.metrics", f"{name} imports {target}"


def test_no_module_imports_in_a_circle():
    graph = {name: {target for target in imports(path) if target in MODULES and target != name} for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name, way):
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, [*way, name])
            done.add(name)

    for name in graph:
        visit(name, [])


def test_nothing_else_imports_the_trials():
    trial = f"{RECIPES}.trial"
    for name, path in MODULES.items():
        if not name.startswith(trial):
            assert not [target for target in imports(path) if target.startswith(trial)], name


def test_every_module_has_a_test_of_its_name():
    missing = []
    for name, path in MODULES.items():
        if path.stem == "__init__":
            continue
        inside = name.removeprefix("groupcam_aug.").split(".")
        folder = ROOT / "tests" / Path(*(inside[:-1] if inside[0] in ("callbacks", "recipes") else ["core", *inside[:-1]]))
        if not (folder / f"test_{path.stem}.py").is_file():
            missing.append(str((folder / f"test_{path.stem}.py").relative_to(ROOT)))
    assert not missing, missing


def test_declared_packages_are_the_folders_on_disk():
    """A sub-package that is not declared works from a clone, and is absent from the wheel."""
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {name: str(path.parent.relative_to(ROOT)) for name, path in MODULES.items() if path.stem == "__init__"}
    assert found == setup["package-dir"] and set(found) == set(setup["packages"])
    for folder in ("callbacks", "recipes"):
        link = ROOT / "groupcam_aug" / folder  # a plain file with that text where git makes no links
        assert (str(link.readlink()) if link.is_symlink() else link.read_text()) == f"../{folder}"


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
from groupcam_aug import GradCAM, GroupCAM, SaliencyBlur, group_cam
assert flags() == before
bad = {"pytorch_lightning", "lightning", "timm", "jsonargparse", "matplotlib", "torchmetrics"} & set(sys.modules)
assert not bad, bad
print("fine")
"""
    assert run(code) == "fine\n"


def test_every_public_name_exists_and_is_documented():
    import importlib
    import inspect

    for name, path in MODULES.items():
        module = importlib.import_module(name)
        assert module.__doc__, path
        for public in getattr(module, "__all__", ()):
            value = getattr(module, public)
            if inspect.isclass(value) or inspect.isfunction(value):
                assert inspect.getdoc(value), f"{path.name}: {public}"


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
    assert {str(path.relative_to(ROOT)).removeprefix("groupcam_aug/") for path in MODULES.values()} | {
        "py.typed",
        "callbacks/report_page/report.html.j2",
        "recipes/configs/shapes_demo.yaml",
    } <= {name.removeprefix("groupcam_aug/") for name in names}
