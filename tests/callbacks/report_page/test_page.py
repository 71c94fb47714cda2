"""The whole page: what is in it, and that it stands alone."""

import html
import json

import pytest
import records
from page import check

from groupcam_aug.callbacks.report_page import page
from groupcam_aug.callbacks.report_page.page import render
from groupcam_aug.files import add_line

EVIL = ['<script>alert("1")</script>', "</style><b>&amp;", "'\"><img src=x onerror=alert(1)>"]


def test_a_full_report_stands_alone_and_shows_everything(tmp_path):
    records.full_run(tmp_path)
    read = check(render(tmp_path))
    words = read.words()
    for expected in (
        "Finished: 6 epochs in 6 min",
        "val/acc 91.7%",
        "cat",
        "owl",
        "1,234,567",
        "layer4, 512 x 7 x 7",
        "train.py --lr 0.1",
    ):
        assert expected in words, expected
    for title in ("Maps of the probes", "Learning rate", "How much is kept", "Insertion", "Deletion", "Sanity check", "+30%"):
        assert title in words, title
    pictures = [given for tag, given in read.tags if tag == "img"]
    charts = [given for given in pictures if given.get("class") == "chart"]
    assert len(charts) == 9 and len(pictures) - len(charts) == 7 + 2 * 8 * 4, "probes and six epochs; two epochs of eight samples"
    dark = [given for tag, given in read.tags if tag == "source"]
    assert len(dark) == 9 and all("prefers-color-scheme: dark" in given["media"] for given in dark)
    assert not {given["srcset"] for given in dark} & {given["src"] for given in charts}


def test_hints_are_commands_to_paste(tmp_path):
    folder = tmp_path / "my run" / "groupcam"
    records.run(folder)
    text = html.unescape(render(folder))
    assert f"groupcam-aug report '{folder}'" in text and "groupcam-aug evaluate" not in text, "there is no checkpoint"
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**facts, "model": "Classifier"}))
    (folder.parent / "checkpoints").mkdir()
    (folder.parent / "checkpoints" / "last.ckpt").touch()
    text = html.unescape(render(folder))
    assert f"groupcam-aug evaluate photos/ --checkpoint '{folder.parent}/checkpoints/last.ckpt' --run '{folder}'" in text


def test_swatches_look_like_their_curves(tmp_path):
    records.full_run(tmp_path)
    records.evaluation(tmp_path, {f"method {i}": (0.5, 0.1) for i in range(8)})
    read = check(render(tmp_path))
    assert {given["class"] for tag, given in read.tags if tag == "i" and "class" in given} == {
        "solid",
        "dashed",
        "dotted",
        "filled",
    }


def test_mistakes_are_counted_and_shown(tmp_path):
    records.full_run(tmp_path)
    words = check(render(tmp_path)).words()
    assert "No probe is taken for another class." in words and "1 of 1 100%" in words
    records.monitor(tmp_path, probe_chosen=[2, 1, 2, 0, 1, 2, 0], probes=7, names=["cat", "dog", "owl"])
    records.errors(tmp_path)
    words = check(render(tmp_path)).words()
    assert "cat owl 1 of 3" in words and "2 of 3 67%" in words and "cat 0.05 taken for owl 0.90" in words


def test_rendering_is_a_function_of_the_folder(tmp_path):
    records.full_run(tmp_path)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    assert render(tmp_path) == render(str(tmp_path))
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before, "nothing is written"


def test_names_and_paths_are_escaped(tmp_path):
    folder = tmp_path / '<b>run & "co"' / "groupcam"
    records.full_run(folder, names=EVIL, command=f"train.py {EVIL[0]}", status=f"stopped by Error in epoch 3: {EVIL[1]}")
    add_line(folder, "run", {"epoch": 6, "lr": 0.1, "val/acc<script>": 0.5, "train/loss</svg>": 1.0})
    (folder / "augmentation.json").write_text(json.dumps({"plan": EVIL[2], "layer": EVIL[0], "fill": EVIL[1]}))
    evil = {"methods": {EVIL[0]: {"insertion": {"fractions": [0, 1], "mean": [0, 1], "auc": 0.5}}}, "told": EVIL[1]}
    evil["sanity"] = {"mode": EVIL[2], "stages": EVIL, "spearman": [1, 0.5, 0.1], "floors": {EVIL[0]: 0.1}}
    (folder / "evaluation.json").write_text(json.dumps(evil))
    text = render(folder)
    read = check(text)
    assert "<script" not in text and "onerror=alert(1)>" not in text.replace("&gt;", "") and "<b>" not in text
    for name in EVIL:
        assert name in read.words()


def test_a_long_run_with_many_probes_and_classes_stays_small(tmp_path):
    names = [f"class number {i} with a name that goes on and on" for i in range(1000)]
    records.run(tmp_path, epochs=300, names=names)
    records.monitor(tmp_path, epochs=40, probes=12, names=names)
    records.augmentation(tmp_path, 40, {str(i): [30, i % 30] for i in range(1000)}, 112, galleries=(0, 1, 8, 39))
    text = render(tmp_path)
    read = check(text)
    pictures = [1 for tag, given in read.tags if tag == "img" and given.get("class") != "chart"]
    assert len(pictures) == 17 + 3 * 32, "sixteen epochs of forty, three of the samples"
    assert "980 more classes" in read.words()


def test_pictures_get_smaller_where_they_would_not_fit(tmp_path, monkeypatch):
    records.full_run(tmp_path)
    usual = len(render(tmp_path).encode())
    monkeypatch.setattr(page, "LIMIT", usual - 1)
    assert len(render(tmp_path).encode()) < usual


@pytest.mark.parametrize("parts", [["run"], ["monitor"], ["augmentation"], ["evaluation"], ["run", "augmentation"]])
def test_sections_without_records_say_what_would_fill_them(tmp_path, parts):
    for part in parts:
        getattr(records, part)(tmp_path)
    words = check(render(tmp_path)).words()
    for part, hint in {
        "run": "SaliencyReport() among",
        "monitor": "No probes were watched",
        "augmentation": "No augmented image was recorded",
        "evaluation": "Not evaluated",
    }.items():
        assert (hint in words) == (part not in parts), hint


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no records"):
        render(tmp_path)
    (tmp_path / "monitor.json").write_text('{"broken')
    with pytest.raises(ValueError, match=r"monitor\.json is no JSON"):
        render(tmp_path)


def test_odd_numbers_are_no_trouble(tmp_path):
    records.run(tmp_path, epochs=1, names=["$x_1$", "_hidden", ""])
    add_line(tmp_path, "run", {"epoch": 1, "lr": None, "train/loss": float("nan"), "_$\\frac{": 1.0, "val/acc": True})
    records.monitor(tmp_path, epochs=1, pictures=False, noise=None, alive=None, change=lambda epoch: None)
    add_line(tmp_path, "augmentation", {"epoch": 0, "drawn": 3, "no_map": 3, "images": 3, "keep_fraction": None, "per_class": {}})
    assert "train/loss is not a finite number since epoch 1" in check(render(tmp_path)).words()
