"""The evaluate command as one types it, on a tiny checkpoint and files written for the test; its figures by hand."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from models import PooledNet, assert_same, snapshot
from PIL import Image
from rich.console import Console
from torch import Tensor
from torchvision.transforms import v2

from groupcam_aug import GradCAM, GroupCAM
from groupcam_aug.files import add_line, put_file, read_lines
from groupcam_aug.metrics import average_drop, insertion_deletion
from groupcam_aug.recipes.classifier import load_classifier
from groupcam_aug.recipes.cli import main
from groupcam_aug.recipes.data import eval_transform
from groupcam_aug.recipes.evaluation import methods
from groupcam_aug.recipes.evaluation import runner as measuring
from groupcam_aug.recipes.evaluation.datasets import Item
from groupcam_aug.recipes.evaluation.methods import METHODS
from groupcam_aug.recipes.evaluation.results_file import Book
from groupcam_aug.recipes.evaluation.statistics import bootstrap, figures_of, reading
from groupcam_aug.recipes.evaluation.tables_and_plots import markdown, rich_table

NAMES = ["cat", "dog", "tvmonitor"]
QUICK = ["--steps", 3, "--sanity-images", 2]
KEYS = [method.key for method in METHODS if method.default and method.kind != "peer"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """CIFAR-ResNet-8 with 16 channels at the target layer, whose class "cat" has no Grad-CAM map anywhere."""
    import pytorch_lightning as pl
    from lit import SILENT

    from groupcam_aug.recipes.classifier import Classifier

    torch.manual_seed(0)
    network = {"class_path": "groupcam_aug.recipes.networks.CIFARResNet", "init_args": {"depth": 8, "width": 4}}
    module = Classifier(network, num_classes=3, class_names=NAMES, mean=[0.5] * 3, std=[0.5] * 3, size=32)
    with torch.no_grad():
        module.network.linear.weight[0] = 0
        module.network.linear.weight[1:] *= 20
        images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        module.network.eval().linear.bias -= module.network(images).mean(dim=0)  # opinions that differ from image to image
    path = tmp_path_factory.mktemp("fit") / "last.ckpt"
    trainer = pl.Trainer(**SILENT, max_steps=0)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i, name in enumerate(["cat/a.png", "dog/b.png", "dog/c.png", "dog/d.jpg", "tvmonitor/e.png", "tvmonitor/f.png"]):
        draw(folder / name, i)
    return folder


def draw(path, seed, size=(40, 48)):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = torch.rand(1, 3, 5, 6, generator=torch.Generator().manual_seed(seed))
    pixels = torch.nn.functional.interpolate(coarse, size, mode="bilinear")[0].mul(255).byte().permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).save(path)


@pytest.fixture(scope="module")
def evaluated(pictures, checkpoint, tmp_path_factory):
    """An uninterrupted run with all default methods."""
    out = tmp_path_factory.mktemp("whole")
    assert evaluate(pictures, *QUICK, "--out", out, checkpoint=checkpoint) == 0
    return out


def evaluate(*words, checkpoint):
    return main(["evaluate", *map(str, words), "--ckpt_path", str(checkpoint), "--device", "cpu"])


def record(out):
    return json.loads((out / "evaluation.json").read_text())


def lines(out):
    return [json.loads(line) for line in (out / "images.jsonl").read_text().splitlines()]


def without_times(found):
    methods = {name: {k: v for k, v in own.items() if k != "milliseconds"} for name, own in found["methods"].items()}
    return {**found, "methods": methods}


def test_a_folder_gives_figures_of_the_library_and_says_how_to_read_them(evaluated, pictures, checkpoint, tmp_path, capsys):
    found = record(evaluated)
    assert {own["key"] for own in found["methods"].values()} == set(KEYS)
    assert {path.name for path in evaluated.iterdir()} == {"images.jsonl", "evaluation.json", "evaluation.md", "curves.png"}
    assert Image.open(evaluated / "curves.png").width > 1000
    classifier, _ = load_classifier(checkpoint)
    finish = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)])
    paths = sorted(pictures.rglob("*.*"))
    images = torch.stack([finish(eval_transform(32)(Image.open(path).convert("RGB"))).as_subclass(Tensor) for path in paths])
    labels = torch.tensor([NAMES.index(path.parent.name) for path in paths])
    network = classifier.network.eval()
    for name, cam in (("Grad-CAM", GradCAM(network)), ("training form", GroupCAM.for_training(network))):
        maps, own = cam(images, labels), found["methods"][name]
        seen, drop = insertion_deletion(network, images, maps, labels, steps=3), average_drop(network, images, maps, labels)
        alive = ~seen.undefined
        assert own["images"] == 6 and own["undefined"] == int(seen.undefined.sum())
        assert own["insertion"]["auc"] == pytest.approx(float(seen.insertion_auc[alive].mean()), abs=1e-5)
        assert own["deletion"]["mean"] == pytest.approx(seen.deletion[alive].mean(dim=0).tolist(), abs=1e-5)
        assert own["overall"]["mean"] == pytest.approx(float(seen.overall[alive].mean()), abs=1e-5)
        assert own["drop"]["mean"] == pytest.approx(float(drop.drop[~drop.undefined].mean()), abs=1e-5)
        assert own["deletion"]["fractions"] == pytest.approx(seen.fractions.tolist())
    assert found["methods"]["Grad-CAM"]["undefined"] >= 1, "the class without a map is counted"
    assert found["methods"]["Grad-CAM"]["passes"] == pytest.approx(1, abs=0.05)
    assert found["methods"]["training form"]["passes"] == pytest.approx(18, abs=0.5)
    for own in found["methods"].values():
        for name, value in (("insertion", "auc"), ("deletion", "auc"), ("overall", "mean"), ("drop", "mean")):
            if name in own:
                low, high = own[name]["interval"]
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
        "has the highest over-all" in told
        and "beside the centred blob, image by image" in told
        and "counted in their column" in told
    )
    assert "1 of 6" in told and "classes of their folders" in told and "Sanity of Group-CAM, cascading, 2 images" in told
    page = (evaluated / "evaluation.md").read_text()
    assert page.count("\n| ") > 13 + 8 and "| Grad-CAM |" in page and "## Sanity check" in page and "[" in page


def test_the_report_of_a_run_takes_the_result(evaluated, pictures, checkpoint, tmp_path, capsys):
    records = tmp_path / "version_0" / "groupcam"
    put_file(records, "run.json", json.dumps({"name": "a run"}))
    assert evaluate(pictures, *QUICK, "--out", evaluated, "--run", tmp_path / "version_0", checkpoint=checkpoint) == 0
    assert record(evaluated) == json.loads((records / "evaluation.json").read_text())
    page = (records / "report.html").read_text()
    area = record(evaluated)["methods"]["Grad-CAM"]["insertion"]["auc"]
    assert f"{area:.3f}" in page and "Sanity check" in page and "randomis" in page
    assert "report.html" in capsys.readouterr().out
    assert evaluate(pictures, "--run", tmp_path / "nothing", checkpoint=checkpoint) == 1
    assert "no folder" in capsys.readouterr().err


def test_intervals_are_those_of_a_plain_loop_hold_the_mean_and_shrink():
    values = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)).double()
    widths = []
    for count in (10, 100, 400):
        own = values[:count]
        low, high = bootstrap(own, seed=4)
        assert ((low <= own.mean(dim=0)) & (own.mean(dim=0) <= high)).all()
        widths.append(float((high - low).mean()))
    assert widths[0] > 2 * widths[1] > 3 * widths[2] > 0
    assert widths[2] == pytest.approx(2 * 1.96 / 20, rel=0.15), "of a mean of 400 normal values"
    generator = torch.Generator().manual_seed(4)
    means = torch.stack([values[torch.randint(400, (400,), generator=generator)].mean(dim=0) for _ in range(2000)])
    expected = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    torch.testing.assert_close(torch.stack(bootstrap(values, seed=4)), expected, atol=1e-9, rtol=0)
    low, high = bootstrap(torch.tensor([0.25]))
    assert low == high == 0.25


def test_figures_by_hand_paired_differences_and_the_pointing_game(tmp_path):
    chosen = [method for method in METHODS if method.key in ("groupcam", "gradcam", "centre")]
    book, items = Book(tmp_path, {}), [Item(str(i), tmp_path / "gone") for i in range(5)]
    areas = {"groupcam": [0.9, 0.8, None, 0.7], "gradcam": [0.5, None, 0.6, 0.4], "centre": [0.2, 0.2, 0.2, 0.2]}
    for key, own in areas.items():
        for i, area in enumerate(own):  # and nothing for the fifth item, which could not be read
            curves = {"insertion_curve": area and [0.0, area], "deletion_curve": area and [area, 0.0]}
            score = {"insertion": area, "deletion": area and 0.1, "undefined": area is None, **curves}
            place = {"hit": i != 1, "energy": 0.25 * i, "label": "dog" if i == 3 else "cat"}
            book.add(
                {"file": str(i), "stamp": "", "method": key, **score, **place, "seconds": [9.0, 1.0, 3.0, 2.0][i], "warm": i > 0}
            )
    book.add({"fractions": [0.0, 1.0]})
    found = figures_of(items, chosen, Book(tmp_path, {}))
    group = found["Group-CAM"]
    assert (group["images"], group["undefined"]) == (4, 1) and group["insertion"]["auc"] == pytest.approx(0.8)
    assert group["insertion"]["mean"] == pytest.approx([0, 0.8]) and group["overall"]["mean"] == pytest.approx(0.7)
    assert group["to_gradcam"]["images"] == 2 and group["to_gradcam"]["mean"] == pytest.approx((0.4 + 0.3) / 2)
    assert group["to_centre"]["images"] == 3 and group["to_centre"]["mean"] == pytest.approx((0.7 + 0.6 + 0.5) / 3)
    assert group["milliseconds"] == {"median": 2000.0, "iqr": 1000.0}, "of the calls after the first"
    assert group["pointing"]["macro"] == pytest.approx((2 / 3 + 1) / 2) and group["pointing"]["micro"] == 0.75
    assert group["pointing"]["classes"] == {"cat": pytest.approx(2 / 3, abs=1e-5), "dog": 1.0}
    assert "to_gradcam" not in found["Grad-CAM"] and "milliseconds" not in found["centred blob"]
    book.add({"file": "0", "stamp": "", "method": "gradcam", "insertion": 0.0, "deletion": 0.3, "undefined": False})
    assert figures_of(items[:1], chosen, book)["Grad-CAM"]["overall"]["mean"] == -0.3, "an area of 0 is an area"
    wide, narrow = (drawn(rich_table(found, width), width) for width in (220, 80))
    low, high = group["overall"]["interval"]
    assert f".700 [{low:.3f}, {high:.3f}]".replace("0.", ".") in wide
    assert "2,000" in wide and "+.350" in wide and "83.3" in wide and "1 of 4" in wide
    assert ".700" in narrow and "2,000" in narrow and "[" not in narrow and max(map(len, narrow.splitlines())) <= 80
    assert f"| 0.700 [{low:.3f}, {high:.3f}] |" in markdown(found)
    told = reading(found)
    assert told.startswith("Group-CAM has the highest over-all (0.700); beside the centred blob")
    assert "at 95 %, surely above: Group-CAM, Grad-CAM; images without" in told
    found["Grad-CAM"]["to_centre"]["interval"][0] = -0.1
    assert "surely above: Group-CAM; not surely either: Grad-CAM" in reading(found)
    found["Grad-CAM"]["to_centre"]["interval"][1] = -0.05
    assert "surely above: Group-CAM; surely below: Grad-CAM" in reading(found)


def drawn(table, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_killed_in_the_middle_it_goes_on_and_ends_with_the_same_table(evaluated, pictures, checkpoint, tmp_path):
    out = tmp_path / "out"
    keys = ["gradcam", "training-target", "fast", "centre", "cells", "inverted"]
    words = [pictures, *QUICK, "--batch-size", 2, "--methods", ",".join(keys)]
    child = os.fork()
    if child == 0:
        try:
            scored = measuring.insertion_deletion

            def slowly(*args, **options):
                time.sleep(0.05)
                return scored(*args, **options)

            measuring.insertion_deletion = slowly
            evaluate(*words, "--out", out, checkpoint=checkpoint)
        finally:
            os._exit(9)
    until = time.monotonic() + 60
    while time.monotonic() < until and rows_in(out) < 20:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, "it was still at work"
    kept = (out / "images.jsonl").read_text()
    assert 20 <= len(kept.splitlines()) < 40 and not (out / "evaluation.json").exists()
    (out / "images.jsonl").write_text(kept.rstrip("\n")[:-30])  # and its last line torn
    assert evaluate(*words, "--out", out, checkpoint=checkpoint) == 0
    assert (out / "images.jsonl").read_text().startswith(kept.rstrip("\n")[:-30])
    rows = [(line["file"], line["method"]) for line in read_lines(out, "images") if "file" in line]
    assert len(rows) <= 6 * len(keys) + 2, "what was finished was not done again"
    other = tmp_path / "other"
    assert evaluate(*words, "--out", other, checkpoint=checkpoint) == 0
    assert without_times(record(out)) == without_times(record(other))
    whole = record(evaluated)["methods"]  # made in one batch
    for name, own in record(out)["methods"].items():
        assert own["insertion"]["auc"] == pytest.approx(whole[name]["insertion"]["auc"], abs=1e-5)


def rows_in(out):
    return len((out / "images.jsonl").read_text().splitlines()) if (out / "images.jsonl").exists() else 0


def test_ctrl_c_says_that_nothing_is_lost(pictures, checkpoint, tmp_path, monkeypatch, capsys):
    calls, scored = [], measuring.insertion_deletion

    def stopping(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return scored(*args, **options)

    monkeypatch.setattr(measuring, "insertion_deletion", stopping)
    words = [pictures, "--methods", "gradcam,centre", "--measures", "curves", "--steps", 2, "--batch-size", 3]
    assert evaluate(*words, "--out", tmp_path / "out", checkpoint=checkpoint) == 130
    assert "6 maps are kept in" in capsys.readouterr().out
    assert evaluate(*words, "--out", tmp_path / "out", checkpoint=checkpoint) == 0
    assert len(calls) == 5, "two units were there, the third was stopped, two more remained"
    assert "sanity" not in record(tmp_path / "out") and "drop" not in record(tmp_path / "out")["methods"]["Grad-CAM"]


def test_rows_of_other_settings_are_not_mixed(pictures, checkpoint, tmp_path, capsys):
    out, few = tmp_path / "out", ["--methods", "centre", "--measures", "curves", "--limit", 2]
    assert evaluate(pictures, *few, "--steps", 2, "--out", out, checkpoint=checkpoint) == 0
    assert evaluate(pictures, *few, "--steps", 3, "--out", out, checkpoint=checkpoint) == 1
    assert "steps: 2 there, 3 now" in capsys.readouterr().err
    torch.manual_seed(5)
    content = torch.load(checkpoint, weights_only=False)
    content["state_dict"]["network.linear.bias"] += 1
    torch.save(content, tmp_path / "last.ckpt")
    assert evaluate(pictures, *few, "--steps", 2, "--out", out, checkpoint=tmp_path / "last.ckpt") == 1
    assert "weights: " in capsys.readouterr().err
    content = torch.load(checkpoint, weights_only=False)
    content["hyper_parameters"]["mean"] = [0.4] * 3
    torch.save(content, tmp_path / "other.ckpt")
    assert evaluate(pictures, *few, "--steps", 2, "--out", out, checkpoint=tmp_path / "other.ckpt") == 1
    assert "preprocessing: " in capsys.readouterr().err
    put_file(tmp_path, "names", "dog\ncat\ntvmonitor\n")
    assert evaluate(pictures, *few, "--steps", 2, "--out", out, "--classes", tmp_path / "names", checkpoint=checkpoint) == 1
    assert "preprocessing: " in capsys.readouterr().err
    # More methods and images are welcome: what is there is kept.
    more = ["--methods", "centre,pixels", "--measures", "curves", "--steps", 2]
    assert evaluate(pictures, *more, "--out", out, checkpoint=checkpoint) == 0
    assert len({(line["file"], line["method"]) for line in lines(out) if "file" in line}) == 12
    assert evaluate(pictures, *few, "--steps", 3, "--out", out, "--restart", checkpoint=checkpoint) == 0
    assert lines(out)[0]["settings"]["steps"] == 3 and len([line for line in lines(out) if "file" in line]) == 2
    put_file(tmp_path / "foreign", "images.jsonl", '{"mine": 1}\n')
    assert evaluate(pictures, *few, "--out", tmp_path / "foreign", checkpoint=checkpoint) == 1
    assert "was not written by this command" in capsys.readouterr().err


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
    words = [pictures, "--methods", "training,gradcam", "--steps", 5, "--dry-run", "--out", out]
    assert evaluate(*words, checkpoint=checkpoint) == 0
    told = capsys.readouterr().out
    assert not out.exists() and "Nothing is written" in told and "6 of 6" in told
    passes = int(told.split(" passes, about")[0].split()[-1].replace(",", ""))
    assert passes == pytest.approx(6 * (18 + 12 + 1 + 12) + 8 * 6 * 19, rel=0.03)
    assert evaluate(*words, "--author-compatible", checkpoint=checkpoint) == 2
    assert "fixes --steps" in capsys.readouterr().err


def test_a_file_that_cannot_be_read_is_named_and_left_out(pictures, checkpoint, tmp_path, capsys):
    draw(tmp_path / "in" / "one.png", 1)
    (tmp_path / "in" / "broken.png").write_bytes(b"no image")
    words = [tmp_path / "in", "--methods", "gradcam", "--measures", "curves", "--steps", 2, "--out", tmp_path / "out"]
    for _ in range(2):  # the second time nothing is left to do
        assert evaluate(*words, checkpoint=checkpoint) == 1
        told = capsys.readouterr().out
        assert "not read:" in told and "broken.png" in told and "first choice" in told
    assert record(tmp_path / "out")["methods"]["Grad-CAM"]["images"] == 1
    assert len([line for line in lines(tmp_path / "out") if "file" in line]) == 1
    (tmp_path / "in" / "one.png").unlink()
    assert evaluate(*words, checkpoint=checkpoint) == 1
    assert "none of the 1 files is an image" in capsys.readouterr().err


def test_other_libraries_run_beside_ours(pictures, checkpoint, tmp_path):
    pytest.importorskip("captum")
    pytest.importorskip("pytorch_grad_cam")
    words = [pictures, "--methods", "gradcam", "--compare", "--measures", "curves", "--steps", 2, "--limit", 2]
    assert evaluate(*words, "--out", tmp_path / "out", checkpoint=checkpoint) == 1
    found = record(tmp_path / "out")
    costs = {name: round(own["passes"]) for name, own in found["methods"].items() if own["kind"] == "peer"}
    # A pass for every channel; forward and backward, twice as dear as forward, for every step or copy.
    assert costs == {"Score-CAM": 17, "Grad-CAM++": 3, "integrated gradients": 100, "SmoothGrad": 50}
    assert "it has no nn.ReLU module" in found["left_out"]["guided backprop"], "which captum would pass over in silence"


def test_other_libraries_maps_are_theirs():
    captum = pytest.importorskip("captum.attr")
    pytest.importorskip("pytorch_grad_cam")
    torch.manual_seed(1)
    network = PooledNet().eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels, known = torch.tensor([1, 2]), {method.key: method for method in METHODS}
    setup, before = methods.Setup.of(network, images[:1]), snapshot(network)
    made = {key: known[key].make(setup) for key in ("integrated", "smoothgrad", "guided", "gradcam++", "scorecam")}
    found = {key: maps(images, labels, [3, 4]) for key, maps in made.items()}
    assert_same(before, snapshot(network))
    for maps in found.values():
        assert maps.shape == (2, 32, 32) and float(maps.amin()) == 0 and maps.dtype == torch.float32
    plain = captum.IntegratedGradients(network).attribute(images, target=labels, n_steps=50).abs().sum(dim=1)
    torch.testing.assert_close(found["integrated"], rescaled(plain), atol=1e-4, rtol=0)
    torch.testing.assert_close(found["guided"], rescaled(guided_by_hand(network, images, labels)), atol=1e-5, rtol=0)
    again = made["smoothgrad"](images.flip(0), labels.flip(0), [4, 3]).flip(0)
    torch.testing.assert_close(found["smoothgrad"], again, atol=1e-5, rtol=0)


def guided_by_hand(network, images, labels):
    from groupcam_aug.guided import _GuidedReLUs

    pixels = images.clone().requires_grad_()
    with _GuidedReLUs("net"):
        value = network(pixels).gather(1, labels[:, None]).sum()
    return torch.autograd.grad(value, pixels)[0].abs().sum(dim=1)


def rescaled(maps):
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return ((maps - low) / (high - low)).detach()


def test_missing_libraries_are_named_with_the_way_to_get_them(pictures, checkpoint, tmp_path, monkeypatch, capsys):
    for name in ("captum", "captum.attr", "pytorch_grad_cam"):
        monkeypatch.setitem(sys.modules, name, None)
    words = [pictures, "--measures", "curves", "--steps", 2, "--limit", 2, "--out", tmp_path / "out"]
    assert evaluate(*words, "--methods", "gradcam", "--compare", checkpoint=checkpoint) == 1, "asked for, not done"
    told, found = capsys.readouterr().out, record(tmp_path / "out")
    assert set(found["methods"]) == {"Grad-CAM"} and len(found["left_out"]) == 5
    assert "pip install 'groupcam-aug[compare]'" in found["left_out"]["Score-CAM"] and "left out: SmoothGrad" in told
    assert evaluate(*words, "--methods", "scorecam", checkpoint=checkpoint) == 1
    assert "scorecam: pytorch_grad_cam cannot be imported" in capsys.readouterr().err


def test_a_method_that_cannot_be_used_on_this_network_is_left_out(pictures, tmp_path, capsys):
    pytest.importorskip("captum")
    pytest.importorskip("pytorch_grad_cam")
    from safetensors.torch import save_file

    from groupcam_aug.recipes.networks import build_network

    torch.manual_seed(0)
    save_file(build_network("timm/test_vit", 3).state_dict(), tmp_path / "vit.safetensors")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    words = [pictures, "--model", "timm/test_vit", "--weights", tmp_path / "vit.safetensors", "--classes", tmp_path / "names.txt"]
    words += ["--methods", "gradcam,gradcam++,guided,fast", "--measures", "curves", "--steps", 2, "--limit", 2]
    assert main(["evaluate", *map(str, words), "--device", "cpu", "--out", str(tmp_path / "out")]) == 1
    found = record(tmp_path / "out")
    assert set(found["methods"]) == {"Grad-CAM", "Grad-CAM++", "fast"} and "it uses GELU" in found["left_out"]["guided backprop"]
    assert "left out: guided backprop" in capsys.readouterr().out


XML = """<annotation><filename>{name}.jpg</filename><size><width>48</width><height>40</height><depth>3</depth></size>{objects}</annotation>"""
OBJECT = """<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


