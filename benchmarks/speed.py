"""What maps and training steps cost: ms per image and in F, one evaluation forward pass of the bare network on the same images.

Calls are interleaved; medians and interquartile ranges over the rounds, of ratios over the ratios within a round. F is timed in
parts as large as the maps' own. Weights are random: only time and memory are measured. In fp32 also with the maps alone in
bf16-mixed; with `--compile` also with compiled passes, whose graphs and seconds are noted.
On a GPU: `python benchmarks/speed.py --precision bf16 --channels-last --batch 32 128 --repeats 30`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
import torchvision
from common import Setting, add_device_options, conditions, filed, relative, report, spread
from torch import Tensor, nn

from groupcam_aug import GradCAM, GroupCAM, SaliencyBlur
from groupcam_aug.augment import blend, keep_mask
from groupcam_aug.blur import blur

PRESETS: dict[str, tuple[float, dict[str, Any]]] = {
    "paper": (1.0, {}),
    "paper with importance weights": (1.0, {"weights": "gradient"}),
    "balanced": (0.5, {"mask_at": "stage"}),
    "balanced with importance weights": (0.5, {"mask_at": "stage", "weights": "gradient"}),
    "fast": (0.5, {"mask_at": "target", "baseline": "zero"}),
    "fast with importance weights": (0.5, {"mask_at": "target", "baseline": "zero", "weights": "gradient"}),
}
HALF: dict[str, tuple[float, dict[str, Any]]] = {
    f"{name}, bf16-mixed": (PRESETS[name][0], {**PRESETS[name][1], "precision": "bf16-mixed"}) for name in ("paper", "fast")
}
COMPILED: dict[str, tuple[float, dict[str, Any]]] = {
    f"{name}, compiled": (how[0], {**how[1], "compile": True})
    for name, how in {"paper": PRESETS["paper"], "paper, bf16-mixed": HALF["paper, bf16-mixed"]}.items()
}


def forms(options: argparse.Namespace) -> dict[str, tuple[float, dict[str, Any]]]:
    """What is timed: the presets, and in half precision or compiled where that is asked for and differs."""
    chosen = PRESETS | (HALF if options.precision == "fp32" else {}) | (COMPILED if options.compile else {})
    doubled = "paper, bf16-mixed, compiled" if options.precision != "fp32" else ""
    return {name: how for name, how in chosen.items() if name not in (*options.leave_out, doubled)}


class Meter:
    """Seconds inside the network's own forward."""

    def __init__(self, network: nn.Module, setting: Setting) -> None:
        self.inside, self.start, self.setting = 0.0, 0.0, setting
        network.register_forward_pre_hook(self._enter)
        network.register_forward_hook(self._leave)

    def _enter(self, *_: Any) -> None:
        self.setting.wait()
        self.start = time.perf_counter()

    def _leave(self, *_: Any) -> None:
        self.setting.wait()
        self.inside += time.perf_counter() - self.start

    def share_outside(self, call: Callable[[], Any], repeats: int) -> float:
        """Share of the seconds of `call` that are not spent in the network: the median over `repeats`."""
        shares = []
        for _ in range(repeats):
            self.inside, start = 0.0, time.perf_counter()
            call()
            self.setting.wait()
            shares.append(1 - self.inside / (time.perf_counter() - start))
        return spread(shares)[0]


