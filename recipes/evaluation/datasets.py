"""What ``groupcam-aug evaluate`` measures maps of: images of a folder, or each class in each image of VOC or COCO."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from groupcam_aug.recipes.image_files import BROKEN, upright_size

__all__ = ["Item", "coco_items", "evenly", "folder_items", "read_class_map", "voc_items", "wordnet_classes"]

_WORDNET = re.compile(r"n\d{8}")


@dataclass(frozen=True, eq=False)
class Item:
    """One map's worth of work."""

    key: str  # in images.jsonl
    path: Path
    classes: tuple[int, ...] = ()  # of the network: one; several = the likeliest of them; none = the network's first choice
    label: str = ""  # the class in the data's words
    boxes: Tensor = field(default_factory=lambda: torch.empty(0, 4))  # x0, y0, x1, y1 in pixels of the file, ends exclusive
    size: tuple[int, int] = (0, 0)  # height and width of the file, where there are boxes

    @functools.cached_property
    def stamp(self) -> str:
        """Size and time of the file: rows of one that was replaced do not hold for it any more."""
        try:
            facts = self.path.stat()
        except OSError:
            return ""
        return f"{facts.st_size} {facts.st_mtime_ns}"

    def misfit(self) -> str:
        """Why the boxes cannot be those of the file, turned upright as its EXIF says; empty if they can, or if there are none."""
        if not len(self.boxes):
            return ""
        try:
            height, width = upright_size(self.path)
        except BROKEN as error:
            return str(error)
        if (height, width) == self.size:
            return ""
        return (
            f"its boxes are of a picture of {self.size[1]} x {self.size[0]} pixels, but upright it has {width} x {height}: "
            "annotate it as it is shown, or take the orientation out of its EXIF"
        )


