"""``groupcam-aug export``: the network of a checkpoint as a plain state dict."""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch

from groupcam_aug.files import put_file
from groupcam_aug.recipes import parsers
from groupcam_aug.recipes.classifier import load_classifier
from groupcam_aug.recipes.cli import refusing
from groupcam_aug.recipes.saved_classifier import INFO, is_harmless, kept_choices, read_classifier

__all__ = ["export_state_dict", "run"]


def run(command: str, words: list[str]) -> int:
    """The command: write, say where."""
    options = parsers.export(command).parse_args(words)
    with refusing():
        print(f"wrote {export_state_dict(options.checkpoint, options.out)}")
    return 0


def export_state_dict(checkpoint: str | Path, out: str | Path) -> Path:
    """Write the network's plain state dict, names as in the bare network.

    Metadata of a ``.safetensors`` file say, as JSON, what a checkpoint says of itself: ``network``, ``num_classes``,
    ``class_names``, ``mean``, ``std``, ``size`` and ``resize``. `load_classifier` reads such a file as it reads a checkpoint.

    Args:
        checkpoint: as in `load_classifier`.
        out: ``.safetensors``, ``.pt`` or ``.pth``; folders are made.

    Raises:
        ValueError: another suffix, not such a checkpoint, or weights that do not fit its network, where that may be made.
    """
    out = Path(out).expanduser()
    if out.suffix not in (".safetensors", ".pt", ".pth"):
        raise ValueError(f"out={str(out)!r} must end in .safetensors, .pt or .pth")
    saved = read_classifier(checkpoint)
    tensors, network = saved["state_dict"], saved["hyper_parameters"]["network"]
    state = {name.removeprefix("network."): one.contiguous() for name, one in tensors.items() if name.startswith("network.")}
    if not state:
        raise ValueError(
            f"{str(checkpoint)!r} holds no weights of a network: no name of its {len(tensors)} begins with 'network.'"
        )
    if network is not None and is_harmless(network):
        load_classifier(checkpoint)  # which refuses weights that do not fit
    if out.suffix == ".safetensors":
        from safetensors.torch import save

        about = {name: saved["hyper_parameters"][name] for name in INFO} | {"resize": kept_choices(saved).get("resize")}
        metadata = {"format": "pt", **{name: json.dumps(value) for name, value in about.items()}}
        content = save({key: value.clone() for key, value in state.items()}, metadata)
    else:
        buffer = io.BytesIO()  # what torch.save says of a full disk helps nobody
        torch.save(state, buffer)
        content = buffer.getvalue()
    put_file(out.parent, out.name, content)
    return out