def maps(
    make: Callable[[], nn.Module], images: Tensor, options: argparse.Namespace, setting: Setting, notes: dict[str, str]
) -> list[list[Any]]:
    """Rows of the table of maps."""
    network = setting.put(make()).eval()
    labels = torch.arange(len(images), device=setting.device) % 1000
    methods: dict[str, Any] = {"Grad-CAM": GradCAM(network)}
    for groups in options.groups:
        for name, (_, how) in forms(options).items():
            methods[f"{name}, G={groups}"] = GroupCAM.for_training(network, groups=groups, **how)
        for chunk in options.chunk:
            methods[f"paper, G={groups}, {chunk} images a pass"] = GroupCAM.for_training(network, groups=groups, chunk=chunk)

    def called(method: Any) -> Callable[[], Any]:
        def call() -> Any:
            with setting.passes():
                return method(images, labels)

        return call

    def bare() -> None:
        with torch.no_grad(), setting.passes():
            for part in images.split(min(len(images), methods["Grad-CAM"].passes(images))):
                network(part)

    calls = {"bare forward (F)": bare, **{name: called(method) for name, method in methods.items()}}
    compiled = {name: method for name, method in methods.items() if getattr(method, "compiled", None) is not None}
    taken = setting.seconds(calls, options.repeats)
    peaks = {name: setting.peak(call) for name, call in calls.items()}
    for name, method in compiled.items():
        notes[name] = method.compiled.summary()  # what it does to maps: agreement.py, for random weights have hardly any
        print(f"{name}: {notes[name]}")
    meter = Meter(network, setting)
    rows = []
    for name, seconds in taken.items():
        median, times = spread(seconds)[0], relative(seconds, taken["bare forward (F)"])
        outside = meter.share_outside(calls[name], 3) if name.startswith("paper, ") and name not in compiled else None
        rows.append([len(images), name, 1000 * median / len(images), *times, outside, peaks[name]])
        print(*rows[-1], flush=True)
    return rows