def test_voc_through_torchvision(checkpoint, tmp_path, capsys):
    base = tmp_path / "VOCdevkit" / "VOC2007"
    things = {
        "000001": [("dog", 0, 1, 1, 48, 40), ("tvmonitor", 0, 1, 1, 2, 2)],  # the whole picture; the first corner
        "000002": [("dog", 1, 1, 1, 48, 40), ("bird", 0, 5, 5, 9, 9)],  # difficult; no class of the network
        "000003": [("tvmonitor", 0, 1, 1, 48, 40), ("tvmonitor", 1, 3, 3, 4, 4)],
    }
    for i, (name, objects) in enumerate(things.items()):
        draw(base / "JPEGImages" / f"{name}.jpg", i)
        (base / "Annotations").mkdir(exist_ok=True)
        text = XML.format(name=name, objects="".join(OBJECT.format(*thing) for thing in objects))
        (base / "Annotations" / f"{name}.xml").write_text(text)
    put_file(base / "ImageSets" / "Main", "test.txt", "\n".join(things) + "\n")
    words = ["--voc", tmp_path, "--tolerance", 3, "--methods", "gradcam,centre,inverted", "--out", tmp_path / "out"]
    assert evaluate(*words, checkpoint=checkpoint) == 0
    found, told = record(tmp_path / "out"), capsys.readouterr().out
    assert found["methods"]["centred blob"]["pointing"]["classes"] == {"dog": 1.0, "tvmonitor": 0.5}
    assert found["methods"]["centred blob"]["pointing"]["macro"] == 0.75
    assert found["methods"]["centred blob"]["pointing"]["micro"] == pytest.approx(2 / 3, abs=1e-5)
    assert found["methods"]["centred blob"]["energy"]["mean"] == pytest.approx(2 / 3, abs=0.01)
    assert "pointing %" in told and "insertion " not in told and "2 images, 3 classes in them (1 more" in told
    assert evaluate(*words, "--measures", "curves,pointing", "--restart", "--steps", 2, checkpoint=checkpoint) == 0
    assert "insertion " in capsys.readouterr().out
    assert evaluate("--voc", tmp_path, "--year", 2012, checkpoint=checkpoint) == 1
    assert "no VOC 2012 'val'" in capsys.readouterr().err


