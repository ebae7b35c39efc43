"""The peers that are compared: ways to make the same training images from the same photos, and two limits.

Each peer delivers batches of CropMix's images: two to four crops (sampled for each image) of distinct scales from 1 %
of the image's area on, bilinear, mixed with mixup, channels permuted, half of the images mirrored. A comment says if a
peer does less. The options are the authors': scale 0.01, mix_ratio 0.4, number 234. Some peers, as their labels say,
make one plain RandomResizedCrop, or two, as in contrastive learning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import ffcv.loader
import numpy as np
import torch
from ffcv.fields.rgb_image import IMAGE_MODES, RandomResizedCropRGBImageDecoder, SimpleRGBImageDecoder
from ffcv.libffcv import imdecode, memcpy
from ffcv.pipeline import PipelineSpec
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.transforms import RandomHorizontalFlip, ToTensor
from ffcv.transforms.utils.fast_crop import get_random_crop, resize_crop
from numba import get_num_threads

from ffcv_cropmix import CropMixRGBImageDecoder, Loader, MultiViewRGBImageDecoder, ViewSpec
from ffcv_cropmix.data.reader import Beton
from file_peers import Dali, Spdl, authors, torchvision_v2, transform
from jobs import MIX_RATIO, NUMBERS, RATIO, SCALE, Job, Peer

_JPG = int(IMAGE_MODES["jpg"])


class _Images:
    """Iterate over an FFCV loader, and yield the first output of each batch."""

    def __init__(self, loader: ffcv.loader.Loader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[torch.Tensor]:
        for images, *_ in self.loader:
            yield images


def _beton(job: Job, loader: type[ffcv.loader.Loader], *operations: Any, **further: PipelineSpec) -> _Images:
    others = Beton(job.beton).field_names
    pipelines = {**dict.fromkeys(others), "image": [*operations, ToTensor()], **further}
    options: dict[str, Any] = {"batch_size": job.batch_size, "num_workers": job.num_workers, "indices": job.indices}
    return _Images(loader(str(job.beton), pipelines=pipelines, os_cache=True, drop_last=False, **options))


def _cropmix(**options: Any) -> Callable[[Job], _Images]:
    def make(job: Job) -> _Images:
        return _beton(job, Loader, CropMixRGBImageDecoder((job.side, job.side), **options))

    return make


def _stock(job: Job) -> _Images:
    return _beton(job, ffcv.loader.Loader, RandomResizedCropRGBImageDecoder((job.side, job.side)))


def _views(job: Job) -> _Images:
    return _beton(job, Loader, MultiViewRGBImageDecoder([ViewSpec((job.side, job.side)) for _ in range(2)]))


def _stock_views(job: Job) -> _Images:
    first, second = (RandomResizedCropRGBImageDecoder((job.side, job.side)) for _ in range(2))
    return _beton(job, ffcv.loader.Loader, first, second=PipelineSpec("image", second, [ToTensor()]))


def _mix(composite, view, lam, first, second, third):
    """Apply mixup in place, with the channels of the operand of smaller weight permuted."""
    for row in range(composite.shape[0]):
        for column in range(composite.shape[1]):
            a, b = composite[row, column], view[row, column]
            if lam > 0.5:
                red, green, blue = b[first], b[second], b[third]
                a[0] = lam * a[0] + (1 - lam) * red
                a[1] = lam * a[1] + (1 - lam) * green
                a[2] = lam * a[2] + (1 - lam) * blue
            else:
                red, green, blue = a[first], a[second], a[third]
                a[0] = lam * red + (1 - lam) * b[0]
                a[1] = lam * green + (1 - lam) * b[1]
                a[2] = lam * blue + (1 - lam) * b[2]


class NaiveCropMix(RandomResizedCropRGBImageDecoder):
    """CropMix composed of FFCV's parts: decode, crop and resize each view, and mix it in."""

    def __init__(self, output_size: tuple[int, int], scale: float, numbers: Sequence[int]) -> None:
        super().__init__(output_size, scale=(scale, 1.0), ratio=RATIO)
        self.numbers = tuple(numbers)

    def declare_state_and_memory(self, previous_state):
        state, (images, decoded) = super().declare_state_and_memory(previous_state)
        return state, (images, decoded, AllocationQuery(images.shape, images.dtype))

    def generate_code(self) -> Callable[..., Any]:
        read, iterate = self.memory_read, Compiler.get_iterator()
        decode_image, mix = Compiler.compile(imdecode), Compiler.compile(_mix)
        low, high = self.scale
        ratio, numbers = np.array(self.ratio), np.array(self.numbers)

        def decode(batch_indices, memory, metadata, storage_state):
            images, buffers, views = memory
            for position in iterate(len(batch_indices)):
                sample = metadata[batch_indices[position]]
                data = read(sample["data_ptr"], storage_state)
                height, width = np.uint32(sample["height"]), np.uint32(sample["width"])
                if sample["mode"] == _JPG:
                    buffer = buffers[position]
                    decode_image(data, buffer, height, width, height, width, 0, 0, 1, 1, False, False)
                    image = buffer.reshape(-1)[: 3 * height * width].reshape(height, width, 3)
                else:
                    image = data.reshape(height, width, 3)
                number = numbers[np.random.randint(len(numbers))]
                band = (high - low) / number
                order = np.random.permutation(number)
                for k in range(number):
                    begin = low + order[k] * band
                    top, left, rows, columns = get_random_crop(height, width, np.array([begin, begin + band]), ratio)
                    target = images[position] if k == 0 else views[position]
                    resize_crop(image, top, top + rows, left, left + columns, target)
                    if k > 0:
                        lam = np.random.beta(MIX_RATIO / number, MIX_RATIO / number)
                        channels = np.random.permutation(3)
                        mix(images[position], target, lam, channels[0], channels[1], channels[2])
            return images[: len(batch_indices)]

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode


