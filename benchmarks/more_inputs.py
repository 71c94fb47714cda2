"""Two networks that take more than an image, trained in a minute: one answers a question about a picture, one writes its caption.

    python benchmarks/more_inputs.py     # trains both on drawn objects, writes docs/more_inputs.jpg and prints the figures

A picture shows two objects of the embedded data (recipes/shapes.py) side by side, each in one of four colours. The question is
"what colour is the ring?", the caption "red ring and blue star", from left to right. The figures say whether a map of a question,
or of a word, lies on the object that it is about: the share of the map's mass on that half of the picture (chance: .5).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from groupcam_aug import GradCAM, GroupCAM
from groupcam_aug.draw import overlay, panels
from groupcam_aug.metrics import energy_pointing_game
from groupcam_aug.recipes.shapes import CLASSES, Shapes

COLOURS = {"red": (0.9, 0.1, 0.1), "green": (0.1, 0.8, 0.1), "blue": (0.2, 0.2, 1.0), "yellow": (0.9, 0.9, 0.1)}
WORDS = ["<begin>", "what", "is", "the", "colour", "and", *COLOURS, *CLASSES]
TOKEN = {word: i for i, word in enumerate(WORDS)}
SIZE = 32  # of each half


class Scenes:
    """Pictures of two objects, with the questions and captions about them.

    Args:
        split: of `Shapes`: "train", "val", "kept" or "swapped".
        length: drawn objects to choose from.
        seed: of the draws.
    """

    def __init__(self, split: str, length: int, seed: int = 0) -> None:
        drawn, self.labels, self.masks = Shapes(split, length, size=SIZE).drawn()
        grey = drawn.float().mean(dim=1, keepdim=True) / 255  # so that colours are those of the objects
        self.ground = grey.expand(-1, 3, -1, -1)
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, count: int) -> dict[str, Tensor]:
        """`count` pictures (N, 3, 32, 64) in [-1, 1], objects and colours (N, 2) of the left and the right, questions (N, 2, 5)
        about each and their answers (N, 2), captions (N, 6) that begin with <begin>, masks (N, 2, 32, 64) bool.
        """
        left = torch.randint(len(self.labels), (count,), generator=self.generator)
        right = torch.randint(len(self.labels), (count,), generator=self.generator)
        right = torch.where(self.labels[left] == self.labels[right], (right + 1) % len(self.labels), right)  # labels take turns
        pick = torch.stack([left, right], dim=1)
        colour = torch.randint(len(COLOURS), (count, 2), generator=self.generator)
        paint = torch.tensor(list(COLOURS.values()))[colour]
        shown = torch.where(self.masks[pick][:, :, None], paint[..., None, None], self.ground[pick])
        masks = torch.zeros(count, 2, SIZE, 2 * SIZE, dtype=torch.bool)
        masks[:, 0, :, :SIZE], masks[:, 1, :, SIZE:] = self.masks[pick].unbind(dim=1)
        objects = self.labels[pick] + TOKEN[CLASSES[0]]
        asked = torch.tensor([TOKEN[word] for word in ("what", "colour", "is", "the")]).expand(count, 2, 4)
        spoken = [colour[:, :1] + TOKEN["red"], objects[:, :1], torch.full((count, 1), TOKEN["and"])]
        begin = torch.full((count, 1), TOKEN["<begin>"])
        return {
            "image": torch.cat(shown.unbind(dim=1), dim=3) * 2 - 1,
            "object": self.labels[pick],
            "question": torch.cat([asked, objects[..., None]], dim=2),
            "answer": colour,
            "caption": torch.cat([begin, *spoken, colour[:, 1:] + TOKEN["red"], objects[:, 1:]], dim=1),
            "mask": masks,
        }


class Eye(nn.Sequential):
    """(N, 3, 32, 64) -> (N, K, 8, 16)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for entering, leaving, stride in ((3, width, 2), (width, width, 2), (width, width, 1)):
            self.append(nn.Conv2d(entering, leaving, 3, stride, 1)).append(nn.BatchNorm2d(leaving)).append(nn.ReLU())


class Answerer(nn.Module):
    """Image and question (N, T) -> logits of the colours: the question looks for its object, and reads it off."""

    def __init__(self, eye: Eye, width: int = 16) -> None:
        super().__init__()
        self.eye, self.words = eye, nn.Embedding(len(WORDS), width)
        self.reader, self.query = nn.LSTM(width, width, batch_first=True), nn.Linear(width, width)
        self.answer = nn.Linear(width, len(COLOURS))

    def forward(self, images: Tensor, question: Tensor) -> Tensor:
        seen = self.eye(images).flatten(2)
        query = self.query(self.reader(self.words(question))[1][0][0])
        looked = torch.einsum("nk,nkp->np", query, seen).softmax(dim=1)
        return self.answer(torch.einsum("np,nkp->nk", looked, seen))


