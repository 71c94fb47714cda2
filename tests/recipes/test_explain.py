"""The explain command as one types it, on files written for the test."""

import json

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from lit import SILENT
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import squeezenet1_1
from torchvision.transforms import v2

from groupcam_aug import GradCAM
from groupcam_aug.recipes import explain as explaining
from groupcam_aug.recipes.classifier import Classifier
from groupcam_aug.recipes.cli import main
from groupcam_aug.recipes.data import eval_transform, normalised
from groupcam_aug.recipes.map_sheet import percent
from groupcam_aug.recipes.model_loading import LoadedModel, read_images


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.safetensors"
    save_file(squeezenet1_1().state_dict(), path)
    return path


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "in"
    for name, seed in (("a/one.png", 0), ("b/one.png", 1), ("b/two.jpg", 2)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (90, 70, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
        Image.fromarray(pixels.numpy()).save(path)
    return folder


def explain(*words, checkpoint):
    return main(
        ["explain", *map(str, words), "--model", "torchvision/squeezenet1_1", "--checkpoint", str(checkpoint), "--size", "64"]
    )


def small_checkpoint(folder, names):
    """As `fit` leaves it."""
    torch.manual_seed(0)
    network = {"class_path": "groupcam_aug.recipes.networks.CIFARResNet", "init_args": {"depth": 8, "width": 4}}
    module = Classifier(network, num_classes=len(names), class_names=names, mean=[0.5] * 3, std=[0.5] * 3, size=32)
    trainer = pl.Trainer(**SILENT, max_steps=0)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


def written(out):
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("[!.]*") if path.is_file())


class Blind:
    """In place of GroupCAM: no image has a map."""

    layer, layer_shape = "features.12", (512, 3, 3)
    rectified = frozenset()

    def __init__(self, *arguments, **options):
        pass

    def __call__(self, images, classes):
        return torch.zeros(len(images), *images.shape[-2:])


def test_folder_gives_a_picture_each_and_a_sheet(pictures, checkpoint, tmp_path, capsys):
    assert explain(pictures, "--top", 2, "--groups", 4, "--out", tmp_path / "out", checkpoint=checkpoint) == 0
    assert written(tmp_path / "out") == ["a/one.png", "b/one.png", "b/two.png", "maps.json", "sheet_1.png"]
    single, sheet = Image.open(tmp_path / "out" / "a" / "one.png"), Image.open(tmp_path / "out" / "sheet_1.png")
    assert single.width > 3 * 224 and sheet.height > 3 * 64
    assert "wrote 3 pictures and maps.json" in capsys.readouterr().err


def test_maps_json_says_what_is_in_the_pictures(pictures, checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("groupcam_aug.recipes.explain_methods.GroupCAM", Blind)
    out = tmp_path / "out"
    assert explain(pictures / "b", "--top", 2, "--groups", 4, "--mask-at", "target", "--out", out, checkpoint=checkpoint) == 0
    record = json.loads((out / "maps.json").read_text())
    assert {key: record[key] for key in ("method", "layer", "groups", "mask_at")} == {
        "method": "groupcam",
        "layer": "features.12",
        "groups": 4,
        "mask_at": "target",
    }
    assert [image["file"] for image in record["images"]] == ["one.png", "two.png"]
    first, second = record["images"][0]["maps"]
    assert first["probability"] >= second["probability"] and first["class"] != second["class"] and first["empty"]
    told = capsys.readouterr().err
    assert "2 images, Group-CAM" in told and "wrote 2 pictures" in told and "4 maps are empty" in told
    assert explain(pictures / "a", "--groups", 4, "--out", tmp_path / "one", checkpoint=checkpoint) == 0
    told = capsys.readouterr().err
    assert "1 image, Group-CAM" in told and "wrote 1 picture and" in told and "1 map is empty" in told
    assert written(tmp_path / "one") == ["maps.json", "one.png"]  # no sheet of one


def test_probabilities_and_maps_of_several_labels(pictures, checkpoint, tmp_path):
    words = [pictures / "b", "--style", "raw", "--groups", 4, "--mask-at", "target", "--target", "goldfish"]
    for how in ("softmax", "sigmoid"):
        assert explain(*words, "--activation", how, "--out", tmp_path / how, checkpoint=checkpoint) == 0
    one, two = (
        [image["maps"][0]["probability"] for image in json.loads((tmp_path / how / "maps.json").read_text())["images"]]
        for how in ("softmax", "sigmoid")
    )
    assert max(one) < 0.01 and min(two) > 0.2, "of 1,000 classes one; of a yes or no"
    assert not np.allclose(np.load(tmp_path / "softmax" / "one.npy"), np.load(tmp_path / "sigmoid" / "one.npy"), atol=1e-4)


@pytest.mark.parametrize("names", [["a", "b"], ["goldfish", "shark"]])
def test_a_first_choice_that_is_not_its_folder_is_marked(pictures, tmp_path, monkeypatch, names):
    made = []
    monkeypatch.setattr(explaining, "panels", lambda *_, captions, **__: made.extend(captions) or Image.new("L", (1, 1)))
    file = small_checkpoint(tmp_path, names)
    assert main(["explain", str(pictures), "--checkpoint", str(file), "--out", str(tmp_path / "out")]) == 0
    labels = [label for _, label in made]
    choices, marks = [label.split()[0] for label in labels], [label.partition(", not ")[2] for label in labels]
    assert marks == [folder if folder in names and folder != choice else "" for folder, choice in zip("abb", choices)]
    assert any(marks) == (names == ["a", "b"])


def test_raw_maps_are_those_of_the_library(pictures, checkpoint, tmp_path):
    out = tmp_path / "out"
    arguments = ["--style", "raw", "--method", "gradcam", "--target", "great white shark", "--out", out]
    assert explain(pictures / "a" / "one.png", *arguments, checkpoint=checkpoint) == 0
    found = np.load(out / "one.npy")
    torch.manual_seed(0)
    net = squeezenet1_1()
    finish = v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    )
    image = finish(eval_transform(64)(Image.open(pictures / "a" / "one.png").convert("RGB")))
    np.testing.assert_allclose(found, GradCAM(net)(image[None].as_subclass(torch.Tensor), 2).numpy(), atol=1e-6)
    assert found.shape == (1, 64, 64)
    top = ["--style", "raw", "--method", "gradcam", "--top", 2, "--out", tmp_path / "top"]
    assert explain(pictures / "a" / "one.png", *top, checkpoint=checkpoint) == 0
    batch = image[None].as_subclass(torch.Tensor)
    first, second = net.eval()(batch)[0].topk(2).indices.tolist()
    expected = torch.cat([GradCAM(net)(batch, first), GradCAM(net)(batch, second)])
    np.testing.assert_allclose(np.load(tmp_path / "top" / "one.npy"), expected.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    "style, name", [("overlay", "one.png"), ("raw", "one.npy"), ("overlay", "sheet_1.png"), ("raw", "maps.json")]
)
def test_other_files_of_the_users_are_not_overwritten_but_its_own_are(pictures, checkpoint, tmp_path, capsys, style, name):
    out = tmp_path / "holiday"
    (pictures / "b" / "two.jpg").rename(pictures / "a" / "two.jpg")
    words = [pictures / "a", "--method", "gradcam", "--style", style, "--out", out]
    out.mkdir()
    (out / name).write_bytes(b"the user's")
    assert explain(*words, checkpoint=checkpoint) == 1
    assert f"{name}' is there and would be overwritten: give another folder by --out" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == [name] and (out / name).read_bytes() == b"the user's"
    (out / name).unlink()
    assert explain(*words, checkpoint=checkpoint) == explain(*words, checkpoint=checkpoint) == 0, "its own may be"


@pytest.mark.parametrize("style, method", [("heatmap", "groupcam"), ("overlay", "guided-gradcam")])
def test_styles_and_methods(pictures, checkpoint, tmp_path, style, method):
    out = tmp_path / "out"
    arguments = ["--style", style, "--method", method, "--out", out]
    arguments += ["--groups", 4, "--mask-at", "target"] if method == "groupcam" else []
    assert explain(pictures / "b", *arguments, checkpoint=checkpoint) == 0
    assert written(out) == ["maps.json", "one.png", "sheet_1.png", "two.png"]
    arguments = ["--groups", 4, "--mask-at", "target", "--out", tmp_path / "other"]
    assert explain(pictures / "b", *arguments, checkpoint=checkpoint) == 0
    drawn, other = (np.asarray(Image.open(folder / "two.png")).astype(int) for folder in (out, tmp_path / "other"))
    assert drawn.shape == other.shape and abs(drawn - other).mean() > 5, "another picture than Group-CAM laid over"


def shown_panels(monkeypatch):
    """What the pictures of single images are made from."""
    made = []

    def noted(rows, titles=None, labels=None, *, captions, **options):
        made.append((rows, titles, captions))
        return Image.new("L", (1, 1))

    monkeypatch.setattr(explaining, "panels", noted)
    return made


def test_several_targets_stand_side_by_side(pictures, checkpoint, tmp_path, capsys):
    one = pictures / "a" / "one.png"
    both = ["--style", "raw", "--method", "gradcam", "--target", "tench", "--target", 2]
    assert explain(one, *both, "--out", tmp_path / "both", checkpoint=checkpoint) == 0
    maps = np.load(tmp_path / "both" / "one.npy")
    for i, name in enumerate(("tench", "great white shark")):
        assert explain(one, *both[:4], "--target", name, "--out", tmp_path / name, checkpoint=checkpoint) == 0
        np.testing.assert_array_equal(maps[i], np.load(tmp_path / name / "one.npy")[0])
    assert maps.shape[0] == 2 and np.abs(maps[0] - maps[1]).max() > 0.01
    record = json.loads((tmp_path / "both" / "maps.json").read_text())["images"][0]["maps"]
    assert [entry["class"] for entry in record] == ["tench", "great white shark"]
    assert explain(one, "--target", "tench", "--target", 0, "--out", tmp_path / "out", checkpoint=checkpoint) == 1
    assert "--target 0 and --target tench are one class: give it once" in capsys.readouterr().err
    assert explain(one, "--target", "tench", "--top", 2, checkpoint=checkpoint) == 2
    assert "--target several times gives several classes" in capsys.readouterr().err


def test_what_speaks_against_the_class_says_so(pictures, checkpoint, tmp_path, monkeypatch):
    one, made = pictures / "a" / "one.png", shown_panels(monkeypatch)
    for words in (["--against"], ["--method", "gradcam-against", "--style", "raw"]):
        out = tmp_path / words[0].strip("-")
        assert explain(one, *words, "--target", "tench", "--target", 2, "--out", out, checkpoint=checkpoint) == 0
    ((_, titles, ((_, first, second),)),) = made
    assert titles == ["", "Grad-CAM against", "Grad-CAM against"]
    assert first.startswith("against tench ") and second.startswith("against great white shark ") and first.endswith("%")
    assert json.loads((tmp_path / "against" / "maps.json").read_text())["method"] == "gradcam-against"
    torch.manual_seed(0)
    net = squeezenet1_1()
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    finish = v2.Compose([eval_transform(64), normalised(mean, std)])
    model = LoadedModel(net, lambda picture: finish(picture).as_subclass(torch.Tensor), mean, std, [], "")
    ((_, images),) = read_images([one], model, 1, {})
    expected = torch.cat([GradCAM(net, sign=-1)(images, index) for index in (0, 2)])
    np.testing.assert_allclose(np.load(tmp_path / "method" / "one.npy"), expected.numpy(), atol=1e-6)


def test_methods_have_a_column_each_and_classes_a_row(pictures, checkpoint, tmp_path, monkeypatch, capsys):
    words = ["--methods", "gradcam,groupcam,guided-backprop,centre", "--groups", 4, "--mask-at", "target", "--top", 2]
    assert explain(pictures, *words, "--out", tmp_path / "out", checkpoint=checkpoint) == 0
    record = json.loads((tmp_path / "out" / "maps.json").read_text())
    assert record["methods"] == words[1].split(",") and record["groups"] == 4 and record["layer"] == "features.12"
    entries = record["images"][0]["maps"]
    assert [entry["method"] for entry in entries] == record["methods"] * 2
    assert len({entry["class"] for entry in entries[:4]}) == 1 and entries[0]["class"] != entries[4]["class"]
    assert written(tmp_path / "out") == ["a/one.png", "b/one.png", "b/two.png", "maps.json", "sheet_1.png"]
    picture, page = Image.open(tmp_path / "out" / "a" / "one.png"), Image.open(tmp_path / "out" / "sheet_1.png")
    assert picture.width > 5 * 224 and 2 * 224 < picture.height < 3 * 224 and page.width > 5 * 160 and page.height > 6 * 64
    made = shown_panels(monkeypatch)
    assert explain(pictures / "a", *words, "--out", tmp_path / "again", checkpoint=checkpoint) == 0
    ((rows, titles, captions),) = made
    assert titles == ["", "Grad-CAM", "Group-CAM", "guided backpropagation", "centred blob"]
    assert [len(row) for row in rows] == [5, 5] and len(set(captions[0][1:])) == len(set(captions[1][1:])) == 1
    assert captions[0][1] == f"{entries[0]['class']} {percent(entries[0]['probability'])}"
    monkeypatch.undo()
    monkeypatch.setattr("groupcam_aug.recipes.explain.ON_SHEET", 4)  # two images of two rows
    assert explain(pictures, *words, "--out", tmp_path / "pages", checkpoint=checkpoint) == 0
    assert (tmp_path / "pages" / "sheet_2.png").exists() and not (tmp_path / "pages" / "sheet_3.png").exists()
    assert explain(pictures, "--method", "guided-backprop", "--layer", "features.3", checkpoint=checkpoint) == 1
    assert "guided-backprop takes its maps from no layer: leave it out" in capsys.readouterr().err


def test_curves_lie_beside_the_pictures(pictures, checkpoint, tmp_path, capsys):
    words = ["--method", "guided-backprop", "--curve", "--out"]
    assert explain(pictures / "b", *words, tmp_path / "out", checkpoint=checkpoint) == 0
    assert written(tmp_path / "out") == [*("maps.json", "one.png", "one_curves.png", "sheet_1.png", "two.png", "two_curves.png")]
    records = json.loads((tmp_path / "out" / "maps.json").read_text())["images"]
    for record in records:
        assert record["curves"] == record["file"].replace(".png", "_curves.png")
        for entry in record["maps"]:
            assert entry["empty"] or (0 < entry["insertion"] < 1 and 0 < entry["deletion"] < 1)
    assert any(not entry["empty"] for record in records for entry in record["maps"])
    (pictures / "b" / "two.jpg").rename(pictures / "b" / "one_curves.jpg")
    assert explain(pictures / "b", *words, tmp_path / "other", checkpoint=checkpoint) == 1
    assert "'one_curves.png' would be the name of two pictures" in " ".join(capsys.readouterr().err.split())


def test_no_image_is_overwritten_and_none_of_ours_is_taken_for_one(pictures, checkpoint, tmp_path, monkeypatch, capsys):
    quick = ["--method", "gradcam"]
    before = (pictures / "a" / "one.png").read_bytes()
    assert explain(pictures / "a" / "one.png", *quick, "--out", pictures / "a", checkpoint=checkpoint) == 1
    assert "would be overwritten" in capsys.readouterr().err and (pictures / "a" / "one.png").read_bytes() == before
    Image.open(pictures / "a" / "one.png").convert("RGB").save(pictures / "a" / "one.jpg")  # whose map would be one.png
    words = [pictures / "a" / "one.jpg", *quick, "--out", pictures / "a"]
    assert explain(*words, checkpoint=checkpoint) == 1 and (pictures / "a" / "one.png").read_bytes() == before
    assert explain(pictures / "a", *quick, "--out", pictures / "a", checkpoint=checkpoint) == 1
    assert "is the folder to write to" in capsys.readouterr().err
    (pictures / "a" / "one.jpg").unlink()
    (pictures / "a" / "one.png").rename(pictures / "a" / "sheet_1.png")
    words = [pictures / "a" / "sheet_1.png", pictures / "b" / "two.jpg", *quick, "--out", pictures / "a"]
    assert explain(*words, checkpoint=checkpoint) == 1 and (pictures / "a" / "sheet_1.png").read_bytes() == before
    (pictures / "sheet_1.png").write_bytes(before)
    (pictures / "b" / "two.png").write_bytes(before)  # beside two.jpg
    assert explain(pictures, *quick, "--out", tmp_path / "out", checkpoint=checkpoint) == 0
    names = ["a/sheet_1.png", "b/one.png", "b/two.jpg.png", "b/two.png.png", "maps.json", "sheet_1.png", "sheet_1.png.png"]
    assert written(tmp_path / "out") == names
    (pictures / "sheet_1.png").unlink()
    (pictures / "b" / "two.png").unlink()
    monkeypatch.chdir(pictures)
    for _ in range(2):
        assert explain(".", *quick, checkpoint=checkpoint) == 0
        assert "wrote 3 pictures" in capsys.readouterr().err
    assert explain("explained", *quick, "--out", tmp_path / "again", checkpoint=checkpoint) == 0, "asked for, they are images"


def test_sheets_have_so_many_rows(pictures, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("groupcam_aug.recipes.explain.ON_SHEET", 2)
    quick = ["--method", "gradcam"]
    assert explain(pictures, *quick, "--batch-size", 1, "--out", tmp_path / "two", checkpoint=checkpoint) == 0
    assert explain(pictures, *quick, "--out", tmp_path / "again", checkpoint=checkpoint) == 0
    monkeypatch.undo()
    assert explain(pictures, *quick, "--out", tmp_path / "all", checkpoint=checkpoint) == 0
    first, second, every = (Image.open(tmp_path / name) for name in ("two/sheet_1.png", "two/sheet_2.png", "all/sheet_1.png"))
    row = every.height - first.height
    assert row > 100 and first.height - second.height == row and first.width == every.width
    assert not (tmp_path / "all" / "sheet_2.png").exists()
    for name in ("sheet_1.png", "sheet_2.png"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_unreadable_files_are_reported_skipped_and_fail_the_command(pictures, checkpoint, tmp_path, capsys):
    (pictures / "broken.png").write_bytes(b"no image")
    torn = pictures / "torn.png"  # the second half never arrived: Pillow raises SyntaxError
    pixels = torch.randint(0, 256, (300, 300, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(9))
    Image.fromarray(pixels.numpy()).save(torn)
    whole = torn.read_bytes()
    torn.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    assert explain(pictures, "--groups", 4, "--out", tmp_path / "out", checkpoint=checkpoint) == 1
    told = capsys.readouterr().err
    assert "not read:" in told and "broken.png" in told and "torn.png" in told and "wrote 3 pictures" in told


def test_a_checkpoint_of_fit_is_enough(pictures, tmp_path):
    file = small_checkpoint(tmp_path, ["cat", "dog", "owl"])
    out = tmp_path / "out"
    arguments = ["explain", pictures, "--checkpoint", file, "--target", "owl", "--out", out]
    assert main([*map(str, arguments)]) == 0
    assert written(out) == ["a/one.png", "b/one.png", "b/two.png", "maps.json", "sheet_1.png"]
    assert json.loads((out / "maps.json").read_text())["groups"] == 16, "as many as there are channels"


@pytest.mark.parametrize(
    "words, message",
    [
        (["nowhere.png", "--model", "torchvision/squeezenet1_1"], "needs its weights"),
        (["nowhere.png"], "say which network"),
        (["nowhere.png", "--model", "torchvision/squeezenet1_1", "--checkpoint", "CHECKPOINT"], "'nowhere.png' is not there"),
        (["IN", "--model", "torchvision/squeezenet1_2", "--checkpoint", "CHECKPOINT"], "squeezenet1_1"),
        (
            ["IN", "--model", "torchvision/squeezenet1_1", "--checkpoint", "CHECKPOINT", "--target", "tenc"],
            "did you mean 'tench'",
        ),
        (
            ["IN", "--model", "torchvision/squeezenet1_1", "--checkpoint", "CHECKPOINT", "--target", "1000"],
            "outside the 1000 classes",
        ),
        (
            ["IN", "--model", "torchvision/squeezenet1_1", "--checkpoint", "CHECKPOINT", "--target", "dog"],
            "no class 'dog'; classes with that in their name: Maltese dog, Old English sheepdog",
        ),
        (["IN", "--model", "torchvision/squeezenet1_1", "--checkpoint", "CHECKPOINT", "--layer", "features.99"], "did you mean"),
        (
            ["IN", "--model", "torchvision/squeezenet1_1", "--checkpoint", "CHECKPOINT", "--classes", "IN/few.txt"],
            "names 2 classes",
        ),
        (["IN", "--model", "torchvision/squeezenet1_1", "--checkpoint", "CHECKPOINT", "--device", "gpu"], "--device gpu: "),
        (
            ["IN", "--model", "torchvision/squeezenet1_1", "--checkpoint", "CHECKPOINT", "--device", "cuda:77"],
            "--device cuda:77: ",
        ),
        (["IN", "--model", "torchvision/squeezenet1_1", "--checkpoint", "IN/torn.safetensors"], "no whole safetensors file"),
    ],
)
def test_wrong_calls(words, message, pictures, checkpoint, tmp_path, capsys):
    (pictures / "few.txt").write_text("cat\ndog\n")
    (pictures / "torn.safetensors").write_bytes(checkpoint.read_bytes()[:5000])
    words = [w.replace("IN", str(pictures)) if w.startswith("IN") else str(checkpoint) if w == "CHECKPOINT" else w for w in words]
    assert main(["explain", *words, "--size", "64", "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err


def test_a_network_of_nan_is_named_not_the_images(pictures, tmp_path, capsys):
    torch.manual_seed(0)
    weights = squeezenet1_1().state_dict()
    weights["features.3.squeeze.weight"][0] = float("nan")
    save_file(weights, tmp_path / "nan.safetensors")
    assert explain(pictures, "--groups", 4, "--out", tmp_path / "out", checkpoint=tmp_path / "nan.safetensors") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "'features.3.squeeze.weight' of SqueezeNet holds NaN" in said and "it is the network, not the images" in said
    assert "speaks for that class" not in said


def test_the_former_name_of_the_option_is_told(pictures, checkpoint, capsys):
    words = [str(pictures), "--model", "torchvision/squeezenet1_1", "--weights", str(checkpoint)]
    for command in ("explain", "evaluate"):
        assert main([command, *words]) == 2
        assert "--weights is called --checkpoint FILE now" in capsys.readouterr().err