def _naive(job: Job) -> _Images:
    return _beton(job, ffcv.loader.Loader, NaiveCropMix((job.side, job.side), SCALE, NUMBERS), RandomHorizontalFlip())


class ReadOnly(SimpleRGBImageDecoder):
    """A lower bound for decoders: read each image into one buffer per thread, and leave the output unchanged.

    Args:
        decompress: whether to decompress JPEGs; otherwise the stored bytes are copied, as for raw images.
    """

    def __init__(self, output_size: tuple[int, int], decompress: bool) -> None:
        super().__init__()
        self.output_size, self.decompress = output_size, decompress

    def declare_state_and_memory(self, previous_state):
        shape, dtype = (*self.output_size, 3), np.dtype("u1")
        return replace(previous_state, jit_mode=True, shape=shape, dtype=dtype), AllocationQuery(shape, dtype)

    def generate_code(self) -> Callable[..., Any]:
        read, iterate, decompress = self.memory_read, Compiler.get_iterator(), self.decompress
        decode_image, copy = Compiler.compile(imdecode), Compiler.compile(memcpy)
        # A JPEG of noise is larger than its pixels.
        largest = 4 * int((self.metadata["height"].astype(np.int64) * self.metadata["width"]).max()) + 4096

        def decode(batch_indices, images, metadata, storage_state):
            count, chunks = len(batch_indices), get_num_threads()
            for chunk in iterate(chunks):
                buffer = np.empty(largest, np.uint8)
                for position in range(chunk, count, chunks):
                    sample = metadata[batch_indices[position]]
                    data = read(sample["data_ptr"], storage_state)
                    height, width = np.uint32(sample["height"]), np.uint32(sample["width"])
                    if decompress and sample["mode"] == _JPG:
                        decode_image(data, buffer, height, width, height, width, 0, 0, 1, 1, False, False)
                    else:
                        copy(data, buffer)
            return images[:count]

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode


def _read_only(decompress: bool) -> Callable[[Job], _Images]:
    return lambda job: _beton(job, ffcv.loader.Loader, ReadOnly((job.side, job.side), decompress))


_OPTIONS: dict[str, Any] = {"number": NUMBERS, "operation": "mixup", "inter_aug": True, "flip_probability": 0.5}
_FFCVS, _BETONS = ("jpg", "raw"), ("jpg", "dct", "raw")


def _ours(label: str, reads: tuple[str, ...] = _BETONS, **options: Any) -> Peer:
    options = {**_OPTIONS, **options}
    return Peer(label, _cropmix(**options), reads, options=options)


STOCK, CROPMIX, AUTHORS = "stock", "cropmix", "authors"

PEERS: dict[str, Peer] = {
    CROPMIX: _ours("CropMix, this package"),
    "cropmix-rows": _ours('CropMix, decode="rows"', ("jpg",), decode="rows"),
    "cropmix-ycbcr": _ours('CropMix, decode="ycbcr"', ("jpg", "dct"), decode="ycbcr"),
    "cropmix-one": _ours("one crop, this package (number=1)", number=1, scale=0.08),
    STOCK: Peer("one crop, FFCV (RandomResizedCrop)", _stock, _FFCVS),
    "views": Peer("two crops of one decode, this package", _views, _BETONS),
    "views-stock": Peer("two crops, FFCV (two pipelines, each decodes)", _stock_views, _FFCVS),
    "naive": Peer("CropMix from FFCV's parts", _naive, _FFCVS),
    AUTHORS: Peer("CropMix, the authors' algorithm (Pillow, DataLoader)", authors, ("files",)),
    "transform": Peer("CropMix, transforms.CropMix (Pillow, DataLoader)", transform, ("files",)),
    "torchvision": Peer("CropMix, torchvision v2 on tensors (DataLoader)", torchvision_v2, ("files",)),
    "spdl": Peer("CropMix, SPDL and OpenCV", Spdl, ("files",), "spdl.pipeline"),
    "dali": Peer("CropMix, NVIDIA DALI on the CPU", Dali, ("files",), "nvidia.dali"),
    "decode": Peer("limit: decode only, no crop", _read_only(True), ("jpg",)),
    "copy": Peer("limit: copy the stored bytes only", _read_only(False), _FFCVS),
}


def _variants() -> dict[str, Peer]:
    variants = {}
    for decode in ("rgb", "rows", "ycbcr"):
        for operation, numbers in product(("mixup", "cutmix"), ((2,), (3,), (4,), NUMBERS)):
            for inter_aug in (True, False) if decode == "rgb" else (True,):
                options = {"operation": operation, "number": numbers, "inter_aug": inter_aug, "decode": decode}
                reads = {"rgb": _BETONS, "rows": ("jpg",), "ycbcr": ("jpg", "dct")}[decode]
                peer = _ours("CropMix", reads, **options)
                name = f"{operation}-{''.join(map(str, numbers))}"
                variants[name + "-plain" * (not inter_aug) + f"-{decode}" * (decode != "rgb")] = peer
    return {name: peer for name, peer in variants.items() if not name.startswith("mixup-234") or "plain" in name}


VARIANTS = _variants()
"""CropMix with each number of crops, both operations, with and without inter_aug, and each way to decode.

Settings that are among PEERS are left out."""

CUTMIX = "cutmix-234", "cutmix-234-ycbcr"
"""The variants that tables of kinds of files show."""

ALL = {**PEERS, **VARIANTS}
