"""Sanity checks for saliency maps (Adebayo et al. 2018): do the maps depend on what the network has learned?

Layers are re-initialised from the output down, all of them so far (cascading) or one at a time (independent). A map that stays as
it was does not show the network's knowledge. The class explained stays that of the original network.
"""

from __future__ import annotations

import functools
import inspect
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from groupcam_aug.arguments import check_choice, check_flag, check_seed, check_whole
from groupcam_aug.borrow import as_found, unwrap
from groupcam_aug.cam import CAM, Output, check_images
from groupcam_aug.extra import Extra, Extras, read_extra
from groupcam_aug.metrics.intervals import student_interval
from groupcam_aug.metrics.stability import map_change, map_floor
from groupcam_aug.restore import hooked, restoring
from groupcam_aug.targets import Targets
from groupcam_aug.threads import one_thread

__all__ = ["LEAST", "Randomization", "forward_order", "randomization_check", "randomized"]

LEAST = 5  # maps that must be left for a verdict: the mean of two says nothing

Mode = Literal["cascading", "independent"]


@dataclass(frozen=True)
class Randomization:
    """The result of `randomization_check`; S stages, N images. Read `spearman` beside both floors and `undefined`."""

    mode: Mode
    stages: tuple[str, ...]  # from the output down; the modules re-initialised at each stage ("cascading": and all before)
    rho: Tensor  # (S, N) Spearman's rho of each map with the original one; NaN where one of the two does not exist
    floor: float  # mean rho between the original maps of different images: what maps have in common without any meaning
    maps: Tensor | None = None  # (S + 1, N, h, w), unscaled: the original ones, then those of each stage; if they were kept

    @property
    def spearman(self) -> list[float]:
        """Mean rho at each stage, over the images that have both maps; 0 where none has."""
        defined = ~self.rho.isnan()
        return (self.rho.nan_to_num(0).sum(dim=1) / defined.sum(dim=1).clamp(min=1)).tolist()

    @property
    def undefined(self) -> list[float]:
        """Share of the images at each stage whose map, or whose original map, does not exist."""
        return self.rho.isnan().double().mean(dim=1).tolist()

    @property
    def floors(self) -> dict[str, float]:
        """The two floors: the map of another image, and 0 (an unrelated map)."""
        return {"other_image": self.floor, "zero": 0.0}

    @property
    def passed(self) -> bool | None:
        """Whether maps go down to the higher floor: with all layers re-initialised, or ("independent") with each stage by itself.

        None where fewer than `LEAST` maps are left to say so, or where a stage by itself leaves them above the floor, but not
        beyond chance.
        """
        if self.standing:
            return False
        left = self.rho.isnan().logical_not().sum(dim=1)[self._judged()]
        down = max(self.spearman[self._judged()]) <= max(self.floors.values())
        return True if down and bool((left >= LEAST).all()) else None

    @property
    def standing(self) -> tuple[str, ...]:
        """The stages that decide `passed` and leave maps above the higher floor: maps do not need what was learned there.

        Of the many stages of "independent" some are above it by chance: there Student's one-sided interval over the images must
        leave the floor out, at 5 % for all stages together.
        """
        floor, judged, found = max(self.floors.values()), range(len(self.stages))[self._judged()], []
        for i in judged:
            rho = self.rho[i][~self.rho[i].isnan()].double()
            if len(rho) < LEAST or float(rho.mean()) <= floor:
                continue
            ends = student_interval(rho.numpy(), level=1 - 0.1 / len(judged)) if self.mode == "independent" else None
            if ends is None or ends[0] > floor:  # none: all images agree
                found.append(self.stages[i])
        return tuple(found)

    def _judged(self) -> slice:
        """The last stage, when all before are re-initialised, too; or each by itself."""
        return slice(-1, None) if self.mode == "cascading" else slice(None)

    def summary(self) -> dict[str, Any]:
        """Plain numbers for JSON: mode, stages, spearman, undefined, floors, passed, standing."""
        return {
            "mode": self.mode,
            "stages": list(self.stages),
            "spearman": self.spearman,
            "undefined": self.undefined,
            "floors": self.floors,
            "passed": self.passed,
            "standing": list(self.standing),
        }


