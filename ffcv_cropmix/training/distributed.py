"""One process for each GPU, or several on the CPU: who they are, and what they have to agree on."""

from __future__ import annotations

import atexit
import errno
import os
import signal
import socket
import sys
import termios
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from io import StringIO
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import DataError, usage_error
from ..progress import progress
from .config import DistConfig

if TYPE_CHECKING:
    from ..loader import Loader

T = TypeVar("T")

_SAME_SIGNAL = 5.0  # s
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
DIVERGED = 1 << 16  # what StopSignal agrees on if a loss is not finite; above all signals


@dataclass(frozen=True)
class Processes:
    """This process, and how many there are."""

    device: torch.device
    """This one's"""
    rank: int = 0
    """Number of this one, from 0"""
    count: int = 1
    """All of them"""
    on_machine: int = 1
    """Those that share this machine's cores"""

    @property
    def first(self) -> bool:
        """Whether this is the one that reports and writes."""
        return self.rank == 0

    @property
    def cores(self) -> int:
        """Of this process, of those that the machine allows it."""
        return max(1, len(os.sched_getaffinity(0)) // self.on_machine)

    def workers(self, wanted: int | None) -> int:
        """Threads of a loader: so many, if there are as many cores; None: all cores."""
        return min(wanted or self.cores, self.cores)

    def show(self, batches: Loader, name: str) -> Iterable[Any]:
        """The batches; the first process shows how far they are."""
        return progress(batches, len(batches), name) if self.first else batches

    def mean(self, value: Tensor) -> Tensor:
        """Over the processes, of a float tensor; in place."""
        if self.count > 1:
            dist.all_reduce(value)
            value /= self.count
        return value

    def gather(self, value: T) -> list[T]:
        """What each process has, in all of them, by rank."""
        values = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value)
        return values

    def by_first(self, action: Callable[[], T]) -> T | None:
        """Do something in the first process; the others get None. If it fails there, all raise its DataError."""
        result, failures = None, [""]
        if self.first:
            try:
                result = action()
            except DataError as error:
                failures = [str(error)]
        if self.count > 1:
            dist.broadcast_object_list(failures)
        if failures[0]:
            raise DataError(failures[0])
        return result

    def share_buffers(self, module: nn.Module) -> None:
        """Copy buffers, such as the statistics of batch normalisation, from the first process to the others."""
        if self.count > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, its gradients averaged over the processes."""
        if self.count == 1:
            return model
        devices = None if self.device.type == "cpu" else [self.device]
        return nn.parallel.DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)

    def exchange(self, model: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Around a part of a step: gradients are exchanged in the last one only."""
        if isinstance(model, nn.parallel.DistributedDataParallel) and not last:
            return model.no_sync()
        return nullcontext()


def join(gpu: int, local: DistConfig | None = None) -> Processes:
    """Choose the device, give torch this process's cores, and join the others if torchrun started this one.

    Processes use nccl on GPUs, and gloo on CPUs.

    Args:
        gpu: index of the one to use, where there are any, without torchrun.
        local: without torchrun, and if it says so of several processes: start this program again in as many, under
            torchrun, on this machine. Then it does not return.
    """
    gpus = torch.cuda.device_count()
    if "LOCAL_RANK" not in os.environ:
        if local and local.world_size > 1:
            if 0 < gpus < local.world_size:
                usage_error(f"dist.world_size={local.world_size}: this machine has {gpus} GPUs")
            _start_again(local)
        if gpus and gpu >= gpus:
            usage_error(f"data.gpu={gpu}: there are {gpus} GPUs, numbered from 0")
        return _with_threads(Processes(_use(gpu if gpus else None)))
    local_rank, on_machine = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if 0 < gpus < on_machine:
        usage_error(f"{on_machine} processes on this machine, which has {gpus} GPUs")
    device = _use(local_rank if gpus else None)
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", device_id=device if gpus else None)
    atexit.register(dist.destroy_process_group)
    if dist.get_rank() > 0:
        sys.stdout = StringIO()  # the first one reports
    return _with_threads(Processes(device, dist.get_rank(), dist.get_world_size(), on_machine))


def _with_threads(processes: Processes) -> Processes:
    torch.set_num_threads(processes.cores)
    return processes


def _use(gpu: int | None) -> torch.device:
    if gpu is None:
        return torch.device("cpu")
    torch.cuda.set_device(gpu)
    return torch.device("cuda", gpu)


