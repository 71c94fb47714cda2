"""The documents: length, language, links and anchors, figures of the evidence, the notebook, the site."""

import ast
import json
import logging
import re
import runpy
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest
import yaml

from groupcam_aug.recipes.cli import COMMANDS

ROOT = Path(__file__).parent.parent
DOCS, RESULTS = ROOT / "docs", ROOT / "benchmarks" / "results"
LINKS = runpy.run_path(str(ROOT / "scripts" / "links.py"))
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
OTHERS = [ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "benchmarks" / "README.md"]
TABLES = sorted(RESULTS.glob("*.md"))
RECORDS = ("study.md", "preregistration.md")  # of what was found and expected: their words stay


def name(path):
    return str(path.relative_to(ROOT))


def prose(path):
    """A page without code, the targets of links, and tables."""
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    return " ".join(re.sub(r"^\|.*$|\]\([^)]*\)", "", text, flags=re.MULTILINE).split())


@pytest.mark.parametrize("page", PAGES + TABLES, ids=name)
def test_pages_are_short_and_have_a_title(page):
    lines = page.read_text().splitlines()
    assert len(lines) <= 150
    assert lines[0].startswith("# ") and sum(line.startswith("# ") for line in headings(page)) == 1


def test_the_pages_one_looks_for_are_there():
    wanted = "getting_started training options watching measuring trials method evidence troubleshooting api"
    readme = (ROOT / "README.md").read_text()
    for page in wanted.split():
        assert (DOCS / f"{page}.md").is_file() and f"](docs/{page}.md)" in readme, page
    for word in ("no map", "memory", "slow", "tiny grids", "batchnorm"):
        assert word in (DOCS / "troubleshooting.md").read_text().partition("## Maps and masks")[0].lower(), word


def test_the_readme_begins_with_four_lines():
    head = (ROOT / "README.md").read_text().partition("![")[0]
    assert re.findall(r"^- \*\*(.+?)\*\*", head, re.MULTILINE) == ["For", "Not for", "Cost", "Evidence"]
    for address in ("https://arxiv.org/abs/2103.13859", "https://lightning.ai/", "https://huggingface.co/docs/timm"):
        assert address in (ROOT / "README.md").read_text()


HOUSE_WORDS = re.compile(
    r"\btold\b|by a hair|of those of|\btell of\b|(?<!your )(?<!its )(?<!their )(?<!'s )(?<!s' )(?<!of )\bown\b", re.IGNORECASE
)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in RECORDS], ids=name)
def test_plain_english(page):
    assert not HOUSE_WORDS.findall(prose(page)), "say it in the field's words"


