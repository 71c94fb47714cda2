from pathlib import Path

import pytest
from rich.console import Console
from trial_records import logged, record

from groupcam_aug.recipes.trial.arms import Arm
from groupcam_aug.recipes.trial.printing import line_of, print_arms, print_plan
from groupcam_aug.recipes.trial.run import Rehearsal, Run
from groupcam_aug.recipes.trial.runner import Failure


def said(show, *words):
    console = Console(width=200, record=True)
    show(console, *words)
    return " ".join(console.export_text().split())


def test_a_plan_says_what_is_left_and_how_long_it_takes():
    arms = [Arm("none", "no [/such] luck"), Arm("cheap", "half"), Arm("broken", "whole")]
    runs = [Run(arm, seed, Path("out")) for seed in (0, 1, 2, 4, 7) for arm in arms]
    rehearsals = {name: Rehearsal(0.25, 400, 4, 1600, {"kept": 300, "moved": None}) for name in ("none", "cheap")}
    failures = [Failure("broken", seed, "it cannot") for seed in (0, 1, 2, 4, 7)]
    text = said(print_plan, runs, runs[3:], rehearsals, {"none": 89, "cheap": 600}, failures, 2)
    assert "1,600 training images, 4 epochs, 400 steps a run; tested on kept (300), moved" in text
    assert "12 runs to do, 3 finished" in text and "none │ no [/such] luck │ 1-2, 4, 7 │ 250 │ 89 s" in text
    assert "broken │ whole │ 1-2, 4, 7 │ failed │" in text
    assert "about 23 min of training with --jobs 2" in text and "p of 5 paired seeds is 0.062" in text


@pytest.mark.parametrize("seconds, shown", [(0.2, "1 s"), (89, "89 s"), (600, "10 min"), (7200, "2.0 h")])
def test_a_line_for_a_finished_run(seconds, shown):
    made = record("fast", 3, {"kept": 0.912, "moved": 0.5})
    made["train"]["seconds"] = seconds
    assert line_of("accuracy")(made) == f"fast, seed 3: kept 91.2 %, moved 50.0 %, {shown}"
    assert line_of("auroc")(made).startswith("fast, seed 3: kept no auroc, moved no auroc")
    assert line_of("test/loss")(logged("fast", 3, 0.123456)).startswith("fast, seed 3: kept 0.1235,")


def test_arms_are_shown_with_their_controls(tmp_path):
    (tmp_path / "arms.yaml").write_text("mine: {about: one of mine, control: whole}\n")
    text = said(print_arms, str(tmp_path / "arms.yaml"))
    assert "fast-pretrained-other" in text and "mine one of mine (control: whole)" in text