def _check_address(local: DistConfig) -> None:
    """End the program with one line if the first process cannot be reached: torchrun's answer is a page."""
    try:
        socket.getaddrinfo(local.address, local.port)
    except OSError as error:
        usage_error(f"dist.address={local.address}: {(error.strerror or str(error)).lower()}")
    both = socket.has_dualstack_ipv6()
    try:
        family = socket.AF_INET6 if both else socket.AF_INET
        socket.create_server(("", local.port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        usage_error(f"dist.port={local.port}: {os.strerror(error.errno or 0).lower()}: choose another one")


def _start_again(local: DistConfig) -> None:
    _check_address(local)
    names = ",".join(signal.Signals(number).name for number in (*STOPPING, signal.SIGQUIT))
    os.environ.setdefault("PET_SIGNALS_TO_HANDLE", names)  # torchrun hands them on to its processes
    where = [f"--nproc-per-node={local.world_size}", f"--master-addr={local.address}", f"--master-port={local.port}"]
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun would say that it sets it; the trainer sets torch's own
    os.execv(sys.executable, [sys.executable, "-m", "torch.distributed.run", *where, *_this_program()])


def _this_program() -> list[str]:
    """How it was started: a script or, with python -m, a module; and its arguments."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    return [*(["-m", module.name] if module else sys.argv[:1]), *sys.argv[1:]]


def split_batch(batch_size: int, global_batch_size: int | None, processes: int) -> tuple[int, int]:
    """How the images of a step are dealt out: (images at once in a process, times that it takes so many).

    Args:
        batch_size: at most so many at once; without a global_batch_size, so many.
        global_batch_size: images of a step, of all processes together.

    Raises:
        ValueError: it cannot be shared equally.
    """
    if global_batch_size is None:
        return batch_size, 1
    share, rest = divmod(global_batch_size, processes)
    if rest:
        raise ValueError(f"training.global_batch_size={global_batch_size} is not a multiple of {processes} processes")
    parts = next(parts for parts in range(-(-share // batch_size), share + 1) if share % parts == 0)
    return share // parts, parts


def deal_step(batch_size: int, global_batch_size: int | None, *, images: int, processes: Processes) -> tuple[int, int]:
    """`split_batch`, for a training set of so many images; what is wrong ends the program with one line."""
    try:
        at_once, parts = split_batch(batch_size, global_batch_size, processes.count)
    except ValueError as error:
        usage_error(str(error))
    if at_once * parts * processes.count > images:
        usage_error(f"{at_once * parts * processes.count} images a step are more than {images}, the whole training set")
    return at_once, parts


class StopSignal:
    """A signal that asks for the end, kept until all processes can stop at the same step.

    Such are SIGTERM, SIGINT, what schedulers send before a time limit (SIGUSR1, SIGUSR2, SIGXCPU), and SIGHUP, unless
    nohup had it ignored. Another one, more than 5 s later, ends the process at once. Until then it may be the same one:
    both a scheduler and torchrun send it.
    """

    def __init__(self, processes: Processes) -> None:
        self._received, self._since = 0, 0.0
        self._diverged = False
        self._alone = processes.count == 1
        self._asked: tuple[Any, Tensor] | None = None
        for number in STOPPING:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._keep)

    def diverge(self) -> None:
        """Stop because a loss is not finite: `agreed` says DIVERGED, at once or a step later."""
        self._diverged = True

    def _keep(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGHUP:
            mute_closed_terminal(1, 2)
        if self._received and now > self._since + _SAME_SIGNAL:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self._received:
            self._received, self._since = number, now

    def agreed(self) -> int:
        """The number of the signal to stop for, DIVERGED, or 0: the same in all processes, which all ask at each step.

        With several processes it is what any of them had received when they asked the time before: the answer came
        while they worked, on the CPU, and nothing waits for a GPU.
        """
        asked = DIVERGED if self._diverged else self._received
        if self._alone:
            return asked
        answer = 0
        if self._asked:
            request, flag = self._asked
            request.wait()
            answer = int(flag)
        flag = torch.tensor(asked)
        self._asked = dist.all_reduce(flag, dist.ReduceOp.MAX, async_op=True), flag
        return answer


def mute_closed_terminal(*descriptors: int) -> None:
    """Let what is written to a terminal that is gone get lost: it would fail before the checkpoint is written."""
    for descriptor in descriptors:
        try:
            termios.tcgetattr(descriptor)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, descriptor)
                os.close(null)


def seed_step(seed: int, epoch: int, step: int, rank: int) -> None:
    """Seed torch for one step: what it draws (dropout, mixing of images) is the same in a run that is resumed."""
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch, step, rank]).generate_state(1)[0]))
