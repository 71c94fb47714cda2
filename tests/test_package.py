"""The package as it is published: what its metadata say, how its README reads elsewhere, and an sdist that stands alone."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
LINKS = runpy.run_path(str(ROOT / "scripts" / "links.py"))
KINDS = ("", ".cff", ".in", ".md", ".py", ".toml", ".yaml", ".yml")  # of the files in the repository's root
PYTHONS = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)]


def workflow():
    return yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())["jobs"]


def test_the_workflow_runs_what_every_change_runs_on_declared_pythons():
    job = workflow()["test"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"] and os.access(ROOT / ".ci" / "run", os.X_OK)
    (setup,) = (step["with"] for step in job["steps"] if "setup-python" in step.get("uses", ""))
    assert setup["cache"] == "pip" and (ROOT / setup["cache-dependency-path"]).is_file()
    tested = job["strategy"]["matrix"]["python"]
    assert tested == ["3.10", "3.12"] and set(tested) <= set(PYTHONS), "strings: YAML reads 3.10 as 3.1"
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}" and PYTHONS == ["3.10", "3.11", "3.12", "3.13"]


def test_licence_is_an_expression_and_stated_once():
    assert PROJECT["license"] == "Apache-2.0" and (ROOT / "LICENSE").read_text().lstrip().startswith("Apache License")
    assert not [name for name in PROJECT["classifiers"] if name.startswith("License")], "refused beside an expression"
    (needs,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert int(needs.rpartition("=")[2]) >= 77, "the first setuptools that knows licence expressions"
    assert PROJECT["authors"] and {"Homepage", "Documentation", "Repository", "Issues", "Changelog"} <= set(PROJECT["urls"])


def test_files_of_a_repository_say_what_the_package_says():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert citation["repository-code"] == REPOSITORY and citation["authors"] == PROJECT["authors"]
    assert "2103.13859" in citation["references"][0]["url"]
    assert f"]({REPOSITORY}/security/advisories/new)" in (ROOT / "SECURITY.md").read_text()
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        if path.stem == "config":
            assert all(link["url"].startswith(REPOSITORY) for link in form["contact_links"])
        else:
            assert form["name"] and form["description"] and len({field["id"] for field in form["body"]}) == len(form["body"])
    local = [url.removeprefix(f"{REPOSITORY}/").partition("/main/")[2] for url in PROJECT["urls"].values() if "/main/" in url]
    assert len(local) == 2 and all((ROOT / path).exists() for path in local)


def test_the_address_of_the_repository_is_the_same_everywhere():
    pages = [*ROOT.glob("*.*"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.yml")]
    text = "\n".join(path.read_text() for path in pages if path.suffix in (".md", ".cff", ".toml", ".yml", ".py"))
    named = set(re.findall(r"https://github\.com/[\w-]+/groupcam[\w-]*", text))
    assert named == {REPOSITORY}


def test_links_become_addresses():
    page = (
        "![a picture](docs/a.png) [page](docs/b.md#part) [up](../c.md) [here](#x) [there](https://d.org/e) `[no](f.md)`\n"
        '<img src="docs/g.png"> <a href="docs/h.md">\n[![badge](i.svg)](j.md)\n```\n[no](k.md)\n```\n'
    )
    assert LINKS["targets"](page) == [
        *("docs/a.png", "docs/b.md#part", "../c.md", "#x", "https://d.org/e", "docs/g.png", "docs/h.md", "i.svg", "j.md")
    ]
    text = LINKS["absolute"](page, "https://r", "sub")
    assert "![a picture](https://r/raw/main/sub/docs/a.png) [page](https://r/blob/main/sub/docs/b.md#part)" in text
    assert "[up](https://r/blob/main/c.md) [here](#x) [there](https://d.org/e) `[no](f.md)`" in text
    assert 'src="https://r/raw/main/sub/docs/g.png"> <a href="https://r/blob/main/sub/docs/h.md"' in text
    assert "[![badge](https://r/raw/main/sub/i.svg)](https://r/blob/main/sub/j.md)\n```\n[no](k.md)\n```\n" in text


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The sdist, built from a copy of the repository without network, and unpacked."""
    setuptools = pytest.importorskip("setuptools", reason="setuptools is not installed")
    if int(setuptools.__version__.partition(".")[0]) < 77:
        pytest.skip("setuptools is older than 77")
    folder = tmp_path_factory.mktemp("sdist")
    ours = [*("groupcam_aug", "callbacks", "recipes", "benchmarks", "docs", "scripts", "tests", ".github", ".ci")]
    ours += [path.name for path in ROOT.iterdir() if path.is_file() and path.suffix in KINDS and path.name != ".git"]
    for name in ours:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / "copy" / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy2(ROOT / name, folder / "copy" / name)
    code = f"import setuptools.build_meta as b; b.build_sdist({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder / "copy", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")  # refuses links that leave the folder, as pip does
    return folder / archive.name.removesuffix(".tar.gz")


def test_the_sdist_is_the_whole_repository(unpacked):
    copy = unpacked.parent / "copy"
    there, here = ({str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} for root in (unpacked, copy))
    assert not {name for name in here - there if ".egg-info" not in name}
    assert (unpacked / "groupcam_aug" / "callbacks" / "monitor.py").samefile(unpacked / "callbacks" / "monitor.py")
    assert os.access(unpacked / ".ci" / "run", os.X_OK)


def test_the_page_on_pypi_has_no_relative_links(unpacked):
    head, _, page = (unpacked / "PKG-INFO").read_text().partition("\n\n")
    assert "License-Expression: Apache-2.0" in head and "Description-Content-Type: text/markdown" in head
    assert page.startswith("# groupcam-aug")
    targets = LINKS["targets"](page)
    assert len(targets) > 8 and not [target for target in targets if "://" not in target and not target.startswith("#")]
    for target in targets:
        if target.startswith(f"{REPOSITORY}/"):
            assert (ROOT / target.partition("#")[0].partition("/main/")[2]).exists(), target


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_tests_of_the_sdist_pass_where_it_is_unpacked(unpacked):
    files = ["core/test_blur.py", "core/test_presets.py", "callbacks/glue/test_batch.py", "recipes/test_unknown_names.py"]
    files += ["test_architecture.py"]
    environment = {**os.environ, "PYTHONPATH": str(unpacked), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n0", *(f"tests/{name}" for name in files)]
    done = subprocess.run(command, cwd=unpacked, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
