"""The pictures of a report: film strip and samples, cut from the recorded files and made small enough to be carried inside."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

from PIL import Image

from groupcam_aug.callbacks.report_page.run_records import RunRecords
from groupcam_aug.draw import png, resized
from groupcam_aug.files import inside

__all__ = ["errors", "film_strip", "log_spaced", "samples"]

SIDE = 112  # pixels: what is larger is reduced
LARGEST = 2**24  # pixels of a picture: none of the callbacks' comes near
NARROW = 5  # columns of the film strip that a phone shows, the probes among them
TINY = 64  # pixels, up to which a picture is enlarged pixel by pixel


def film_strip(records: RunRecords, quality: int = 82, columns: int = 16) -> dict[str, Any] | None:
    """The probes' maps over time: a row per probe, a column per epoch, all on the scale that the monitor drew them on.

    Args:
        records: of the run.
        quality: of the pictures, 1 to 95.
        columns: at most so many epochs, the first and the last among them, at distances that grow.

    Returns:
        `rows` (names of the probes) and `columns` (`title`, `note`, `src`, `alt`, and `spare` on a phone), the first
        of them the probes themselves; None without pictures.
    """
    folder = records.folder / "monitor"
    files = {int(match[1]): path for path in folder.glob("epoch_*.png") if (match := re.fullmatch(r"epoch_(-?\d+)", path.stem))}
    last = max((int(line["epoch"]) for line in records.probings if "epoch" in line), default=None)
    epochs = sorted(epoch for epoch in files if last is None or epoch <= last)  # later ones are of a run that this one replaced
    path = folder / "probes.png"
    if not epochs or not (path.is_file() or path.is_symlink()):
        return None
    shown, labels = records.monitor.get("shown") or [], records.monitor.get("labels") or []
    rows = [records.class_name(labels[i]) if i < len(labels) else f"probe {i}" for i in shown]
    alive = {int(line["epoch"]): line.get("alive") for line in records.probings if "epoch" in line}
    probes = _column(records, path, len(rows), quality)
    strip = [{"title": "image", "note": "", "src": probes, "alt": "the probes", "spare": False}]
    if probes is None:
        return None
    chosen = log_spaced(epochs, columns)
    narrow = {chosen[place] for place in log_spaced(list(range(len(chosen))), NARROW - 1)}
    for epoch in chosen:
        title = "start" if epoch < 0 else f"epoch {epoch}"
        if (src := _column(records, files[epoch], len(rows), quality)) is None:
            continue
        share = alive.get(epoch)
        strip.append(
            {
                "title": title,
                "note": "" if share is None else f"{share:.0%}",
                "src": src,
                "alt": f"maps of {len(rows)} probes, {title}",
                "spare": epoch not in narrow,
            }
        )
    return {"rows": rows, "columns": strip}


def samples(records: RunRecords, quality: int = 82, epochs: int = 3) -> list[dict[str, Any]]:
    """Augmented samples of the last epoch and of some before, the last first.

    Args:
        records: of the run.
        quality: of the pictures, 1 to 95.
        epochs: at most so many, the first and the last among them.

    Returns:
        Of each epoch `epoch`, `columns` (titles) and `rows`: `kind`, `name` (of the class), `keep` (share, 0 to 1), `cells`
        (`src`, `alt`), and `tiny` if the pictures are enlarged pixel by pixel.
    """
    chosen = {int(sheet["epoch"]): sheet for sheet in records.sample_grids if sheet.get("rows")}
    result = []
    for epoch in reversed(log_spaced(sorted(chosen), epochs)):
        sheet, path = chosen[epoch], records.folder / "gallery" / f"epoch_{epoch:05d}.png"
        width, height = sheet["cell"]
        picture = _read(records, path) if path.is_file() or path.is_symlink() else None
        if picture is None:
            continue
        if not (0 < width * len(sheet["columns"]) <= picture.width and 0 < height * len(sheet["rows"]) <= picture.height):
            records.note_problem(
                path, f"has {picture.width} x {picture.height} pixels, too few for its cells of {width} x {height}", None
            )
            continue
        rows = []
        for i, row in enumerate(sheet["rows"]):
            name = records.class_name(row.get("label"))
            cells = []
            for j, title in enumerate(sheet["columns"]):
                cell = picture.crop((j * width, i * height, (j + 1) * width, (i + 1) * height))
                cells.append(
                    {
                        "src": _embedded(resized(cell, min(SIDE, max(cell.size))), quality),
                        "alt": f"{title} of a sample of {name or 'no known class'}",
                    }
                )
            rows.append({"kind": row["kind"], "name": name, "keep": row["keep"], "cells": cells})
        result.append({"epoch": epoch, "columns": sheet["columns"], "rows": rows, "tiny": max(width, height) <= TINY})
    return result


def errors(records: RunRecords, quality: int = 82) -> list[dict[str, Any]]:
    """The probes that are taken for another class at the last probing, the most confident first.

    Args:
        records: of the run.
        quality: of the pictures, 1 to 95.

    Returns:
        Of each `name` and `taken_for` (classes), `confidence` and `score` (of both, 0 to 1, or None), `has_map`, `image` and
        `map` (data addresses), and `tiny` if the pictures are enlarged pixel by pixel.
    """
    rows, path = records.errors.get("rows") or [], records.folder / "monitor" / "errors.png"
    picture = _read(records, path) if rows and (path.is_file() or path.is_symlink()) else None
    if picture is None:
        return []
    width, height = records.errors["cell"]
    if not (0 < 2 * width <= picture.width and 0 < height * len(rows) <= picture.height):
        return records.note_problem(path, f"has {picture.width} x {picture.height} pixels, too few for its {len(rows)} rows", [])
    result = []
    for i, row in enumerate(rows):
        cells = [picture.crop((j * width, i * height, (j + 1) * width, (i + 1) * height)) for j in range(2)]
        image, map_ = (_embedded(resized(cell, min(SIDE, max(cell.size))), quality) for cell in cells)
        names = {"name": records.class_name(row["label"]), "taken_for": records.class_name(row["chosen"])}
        figures = {key: row[key] for key in ("confidence", "score", "has_map")}
        result.append({**names, **figures, "image": image, "map": map_, "tiny": max(width, height) <= TINY})
    return result


def log_spaced(numbers: list[int], count: int) -> list[int]:
    """At most `count` of the sorted numbers, the first and the last among them, at distances that grow.

    Args:
        numbers: in rising order, each once.
        count: at least 1.
    """
    if len(numbers) <= count:
        return numbers
    if count == 1:
        return numbers[-1:]
    last = len(numbers) - 1
    places = [round((last + 1) ** (i / (count - 1))) - 1 for i in range(count)]
    for i in range(1, count):  # where the distances would be below one
        places[i] = max(places[i], places[i - 1] + 1)
    return [numbers[min(place, last)] for place in places]


def _read(records: RunRecords, path: Path) -> Image.Image | None:
    """A picture of the records; None, and a note, of one that cannot be read."""
    try:
        with Image.open(inside(records.folder, path)) as picture:
            if picture.width * picture.height > LARGEST:
                raise ValueError(f"{picture.width} x {picture.height} pixels are more than any picture of the records has")
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's, of damaged files
        return records.note_problem(path, f"cannot be read: {error}", None)


def _column(records: RunRecords, path: Path, rows: int, quality: int) -> str | None:
    if (picture := _read(records, path)) is None:
        return None
    side = max(picture.width, picture.height // max(rows, 1))
    if side > SIDE:
        size = max(1, round(picture.width * SIDE / side)), max(1, round(picture.height * SIDE / side))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return _embedded(picture, quality)


def _embedded(picture: Image.Image, quality: int) -> str:
    """A data address, of PNG for pictures of few pixels, which are shown enlarged, and of JPEG for others."""
    if max(picture.size) <= TINY:
        kind, content = "png", png(picture)
    else:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        kind, content = "jpeg", buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
