"""Weights of torchvision's and timm's architectures: read them from files and load them into networks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import DataError
from ..training.models import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    create_network,
    describe,
    description,
    takes_half,
    with_library,
)
from ..training.safe_load import safe_load_any

_WRAPPERS = r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
_FILLED = (".blur", ".num_batches_tracked")  # buffers that older files lack
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # training-only heads of googlenet and inception_v3
_QUERIES = ("encoder_q", "base_encoder", "query")  # MoCo's trained encoder; the other one is its moving average


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The tensors of a file, and known facts about their network. None: unknown."""

    path: Path
    tensors: dict[str, Tensor]
    """All tensors of the file by dotted path, such as "model.fc.bias" in the entry "model" of a checkpoint"""
    arch: str | None = None
    """Name of the architecture: torchvision's, or timm/NAME"""
    num_classes: int | None = None
    """Number of outputs"""
    classes: list[str] | None = None
    """Names of the outputs; there may be fewer names than outputs"""
    blurpool: bool | None = None
    """Whether strided convolutions blur their input"""
    cifar_stem: bool | None = None
    """Whether the stem is the one for images of 32 px"""
    mean: list[float] | None = None
    """Mean of the normalisation, in units of [0, 1]"""
    std: list[float] | None = None
    """Standard deviation of the normalisation, in units of [0, 1]"""
    resolution: int | None = None
    """Side of the validation images, px"""
    crop_ratio: float | None = None
    """Side of the centre crop as a share of the shorter side"""
    interpolation: str | None = None
    """bilinear or bicubic"""
    flip_tta: bool | None = None
    """Whether the outputs for each image and its horizontal flip are averaged"""
    notes: list[str] = field(default_factory=list)
    """Notes for the user, such as entries that are ignored"""


def read_weights(path: Path) -> Weights:
    """Read a state dict, or a checkpoint that contains one or several at any depth.

    Facts about the network come from the description in the state dict (`models.describe`), or else from the options or
    arguments in the checkpoint, or else from params.json beside the file. No code of the file runs: only tensors and
    plain values are unpickled. Other objects are skipped, and listed in `notes`.

    Raises:
        DataError: The file cannot be read, or contains no weights.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> with TemporaryDirectory() as folder:
        ...     state = create_network("squeezenet1_1", 10).state_dict()
        ...     torch.save({"epoch": 3, "model": state}, Path(folder, "checkpoint.pt"))
        ...     weights = read_weights(Path(folder, "checkpoint.pt"))
        >>> weights.arch, weights.num_classes
        ('squeezenet1_1', 10)
    """
    content, ignored = safe_load_any(path)
    tensors = dict(_flat(content))
    if not tensors:
        raise DataError(f"{path} has no weights: neither a state dict, nor a checkpoint with one")
    tensors, blurred = _plain_keys(tensors)
    facts = _description(content) or {**_run_facts(_run_options(path)), **_checkpoint_facts(content)}
    known = Weights.__dataclass_fields__.keys() - {"path", "tensors", "notes"}
    facts = {name: value for name, value in facts.items() if name in known and value is not None}
    facts |= {"blurpool": True} if blurred else {}
    notes = [f"skipped in {path}, as neither tensors nor plain values: {', '.join(ignored)}"] if ignored else []
    return Weights(path=path, tensors=tensors, notes=notes, **facts)