def evenly(paths: Sequence[Path], limit: int | None) -> list[Path]:
    """`limit` of `paths`, evenly picked; all of them for None."""
    count = len(paths) if limit is None else min(limit, len(paths))
    return [paths[i * len(paths) // count] for i in range(count)]


def folder_items(paths: Sequence[Path], class_names: Sequence[str]) -> tuple[list[Item], bool]:
    """An item for each file, and whether folders give the class: if every file lies in a folder named after one.

    ImageNet's folders may have their WordNet ids (n01440764).
    """
    known = {name: i for i, name in enumerate(class_names)}
    if any(_WORDNET.fullmatch(path.parent.name) for path in paths):
        known = {**wordnet_classes(class_names), **known}
    named = all(path.parent.name in known for path in paths)
    return [Item(path.as_posix(), path, (known[path.parent.name],) if named else ()) for path in paths], named


def wordnet_classes(class_names: Sequence[str]) -> dict[str, int]:
    """ImageNet's WordNet ids to the network's classes, if those are ImageNet's 1,000 in their usual order; else nothing."""
    from timm.data import ImageNetInfo
    from torchvision.models import ResNet18_Weights

    if list(class_names) != ResNet18_Weights.DEFAULT.meta["categories"]:
        return {}
    ids = ImageNetInfo()
    return {ids.index_to_label_name(i): i for i in range(len(class_names))}


def voc_items(
    root: str, year: str, part: str, limit: int | None, class_names: Sequence[str], class_map: Mapping[str, object] | None = None
) -> tuple[list[Item], int]:
    """An item for each class in each image of Pascal VOC; classes that are there only as "difficult" are passed over.

    Args:
        root: the folder that holds `VOCdevkit`.
        year: 2007 to 2012.
        part: "train", "val", "trainval" or (2007) "test".
        limit: most images, evenly picked.
        class_names: of the network.
        class_map: see `read_class_map`.

    Returns:
        The items, and how many (image, class) pairs have no class in the network.

    Raises:
        FileNotFoundError: no such data.
        ValueError: no class of the data is a class of the network.
    """
    from torchvision.datasets import VOCDetection

    try:
        data = VOCDetection(root, year=year, image_set=part)
    except (RuntimeError, FileNotFoundError) as error:
        raise FileNotFoundError(f"no VOC {year} {part!r} in {root!r} (looked for VOCdevkit/VOC{year} there): {error}") from error
    files = {Path(image): xml for image, xml in zip(data.images, data.annotations, strict=True)}
    pairs = []
    for path in evenly(list(files), limit):
        annotation = data.parse_voc_xml(ElementTree.parse(files[path]).getroot())["annotation"]
        boxes_of: dict[str, list[list[float]]] = {}
        for one in annotation.get("object", []):
            corners = [float(one["bndbox"][side]) for side in ("xmin", "ymin", "xmax", "ymax")]
            # VOC counts pixels from 1 and includes the last one.
            boxes_of.setdefault(one["name"], []).append([corners[0] - 1, corners[1] - 1, *corners[2:]])
        easy = {one["name"] for one in annotation.get("object", []) if one.get("difficult", "0") != "1"}
        size = (int(annotation["size"]["height"]), int(annotation["size"]["width"]))
        pairs += [(path, size, name, boxes) for name, boxes in boxes_of.items() if name in easy]
    return _matched(pairs, class_names, class_map, "VOC")


def coco_items(
    images: str, annotations: str, limit: int | None, class_names: Sequence[str], class_map: Mapping[str, object] | None = None
) -> tuple[list[Item], int]:
    """An item for each class in each image of COCO, without crowds; arguments and result as for `voc_items`.

    Args:
        images: the folder of images.
        annotations: the file of instances (`instances_val2017.json`).
        limit: as there.
        class_names: as there.
        class_map: as there.

    Raises:
        FileNotFoundError: no such data.
        ValueError: pycocotools is missing; no class of the data is a class of the network.
    """
    for place, there in ((images, Path(images).is_dir()), (annotations, Path(annotations).is_file())):
        if not there:
            raise FileNotFoundError(f"{place!r} is not there; --coco takes the folder of images and the file of instances")
    from torchvision.datasets import CocoDetection

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it reports on its reading
            data = CocoDetection(images, annotations)
    except ModuleNotFoundError as error:
        raise ValueError("reading COCO's annotations needs pycocotools: pip install pycocotools") from error
    facts = {Path(images) / data.coco.imgs[number]["file_name"]: number for number in data.ids}
    names = {number: category["name"] for number, category in data.coco.cats.items()}
    pairs = []
    for path in evenly(list(facts), limit):
        boxes_of: dict[str, list[list[float]]] = {}
        for one in data.coco.loadAnns(data.coco.getAnnIds(imgIds=[facts[path]])):
            if not one.get("iscrowd"):
                x, y, width, height = one["bbox"]
                boxes_of.setdefault(names[one["category_id"]], []).append([x, y, x + width, y + height])
        shape = data.coco.imgs[facts[path]]
        pairs += [(path, (shape["height"], shape["width"]), name, boxes) for name, boxes in boxes_of.items()]
    return _matched(pairs, class_names, class_map, "COCO")


def read_class_map(path: str, class_names: Sequence[str]) -> dict[str, list[int]]:
    """A JSON object that maps the data's class names to the network's: a name, a number, or a list of them.

    Of several the likeliest in each image is explained, which is how an ImageNet network can answer for "dog".

    Raises:
        ValueError: no such object, or a class that the network does not have.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path!r} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f'{path!r} must hold an object such as {{"dog": ["beagle", 163]}}, not {type(content).__name__}')
    known = {name.lower(): i for i, name in reversed(list(enumerate(class_names)))}
    result: dict[str, list[int]] = {}
    for name, wanted in content.items():
        result[name] = []
        for one in wanted if isinstance(wanted, list) else [wanted]:
            number = one if isinstance(one, int) else known.get(str(one).lower())
            if number is None or not 0 <= number < len(class_names):
                raise ValueError(f"{path!r}: {name!r} maps to {one!r}, which is no class of the network")
            result[name].append(number)
    return result


def _matched(
    pairs: Iterable[tuple[Path, tuple[int, int], str, list[list[float]]]],
    class_names: Sequence[str],
    class_map: Mapping[str, object] | None,
    data: str,
) -> tuple[list[Item], int]:
    known: dict[str, tuple[int, ...]] = {_plain(name): (i,) for i, name in reversed(list(enumerate(class_names)))}
    known.update({_plain(name): tuple(numbers) for name, numbers in (class_map or {}).items()})  # type: ignore[arg-type]
    items, strangers = [], []
    for path, size, name, boxes in pairs:
        classes = known.get(_plain(name), ())
        if classes:
            items.append(Item(f"{path.as_posix()}#{name}", path, classes, name, torch.tensor(boxes), size))
        else:
            strangers.append(name)
    if not items:
        seen = ", ".join(sorted(set(strangers))[:5]) or "none at all"
        raise ValueError(
            f"no class of this {data} data ({seen}) is a class of the network ({', '.join(class_names[:3])}, ...); map them with "
            "--class-map FILE, for instance " + '{"dog": ["beagle", "whippet"]}'
        )
    return items, len(strangers)


def _plain(name: str) -> str:
    return name.lower().replace(" ", "").replace("_", "")