def randomization_check(
    model: nn.Module,
    images: Tensor,
    cam: Callable[..., Any],
    targets: Targets = None,
    *,
    mode: Mode = "cascading",
    seed: int = 0,
    stages: Sequence[str] | int | None = None,
    grid: int = 14,
    keep_maps: bool = False,
    output: Output = None,
    preprocess: Callable[[Tensor], Tensor] | None = None,
    extra: Extras = None,
) -> Randomization:
    """Re-initialise the network layer by layer and compare its maps with those of the original.

    Maps are compared by Spearman's rho on a grid of at most `grid` x `grid` cells and no finer than the target layer's (see
    `metrics.map_change`): at full size interpolation dominates. The original's similarity with itself is no part of the result.

    Args:
        model: any classifier; given back bit for bit (parameters, buffers, `.grad`, flags, random-number state), exception or
            not.
        images: (N, C, H, W), as the network takes them.
        cam: a map method on `model`, `cam(images, targets) -> (N, H, W)`, such as `GradCAM(model)` (its `raw` maps are used),
            or a class or `functools.partial` of one, called with the network first: `GradCAM`, `partial(GroupCAM, groups=8)`.
        targets: what to explain throughout; None = the original network's top-1 class of each image.
        mode: "cascading" = each stage keeps those before it re-initialised; "independent" = one stage at a time.
        seed: each module draws from a generator of its own, seeded from this and its name.
        stages: names of modules (each with all that is below it), from the output down; a number = neighbours are merged into
            at most so many stages; None = every module with parameters by itself, in reverse order of the forward pass, the
            classifier first.
        grid: most cells along a side. Default: 14.
        keep_maps: put the maps of all stages into the result, to be looked at; they are kept on the CPU. Default: False.
        output: where the logits are in what the network returns; default: as `cam` does. Used if `targets` is None.
        preprocess: applied to images before the network sees them; default: as `cam` does.
        extra: what the network takes beside images, one row per image; see `GroupCAM`. Then `cam(images, targets, extra)` is
            called.

    Returns:
        `Randomization`.

    Raises:
        ValueError: another mode, no images, a stage that does not exist or has no parameters.
    """
    check_choice("mode", mode, ("cascading", "independent"))
    check_seed(seed)
    check_whole("grid", grid, 1)
    check_flag("keep_maps", keep_maps)
    network, images = unwrap(model), check_images(images, targets)
    further = read_extra(extra, images)
    if not len(images):
        raise ValueError("no images: the check needs at least one")
    if isinstance(cam, type) or (isinstance(cam, functools.partial) and isinstance(cam.func, type)):
        cam = cam(network)
    output = getattr(cam, "output", None) if output is None else output
    preprocess = getattr(cam, "preprocess", None) if preprocess is None else preprocess

    plain = CAM(network, output, preprocess, chunk=1)
    with as_found(network, images.device):
        if targets is None:
            with plain.passing(further.usable()):
                scores = torch.cat(plain.in_parts(images, lambda part, _: plain.logits(images[part])))
            rows: Any = plain.target(None, images, scores, scores.dtype, "sigmoid").rows  # indices: no callable was given
            targets = rows
        with plain.passing(further.usable(), targets):
            plan = _stages(network, stages, lambda: plain.probed(images[:1]))
    original = _maps(cam, images, targets, further)
    grid = _coarsest(cam, original, grid)
    rows, kept = [], [original.cpu()] if keep_maps else []
    for i in range(len(plan)):
        members = [name for _, names in (plan[: i + 1] if mode == "cascading" else plan[i : i + 1]) for name in names]
        with _reinitialised(network, members, seed):
            made = _maps(cam, images, targets, further)
            change = map_change(original, made, grid=grid)
        if keep_maps:
            kept.append(made.cpu())
        rows.append(torch.where(change.both, change.spearman, torch.full_like(change.spearman, float("nan"))))
    floor = map_floor(original, grid=grid).item()
    return Randomization(
        mode, tuple(label for label, _ in plan), torch.stack(rows).cpu(), floor, torch.stack(kept) if keep_maps else None
    )


