"""Batches on a GPU: the CPU's bytes, whatever the consumer's stream does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ffcv.fields.basics import IntDecoder
from ffcv.loader import OrderOption
from ffcv.pipeline import PipelineSpec
from ffcv.transforms import Squeeze, ToDevice, ToTensor, ToTorchImage
from torch import Tensor

from ffcv_cropmix import (
    CenterCropRGBImageDecoder,
    CropMixRGBImageDecoder,
    Loader,
    MultiViewRGBImageDecoder,
    SelectView,
    ToTorchViews,
    ViewSpec,
)

from .conftest import DEVICE, ON_CPU, no_host_sync

SIZE = (24, 16)
SAME = [ViewSpec(SIZE), ViewSpec(SIZE, flip_probability=0.5)]
DIFFERENT = [ViewSpec(SIZE), ViewSpec((8, 8), number=1)]


def _image(decoder: Any, device: torch.device) -> dict[str, Any]:
    return {"image": [decoder, ToTensor(), ToDevice(device), ToTorchImage()]}


def _cropmix(device: torch.device) -> dict[str, Any]:
    return _image(CropMixRGBImageDecoder(SIZE, seed=1, flip_probability=0.5), device)


def _center(device: torch.device) -> dict[str, Any]:
    return _image(CenterCropRGBImageDecoder(SIZE), device)


def _ycbcr(device: torch.device) -> dict[str, Any]:
    return _image(CropMixRGBImageDecoder(SIZE, seed=1, decode="ycbcr"), device)


def _same_size(device: torch.device) -> dict[str, Any]:
    return {"image": [MultiViewRGBImageDecoder(SAME), ToTorchViews(device)]}


def _sizes(device: torch.device) -> dict[str, Any]:
    return {"image": [MultiViewRGBImageDecoder(DIFFERENT), ToTorchViews(device, views=[1, 0])]}


def _selected(device: torch.device) -> dict[str, Any]:
    decoder = MultiViewRGBImageDecoder(DIFFERENT)
    second = [SelectView(1), ToTensor(), ToDevice(device), ToTorchImage()]
    return {
        "image": PipelineSpec("image", decoder, [SelectView(0), ToTensor(), ToDevice(device), ToTorchImage()]),
        "second": PipelineSpec(decoder, transforms=second),
    }


PIPELINES: dict[str, Callable[[torch.device], dict[str, Any]]] = {
    function.__name__.strip("_"): function for function in (_cropmix, _center, _ycbcr, _same_size, _sizes, _selected)
}


@pytest.fixture(scope="session")
def files(sealed: dict[str, Path], sealed_dct: Path) -> dict[str, Path]:
    return {**sealed, "dct": sealed_dct}


def _loader(path: Path, pipelines: dict[str, Any], device: torch.device, **options: Any) -> Loader:
    label = [IntDecoder(), ToTensor(), Squeeze(1), ToDevice(device)]
    chosen = {"order": OrderOption.RANDOM, "seed": 0, "drop_last": False, **options}
    return Loader(path, 4, 1, pipelines={**pipelines, "label": label}, **chosen)


def _tensors(batch: Any) -> list[Tensor]:
    return [tensor for part in batch for tensor in (_tensors(part) if isinstance(part, tuple) else [part])]


def _copies(batch: Sequence[Any]) -> list[Tensor]:
    return [tensor.clone() for tensor in _tensors(batch)]


def _check_equal(seen: list[list[Tensor]], expected: list[list[Tensor]]) -> None:
    assert len(seen) == len(expected)
    for tensors, cpus in zip(seen, expected):
        assert all(tensor.device.type == DEVICE.type for tensor in tensors)
        for tensor, cpu in zip(tensors, cpus, strict=True):
            assert torch.equal(tensor.cpu(), cpu)


def _delay() -> None:
    """Keep the current stream busy for some 20 ms; the host goes on."""
    if not ON_CPU:
        torch.cuda._sleep(40_000_000)  # cycles


@pytest.mark.parametrize("mode", ["raw", "jpg", "dct"])
@pytest.mark.parametrize("name", PIPELINES)
def test_batches_are_the_cpus(files: dict[str, Path], mode: str, name: str) -> None:
    """Images, views and labels on the GPU are the CPU's, byte for byte, in channels_last."""
    cpu = torch.device("cpu")
    expected = [_copies(batch) for batch in _loader(files[mode], PIPELINES[name](cpu), cpu)]
    seen = [_copies(batch) for batch in _loader(files[mode], PIPELINES[name](DEVICE), DEVICE)]
    _check_equal(seen, expected)
    images = [tensor for tensor in seen[0] if tensor.ndim == 4]
    assert images and all(image.is_contiguous(memory_format=torch.channels_last) for image in images)


