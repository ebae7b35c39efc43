"""FFCV decoders that read an image once and render any number of its crops, mixed, in compiled code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args, get_type_hints

import numba
import numpy as np

from .batch_loop import CAUSES, CHECKSUM, Decode, Specialization, compile_loop, images_apart
from .errors import DataError
from .ffcv_compat import AllocationQuery, Compiler, Field, SimpleRGBImageDecoder, State
from .ffcv_compat import Operation as FFCVOperation
from .fields import DCTImageField
from .functional import Interpolation, interpolation_number
from .kernels import sampling
from .kernels.coefficients import NEGATIVE_LOBES
from .kernels.jit import jit
from .kernels.layers import collapse, set_layer
from .plan import Operation, check_size, sampling_options

OnError = Literal["raise", "zero"]


class DecodeError(DataError):
    """A sample of a .beton file cannot be decoded."""

    file_name: str | None = None
    """Path of the .beton file, known to this package's loader."""
    label: str | None = None
    """The class, if the file or its sidecar has it: "3 (n01491361)"."""

    def __init__(self, index: int, code: int) -> None:
        super().__init__(index, code)
        self.index = int(index)
        """Row in the .beton file."""
        self.cause = CAUSES[int(code)]

    def __str__(self) -> str:
        label = "" if self.label is None else f", of class {self.label}"
        return f"{self.file_name or 'the .beton file'}: sample {self.index}{label}: {self.cause}"


