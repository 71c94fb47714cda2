import json
import os

import torch
from page import check
from PIL import Image

from groupcam_aug.recipes import demo, written_files
from groupcam_aug.recipes.classifier import Classifier, load_classifier
from groupcam_aug.recipes.cli import main
from groupcam_aug.recipes.networks import CIFARResNet
from groupcam_aug.recipes.shapes import CLASSES, Shapes

TINY = {"trainer.max_epochs": 4, "data.train": 64, "data.test": 24, "data.val": 24, "data.batch_size": 16}


def test_the_command_is_a_trial_with_panels_and_a_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "QUICK", TINY)
    out = tmp_path / "out"
    assert main(["demo", "--quick", "--out", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in ("over none on 2 seeds", "panels.png", "index.html", "Quick form"):
        assert words in said, words
    assert str(out / "report.html") in "".join(said.split()), "the last line says where the report is"
    results = json.loads((out / "results.json").read_text())
    assert [(record["arm"], record["seed"]) for record in results["records"]] == [(a, s) for a in demo.ARMS for s in (0, 1)]
    assert set(results["summary"]["test_sets"]) == {"kept", "swapped"} and results["failures"] == []
    fast = next(record for record in results["records"] if record["arm"] == "fast")
    assert fast["train"]["augmented"] > 0 and 0 <= fast["train"]["object_kept"] <= 1
    assert min(Image.open(out / "panels.png").size) > 300
    words = check((out / "report.html").read_text(encoding="utf-8")).words()
    for filled in (
        "Finished: 4 epochs",
        "crescent",
        "val/acc",
        "Maps of the probes",
        "How much is kept",
        "Samples of epoch",
        "Insertion",
        "Sanity check",
    ):
        assert filled in words, filled
    classifier, info = load_classifier(out / "runs" / "fast__seed1" / "last.ckpt")
    assert info["class_names"] == list(CLASSES) and isinstance(classifier.network, CIFARResNet)


def test_the_whole_form_has_a_run_for_each_core(monkeypatch):
    calls = []
    threads = torch.get_num_threads()
    monkeypatch.setattr(demo, "main", lambda words: calls.append(words) or 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    try:
        assert demo.run("demo", []) == 1 and demo.run("demo", ["--seeds", "5", "--jobs", "3", "--out", "here"]) == 1
    finally:
        torch.set_num_threads(threads)
    assert calls[0] == [
        "trial",
        "demo",
        "--arms",
        *demo.ARMS,
        "--seeds",
        "3",
        "--jobs",
        "2",
        "--out",
        "groupcam_demo",
        "--checkpoints",
    ]
    assert calls[1][6:] == ["--seeds", "5", "--jobs", "3", "--out", "here", "--checkpoints"]


def test_a_full_disk_after_the_trial_is_a_sentence(tmp_path, monkeypatch, capsys):
    """The trial has shown its figures by then."""

    def full(folder, name, content):
        raise OSError(28, "No space left on device", str(folder / name))

    monkeypatch.setattr(demo, "main", lambda words: 0)
    monkeypatch.setattr(
        demo, "load_classifier", lambda path: (Classifier(CIFARResNet(8, 6, 8), mean=[0.5] * 3, std=[0.25] * 3).eval(), {})
    )
    monkeypatch.setattr(written_files, "put_file", full)
    assert main(["demo", "--quick", "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error and "panels.png" in error and error.count("\n") == 1


def test_pictures_of_the_user_stay(tmp_path, capsys):
    (tmp_path / "panels.png").write_text("mine")
    assert main(["demo", "--quick", "--out", str(tmp_path)]) == 1
    assert "panels.png' is there" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["panels.png"] and (tmp_path / "panels.png").read_text() == "mine"


def test_panels_show_the_image_in_the_colours_it_has():
    torch.manual_seed(0)
    data = Shapes("kept", 12)
    classifier = Classifier(CIFARResNet(8, 6, 8), mean=[0.5] * 3, std=[0.25] * 3).eval()
    sheet = demo.draw_panels(classifier, data, count=2)
    assert sheet.size == demo.draw_panels(classifier, data, count=2).size and sheet.size[0] > 4 * 160


def test_no_seed_is_refused(capsys):
    assert main(["demo", "--seeds", "0"]) == 2
    assert "--seeds 0" in capsys.readouterr().err
