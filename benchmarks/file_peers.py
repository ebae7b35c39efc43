"""Peers that read JPEG files: the authors' algorithm, torchvision, SPDL and NVIDIA DALI."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from ffcv.transforms.utils.fast_crop import get_random_crop
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2

from ffcv_cropmix.transforms import CropMix
from jobs import MIX_RATIO, NUMBERS, RATIO, SCALE, Job


class Mixup:
    """The authors' CropMix with mixup, after their code; a subclass says how a view is made.

    Args:
        side: of the output, px.
        scale: smallest crop area as a share of the image's.
        numbers: numbers of crops; one is sampled for each image.
    """

    def __init__(self, side: int, scale: float = SCALE, numbers: Sequence[int] = NUMBERS) -> None:
        self.side, self.scale, self.numbers = side, scale, numbers

    def view(self, image: Any, area: tuple[float, float]) -> Any:
        """Take a RandomResizedCrop with an area in this range."""
        raise NotImplementedError

    def permute(self, image: Any) -> Any:
        """Permute the channels of a tensor at random."""
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
    """OpenCV on arrays: uint8 (height, width, 3) to uint8 (side, side, 3), with INTER_AREA as in FFCV."""

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


def authors(job: Job) -> Iterable[Any]:
    return _data_loader(job, _open, PillowMixup(job.side))


def transform(job: Job) -> Iterable[Any]:
    flip = v2.RandomHorizontalFlip()
    return _data_loader(job, _open, CropMix(SCALE, MIX_RATIO, NUMBERS, "mixup", True, flip, size=job.side))


def torchvision_v2(job: Job) -> Iterable[Any]:
    def load(path: str) -> torch.Tensor:
        return decode_jpeg(read_file(path), ImageReadMode.RGB)

    return _data_loader(job, load, TensorMixup(job.side))


class Spdl:
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


class Dali:
    """NVIDIA DALI on the CPU, without the permutation of channels, for which it has no operator."""

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
