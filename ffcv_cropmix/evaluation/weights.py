"""Weights of torchvision's and timm's architectures, from the files that hold them."""

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
_FILLED = (".blur", ".num_batches_tracked")  # buffers that older files do not have
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # heads of googlenet and inception_v3, for training only
_QUERIES = ("encoder_q", "base_encoder", "query")  # MoCo's trained encoder; the other one follows it


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The tensors of a file, and what is known of the network that they belong to; None: unknown."""

    path: Path
    tensors: dict[str, Tensor]
    """All of the file, by dotted path: those of a checkpoint's entry "model" begin with "model." """
    arch: str | None = None
    """torchvision's name, or timm/NAME"""
    num_classes: int | None = None
    """Outputs"""
    classes: list[str] | None = None
    """Names of the outputs; there may be fewer"""
    blurpool: bool | None = None
    """Whether strided convolutions blur their input"""
    cifar_stem: bool | None = None
    """Whether the first layers are those for images of 32 px"""
    mean: list[float] | None = None
    """Of the normalisation, in units of [0, 1]"""
    std: list[float] | None = None
    """Of the normalisation, in units of [0, 1]"""
    resolution: int | None = None
    """Side of the validation images, px"""
    crop_ratio: float | None = None
    """Of the centre's side to the image's shorter side"""
    interpolation: str | None = None
    """bilinear or bicubic"""
    flip_tta: bool | None = None
    """Whether outputs for each image and its mirror image are averaged"""
    notes: list[str] = field(default_factory=list)
    """What is worth saying of the file"""


