"""Cache compiled code on disk: a process loads what an earlier process on this machine has compiled.

Numba's own `cache=True` does not suffice, for three reasons. Its index and its data are separate files, named by
numbers: two processes that fill it at once can leave an index that points to the code of another signature, and the
next process crashes with a segmentation fault (numba#4807, numba#10128). It checks the source file of a function, but
not the files of the functions that this one calls. It does not check what it reads.

Here a file holds one function with one signature. Its name is a hash of everything that the code depends on. It is
renamed to that name when it is complete, and it begins with a checksum. A function with no valid file is compiled.

The files are in `ffcv_cropmix` in the user's cache folder ($XDG_CACHE_HOME or ~/.cache) or in $NUMBA_CACHE_DIR.
FFCV_CROPMIX_CACHE=0 switches the cache off. A folder that cannot be written or a full disk is not an error. Loading a
file executes its code, as with numba's cache: give write access only to users who may run programs as you.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import pickle
import secrets
import sys
from functools import cache
from inspect import isfunction
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core import config
from numba.core.bytecode import FunctionIdentity
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.dispatcher import Dispatcher
from numba.core.serialize import dumps
from numba.core.sigutils import normalize_signature

_ROOT = Path(__file__).parents[1]
_FOLDERS = {"ffcv_cropmix": _ROOT, "ffcv_cropmix.kernels": _ROOT / "kernels", "ffcv_cropmix.data": _ROOT / "data"}
"""Packages with compiled functions. A change in any of their files invalidates all compiled code."""
_ELSEWHERE = ("NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS", "NUMBA_THREADING_LAYER", "NUMBA_THREADING_LAYER_PRIORITY")
"""Numba's settings that do not affect compiled code."""
_MOST_FILES = 1000  # of about 0.2 MB; the oldest are deleted
_DIGEST = hashlib.sha256().digest_size


def _number_functions() -> None:
    """Make numba number functions from a random number on.

    Symbols in object code end in these numbers, which start at 1 in each process. Code from two processes would have
    equal symbols for different functions, and the linker would confuse them.
    """
    FunctionIdentity._unique_ids = itertools.count(secrets.randbits(60))


_numbered = isinstance(getattr(FunctionIdentity, "_unique_ids", None), itertools.count)
if _numbered:
    _number_functions()
    os.register_at_fork(after_in_child=_number_functions)


def identity(value: Any) -> str:
    """Return a name for a function or constant that compiled code depends on. It is the same in every process.

    Raises:
        TypeError: there is no such name. An example is a function of another package: its source may change unnoticed.
    """
    if isinstance(value, Dispatcher):
        value = value.py_func
    if hasattr(value, "symbol"):  # kernels.jit: an external function
        return str(value.symbol)
    if isfunction(value) and value.__module__.rpartition(".")[0] in _FOLDERS:
        module = sys.modules.get(value.__module__)
        if module is not None and value.__globals__ is vars(module):  # not a copy with other constants
            cells = ",".join(identity(cell.cell_contents) for cell in value.__closure__ or ())
            return f"{value.__module__}.{value.__qualname__}({cells})"
    if value is None or isinstance(value, (bool, int, float, str, np.generic)):
        return repr(value)
    raise TypeError(f"{value!r} has no name of its own")


def _digest_of_sources() -> str:
    """Return the SHA-256 of the source files in `_FOLDERS`; "" if there are no files, as in a zip archive."""
    digest = hashlib.sha256()
    paths = [path for folder in _FOLDERS.values() for path in sorted(folder.glob("*.py"))]
    for path in paths:
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest() if paths else ""


_sources = _digest_of_sources()  # before they are imported
_versions = sys.version, numba.__version__, llvmlite.__version__, np.__version__, config.USING_SVML  # type: ignore[attr-defined]


def _stamp() -> str:
    """Return what code depends on besides function, signature and CPU: sources, versions, numba's settings."""
    settings = {name: value for name, value in os.environ.items() if name.startswith("NUMBA_")}
    for name in _ELSEWHERE:
        settings.pop(name, None)
    return repr([_sources, _versions, sorted(settings.items())])


@cache
def _folder() -> Path | None:
    """Return the folder of the files; None if the cache is off."""
    if os.environ.get("FFCV_CROPMIX_CACHE") == "0" or not _numbered or not _sources:
        return None
    chosen = os.environ.get("NUMBA_CACHE_DIR") or config.CACHE_DIR  # type: ignore[attr-defined]
    folder = Path(chosen or os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111
    return folder.absolute() / "ffcv_cropmix" if chosen or folder.is_absolute() else None


class DiskCache(NullCache):
    """The cache of one function: numba loads compiled code from it, or compiles and saves the code to it.

    Args:
        name: `identity` of the function and the options that it is compiled with.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def _place(self, signature: Any, context: Any) -> tuple[Path | None, str]:
        """Return the file for a signature, and the text that its name is the hash of."""
        folder = _folder()
        if folder is None:
            return None, ""
        arguments, result = normalize_signature(signature)
        key = repr([self._name, str(arguments), str(result), context.codegen().magic_tuple(), _stamp()])
        short = self._name.partition("(")[0].rpartition(".")[2]
        return folder / f"{short}-{hashlib.sha256(key.encode()).hexdigest()[:40]}.bin", key

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        path, key = self._place(sig, target_context)
        if path is None:
            return None
        try:
            content = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
            return None
        target_context.refresh()
        found, parts = pickle.loads(content[_DIGEST:])
        return CompileResult._rebuild(target_context, *parts) if found == key else None

    def save_overload(self, sig: Any, cres: Any) -> None:
        path, key = self._place(sig, cres.target_context)
        if path is None or cres.library.has_dynamic_globals:  # contains addresses of this process
            return
        if _digest_of_sources() != _sources:  # edited meanwhile: the imported version is unknown
            return
        content = dumps((key, cres._reduce()))
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(hashlib.sha256(content).digest() + content)
            temporary.replace(path)
            for old in sorted(path.parent.iterdir(), key=lambda file: file.stat().st_mtime)[:-_MOST_FILES]:
                old.unlink()
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
