"""What a run says while it goes, and what it leaves behind."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..data.replacing import replacing
from ..errors import DataError
from ..evaluation.accuracy import Evaluation
from . import compare
from .config import Config, augmentation

T = TypeVar("T")


@dataclass(kw_only=True, slots=True)
class EpochRecord:
    """One epoch. What only an evaluation tells is None in epochs without one, and then not in the log."""

    epoch: int
    """From 0"""
    train_loss: float
    """Mean over the epoch's steps, with label smoothing, nats"""
    lr: float
    """Learning rate of the epoch's last step"""
    resolution: int
    """Side of the training images, px"""
    images_per_second: float
    """Training speed of all processes, without the wait for the first batch: in the first epoch, FFCV compiles then"""
    seconds: float
    """Training time, with that wait, without evaluation"""
    waiting: float
    """Share of the training time, without that wait, in which the loop waited for the loader, percent"""
    top_1: float | None = None
    """Validation accuracy, percent"""
    top_5: float | None = None
    """Validation accuracy among the five best, percent"""
    val_loss: float | None = None
    """Validation cross-entropy, without label smoothing, nats"""
    rms_calibration_error: float | None = None
    """On the validation set, percent; see evaluation.calibration"""

    def add(self, result: Evaluation) -> None:
        """What an evaluation tells."""
        self.top_1, self.top_5, self.val_loss = result.top_1, result.top_5, result.loss
        self.rms_calibration_error = result.rms_calibration_error

    def entries(self) -> dict[str, Any]:
        """What there is, by name."""
        return {key: value for key, value in asdict(self).items() if value is not None}


class Meter:
    """Speed, loss and waiting of an epoch while it goes. Reads the loss late, so that nothing waits for a GPU.

    Args:
        images: of a step, of all processes together.
        announce: print how long the first batch took.
    """

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
            self._shown = f"loss {float(value) / counted:.3f}, lr {rate:.3g}"
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


class RunLog:
    """The run's folder: `log`, `params.json`, `checkpoint.pt`, `final_weights.pt`, `curves.png`, TensorBoard's events.

    Args:
        config: of the run.
        resumed: the log's entries of the run that goes on; None for a new one.

    Raises:
        DataError: the folder cannot be made or written, or holds a run although this one is new.
    """

    def __init__(self, config: Config, resumed: list[dict[str, Any]] | None = None) -> None:
        self.config = config
        self.folder = Path(config.logging.folder)
        self.weights = self.folder / "final_weights.pt"
        self._log = self.folder / "log"
        self.records = [EpochRecord(**entries) for entries in resumed or []]
        if self._log.exists() and resumed is None:
            raise DataError(
                f"{self.folder} already holds a run: choose another logging.folder, go on with --resume=auto, or "
                "remove it"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.folder} cannot be written: {error.strerror}") from error
        _write(self.folder / "params.json", json.dumps(asdict(config), indent=2) + "\n")
        if resumed is not None:  # it may have an epoch that the checkpoint lacks
            _write(self._log, "".join(json.dumps(record.entries()) + "\n" for record in self.records))
        self._board: Any = None
        if config.logging.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(self.folder, purge_step=len(self.records))

    def add(self, record: EpochRecord) -> None:
        """Append an epoch to the log, and say it in a line."""
        self.records.append(record)
        with self._log.open("a") as file:
            file.write(json.dumps(record.entries()) + "\n")
        if self._board:
            for name, value in record.entries().items():
                self._board.add_scalar(name, value, record.epoch)
            self._board.flush()
        evaluated = "" if record.top_1 is None else f", top-1 {record.top_1:.2f} %"
        print(
            f"epoch {record.epoch + 1}/{self.config.training.epochs}: {record.resolution} px, lr {record.lr:.4g}, "
            f"{record.images_per_second:,.0f} images/s, {record.waiting:.1f} % waiting, train loss "
            f"{record.train_loss:.3f}{evaluated}",
            flush=True,
        )

    def finish(self, network: nn.Module) -> None:
        """Write the network's state dict, on the CPU, to `final_weights.pt`, draw `curves.png`, print a table."""
        state = {key: value.cpu() for key, value in network.state_dict().items()}
        with replacing(self.weights) as (file,):
            torch.save(state, file)
        if self._board:
            self._board.close()
        compare.save(compare.draw([compare.read_run(self.folder)]), self.folder / "curves.png")
        print(self.closing_table())

    def closing_table(self) -> str:
        """The last evaluation, the speed and the time, as aligned lines."""
        last, config = self.records[-1], self.config
        seconds = round(sum(record.seconds for record in self.records))
        rows = {
            "model": f"{config.model.arch}, {config.training.epochs} epochs, {augmentation(asdict(config))}",
            "top-1": f"{last.top_1:.2f} %",
            "top-5": f"{last.top_5:.2f} %",
            "validation loss": f"{last.val_loss:.4f}",
            "RMS calibration error": f"{last.rms_calibration_error:.2f} %",
            "training loss": f"{last.train_loss:.4f}",
            "training images/s": f"{median(record.images_per_second for record in self.records):,.0f}",
            "training time": f"{seconds // 60} min {seconds % 60} s",
            "waiting for images": f"{median(record.waiting for record in self.records):.1f} % of the time",
            "weights": str(self.weights),
        }
        return "\n".join(f"{name:<23}{value}" for name, value in rows.items())


def _write(path: Path, text: str) -> None:
    with replacing(path) as (file,):
        file.write(text.encode())