def read_weights(path: Path) -> Weights:
    """Read a state dict, or a checkpoint that has one or several, at any depth.

    What the tensors do not say comes from the description in the state dict (`models.describe`), else from the options
    or arguments in the checkpoint, else from params.json beside the file. Only tensors and plain values are unpickled:
    objects of any other kind are left out, and named in `notes`.

    Raises:
        DataError: it cannot be read, or has no weights.
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
    notes = [f"left out of {path}, as neither tensors nor plain values: {', '.join(ignored)}"] if ignored else []
    return Weights(path=path, tensors=tensors, notes=notes, **facts)


def _flat(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")


def _plain_keys(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """The keys as torchvision and this package have them, and whether convolutions are blurred."""
    tensors = {re.sub(_WRAPPERS, "", key): value for key, value in tensors.items()}
    for key in [key for key in tensors if key.endswith(".blur_filter")]:  # ffcv-imagenet's
        name = key.removesuffix(".blur_filter")
        for part in ("weight", "bias"):
            if f"{name}.conv.{part}" in tensors:
                tensors[f"{name}.{part}"] = tensors.pop(f"{name}.conv.{part}")
        tensors[f"{name}.blur"] = tensors.pop(key)
    old = r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"  # torchvision's files of DenseNets
    tensors = {re.sub(old, r"\1\2", key): value for key, value in tensors.items()}
    return tensors, any(key.endswith(".blur") for key in tensors)


def _description(content: Any) -> dict[str, Any]:
    """The first one in nested state dicts."""
    found = description(content)
    for value in content.values():
        if not found and isinstance(value, dict):
            found = _description(value)
    return found


def _run_options(weights: Path) -> dict[str, Any]:
    """The options of the run that left the weights, in params.json beside them; of this trainer, or ffcv-imagenet."""
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


def _run_facts(options: Mapping[str, Any]) -> dict[str, Any]:
    """From options by "section.key"; what was trained before descriptions were, normalised by ImageNet's."""
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
    """From the checkpoint: options of this trainer; arguments of timm's or torchvision's training scripts."""
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
    """The network with its weights, described as they are.

    Args:
        weights: see `read_weights`.
        arch: None: as the weights say.
        num_classes: outputs; None: as the weights say.
        entry: of the checkpoint, such as "state_dict_ema"; None: see `load_weights`.

    Raises:
        ValueError: there is no such architecture, or nothing says which it is, or how many outputs or which
            normalisation it has.
        DataError: the weights are of another architecture, or of another number of classes.
    """
    path = weights.path
    arch, num_classes = arch or weights.arch, num_classes or weights.num_classes
    if arch is None:
        raise ValueError(f"--arch NAME is needed: neither {path} nor params.json beside it has it")
    if num_classes is None:
        raise ValueError(f"{path} does not say how many classes it is of")
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
        raise DataError(f"{path} is of {weights.arch}, not of {arch}")  # shapes do not tell all apart
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
    """Load the tensors of a file that are the network's, whatever prefix wrappers and checkpoints gave them.

    Of several that fit, averaged ones (a prefix with "ema") are taken, and MoCo's query encoder; `weights.notes` says
    so. The network has to have all, but `without`.

    Args:
        network: changed in place.
        weights: see `read_weights`.
        what: the network, for messages.
        size: what its shapes depend on, likewise.
        entry: the prefix, or a part of it, such as "state_dict_ema".
        without: prefixes of further tensors of the file that the network does not have.

    Raises:
        DataError: none fits, or which one is meant is not clear.
    """
    path, own = weights.path, network.state_dict()
    needed = [key for key in own if not key.endswith(_FILLED)]
    prefix = _prefix(weights, needed, what, entry)
    found = {key.removeprefix(prefix): value for key, value in weights.tensors.items() if key.startswith(prefix)}
    for key in needed:
        theirs, ours = (tuple(of[key].shape) if key in of else None for of in (found, own))
        if theirs and theirs != ours:
            raise DataError(f"{path}: {key} is {theirs}, that of {what}{size} is {ours}")
        if theirs is None:
            count = sum(other not in found for other in needed) - 1
            raise DataError(f"{path} is not of {what}: it lacks {key}{f' and {count} more' if count else ''}")
    left = sorted(found.keys() - own.keys())
    left_out = [key for key in left if key.startswith((*_AUXILIARY, *without))]
    further = [key for key in left if key not in left_out]
    if further:
        more = f" and {len(further) - 1} more" if further[1:] else ""
        raise DataError(f"{path} is not of {what}: it also has {further[0]}{more}")
    finite = (key for key in needed if own[key].isfinite().all())  # others are constants of the network
    broken = next((key for key in finite if not found[key].isfinite().all()), None)
    if broken:
        raise DataError(f"{path}: {broken} has values that are not finite: the training had failed")
    around = prefix.partition(".")[0] + "."  # the entry of the checkpoint
    left_out += [key for key in weights.tensors if key.startswith(around) and not key.startswith(prefix)]
    left_out = [key for key in left_out if not key.endswith("n_averaged")]  # a counter of torch's AveragedModel
    if left_out:
        more = f" and {len(left_out) - 1} more" if left_out[1:] else ""
        weights.notes.append(f"left out of {path}: {left_out[0]}{more}")
    network.load_state_dict({key: found.get(key, value) for key, value in own.items()})


def _prefix(weights: Weights, needed: list[str], what: str, entry: str | None) -> str:
    """What the keys of the network begin with in the file."""
    prefixes = {key.removesuffix(needed[0]) for key in weights.tensors if f".{key}".endswith(f".{needed[0]}")}
    counts = {
        prefix: sum(prefix + key in weights.tensors for key in needed)
        for prefix in prefixes
        if entry is None or f".{entry}." in f".{prefix}"
    }
    if not counts:
        has = ", ".join(sorted({key.partition(".")[0] for key in weights.tensors})[:5])
        where = f" in {entry}" if entry else ""
        raise DataError(f"{weights.path} is not of {what}: it has no {needed[0]}{where}, but {has}, ...")
    best = sorted(prefix for prefix, count in counts.items() if count == max(counts.values()))
    if len(best) == 1:
        return best[0]
    for mark in ("ema", *_QUERIES):
        chosen = [prefix for prefix in best if re.search(rf"(?<![a-z]){mark}(?![a-z])", prefix)]
        if len(chosen) == 1:
            others = ", ".join(prefix.rstrip(".") or "the rest" for prefix in best if prefix not in chosen)
            weights.notes.append(f"{weights.path}: {chosen[0].rstrip('.')} is taken, not {others} (--entry)")
            return chosen[0]
    choices = ", ".join(prefix.rstrip(".") for prefix in best)
    raise DataError(f"{weights.path} has several networks that fit {what}: choose one with --entry: {choices}")
