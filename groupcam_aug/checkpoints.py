"""Files of network weights: safetensors, or what `torch.save` wrote; tensors and plain values only, never code."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["fingerprint", "read_checkpoint", "read_state_dict", "state_dict_of"]

_NESTED = ("state_dict", "model")  # keys that a state dict is found under
_PREFIXES = ("module.", "network.", "model.")  # that wrappers leave on every key


def fingerprint(network: nn.Module) -> str:
    """What tells a network's parameters and buffers from others, 16 characters: results of other weights must not be mixed."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def read_checkpoint(path: str | Path) -> Any:
    """The content of a file, on the CPU.

    Args:
        path: `.safetensors`, or any file that `torch.save` wrote (`.pt`, `.pth`, `.ckpt`), read with `weights_only=True`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another kind of file, or a part of one.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {str(path)!r}: no such file (looked in {path.absolute().parent})")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"checkpoint {str(path)!r} is no whole safetensors file ({error}); fetch it again") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file fails in any way: zip, pickle, text, index
        raise ValueError(
            f"checkpoint {str(path)!r} is no file of tensors and plain values "
            f"({str(error).strip().partition(chr(10))[0] or type(error).__name__}); save model.state_dict(), not the model"
        ) from error


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU.

    Args:
        path: as in `read_checkpoint`; a plain state dict, or one under the key `state_dict` or `model`. A prefix that a wrapper
            left on all keys (`module.`, `network.`, `model.`) goes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no state dict.
    """
    state = _nested(read_checkpoint(path))
    if not isinstance(state, Mapping) or not state or not all(_is_named(key, value) for key, value in state.items()):
        content = f"a mapping with the keys {list(state)[:5]}" if isinstance(state, Mapping) else f"a {type(state).__name__}"
        raise ValueError(f"checkpoint {str(path)!r} holds {content}, not names and tensors; save model.state_dict()")
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return dict(state)


def state_dict_of(network: nn.Module, path: str | Path) -> dict[str, Tensor]:
    """The state dict of `network` in a file that may hold other things beside it, under any common prefix.

    Args:
        network: what the names and shapes must fit; its own BatchNorm step counters stand in for missing ones.
        path: as in `read_checkpoint`; the tensors lie at the top, or under the key `state_dict` or `model`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not hold every tensor of the network.
    """
    state, own = _nested(read_checkpoint(path)), network.state_dict()
    needed = [name for name in own if not name.endswith("num_batches_tracked")]
    state = {key: value for key, value in state.items() if _is_named(key, value)} if isinstance(state, Mapping) else {}
    prefixes = sorted({key.removesuffix(needed[0]) for key in state if key.endswith(needed[0])}, key=len) if needed else [""]
    for prefix in prefixes:
        if all(prefix + name in state and state[prefix + name].shape == own[name].shape for name in needed):
            return {name: state.get(prefix + name, value) for name, value in own.items()}
    raise ValueError(
        f"checkpoint {str(path)!r} does not hold the weights of {type(network).__name__} (looked for {needed[0]!r} and "
        f"{len(needed) - 1} more, under any common prefix): give a checkpoint of the same network with the same classes"
    )


def _is_named(key: Any, value: Any) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor)


def _nested(content: Any) -> Any:
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    return content