@contextmanager
def randomized(model: nn.Module, names: Sequence[str] | str | None = None, *, seed: int = 0) -> Iterator[nn.Module]:
    """The network with some modules re-initialised, for the length of a `with` block; then bit for bit as before.

    The original parameters and buffers are set aside, not written to: copies stand in for them. A module draws its new
    parameters by its own `reset_parameters` (running statistics of batch norm included), on the CPU, so that they are the same on
    every device. What that leaves as it was gets normal values with the mean and the standard deviation of the old ones (so one
    that is constant stays): a module without a reset, such as a class token or a layer scale, and weights that are made from
    others before each pass (`weight_norm`, `spectral_norm`, pruning).

    Args:
        model: any network; wrappers are looked through.
        names: modules as in `model.named_modules()`, each with all that is below it. Default: the whole network.
        seed: with a module's name it decides its new values, whatever else is re-initialised.

    Yields:
        The bare network.

    Raises:
        ValueError: a name that does not exist, or below which there are no parameters.
    """
    network = unwrap(model)
    names = [""] if names is None else [names] if isinstance(names, str) else list(names)
    with _reinitialised(network, [member for name in names for member in _members(network, name)], seed):
        yield network


def forward_order(network: nn.Module, run: Callable[[], Any]) -> list[str]:
    """Names of all modules that `run()` calls, in the order in which they are first entered (a parent before its children)."""
    order: dict[str, None] = {}

    def record(name: str) -> Callable[..., None]:
        return lambda *_: order.setdefault(name)

    with hooked((module._forward_pre_hooks, record(name)) for name, module in network.named_modules()):
        run()
    return list(order)


def _stages(network: nn.Module, stages: Sequence[str] | int | None, run: Callable[[], Any]) -> list[tuple[str, list[str]]]:
    """What is re-initialised at each stage: a label, and names of modules whose own parameters are meant."""
    if stages is not None and not isinstance(stages, int):
        if isinstance(stages, str) or not isinstance(stages, Sequence) or not stages:
            raise ValueError(f"stages must be a list of module names, a number or None, got {stages!r}")
        return [(name, _members(network, name)) for name in stages]
    order = forward_order(network, run)
    groups: dict[str, list[str]] = {name: [] for name in order}
    for name in _members(network, ""):
        # A module used without being called (attention's output projection) belongs to the nearest one around it that is called.
        home = name
        while home not in groups:
            home = home.rpartition(".")[0]
        groups[home].append(name)
    single = [(name or "(network)", members) for name, members in groups.items() if members][::-1]
    if stages is None:
        return single
    check_whole("stages", stages, 1)
    merged = []
    for part in torch.arange(len(single)).tensor_split(min(stages, len(single))):
        stage = [single[i] for i in part.tolist()]
        label = stage[0][0] if len(stage) == 1 else f"{stage[0][0]} .. {stage[-1][0]}"
        merged.append((label, [name for _, members in stage for name in members]))
    return merged


def _members(network: nn.Module, name: str) -> list[str]:
    """Names of the modules at and below `name` that hold parameters of their own."""
    modules = dict(network.named_modules())
    if name not in modules:
        raise ValueError(f"the network has no module {name!r}; the last ones are {list(modules)[-6:]}")
    below = [other for other in modules if not name or other == name or other.startswith(name + ".")]
    members = [other for other in below if any(p is not None for p in modules[other]._parameters.values())]
    if not members:
        raise ValueError(f"module {name!r} has no parameters to re-initialise")
    return members


