"""Write the tables of benchmarks/results/*.md from the result files beside them: `python benchmarks/tables.py` (or --check)."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def filled(text: str) -> str:
    """`text` with the table behind each `<!-- results/NAME.json -->` made from that file."""

    def table(match: re.Match[str]) -> str:
        content = json.loads((RESULTS / match[1]).read_text())
        header = list(content["rows"][0])
        lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        lines += ["| " + " | ".join(shown(cell) for cell in row.values()) + " |" for row in content["rows"]]
        conditions = ", ".join(f"{key} {value}" for key, value in content["conditions"].items())
        return f"<!-- results/{match[1]} -->\n" + "\n".join(lines) + f"\n\n*{conditions}*\n"

    return re.sub(r"<!-- results/(\w+\.json) -->\n(?:\|.*\n)*(?:\n\*.*\*\n)?", table, text)


def shown(cell: Any) -> str:
    """A figure as it stands in a table."""
    return "-" if cell is None else f"{cell:.3g}" if isinstance(cell, float) else str(cell)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a page differs from the files")
    options = parser.parse_args()
    for page in sorted(RESULTS.glob("*.md")):
        text = page.read_text()
        if options.check and filled(text) != text:
            sys.exit(f"{page.relative_to(ROOT)} differs from the result files: run benchmarks/tables.py")
        if not options.check:
            page.write_text(filled(text))


if __name__ == "__main__":
    main()
