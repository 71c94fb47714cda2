"""The samples of an epoch: the extremes, each with its own pictures, in bounded memory."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from records import augmented_batch

from groupcam_aug.callbacks.records import sample_grid
from groupcam_aug.callbacks.records.sample_grid import SampleGrid


def shown(folder, epoch=0):
    return json.loads((folder / "gallery" / f"epoch_{epoch:05d}.json").read_text())


def add(grid, fractions, step, labels=None, **options):
    done, images = augmented_batch(fractions, **options)
    fraction = done.keep.flatten(1).float().mean(dim=1)
    grid.add(done, images, done.drawn, labels, fraction, step)
    return images


def test_the_grid_holds_the_extremes_of_the_epoch(tmp_path):
    grid = SampleGrid()
    add(grid, [0.5, 0.3, 0.8], 0, torch.tensor([5, 6, 7]))
    add(grid, [None, 0.5, 0.9], 1, torch.tensor([1, 2, 3]))
    add(grid, [0.4, 0.1], 2, torch.tensor([8, 9]))
    grid.write(tmp_path, 0)
    rows = shown(tmp_path)["rows"]
    found = {kind: [(row["keep"], row["label"]) for row in rows if row["kind"] == kind] for kind in sample_grid.KINDS}
    assert found["smallest"] == [(0.1, 9), (0.3, 6)]
    assert found["largest"] == [(0.9, 3), (0.8, 7)]
    assert found["no map"] == [(1.0, 1)]
    assert len({(row["step"], row["label"]) for row in rows}) == len(rows), "nobody twice"
    picture = Image.open(tmp_path / "gallery" / "epoch_00000.png")
    assert picture.size == (4 * 10, len(rows) * 10)


def test_pictures_belong_to_their_row(tmp_path):
    grid = SampleGrid()
    images = add(grid, [0.2, 0.6, 0.4], 0)
    grid.write(tmp_path, 0)
    rows = shown(tmp_path)["rows"]
    picture = torch.from_numpy(np.array(Image.open(tmp_path / "gallery" / "epoch_00000.png"))).float() / 255
    for i, row in enumerate(rows):
        source = {0.2: 0, 0.6: 1, 0.4: 2}[row["keep"]]
        cells = picture[10 * i : 10 * i + 10].unflatten(1, (4, 10)).permute(1, 3, 0, 2)
        assert torch.allclose(cells[0], images[source], atol=0.003) and torch.allclose(cells[3], images[source] / 2, atol=0.003)
        assert float(cells[2].mean()) == pytest.approx(row["keep"], abs=0.01)


def test_the_grid_takes_no_more_memory_with_more_batches(monkeypatch):
    monkeypatch.setattr(sample_grid, "SIZE", 12)
    grid, sizes = SampleGrid(), set()
    for step in range(40):
        add(grid, [0.5, None, 0.1 + step / 100, 0.9], step, size=30)
        sizes.add(grid._pictures.numel())
    assert len(sizes) == 1 and grid._pictures.shape[-1] < 2 * sample_grid.SIZE


def test_batches_of_one_and_of_other_sizes(tmp_path):
    grid = SampleGrid()
    for step, (fractions, size) in enumerate([([0.5], 8), ([0.25, None], 12), ([0.75], 8)]):
        add(grid, fractions, step, size=size)
    grid.write(tmp_path, 3)
    assert [row["kind"] for row in shown(tmp_path, 3)["rows"]].count("no map") == 1
    SampleGrid().write(tmp_path, 4)  # an epoch without a drawn image
    assert {path.name for path in (tmp_path / "gallery").iterdir()} == {"epoch_00003.png", "epoch_00003.json"}


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_images_of_any_number_of_channels(tmp_path, channels):
    grid = SampleGrid()
    done, images = augmented_batch([0.5, 0.2])
    images = torch.randn(2, channels, 10, 10).to(torch.bfloat16)
    done = done._replace(images=images)
    grid.add(done, images, done.drawn, None, done.keep.flatten(1).float().mean(dim=1), 0)
    grid.write(tmp_path, 0)
    assert Image.open(tmp_path / "gallery" / "epoch_00000.png").mode == "RGB"
    assert grid._pictures.shape[2] == 2 * (3 if channels >= 3 else 1) + 2, "no more is kept than is shown"


def test_few_epochs_are_kept(tmp_path):
    for epoch in range(3, 40):
        grid = SampleGrid()
        add(grid, [0.5, 0.2], 0)
        grid.write(tmp_path, epoch)
    assert sorted(int(path.stem[6:]) for path in (tmp_path / "gallery").glob("*.png")) == [3, 4, 8, 16, 32, 39]


class Normalised(torch.nn.Module):
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.2, 0.1]


def test_the_modules_normalisation_is_undone(tmp_path):
    done, images = augmented_batch([0.5])
    mean, std = (torch.tensor(value)[:, None, None] for value in (Normalised.mean, Normalised.std))
    for name, (before, module) in {"plain": (images, None), "normalised": ((images - mean) / std, Normalised())}.items():
        grid = SampleGrid()
        after = done._replace(images=before)
        grid.add(after, before, done.drawn, None, torch.tensor([0.5]), 0)
        grid.write(tmp_path / name, 0, module)
    plain, normalised = (Image.open(tmp_path / name / "gallery" / "epoch_00000.png") for name in ("plain", "normalised"))
    assert plain.tobytes() == normalised.tobytes()


def test_the_panel_names_classes_and_shares(tmp_path, monkeypatch):
    grid, given = SampleGrid(), {}
    add(grid, [0.5, None, 0.2], 0, torch.tensor([1, 0, 7]))
    samples = grid.write(tmp_path, 0)
    assert samples.cells.shape == (len(samples.rows), 4, 3, 10, 10) and samples.cells.dtype == torch.uint8
    assert samples.panel(None).size > (4 * sample_grid.SIZE, len(samples.rows) * sample_grid.SIZE)
    monkeypatch.setattr(sample_grid, "panels", lambda rows, titles, labels, size: given.update(titles=titles, labels=labels))
    samples.panel(["ant", "bee"])
    assert given["titles"] == sample_grid.COLUMNS and set(given["labels"]) == {
        "bee, 50% kept",
        "class 7, 20% kept",
        "ant, no map",
    }
    assert SampleGrid().write(tmp_path, 1) is None


def test_epochs_that_are_kept():
    assert [epoch for epoch in range(40) if sample_grid.is_kept(epoch)] == [0, 1, 2, 4, 8, 16, 32]