@contextmanager
def _reinitialised(network: nn.Module, names: Sequence[str], seed: int) -> Iterator[None]:
    """Copies in the place of all tensors, the parameters of the modules `names` drawn anew; the originals come back."""
    modules = dict(network.named_modules())
    with one_thread(network), _put_back(network) as slots:
        with torch.inference_mode(False), torch.no_grad():  # tensors of an inference mode could not be differentiated through
            _fill(slots, {id(original): original.detach().cpu().clone() for *_, original in slots})
            with torch.random.fork_rng(devices=[]):
                for name in dict.fromkeys(names):
                    torch.default_generator.manual_seed((seed + zlib.crc32(name.encode())) % 2**63)
                    _draw(modules[name])
            drawn = {id(original): getattr(module, name).detach().to(original.device) for module, name, original in slots}
            _fill(slots, drawn)
        yield


@contextmanager
def _put_back(network: nn.Module) -> Iterator[list[tuple[nn.Module, str, Tensor]]]:
    """The slots of a network, which have their tensors again afterwards."""
    slots = list(_slots(network))

    def restore() -> None:
        for module, name, original in slots:
            setattr(module, name, original)

    with restoring(restore):
        yield slots


def _slots(network: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Every place that holds a tensor: (module, name, tensor); shared tensors come several times.

    Plain attributes are among them: hooks leave there the weights that they make, and a reset writes to those.
    """
    for module in network.modules():
        plain = {name: value for name, value in vars(module).items() if not isinstance(value, nn.Parameter)}
        for table in (module._parameters, module._buffers, plain):
            yield from ((module, name, tensor) for name, tensor in list(table.items()) if isinstance(tensor, Tensor))


def _fill(slots: list[tuple[nn.Module, str, Tensor]], values: dict[int, Tensor]) -> None:
    """Put `values`, by identity of the original, into all slots: shared ones stay shared."""
    made: dict[int, Tensor] = {}
    for module, name, original in slots:
        if id(original) not in made:
            value = values[id(original)]
            kept = isinstance(original, nn.Parameter)
            made[id(original)] = nn.Parameter(value, requires_grad=original.requires_grad) if kept else value
        setattr(module, name, made[id(original)])


def _draw(module: nn.Module) -> None:
    """New values for the module's own parameters, from torch's CPU generator."""
    parameters = [parameter for parameter in module._parameters.values() if parameter is not None]
    before = [parameter.clone() for parameter in parameters]
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if callable(reset) and _takes_nothing(reset):
        reset()
    for parameter, old in zip(parameters, before, strict=True):
        numbers = torch.view_as_real(parameter) if parameter.is_complex() else parameter
        if numbers.is_floating_point() and numbers.numel() and torch.equal(parameter, old):
            spread, centre = torch.std_mean(numbers.double(), correction=0)
            numbers.copy_(centre + spread * torch.randn(numbers.shape, dtype=torch.float64))


def _takes_nothing(function: Callable[..., object]) -> bool:
    """Whether a function can be called without arguments."""
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    return True


def _maps(cam: Callable[..., Any], images: Tensor, targets: Targets, extra: Extra) -> Tensor:
    """The method's maps (N, h, w), unscaled where it offers them, not negative."""
    maps = getattr(cam, "raw", cam)(images, targets, *([extra.given()] if extra else []))
    if not isinstance(maps, Tensor) or maps.ndim != 3 or len(maps) != len(images):
        kind = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise ValueError(f"the map method must return one map an image, ({len(images)}, h, w); got {kind}")
    return maps.detach()


def _coarsest(cam: Callable[..., Any], maps: Tensor, grid: int) -> int:
    """Cells along a side: no finer than the layer the maps were taken from, where the method tells its shape."""
    shape = getattr(cam, "layer_shape", ())
    return min(grid, max(shape[-2:])) if len(shape) >= 2 else min(grid, max(maps.shape[1:]))
