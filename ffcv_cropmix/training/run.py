"""A training run around its loop: progress, log, checkpoints, and going on where it was."""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from ..loader import Loader
from ..progress import progress
from .checkpoint import Checkpoint, Progress, Stateful
from .distributed import Processes, StopSignal, seed_step
from .logs import Meter, RunLog


class Run:
    """The loop of a trainer, which draws its epochs, steps and batches from here::

        for epoch in run.epochs():
            for step in run.steps():
                run.set_lr(optimizer, lr_at(run.position))
                images, labels = run.next_batch()
                ...
                run.add_loss(loss)
            run.end_epoch(top_1=...)

    What torch draws at random in a step depends on the seed, the epoch, the step and the process alone. After each
    epoch, and after the step at which SIGTERM or SIGINT came, everything is saved: a run that goes on from there ends
    as if it had not been stopped.

    Args:
        folder: the run's.
        options: all that the run depends on, as params.json is to have it.
        epochs: passes over the loader.
        seed: of what torch draws.
        processes: this one, and how many there are.
        loader: of batches.
        parts: batches of a step, in each process.
        state: what is saved and restored, by name.
        resume: "auto": go on from `folder`'s checkpoint.pt, if there is one; or the path of one; None: a new run.
        may_differ: options, or their sections, that a run that goes on may have otherwise.
        tensorboard: write the log for TensorBoard as well.

    Raises:
        DataError: the folder cannot be written or holds a run already; there is no checkpoint, or it is of another run.
    """

    position: float
    """Epochs done in the middle of this step, with fractions"""

    def __init__(
        self,
        folder: Path,
        options: Mapping[str, Any],
        *,
        epochs: int,
        seed: int,
        processes: Processes,
        loader: Loader,
        parts: int = 1,
        state: Mapping[str, Stateful],
        resume: str | None,
        may_differ: frozenset[str],
        tensorboard: bool = True,
    ) -> None:
        self.saved = folder / "checkpoint.pt"
        self._epochs, self._seed, self._processes, self._loader = epochs, seed, processes, loader
        self.images = loader.batch_size * parts * processes.count
        """Of a step, of all processes together"""
        self._steps = len(loader) // parts
        self._checkpoint = Checkpoint(options, self.images, may_differ, state)
        self._done = Progress()
        if resume and (resume != "auto" or self.saved.exists()):
            self._done = done = self._checkpoint.load(self.saved if resume == "auto" else Path(resume))
            loader.load_state_dict({**loader.state_dict(), "epoch": done.epoch, "batch": done.step * parts})
        self.log = None
        """Of the first process"""
        if processes.first:
            self.log = RunLog(folder, options, self._done.records if resume else None, tensorboard=tensorboard)
        self._stop = StopSignal(processes)
        self._lr = 0.0

    def epochs(self) -> Iterator[int]:
        """Those that are left to do."""
        while self._done.epoch < self._epochs:
            yield self._done.epoch

    def steps(self) -> Iterator[int]:
        """Those of the epoch that are left to do. Ends the program after the one at which a signal came."""
        epoch, first = self._done.epoch, self._done.step
        new = epoch == first == 0
        self._meter = Meter(self.images, announce=new and self.log is not None)
        self._batches = self._meter.watch(self._loader)
        self._loss_sum = torch.tensor(self._done.loss_sum, device=self._processes.device)
        steps: Any = range(first, self._steps)
        if self.log:
            name = f"epoch {epoch + 1}"
            steps = progress(steps, self._steps, name, "steps", initial=first, status=self._meter.status)
        for step in steps:
            seed_step(self._seed, epoch, step, self._processes.rank)
            self.position = epoch + (step + 0.5) / self._steps
            yield step
            self._meter.step(self._loss_sum, step + 1, self._lr)
            if (number := self._stop.agreed()) and step + 1 < self._steps:
                self._break_off(step + 1, number)
        self._batches.close()

    def next_batch(self) -> tuple[Any, ...]:
        """From the loader; how long it takes is measured."""
        batch: tuple[Any, ...] = next(self._batches)
        return batch

    def add_loss(self, loss: Tensor) -> None:
        """Of a step, or of a part of it, divided by their number. It is not read now: that would wait for a GPU."""
        self._loss_sum += loss.detach()

    def set_lr(self, optimizer: torch.optim.Optimizer, lr: float) -> None:
        """Set the learning rate, times the `lr_scale` of groups that have one."""
        self._lr = lr
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1)

    def end_epoch(self, **further: float) -> dict[str, Any]:
        """Log the epoch, with what else is to be said of it, and save. Returns the log's entries of the epoch.

        Raises:
            DataError: the loss is not finite: nothing is saved.
        """
        loss = self._mean_loss() / self._steps
        if not math.isfinite(loss):
            raise DataError(f"the training loss is {loss} after epoch {self._done.epoch + 1}: try a smaller lr")
        meter = self._meter
        entries = {
            "epoch": self._done.epoch,
            "train_loss": loss,
            "lr": self._lr,
            "images_per_second": meter.images_per_second,
            "seconds": self._done.seconds + meter.seconds,
            "waiting": meter.waiting,
            **further,
        }
        self._done = Progress(self._done.epoch + 1, records=[*self._done.records, entries])
        if self.log:
            self.log.add(entries, self._epochs)
            self._checkpoint.save(self.saved, self._done)
        return entries

    def _mean_loss(self) -> float:
        """The sum over the steps so far, mean over the processes. The epoch's clock stops with it."""
        loss = float(self._processes.mean(self._loss_sum))
        self._meter.finish()
        return loss

    def _break_off(self, step: int, number: int) -> None:
        loss = self._mean_loss()
        if self.log:
            seconds = self._done.seconds + self._meter.seconds
            at = Progress(self._done.epoch, step, loss, seconds, self._done.records)
            self._checkpoint.save(self.saved, at)
            name = signal.Signals(number).name
            print(f"{name}: stopped after step {step} of epoch {at.epoch + 1}; --resume=auto goes on there", flush=True)
        sys.exit(128 + number)