def _flat(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")


def _plain_keys(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """Rename the keys to those of torchvision and this package; return them and whether convolutions are blurred."""
    tensors = {re.sub(_WRAPPERS, "", key): value for key, value in tensors.items()}
    for key in [key for key in tensors if key.endswith(".blur_filter")]:  # ffcv-imagenet's
        name = key.removesuffix(".blur_filter")
        for part in ("weight", "bias"):
            if f"{name}.conv.{part}" in tensors:
                tensors[f"{name}.{part}"] = tensors.pop(f"{name}.conv.{part}")
        tensors[f"{name}.blur"] = tensors.pop(key)
    old = r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"  # in torchvision's files of DenseNets
    tensors = {re.sub(old, r"\1\2", key): value for key, value in tensors.items()}
    return tensors, any(key.endswith(".blur") for key in tensors)


def _description(content: Any) -> dict[str, Any]:
    """Return the first description in nested state dicts, or an empty dictionary."""
    found = description(content)
    for value in content.values():
        if not found and isinstance(value, dict):
            found = _description(value)
    return found


def _run_options(weights: Path) -> dict[str, Any]:
    """Read params.json beside the weights, of this trainer or of ffcv-imagenet; empty without one."""
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
        raise DataError(f"{path} does not contain the options of a run: {error}") from None


def _run_facts(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts from options by "section.key". Runs without a description normalised by ImageNet's statistics."""
    if not options:
        return {}
    arch = options.get("model.arch")
    half = takes_half(arch) and options.get("model.pretrained")
    tta = options.get("validation.lr_tta")
    return {
        "arch": arch,
        "num_classes": options.get("model.num_classes"),
        "blurpool": bool(options.get("training.use_blurpool")),
        "cifar_stem": bool(options.get("model.cifar_stem")),
        "mean": [0.5] * 3 if half else list(IMAGENET_MEAN),
        "std": [0.5] * 3 if half else list(IMAGENET_STD),
        "resolution": options.get("validation.resolution"),
        "crop_ratio": options.get("validation.crop_ratio"),
        "interpolation": "bilinear",
        "flip_tta": None if tta is None else bool(tta),
    }


def _checkpoint_facts(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts from a checkpoint: options of this trainer, or arguments of timm's or torchvision's scripts."""
    options, arguments = content.get("options"), content.get("args")
    facts = _run_facts(options) if isinstance(options, dict) else {}
    given = (
        dict(arguments) if isinstance(arguments, dict) else vars(arguments) if hasattr(arguments, "__dict__") else {}
    )
    arch = content.get("arch", given.get("model"))
    if not isinstance(arch, str):
        return facts
    facts["arch"] = with_library(arch, timm="state_dict" in content and given.get("model") == arch)
    crop, resize = given.get("val_crop_size"), given.get("val_resize_size")  # torchvision's
    taken = {
        "mean": given.get("mean"),
        "std": given.get("std"),
        "num_classes": given.get("num_classes"),
        "resolution": crop or given.get("img_size"),
        "crop_ratio": crop / resize if crop and resize else given.get("crop_pct"),
        "interpolation": given.get("interpolation"),
    }
    known = {"interpolation": ("bilinear", "bicubic")}
    return facts | {name: value for name, value in taken.items() if value in known.get(name, [value]) and value}


def create_with_weights(
    weights: Weights, arch: str | None = None, num_classes: int | None = None, *, entry: str | None = None
) -> nn.Module:
    """Create the network of the weights and load them.

    Args:
        weights: See `read_weights`.
        arch: Name of the architecture; None: from the weights.
        num_classes: Number of outputs; None: from the weights.
        entry: Entry of the checkpoint, such as "state_dict_ema"; None: see `load_weights`.

    Raises:
        ValueError: The architecture does not exist, or it, the number of outputs or the normalisation is unknown.
        DataError: The weights are of another architecture, or of another number of classes.
    """
    path = weights.path
    arch, num_classes = arch or weights.arch, num_classes or weights.num_classes
    if arch is None:
        raise ValueError(f"--arch NAME is needed: neither {path} nor params.json beside it contains it")
    if num_classes is None:
        raise ValueError(f"{path} does not say how many classes it has")
    if takes_half(arch) and weights.mean is None:
        raise ValueError(
            f"{path} does not say how images are normalised: --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5 for torchvision's "
            f"{arch}, or --mean {' '.join(map(str, IMAGENET_MEAN))} --std {' '.join(map(str, IMAGENET_STD))}"
        )
    network = create_network(arch, num_classes, blurpool=bool(weights.blurpool), cifar_stem=bool(weights.cifar_stem))
    normalisation = {"mean": weights.mean, "std": weights.std}
    describe(network, **{name: list(value) for name, value in normalisation.items() if value})
    load_weights(network, weights, arch, f" with {num_classes} classes", entry=entry)
    if weights.arch and weights.arch.removeprefix("timm/") != arch.removeprefix("timm/"):
        raise DataError(f"{path} is of {weights.arch}, not of {arch}")  # some share all shapes
    return network


def load_weights(
    network: nn.Module,
    weights: Weights,
    what: str,
    size: str = "",
    *,
    entry: str | None = None,
    without: Sequence[str] = (),
) -> None:
    """Load the tensors of a file into a network, behind whatever prefix wrappers and checkpoints gave them.

    If several entries fit, averaged weights (a prefix with "ema") and MoCo's query encoder take precedence;
    `weights.notes` says so. The file must contain all tensors of the network.

    Args:
        network: The network, changed in place.
        weights: See `read_weights`.
        what: Name of the network, for messages.
        size: What its shapes depend on, for messages.
        entry: The prefix, or a part of it, such as "state_dict_ema".
        without: Prefixes of further tensors of the file that the network may lack.

    Raises:
        DataError: No entry fits, or several fit equally well.
    """
    path, own = weights.path, network.state_dict()
    needed = [key for key in own if not key.endswith(_FILLED)]
    prefix = _prefix(weights, needed, what, entry)
    found = {key.removeprefix(prefix): value for key, value in weights.tensors.items() if key.startswith(prefix)}
    for key in needed:
        theirs, ours = (tuple(of[key].shape) if key in of else None for of in (found, own))
        if theirs and theirs != ours:
            raise DataError(f"{path}: {key} has the shape {theirs}, in {what}{size} it has {ours}")
        if theirs is None:
            count = sum(other not in found for other in needed) - 1
            raise DataError(f"{path} is not of {what}: it lacks {key}{f' and {count} more' if count else ''}")
    left = sorted(found.keys() - own.keys())
    skipped = [key for key in left if key.startswith((*_AUXILIARY, *without))]
    further = [key for key in left if key not in skipped]
    if further:
        more = f" and {len(further) - 1} more" if further[1:] else ""
        raise DataError(f"{path} is not of {what}: it also has {further[0]}{more}")
    finite = (key for key in needed if own[key].isfinite().all())  # others are constants
    broken = next((key for key in finite if not found[key].isfinite().all()), None)
    if broken:
        raise DataError(f"{path}: {broken} contains NaN or infinity: the training had diverged")
    around = prefix.partition(".")[0] + "."  # the entry of the checkpoint
    skipped += [key for key in weights.tensors if key.startswith(around) and not key.startswith(prefix)]
    skipped = [key for key in skipped if not key.endswith("n_averaged")]  # a counter of torch's AveragedModel
    if skipped:
        more = f" and {len(skipped) - 1} more" if skipped[1:] else ""
        weights.notes.append(f"skipped in {path}: {skipped[0]}{more}")
    network.load_state_dict({key: found.get(key, value) for key, value in own.items()})


def _prefix(weights: Weights, needed: list[str], what: str, entry: str | None) -> str:
    """Return the prefix of the network's keys in the file."""
    prefixes = {key.removesuffix(needed[0]) for key in weights.tensors if f".{key}".endswith(f".{needed[0]}")}
    counts = {
        prefix: sum(prefix + key in weights.tensors for key in needed)
        for prefix in prefixes
        if entry is None or f".{entry}." in f".{prefix}"
    }
    if not counts:
        found = ", ".join(sorted({key.partition(".")[0] for key in weights.tensors})[:5])
        where = f" in {entry}" if entry else ""
        raise DataError(f"{weights.path} is not of {what}: it has no {needed[0]}{where}, but {found}, ...")
    best = sorted(prefix for prefix, count in counts.items() if count == max(counts.values()))
    if len(best) == 1:
        return best[0]
    for mark in ("ema", *_QUERIES):
        chosen = [prefix for prefix in best if re.search(rf"(?<![a-z]){mark}(?![a-z])", prefix)]
        if len(chosen) == 1:
            others = ", ".join(prefix.rstrip(".") or "the rest" for prefix in best if prefix not in chosen)
            weights.notes.append(f"{weights.path}: using {chosen[0].rstrip('.')}, not {others}; choose with --entry")
            return chosen[0]
    choices = ", ".join(prefix.rstrip(".") for prefix in best)
    raise DataError(f"{weights.path} has several networks that fit {what}: choose one with --entry: {choices}")
