"""What is measured: files of a folder, and the classes of VOC and COCO through torchvision."""

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from evaluations import draw, evaluate, lines, record
from PIL import Image

from groupcam_aug.files import put_file
from groupcam_aug.recipes.evaluation.datasets import Item, evenly, folder_items, read_class_map


def test_images_are_picked_evenly():
    paths = [Path(str(i)) for i in range(10)]
    assert [path.name for path in evenly(paths, 4)] == ["0", "2", "5", "7"]
    assert evenly(paths, None) == evenly(paths, 99) == paths and evenly([], 3) == []


def test_folders_give_the_class_if_all_are_classes():
    items, named = folder_items([Path("x/dog/1.png"), Path("y/cat/2.png")], ["cat", "dog"])
    assert named and [item.classes for item in items] == [(1,), (0,)] and items[0].key == "x/dog/1.png"
    items, named = folder_items([Path("x/dog/1.png"), Path("y/bird/2.png")], ["cat", "dog"])
    assert not named and [item.classes for item in items] == [(), ()]


def test_wordnet_ids_are_imagenet_s_classes():
    from torchvision.models import ResNet18_Weights

    names = ResNet18_Weights.DEFAULT.meta["categories"]
    paths = [Path("val/n01440764/1.png"), Path("val/n02099601/2.png"), Path(f"val/{names[999]}/3.png")]
    items, named = folder_items(paths, names)
    assert named and [item.classes for item in items] == [(0,), (207,), (999,)]
    assert names[0] == "tench" and names[207] == "golden retriever"
    assert not folder_items([Path("n00000001/1.png")], names)[1] and not folder_items(paths[:1], names[::-1])[1]
    assert folder_items(paths[:1], ["n01440764", "n02"])[0][0].classes == (0,), "a network of such names has them already"


def test_a_file_that_changes_has_another_stamp(tmp_path):
    assert Item("k", tmp_path / "a").stamp == ""
    (tmp_path / "a").write_bytes(b"1")
    before = Item("k", tmp_path / "a").stamp
    (tmp_path / "a").write_bytes(b"12")
    assert before and Item("k", tmp_path / "a").stamp != before


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is no JSON"), ("[1]", "must hold an object"), ('{"tv": 3}', "'tv' maps to 3"), ('{"tv": -1}', "-1")],
)
def test_a_map_of_classes_that_is_none_is_refused(tmp_path, content, message):
    (tmp_path / "map.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_class_map(str(tmp_path / "map.json"), ["cat", "Dog", "owl"])
    (tmp_path / "map.json").write_text('{"pet": ["dog", 0], "bird": "OWL"}')
    assert read_class_map(str(tmp_path / "map.json"), ["cat", "Dog", "owl"]) == {"pet": [1, 0], "bird": [2]}


XML = """<annotation><filename>{name}.jpg</filename><size><width>48</width><height>40</height><depth>3</depth></size>{objects}</annotation>"""
OBJECT = """<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


@pytest.mark.parametrize(("orientation", "size", "told"), [(1, (30, 40), ""), (6, (40, 30), ""), (6, (30, 40), "40 x 30 pixels")])
def test_boxes_are_of_the_picture_as_it_is_shown(tmp_path, orientation, size, told):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif)
    item = Item("k", tmp_path / "a.jpg", (0,), "dog", torch.tensor([[0.0, 0, 5, 5]]), size)
    assert bool(item.misfit()) == bool(told) and told in item.misfit()
    assert Item("k", tmp_path / "a.jpg").misfit() == "", "no boxes"
    assert Item("k", tmp_path / "none.jpg", boxes=item.boxes).misfit()


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
    words[words.index("--out") + 1] = tmp_path / "boxes"
    assert evaluate(*words, "--measures", "localisation", checkpoint=checkpoint) == 0
    blob = record(tmp_path / "boxes")["methods"]["centred blob"]
    # Above 15 % of the maximum it is nearly as large as the picture, whose box it meets; the first corner's it does not.
    assert blob["box_error"]["mean"] == pytest.approx(1 / 3, abs=1e-5) and blob["top1_error"]["mean"] >= blob["box_error"]["mean"]
    told = capsys.readouterr().out
    assert "box error %" in told and "with class %" in told and "IoU" in told and "pointing %" not in told
    rows = [line for line in lines(tmp_path / "boxes") if line.get("method") == "centre"]
    assert {row["label"]: row["box_error"] for row in rows if "000001" in row.get("file", "")} == {
        "dog": False,
        "tvmonitor": True,
    }
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
