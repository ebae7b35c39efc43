"""A training run around a trainer's own loop: position, log, checkpoints and resuming."""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from ..data.datasets import open_labelled
from ..errors import DataError
from ..ffcv_compat import QuasiRandom
from ..loader import Loader
from ..progress import progress
from .checkpoint import Checkpoint, Position, Stateful
from .config import LoggingConfig
from .distributed import DIVERGED, Processes, StopSignal, seed_step
from .logs import Meter, RunLog, claim


class Schedule(Protocol):
    """The part of a trainer's `training` section that a run needs."""

    @property
    def epochs(self) -> int:
        """Passes over the training set"""

    @property
    def seed(self) -> int:
        """Seed of everything that torch samples"""


class RunConfig(Protocol):
    """The part of a trainer's configuration, a dataclass, that a run needs. Its other fields are up to the trainer."""

    @property
    def training(self) -> Schedule: ...

    @property
    def logging(self) -> LoggingConfig: ...

    @property
    def resume(self) -> str | None:
        """auto: resume from `logging.folder`'s checkpoint.pt, if it exists; or the path of a checkpoint; None: start"""

    @property
    def may_differ(self) -> frozenset[str]:
        """Names of options ("section.key") or sections that a resumed run may change"""


class Run:
    """The epochs, steps and batches of a training run.

    The trainer keeps its own loop and takes what it iterates over from here::

        run = Run(config, loader, {"model": model, "optimizer": optimizer}, processes=processes)
        for epoch in run.epochs():
            for step in run.steps():
                run.set_lr(optimizer, lr_at(run.position))
                for images, labels in run.micro_batches(model):
                    loss = loss_of(model(images), labels) / run.accumulation_steps
                    loss.backward()
                    run.add_loss(loss)
                optimizer.step()
                optimizer.zero_grad()
            run.end_epoch(top_1=...)

    What torch samples in a step depends on the seed, the epoch, the step and the rank only. The run is saved after each
    epoch, and after the step in which SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2 or SIGXCPU arrives, if all values are
    finite. A resumed run ends as if it had not been stopped. A loss that is not finite ends the run within a few steps.
    `config.logging.folder` is locked until this process ends.

    Args:
        config: Configuration of the trainer. All of it is written to params.json, and compared when the run is resumed.
        loader: Batches of the training set, of one micro-batch each.
        state: Objects to save and restore, by name.
        processes: This process and its peers.
        accumulation_steps: Micro-batches per optimizer step, in each process.
        label: Short texts "model" and "augmentation" that name this run in tables and plots. Written to params.json.
        further_options: What the run depends on beyond `config`. Replaces sections of the same name.

    Raises:
        DataError: The folder cannot be written, is in use by another process, or holds another run; the checkpoint is
            missing, or of a run with other options or data; or the processes would not start at the same position.
    """

    position: float
    """Epochs done in the middle of the current step, with fractions"""

    def __init__(
        self,
        config: RunConfig,
        loader: Loader,
        state: Mapping[str, Stateful],
        *,
        processes: Processes,
        accumulation_steps: int = 1,
        label: Mapping[str, str] = MappingProxyType({}),
        further_options: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        folder, resume = Path(config.logging.folder), config.resume
        options = {**asdict(config), **further_options}  # type: ignore[call-overload]
        self.checkpoint_path = folder / "checkpoint.pt"
        self._epochs, self._seed = config.training.epochs, config.training.seed
        self._processes, self._loader = processes, loader
        self.accumulation_steps = accumulation_steps
        self.global_batch_size = loader.batch_size * accumulation_steps * processes.world_size
        """Images per optimizer step, over all processes"""
        self._steps = len(loader) // accumulation_steps
        processes.on_main(lambda: claim(folder, resume))
        data = describe_data(loader, processes)
        self._checkpoint = Checkpoint(options, self.global_batch_size, config.may_differ, state, data)
        self._done = done = self._start(resume)
        if done.epoch or done.step:
            batch = done.step * accumulation_steps
            loader.load_state_dict({**loader.state_dict(), "epoch": done.epoch, "batch": batch})
        params = {**({"label": dict(label)} if label else {}), **options}
        tensorboard = bool(config.logging.tensorboard)
        self.log = processes.on_main(lambda: RunLog(folder, params, done.records, tensorboard=tensorboard))
        """Log of the run; None in all but the main process"""
        self._stop = StopSignal(processes)
        self._lr = 0.0

    @property
    def batch_summary(self) -> str:
        """The global batch size and how it is split, in words."""
        factors = f"{self._processes.world_size} x {self.accumulation_steps} x {self._loader.batch_size}"
        return f"global batch {self.global_batch_size:,} ({factors}: processes, accumulation steps, micro-batch)"

    def _start(self, resume: str | None) -> Position:
        """Restore the checkpoint, if any. All processes must start at the same position with the same options."""
        done, failure = Position(), ""
        try:
            if resume and (resume != "auto" or self.checkpoint_path.exists()):
                done = self._checkpoint.load(self.checkpoint_path if resume == "auto" else Path(resume))
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
                    raise DataError(f"process {rank} has {name} {theirs}, process 0 has {ours}: they must agree")
            if json.dumps(place) != json.dumps(begin):  # as text, NaN equals NaN
                at = [f"epoch {of['epoch'] + 1}, step {of['step'] + 1}" for of in (begin, place)]
                raise DataError(
                    f"process 0 starts at {at[0]}, process {rank} at {at[1]}, or with another log: "
                    f"{self.checkpoint_path.parent} and the checkpoint must be on storage that all processes share"
                )
        return done

    def epochs(self) -> Iterator[int]:
        """Iterate over the epochs that are left."""
        while self._done.epoch < self._epochs:
            yield self._done.epoch

    def steps(self) -> Iterator[int]:
        """Iterate over the steps that are left of the epoch.

        Saves the run and exits after the step in which a signal arrived.

        Raises:
            DataError: The loss is not finite.
            SystemExit: The run was stopped by a signal; the status is 128 plus its number.
        """
        epoch, first = self._done.epoch, self._done.step
        new = epoch == first == 0
        self._meter = Meter(self.global_batch_size, announce=new and self.log is not None)
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
                self._save_and_exit(step + 1, number)
        self._batches.close()

    def micro_batches(self, model: nn.Module) -> Iterator[tuple[Any, ...]]:
        """Iterate over the micro-batches of a step; gradients of `model` are synchronised in the last one only."""
        for k in range(1, self.accumulation_steps + 1):
            with self._processes.gradient_sync(model, last=k == self.accumulation_steps):
                yield self.next_batch()

    def next_batch(self) -> tuple[Any, ...]:
        """Return the next batch of the loader, and measure the wait for it."""
        batch: tuple[Any, ...] = next(self._batches)
        return batch

    def add_loss(self, loss: Tensor) -> None:
        """Add the loss of a micro-batch, divided by the accumulation steps, to the mean of the epoch.

        The value is read later, because reading it now would wait for the GPU.
        """
        self._loss_sum += loss.detach()

    def set_lr(self, optimizer: torch.optim.Optimizer, lr: float) -> None:
        """Set the learning rate of all parameter groups, scaled by a group's `lr_scale` if it has one."""
        self._lr = lr
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1)

    def end_epoch(self, **further: float) -> dict[str, Any]:
        """Save the run and log the epoch.

        Args:
            further: Further entries of the log, such as the accuracy.

        Returns:
            The log entries of the epoch; see `RunLog`.

        Raises:
            DataError: The loss or the state is not finite, or cannot be written. The last checkpoint is kept.
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
        self._done = Position(self._done.epoch + 1, records=[*self._done.records, entries])
        self._processes.on_main(lambda: self._save(entries))
        return entries

    def _save(self, entries: dict[str, Any]) -> None:
        """Write checkpoint and log, in the main process. The checkpoint comes first: it holds the log."""
        assert self.log
        self._checkpoint.save(self.checkpoint_path, self._done)
        self.log.add(entries, self._epochs)

    def _mean_loss(self, steps: int) -> float:
        """Average the sum of the losses over the processes, and stop the clock of the epoch."""
        loss = float(self._processes.mean(self._loss_sum))
        self._meter.finish()
        if not math.isfinite(loss):
            raise self._diverged(steps)
        return loss

    def _diverged(self, step: int) -> DataError:
        kept = f"; {self.checkpoint_path} is unchanged" if self.checkpoint_path.exists() else ""
        return DataError(
            f"the training loss is NaN or infinite at step {step} of epoch {self._done.epoch + 1}: try a smaller lr, "
            f"or with fp16 another training.precision{kept}"
        )

    def _save_and_exit(self, step: int, number: int) -> None:
        loss = self._mean_loss(step)
        seconds = self._done.seconds + self._meter.seconds
        at = Position(self._done.epoch, step, loss, seconds, self._done.records)
        self._processes.on_main(lambda: self._checkpoint.save(self.checkpoint_path, at))
        if self.log:
            name = signal.Signals(number).name
            print(f"{name}: stopped after step {step} of epoch {at.epoch + 1}; continue with --resume=auto", flush=True)
        sys.exit(128 + number)


def describe_data(loader: Loader, processes: Processes) -> dict[str, Any]:
    """Return the facts that a position in an epoch depends on: the samples, and what their order depends on.

    Neither paths nor pixels count: a file may be moved, or written again at another quality.
    """
    beton = open_labelled(loader.fname)
    data = {
        "training set size": len(beton.metadata),
        "checksum of the labels": xxhash.xxh64_hexdigest(np.ascontiguousarray(beton.column("label")).tobytes()),
    }
    if isinstance(loader.traversal_order, QuasiRandom):  # it samples from the pages that hold about two batches
        data |= {"processes": processes.world_size, "micro-batch size (data.in_memory=0)": loader.batch_size}
    return data