def test_a_consumer_that_makes_its_own_copies(files: dict[str, Path]) -> None:
    """Batches on the host are pinned: the consumer's asynchronous copies are right, also far behind the loader."""
    cpu = torch.device("cpu")
    plain = _loader(files["raw"], _cropmix(cpu), cpu, batches_ahead=1)
    expected = [_copies(batch) for _ in range(3) for batch in plain]
    plain.set_epoch(0)
    seen: list[list[Tensor]] = []
    for _ in range(3):
        for batch in plain:
            _delay()
            seen.append([tensor.to(DEVICE, non_blocking=True, copy=True) for tensor in batch])
    if not ON_CPU:
        torch.cuda.synchronize()
    _check_equal(seen, expected)


@pytest.mark.parametrize("own_stream", [False, True])
@pytest.mark.parametrize("batches_ahead", [1, 3])
def test_a_consumer_far_behind(files: dict[str, Path], own_stream: bool, batches_ahead: int) -> None:
    """Batches are right and in order if the consumer's stream is far behind the host, beyond the end of a pass."""
    cpu = torch.device("cpu")
    plain = _loader(files["raw"], _cropmix(cpu), cpu, batches_ahead=batches_ahead)
    expected = [_copies(batch) for _ in range(3) for batch in plain]
    loader = _loader(files["raw"], _cropmix(DEVICE), DEVICE, batches_ahead=batches_ahead)
    seen: list[list[Tensor]] = []

    def consume() -> None:
        for _ in range(3):  # no wait between them: the next pass may get the buffers of the one before
            for batch in loader:
                _delay()
                seen.append(_copies(batch))

    if ON_CPU:
        consume()
    else:
        with torch.cuda.stream(torch.cuda.Stream() if own_stream else torch.cuda.current_stream()):
            consume()
        torch.cuda.synchronize()
    _check_equal(seen, expected)


def test_a_pass_that_is_left_early(files: dict[str, Path]) -> None:
    """Memory of a pass that the consumer leaves early is not written to after it is free."""
    loader = _loader(files["raw"], _cropmix(DEVICE), DEVICE)
    for _ in range(5):
        batches = iter(loader)
        batch = next(batches)
        _delay()
        batches.close()
        shapes = [(tensor.shape, tensor.dtype) for tensor in _tensors(batch)]
        del batches, batch
        taken = [torch.full(shape, 7, dtype=dtype, device=DEVICE) for shape, dtype in shapes * 8]
        assert all(bool((tensor == 7).all()) for tensor in taken)


def test_a_module_on_the_gpu_and_a_batch_that_is_kept(files: dict[str, Path]) -> None:
    """What a module of a pipeline computes on the GPU is not overwritten while the consumer still works on it."""

    class Shift(torch.nn.Module):
        def forward(self, labels: Tensor) -> Tensor:
            return labels + 100

    label = [IntDecoder(), ToTensor(), Squeeze(1), ToDevice(DEVICE), Shift()]
    kept: list[Tensor] = []
    loader = Loader(files["raw"], 4, 1, pipelines={"image": None, "label": label}, drop_last=True)
    for (labels,) in loader:
        _delay()
        kept.append(labels * 2)
        del labels
    assert torch.cat(kept).tolist() == [2 * (100 + index) for index in range(36)]


def test_the_loader_lets_no_host_wait(files: dict[str, Path]) -> None:
    """Neither the loader's thread nor its consumer waits for the GPU in a way that torch counts as synchronising."""
    batches = iter(_loader(files["raw"], _cropmix(DEVICE), DEVICE, batches_ahead=1))
    next(batches)
    with no_host_sync():
        assert len(list(batches)) == 9


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU. With two: the device that is not the current one")
def test_another_device_than_the_current_one(files: dict[str, Path]) -> None:
    """Batches on a GPU that is not the current one are right, and the loader leaves the other GPU alone."""
    cpu, other = torch.device("cpu"), torch.device("cuda", 1)
    expected = [_copies(batch) for batch in _loader(files["raw"], _cropmix(cpu), cpu, batches_ahead=1)]
    with torch.cuda.device(0):
        seen = [_copies(batch) for batch in _loader(files["raw"], _cropmix(other), other, batches_ahead=1)]
    _check_equal(seen, expected)
