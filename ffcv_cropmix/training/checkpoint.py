"""What a run needs to go on where it was: written whole or not at all, read without running code from the file."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PosixPath, PurePosixPath
from types import MappingProxyType
from typing import IO, Any, BinaryIO, Protocol, cast

import torch
from torch import Tensor

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
        data: what a position in the training set means: facts by name, see `Run`.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        images: int,
        may_differ: frozenset[str],
        parts: Mapping[str, Stateful],
        data: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._options = _flat(options)
        self._images = images
        self._may_differ = may_differ
        self._parts = parts
        self._data = dict(data)
        self._never_finite = set(not_finite(self._states()))  # constants, such as bounds that a network begins with

    def _states(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._parts.items()}

    def identity(self) -> dict[str, Any]:
        """What has to be the same in all processes, and when the run goes on: options, data, images of a step."""
        options = {
            name: value
            for name, value in self._options.items()
            if not {name, name.partition(".")[0]} & self._may_differ
        }
        return {**options, **self._data, "images a step": self._images}

    def save(self, path: Path, progress: Progress) -> None:
        """Write the file, or leave the one before as it is.

        Raises:
            DataError: the file cannot be written, or the run's state is not finite.
        """
        states = self._states()
        broken = [name for name in not_finite(states) if name not in self._never_finite]
        if broken:
            more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
            raise DataError(
                f"{path} is not written: {broken[0]}{more} are no longer finite; the training diverged: try a smaller "
                "lr, or with fp16 another training.precision"
            )
        run = {"options": self._options, "images": self._images, "data": self._data}
        write(path, {**states, "progress": asdict(progress), **run})

    def load(self, path: Path) -> Progress:
        """Restore the parts, and say how far the run was.

        Raises:
            DataError: the file is no checkpoint, of a run with other options or data, or its state is not finite.
        """
        content = read(path)
        if not {"progress", "options", "images", "data", *self._parts} <= content.keys():
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
        for name in sorted(self._data.keys() | content["data"].keys()):
            then, now = content["data"].get(name), self._data.get(name)
            if then != now:
                raise DataError(
                    f"{path} is of a run with {name} {then}, not {now}: go on with what it had, or start anew in "
                    "another folder"
                )
        states = {name: content[name] for name in self._parts}
        broken = [name for name in not_finite(states) if name not in self._never_finite]
        if broken:
            raise DataError(f"{path}: {broken[0]} is not finite: there is nothing to go on from; start anew")
        for name, part in self._parts.items():
            try:
                part.load_state_dict(states[name])
            except (RuntimeError, ValueError, KeyError, TypeError) as error:
                line = str(error).splitlines()[:2][-1].strip()  # torch's first one is a heading, if there are more
                raise DataError(f"{path} does not fit this run: {name}: {line}") from None
        return Progress(**content["progress"])


def not_finite(content: Any, name: str = "") -> list[str]:
    """The dotted names of the tensors in nested dictionaries and lists that hold infinities or NaN.

    Waits once for each device.
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
    """A file whose failure is kept: torch.save makes another error of it, without the reason."""

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
    """Write what torch.save can write; the file is whole, or the one before is left.

    Raises:
        DataError: it cannot be written.
    """
    with replacing(path) as (file,):
        keeping = _Keeping(file)
        try:
            torch.save(content, cast(IO[bytes], keeping))
        except RuntimeError:
            if keeping.failure:
                raise keeping.failure from None
            raise


def read(path: Path) -> dict[str, Any]:
    """Read a dictionary that torch.save wrote, its tensors on the CPU. Only tensors and plain values are unpickled.

    Raises:
        DataError: it cannot be read, or holds anything else.
    """
    content, ignored = read_any(path)
    if ignored:
        raise DataError(f"{path} has more in it than tensors and plain values: {', '.join(ignored)}")
    return content


def read_any(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Read a dictionary that torch.save wrote, or a .safetensors file, without running code from the file.

    Tensors are put on the CPU; plain values, `argparse.Namespace` and paths are unpickled too, and other kinds of
    dictionaries and lists become plain ones. An object of any other kind becomes an empty placeholder.

    Returns:
        The dictionary, and the names of those other kinds.

    Raises:
        DataError: it cannot be read, is damaged, or holds something else.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise DataError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    damaged = f"{path} is damaged: its {path.stat().st_size:,} bytes were cut off or changed; copy or download it again"
    if start.startswith(b"PK") and _broken_archive(path):  # torch.load does not compare checksums
        raise DataError(damaged)
    kinds: dict[str, type] = {}
    try:
        content = _read_safetensors(path) if path.suffix == ".safetensors" else _load(path, kinds)
    except Exception as error:  # whatever torch trips over; its message would have the user run the file's code
        if isinstance(error, _CUT_OFF) or re.search("unexpected EOF|deserializing header", str(error)):
            raise DataError(damaged if start else f"{path} is no file of weights: it is empty") from None
        for pattern, reason in _REASONS.items():
            if found := re.search(pattern, f"{error} {start!r}", re.S):
                raise DataError(f"{path} {reason.format(*found.groups())}") from None
        raise DataError(f"{path} is no file of weights, or has more in it than tensors and plain values") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} has no weights: it holds a {type(content).__name__}, not a state dict")
    return content, sorted(name for name, kind in kinds.items() if kind.__base__ is object)


_CUT_OFF = (EOFError, IndexError, OSError, struct.error)
_REASONS = {
    "b'version https://git-lfs": "is no file of weights, but Git LFS's pointer to one: git lfs pull",
    r"unsupported GLOBAL (\S+) whose": "is not loaded: it calls {}, which no file of weights needs",
    r"Unsupported operand.* b'(?:PK|.x80)": "is written with another pickle protocol than torch.save's own, 2",
    "No module named 'safetensors'": "needs safetensors, which is not installed: pip install safetensors",
}


def _load(path: Path, kinds: dict[str, type]) -> Any:
    """torch.load, with placeholders for kinds of objects that it refuses; those are added to `kinds`."""
    while True:
        try:
            safe = torch.serialization.safe_globals([Namespace, PosixPath, PurePosixPath, *kinds.values()])
            with warnings.catch_warnings(), safe:
                warnings.simplefilter("ignore")
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            refused = re.search(r"Unsupported global: GLOBAL (\S+) was not", str(error))
            nested = re.search(r"Can only (SETITEM|append).*but got <class '(.+?)'>", str(error))
            if refused and refused[1] not in kinds:
                kinds[refused[1]] = _placeholder(refused[1], object)
            elif nested and kinds.get(nested[2], dict).__base__ is object:
                kinds[nested[2]] = _placeholder(nested[2], OrderedDict if nested[1] == "SETITEM" else list)
            else:
                raise


def _placeholder(name: str, base: type) -> type:
    """A class of that name that takes any arguments, and ignores them; dictionaries and lists are then filled."""
    module, _, own = name.rpartition(".")
    body: dict[str, Any] = {
        "__module__": module or "builtins",  # torch leaves that out
        "__qualname__": own,
        "__new__": lambda cls, *_, **__: OrderedDict() if base is OrderedDict else base.__new__(cls),  # type: ignore[call-overload]
        "__init__": lambda *_, **__: None,
        "__setstate__": lambda *_: None,
    }
    return type(own, (base,), body)


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    tensors: dict[str, Any] = load_file(path)
    return tensors


def _broken_archive(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is not None
    except Exception:  # whatever zipfile trips over
        return True


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = int(value) if isinstance(value, bool) else value  # as files write it: 1, true
    return flat
