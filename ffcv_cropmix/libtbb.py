"""TBB from PyPI, for numba's threads on a machine that has neither TBB nor GNU's OpenMP.

Such a machine has no compiler. numba then falls back to threads that end the process when two loaders run. The package
`tbb` is installed with this one, but its library lies where the dynamic linker does not look.
"""

from __future__ import annotations

import ctypes
from importlib import import_module, metadata


def load() -> None:
    """Load TBB's library where numba can use neither OpenMP nor TBB without it; call it before numba starts threads."""
    for pool in ("omppool", "tbbpool"):
        try:
            import_module(f"numba.np.ufunc.{pool}")
        except ImportError:
            continue
        return
    try:
        files = metadata.files("tbb") or []
    except metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name == "libtbb.so.12":  # the name that numba's module is linked with
            ctypes.CDLL(str(file.locate()), mode=ctypes.RTLD_GLOBAL)
