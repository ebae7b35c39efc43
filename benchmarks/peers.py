"""What is compared: ways to make the same training images from the same photos, and two limits.

Each peer delivers batches of CropMix's images: two to four crops (drawn for each image) of distinct scales from 1 % of
the image's area on, bilinear, mixed with mixup, channels permuted, half of them mirrored. Where one does less, its
comment says so. The authors' numbers: scale 0.01, mix_ratio 0.4, number 234. Peers whose label says so make one plain
crop, RandomResizedCrop's, or two, as contrastive learning takes them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import cv2
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
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2

from ffcv_cropmix import CropMixRGBImageDecoder, Loader, MultiViewRGBImageDecoder, ViewSpec
from ffcv_cropmix.data.reader import Beton
from ffcv_cropmix.transforms import CropMix

SCALE, MIX_RATIO, NUMBERS = 0.01, 0.4, (2, 3, 4)
RATIO = (3 / 4, 4 / 3)
_JPG = int(IMAGE_MODES["jpg"])


@dataclass(frozen=True)
class Job:
    """What a peer is to do."""

    beton: Path
    indices: Sequence[int]
    """Rows of the .beton that make a pass, in this order; they may repeat."""
    files: Sequence[Path]
    """JPEG files of the same images, one for each row."""
    side: int
    """Of the square output, px."""
    num_workers: int
    """Threads, or processes."""
    batch_size: int

    @property
    def paths(self) -> list[str]:
        """The files of a pass."""
        return [str(self.files[index]) for index in self.indices]


@dataclass(frozen=True)
class Peer:
    """One way to do the job."""

    label: str
    make: Callable[[Job], Iterable[Any]]
    """Each iteration of the result is a pass over the images, and yields their batches."""
    reads: tuple[str, ...]
    """What it can read: jpg, raw (.beton files), files (JPEG)."""
    needs: str | None = None
    """A module of the extra `bench`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the decoder, for this package's."""

    def unavailable(self) -> str | None:
        """Why it cannot run here; None if it can."""
        try:
            if self.needs:
                import_module(self.needs)
        except ModuleNotFoundError:
            return f"{self.needs} is not installed"
        except (ImportError, OSError) as error:
            return f"{self.needs} does not load: {error}"
        return None


class _Images:
    """Passes over a FFCV loader: of each batch, what it makes first."""

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
    """Mixup in place, the channels of the operand of smaller weight permuted."""
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
    """CropMix put together from FFCV's parts: decode, crop and resize each view, mix it in."""

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
    """What no decoder can go below: each image is read into one buffer a thread, and the output stays as it is.

    Args:
        decompress: JPEGs; else the stored bytes are copied, as those of raw images are.
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


class Mixup:
    """The authors' CropMix with mixup, after their code; a subclass says how a view is made.

    Args:
        side: of the output, px.
        scale: smallest crop area as a share of the image's.
        numbers: of crops, to draw from for each image.
    """

    def __init__(self, side: int, scale: float = SCALE, numbers: Sequence[int] = NUMBERS) -> None:
        self.side, self.scale, self.numbers = side, scale, numbers

    def view(self, image: Any, area: tuple[float, float]) -> Any:
        """A RandomResizedCrop with an area of this range."""
        raise NotImplementedError

    def permute(self, image: Any) -> Any:
        """The channels in random order: of a tensor."""
        return image[torch.randperm(3)]

    def blend(self, first: Any, second: Any, lam: float) -> Any:
        return lam * first + (1 - lam) * second

    def finish(self, image: Any) -> Any:
        return image.flip(-1) if random.random() < 0.5 else image

    def __call__(self, image: Any) -> Any:
        number = random.choice(self.numbers)
        band = (1 - self.scale) / number
        areas = [(self.scale + k * band, self.scale + (k + 1) * band) for k in range(number)]
        views = [self.view(image, area) for area in areas]
        if number > 2:
            random.shuffle(views)
        composite = views[0]
        for view in views[1:]:
            lam = random.betavariate(MIX_RATIO / number, MIX_RATIO / number)
            if lam > 0.5:
                view = self.permute(view)
            else:
                composite = self.permute(composite)
            composite = self.blend(composite, view, lam)
        return self.finish(composite)


class PillowMixup(Mixup):
    """The authors' transforms: a PIL image to float32 (3, side, side) in [0, 1]."""

    def view(self, image: Image.Image, area: tuple[float, float]) -> torch.Tensor:
        crop = v2.RandomResizedCrop(self.side, area, RATIO)
        return v2.functional.to_dtype(v2.functional.to_image(crop(image)), torch.float32, scale=True)


class TensorMixup(Mixup):
    """torchvision v2 on tensors: uint8 (3, height, width) to uint8 (3, side, side)."""

    def view(self, image: torch.Tensor, area: tuple[float, float]) -> torch.Tensor:
        return v2.RandomResizedCrop(self.side, area, RATIO, antialias=True)(image)

    def finish(self, image: torch.Tensor) -> torch.Tensor:
        return super().finish(image).round().to(torch.uint8)  # a batch a quarter as large to hand over


class ArrayMixup(Mixup):
    """OpenCV on arrays: uint8 (height, width, 3) to uint8 (side, side, 3). INTER_AREA, as FFCV has it."""

    def view(self, image: np.ndarray, area: tuple[float, float]) -> np.ndarray:
        top, left, height, width = get_random_crop(*image.shape[:2], np.array(area), np.array(RATIO))
        crop = image[top : top + height, left : left + width]
        return cv2.resize(crop, (self.side, self.side), interpolation=cv2.INTER_AREA)

    def permute(self, image: np.ndarray) -> np.ndarray:
        order = random.sample(range(3), 3)
        return cv2.mixChannels([image], [np.empty_like(image)], [k for pair in enumerate(order) for k in pair])[0]

    def blend(self, first: np.ndarray, second: np.ndarray, lam: float) -> np.ndarray:
        return cv2.addWeighted(first, lam, second, 1 - lam, 0)

    def finish(self, image: np.ndarray) -> np.ndarray:
        return cv2.flip(image, 1) if random.random() < 0.5 else image