def mark_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark the code of an operation as compiled, so that FFCV does not compile it: see `ffcv_compat`."""
    function.is_compiled = True  # type: ignore[attr-defined]
    return function


def _first(images: tuple[np.ndarray, ...]) -> np.ndarray:
    return images[0]


class LayersRGBImageDecoder(SimpleRGBImageDecoder):
    """Base of all decoders: read an image once and render layers of it.

    A subclass defines the layers with `_sample_layers` and `_options`, and their sizes with `output_size`.
    """

    _sample_layers: Any
    """Compiled: (options, index, epoch, view, height, width, output height, output width, plan, layers) ->
    (number of layers, flip); fills `layers`, may use `plan`."""
    _options: np.ndarray
    """The options of `_sample_layers`, one element per view."""
    _places: Any = staticmethod(images_apart)
    """Return the addresses of a batch's images from its arrays."""
    _result: Any = staticmethod(_first)
    """Return the decoder's output from the arrays of a batch."""
    _shapes: tuple[tuple[int, ...], ...]
    """Shapes of the arrays of a batch, without the batch dimension."""
    output_size: Any
    """Sets `_shapes`."""

    def __init__(
        self, output_size: Any, interpolation: Interpolation, on_error: OnError, decode: Decode = "rgb"
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self._interpolation = interpolation_number(interpolation)
        for name, value, values in (("decode", decode, get_args(Decode)), ("on_error", on_error, get_args(OnError))):
            if value not in values:
                raise ValueError(f"{name} is one of {', '.join(values)}, got {value!r}")
        self._decode = decode
        self._on_error = on_error
        self._next_epoch: int | None = None  # None until a loader uses the decoder

    def __getstate__(self) -> dict[str, Any]:
        """Return the options, without the tables and functions of the loader that uses the decoder."""
        return {name: value for name, value in vars(self).items() if name not in ("metadata", "memory_read", "field")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__init__()
        self.__dict__.update(state)
        frozen(self._options)  # a copied array is writable, which is another type to numba

    def accept_field(self, field: Field) -> None:
        FFCVOperation.accept_field(self, field)  # also a DCTImageField; fields.py makes FFCV's decoders refuse it

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the next pass, 0 to 2**32 - 1; later passes count on from there.

        `ffcv_cropmix.Loader` calls this. Under `ffcv.Loader` passes count from 0 without it. Call it before each pass
        there with `recompile=True`, or when one decoder serves two loaders.
        """
        if isinstance(epoch, bool) or not isinstance(epoch, (int, np.integer)) or not 0 <= epoch < 2**32:
            raise ValueError(f"epoch is an integer of 0 to 2**32 - 1, got {epoch!r}")
        self._next_epoch = int(epoch)

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, tuple[AllocationQuery, ...]]:
        # FFCV calls this once when a loader is made and once for each pass. Compiled code treats captured values as
        # constants, so the number of the pass travels as the shape of an array without elements.
        if self._next_epoch is None:
            epoch = self._next_epoch = 0
        else:
            epoch = self._next_epoch
            self._next_epoch += 1
        shapes, dtype = self._shapes, np.dtype("u1")
        state = replace(previous_state, jit_mode=True, shape=shapes[0] if len(shapes) == 1 else shapes, dtype=dtype)
        return state, (
            AllocationQuery((), np.dtype("i8")),  # the error code of each sample
            AllocationQuery((epoch, max(shape[-3] for shape in shapes), max(shape[-2] for shape in shapes), 0), dtype),
            *(AllocationQuery(shape, dtype) for shape in shapes),
        )

    def failures(self, indices: np.ndarray, memory: tuple[Any, ...]) -> list[DecodeError]:
        """Return an error for each sample of a batch that was replaced by zeros.

        Args:
            indices: rows of the batch's samples.
            memory: the batch's memory, as allocated for `declare_state_and_memory`.
        """
        codes = np.asarray(memory[0])
        return [DecodeError(indices[position], codes[position]) for position in np.flatnonzero(codes)]

    def generate_code(self) -> Callable[..., Any]:
        # Called at each pass: cheap.
        options, interpolation, raises = self._options, self._interpolation, self._on_error == "raise"
        dct = isinstance(self.field, DCTImageField)
        kind = Specialization(
            self._sample_layers, numba.typeof(options), dct, NEGATIVE_LOBES[interpolation], self._decode
        )
        loop = compile_loop(self.memory_read, CHECKSUM in self.metadata.dtype.names, kind)
        threads = Compiler.num_threads  # of the loader
        places_of, result = self._places, self._result

        def decode(batch_indices, memory, metadata, storage_state):
            codes, numbers, *images = memory
            places = places_of(images)
            if not loop(
                batch_indices, places, codes, numbers, metadata, storage_state, options, interpolation, threads
            ):
                raise MemoryError(f"out of memory while decoding a batch of {len(batch_indices)} images")
            if raises and codes.any():
                raise self.failures(batch_indices, memory)[0]
            return result(tuple(images))

        return mark_compiled(decode)


class _OneImageDecoder(LayersRGBImageDecoder):
    """Base of the decoders that make one image of each sample."""

    @property
    def output_size(self) -> tuple[int, int]:
        """(height, width) of the images, px. A new value takes effect with the next pass, without recompilation."""
        height, width, _ = self._shapes[0]
        return height, width

    @output_size.setter
    def output_size(self, size: tuple[int, int]) -> None:
        self._shapes = ((*check_size("output_size", size), 3),)


def frozen(options: np.ndarray) -> np.ndarray:
    """Make an array read-only, so that numba sees the same type however the array was made."""
    options.setflags(write=False)
    return options


def records(options: Sequence[sampling.SamplingOptions]) -> np.ndarray:
    """Return options as an array, which has one type for any number of views."""
    kind = np.dtype(list(get_type_hints(sampling.SamplingOptions).items()), align=True)
    return frozen(np.rec.fromrecords([tuple(record) for record in options], dtype=kind))


@jit
def sample_cropmix(options, index, epoch, view, height, width, output_height, output_width, plan, layers):
    number, flip = sampling.sample(options, index, epoch, view, height, width, output_height, output_width, plan)
    count = collapse(plan, number, options.operation, output_height, output_width, layers)
    return count, flip


class CropMixRGBImageDecoder(_OneImageDecoder):
    """Decode an image once, take crops of distinct scales and mix them into one image: CropMix.

    This decoder replaces `ffcv.fields.rgb_image.RandomResizedCropRGBImageDecoder`. It reads JPEG and raw images, and
    `DCTImageField`. Its images depend on `seed`, the epoch (`set_epoch`) and the row in the .beton file only, not on
    the number of workers, the batch size or the order. `sample_plan` returns the plan of each image.

    Source: arXiv 2205.15955, section 3.

    Args:
        output_size: (height, width) of the images, px; can be changed between epochs.
        scale: smallest crop area as a fraction of the image's area, s for (s, 1), or (low, high). The range is split
            into equal bands, one for each crop.
        number: number of crops, 1 to 8, or several numbers, one of which is sampled for each image: (2, 3, 4), or 234.
            With number=1 and scale=0.08 the decoder is torchvision's and FFCV's RandomResizedCrop.
        operation: "mixup" or "cutmix".
        mix_ratio: mixup samples weights from Beta(mix_ratio / n, mix_ratio / n) for n crops.
        inter_aug: permute the colour channels of one operand of each mixing step.
        ratio: (low, high) aspect ratio, width / height, of the crops.
        interpolation: "bilinear" or "bicubic" (Pillow's, antialiased), or "area" (OpenCV's INTER_AREA; bilinear along
            an axis that is enlarged). "bicubic" is slower: each crop is resampled and rounded as Pillow does it.
        flip_probability: probability that the image is mirrored left to right, instead of `RandomHorizontalFlip`.
        seed: 0 to 2**64 - 1.
        on_error: what to do with a damaged sample. "raise": raise a DecodeError from the loop over
            `ffcv_cropmix.Loader`; `ffcv.Loader` hangs, as it does at any error. "zero": make the image all zeros and
            list it in `ffcv_cropmix.Loader.report`.
        decode: how much of a JPEG to decode.
            "rgb": all of it; every error is detected.
            "rows": up to the last row that is needed. The pixels are the same, but damage below that row can go
            undetected. Use it for files whose checksums are compared, or that you trust.
            "ycbcr": the same, and colours stay at half the resolution until the crops are resampled. Values differ
            at saturated edges, where libjpeg clips them: 0.7 % of the values of ImageNet's photos by more than 1 level.
            It applies to JPEGs with 4:2:0 subsampling, FFCV's default, and not to bicubic; other images are decoded
            as with "rows".
            Of a DCTImageField only the blocks that the crops need are decoded; the pixels are those of
            libjpeg-turbo's accurate decoding (Pillow's). There "rows" is the same as "rgb", and "ycbcr" applies to any
            subsampling but gray.

    The output is uint8 (batch, height, width, 3), as with FFCV's decoders.

    Raises:
        ValueError: an option is out of range; the message names it and the value.
        DecodeError: while iterating, see `on_error`.

    Example:
        >>> from ffcv.transforms import ToTensor, ToTorchImage
        >>> from ffcv_cropmix import Loader
        >>> decoder = CropMixRGBImageDecoder((4, 4), number=(2, 3, 4), inter_aug=True)
        >>> pipelines = {"image": [decoder, ToTensor(), ToTorchImage()], "label": None}
        >>> for (images,) in Loader("train.beton", batch_size=2, num_workers=1, pipelines=pipelines):
        ...     print(images.dtype, images.shape)
        torch.uint8 torch.Size([2, 3, 4, 4])
    """

    _sample_layers = staticmethod(sample_cropmix)

    def __init__(
        self,
        output_size: tuple[int, int] = (224, 224),
        scale: float | tuple[float, float] = 0.01,
        number: int | Sequence[int] = (2, 3, 4),
        operation: Operation | Literal[0, 1] = "mixup",
        mix_ratio: float = 0.4,
        inter_aug: bool = False,
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        interpolation: Interpolation = "bilinear",
        flip_probability: float = 0.0,
        seed: int = 0,
        on_error: OnError = "raise",
        decode: Decode = "rgb",
    ) -> None:
        super().__init__(output_size, interpolation, on_error, decode)
        options = sampling_options(
            scale=scale,
            number=number,
            operation=operation,
            mix_ratio=mix_ratio,
            inter_aug=inter_aug,
            ratio=ratio,
            flip_probability=flip_probability,
            seed=seed,
        )
        self._options = records([options])


@jit
def _sample_center_crop(ratio, index, epoch, view, height, width, output_height, output_width, plan, layers):
    sampling.center_crop(height, width, ratio, plan.crops[0])
    set_layer(layers, 0, plan.crops[0], output_height, output_width)
    return 1, False


class CenterCropRGBImageDecoder(_OneImageDecoder):
    """Decode an image and resize its centred square, for evaluation, with the kernels of CropMix.

    Args:
        output_size: (height, width) of the images, px.
        ratio: side of the square as a fraction of the image's shorter side, in (0, 1].
        interpolation: see `CropMixRGBImageDecoder`.
        on_error: see `CropMixRGBImageDecoder`.

    The output is uint8 (batch, height, width, 3).

    Raises:
        ValueError: an option is out of range; the message names it and the value.
        DecodeError: while iterating, see `on_error`.

    Example:
        >>> from ffcv.transforms import ToTensor
        >>> from ffcv_cropmix import Loader
        >>> pipelines = {"image": [CenterCropRGBImageDecoder((4, 4), ratio=224 / 256), ToTensor()], "label": None}
        >>> for (images,) in Loader("train.beton", batch_size=2, num_workers=1, pipelines=pipelines):
        ...     print(images.shape)
        torch.Size([2, 4, 4, 3])
    """

    _sample_layers = staticmethod(_sample_center_crop)

    def __init__(
        self,
        output_size: tuple[int, int],
        ratio: float = 224 / 256,
        interpolation: Interpolation = "bilinear",
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(output_size, interpolation, on_error)
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio is in (0, 1], got {ratio!r}")
        self._options = frozen(np.array([float(ratio)]))
