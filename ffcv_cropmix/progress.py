"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

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
    """Iterate, and show on stderr how far it is, the rate and the time left.

    Args:
        total: items, with those that were done before.
        desc: what is being done.
        unit: what the items are.
        initial: items that were done before.
        status: what there is to say besides, when it is said.
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