def test_coco_through_torchvision_and_a_map_of_classes(checkpoint, tmp_path, monkeypatch, capsys):
    draw(tmp_path / "val" / "9.jpg", 1)
    boxes = [(18, [0, 0, 48, 40], 0), (18, [1, 1, 2, 2], 1), (1, [0, 0, 4, 4], 1), (2, [20, 16, 8, 8], 0), (3, [9, 9, 9, 9], 1)]
    annotations = [
        {"id": i, "image_id": 9, "category_id": kind, "bbox": box, "iscrowd": crowd, "area": 1.0, "segmentation": []}
        for i, (kind, box, crowd) in enumerate(boxes)
    ]
    content = {
        "images": [{"id": 9, "file_name": "9.jpg", "width": 48, "height": 40}],
        "annotations": annotations,
        "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}, {"id": 2, "name": "tv"}, {"id": 3, "name": "cat"}],
    }
    put_file(tmp_path, "instances.json", json.dumps(content))
    words = ["--coco", tmp_path / "val", tmp_path / "instances.json", "--methods", "centre", "--out", tmp_path / "out"]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pycocotools", None)
        patch.setitem(sys.modules, "pycocotools.coco", None)
        assert evaluate(*words, checkpoint=checkpoint) == 1
        assert "pip install pycocotools" in capsys.readouterr().err
    try:
        import pycocotools.coco  # noqa: F401
    except ModuleNotFoundError:
        stand_in = types.ModuleType("pycocotools.coco")
        stand_in.COCO = StandIn
        monkeypatch.setitem(sys.modules, "pycocotools", types.ModuleType("pycocotools"))
        monkeypatch.setitem(sys.modules, "pycocotools.coco", stand_in)
    assert evaluate(*words, checkpoint=checkpoint) == 0
    assert record(tmp_path / "out")["methods"]["centred blob"]["pointing"]["classes"] == {"dog": 1.0}
    put_file(tmp_path, "map.json", json.dumps({"tv": ["tvmonitor", 0]}))
    words += ["--class-map", tmp_path / "map.json"]
    assert evaluate(*words, checkpoint=checkpoint) == 1 and "classes: " in capsys.readouterr().err
    assert evaluate(*words, "--restart", checkpoint=checkpoint) == 0
    assert record(tmp_path / "out")["methods"]["centred blob"]["pointing"]["classes"] == {"dog": 1.0, "tv": 1.0}
    assert {line["class"] for line in lines(tmp_path / "out") if line.get("label") == "tv"} <= {0, 2}
    put_file(tmp_path, "map.json", json.dumps({"tv": "television"}))
    assert evaluate(*words, checkpoint=checkpoint) == 1
    assert "'tv' maps to 'television', which is no class" in capsys.readouterr().err
    assert evaluate("--coco", tmp_path / "val", "nowhere.json", checkpoint=checkpoint) == 1
    assert "'nowhere.json' is not there" in capsys.readouterr().err


