import base64
import re

import pytest
from page import Page
from trial_records import logged, record, trial

from groupcam_aug.recipes.trial.page import render_markdown, render_page
from groupcam_aug.recipes.trial.summary import summarise
from groupcam_aug.recipes.trial.verdict import verdict

THREE = {"none": [0.90, 0.91, 0.92], "fast": [0.91, 0.93, 0.95], "fast-other": [0.90, 0.93, 0.93]}
EVIL = ['<script>alert("1")</script>', "[/red] [bold]", "</style><b>&amp;", "'\"><img src=x onerror=alert(1)>", "{{ 7 * 7 }}"]


def results(records, *, failures=(), missing=(), title="Trees", command="groupcam-aug trial trees.yaml", **settings):
    summary = summarise(records, **settings)
    return {
        "title": title,
        "command": command,
        "verdict": verdict(summary),
        "failures": list(failures),
        "missing": list(missing),
        "summary": summary,
    }


def read(records, folder, *, sheets=None, **more):
    """The page, read strictly: nothing from outside but links into the folder."""
    text = render_page(results(records, **more), folder=folder, sheets=sheets)
    page = Page(text)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("h1") == tags.count("title") == tags.count("style") == 1
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & set(tags)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"data:image/[a-z+]+;base64,[A-Za-z0-9+/=]+", "", text))
    assert all(given.get("alt") for tag, given in page.tags if tag == "img")
    return page


def test_the_page_says_it_all(tmp_path):
    page = read(trial(THREE, controls={"fast": "fast-other"}, groups={"a, b": [3, 4]}), tmp_path)
    words = page.words()
    for expected in (
        "No arm has a shown gain over none.",
        "fast: +2.0 [-0.5, +4.5] points over none on 3 seeds, kept: no gain shown.",
        "kept 300 images",
        "fast 3 seeds 93.0 ± 1.2 +2.0 [-0.5, +4.5] 3 of 3 better 0.25 +1.0 [-1.5, +3.5] fast-other, 2 of 3 better 83.0 ± 1.2",
        "× 2.00 20 s a run",
        "3 seeds are few",
        "climbing 91.0 546 of 600",  # 180, 182 and 184 of 200
        "a, b 75.0 9 of 12",
        "fast 46.0 3.0 70.0 40.0",
        "cpu, 1 thread",
        "torch 2.9.0",
        "groupcam-aug trial trees.yaml",
        "what fast is",
    ):
        assert expected in words, expected
    charts = [given for tag, given in page.tags if tag == "img" and given.get("class") == "chart"]
    dark = [given for tag, given in page.tags if tag == "source"]
    assert len(charts) == len(dark) == 1 and "prefers-color-scheme: dark" in dark[0]["media"]
    assert dark[0]["srcset"] != charts[0]["src"]


def test_the_conclusion_comes_first(tmp_path):
    words = read(trial(THREE), tmp_path).words()
    places = [words.index(one) for one in ("No arm has a shown gain", "Keep in mind", "kept 300 images", "The runs")]
    assert places == sorted(places)


def test_links_lead_to_files_that_are_there(tmp_path):
    for name in ("arms/fast x.yaml", "runs/fast x__seed0.json", "runs/fast x__seed0/groupcam/report.html"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    records = trial({"none": [0.9, 0.8], "fast x": [0.9, 0.8]})
    records[0]["folder"] = str(tmp_path / "runs" / "fast x__seed0")  # out of the folder: no link
    links = [link for link in read(records, tmp_path).links if not link.startswith("data:")]
    assert links == [
        "results.json",
        "results.md",
        "arms/fast%20x.yaml",
        "runs/fast%20x__seed0.json",
        "runs/fast%20x__seed0/groupcam/report.html",
    ]


def test_sample_sheets(tmp_path):
    page = read(trial(THREE), tmp_path, sheets={"fast": b"a PNG"})
    (sheet,) = [given for tag, given in page.tags if given.get("class") == "sheet"]
    assert sheet["src"] == f"data:image/png;base64,{base64.b64encode(b'a PNG').decode()}" and "fast" in sheet["alt"]
    assert "Sample images" not in read(trial(THREE), tmp_path).words()


def test_failures_missing_runs_warnings_and_notes(tmp_path):
    records = trial(THREE)
    records[0]["warnings"] = records[1]["warnings"] = ["few workers"]
    records[2]["pairing"]["start"] = "other"
    failures = [{"arm": "paper", "seed": 1, "error": "RuntimeError: no memory"}]
    missing = [{"arm": "paper", "planned": 3, "finished": 0, "failed": 1}]
    page = read(records, tmp_path, failures=failures, missing=missing)
    markdown = render_markdown(results(records, failures=failures, missing=missing))
    for text in (page.words(), " ".join(markdown.split())):
        assert "paper: 0 of 3 runs finished, 1 failed" in text
        assert "paper, seed 1 failed: RuntimeError: no memory" in text
        assert "none, seed 0, 1: few workers" in text and text.count("few workers") == 1
        assert "not paired, 3 of 3 better" in text
        assert "Seed 2: not all arms had the same initial weights" in text


@pytest.mark.parametrize("evil", EVIL)
def test_names_and_errors_are_text(tmp_path, evil):
    records = [record(arm, 0, {evil: 0.9}, classes={evil: [1, 2]}, warnings=[evil]) for arm in ("none", evil)]
    more = {"failures": [{"arm": evil, "seed": 0, "error": evil}], "title": evil, "command": evil}
    page = read(records, tmp_path, sheets={evil: b""}, **more)
    assert page.words().count(evil) >= 8
    assert not {"b", "script"} & {tag for tag, _ in page.tags}
    markdown = render_markdown(results(records, **more))
    assert "<" not in markdown


def test_data_without_accuracy(tmp_path):
    values = {"none": [0.5, 0.6, 0.55], "fast": [0.4, 0.49, 0.46]}
    records = [logged(arm, seed, value) for arm, of in values.items() for seed, value in enumerate(of)]
    words = read(records, tmp_path, metric="test/loss", mode="min").words()
    assert "fast 3 seeds 0.45 ± 0.0265 -0.1 [-0.125, -0.0752] 3 of 3 better 0.25" in words
    assert "worst" not in words and "lower is better" in words and "What the maps kept" not in words
    assert "No run measured accuracy" in read(records, tmp_path).words()


def test_nothing_finished(tmp_path):
    failures = [{"arm": "none", "seed": 0, "error": "OSError: no images"}]
    words = read([], tmp_path, failures=failures).words()
    assert "No run finished: nothing can be said." in words and "OSError: no images" in words
    assert "OSError: no images" in render_markdown(results([], failures=failures))


def test_markdown_has_the_same_numbers():
    text = render_markdown(results(trial(THREE, controls={"fast": "fast-other"})), plot="forest.png")
    assert text.startswith("# Trees\n\n**No arm has a shown gain over none.**\n") and "![Differences to none](forest.png)" in text
    assert (
        "| fast (3 seeds) | 93.0 ± 1.2 | +2.0 [-0.5, +4.5] (3 of 3 better) | 0.25 | +1.0 [-1.5, +3.5] (fast-other, 2 of 3" in text
    )
    assert "| fast | 46.0 | 3.0 | 70.0 | 40.0 |" in text and "- Device: cpu, 1 thread" in text
    assert "forest.png" not in render_markdown(results(trial(THREE)))
