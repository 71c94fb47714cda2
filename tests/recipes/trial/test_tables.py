import json
from pathlib import Path

import pytest
from trial_records import records

from groupcam_aug.recipes.trial.summary import summarise
from groupcam_aug.recipes.trial.tables import as_markdown

STUDIES = Path(__file__).parents[3] / "docs" / "study"


def test_tables_can_be_read_by_a_markdown_reader():
    told = as_markdown(summarise(records({"none": [0.5, 0.6], "fast": [0.6, 0.6]}) + records({"none": [0.5]}, regime="rho0.5")))
    assert told.index("## rho0.5") < told.index("## rho0.95")
    tables = [block for block in told.split("\n\n") if block.startswith("|")]
    assert len(tables) == 4  # two arms: values, differences, masks (no arm with a twin); no differences where there is one arm
    for table in tables:
        assert len({line.count("|") for line in table.strip().split("\n")}) == 1
    assert "+5.00 [+0.00, +10.00]" in told


@pytest.mark.parametrize("path", sorted(STUDIES.rglob("*.json")), ids=lambda path: str(path.relative_to(STUDIES)))
def test_committed_tables_are_those_of_their_files(path):
    names = [f"{path.stem}_{kind}.png" for kind in ("forest", "alignment")]
    plots = [name for name in names if path.with_name(name).is_file()]
    assert path.with_suffix(".md").read_text() == as_markdown(json.loads(path.read_text()), plots)
