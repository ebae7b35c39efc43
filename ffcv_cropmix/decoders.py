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
    """The .beton, where the loader is this package's."""
    label: str | None = None
    """The class, as far as the file and its sidecar tell: "3 (n01491361)"."""

    def __init__(self, index: int, code: int) -> None:
        super().__init__(index, code)
        self.index = int(index)
        """Row in the .beton."""
        self.cause = CAUSES[int(code)]

    def __str__(self) -> str:
        label = "" if self.label is None else f", of class {self.label}"
        return f"{self.file_name or 'the .beton file'}: sample {self.index}{label}: {self.cause}"


def mark_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Tell FFCV not to compile what an operation generates: see `ffcv_compat`."""
    function.is_compiled = True  # type: ignore[attr-defined]
    return function


def _first(images: tuple[np.ndarray, ...]) -> np.ndarray:
    return images[0]


class LayersRGBImageDecoder(SimpleRGBImageDecoder):
    """Reads an image once and renders layers of it: what the decoders of this module share.

    A subclass says which layers, through `_sample_layers` and `_options`, and of what sizes, through `output_size`.
    """

    _sample_layers: Any
    """Compiled: (options, index, epoch, view, height, width, output height, output width, plan, layers) ->
    (number of layers, flip); fills `layers`, may use `plan`."""
    _options: np.ndarray
    """What `_sample_layers` gets as its options: an element for each view."""
    _places: Any = staticmethod(images_apart)
    """From the arrays of a batch to where its images are."""
    _result: Any = staticmethod(_first)
    """From the arrays of a batch to the decoder's output."""
    _shapes: tuple[tuple[int, ...], ...]
    """Of the arrays of a batch, without the batch."""
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
        self._next_epoch: int | None = None  # None until a loader has taken the decoder in

    def __getstate__(self) -> dict[str, Any]:
        """The options, to be copied or pickled: not the tables and functions of the loader that uses the decoder."""
        return {name: value for name, value in vars(self).items() if name not in ("metadata", "memory_read", "field")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__init__()
        self.__dict__.update(state)
        frozen(self._options)  # a copied array is writable, which is another type to numba

    def accept_field(self, field: Field) -> None:
        FFCVOperation.accept_field(self, field)  # a DCTImageField too, which fields.py has FFCV's decoders refuse

    def set_epoch(self, epoch: int) -> None:
        """Number the next pass `epoch`, 0 to 2**32 - 1; each later pass counts one more.

        `ffcv_cropmix.Loader` calls this. Under `ffcv.Loader` passes are counted from 0 on without it, except with
        `recompile=True` or when one decoder serves two loaders: call it before each pass there.
        """
        if isinstance(epoch, bool) or not isinstance(epoch, (int, np.integer)) or not 0 <= epoch < 2**32:
            raise ValueError(f"epoch is an integer of 0 to 2**32 - 1, got {epoch!r}")
        self._next_epoch = int(epoch)

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, tuple[AllocationQuery, ...]]:
        # FFCV calls this once when a loader is made and once for each pass. Compiled code takes what it captures for
        # constant, so the epoch of a pass travels as the shape of an array without elements.
        if self._next_epoch is None:
            epoch = self._next_epoch = 0
        else:
            epoch = self._next_epoch
            self._next_epoch += 1
        shapes, dtype = self._shapes, np.dtype("u1")
        state = replace(previous_state, jit_mode=True, shape=shapes[0] if len(shapes) == 1 else shapes, dtype=dtype)
        return state, (
            AllocationQuery((), np.dtype("i8")),  # what is wrong with each sample
            AllocationQuery((epoch, max(shape[-3] for shape in shapes), max(shape[-2] for shape in shapes), 0), dtype),
            *(AllocationQuery(shape, dtype) for shape in shapes),
        )

    def failures(self, indices: np.ndarray, memory: tuple[Any, ...]) -> list[DecodeError]:
        """The samples of a batch that were replaced by zeros.

        Args:
            indices: of the samples of the batch.
            memory: the memory of the batch, as `declare_state_and_memory` asked for it.
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
            loop(batch_indices, places, codes, numbers, metadata, storage_state, options, interpolation, threads)
            if raises and codes.any():
                raise self.failures(batch_indices, memory)[0]
            return result(tuple(images))

        return mark_compiled(decode)


class _OneImageDecoder(LayersRGBImageDecoder):
    """Makes one image of each sample."""

    @property
    def output_size(self) -> tuple[int, int]:
        """(height, width) of the images, px. A new value holds from the next pass on; nothing is compiled anew."""
        height, width, _ = self._shapes[0]
        return height, width

    @output_size.setter
    def output_size(self, size: tuple[int, int]) -> None:
        self._shapes = ((*check_size("output_size", size), 3),)


def frozen(options: np.ndarray) -> np.ndarray:
    """Read-only: one type, to numba, however the array was made."""
    options.setflags(write=False)
    return options


def records(options: Sequence[sampling.SamplingOptions]) -> np.ndarray:
    """As an array, of one type for any number of views."""
    kind = np.dtype(list(get_type_hints(sampling.SamplingOptions).items()), align=True)
    return frozen(np.rec.fromrecords([tuple(record) for record in options], dtype=kind))


@jit
def sample_cropmix(options, index, epoch, view, height, width, output_height, output_width, plan, layers):
    number, flip = sampling.sample(options, index, epoch, view, height, width, output_height, output_width, plan)
    count = collapse(plan, number, options.operation, output_height, output_width, layers)
    return count, flip


class CropMixRGBImageDecoder(_OneImageDecoder):
    """Decodes an image once, takes crops of distinct scales and mixes them into one image: CropMix.

    A drop-in for `ffcv.fields.rgb_image.RandomResizedCropRGBImageDecoder`, for JPEG and raw images. What a sample
    looks like depends on `seed`, the epoch (`set_epoch`) and its row in the .beton alone: not on the number of
    workers, the batch size or the order. `sample_plan` samples the same plans.

    Source: arXiv 2205.15955, section 3.

    Args:
        output_size: (height, width) of the images, px; may be set between epochs.
        scale: smallest crop area as a share of the image's, s for (s, 1), or (low, high). The range is cut into as
            many equal bands as there are crops, one crop from each.
        number: how many crops, 1 to 8, or several to choose from for each image: (2, 3, 4), or 234. 1 is a plain
            RandomResizedCrop: with scale=0.08, torchvision's and FFCV's.
        operation: "mixup" or "cutmix".
        mix_ratio: mixup samples the weights from Beta(mix_ratio / n, mix_ratio / n) for n crops.
        inter_aug: permute the colour channels of one operand of each mixing step.
        ratio: (low, high) aspect ratio, width / height, of the crops.
        interpolation: "bilinear", "bicubic" (Pillow's, antialiased; slower: each crop is resampled and rounded as
            Pillow does it) or "area" (OpenCV's INTER_AREA, bilinear along an axis that is enlarged).
        flip_probability: chance that the image is mirrored left to right; spares `RandomHorizontalFlip`.
        seed: 0 to 2**64 - 1.
        on_error: at a damaged sample. "raise": a DecodeError, which `ffcv_cropmix.Loader` raises from the loop that
            reads it; under `ffcv.Loader` the pass hangs, as that does at any error. "zero": the image is all zeros,
            and `ffcv_cropmix.Loader.report` lists it.
        decode: what of a JPEG is decoded.
            "rgb": all, every error noticed.
            "rows": up to the last row that is needed; the same pixels. Damage below that row may go unnoticed: for
            files whose checksums are compared, or that are trusted otherwise.
            "ycbcr": the same, and colours stay at half the resolution until the crops are resampled. Where libjpeg
            clips them, at saturated edges, values differ: of ImageNet's photos 0.7 % by more than 1 level. For JPEGs
            with 4:2:0 subsampling, FFCV's own, and not for bicubic; "rows" for the others.
            Of a DCTImageField only the blocks that the crops need are decoded, and the pixels are those of
            libjpeg-turbo's accurate decoding (Pillow's). "rows" is the same as "rgb"; "ycbcr" holds for any
            subsampling but gray.

    The decoder's output is uint8 (batch, height, width, 3), as FFCV's.

    Raises:
        ValueError: an option is out of range; names it and the value.
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
    """Decodes an image and resizes its centred square: what models are evaluated on, from CropMix's kernels.

    Args:
        output_size: (height, width) of the images, px.
        ratio: side of the square as a share of the image's shorter side, in (0, 1].
        interpolation: as for `CropMixRGBImageDecoder`.
        on_error: as for `CropMixRGBImageDecoder`.

    Raises:
        ValueError: an option is out of range; names it and the value.
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
