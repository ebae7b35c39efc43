"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

_LINE_SECONDS = 10


def progress(iterable: Iterable[T], total: int, desc: str, unit: str = "batches") -> Iterator[T]:
    """Iterate, and show on stderr how far it is, the rate and the time left.

    Args:
        total: items to come.
        desc: what is being done.
        unit: what the items are.
    """
    if sys.stderr.isatty():
        with tqdm(iterable, total=total, desc=desc, unit=f" {unit}", leave=False) as bar:
            yield from bar
        return
    started = said = time.monotonic()
    for done, item in enumerate(iterable, start=1):
        yield item
        now = time.monotonic()
        if now - said >= _LINE_SECONDS or done == total:
            said = now
            elapsed = max(now - started, 1e-9)
            passed, left = (tqdm.format_interval(seconds) for seconds in (elapsed, elapsed * (total - done) / done))
            rate = f"{done / elapsed:,.2f} {unit}/s"
            print(f"{desc}: {done:,}/{total:,} in {passed}, {rate}, {left} left", file=sys.stderr, flush=True)