class StandIn:
    """What of pycocotools.coco.COCO torchvision and we use."""

    def __init__(self, path):
        content = json.loads(Path(path).read_text())
        self.imgs = {image["id"]: image for image in content["images"]}
        self.cats = {category["id"]: category for category in content["categories"]}
        self.anns = {thing["id"]: thing for thing in content["annotations"]}

    def getAnnIds(self, imgIds):
        return [number for number, thing in self.anns.items() if thing["image_id"] in imgIds]

    def loadAnns(self, numbers):
        return [self.anns[number] for number in numbers]


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


def test_a_book_is_read_as_it_was_written(tmp_path):
    book = Book(tmp_path, {"a": (1, 2)})
    book.add({"file": "x", "method": "m", "insertion": float("nan")})
    add_line(tmp_path, "images", {"file": "x", "method": "m", "insertion": 1.0})
    assert Book(tmp_path, {"a": [1, 2]}).rows["x", "m"]["insertion"] == 1.0, "the later row holds"
    with pytest.raises(ValueError, match=r"a: \[1, 2\] there, None now; b: None there, 1 now"):
        Book(tmp_path, {"b": 1})


def test_rows_of_a_picture_that_was_replaced_are_made_again(checkpoint, tmp_path):
    words = [tmp_path / "in", "--methods", "gradcam", "--measures", "curves,sanity", "--steps", 2, "--out", tmp_path / "out"]
    draw(tmp_path / "in" / "a.png", 1)
    draw(tmp_path / "in" / "b.png", 2)
    assert evaluate(*words, checkpoint=checkpoint) == 0
    before = lines(tmp_path / "out")
    draw(tmp_path / "in" / "a.png", 3, size=(64, 60))
    assert evaluate(*words, checkpoint=checkpoint) == 0
    fresh = [*words[:-1], tmp_path / "fresh"]
    assert evaluate(*fresh, checkpoint=checkpoint) == 0
    assert without_times(record(tmp_path / "out"))["methods"] == without_times(record(tmp_path / "fresh"))["methods"]
    assert record(tmp_path / "out")["sanity"] == record(tmp_path / "fresh")["sanity"]
    again = [line for line in lines(tmp_path / "out")[len(before) :] if "file" in line]
    assert "a.png" in {Path(line["file"]).name for line in again}
    draw(tmp_path / "in" / "b.png", 4)
    words[2] = "centre"
    assert evaluate(*words, checkpoint=checkpoint) == 0
    found = record(tmp_path / "out")["methods"]["centred blob"]
    assert found["images"] == 2 and found.get("to_gradcam", {"images": 1})["images"] == 1, "b.png has no row of Grad-CAM now"


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
    call = [sys.executable, "-m", "groupcam_aug.recipes.cli", "evaluate", tmp_path / "in", "--ckpt_path", checkpoint, *words]
    done = subprocess.run(call, env=environment, capture_output=True, check=False)
    assert done.returncode == 1 and "not read: " in done.stdout.decode() and b"Traceback" not in done.stderr


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
