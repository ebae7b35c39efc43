"""Batches for trainers, on their device."""

from __future__ import annotations

from .. import patches  # noqa: F401

# isort: split
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ffcv.fields.basics import IntDecoder
from ffcv.loader import OrderOption
from ffcv.transforms import Squeeze, ToDevice, ToTensor, ToTorchImage

from ..loader import Loader
from .config import DataConfig
from .distributed import Processes


def pipelines(decoder: Any, device: torch.device) -> dict[str, list[Any]]:
    """What happens to the fields of a sample: images, uint8 (N, 3, H, W), and labels, int64 (N,), on the device.

    FFCV copies to the GPU on a stream of its own, while the model works.
    """
    return {
        "image": [decoder, ToTensor(), ToDevice(device), ToTorchImage()],
        "label": [IntDecoder(), ToTensor(), Squeeze(1), ToDevice(device)],
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


def validation_loader(data: DataConfig, decoder: Any, *, batch_size: int, processes: Processes) -> Loader:
    """Batches of the validation set, in the file's order: each image in exactly one process."""
    return Loader(
        data.val_dataset,
        batch_size=batch_size,
        num_workers=processes.workers(data.num_workers),
        os_cache=bool(data.in_memory),
        order=OrderOption.SEQUENTIAL,
        distributed=processes.count > 1,
        drop_last=False,
        pipelines=pipelines(decoder, processes.device),
    )
