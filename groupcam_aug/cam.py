"""What the map methods share: a borrowed network, its output, batches in parts, one observed forward pass."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from groupcam_aug.arguments import changed_options, check_callable, check_output, check_whole
from groupcam_aug.borrow import capture, unwrap
from groupcam_aug.extra import NOTHING, Extra
from groupcam_aug.grid import Grid, is_attention, is_doubtful, may_be_attention, read_grid
from groupcam_aug.layers import find_layer, finer_layer, patches_matter, show_grid, spatial_layers, tokens_in
from groupcam_aug.memory import exhausted, is_out_of_memory
from groupcam_aug.outputs import ends_in_probabilities, mixes_rows, warn_once, why_not_finite
from groupcam_aug.packed import Packing, pack
from groupcam_aug.partial_forward import Tail
from groupcam_aug.relus import is_rectified
from groupcam_aug.spatial_check import probe_image
from groupcam_aug.targets import Activation, Target, Targets, read_target, select_output, selected

__all__ = ["CAM", "COARSE", "Output", "arithmetic", "check_images", "is_channels_last", "slopes_of", "usable"]

Output = str | int | Callable[[Any], Tensor] | None
_T = TypeVar("_T")
_tokens: WeakKeyDictionary[nn.Module, dict[torch.Size, set[int]]] = WeakKeyDictionary()  # how many, by shape of an image
_CHUNK = 64  # images per forward pass at least: enough to fill a GPU, far below what training the same network needs
_MOST = 256  # and at most, for batches that are larger
COARSE = 5  # rows or columns of a grid, below which a map is a few blocks
_HELD = 50  # a forward pass without gradients holds about as many times the image: ResNet-50's widest layers 16 times
_CPU_PIXELS = 400_000  # on a CPU larger batches leave the caches: ResNet-50 at 224 pixels took .15 s an image in 8, .25 in 64


class CAM:
    """What both methods share: the borrowed network, its output, the parts of a batch, one observed forward pass."""

    def __init__(
        self,
        model: nn.Module,
        output: Output,
        preprocess: Callable[[Tensor], Tensor] | None,
        chunk: int | None,
        grid: Sequence[int] | None = None,
    ) -> None:
        check_whole("chunk", chunk, 1, optional=True)
        check_callable("preprocess", preprocess)
        check_output(output)
        if grid is not None and not _is_grid(grid):
            raise ValueError(f"grid must be (rows, columns) or (rows, columns, tokens in front), got {grid!r}")
        self.network = unwrap(model)
        self.stated = None if grid is None else tuple(grid)
        self.rectified: set[str] = set()  # layers that were found, and are read behind the ReLU that the network applies to them
        self.extra = NOTHING  # the network's further inputs for the rows that it is being given; none between calls
        self._any_output = False  # whether a callable target takes several tensors, too, in the call that is being made
        self._packing: Packing | None = None  # of these, in the last pass
        self._grids: dict[tuple[Any, ...], Grid] = {}  # of layers, by the shapes of output and image
        self.output, self.preprocess, self.chunk = output, preprocess, chunk
        self.recheck = True  # look at the values of targets on an accelerator at the next call (it waits for the device)
        self.columns = 0  # of the logits, after the first call
        self._rows = 0  # images in the largest pass of this attempt
        self.probabilities = False  # whether the network's outputs are that already, after the first call
        self._squashes: bool | None = None  # likewise, looked for once their values allow it
        self._alone = False  # one image per pass, because rows of a batch influence each other
        self._graph_from_start = False  # whether the network switches gradients off by itself somewhere
        self._limits: dict[torch.Size, int] = {}  # images per pass that should fit into memory, by shape of the batch
        self._ceilings: dict[torch.Size, int] = {}  # and those that did, once memory ran out, by shape of an image

    def __repr__(self) -> str:
        """The network's class, and the options that differ from their defaults."""
        words = changed_options(type(self).__init__, vars(self) | {"grid": self.stated})
        return f"{type(self).__name__}({', '.join([type(self.network).__name__, *words])})"

    @contextmanager
    def passing(self, extra: Extra, targets: Targets = None) -> Iterator[None]:
        """Inside, what the network is given with images are these further inputs: of as many, or of whole copies of them.

        With a callable among `targets` it may return whatever that takes.
        """
        before = self.extra, self._any_output
        self.extra, self._any_output = extra, self._any_output or (callable(targets) and not isinstance(targets, Tensor))
        try:
            yield
        finally:
            self.extra, self._any_output = before
            self._packing = self._packing if self._any_output else None

    def logits(self, images: Tensor, run: Callable[..., Any] | None = None) -> Tensor:
        """Logits of the network in the caller's precision, whatever they are wrapped in; `run` stands in for `forward`.

        Without a graph where gradients are off, even if the network's forward switches them on.

        Raises:
            ValueError: another number of rows than images.
        """
        with torch.set_grad_enabled(with_graph := torch.is_grad_enabled()):  # a forward may leave them switched on behind it
            logits = self._outputs(images, run)
        return logits if with_graph else logits.detach()

    def probed(self, images: Tensor) -> Tensor:
        """Logits of altered or synthetic images, as of the first image of those in hand: with its further inputs."""
        if not self.extra:
            return self.logits(images)
        with self.passing(self.extra.of_first(len(images))):
            return self.logits(images)

    def forward(self, images: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the network returns for images, and further inputs."""
        return self.network(images if self.preprocess is None else self.preprocess(images), *args, **kwargs)

    def _run(self, images: Tensor, run: Callable[..., Any]) -> Any:
        extra = self.extra.fitting(len(images))
        try:
            return run(images, *extra.args, **extra.kwargs)
        except TypeError as error:
            if _takes(self.network.forward, images, extra):
                raise
            how = "a tuple of positional ones or a dict by name" if extra else "none are given"
            raise TypeError(
                f"{type(self.network).__name__} does not take what it is given ({error}): extra= (of a callback extra_keys=) is "
                f"for inputs beside the images, {how}"
            ) from error

    def _outputs(self, images: Tensor, run: Callable[..., Any] | None = None) -> Tensor:
        count = len(images)
        self._rows = max(self._rows, count)
        if 0 not in images.stride():  # blanks, which are one number, cannot be written to
            images = images.clone()  # the network, or `preprocess`, may normalise in place
        result = self._run(images, run or self.forward)
        logits = self._packed(result, count) if self._any_output else select_output(result, self.output)
        if logits.ndim >= 2 and len(logits) != count:
            raise ValueError(
                f"{type(self.network).__name__} returns {len(logits)} rows of logits for {count} images: "
                "return one row an image, or gather them with output= (a callable on what the network returns)"
            )
        return logits

    def _packed(self, result: Any, count: int) -> Tensor:
        """What a callable target is given, as one tensor."""
        chosen, self._packing = selected(result, self.output), None
        if isinstance(chosen, Tensor):
            return chosen
        packed, self._packing = pack(result if chosen is None else chosen, count, type(self.network).__name__)
        return packed

    def passes(self, images: Tensor) -> int:
        """Most images per forward pass."""
        if self._alone:
            return 1
        if images.shape not in self._limits:
            self._limits[images.shape] = self._most(images)
        most = self._limits[images.shape]
        return min(most, self._ceilings.get(images.shape[1:], most))

    def in_parts(self, images: Tensor, work: Callable[[slice, int], _T]) -> list[_T]:
        """`work(part of the batch, most images per pass)` on parts of the batch that fit into one pass.

        Out of memory, everything is done once more in passes half as large as the largest that there was, down to one image;
        what fits is kept to.

        Raises:
            torch.OutOfMemoryError, MemoryError: one image does not fit either.
        """
        chunk = first = self.passes(images)
        while True:
            self._rows = min(chunk, len(images))
            try:
                done = []
                for part in _slices(len(images), chunk):
                    with self.passing(self.extra[part]):
                        done.append(work(part, chunk))
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if min(chunk, self._rows) == 1:
                    raise exhausted(error, images) from error
            chunk = min(chunk, self._rows) // 2  # here, not in the handler: the error holds on to the tensors of that pass
        if chunk != first:
            self._ceilings[images.shape[1:]] = chunk
            warnings.warn(
                f"out of memory while mapping {len(images)} images; going on with at most {chunk} per forward pass "
                f"(chunk={chunk} begins there)",
                stacklevel=2,
            )
        return done

    def mapped(self, images: Tensor, work: Callable[[slice, int], _T]) -> list[_T]:
        """As `in_parts`, but image by image if the network lets the rows of a batch influence each other."""
        results = self.in_parts(images, work)
        return self.in_parts(images, work) if self.mixes_rows(images) else results

    def mixes_rows(self, images: Tensor) -> bool:
        """Look, once a network, whether rows of a batch influence each other; if so, all goes on one image at a time."""
        if not len(images) or self.passes(images) == 1:
            return False
        with torch.no_grad():
            self._alone = mixes_rows(self.network, self.probed, images)
        return self._alone

    def _most(self, images: Tensor) -> int:
        if self.chunk is not None:
            return self.chunk
        if images.device.type == "cpu":
            return max(1, min(_CHUNK, _CPU_PIXELS // (images.shape[-2] * images.shape[-1])))
        chunk = min(max(_CHUNK, len(images)), _MOST)
        if images.device.type == "cuda":
            device = images.device
            free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            while chunk > 1 and chunk * images[0].numel() * 4 * _HELD > free / 2:
                chunk //= 2  # by halves, so that a few bytes more or less do not change a run
        return chunk

    def _observe(
        self, images: Tensor, layers: Sequence[str], *, leaves: Sequence[str] = (), tail: Tail | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """One pass: the outputs of `layers`, and the logits. The graph, if any, begins at the first of `leaves`."""
        # `_leaf` switches gradients on in the middle of the pass; leaving this block switches them off again. A network that
        # does so by itself, with a `no_grad` block around its backbone, would switch them off at that block's end: there they
        # are on from the start.
        cut: list[str] = []
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(bool(leaves) and self._graph_from_start))
            if tail is not None:
                stack.enter_context(tail.recording())
            captured = {
                name: stack.enter_context(
                    capture(
                        self.network.get_submodule(name),
                        name,
                        replace=partial(_leaf, name, cut) if name in leaves else None,
                        rectified=name in self.rectified,
                    )
                )
                for name in dict.fromkeys(layers)
            }
            logits = self._outputs(images)
        if leaves and cut and not logits.requires_grad and not self._graph_from_start:
            self._graph_from_start = True
            return self._observe(images, layers, leaves=leaves, tail=tail)
        silent = [name for name, layer in captured.items() if not layer.calls]
        if silent:
            fired = spatial_layers(self.network, self.probed, images)
            raise RuntimeError(f"{captured[silent[0]].silence()}. Layers that did, the last ones: {fired[-6:]}")
        outputs = {name: _floating(name, layer.one()) for name, layer in captured.items()}
        for name, output in outputs.items():
            if not output.ndim or len(output) != len(images):
                raise ValueError(
                    f"layer {name!r} returns {tuple(output.shape)} for {len(images)} images: windows, frames or crops are folded "
                    "into its rows, or the rows are not images. Choose a layer in front of that or behind it, for instance its "
                    "parent"
                )
        if not leaves:  # no graph is asked for, whatever the network switches on
            outputs, logits = {name: output.detach() for name, output in outputs.items()}, logits.detach()
        return outputs, logits

    def grid(self, name: str, output: Tensor, images: Tensor, *, matters: bool) -> Grid:
        """The grid in the output of layer `name` for `images`; with `matters` also checked to reach the logits, at first sight.

        Raises:
            ValueError: no grid, or one of which no position influences the logits, so that maps would be empty.
        """
        size = (images.shape[-2], images.shape[-1])
        key = (name, output.shape[1:], size, matters)
        if key not in self._grids:
            if is_doubtful(output, size) or self._is_attention(output, images):
                grid = show_grid(self.network, self.probed, images, name, self.stated)
            else:
                grid = read_grid(output, size, name)
            if matters and grid.extra(output) and not patches_matter(self.network, self.probed, images, name, grid):
                raise ValueError(
                    f"the patches in layer {name!r} do not influence the logits, which are read off the tokens beside them: its "
                    f"maps would be empty. Choose an earlier layer, such as {self.find(images)!r}"
                )
            if min(grid.height, grid.width) < COARSE:
                self._warn_of_blocks(name, grid, images)
            self._grids[key] = grid
        return self._grids[key]

    def _is_attention(self, output: Tensor, images: Tensor) -> bool:
        """See `grid.is_attention`; a pass of one image tells how many tokens the network has."""
        if not may_be_attention(output):
            return False
        known = _tokens.setdefault(self.network, {})
        if images.shape[1:] not in known:
            known[images.shape[1:]] = tokens_in(self.network, self.probed, images)
        return is_attention(output, known[images.shape[1:]])

    def _warn_of_blocks(self, name: str, grid: Grid, images: Tensor) -> None:
        finer = finer_layer(self.network, self.probed, images, COARSE)
        warn_once(
            self.network,
            "blocks",
            f"layer {name!r} has {grid.height} x {grid.width} cells for images of {images.shape[-2]} x {images.shape[-1]}: a map "
            "cannot follow an object, only pick blocks. Use larger images"
            + (f", or an earlier layer: layer={finer[0]!r} has {finer[1][0]} x {finer[1][1]}" if finer else ""),
        )

    def find(self, images: Tensor) -> str:
        """See `layers.find_layer`. A layer that goes into nothing but a ReLU is noted in `rectified`: it is read behind that."""
        name = find_layer(self.network, self.probed, images, self.stated)
        if is_rectified(self.network, self.probed, probe_image(images), name):
            self.rectified.add(name)
        return name

    def target(self, targets: Targets, images: Tensor, logits: Tensor, dtype: torch.dtype, activation: Activation) -> Target:
        """The targets of `images`, checked against their logits; what these tell about the network is looked at as well."""
        logits = logits.detach()
        self.columns = logits.shape[-1] if logits.ndim else 0
        if self._any_output and (not logits.ndim or len(logits) != len(images)):
            raise ValueError(
                f"{type(self.network).__name__} returns {tuple(logits.shape)} for {len(images)} images: a target callable is "
                "given one row per image, (N, ...); give output=, a callable on what the network returns that brings them there"
            )
        if (self.recheck or logits.device.type == "cpu") and self._packing is None:
            self._look(images, logits, named=targets is None or not callable(targets))
        reading = None if self.probabilities else activation
        unpack = None if self._packing is None else self._packing.unpack
        return read_target(targets, logits.to(dtype), reading, check=self.recheck, unpack=unpack)

    def _look(self, images: Tensor, logits: Tensor, *, named: bool) -> None:
        """Notice outputs that are no logits: features, probabilities, no numbers."""
        name = type(self.network).__name__
        widths = {vars(self.network).get(attribute) for attribute in ("num_features", "head_hidden_size")} - {None}
        # timm's and others'. Where a head was put on by hand, the outputs are no longer as many as the features.
        features = vars(self.network).get("num_classes") == 0 and (not widths or self.columns in widths)
        if named and features:
            raise ValueError(
                f"{name} has num_classes=0: it returns features, not logits. Give it a head, or targets as a callable on what it "
                "returns; for a callback, give the LightningModule a forward through backbone and head, and leave network= out"
            )
        if logits.ndim != 2 or not logits.numel():
            return
        finite = logits[logits.isfinite().all(dim=1)]
        if len(finite):  # else there is no word on it
            self.probabilities = bool(((finite >= 0) & (finite <= 1.01)).all())
        if self.probabilities and self._squashes is None:
            with torch.no_grad():
                self._squashes = ends_in_probabilities(self.probed, images)
        self.probabilities = self.probabilities and bool(self._squashes)
        if self.probabilities:
            warn_once(
                self.network,
                "probabilities",
                f"{name} ends in a softmax or sigmoid: its outputs are taken as the probabilities they are, and activation= is "
                "not applied. Where gradients vanish, explain the logits: the network without that last step",
            )
        elif not bool(logits.isfinite().any()) and bool(images.isfinite().all()):
            warn_once(self.network, "nan", f"no output is a finite number, so no image has a map: {why_not_finite(self.network)}")


def check_images(images: Tensor, targets: Targets = None) -> Tensor:
    """`images` as a plain detached tensor, if they are a floating-point batch (N, C, H, W) and `targets` are as many.

    Raises:
        TypeError: no tensor, or integers (uint8 pixels not yet scaled and normalised).
        ValueError: another number of dimensions, or a list or tensor of targets of another length.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor (N, C, H, W), got {type(images).__name__}")
    if not images.is_floating_point():
        raise TypeError(
            f"images must be floating point as the network takes them, got {images.dtype}. Scale and normalise them first "
            "(torchvision.transforms.v2.ToDtype(torch.float32, scale=True), then Normalize)"
        )
    if images.ndim != 4:
        raise ValueError(f"images must be a batch (N, C, H, W), got the shape {tuple(images.shape)}")
    if is_channels_last(images):
        raise ValueError(
            f"images of the shape {tuple(images.shape)} have their channels last: bring them to (N, C, H, W) with "
            "images.permute(0, 3, 1, 2)"
        )
    count = len(targets) if isinstance(targets, list | tuple) or (isinstance(targets, Tensor) and targets.ndim) else None
    if count is not None and count != len(images):
        raise ValueError(f"{count} targets for {len(images)} images: give one target per image, or a single int for all")
    return images.as_subclass(Tensor).detach()


def is_channels_last(images: Tensor) -> bool:
    """Whether a batch of images has the shape (N, H, W, C): three or four (or one) of something last, many in front of it."""
    return images.shape[3] in (1, 3, 4) and min(images.shape[1:3]) > 4


def usable(images: Tensor) -> Tensor:
    """Outside inference mode, so that autograd may start from what the network makes of them."""
    return images.clone() if images.is_inference() else images


def arithmetic(images: Tensor) -> torch.dtype:
    """The dtype that saliency is computed in: float64 for float64 images, else float32."""
    return torch.float64 if images.dtype == torch.float64 else torch.float32


def _takes(forward: Callable[..., Any], images: Tensor, extra: Extra) -> bool:
    """Whether a network's forward can be called with these arguments, as far as its signature tells."""
    try:
        inspect.signature(forward).bind(images, *extra.args, **extra.kwargs)
    except TypeError:
        return False
    return True


def _is_grid(grid: Any) -> bool:
    if not isinstance(grid, list | tuple) or len(grid) not in (2, 3):
        return False
    whole = all(isinstance(side, int) and not isinstance(side, bool) for side in grid)
    return whole and min(grid[:2]) >= 1 and min(grid) >= 0


def _slices(count: int, chunk: int) -> Iterator[slice]:
    return (slice(start, start + chunk) for start in range(0, count, chunk))


def _leaf(name: str, cut: list[str], output: Tensor) -> Tensor:
    """A capture's replacement that starts a graph at its layer, unless one has started at an earlier layer, noted in `cut`."""
    output = _floating(name, output)
    torch.set_grad_enabled(True)
    if cut and output.requires_grad:
        return output
    cut.append(name)
    return output.detach().requires_grad_()


def _floating(name: str, output: Tensor) -> Tensor:
    if not output.is_floating_point():
        raise TypeError(
            f"layer {name!r} returns {output.dtype}, of which no map can be made: choose a layer in floating point, or map the "
            "network as it was before quantisation"
        )
    return output


def slopes_of(value: Callable[[Tensor], Tensor], logits: Tensor, outputs: list[Tensor], names: list[str]) -> list[Tensor]:
    """dy/dA for each captured output; rows do not mix in eval mode, so one backward pass over the sum serves the batch."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    slopes: tuple[Tensor | None, ...] = (None,) * len(outputs)
    if logits.requires_grad:
        with torch.enable_grad():
            total = value(logits.to(dtype)).sum()
        slopes = torch.autograd.grad(total, outputs, allow_unused=True)
    for name, slope in zip(names, slopes, strict=True):
        if slope is None:
            raise ValueError(
                f"the logits do not depend on layer {name!r}, or the network detaches what follows it (no_grad, detach, "
                "checkpointing with use_reentrant=True): no gradient there. Choose another layer, or weights='none'"
            )
    return [slope for slope in slopes if slope is not None]
