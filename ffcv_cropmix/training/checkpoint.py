"""Save and restore the state of a run.

A checkpoint is written whole or not at all, and read without running code from the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, BinaryIO, Protocol, cast

import torch
from torch import Tensor

from ..data.replacing import replacing
from ..errors import DataError
from .safe_load import safe_load


class Stateful(Protocol):
    """An object whose state is saved: a module, an optimizer, a gradient scaler."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state_dict: Any) -> Any: ...


@dataclass(slots=True)
class Position:
    """The position of a run: how far it has got.

    Example:
        >>> Position(epoch=3, step=7, loss_sum=1.25, seconds=60.5).epoch
        3
    """

    epoch: int = 0
    """Completed epochs"""
    step: int = 0
    """Completed steps of the next epoch"""
    loss_sum: float = 0.0
    """Sum of the losses of those steps, nats"""
    seconds: float = 0.0
    """Duration of those steps, s"""
    records: list[dict[str, Any]] = field(default_factory=list)
    """Log entries of the completed epochs"""


class Checkpoint:
    """Save and restore the state of a run as one file.

    Args:
        options: Options of the run, nested in sections or flat.
        global_batch_size: Images per optimizer step, over all processes.
        may_differ: Names of options ("section.key") or sections that a resumed run may change.
        state: Objects to save and restore, by name.
        data: Facts that a position in the training set depends on, by name; see `Run`.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> network = torch.nn.Linear(2, 3)
        >>> checkpoint = Checkpoint({"lr": 0.1}, 64, frozenset(), {"model": network})
        >>> with TemporaryDirectory() as folder:
        ...     checkpoint.save(Path(folder, "checkpoint.pt"), Position(epoch=2))
        ...     checkpoint.load(Path(folder, "checkpoint.pt")).epoch
        2
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        global_batch_size: int,
        may_differ: frozenset[str],
        state: Mapping[str, Stateful],
        data: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._options = _flat(options)
        self._global_batch_size = global_batch_size
        self._may_differ = may_differ
        self._state = state
        self._data = dict(data)
        self._never_finite = set(not_finite(self._states()))  # constants, such as bounds that a network starts with

    def _states(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._state.items()}

    def _is_fixed(self, name: str) -> bool:
        """Return whether an option must not change when the run is resumed."""
        return not {name, name.partition(".")[0]} & self._may_differ

    def identity(self) -> dict[str, Any]:
        """Return what must be equal in all processes and after resuming: options, data and the global batch size."""
        options = {name: value for name, value in self._options.items() if self._is_fixed(name)}
        return {**options, **self._data, "global batch size": self._global_batch_size}

    def save(self, path: Path, position: Position) -> None:
        """Write the file, or leave the previous one unchanged.

        Raises:
            DataError: The file cannot be written, or the state contains NaN or infinite values.
        """
        states = self._states()
        broken = [name for name in not_finite(states) if name not in self._never_finite]
        if broken:
            more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
            raise DataError(
                f"{path} is not written: {broken[0]}{more} contain NaN or infinity; the training diverged: try a "
                "smaller lr, or with fp16 another training.precision"
            )
        run = {"options": self._options, "images": self._global_batch_size, "data": self._data}
        write(path, {**states, "progress": asdict(position), **run})

    def load(self, path: Path) -> Position:
        """Restore the state and return the position of the run.

        Raises:
            DataError: The file is not a checkpoint, belongs to a run with other options or data, or its state
                contains NaN or infinite values.
        """
        content = safe_load(path)
        if not {"progress", "options", "images", "data", *self._state} <= content.keys():
            raise DataError(f"{path} is not a checkpoint of a run like this one: it cannot be resumed")
        for name in self._options.keys() | content["options"].keys():
            then, now = content["options"].get(name), self._options.get(name)
            absent = name not in content["options"] and not now  # an option that is newer than the file, and off
            if then != now and not absent and self._is_fixed(name):
                raise DataError(f"{path} is of a run with {name}={then}, not {now}: start a new run in another folder")
        if content["images"] != self._global_batch_size:
            raise DataError(
                f"{path} is of a run with a global batch of {content['images']} images, not {self._global_batch_size}: "
                "set training.global_batch_size, or start as many processes as before"
            )
        saved = {_RENAMED.get(name, name): value for name, value in content["data"].items()}
        for name in sorted(self._data.keys() | saved.keys()):
            then, now = saved.get(name), self._data.get(name)
            if then != now:
                raise DataError(
                    f"{path} is of a run with {name} {then}, not {now}: resume with the same, or start a new run in "
                    "another folder"
                )
        states = {name: content[name] for name in self._state}
        broken = [name for name in not_finite(states) if name not in self._never_finite]
        if broken:
            raise DataError(f"{path}: {broken[0]} contains NaN or infinity: it cannot be resumed; start a new run")
        for name, part in self._state.items():
            try:
                part.load_state_dict(states[name])
            except (RuntimeError, ValueError, KeyError, TypeError) as error:
                line = str(error).splitlines()[:2][-1].strip()  # the first of several lines is torch's heading
                raise DataError(f"{path} does not fit this run: {name}: {line}") from None
        return Position(**content["progress"])


_RENAMED = {
    "images in the training set": "training set size",
    "checksum of its labels": "checksum of the labels",
    "images at once (data.in_memory=0)": "micro-batch size (data.in_memory=0)",
}
"""Facts about the data in checkpoints of 0.1.0, and their present names"""


def not_finite(content: Any, name: str = "") -> list[str]:
    """Return the dotted names of all tensors with NaN or infinite values in nested dictionaries and lists.

    Synchronises once with each device.

    Example:
        >>> not_finite({"model": {"weight": torch.ones(2), "bias": torch.tensor([0, torch.nan])}})
        ['model.bias']
    """
    tensors: dict[torch.device, dict[str, Tensor]] = {}

    def collect(value: Any, name: str) -> None:
        if isinstance(value, Tensor) and value.is_floating_point():
            tensors.setdefault(value.device, {})[name] = value
        elif isinstance(value, Mapping):
            for key, item in value.items():
                collect(item, f"{name}.{key}".lstrip("."))
        elif isinstance(value, list | tuple):
            for number, item in enumerate(value):
                collect(item, f"{name}.{number}")

    collect(content, name)
    found: list[str] = []
    for named in tensors.values():
        finite = torch.stack([tensor.isfinite().all() for tensor in named.values()]).tolist()
        found += [name for name, sound in zip(named, finite) if not sound]
    return found


class _Keeping:
    """A file that keeps its OSError: torch.save replaces it by an error without the reason."""

    failure: OSError | None = None

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.flush = file.flush

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.failure = self.failure or error
            raise


def write(path: Path, content: Any) -> None:
    """Write `content` with torch.save, or leave the previous file unchanged.

    Raises:
        DataError: The file cannot be written.
    """
    with replacing(path) as (file,):
        keeping = _Keeping(file)
        try:
            torch.save(content, cast(IO[bytes], keeping))
        except RuntimeError:
            if keeping.failure:
                raise keeping.failure from None
            raise


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = int(value) if isinstance(value, bool) else value  # files write both 1 and true
    return flat