def steps(
    make: Callable[[], nn.Module], images: Tensor, options: argparse.Namespace, setting: Setting, notes: dict[str, str]
) -> list[list[Any]]:
    """Rows of the table of training steps: plain, and with each preset on exactly p of the images."""
    network = setting.put(make()).train()
    optimiser = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9)
    labels = torch.arange(len(images), device=setting.device) % 1000

    def step(batch: Tensor) -> None:
        with setting.passes():
            loss = nn.functional.cross_entropy(network(batch).float(), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    def augmented(p: float, how: dict[str, Any]) -> Callable[[], None]:
        augment = SaliencyBlur(GroupCAM.for_training(network, **how), p=p)
        drawn = torch.arange(round(p * len(images)))

        def call() -> None:
            with setting.passes():
                batch = augment.augment_at(images, labels, drawn).images
            step(batch)

        return call

    calls: dict[str, Callable[[], Any]] = {"plain": lambda: step(images)}
    calls.update({name: augmented(*form) for name, form in forms(options).items()})
    taken = setting.seconds(calls, options.repeats)
    peaks = {name: setting.peak(call) for name, call in calls.items()}
    rows = []
    for name, seconds in taken.items():
        rows.append([len(images), name, 1000 * spread(seconds)[0], *relative(seconds, taken["plain"]), peaks[name]])
        print(*rows[-1], flush=True)
    return rows


def profile(
    make: Callable[[], nn.Module], images: Tensor, options: argparse.Namespace, setting: Setting, notes: dict[str, str]
) -> list[list[Any]]:
    """Where the milliseconds of the `fast` augmentation go, half of the images drawn; with `--compile` those of exact maps."""
    network = setting.put(make()).eval()
    p, how = PRESETS["fast"]
    cam = GroupCAM.for_training(network, **how)
    augment = SaliencyBlur(cam, p=p)
    drawn = torch.arange(round(p * len(images)))
    labels = torch.arange(len(images), device=setting.device) % 1000
    half = images[: len(drawn)].contiguous(memory_format=setting.format)

    def mapped() -> Tensor:
        with setting.passes():
            return cam(half, labels[: len(half)])

    def whole() -> Any:
        with setting.passes():
            return augment.augment_at(images, labels, drawn)

    found = mapped()
    keep, fill = keep_mask(found), blur(half)
    at = drawn.to(setting.device)
    calls: dict[str, Callable[[], Any]] = {
        "the whole augmentation": whole,
        "maps": mapped,
        "threshold": lambda: keep_mask(found),
        "blur of the drawn images": lambda: blur(half),
        "blend and put back": lambda: images.index_copy(0, at, blend(half, keep, fill)),
    }
    taken = {name: spread(seconds)[0] for name, seconds in setting.seconds(calls, options.repeats).items()}
    outside = Meter(network, setting).share_outside(mapped, options.repeats)
    taken["maps: inside the network"] = taken["maps"] * (1 - outside)
    taken["maps: group masks, scores, sum, give-back"] = taken["maps"] * outside
    unit = taken["the whole augmentation"]
    rows = [[len(images), f"fast: {name}", 1000 * seconds, seconds / unit] for name, seconds in taken.items()]
    return rows + (compiled_profile(setting.put(make()).eval(), images, labels, options, setting) if options.compile else [])


def compiled_profile(
    network: nn.Module, images: Tensor, labels: Tensor, options: argparse.Namespace, setting: Setting
) -> list[list[Any]]:
    """Rows of the profile of exact maps with compiled passes: those passes, the eager pass that is observed, the rest."""
    cam = GroupCAM.for_training(network, compile=True)
    compiled: Any = cam.compiled
    inside: list[float] = []

    def timed(batch: Tensor) -> Any:
        setting.wait()
        start = time.perf_counter()
        result = compiled(batch)
        setting.wait()
        inside[-1] += time.perf_counter() - start
        return result

    def whole() -> Tensor:
        inside.append(0.0)
        with setting.passes():
            return cam(images, labels)

    def bare() -> None:
        with torch.no_grad(), setting.passes():
            for part in images.split(cam.passes(images)):
                network(part)

    cam.compiled = timed  # type: ignore[assignment]
    taken = {name: spread(seconds)[0] for name, seconds in setting.seconds({"": whole, "bare": bare}, options.repeats).items()}
    passes, unit = spread(inside[1:])[0], taken[""]  # the first call compiles
    parts = {
        "the whole call": unit,
        "compiled passes": passes,
        "the pass that is observed (one forward pass, timed apart)": taken["bare"],
        "group masks, masked images, scores, sum, give-back": unit - passes - taken["bare"],
    }
    return [[len(images), f"exact maps, compiled: {name}", 1000 * seconds, seconds / unit] for name, seconds in parts.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_device_options(parser)
    parser.add_argument("--network", default="resnet50", help="of torchvision, or timm/NAME (default: %(default)s)")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, nargs="+", default=[32])
    parser.add_argument("--groups", type=int, nargs="+", default=[16])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--only", choices=("maps", "steps", "profile"), nargs="+", default=["maps", "steps", "profile"])
    parser.add_argument("--leave-out", nargs="*", default=[], metavar="PRESET", help="of the training steps")
    parser.add_argument("--compile", action="store_true", help="compiled passes, too")
    parser.add_argument("--chunk", type=int, nargs="+", default=[], help="images a pass, of exact maps, too")
    parser.add_argument("--tag", default="", help="in the names of the result files")
    options = parser.parse_args()
    setting = Setting(options)
    kind = "timm" if options.network.startswith("timm/") else "torchvision"

    def make() -> nn.Module:
        torch.manual_seed(0)
        if kind == "timm":
            return timm.create_model(options.network.removeprefix("timm/"))
        return torchvision.models.get_model(options.network)

    tables = {
        "maps": (maps, ["batch", "method", "ms per image", "in F", "IQR in F", "share outside the network", "peak MiB"]),
        "steps": (steps, ["batch", "step", "ms", "x plain", "IQR x plain", "peak MiB"]),
        "profile": (profile, ["batch", "part", "ms", "share"]),
    }
    for table in options.only:
        work, header = tables[table]
        rows: list[list[Any]] = []
        notes: dict[str, str] = {}
        for count in options.batch:
            images = setting.put(torch.randn(count, 3, options.size, options.size))
            rows += work(make, images, options, setting, notes)
        told = conditions(
            setting.device,
            network=f"{kind} {options.network.removeprefix('timm/')}, random weights",
            size=options.size,
            threads=torch.get_num_threads(),
            repeats=options.repeats,
            **setting.told,
            **notes,
        )
        name = f"speed_{table}" + "_bf16" * setting.half + (f"_{options.tag}" if options.tag else "")
        report(filed(name, setting.device), told, header, rows)


if __name__ == "__main__":
    main()
