"""Loaders and pipelines for trainers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..ffcv_compat import IntDecoder, OrderOption, Squeeze, ToDevice, ToTensor, ToTorchImage
from ..loader import Loader
from .config import DataConfig
from .distributed import Processes


class Renumber(nn.Module):
    """Replace each label by `numbers[label]`: int64 (N,) to int64 (N,).

    Example:
        >>> Renumber([2, 0, 1])(torch.tensor([0, 0, 1]))
        tensor([2, 2, 0])
    """

    numbers: Tensor

    def __init__(self, numbers: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("numbers", torch.tensor(numbers))

    def forward(self, labels: Tensor) -> Tensor:
        return self.numbers[labels]


def pipelines(decoder: Any, device: torch.device, numbers: Sequence[int] | None = None) -> dict[str, list[Any]]:
    """Return the pipelines of the fields: images, uint8 (N, 3, H, W), and labels, int64 (N,), on the device.

    FFCV copies to the GPU on its own stream, while the model works.

    Args:
        decoder: Decoder of the images.
        device: Device of the batches.
        numbers: Output of the model for each label; see `match_classes`. None: labels are outputs.
    """
    renumber = [] if numbers is None else [Renumber(numbers).to(device)]
    return {
        "image": [decoder, ToTensor(), ToDevice(device), ToTorchImage()],
        "label": [IntDecoder(), ToTensor(), Squeeze(1), ToDevice(device), *renumber],
    }


def training_loader(
    data: DataConfig, fields: Mapping[str, Sequence[Any] | None], *, batch_size: int, seed: int, processes: Processes
) -> Loader:
    """Create the loader of the training set, in random order, sharded over the processes.

    Args:
        data: Dataset and loading options.
        fields: Pipelines of the fields; see `pipelines`.
        batch_size: Images per micro-batch.
        seed: Seed of the order.
        processes: This process and its peers.
    """
    return Loader(
        data.train_dataset,
        batch_size=batch_size,
        num_workers=processes.workers(data.num_workers),
        os_cache=bool(data.in_memory),
        order=OrderOption.RANDOM if data.in_memory else OrderOption.QUASI_RANDOM,
        distributed=processes.world_size > 1,
        seed=seed,
        drop_last=True,
        pipelines=fields,
    )


def validation_loader(
    data: DataConfig, decoder: Any, *, batch_size: int, processes: Processes, numbers: Sequence[int] | None = None
) -> Loader:
    """Create the loader of the validation set, in file order: each image in exactly one process.

    Args:
        data: Dataset and loading options.
        decoder: Decoder of the images.
        batch_size: Images per batch, in each process.
        processes: This process and its peers.
        numbers: Output of the model for each label; see `pipelines`.
    """
    return Loader(
        data.val_dataset,
        batch_size=batch_size,
        num_workers=processes.workers(data.num_workers),
        os_cache=bool(data.in_memory),
        order=OrderOption.SEQUENTIAL,
        distributed=processes.world_size > 1,
        drop_last=False,
        pipelines=pipelines(decoder, processes.device, numbers),
    )