def headings(page):
    """Heading lines of a page, code left out."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"^#+ .*$", text, re.MULTILINE)


def anchors(page):
    """Anchors that GitHub and the site both give to the headings of a page."""
    found = set()
    for line in headings(page):
        title = re.sub(r"[*`]|\[([^\]]*)\]\([^)]*\)", r"\1", line.lstrip("# ")).strip().lower()
        plain = re.sub(r"[^\w\s-]", "", title)
        if re.sub(r"\s", "-", plain) == re.sub(r"[-\s]+", "-", plain):
            found.add(re.sub(r"\s", "-", plain))
    return found


@pytest.mark.parametrize("page", PAGES + OTHERS + TABLES + sorted((DOCS / "study").glob("*.md")), ids=name)
def test_links_anchors_and_named_files_exist(page):
    text = page.read_text()
    for target in LINKS["targets"](text):
        if "://" in target or target.startswith("mailto:"):
            assert target.startswith("https://"), target
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists() and ROOT in file.parents, target
        assert not anchor or anchor in anchors(file), target
    for path in re.findall(r"`((?:benchmarks|callbacks|groupcam_aug|recipes|tests|docs|scripts)/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path
    for script in re.findall(r"python (benchmarks/\w+\.py)", text):
        assert (ROOT / script).exists(), script


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_recipes_and_arms_that_are_named_exist(page):
    commands, text = {command.name for command in COMMANDS}, page.read_text()
    arms = {arm for path in ("recipes/configs", "docs/study") for arm in yaml.safe_load((ROOT / path / "arms.yaml").read_text())}
    if page.name == "trials.md":
        named = {arm for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for arm in re.findall(r"`([\w-]+)`", row)}
        assert {"none", "fast", "fast-other", "masks"} <= named <= arms
    for line in re.findall(r"groupcam-aug ([a-z][^`\n]+)", text):
        words = line.split()
        assert words[0] in commands, line
        if "--arms" in words:
            assert set(takewhile(lambda word: not word.startswith("--"), words[words.index("--arms") + 1 :])) <= arms, line
        if words[:2] == ["recipes", "copy"] and words[2] != "NAME":
            assert (ROOT / "recipes" / "configs" / f"{words[2]}.yaml").is_file(), line


def test_every_result_file_is_shown_once_and_as_it_is():
    assert subprocess.run([sys.executable, ROOT / "benchmarks" / "tables.py", "--check"]).returncode == 0
    shown = [stem for page in TABLES for stem in re.findall(r"<!-- results/(\w+)\.json -->\n\|", page.read_text())]
    assert sorted(shown) == sorted(path.stem for path in RESULTS.glob("*.json"))
    evidence = (DOCS / "evidence.md").read_text()
    assert all(f"](../benchmarks/results/{page.name})" in evidence for page in TABLES)


def numbers(text):
    """Numbers in a text, each with how many decimals it is given."""
    for word in re.findall(r"(?<![\w.#])-?(?:\d[\d,]*)?\.?\d+(?:e[+-]\d+)?(?![\w]|\.\d)", text):
        yield float(word.replace(",", "")), len(word.partition("e")[0].partition(".")[2])


def test_figures_of_the_evidence_are_rounded_from_the_tables():
    """Each number in a table of evidence.md is one of those in the full tables, rounded."""
    known = [value for page in TABLES for value, _ in numbers(page.read_text())]
    checked = 0
    for line in re.findall(r"^\|.*$", (DOCS / "evidence.md").read_text().partition("\n## ")[2], re.MULTILINE):
        for cell in line.split("|")[2:]:
            for value, digits in numbers(cell):
                checked += 1
                assert any(abs(value - other) <= 0.501 * 10**-digits for other in known), (value, line)
    assert checked > 60


NOTEBOOK = json.loads((DOCS / "first_steps.ipynb").read_text())


def test_the_notebook_is_stored_without_outputs():
    assert NOTEBOOK["nbformat"] == 4 and len(NOTEBOOK["cells"]) > 8
    for cell in NOTEBOOK["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)
    text = "\n".join("".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "markdown")
    for target in LINKS["targets"](text):
        assert (DOCS / target).exists(), target


@pytest.mark.filterwarnings("ignore")
def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    """Its cells in order, in one namespace, as a kernel would; without magics they are plain Python, so no kernel is needed."""
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    logger, names = logging.getLogger("pytorch_lightning"), {}
    level = logger.level
    for number, cell in enumerate(NOTEBOOK["cells"]):
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            # Fewer images and epochs; whatever else the cells do stays as it is.
            for large, few in (("1200", "96"), ("300)", "24)"), ("in range(6)", "in range(3)"), ("max_epochs=6", "max_epochs=3")):
                source = source.replace(large, few)
            exec(compile(source, f"cell {number}", "exec"), names)
    logger.setLevel(level)  # which the notebook raises
    assert len(plt.get_fignums()) == 2
    plt.close("all")
    assert set(names["results"]) == {"without", "fast"} and names["results"]["fast"].keys() == {"kept", "swapped"}
    assert names["result"].maps.shape == (6, 32, 32) and "of the pixels are kept" in capsys.readouterr().out


def test_the_site_has_every_page():
    listed = re.findall(r"\w+\.md", str(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(listed) == sorted([*(page.name for page in DOCS.glob("*.md")), "index.md", "CHANGELOG.md", "CONTRIBUTING.md"])


@pytest.mark.parametrize("package", ["groupcam_aug", "callbacks", "groupcam_aug/metrics"])
def test_every_public_name_is_in_the_api_reference(package):
    entries = re.findall(r"^::: (groupcam_aug[\w.]*)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    nodes = list(ast.walk(ast.parse((ROOT / package / "__init__.py").read_text())))
    homes = {name.name: node.module for node in nodes if isinstance(node, ast.ImportFrom) for name in node.names}
    (public,) = (
        ast.literal_eval(node.value) for node in nodes if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
    )
    assert len(public) >= 4
    for name in public:
        assert {f"{homes[name]}.{name}", homes[name]} & set(entries), f"{name} of {homes[name]} is not in docs/api.md"


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path):
    """`make site`: links and anchors resolve for mkdocs too, and nothing is fetched by a reader's browser."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install '.[docs]'")
    pytest.importorskip("material", reason="mkdocs-material is not installed: pip install '.[docs]'")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed: pip install '.[docs]'")
    assert "mkdocs build --strict" in (ROOT / "Makefile").read_text()
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    pages = {page.parent.name: page.read_text() for page in (tmp_path / "site").rglob("index.html")}
    assert "GroupCAMAugmentation" in pages["api"] and "every_n_steps" in pages["api"]
    assert "Score-CAM" in pages["ordering"] and 'href="../results/ordering/"' in pages["evidence"]
    for page, text in pages.items():
        fetched = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', text)
        assert not [address for address in fetched if "canonical" not in address], page