class Captioner(nn.Module):
    """Image and the words so far (N, T) -> logits of each next word (N, T, V): CNN, LSTM, a look at the picture for each word."""

    def __init__(self, eye: Eye, width: int = 16) -> None:
        super().__init__()
        self.eye, self.words = eye, nn.Embedding(len(WORDS), width)
        self.place = nn.Parameter(torch.zeros(width, 8, 16))
        self.writer, self.query = nn.LSTM(width, width, batch_first=True), nn.Linear(width, width)
        self.next = nn.Linear(2 * width, len(WORDS))
        nn.init.normal_(self.place, std=0.5)

    def forward(self, images: Tensor, words: Tensor) -> Tensor:
        seen = self.eye(images)
        written = self.writer(self.words(words))[0]
        looked = torch.einsum("ntk,nkp->ntp", self.query(written), (seen + self.place).flatten(2)).softmax(dim=2)
        return self.next(torch.cat([written, torch.einsum("ntp,nkp->ntk", looked, seen.flatten(2))], dim=2))


def trained(scenes: Scenes, steps: int, seed: int = 0) -> tuple[Answerer, Captioner]:
    """Both networks, with one eye, trained together on fresh batches of 32: answers, and the next word after the right ones."""
    torch.manual_seed(seed)
    eye = Eye(16)
    answerer, captioner = Answerer(eye), Captioner(eye)
    parameters = list(nn.ModuleList([answerer, captioner]).parameters())
    optimiser = torch.optim.AdamW(parameters, lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=steps)
    for step in range(steps):
        batch, side = scenes.draw(32), step % 2
        answers = answerer(batch["image"], batch["question"][:, side])
        words = captioner(batch["image"], batch["caption"][:, :-1])
        loss = F.cross_entropy(answers, batch["answer"][:, side])
        loss = loss + F.cross_entropy(words.flatten(0, 1), batch["caption"][:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return answerer.eval(), captioner.eval()


def maps_of_questions(cam, batch: dict[str, Tensor]) -> list[Tensor]:
    """Maps (N, 32, 64) of the question about the left object and of that about the right one, for the right answers."""
    return [cam(batch["image"], batch["answer"][:, side], extra=batch["question"][:, side]) for side in (0, 1)]


def maps_of_words(cam, batch: dict[str, Tensor]) -> list[Tensor]:
    """Maps (N, 32, 64) of the colours of the left and of the right object in the right captions."""
    said = batch["caption"]

    def word(place: int):
        return lambda logits, rows: logits[:, place].softmax(dim=1).gather(1, said[rows, place + 1, None])[:, 0]

    return [cam(batch["image"], word(place), extra=said[:, :-1]) for place in (0, 3)]


def on_its_half(maps: list[Tensor], batch: dict[str, Tensor]) -> Tensor:
    """(N,) share of the mass of both maps that lies on the half of the picture with the object that each is about."""
    half = torch.zeros(len(maps[0]), SIZE, 2 * SIZE, dtype=torch.bool)
    half[..., :SIZE] = True
    shares = [energy_pointing_game(each, mask).value for each, mask in zip(maps, (half, ~half), strict=True)]
    return torch.stack(shares).mean(dim=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500, help="of training (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=100, help="to measure on (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs")
    options = parser.parse_args()
    answerer, captioner = trained(Scenes("train", 384), options.steps)
    batch = Scenes("val", 96, seed=1).draw(options.pictures)
    print(f"{options.pictures} pictures: answers right {answered(answerer, batch):.2f}, words {captioned(captioner, batch):.2f}")
    methods = {"Grad-CAM": GradCAM, "Group-CAM": lambda network: GroupCAM(network, groups=8, denoise=None)}
    shown = {}
    for name, method in methods.items():
        maps = maps_of_questions(method(answerer), batch), maps_of_words(method(captioner), batch)
        shown[name] = maps
        questions, words = (on_its_half(each, batch) for each in maps)
        print(f"{name}: of the mass of questions {questions.mean():.2f}, of words {words.mean():.2f} on the half they are about")
    options.out.mkdir(parents=True, exist_ok=True)
    sheet(batch, shown["Group-CAM"], rows=3).save(options.out / "more_inputs.jpg", quality=88)


def answered(answerer: Answerer, batch: dict[str, Tensor]) -> float:
    """Share of the questions answered rightly."""
    given = torch.stack([answerer(batch["image"], batch["question"][:, side]).argmax(dim=1) for side in (0, 1)], dim=1)
    return float((given == batch["answer"]).float().mean())


def captioned(captioner: Captioner, batch: dict[str, Tensor]) -> float:
    """Share of the words that come next in the captions which are the likeliest."""
    said = batch["caption"]
    return float((captioner(batch["image"], said[:, :-1]).argmax(dim=2) == said[:, 1:]).float().mean())


def sheet(batch: dict[str, Tensor], maps: tuple[list[Tensor], list[Tensor]], rows: int) -> Image.Image:
    """The first pictures, each with its maps of two questions and of two words."""
    pictures, captions = [], []
    for i in range(rows):
        image = batch["image"][i] / 2 + 0.5
        pictures.append([image, *(overlay(image, each[i]) for pair in maps for each in pair)])
        words = [WORDS[token] for token in batch["caption"][i, 1:].tolist()]
        questions = [f"what colour is the {words[place]}?" for place in (1, 4)]
        captions.append([" ".join(words), *questions, *(f"the word {words[place]}" for place in (0, 3))])
    return panels(pictures, captions=captions, size=200)


if __name__ == "__main__":
    main()
