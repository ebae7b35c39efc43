"""What a run leaves behind: one JSON line an epoch, its options, its weights, and a closing table."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from torch import nn

from ..errors import DataError
from .config import Config


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
    """Training speed, without the wait for the epoch's first batch: in the first epoch, FFCV compiles then"""
    seconds: float
    """Training time, with that wait, without evaluation"""
    top_1: float | None = None
    """Validation accuracy, percent"""
    top_5: float | None = None
    """Validation accuracy among the five best, percent"""
    val_loss: float | None = None
    """Validation cross-entropy, without label smoothing, nats"""
    rms_calibration_error: float | None = None
    """On the validation set, percent; see evaluation.calibration"""


class RunLog:
    """The run's folder: `log`, `params.json`, `final_weights.pt`.

    Raises:
        DataError: the folder cannot be made or written, or already holds a run.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.folder = Path(config.logging.folder)
        self.weights = self.folder / "final_weights.pt"
        self._log = self.folder / "log"
        self._records: list[EpochRecord] = []
        if self._log.exists():
            raise DataError(f"{self.folder} already holds a run: choose another logging.folder, or remove it")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            params = json.dumps(asdict(config), indent=2) + "\n"
            _replace(self.folder / "params.json", lambda path: path.write_text(params))
        except OSError as error:
            raise DataError(f"{self.folder} cannot be written: {error.strerror}") from error

    def add(self, record: EpochRecord) -> None:
        """Append an epoch to the log, and say it in a line."""
        self._records.append(record)
        entries = {key: value for key, value in asdict(record).items() if value is not None}
        with self._log.open("a") as file:
            file.write(json.dumps(entries) + "\n")
        evaluated = "" if record.top_1 is None else f", top-1 {record.top_1:.2f} %"
        print(
            f"epoch {record.epoch + 1}/{self.config.training.epochs}: {record.resolution} px, lr {record.lr:.4g}, "
            f"{record.images_per_second:,.0f} images/s, train loss {record.train_loss:.3f}{evaluated}",
            flush=True,
        )

    def save_weights(self, network: nn.Module) -> None:
        """Write the network's state dict, on the CPU, to `final_weights.pt`."""
        state = {key: value.cpu() for key, value in network.state_dict().items()}
        _replace(self.weights, lambda path: torch.save(state, path))

    def closing_table(self) -> str:
        """The last evaluation, the speed and the time, as aligned lines."""
        last, config = self._records[-1], self.config
        seconds = round(sum(record.seconds for record in self._records))
        crops = f"CropMix {config.cropmix.number}" if config.cropmix.enabled else "RandomResizedCrop"
        rows = {
            "model": f"{config.model.arch}, {config.training.epochs} epochs, {crops}",
            "top-1": f"{last.top_1:.2f} %",
            "top-5": f"{last.top_5:.2f} %",
            "validation loss": f"{last.val_loss:.4f}",
            "RMS calibration error": f"{last.rms_calibration_error:.2f} %",
            "training loss": f"{last.train_loss:.4f}",
            "training images/s": f"{median(record.images_per_second for record in self._records):,.0f}",
            "training time": f"{seconds // 60} min {seconds % 60} s",
            "weights": str(self.weights),
        }
        return "\n".join(f"{name:<23}{value}" for name, value in rows.items())


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written under a temporary name and renamed: it is there whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
