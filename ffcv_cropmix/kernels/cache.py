"""Compiled code on disk: a process loads what an earlier one on this machine has compiled.

Numba's own `cache=True` does not serve here. Its index and its data are separate files with numbers for names, so that
two processes that fill it at once can leave an index that names the code of another signature: a segmentation fault
(numba#4807, numba#10128). It looks at the file of a function, not at those of the functions that it calls. And it
believes what it reads. Here a file holds one function of one signature; its name is a hash of all that the code depends
on, it gets that name when it is whole, and begins with a checksum. What is not as it should be is compiled.

Files lie in `ffcv_cropmix` in the user's cache folder ($XDG_CACHE_HOME or ~/.cache), or in $NUMBA_CACHE_DIR.
FFCV_CROPMIX_CACHE=0 switches this off. A folder that cannot be written, or a full disk, is no error. Loading executes
what a file says, as with numba's cache: let nobody write there whom you would not let run programs as you.
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
"""Packages of functions that are compiled; a change in any of their files is one of all compiled code."""
_ELSEWHERE = ("NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS", "NUMBA_THREADING_LAYER", "NUMBA_THREADING_LAYER_PRIORITY")
"""Numba's settings that do not change code."""
_MOST_FILES = 1000  # of 0.2 MB: the oldest go
_DIGEST = hashlib.sha256().digest_size


def _number_functions() -> None:
    """Let numba number functions from a random number on.

    Symbols in object code end in these numbers, which begin with 1 in each process: code of two processes would have
    equal names for different functions, and the linker take one for the other.
    """
    FunctionIdentity._unique_ids = itertools.count(secrets.randbits(60))


_numbered = isinstance(getattr(FunctionIdentity, "_unique_ids", None), itertools.count)
if _numbered:
    _number_functions()
    os.register_at_fork(after_in_child=_number_functions)


def identity(value: Any) -> str:
    """What names a function, or a constant, that compiled code is made of: the same in each process.

    Raises:
        TypeError: there is no such name, as for a function of somebody else's, whose source may change unseen.
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
    """Of the files in `_FOLDERS`; empty if there are none, as in an archive."""
    digest = hashlib.sha256()
    paths = [path for folder in _FOLDERS.values() for path in sorted(folder.glob("*.py"))]
    for path in paths:
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest() if paths else ""


_sources = _digest_of_sources()  # before they are imported
_versions = sys.version, numba.__version__, llvmlite.__version__, np.__version__, config.USING_SVML  # type: ignore[attr-defined]


def _stamp() -> str:
    """All that compiled code depends on besides function, signature and CPU: sources, versions, numba's settings."""
    settings = {name: value for name, value in os.environ.items() if name.startswith("NUMBA_")}
    for name in _ELSEWHERE:
        settings.pop(name, None)
    return repr([_sources, _versions, sorted(settings.items())])


@cache
def _folder() -> Path | None:
    """Where the files lie; None: nowhere."""
    if os.environ.get("FFCV_CROPMIX_CACHE") == "0" or not _numbered or not _sources:
        return None
    chosen = os.environ.get("NUMBA_CACHE_DIR") or config.CACHE_DIR  # type: ignore[attr-defined]
    folder = Path(chosen or os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111
    return folder.absolute() / "ffcv_cropmix" if chosen or folder.is_absolute() else None


class DiskCache(NullCache):
    """What numba asks for compiled code before it compiles, and hands it to after that, for one function.

    Args:
        name: `identity` of the function and the options that it is compiled with.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def _place(self, signature: Any, context: Any) -> tuple[Path | None, str]:
        """The file for a signature, and the text whose hash names it."""
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
        if path is None or cres.library.has_dynamic_globals:  # addresses are those of this process
            return
        if _digest_of_sources() != _sources:  # they were edited: what was imported, before or after that?
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
