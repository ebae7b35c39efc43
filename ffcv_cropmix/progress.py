"""Show the progress of long work: a bar on a terminal, a line every 10 seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

_LINE_SECONDS = 10


def progress(
    iterable: Iterable[T],
    total: int,
    desc: str,
    unit: str = "batches",
    *,
    initial: int = 0,
    status: Callable[[], str] = lambda: "",
) -> Iterator[T]:
    """Iterate and show on stderr the progress, the rate and the time left: a bar on a terminal, else lines.

    Args:
        iterable: the items to go through.
        total: number of items, including `initial`.
        desc: what is being done.
        unit: name of the items.
        initial: number of items done before.
        status: returns what to add, such as the loss.

    Example:
        >>> sum(progress([1, 2, 3], 3, "numbers", "numbers"))
        6
    """
    if sys.stderr.isatty():
        with tqdm(iterable, total=total, initial=initial, desc=desc, unit=f" {unit}", leave=False) as bar:
            for item in bar:
                yield item
                bar.set_postfix_str(status(), refresh=False)
        return
    started = said = time.monotonic()
    for done, item in enumerate(iterable, start=1):
        yield item
        now = time.monotonic()
        if now - said >= _LINE_SECONDS or initial + done == total:
            said = now
            elapsed = max(now - started, 1e-9)
            left = elapsed * (total - initial - done) / done
            times = (
                f"{tqdm.format_interval(elapsed)}, {done / elapsed:,.2f} {unit}/s, {tqdm.format_interval(left)} left"
            )
            further = f", {status()}" if status() else ""
            print(f"{desc}: {initial + done:,}/{total:,} in {times}{further}", file=sys.stderr, flush=True)
