"""What a run needs to go on where it was: written whole or not at all, read without running code from the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from ..data.replacing import replacing
from ..errors import DataError


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
        options: of the run, in sections or not.
        images: of a step, of all processes together.
        may_differ: options, "section.key", or sections that a run that goes on may have otherwise.
        parts: what is saved and restored, by name.
    """

    def __init__(
        self, options: Mapping[str, Any], images: int, may_differ: frozenset[str], parts: Mapping[str, Stateful]
    ) -> None:
        self._options = _flat(options)
        self._images = images
        self._may_differ = may_differ
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
            raise DataError(f"{path} is no checkpoint to go on from, or of a run with other options")
        for name in self._options.keys() | content["options"].keys():
            then, now = content["options"].get(name), self._options.get(name)
            if then != now and not {name, name.partition(".")[0]} & self._may_differ:
                raise DataError(f"{path} is of a run with {name}={then}, not {now}: start anew in another folder")
        if content["images"] != self._images:
            raise DataError(
                f"{path} is of a run with {content['images']} images a step in all, not {self._images}: set "
                "global_batch_size, or take as many processes as before"
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


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = int(value) if isinstance(value, bool) else value  # as files write it: 1, true
    return flat
