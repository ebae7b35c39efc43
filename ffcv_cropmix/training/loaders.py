"""Batches for trainers, on their device."""

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
    """Replace labels, int64 (N,), by `numbers[label]`."""

    numbers: Tensor

    def __init__(self, numbers: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("numbers", torch.tensor(numbers))

    def forward(self, labels: Tensor) -> Tensor:
        return self.numbers[labels]


def pipelines(decoder: Any, device: torch.device, numbers: Sequence[int] | None = None) -> dict[str, list[Any]]:
    """What happens to the fields of a sample: images, uint8 (N, 3, H, W), and labels, int64 (N,), on the device.

    FFCV copies to the GPU on a stream of its own, while the model works.

    Args:
        decoder: of the images.
        device: where batches are needed.
        numbers: the output of the model for each label, see `datasets.match_classes`; None: labels are outputs.
    """
    renumber = [] if numbers is None else [Renumber(numbers).to(device)]
    return {
        "image": [decoder, ToTensor(), ToDevice(device), ToTorchImage()],
        "label": [IntDecoder(), ToTensor(), Squeeze(1), ToDevice(device), *renumber],
    }


def training_loader(
    data: DataConfig, fields: Mapping[str, Sequence[Any] | None], *, batch_size: int, seed: int, processes: Processes
) -> Loader:
    """Batches of the training set, in random order, shared by the processes.

    Args:
        fields: what happens to each, see `pipelines`.
        batch_size: images at once in a process.
        seed: of the order.
    """
    return Loader(
        data.train_dataset,
        batch_size=batch_size,
        num_workers=processes.workers(data.num_workers),
        os_cache=bool(data.in_memory),
        order=OrderOption.RANDOM if data.in_memory else OrderOption.QUASI_RANDOM,
        distributed=processes.count > 1,
        seed=seed,
        drop_last=True,
        pipelines=fields,
    )


def validation_loader(
    data: DataConfig, decoder: Any, *, batch_size: int, processes: Processes, numbers: Sequence[int] | None = None
) -> Loader:
    """Batches of the validation set, in the file's order: each image in exactly one process.

    Args:
        data: where it is.
        decoder: of the images.
        batch_size: images at once in a process.
        processes: this one, and how many there are.
        numbers: see `pipelines`.
    """
    return Loader(
        data.val_dataset,
        batch_size=batch_size,
        num_workers=processes.workers(data.num_workers),
        os_cache=bool(data.in_memory),
        order=OrderOption.SEQUENTIAL,
        distributed=processes.count > 1,
        drop_last=False,
        pipelines=pipelines(decoder, processes.device, numbers),
    )
