"""The measuring: stopped, gone on, repeated for what has changed, and without what cannot be measured."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from evaluations import NAMES, QUICK, draw, evaluate, lines, record, without_times
from models import PooledNet

from groupcam_aug.files import read_lines
from groupcam_aug.recipes.cli import main
from groupcam_aug.recipes.evaluation import runner


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_killed_in_the_middle_it_goes_on_and_ends_with_the_same_table(evaluated, pictures, checkpoint, tmp_path):
    out = tmp_path / "out"
    keys = ["gradcam", "target-blur", "fast", "centre", "cells", "inverted"]
    words = [pictures, *QUICK, "--batch-size", 2, "--methods", ",".join(keys)]
    child = os.fork()
    if child == 0:
        try:
            scored = runner.insertion_deletion

            def slowly(*args, **options):
                time.sleep(0.05)
                return scored(*args, **options)

            runner.insertion_deletion = slowly
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
    calls, scored = [], runner.insertion_deletion

    def stopping(*args, **options):
        calls.append(1)
        if len(calls) == 2 + 3:  # two to time a pass
            raise KeyboardInterrupt
        return scored(*args, **options)

    monkeypatch.setattr(runner, "insertion_deletion", stopping)
    words = [pictures, "--methods", "gradcam,centre", "--measures", "curves", "--steps", 2, "--batch-size", 3]
    assert evaluate(*words, "--out", tmp_path / "out", checkpoint=checkpoint) == 130
    assert "6 maps are kept in" in capsys.readouterr().out
    assert evaluate(*words, "--out", tmp_path / "out", checkpoint=checkpoint) == 0
    assert len(calls) == 2 + 3 + 2 + 2, "two units were there, the third was stopped, two more remained"
    assert "sanity" not in record(tmp_path / "out") and "drop" not in record(tmp_path / "out")["methods"]["Grad-CAM"]


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


def test_a_method_that_cannot_be_used_on_this_network_is_left_out(pictures, tmp_path, capsys):
    pytest.importorskip("captum")
    pytest.importorskip("pytorch_grad_cam")
    from safetensors.torch import save_file

    from groupcam_aug.recipes.networks import build_network

    torch.manual_seed(0)
    save_file(build_network("timm/test_vit", 3).state_dict(), tmp_path / "vit.safetensors")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    words = [
        pictures,
        "--model",
        "timm/test_vit",
        "--checkpoint",
        tmp_path / "vit.safetensors",
        "--classes",
        tmp_path / "names.txt",
    ]
    words += ["--methods", "gradcam,gradcam++,guided,fast", "--measures", "curves", "--steps", 2, "--limit", 2]
    assert main(["evaluate", *map(str, words), "--device", "cpu", "--out", str(tmp_path / "out")]) == 1
    found = record(tmp_path / "out")
    assert set(found["methods"]) == {"Grad-CAM", "Grad-CAM++", "fast"} and "it uses GELU" in found["left_out"]["guided backprop"]
    assert "left out: guided backprop" in capsys.readouterr().out


def test_what_differentiates_to_the_pixels_can_be_counted():
    """As other libraries do; the module hooks of torch's counter would raise there."""
    network, pixels = PooledNet().eval(), torch.randn(1, 3, 24, 24, requires_grad=True)
    with runner._flop_counter() as forward, torch.no_grad():
        network(pixels)
    with runner._flop_counter() as both:
        torch.autograd.grad(network(pixels)[0, 1], pixels)
    assert 1.5 < both.get_total_flops() / forward.get_total_flops() <= 3


def test_a_network_that_returns_no_numbers_is_refused_before_anything_is_written(pictures, checkpoint, tmp_path, capsys):
    content = torch.load(checkpoint, weights_only=True)
    name = next(iter(content["state_dict"]))
    content["state_dict"][name].fill_(float("inf"))
    torch.save(content, tmp_path / "inf.ckpt")
    for more in ([], ["--dry-run"]):
        assert evaluate(pictures, *QUICK, *more, "--out", tmp_path / "out", checkpoint=tmp_path / "inf.ckpt") == 1
        told = " ".join(capsys.readouterr().err.split())
        assert f"'{name.removeprefix('network.')}' of " in told and "the network returns no finite numbers for " in told
    assert not (tmp_path / "out").exists()


def test_an_image_without_finite_outputs_is_named(pictures):
    net = PooledNet().eval()
    items = [runner.Item(str(i), Path(f"{i}.png"), classes=(0,)) for i in range(2)]
    images = torch.rand(2, 3, 24, 20)
    classes, right = runner._classes(net, items, images)
    with torch.no_grad():
        assert classes.tolist() == [0, 0] and right == (net(images).argmax(dim=1) == 0).tolist()
    images[1] = float("nan")
    with pytest.raises(ValueError, match=r"no finite numbers for 1.png: .*take this image away"):
        runner._classes(net, items, images)
