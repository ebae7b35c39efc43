"""A training run around its loop: progress, log, checkpoints, and going on where it was."""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from ..errors import DataError
from ..ffcv_compat import QuasiRandom
from ..loader import Loader
from ..progress import progress
from .checkpoint import Checkpoint, Progress, Stateful
from .datasets import open_labelled
from .distributed import DIVERGED, Processes, StopSignal, seed_step
from .logs import Meter, RunLog, claim


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
    epoch, and after the step at which SIGTERM, SIGINT, SIGHUP or SIGUSR1 came, everything is saved, if it is finite: a
    run that goes on from there ends as if it had not been stopped. A loss that is not finite ends the run a few steps
    later. No other process may have a run in `folder` until this one ends.

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
        DataError: the folder cannot be written, another process is writing to it, or it holds another run; there is no
            checkpoint, or it is of a run with other options or data; processes do not begin at the same place.
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
        processes.by_first(lambda: claim(folder, resume))
        data = describe_data(loader, processes)
        self._checkpoint = Checkpoint(options, self.images, may_differ, state, data)
        self._done = done = self._begin(resume)
        if done.epoch or done.step:
            loader.load_state_dict({**loader.state_dict(), "epoch": done.epoch, "batch": done.step * parts})
        self.log = processes.by_first(lambda: RunLog(folder, options, done.records, tensorboard=tensorboard))
        """Of the first process"""
        self._stop = StopSignal(processes)
        self._lr = 0.0

    def _begin(self, resume: str | None) -> Progress:
        """Where the run goes on: all processes at the same place, with the same options and data."""
        done, failure = Progress(), ""
        try:
            if resume and (resume != "auto" or self.saved.exists()):
                done = self._checkpoint.load(self.saved if resume == "auto" else Path(resume))
        except DataError as error:
            failure = str(error)
        found = self._processes.gather((failure, self._checkpoint.identity(), asdict(done)))
        for rank, (failure, _, _) in enumerate(found):
            if failure:
                raise DataError(f"process {rank}: {failure}" if rank else failure)
        _, first, begin = found[0]
        for rank, (_, identity, place) in enumerate(found):
            for name in first.keys() | identity.keys():
                theirs, ours = identity.get(name), first.get(name)
                if theirs != ours:
                    raise DataError(f"process {rank} has {name} {theirs}, process 0 {ours}: give all the same")
            if json.dumps(place) != json.dumps(begin):  # as text, NaN equals NaN
                at = [f"epoch {of['epoch'] + 1}, step {of['step'] + 1}" for of in (begin, place)]
                raise DataError(
                    f"process 0 begins at {at[0]}, process {rank} at {at[1]}, or with another log: {self.saved.parent} "
                    "must be one folder that all processes see, and so must the checkpoint"
                )
        return done

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
            if not self._meter.finite:
                self._stop.diverge()
            number = self._stop.agreed()
            if number == DIVERGED:
                raise self._diverged(step + 1)
            if number and step + 1 < self._steps:
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
        """Save, and log the epoch, with what else is to be said of it. Returns the log's entries of the epoch.

        Raises:
            DataError: the loss or the state is not finite, or cannot be written: what was saved before is still there.
        """
        loss = self._mean_loss(self._steps) / self._steps
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
        self._processes.by_first(lambda: self._save(entries))
        return entries

    def _save(self, entries: dict[str, Any]) -> None:
        """In the first process. The checkpoint comes first: a run that goes on writes the log that it holds."""
        assert self.log
        self._checkpoint.save(self.saved, self._done)
        self.log.add(entries, self._epochs)

    def _mean_loss(self, steps: int) -> float:
        """The sum over so many steps, mean over the processes. The epoch's clock stops with it."""
        loss = float(self._processes.mean(self._loss_sum))
        self._meter.finish()
        if not math.isfinite(loss):
            raise self._diverged(steps)
        return loss

    def _diverged(self, step: int) -> DataError:
        kept = f"; {self.saved} is as it was" if self.saved.exists() else ""
        return DataError(
            f"the training loss is no longer finite at step {step} of epoch {self._done.epoch + 1}: try a smaller lr, "
            f"or with fp16 another training.precision{kept}"
        )

    def _break_off(self, step: int, number: int) -> None:
        loss = self._mean_loss(step)
        seconds = self._done.seconds + self._meter.seconds
        at = Progress(self._done.epoch, step, loss, seconds, self._done.records)
        self._processes.by_first(lambda: self._checkpoint.save(self.saved, at))
        if self.log:
            name = signal.Signals(number).name
            print(f"{name}: stopped after step {step} of epoch {at.epoch + 1}; --resume=auto goes on there", flush=True)
        sys.exit(128 + number)


def describe_data(loader: Loader, processes: Processes) -> dict[str, Any]:
    """What a position in a pass over the training set means: its samples, and what their order depends on.

    Paths do not count, and images neither: a file may be moved, or written anew at another quality.
    """
    beton = open_labelled(loader.fname)
    data = {
        "images in the training set": len(beton.metadata),
        "checksum of its labels": xxhash.xxh64_hexdigest(np.ascontiguousarray(beton.column("label")).tobytes()),
    }
    if isinstance(loader.traversal_order, QuasiRandom):  # it draws from as many pages as two batches have samples
        data |= {"processes": processes.count, "images at once (data.in_memory=0)": loader.batch_size}
    return data
