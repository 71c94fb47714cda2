"""Write the tables of docs/evidence.md again from the committed result files: `python benchmarks/tables.py` (or --check)."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "evidence.md"


def filled(text: str) -> str:
    """`text` with the table behind each `<!-- results/NAME.json -->` made from that file."""

    def table(match: re.Match[str]) -> str:
        content = json.loads((ROOT / "benchmarks" / "results" / match[1]).read_text())
        header = list(content["rows"][0])
        lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        lines += ["| " + " | ".join(shown(cell) for cell in row.values()) + " |" for row in content["rows"]]
        told = ", ".join(f"{key} {value}" for key, value in content["conditions"].items())
        return f"<!-- results/{match[1]} -->\n" + "\n".join(lines) + f"\n\n*{told}*\n"

    return re.sub(r"<!-- results/(\w+\.json) -->\n(?:\|.*\n)*(?:\n\*.*\*\n)?", table, text)


def shown(cell: Any) -> str:
    """A figure as it stands in a table."""
    return "-" if cell is None else f"{cell:.3g}" if isinstance(cell, float) else str(cell)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the page differs from the files")
    options = parser.parse_args()
    text = PAGE.read_text()
    if options.check:
        sys.exit(None if filled(text) == text else "docs/evidence.md differs from benchmarks/results: run benchmarks/tables.py")
    PAGE.write_text(filled(text))


if __name__ == "__main__":
    main()
