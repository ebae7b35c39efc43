"""What a run says while it goes, and what it leaves behind."""

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
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import IO, Any, TypeVar

import torch
from torch import Tensor, nn

from ..data.replacing import replacing
from ..errors import DataError
from .checkpoint import write
from .config import Config, augmentation

T = TypeVar("T")


class Meter:
    """Speed, loss and waiting of an epoch while it goes. Reads the loss late, so that nothing waits for a GPU.

    Args:
        images: of a step, of all processes together.
        announce: print how long the first batch took.
    """

    finite: bool = True
    """Whether all losses that were read so far are finite"""

    def __init__(self, images: int, *, announce: bool = False) -> None:
        self._images = images
        self._announce = announce
        self._started = self._first_batch = self._now = time.perf_counter()
        self._waited = 0.0
        self._steps = 0
        self._shown = ""
        self._late: tuple[Tensor, int, float, torch.cuda.Event | None] | None = None

    def watch(self, batches: Iterable[T]) -> Generator[T, None, None]:
        """The batches; the time until the first one is not part of speed and waiting."""
        source = iter(batches)
        asked = time.perf_counter()
        for batch in source:
            self._now = time.perf_counter()
            if self._first_batch == self._started:
                self._first_batch = self._now
                if self._announce:
                    print(f"first batch after {self.seconds:.1f} s: it is compiled for", flush=True)
            else:
                self._waited += self._now - asked
            yield batch
            asked = time.perf_counter()

    def step(self, loss_sum: Tensor, steps: int, lr: float) -> None:
        """A step is done. `loss_sum` is over so many steps of the epoch, on the device."""
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
        """In a line, for a bar of progress."""
        parts = [f"{self.images_per_second:,.0f} images/s", self._shown, f"{self.waiting:.1f} % waiting"]
        return ", ".join(part for part in parts if part)

    @property
    def images_per_second(self) -> float:
        return self._steps * self._images / max(self._now - self._first_batch, 1e-9)

    @property
    def seconds(self) -> float:
        return self._now - self._started

    @property
    def waiting(self) -> float:
        """Percent."""
        return 100 * self._waited / max(self._now - self._first_batch, 1e-9)

    def finish(self) -> None:
        """The epoch is over, and its last loss was read."""
        self._now = time.perf_counter()


_locked: list[IO[str]] = []  # open, and so locked, until the process ends


def claim(folder: Path, resume: str | None) -> None:
    """Make a folder, and reserve it for this process until it ends, however it ends.

    Args:
        folder: of a run.
        resume: "auto", or the path of a checkpoint: the folder may hold that run. None: it must not hold one.

    Raises:
        DataError: another process has reserved it, it holds another run, or it cannot be written.
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
        hint = "choose another folder, go on with --resume=auto, or remove it"
        raise DataError(f"{folder} already holds a run: {hint}")
    if not own.exists():
        raise DataError(f"{folder} holds a run without its checkpoint.pt: choose another folder, or remove it")
    if resume != "auto" and own.resolve() != Path(resume).resolve():
        raise DataError(f"{folder} already holds a run, which is not that of {resume}: choose another folder")


def _lock(folder: Path) -> None:
    """Lock `folder`'s file .lock. The lock is the process's: it ends with it, and forks of it do not have it."""
    file = (folder / ".lock").open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        raise DataError(f"another run, {file.read().strip()}, is writing to {folder}: choose another folder") from None
    except OSError as error:
        print(f"{folder} cannot be locked ({error.strerror}): no other run may write to it", file=sys.stderr)
    _locked.append(file)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()


class RunLog:
    """The run's folder: `log`, a JSON line an epoch; `params.json`, the options; TensorBoard's events.

    Entries of an epoch are: epoch, from 0; train_loss, mean over the steps, nats; lr of the last step;
    images_per_second of all processes, without the wait for the first batch, for which FFCV compiles; seconds, with
    that wait, without evaluation; waiting, the share of the time in which the loop waited for the loader, percent,
    again without that wait; and what the trainer adds.

    Args:
        folder: exists, and is this run's: see `claim`.
        options: of the run.
        resumed: the entries of the run that goes on; none for a new one.
        tensorboard: write the entries for TensorBoard as well.

    Raises:
        DataError: the folder cannot be written.
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
        if self.records:  # the log may have an epoch that the checkpoint lacks
            _write(self._log, "".join(json.dumps(entries) + "\n" for entries in self.records))
        else:
            self._log.unlink(missing_ok=True)
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            with _writing(folder):
                self._board = SummaryWriter(folder, purge_step=len(self.records))

    def add(self, entries: dict[str, Any], epochs: int) -> None:
        """Append an epoch of so many to the log, and say it in a line.

        Raises:
            DataError: it cannot be written: the log is as it was.
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
        """Write the network's state dict, with its metadata, on the CPU, to `final_weights.pt`."""
        state = network.state_dict()
        for key, value in state.items():
            state[key] = value.cpu()
        path = self.folder / "final_weights.pt"
        write(path, state)
        return path


def closing_table(config: Config, log: RunLog, weights: Path) -> str:
    """The last evaluation, the speed and the time, as aligned lines."""
    last = log.records[-1]
    seconds = round(sum(entries["seconds"] for entries in log.records))

    def typical(name: str) -> float:
        return median(entries[name] for entries in log.records)

    rows = {
        "model": f"{config.model.arch}, {config.training.epochs} epochs, {augmentation(asdict(config))}",
        "top-1": f"{last['top_1']:.2f} %",
        "top-5": f"{last['top_5']:.2f} %",
        "validation loss": f"{last['val_loss']:.4f}",
        "RMS calibration error": f"{last['rms_calibration_error']:.2f} %",
        "training loss": f"{last['train_loss']:.4f}",
        "training images/s": f"{typical('images_per_second'):,.0f}",
        "training time": f"{seconds // 60} min {seconds % 60} s",
        "waiting for images": f"{typical('waiting'):.1f} % of the time",
        "weights": str(weights),
    }
    return "\n".join(f"{name:<23}{value}" for name, value in rows.items())


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Make a DataError of what goes wrong in writing, also in TensorBoard's thread, which would print a traceback."""
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
