"""The messages and files of a run: speed, log, weights, and the lock on its folder."""

from __future__ import annotations

import fcntl
import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
from torch import Tensor, nn

from ..data.replacing import replacing
from ..errors import DataError
from .checkpoint import write

T = TypeVar("T")


class Meter:
    """Measure speed, loss and waiting time during an epoch.

    The loss is read a step late, so that nothing waits for the GPU.

    Args:
        global_batch_size: Images per optimizer step, over all processes.
        announce: Print how long the first batch took.

    Example:
        >>> meter = Meter(64)
        >>> for step, batch in enumerate(meter.watch(["images", "more images"]), start=1):
        ...     meter.step(torch.tensor(2.5 * step), step, lr=0.1)
        >>> "loss 2.500, lr 0.1" in meter.status()
        True
    """

    finite: bool = True
    """Whether all losses read so far are finite"""

    def __init__(self, global_batch_size: int, *, announce: bool = False) -> None:
        self._global_batch_size = global_batch_size
        self._announce = announce
        self._started = self._first_batch = self._now = time.perf_counter()
        self._waited = 0.0
        self._steps = 0
        self._shown = ""
        self._late: tuple[Tensor, int, float, torch.cuda.Event | None] | None = None

    def watch(self, batches: Iterable[T]) -> Generator[T, None, None]:
        """Iterate over the batches and measure the waits for them, except for the first one."""
        source = iter(batches)
        asked = time.perf_counter()
        for batch in source:
            self._now = time.perf_counter()
            if self._first_batch == self._started:
                self._first_batch = self._now
                if self._announce:
                    print(f"first batch after {self.seconds:.1f} s, with the compilation of the pipeline", flush=True)
            else:
                self._waited += self._now - asked
            yield batch
            asked = time.perf_counter()

    def step(self, loss_sum: Tensor, steps: int, lr: float) -> None:
        """Count a step.

        Args:
            loss_sum: Sum of the losses of the epoch so far, on the device.
            steps: Steps of the epoch so far.
            lr: Learning rate of the step.
        """
        self._steps += 1
        self._now = time.perf_counter()
        if self._late:
            value, counted, rate, event = self._late
            if event and not event.query():
                return
            loss = float(value) / counted
            self._shown = f"loss {loss:.3f}, lr {rate:.3g}"
            self.finite = self.finite and math.isfinite(loss)
        value = loss_sum.to("cpu", non_blocking=True, copy=True)
        event = None
        if loss_sum.is_cuda:
            event = torch.cuda.Event()
            event.record()
        self._late = value, steps, lr, event

    def status(self) -> str:
        """Return speed, loss, learning rate and waiting as one line, for a progress bar."""
        parts = [f"{self.images_per_second:,.0f} images/s", self._shown, f"{self.waiting:.1f} % waiting"]
        return ", ".join(part for part in parts if part)

    @property
    def images_per_second(self) -> float:
        """Images of all processes per second, since the first batch."""
        return self._steps * self._global_batch_size / max(self._now - self._first_batch, 1e-9)

    @property
    def seconds(self) -> float:
        """Seconds since the start of the epoch."""
        return self._now - self._started

    @property
    def waiting(self) -> float:
        """Share of the time since the first batch that the loop waited for batches, percent."""
        return 100 * self._waited / max(self._now - self._first_batch, 1e-9)

    def finish(self) -> None:
        """Stop the clock: the epoch is over, and its last loss was read."""
        self._now = time.perf_counter()


_locked: list[IO[str]] = []  # kept open, and so locked, until the process ends


