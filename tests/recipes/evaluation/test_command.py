"""The evaluate command as one types it, on a tiny checkpoint and files written for the test."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from evaluations import NAMES, QUICK, draw, evaluate, lines, record
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from groupcam_aug import GradCAM, GroupCAM
from groupcam_aug.files import put_file
from groupcam_aug.metrics import average_drop, insertion_deletion
from groupcam_aug.occlusion import occlusion
from groupcam_aug.recipes import written_files
from groupcam_aug.recipes.classifier import load_classifier
from groupcam_aug.recipes.cli import main
from groupcam_aug.recipes.data import eval_transform
from groupcam_aug.recipes.evaluation.methods import METHODS

KEYS = [method.key for method in METHODS if method.default and method.kind != "peer"]


def test_a_folder_gives_figures_of_the_library_and_says_how_to_read_them(evaluated, pictures, checkpoint, tmp_path, capsys):
    found = record(evaluated)
    assert {own["key"] for own in found["methods"].values()} == set(KEYS)
    assert {path.name for path in evaluated.iterdir()} == {
        *(".evaluation.jsonl", "images.jsonl", "evaluation.json", "evaluation.md", "curves.png")
    }
    assert Image.open(evaluated / "curves.png").width > 1000
    classifier, _ = load_classifier(checkpoint)
    finish = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)])
    paths = sorted(pictures.rglob("*.*"))
    images = torch.stack([finish(eval_transform(32)(Image.open(path).convert("RGB"))).as_subclass(Tensor) for path in paths])
    labels = torch.tensor([NAMES.index(path.parent.name) for path in paths])
    network = classifier.network.eval()
    rows = {(line["file"], line["method"]): line["undefined"] for line in lines(evaluated) if "file" in line}
    common = torch.tensor([not any(none for (file, _), none in rows.items() if file == path.as_posix()) for path in paths])
    for name, cam in (("Grad-CAM", GradCAM(network)), ("paper", GroupCAM.for_training(network))):
        maps, own = cam(images, labels), found["methods"][name]
        seen, drop = insertion_deletion(network, images, maps, labels, steps=3), average_drop(network, images, maps, labels)
        alive = common & ~seen.undefined
        assert own["images"] == 6 and own["undefined"] == int(seen.undefined.sum()) and own["compared"] == int(alive.sum()) >= 1
        assert own["insertion"]["auc"] == pytest.approx(float(seen.insertion_auc[alive].mean()), abs=1e-5)
        assert own["deletion"]["mean"] == pytest.approx(seen.deletion[alive].mean(dim=0).tolist(), abs=1e-5)
        assert own["overall"]["mean"] == pytest.approx(float(seen.overall[alive].mean()), abs=1e-5)
        assert own["drop"]["mean"] == pytest.approx(float(drop.drop[alive].mean()), abs=1e-5)
        assert own["deletion"]["fractions"] == pytest.approx(seen.fractions.tolist())
    assert found["methods"]["Grad-CAM"]["undefined"] >= 1, "the class without a map is counted"
    assert found["methods"]["Grad-CAM"]["passes"] == pytest.approx(1, abs=0.05)
    assert found["methods"]["paper"]["passes"] == pytest.approx(18, abs=0.5)
    for own in found["methods"].values():
        for name, value in (("insertion", "auc"), ("deletion", "auc"), ("overall", "mean"), ("drop", "mean")):
            if name in own:
                low, high = own[name]["interval"] or [own[name][value]] * 2  # none where all are equal
                assert low <= own[name][value] <= high and (own["kind"] == "control" or own["milliseconds"]["median"] > 0)
    assert found["sanity"]["mode"] == "cascading" and len(found["sanity"]["stages"]) == 8
    assert found["notes"] == ["G=16 in place of 32: the layer has no more channels"]
    assert evaluate(pictures, *QUICK, "--out", evaluated, checkpoint=checkpoint) == 0  # all of it is there
    told = capsys.readouterr().out
    assert all(
        f" {word} " in told
        for word in ("insertion", "deletion", "over-all", "to Grad-CAM", "drop %", "ms/image", "no map", "↑", "↓")
    )
    assert (
        "over-all (0.000) on 2 images" in told
        and "no verdict beside the centred blob from 2 images" in told
        and "4 left out (without one: Group-CAM for 4, " in told
    )
    assert "1 of 6" in told and "classes of their folders" in told and "Sanity of Group-CAM, cascading, 2 images" in told
    page = (evaluated / "evaluation.md").read_text()
    assert page.count("\n| ") > 13 + 8 and "| Grad-CAM |" in page and "## Sanity check" in page and "[" in page


def test_the_report_of_a_run_takes_the_result(evaluated, pictures, checkpoint, tmp_path, capsys):
    records = tmp_path / "version_0" / "groupcam"
    put_file(records, "run.json", json.dumps({"name": "a run", "run": "r"}))
    put_file(records, "runs.jsonl", '{"run": "r", "epoch": 0}\n')
    assert evaluate(pictures, *QUICK, "--out", evaluated, "--run", tmp_path / "version_0", checkpoint=checkpoint) == 0
    assert {"run": "r", **record(evaluated)} == json.loads((records / "evaluation.json").read_text())
    page = (records / "report.html").read_text()
    area = record(evaluated)["methods"]["Grad-CAM"]["insertion"]["auc"]
    assert f"{area:.3f}" in page and "Sanity check" in page and "randomis" in page
    assert "report.html" in capsys.readouterr().out
    assert evaluate(pictures, "--run", tmp_path / "nothing", checkpoint=checkpoint) == 1
    assert "no folder" in capsys.readouterr().err


def test_a_full_disk_at_the_end_takes_no_figures_away(evaluated, pictures, checkpoint, monkeypatch, capsys):
    def full(folder, name, content):
        raise OSError(28, "No space left on device", str(folder / name))

    monkeypatch.setattr(written_files, "put_file", full)
    assert evaluate(pictures, *QUICK, "--out", evaluated, checkpoint=checkpoint) == 1
    said = capsys.readouterr()
    assert "over-all (0.000) on 2 images" in said.out
    assert "No space left on device" in said.err and "evaluation.json" in said.err and "Traceback" not in said.err


def test_files_of_the_user_stay(pictures, checkpoint, tmp_path, capsys):
    (tmp_path / "evaluation.md").write_text("mine")
    assert evaluate(pictures, *QUICK, "--out", tmp_path, checkpoint=checkpoint) == 1
    assert "evaluation.md' is there and would be overwritten" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation.md"] and (tmp_path / "evaluation.md").read_text() == "mine"


def test_damaged_rows_are_said_and_measured_again(pictures, checkpoint, tmp_path, capsys):
    few = ["--methods", "centre", "--measures", "curves", "--steps", 2, "--out", tmp_path]
    assert evaluate(pictures, *few, checkpoint=checkpoint) == 0
    whole, path = record(tmp_path)["methods"], tmp_path / "images.jsonl"
    for damage in ('"insertion":null', '"insertion":['):
        path.write_text(re.sub(r'"insertion":[\d.e-]+', damage, path.read_text(), count=2))
        capsys.readouterr()
        assert evaluate(pictures, *few, checkpoint=checkpoint) == 0
        said = capsys.readouterr().out
        assert record(tmp_path)["methods"]["centred blob"]["insertion"] == whole["centred blob"]["insertion"]
        assert "[" in damage or "images.jsonl, which are left out: 2" in said  # half a line is what a kill leaves


def test_ablation_varies_one_number_at_a_time(pictures, checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    words = [pictures, "--methods", "none", "--ablate", "groups,denoise", "--measures", "curves", "--steps", 2, "--limit", 3]
    assert evaluate(*words, "--out", out, checkpoint=checkpoint) == 0
    found = record(out)
    assert [row["value"] for row in found["ablations"]["groups"]] == [1, 4, 8, 16], "no more channels"
    assert [row["value"] for row in found["ablations"]["denoise"]] == list(range(0, 100, 10))
    by_theta = {row["value"]: row for row in found["ablations"]["denoise"]}
    assert by_theta[70.0]["insertion"] == found["ablations"]["groups"][3]["insertion"], "one method, measured once"
    assert len([line for line in lines(out) if "file" in line]) == 3 * 13
    assert Image.open(out / "ablation.png").width > 1000 and not (out / "curves.png").exists()
    told = capsys.readouterr().out
    assert "table 2" in told and "figure 5" in told and found["methods"] == {}
    classifier, _ = load_classifier(checkpoint)
    row = next(line for line in lines(out) if line.get("method") == "groupcam:4:70" and line.get("label") == "")
    finish = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)])
    image = finish(eval_transform(32)(Image.open(row["file"]).convert("RGB"))).as_subclass(Tensor)[None]
    maps = GroupCAM(classifier.network, groups=4)(image, row["class"])
    area = insertion_deletion(classifier.network, image, maps, row["class"], steps=2).insertion_auc
    assert row["insertion"] == (None if row["undefined"] else pytest.approx(float(area), abs=1e-5))


def test_dry_run_writes_nothing_and_counts(pictures, checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    words = [pictures, "--methods", "paper,gradcam", "--steps", 5, "--dry-run", "--out", out]
    assert evaluate(*words, checkpoint=checkpoint) == 0
    told = capsys.readouterr().out
    assert not out.exists() and "Nothing is written" in told and "6 of 6" in told
    passes = int(told.split(" passes, about")[0].split()[-1].replace(",", ""))
    assert passes == pytest.approx(6 * (18 + 12 + 1 + 12) + 8 * 6 * 19, rel=0.03)
    words.remove("--dry-run")
    assert evaluate(*words, "--measures", "curves", checkpoint=checkpoint) == 0
    told = capsys.readouterr().out  # the plan first, then what came out
    assert told.index(" passes, about") < told.index("less by --limit") < told.index("wrote ")
    passes = int(told.split(" passes, about")[0].split()[-1].replace(",", ""))
    assert passes == pytest.approx(6 * (18 + 10 + 1 + 10), rel=0.03)
    assert evaluate(*words, "--measures", "curves", checkpoint=checkpoint) == 0
    assert "nothing left to measure" in capsys.readouterr().out
    assert evaluate(*words, "--author-compatible", checkpoint=checkpoint) == 2
    assert "fixes --steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, status, message",
    [
        ([], 2, "give images or folders of them"),
        (["IN", "--voc", "somewhere"], 2, "give images or folders of them"),
        (["IN", "--methods", "gradcamm"], 1, "did you mean 'gradcam'"),
        (["IN", "--methods", "none"], 1, "nothing to do"),
        (["IN", "--ablate", "layers"], 2, "'layers' is none of groups, denoise"),
        (["IN", "--measures", "pointing"], 2, "needs --voc or --coco"),
        (["IN", "--limit", "0"], 2, "give at least 1"),
        (["IN", "--layer", "stage9"], 1, "did you mean"),
        (["nowhere"], 1, "'nowhere' is not there"),
    ],
)
def test_wrong_calls(words, status, message, pictures, checkpoint, tmp_path, capsys):
    words = [pictures if word == "IN" else word for word in words]
    assert evaluate(*words, "--out", tmp_path / "out", checkpoint=checkpoint) == status
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_list_names_every_method(capsys):
    assert main(["evaluate", "--list"]) == 0
    told = capsys.readouterr().out
    assert all(f" {method.key} " in told and method.name in told for method in METHODS)
    assert main(["evaluate", "--help"]) == 0
    assert "--compare" in capsys.readouterr().out


def test_its_own_pictures_are_no_images_of_the_next_call(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "a.png", 1)
    for _ in range(2):
        assert evaluate(".", "--methods", "centre,gradcam", "--steps", 2, "--sanity-images", 1, checkpoint=checkpoint) == 0
    assert (tmp_path / "groupcam_evaluation" / "curves.png").exists()
    assert record(tmp_path / "groupcam_evaluation")["methods"]["Grad-CAM"]["images"] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are UTF-8 there")
def test_a_file_name_that_is_not_utf_8(checkpoint, tmp_path):
    draw(tmp_path / "a.png", 1)
    (tmp_path / "in").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "in" / os.fsdecode(b"caf\xe9.png"))
    assert (
        evaluate(tmp_path / "in", "--methods", "cells", "--measures", "curves", "--out", tmp_path / "out", checkpoint=checkpoint)
        == 0
    )
    assert record(tmp_path / "out")["methods"]["random cells"]["images"] == 1
    (tmp_path / "in" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"torn")
    draw(tmp_path / "in" / "b.png", 1)
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    words = ["--methods", "cells", "--measures", "curves", "--steps", "2", "--device", "cpu", "--out", tmp_path / "more"]
    call = [sys.executable, "-m", "groupcam_aug.recipes.cli", "evaluate", tmp_path / "in", "--checkpoint", checkpoint, *words]
    done = subprocess.run(call, env=environment, capture_output=True, check=False)
    assert done.returncode == 1 and "not read: " in done.stdout.decode() and b"Traceback" not in done.stderr


def test_ranks_against_hidden_windows_and_probabilities_of_several_labels(pictures, checkpoint, tmp_path, capsys):
    content = torch.load(checkpoint, weights_only=False)
    for name in ("weight", "bias"):  # scores that move with the picture
        content["state_dict"][f"network.linear.{name}"] /= 20
    checkpoint = tmp_path / "mild.ckpt"
    torch.save(content, checkpoint)
    words = [pictures / "dog", "--methods", "gradcam,occlusion,cells", "--measures", "curves,drop,occlusion", "--steps", 3]
    words += ["--activation", "sigmoid", "--resize", "squash", "--out", tmp_path / "out"]
    assert evaluate(*words, checkpoint=checkpoint) == 0
    found, told = record(tmp_path / "out"), capsys.readouterr().out
    assert "occlusion ρ" in told and "ranks against windows" in told and "sigmoid" in told and ", squashed" in told
    classifier, _ = load_classifier(checkpoint)
    network = classifier.network.eval()
    shape = v2.Compose(
        [v2.Resize((32, 32)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    )
    paths = sorted((pictures / "dog").iterdir())
    images = torch.stack([shape(Image.open(path).convert("RGB")).as_subclass(Tensor) for path in paths])
    maps, seen = GradCAM(network)(images, 1), occlusion(network, images, 1, activation="sigmoid")
    curves = insertion_deletion(network, images, maps, 1, steps=3, activation="sigmoid")
    drop = average_drop(network, images, maps, 1, activation="sigmoid")
    kept, own = ~curves.undefined, found["methods"]["Grad-CAM"]
    assert own["compared"] == int(kept.sum()) >= 2
    assert own["insertion"]["auc"] == pytest.approx(float(curves.insertion_auc[kept].mean()), abs=1e-5)
    assert own["drop"]["mean"] == pytest.approx(float(drop.drop[kept].mean()), abs=1e-5)
    assert own["occlusion"]["mean"] == pytest.approx(float(seen.correlation(maps).value[kept].mean()), abs=1e-5)
    other = found["methods"]["occlusion"]
    assert other["occlusion"]["mean"] > found["methods"]["random cells"]["occlusion"]["mean"]
    assert other["passes"] == seen.drops[0].numel() + 1
    assert evaluate(*words, "--activation", "softmax", checkpoint=checkpoint) == 1
    assert "activation: 'sigmoid' there, None now" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "words, setting",
    [
        (["--substrate", "zeros"], {"substrate": "zeros"}),
        (["--author-compatible"], {"author_compatible": True}),
        (["--sanity-mode", "independent"], {"sanity_mode": "independent"}),
        (["--seed", "3"], {"seed": 3}),
        (["--steps", "5"], {"steps": 5}),
    ],
)
def test_options_reach_the_measurement(words, setting, pictures, checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=False)
    for name in ("weight", "bias"):  # scores that move with the picture
        content["state_dict"][f"network.linear.{name}"] /= 20
    checkpoint = tmp_path / "mild.ckpt"
    torch.save(content, checkpoint)
    few = [pictures / "dog", "--methods", "gradcam,cells", "--sanity-images", 1]
    steps = [] if {"--steps", "--author-compatible"} & set(words) else ["--steps", 3]
    assert evaluate(*few, *steps, *words, "--out", tmp_path / "out", checkpoint=checkpoint) == 0
    assert evaluate(*few, "--steps", 3, "--out", tmp_path / "plain", checkpoint=checkpoint) == 0
    assert lines(tmp_path / "out")[0]["settings"].items() >= setting.items()
    found, plain = record(tmp_path / "out"), record(tmp_path / "plain")
    assert found["sanity"]["mode"] == setting.get("sanity_mode", "cascading")
    areas = [one["methods"]["random cells"]["deletion"]["auc"] for one in (found, plain)]
    assert (areas[0] == areas[1]) == ("sanity_mode" in setting)
