"""What a run needs to go on where it was: written whole or not at all, read without running code from the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from ..data.replacing import replacing
from ..errors import DataError
from .config import Config

_MAY_DIFFER = {
    *("resume", "model.pretrained", "data.train_dataset", "data.val_dataset", "data.num_workers", "data.gpu"),
    *("training.batch_size", "training.global_batch_size", "training.distributed", "training.compile"),
    *("training.eval_only", "logging", "validation", "dist"),
}
"""Options and sections that are not a matter of what is optimised, and how. (Images a step are compared as such.)"""


class Stateful(Protocol):
    """A part of a run with a state: a module, an optimiser, a scaler of losses."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state_dict: Any) -> Any: ...


@dataclass(slots=True)
class Progress:
    """How far a run is."""

    epoch: int = 0
    """Epochs done"""
    step: int = 0
    """Steps done of the next one"""
    loss_sum: float = 0.0
    """Over those steps"""
    seconds: float = 0.0
    """That those took"""
    records: list[dict[str, Any]] = field(default_factory=list)
    """The log's entries"""


class Checkpoint:
    """The state of a run as a file.

    Args:
        config: of the run.
        images: of a step, of all processes together.
        parts: what is saved and restored, by name.
    """

    def __init__(self, config: Config, images: int, **parts: Stateful) -> None:
        self._options = _flat(asdict(config))
        self._images = images
        self._parts = parts

    def save(self, path: Path, progress: Progress) -> None:
        """Raises DataError if the file cannot be written; the one before is then still there."""
        content = {
            **{name: part.state_dict() for name, part in self._parts.items()},
            "progress": asdict(progress),
            "options": self._options,
            "images": self._images,
        }
        with replacing(path) as (file,):
            torch.save(content, file)

    def load(self, path: Path) -> Progress:
        """Restore the parts, and say how far the run was.

        Raises:
            DataError: the file is no checkpoint, or of a run with other options.
        """
        content = read(path)
        if not {"progress", "options", "images", *self._parts} <= content.keys():
            raise DataError(f"{path} is no checkpoint to go on from: it lacks what training.ema_decay or a run adds")
        for name in self._options.keys() | content["options"].keys():
            then, now = content["options"].get(name), self._options.get(name)
            if then != now and not {name, name.partition(".")[0]} & _MAY_DIFFER:
                raise DataError(f"{path} is of a run with {name}={then}, not {now}: start anew in another folder")
        if content["images"] != self._images:
            raise DataError(
                f"{path} is of a run with {content['images']} images a step, not {self._images}: set "
                f"training.global_batch_size={content['images']}"
            )
        for name, part in self._parts.items():
            part.load_state_dict(content[name])
        return Progress(**content["progress"])


def read(path: Path) -> dict[str, Any]:
    """A dictionary that torch.save wrote, its tensors on the CPU. Only tensors and plain values are unpickled.

    Raises:
        DataError: it cannot be read, or holds anything else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DataError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except Exception:  # whatever torch trips over; its message would have the user run the file's code
        raise DataError(f"{path} is no file of weights, or has more in it than tensors and plain values") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} has no weights: it holds a {type(content).__name__}")
    return content


def _flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = int(value) if isinstance(value, bool) else value  # as files write it: 1, true
    return flat