def claim(folder: Path, resume: str | None) -> None:
    """Create the folder of a run and lock it until this process ends.

    Args:
        folder: Folder of the run.
        resume: None: the folder must not hold a run yet. "auto" or the path of a checkpoint: it may hold that run.

    Raises:
        DataError: Another process has locked the folder, it holds another run, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _lock(folder)
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror}") from error
    if not any((folder / name).exists() for name in ("checkpoint.pt", "log", "final_weights.pt")):
        return
    own = folder / "checkpoint.pt"
    if resume is None:
        hint = "choose another folder, continue the run with --resume=auto, or remove it"
        raise DataError(f"{folder} already holds a run: {hint}")
    if not own.exists():
        raise DataError(f"{folder} holds a run without its checkpoint.pt: choose another folder, or remove it")
    if resume != "auto" and own.resolve() != Path(resume).resolve():
        raise DataError(f"{folder} already holds another run than {resume}: choose another folder")


def _lock(folder: Path) -> None:
    """Lock the file .lock in `folder`. The lock ends with the process, and forks do not inherit it."""
    file = (folder / ".lock").open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        raise DataError(f"another run, {file.read().strip()}, is writing to {folder}: choose another folder") from None
    except OSError as error:
        print(f"{folder} cannot be locked ({error.strerror}): let no other run write to it", file=sys.stderr)
    _locked.append(file)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()


class RunLog:
    """Write the files of a run: `log`, one JSON line per epoch; `params.json`; TensorBoard events.

    The entries of an epoch are

    - epoch, from 0;
    - train_loss, the mean over the steps, nats;
    - lr, of the last step;
    - images_per_second, of all processes, without the wait for the first batch, in which FFCV compiles the pipeline;
    - seconds, with that wait, without the evaluation;
    - waiting, the share of the time that the loop waited for the loader, percent, without that wait;
    - and what the trainer adds.

    Args:
        folder: Folder of the run. It exists and is locked; see `claim`.
        options: Options of the run, for params.json.
        resumed: Entries of the epochs before this run was resumed; empty for a new run.
        tensorboard: Write the entries for TensorBoard as well.

    Raises:
        DataError: The folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        options: Mapping[str, Any],
        resumed: Iterable[dict[str, Any]] = (),
        *,
        tensorboard: bool = True,
    ) -> None:
        self.folder = folder
        self.records = list(resumed)
        self._log = folder / "log"
        _write(folder / "params.json", json.dumps(options, indent=2) + "\n")
        if self.records:  # the log may hold an epoch that the checkpoint lacks
            _write(self._log, "".join(json.dumps(entries) + "\n" for entries in self.records))
        else:
            self._log.unlink(missing_ok=True)
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            with _writing(folder):
                self._board = SummaryWriter(folder, purge_step=len(self.records))

    def add(self, entries: dict[str, Any], epochs: int) -> None:
        """Append an epoch to the log, and print it.

        Args:
            entries: Entries of the epoch.
            epochs: Length of the run.

        Raises:
            DataError: The log cannot be written. It is left unchanged.
        """
        self.records.append(entries)
        with _writing(self._log):
            size = self._log.stat().st_size if self._log.exists() else 0
            try:
                with self._log.open("a") as file:
                    file.write(json.dumps(entries) + "\n")
            except OSError:
                with suppress(OSError):
                    os.truncate(self._log, size)
                raise
        if self._board:
            with _writing(self.folder):
                for name, value in entries.items():
                    self._board.add_scalar(name, value, entries["epoch"])
                self._board.flush()
        known = ("epoch", "train_loss", "lr", "images_per_second", "seconds", "waiting")
        further = "".join(f", {name} {value:.5g}" for name, value in entries.items() if name not in known)
        print(
            f"epoch {entries['epoch'] + 1}/{epochs}: train loss {entries['train_loss']:.3f}, lr {entries['lr']:.4g}, "
            f"{entries['images_per_second']:,.0f} images/s, {entries['waiting']:.1f} % waiting{further}",
            flush=True,
        )

    def save_weights(self, network: nn.Module) -> Path:
        """Write the state dict of the network, on the CPU and with its metadata, to `final_weights.pt`."""
        state = network.state_dict()
        for key, value in state.items():
            state[key] = value.cpu()
        path = self.folder / "final_weights.pt"
        write(path, state)
        return path


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn an OSError into a DataError, and keep TensorBoard's writer thread from printing a traceback of it."""
    before, threading.excepthook = threading.excepthook, _print_unless_it_is_raised_too
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from None
    threading.excepthook = before


def _print_unless_it_is_raised_too(failure: threading.ExceptHookArgs) -> None:
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)


def _write(path: Path, text: str) -> None:
    with replacing(path) as (file,):
        file.write(text.encode())
