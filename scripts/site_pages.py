"""Hooks of mkdocs.yml: pages from outside `docs/`, and links that are right in the repository made right on the site.

Pages are written for the repository, where links go from file to file. On the site the README is the first page, the tables of
`benchmarks/results` lie beside the documents, and what is not on the site is linked in the repository.
"""

from __future__ import annotations

import runpy
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
links = runpy.run_path(str(ROOT / "scripts" / "links.py"))


def _elsewhere() -> dict[str, str]:
    """Page of the site -> file of the repository, for those outside `docs/`."""
    pages = {"index.md": "README.md", "CHANGELOG.md": "CHANGELOG.md", "CONTRIBUTING.md": "CONTRIBUTING.md"}
    tables = (ROOT / "benchmarks" / "results").glob("*.md")
    return pages | {f"results/{path.name}": f"benchmarks/results/{path.name}" for path in sorted(tables)}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside `docs/`."""
    for page, source in _elsewhere().items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Resolve links in the repository; what the site has is linked there, the rest at the repository's address."""
    elsewhere = _elsewhere()
    here = page.file.src_uri
    at = {source: name for name, source in elsewhere.items()} | {
        f"docs/{file.src_uri}": file.src_uri for file in files if file.src_uri not in elsewhere
    }
    folder = PurePosixPath(elsewhere.get(here, f"docs/{here}")).parent

    def change(target: str, image: bool) -> str:
        path, _, anchor = target.partition("#")
        if "://" in target or not path:
            return target
        source = normpath(str(folder / path))
        if source in at:
            return relpath(at[source], PurePosixPath(here).parent) + (f"#{anchor}" if anchor else "")
        return links["address"](target, image, config["repo_url"], str(folder))

    return links["rewritten"](markdown, change)
