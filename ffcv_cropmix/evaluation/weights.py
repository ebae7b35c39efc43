"""Weights of torchvision architectures, from the files that hold them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import DataError
from ..training.checkpoint import read
from ..training.models import create_network


@dataclass(frozen=True)
class Weights:
    """A state dict, and what is known of the network that it belongs to."""

    path: Path
    state: dict[str, Tensor]
    """With torchvision's keys"""
    arch: str | None
    """As far as the file, or params.json beside it, tells"""
    num_classes: int | None
    """Outputs that the run was told to have"""
    blurpool: bool
    """Whether strided convolutions blur their input"""
    cifar_stem: bool
    """Whether the first layers are those for images of 32 px"""
    resolution: int | None
    """Side of the validation images of the run, px"""


def read_weights(path: Path) -> Weights:
    """Read a state dict, or a checkpoint that has one under "ema", "model" or "state_dict", the first of these.

    Files of this trainer, torchvision, the authors of CropMix, and ffcv-imagenet: prefixes that wrappers leave in keys
    are removed, and so is ffcv-imagenet's way of naming blurred convolutions. Only tensors and plain values are
    unpickled.

    Raises:
        DataError: it cannot be read, or has no weights.
    """
    content = read(path)
    run = _run_options(path)
    arch = run.get("model.arch")
    arch = content["arch"] if isinstance(content.get("arch"), str) else arch
    entries = (content.get(name) for name in ("ema", "model", "state_dict"))
    found = next((entry for entry in entries if isinstance(entry, dict)), content)
    if not any(isinstance(value, Tensor) for value in found.values()):
        raise DataError(f"{path} has no weights: neither a state dict, nor one under ema, model or state_dict")
    state, blurred = _plain_keys(found)
    return Weights(
        path=path,
        state=state,
        arch=arch,
        num_classes=run.get("model.num_classes"),
        blurpool=blurred or bool(run.get("training.use_blurpool")),
        cifar_stem=bool(run.get("model.cifar_stem")),
        resolution=run.get("validation.resolution"),
    )


def _plain_keys(state: dict[str, Any]) -> tuple[dict[str, Tensor], bool]:
    """The keys as torchvision has them, and whether ffcv-imagenet's blurred convolutions were among them."""
    tensors = {
        re.sub(r"^((module|network|_orig_mod)\.)+", "", key): value
        for key, value in state.items()
        if isinstance(value, Tensor) and key != "n_averaged"  # a counter of torch's AveragedModel
    }
    blurred = {key.removesuffix(".blur_filter") for key in tensors if key.endswith(".blur_filter")}
    for name in blurred:
        del tensors[f"{name}.blur_filter"]
        tensors = {key.replace(f"{name}.conv.", f"{name}."): value for key, value in tensors.items()}
    return tensors, bool(blurred)


def _run_options(weights: Path) -> dict[str, Any]:
    """The options of the run that left the weights, "section.key" to value; of this trainer, or of ffcv-imagenet."""
    path = weights.with_name("params.json")
    try:
        params = json.loads(path.read_text())
        flat: dict[str, Any] = {}
        for name, value in params.items():
            flat |= {f"{name}.{key}": of for key, of in value.items()} if isinstance(value, dict) else {name: value}
        return flat
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path} does not hold the options of a run: {error}") from None


def create_with_weights(weights: Weights, arch: str, num_classes: int) -> nn.Module:
    """The network with its weights.

    Raises:
        ValueError: torchvision has no such architecture.
        DataError: the weights are of another architecture, or of another number of classes.
    """
    network = create_network(arch, num_classes, blurpool=weights.blurpool, cifar_stem=weights.cifar_stem)
    own, path = network.state_dict(), weights.path
    for key in own:
        theirs, ours = (tuple(of[key].shape) if key in of else None for of in (weights.state, own))
        if theirs and theirs != ours:
            raise DataError(f"{path}: {key} is {theirs}, that of {arch} with {num_classes} classes is {ours}")
    for keys, what in ((own.keys() - weights.state.keys(), "lacks"), (weights.state.keys() - own.keys(), "also has")):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise DataError(f"{path} is not of {arch}: it {what} {min(keys)}{more}")
    network.load_state_dict(weights.state)
    return network
