"""Load files of torch.save and safetensors without running code from them."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path, PosixPath, PurePosixPath
from typing import Any

import torch

from ..errors import DataError


def safe_load(path: Path) -> dict[str, Any]:
    """Load a dictionary of tensors and plain values that torch.save wrote; the tensors are on the CPU.

    Raises:
        DataError: The file cannot be read, or holds anything else.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     torch.save({"epoch": 3}, Path(folder, "checkpoint.pt"))
        ...     safe_load(Path(folder, "checkpoint.pt"))
        {'epoch': 3}
    """
    content, ignored = safe_load_any(path)
    if ignored:
        raise DataError(f"{path} holds more than tensors and plain values: {', '.join(ignored)}")
    return content


def safe_load_any(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Load a dictionary that torch.save wrote, or a .safetensors file, without running code from the file.

    Tensors are loaded to the CPU. Plain values, `argparse.Namespace` and paths are kept; subclasses of dict and list
    become plain ones; objects of any other class become empty placeholders.

    Returns:
        The dictionary, and the sorted names of the classes that became placeholders.

    Raises:
        DataError: The file cannot be read, is damaged, or does not hold a dictionary.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise DataError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    damaged = f"{path} is damaged: its {path.stat().st_size:,} bytes were truncated or changed; copy it again"
    if start.startswith(b"PK") and _broken_archive(path):  # torch.load does not verify checksums
        raise DataError(damaged)
    kinds: dict[str, type] = {}
    try:
        content = _read_safetensors(path) if path.suffix == ".safetensors" else _load(path, kinds)
    except Exception as error:  # torch's own message would tell the user to run the file's code
        if isinstance(error, _TRUNCATED) or re.search("unexpected EOF|deserializing header", str(error)):
            raise DataError(damaged if start else f"{path} is not a weights file: it is empty") from None
        for pattern, reason in _REASONS.items():
            if found := re.search(pattern, f"{error} {start!r}", re.S):
                raise DataError(f"{path} {reason.format(*found.groups())}") from None
        raise DataError(f"{path} is not a weights file, or holds more than tensors and plain values") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} has no weights: it holds a {type(content).__name__}, not a state dict")
    return content, sorted(name for name, kind in kinds.items() if kind.__base__ is object)


_TRUNCATED = (EOFError, IndexError, OSError, struct.error)
_REASONS = {
    "b'version https://git-lfs": "is not a weights file but a Git LFS pointer: run git lfs pull",
    r"unsupported GLOBAL (\S+) whose": "was not loaded: it calls {}, which a weights file does not need",
    r"Unsupported operand.* b'(?:PK|.x80)": "was written with a pickle protocol other than torch.save's default, 2",
    "No module named 'safetensors'": "needs safetensors, which is not installed: pip install safetensors",
}


def _load(path: Path, kinds: dict[str, type]) -> Any:
    """Call torch.load with placeholders for the classes that it refuses, and add these to `kinds`."""
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
    """Create a class of that name that ignores its arguments; dictionaries and lists are filled afterwards."""
    module, _, own = name.rpartition(".")
    body: dict[str, Any] = {
        "__module__": module or "builtins",  # torch omits that name
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
    except Exception:  # zipfile raises many kinds
        return True