class _Files(Dataset[Any]):
    def __init__(self, paths: Sequence[str], load: Callable[[str], Any], transform: Callable[[Any], Any]) -> None:
        self.paths, self.load, self.transform = paths, load, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.load(self.paths[index]))


def _data_loader(job: Job, load: Callable[[str], Any], transform: Callable[[Any], Any]) -> Iterable[Any]:
    # Forked: not all that is loaded here can be sent to a new process. They use none of this process's threads.
    return DataLoader(
        _Files(job.paths, load, transform),
        job.batch_size,
        num_workers=job.num_workers,
        persistent_workers=True,
        multiprocessing_context="fork",
    )


def _open(path: str) -> Image.Image:
    return Image.open(path).convert("RGB")


def _authors(job: Job) -> Iterable[Any]:
    return _data_loader(job, _open, PillowMixup(job.side))


def _transform(job: Job) -> Iterable[Any]:
    flip = v2.RandomHorizontalFlip()
    return _data_loader(job, _open, CropMix(SCALE, MIX_RATIO, NUMBERS, "mixup", True, flip, size=job.side))


def _torchvision(job: Job) -> Iterable[Any]:
    def load(path: str) -> torch.Tensor:
        return decode_jpeg(read_file(path), ImageReadMode.RGB)

    return _data_loader(job, load, TensorMixup(job.side))


class _Spdl:
    """SPDL's threads around OpenCV.

    SPDL's own decoder, FFmpeg, takes three times as long for an image as OpenCV's, libjpeg-turbo.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.mixup = job, ArrayMixup(job.side)
        cv2.setNumThreads(1)

    def make(self, path: str) -> np.ndarray:
        return self.mixup(cv2.imread(path, cv2.IMREAD_COLOR_RGB))

    def __iter__(self) -> Iterator[np.ndarray]:
        from spdl.pipeline import PipelineBuilder

        builder: Any = PipelineBuilder()
        builder = builder.add_source(self.job.paths).pipe(self.make, concurrency=self.job.num_workers)
        builder = builder.aggregate(self.job.batch_size).pipe(np.stack).add_sink()
        pipeline = builder.build(num_threads=self.job.num_workers)
        with pipeline.auto_stop():
            yield from pipeline


class _Dali:
    """NVIDIA DALI on the CPU. Without the permutation of channels, for which it has no operator: it does less."""

    def __init__(self, job: Job) -> None:
        from nvidia.dali import fn, pipeline_def, types

        paths, size = job.paths, job.batch_size

        def batches() -> Iterator[list[np.ndarray]]:
            for first in range(0, len(paths), size):
                yield [np.fromfile(path, np.uint8) for path in paths[first : first + size]]

        def mixed(image: Any, number: int) -> Any:
            band = (1 - SCALE) / number
            areas = [(SCALE + k * band, SCALE + (k + 1) * band) for k in range(number)]
            views = [fn.random_resized_crop(image, size=(job.side, job.side), random_area=area) for area in areas]
            composite = views[0]
            for view in views[1:]:
                lam = fn.random.beta(alpha=MIX_RATIO / number, beta=MIX_RATIO / number)
                composite = lam * composite + (1 - lam) * view
            return fn.cast_like(composite, image)

        @pipeline_def(batch_size=size, num_threads=job.num_workers, device_id=None, enable_conditionals=True)
        def pipeline() -> Any:
            files = fn.external_source(source=batches, cycle="raise", dtype=types.UINT8, ndim=1)
            image = fn.decoders.image(files, output_type=types.RGB, use_fast_idct=True)  # FFCV's choice
            number = fn.random.uniform(values=list(NUMBERS), dtype=types.INT32)
            if number == 2:
                out = mixed(image, 2)
            elif number == 3:
                out = mixed(image, 3)
            else:
                out = mixed(image, 4)
            return fn.flip(out, horizontal=fn.random.coin_flip())

        self.pipeline = pipeline()
        self.pipeline.build()

    def __iter__(self) -> Iterator[np.ndarray]:
        while True:
            try:
                (images,) = self.pipeline.run()
            except StopIteration:
                self.pipeline.reset()
                return
            yield images.as_array()


_DRAWN: dict[str, Any] = {"number": NUMBERS, "operation": "mixup", "inter_aug": True, "flip_probability": 0.5}
_FFCVS, _BETONS = ("jpg", "raw"), ("jpg", "dct", "raw")


def _ours(label: str, reads: tuple[str, ...] = _BETONS, **options: Any) -> Peer:
    options = {**_DRAWN, **options}
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
    AUTHORS: Peer("CropMix, the authors' algorithm (Pillow, DataLoader)", _authors, ("files",)),
    "transform": Peer("CropMix, transforms.CropMix (Pillow, DataLoader)", _transform, ("files",)),
    "torchvision": Peer("CropMix, torchvision v2 on tensors (DataLoader)", _torchvision, ("files",)),
    "spdl": Peer("CropMix, SPDL and OpenCV", _Spdl, ("files",), "spdl.pipeline"),
    "dali": Peer("CropMix, NVIDIA DALI on the CPU", _Dali, ("files",), "nvidia.dali"),
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

What is among PEERS is not here."""

ALL = {**PEERS, **VARIANTS}
