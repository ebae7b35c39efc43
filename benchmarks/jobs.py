"""The classes of the benchmark: `Job`, the task of each peer, and the peers themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

SCALE, MIX_RATIO, NUMBERS = 0.01, 0.4, (2, 3, 4)
RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Job:
    """The task of a peer."""

    beton: Path
    indices: Sequence[int]
    """Rows of the .beton that make a pass, in this order; they may repeat."""
    files: Sequence[Path]
    """JPEG files of the same images, one for each row."""
    side: int
    """Side of the square output, px."""
    num_workers: int
    """Number of threads or processes."""
    batch_size: int

    @property
    def paths(self) -> list[str]:
        """Return the files of a pass, in order."""
        return [str(self.files[index]) for index in self.indices]


@dataclass(frozen=True)
class Peer:
    """One way to do a job."""

    label: str
    make: Callable[[Job], Iterable[Any]]
    """Each iteration of the result is a pass over the images, and yields their batches."""
    reads: tuple[str, ...]
    """What it can read: jpg, dct, raw (.beton files), files (JPEG)."""
    needs: str | None = None
    """A module of the extra `bench` that it needs."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the decoder, for this package's peers."""

    def unavailable(self) -> str | None:
        """Return why it cannot run here; None if it can."""
        try:
            if self.needs:
                import_module(self.needs)
        except ModuleNotFoundError:
            return f"{self.needs} is not installed"
        except (ImportError, OSError) as error:
            return f"{self.needs} does not load: {error}"
        return None
