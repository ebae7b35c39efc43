"""Processes of a distributed run: one per GPU, or several on the CPU.

`join` connects this process to the others; `Processes` holds the collective operations that the trainers need;
`split_batch` turns a global batch into micro-batches; `StopSignal` lets all processes stop at the same step.
"""

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
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import DataError, usage_error, wrong_options
from ..progress import progress
from .config import DistConfig

if TYPE_CHECKING:
    from ..loader import Loader

T = TypeVar("T")

_SAME_SIGNAL = 5.0  # s
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
DIVERGED = 1 << 16  # StopSignal.agreed() if a loss is not finite; greater than any signal number


@dataclass(frozen=True)
class Processes:
    """This process and its peers, in torch.distributed's terms.

    Example:
        >>> processes = Processes(torch.device("cpu"))
        >>> processes.is_main, processes.world_size, processes.on_main(lambda: "written")
        (True, 1, 'written')
    """

    device: torch.device
    """Device of this process"""
    rank: int = 0
    """Rank of this process, from 0"""
    world_size: int = 1
    """Number of processes"""
    local_world_size: int = 1
    """Number of processes on this machine, which share its cores"""

    @property
    def is_main(self) -> bool:
        """Whether this is the process that reports and writes: rank 0."""
        return self.rank == 0

    @property
    def cores(self) -> int:
        """Number of CPU cores for this process: an equal share of those that the machine allows."""
        return max(1, len(os.sched_getaffinity(0)) // self.local_world_size)

    def workers(self, wanted: int | None) -> int:
        """Return the number of loader threads: `wanted`, limited to the cores of this process; None: all of them."""
        return min(wanted or self.cores, self.cores)

    def split_batch(self, batch_size: int, global_batch_size: int | None, images: int) -> BatchSplit:
        """Call `split_batch` for these processes; exit with a usage error if it raises ValueError."""
        with wrong_options():
            return split_batch(batch_size, global_batch_size, world_size=self.world_size, images=images)

    def show(self, batches: Loader, name: str) -> Iterable[Any]:
        """Iterate over the batches; the main process shows the progress."""
        return progress(batches, len(batches), name) if self.is_main else batches

    def mean(self, value: Tensor) -> Tensor:
        """Average a float tensor over the processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(value)
            value /= self.world_size
        return value

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank. Each process gets the same list."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def on_main(self, action: Callable[[], T]) -> T | None:
        """Run `action` in the main process and return its result; the other processes get None.

        Raises:
            DataError: The action raised it. All processes do, so that none waits for the others.
        """
        result, failures = None, [""]
        if self.is_main:
            try:
                result = action()
            except DataError as error:
                failures = [str(error)]
        if self.world_size > 1:
            dist.broadcast_object_list(failures)
        if failures[0]:
            raise DataError(failures[0])
        return result

    def share_buffers(self, module: nn.Module) -> None:
        """Copy buffers, such as batch normalisation statistics, from the main process to the others."""
        if self.world_size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Wrap the model in DistributedDataParallel if there are several processes."""
        if self.world_size == 1:
            return model
        devices = None if self.device.type == "cpu" else [self.device]
        return nn.parallel.DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)

    def gradient_sync(self, model: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Return the context for the forward and backward pass of a micro-batch.

        Gradients are synchronised in the last micro-batch of a step only.
        """
        if isinstance(model, nn.parallel.DistributedDataParallel) and not last:
            return model.no_sync()
        return nullcontext()


def join(gpu: int, local: DistConfig | None = None) -> Processes:
    """Choose the device, limit torch to the cores of this process, and join the process group under torchrun.

    The backend is nccl on GPUs and gloo on CPUs.

    Args:
        gpu: Index of the GPU to use without torchrun. Ignored on a machine without GPUs.
        local: Without torchrun and with a `world_size` above 1, replace this program by torchrun, which starts it
            again in that many processes on this machine. Then this function does not return.

    Returns:
        This process and its peers.
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
    local_rank, local_world_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if 0 < gpus < local_world_size:
        usage_error(f"there are {local_world_size} processes on this machine, but {gpus} GPUs")
    device = _use(local_rank if gpus else None)
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", device_id=device if gpus else None)
    atexit.register(dist.destroy_process_group)
    if dist.get_rank() > 0:
        sys.stdout = StringIO()  # the main process reports
    return _with_threads(Processes(device, dist.get_rank(), dist.get_world_size(), local_world_size))


def _with_threads(processes: Processes) -> Processes:
    torch.set_num_threads(processes.cores)
    return processes


def _use(gpu: int | None) -> torch.device:
    if gpu is None:
        return torch.device("cpu")
    torch.cuda.set_device(gpu)
    return torch.device("cuda", gpu)


def _check_address(local: DistConfig) -> None:
    """End the program with one line if the main process cannot be reached; torchrun would print a page."""
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
    os.environ.setdefault("PET_SIGNALS_TO_HANDLE", names)  # torchrun forwards these to its processes
    where = [f"--nproc-per-node={local.world_size}", f"--master-addr={local.address}", f"--master-port={local.port}"]
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun would print a warning; join() sets the threads
    os.execv(sys.executable, [sys.executable, "-m", "torch.distributed.run", *where, *_this_program()])


def _this_program() -> list[str]:
    """Return the command line of this program: a script or, with python -m, a module, and the arguments."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    return [*(["-m", module.name] if module else sys.argv[:1]), *sys.argv[1:]]


class BatchSplit(NamedTuple):
    """How each process works through its share of a global batch."""

    micro_batch_size: int
    """Images in one forward pass"""
    accumulation_steps: int
    """Micro-batches per optimiser step"""


def split_batch(
    batch_size: int, global_batch_size: int | None = None, *, world_size: int = 1, images: int | None = None
) -> BatchSplit:
    """Split a global batch into equal micro-batches for gradient accumulation.

    Args:
        batch_size: Most images that a process takes at once. Without a `global_batch_size`, the number of images per
            process and step.
        global_batch_size: Images per optimiser step, over all processes.
        world_size: Number of processes.
        images: Size of the training set, to check against; None: do not check.

    Returns:
        The largest micro-batch size that divides each process's share, and the number of accumulation steps.

    Raises:
        ValueError: The global batch is not a multiple of `world_size`, or larger than the training set.

    Example:
        >>> split_batch(512, 4096, world_size=8)
        BatchSplit(micro_batch_size=512, accumulation_steps=1)
        >>> split_batch(512, 4096)
        BatchSplit(micro_batch_size=512, accumulation_steps=8)
    """
    whole = global_batch_size or batch_size * world_size
    share, remainder = divmod(whole, world_size)
    if remainder:
        raise ValueError(f"training.global_batch_size={whole} is not a multiple of {world_size} processes")
    if images is not None and whole > images:
        raise ValueError(f"the global batch of {whole} images is larger than the training set of {images}")
    steps = next(steps for steps in range(-(-share // batch_size), share + 1) if share % steps == 0)
    return BatchSplit(share // steps, steps)


class StopSignal:
    """Catch a signal that asks the run to stop, and hold it until all processes can stop at the same step.

    Caught are SIGTERM, SIGINT, the signals that schedulers send before a time limit (SIGUSR1, SIGUSR2, SIGXCPU), and
    SIGHUP, unless nohup ignores it. A second signal more than 5 s later ends the process at once. An earlier one is
    ignored, because a scheduler and torchrun may both forward the same signal.
    """

    def __init__(self, processes: Processes) -> None:
        self._received, self._since = 0, 0.0
        self._diverged = False
        self._alone = processes.world_size == 1
        self._asked: tuple[Any, Tensor] | None = None
        for number in STOPPING:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._keep)

    def diverge(self) -> None:
        """Ask for a stop because a loss is not finite: `agreed` returns DIVERGED, at once or one step later."""
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
        """Return the signal to stop for, DIVERGED, or 0: the same number in all processes.

        Every process must call this at every step. With several processes, the result is what any of them had received
        by the previous call: the exchange runs in the background, on the CPU, so nothing waits for a GPU.
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
    """Redirect descriptors of a closed terminal to /dev/null: writing to them would fail before the run is saved."""
    for descriptor in descriptors:
        try:
            termios.tcgetattr(descriptor)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, descriptor)
                os.close(null)


def seed_step(seed: int, epoch: int, step: int, rank: int) -> None:
    """Seed torch for one step, so that a resumed run samples the same dropout masks and mixes of images."""
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch, step, rank]).generate_state(1)[0]))
