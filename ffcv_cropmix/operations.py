"""FFCV operations: decoders that read an image once and render any number of its crops, mixed, in compiled code."""

from __future__ import annotations

from . import patches  # noqa: F401

# isort: split
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Literal, NamedTuple, get_args, get_type_hints

import numba
import numpy as np
import torch
from ffcv.fields.base import Field
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.operation import Operation as FFCVOperation
from ffcv.pipeline.state import State
from numba import carray, prange, types
from numpy.lib.stride_tricks import as_strided

from . import dct_pixels, turbojpeg
from .data.images import DCT, JPG, RAW
from .dct import BAD_DCT, OTHER_SIZE
from .errors import DataError
from .fields import DCTImageField
from .functional import Interpolation, interpolation_number, kernels_of
from .kernels import sampling
from .kernels.checksum import xxh64
from .kernels.coefficients import BICUBIC
from .kernels.jit import as_pointer, as_readonly, compiled_once, entry, jit
from .kernels.layers import collapse, new_layers, set_layer
from .kernels.planes import new_planes_scratch, render_planes
from .kernels.render import pixels_needed
from .plan import Operation, check_size, sampling_options

Decode = Literal["rgb", "rows", "ycbcr"]
OnError = Literal["raise", "zero"]

CHECKSUM = "checksum"
"""A column of the metadata, uint64: where there is one, a sample's bytes are compared with it (kernels.checksum)."""


# What can be wrong with a sample: those of turbojpeg, then
_BAD_MODE, _BAD_RAW_SIZE, _BAD_CHECKSUM = 10, 11, 12
_CAUSES = {
    turbojpeg.BAD_HEADER: "its data are no JPEG",
    turbojpeg.OTHER_SIZE: "its JPEG has another size than the metadata say",
    turbojpeg.BAD_DATA: "its JPEG is damaged, or neither RGB nor gray",
    BAD_DCT: "its coefficients are damaged",
    OTHER_SIZE: "its coefficients are of an image of another size than the metadata say",
    _BAD_MODE: "its mode is neither jpg nor raw, nor dct in a field of that",
    _BAD_RAW_SIZE: "its raw data have another size than the metadata say",
    _BAD_CHECKSUM: "its data are not those that were written: their checksum differs",
}


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
        self.cause = _CAUSES[int(code)]

    def __str__(self) -> str:
        label = "" if self.label is None else f", of class {self.label}"
        return f"{self.file_name or 'the .beton file'}: sample {self.index}{label}: {self.cause}"


class _Workspace(NamedTuple):
    """What one thread needs to decode and render the samples of one batch."""

    layers: Any
    plan: Any
    scratch: Any
    planes: Any
    box: Any  # int64 (4,): see `pixels_needed`
    image: Any  # of `turbojpeg`, or of `dct_pixels`


@jit
def _int(number):
    """A number of the metadata as int64: numba takes an unsigned number times a signed one for a float."""
    return int(np.int64(number))


@jit
def _new_nothing(interpolation, height, width, output_height, output_width):
    """In the place of `new_planes_scratch` where no planes are rendered: spares its compilation."""
    return ()


# A batch's images are in one array, or in one for each view. Compiled code gets their addresses: a tuple of arrays
# would be of another type, and compiled anew, for each number of views.


def _images_apart(images: tuple[np.ndarray, ...]) -> np.ndarray:
    """Where the images are: int64 (views, 3), address of a view's first sample, height, width; the others follow it.

    images: a tuple of one array (batch, height, width, 3) for each view.
    """
    return np.array([(batch.ctypes.data, *batch.shape[1:3]) for batch in images], np.int64)


def _images_together(images: tuple[np.ndarray, ...]) -> np.ndarray:
    """`_images_apart` where the images share an array, (batch, views, height, width, 3): see `_by_views`."""
    count, views, height, width, _ = images[0].shape
    first, size = images[0].ctypes.data, count * height * width * 3
    return np.array([(first + view * size, height, width) for view in range(views)], np.int64)


def _first(images: tuple[np.ndarray, ...]) -> np.ndarray:
    return images[0]


def _all(images: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    return images


def _by_views(images: tuple[np.ndarray, ...]) -> np.ndarray:
    """The array of `_images_together` as its memory is used, view after view: so each view is a batch without gaps."""
    count, views, height, width, _ = images[0].shape
    image = height * width * 3
    return as_strided(images[0], (count, views, height, width, 3), (image, count * image, width * 3, 3, 1))


@jit
def _image_at(places, view, position):
    """One image of a batch, uint8 (height, width, 3)."""
    height, width = places[view, 1], places[view, 2]
    return carray(as_pointer(places[view, 0] + position * height * width * 3), (height, width, 3), np.uint8)


_BYTES = types.Array(types.uint8, 1, "C", readonly=True)


class _Kind(NamedTuple):
    """What code is compiled for."""

    sample_layers: Any
    """A `_sample_layers`."""
    options: Any
    """The type of its options."""
    dct: bool
    """Whether the field has coefficients; else JPEGs and raw images."""
    bicubic: bool
    """Bilinear and area are of one compilation."""
    decode: Decode


def _decode_dct(data, height, width, box, planar, buffers):
    """`dct_pixels.decode_dct`, both of its numbers in one."""
    code, planes = dct_pixels.decode_dct(data, height, width, box, planar, buffers)
    return code << 1 | planes


@cache
def _compile_decode_dct() -> Any:
    """`_decode_dct`, compiled once for all decoders."""
    buffers = dct_pixels.new_buffers(8, 8)
    kinds = types.int64, types.int64, numba.typeof(np.empty(4, np.int64)), types.boolean, numba.typeof(buffers)
    dct_pixels.destroy_context(buffers.context)
    return compiled_once(_decode_dct, types.int64, _BYTES, *kinds)


def _readers(kind: _Kind) -> tuple[Any, Any, Any]:
    """What reads the images of a field, compiled code.

    Returns:
        new_buffers: (largest height, largest width, largest area of a JPEG with a column and a row more, largest file
            to be copied) to the buffers of one thread.
        destroy_buffers: frees what is theirs and not numba's.
        read_image: (data, height, width, box, buffers) to an error code or 0, and whether buffers.pixels are planes,
            which buffers.layout describes, or RGB rows. The box says which pixels are needed.
    """
    planar = kind.decode == "ycbcr" and not kind.bicubic
    if kind.dct:

        @jit
        def new_buffers(height, width, area, largest_file):
            return dct_pixels.new_buffers(height, width)

        @jit
        def destroy_buffers(buffers):
            dct_pixels.destroy_context(buffers.context)

        decode_dct = _compile_decode_dct()

        @jit
        def read_image(data, height, width, box, buffers):
            both = decode_dct(data, height, width, box, planar, buffers)
            return both >> 1, (both & 1) == 1

    else:

        @jit
        def new_buffers(height, width, area, largest_file):
            return turbojpeg.new_buffers(area, largest_file)

        @jit
        def destroy_buffers(buffers):
            pass

        if planar:

            @jit
            def read_image(data, height, width, box, buffers):
                code = turbojpeg.decode_jpeg_planes(data, height, width, box[2], buffers)
                if code != turbojpeg.NOT_420:
                    return code, True
                return turbojpeg.decode_jpeg_rows(data, height, width, box[2], buffers), False

        elif kind.decode == "rgb":

            @jit
            def read_image(data, height, width, box, buffers):
                return turbojpeg.decode_jpeg(data, height, width, buffers), False

        else:

            @jit
            def read_image(data, height, width, box, buffers):
                return turbojpeg.decode_jpeg_rows(data, height, width, box[2], buffers), False

    return new_buffers, destroy_buffers, read_image


@cache
def _compile(kind: _Kind) -> tuple[Any, Any, Any]:
    """Compile once in a process.

    Returns:
        new_workspace: (batch_indices, metadata, largest file in bytes, interpolation, largest output height, largest
            output width) to a _Workspace.
        destroy_workspace: frees what is not numba's.
        render_sample: decode one sample, and render the layers that `sample_layers` fills in for each of its images;
            return 0, or a key of _CAUSES.
    """
    sample_layers, dct = kind.sample_layers, kind.dct
    new_scratch, render = kernels_of(kind.bicubic)
    new_buffers, destroy_buffers, read_image = _readers(kind)
    planar, boxed = kind.decode == "ycbcr" and not kind.bicubic, dct or kind.decode != "rgb"
    new_planes = new_planes_scratch if planar else _new_nothing
    coded = DCT if dct else JPG

    @jit
    def new_workspace(batch_indices, metadata, largest_file, interpolation, output_height, output_width):
        height = width = area = 0
        for index in batch_indices:
            field = metadata[index]
            height = max(height, _int(field["height"]))
            width = max(width, _int(field["width"]))
            if field["mode"] == JPG:
                area = max(area, (_int(field["height"]) + 1) * (_int(field["width"]) + 1))
        return _Workspace(
            new_layers(),
            sampling.new_plan_arrays(),
            new_scratch(interpolation, height, width, output_height, output_width),
            new_planes(interpolation, height, width, output_height, output_width),
            np.empty(4, np.int64),
            new_buffers(height, width, area, largest_file),
        )

    @jit
    def destroy_workspace(workspace):
        destroy_buffers(workspace.image)

    def render_sample(
        code, data, mode, height, width, options, interpolation, index, epoch, workspace, places, position
    ):
        plan, layers, box, image = workspace.plan, workspace.layers, workspace.box, workspace.image
        pixels, planes = data, False
        if code != 0:
            pass
        elif mode == coded:
            pixels = as_readonly(image.pixels)
            if boxed:
                box[0], box[1], box[2], box[3] = height, width, 0, 0
                for view in range(len(options)):
                    size = places[view, 1], places[view, 2]
                    count, _, _ = sample_layers(options[view], index, epoch, view, height, width, *size, plan, layers)
                    pixels_needed(layers, count, interpolation, *size, box)
            code, planes = read_image(data, height, width, box, image)
        elif mode == RAW and not dct:
            if data.size != 3 * height * width:
                code = _BAD_RAW_SIZE
        else:
            code = _BAD_MODE
        for view in range(len(options)):
            out = _image_at(places, view, position)
            if code != 0:  # what lies there is another sample's
                out[:] = 0
                continue
            output_height, output_width, _ = out.shape
            count, operation, flip = sample_layers(
                options[view], index, epoch, view, height, width, output_height, output_width, plan, layers
            )
            if planar and planes:
                render_planes(
                    pixels,
                    image.layout,
                    layers,
                    count,
                    operation,
                    flip,
                    interpolation,
                    out,
                    workspace.scratch,
                    workspace.planes,
                )
            else:
                render(pixels, width, layers, count, operation, flip, interpolation, out, workspace.scratch)
        return code

    sample = np.empty(0, [("height", "u2"), ("width", "u2"), ("mode", "u1")])
    places = np.ones((1, 3), np.int64)
    empty = new_workspace(np.empty(0, np.int64), sample, 0, 0, 1, 1)
    workspace, whole = numba.typeof(empty), types.int64
    destroy_workspace(empty)
    arguments = (whole, _BYTES, *[whole] * 3, kind.options, *[whole] * 3, workspace, numba.typeof(places), whole)
    return new_workspace, destroy_workspace, compiled_once(render_sample, whole, *arguments)


@cache
def _compile_loop(read: Any, checked: bool, kind: _Kind) -> Any:
    """The loop over a batch, compiled once in a process: loaders of one kind of file share it.

    Args:
        read: the loader's function from address and storage state to bytes.
        checked: whether checksums are compared.
    """
    new_workspace, destroy_workspace, render_sample = _compile(kind)
    whole_files = kind.dct or kind.decode == "rgb"

    def loop(batch_indices, places, codes, numbers, metadata, storage_state, options, interpolation, chunks):
        _, epoch, largest_height, largest_width, _ = numbers.shape
        count = len(batch_indices)
        largest_file = 0  # of those that are copied, to be changed
        if not whole_files:
            for index in batch_indices:
                largest_file = max(largest_file, read(metadata[index]["data_ptr"], storage_state).size)
        for chunk in prange(chunks):
            # Working memory belongs to this call: after a `break`, two passes may run one decoder for a moment.
            workspace = new_workspace(
                batch_indices, metadata, largest_file, interpolation, largest_height, largest_width
            )
            for position in range(chunk, count, chunks):
                index = batch_indices[position]
                field = metadata[index]
                data = read(field["data_ptr"], storage_state)
                code = 0
                if checked and xxh64(data) != field["checksum"]:
                    code = _BAD_CHECKSUM
                codes[position] = render_sample(
                    code,
                    as_readonly(data),
                    _int(field["mode"]),
                    _int(field["height"]),
                    _int(field["width"]),
                    options,
                    interpolation,
                    _int(index),
                    epoch,
                    workspace,
                    places,
                    position,
                )
            destroy_workspace(workspace)

    return entry(loop, parallel=True)


def _as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    """Tell FFCV not to compile what an operation generates: see `patches`."""
    function.is_compiled = True  # type: ignore[attr-defined]
    return function


class _LayersRGBImageDecoder(SimpleRGBImageDecoder):
    """Reads an image once and renders layers of it: what the decoders of this module share.

    A subclass says which layers, through `_sample_layers` and `_options`, and of what sizes, through `output_size`.
    """

    _sample_layers: Any
    """Compiled: (options, index, epoch, view, height, width, output height, output width, plan, layers) ->
    (number of layers, sampling.MIXUP or CUTMIX, flip); fills `layers`, may use `plan`."""
    _options: np.ndarray
    """What `_sample_layers` gets as its options: an element for each view."""
    _places: Any = staticmethod(_images_apart)
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
        _frozen(self._options)  # a copied array is writable, which is another type to numba

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
        kind = _Kind(self._sample_layers, numba.typeof(options), dct, interpolation == BICUBIC, self._decode)
        loop = _compile_loop(self.memory_read, CHECKSUM in self.metadata.dtype.names, kind)
        threads = Compiler.num_threads  # of the loader
        places_of, result = self._places, self._result

        def decode(batch_indices, memory, metadata, storage_state):
            codes, numbers, *images = memory
            places = places_of(images)
            loop(batch_indices, places, codes, numbers, metadata, storage_state, options, interpolation, threads)
            if raises and codes.any():
                raise self.failures(batch_indices, memory)[0]
            return result(tuple(images))

        return _as_it_is(decode)


class _OneImageDecoder(_LayersRGBImageDecoder):
    """Makes one image of each sample."""

    @property
    def output_size(self) -> tuple[int, int]:
        """(height, width) of the images, px. A new value holds from the next pass on; nothing is compiled anew."""
        height, width, _ = self._shapes[0]
        return height, width

    @output_size.setter
    def output_size(self, size: tuple[int, int]) -> None:
        self._shapes = ((*check_size("output_size", size), 3),)


def _frozen(options: np.ndarray) -> np.ndarray:
    """Read-only: one type, to numba, however the array was made."""
    options.setflags(write=False)
    return options


def _records(options: Sequence[sampling.SamplingOptions]) -> np.ndarray:
    """As an array, of one type for any number of views."""
    kind = np.dtype(list(get_type_hints(sampling.SamplingOptions).items()), align=True)
    return _frozen(np.rec.fromrecords([tuple(record) for record in options], dtype=kind))


@jit
def _sample_cropmix(options, index, epoch, view, height, width, output_height, output_width, plan, layers):
    number, flip = sampling.sample(options, index, epoch, view, height, width, output_height, output_width, plan)
    count = collapse(plan, number, options.operation, output_height, output_width, layers)
    return count, options.operation, flip


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
    """

    _sample_layers = staticmethod(_sample_cropmix)

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
        self._options = _records([options])


@jit
def _sample_center_crop(ratio, index, epoch, view, height, width, output_height, output_width, plan, layers):
    sampling.center_crop(height, width, ratio, plan.crops[0])
    set_layer(layers, 0, plan.crops[0], output_height, output_width)
    return 1, sampling.MIXUP, False


class CenterCropRGBImageDecoder(_OneImageDecoder):
    """Decodes an image and resizes its centred square: what models are evaluated on, from CropMix's kernels.

    Args:
        output_size: (height, width) of the images, px.
        ratio: side of the square as a share of the image's shorter side, in (0, 1].
        interpolation, on_error: as `CropMixRGBImageDecoder` has them.

    Raises:
        ValueError, DecodeError: as `CropMixRGBImageDecoder` does.
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
        self._options = _frozen(np.array([float(ratio)]))


@dataclass(frozen=True)
class ViewSpec:
    """One view of a `MultiViewRGBImageDecoder`: a CropMix, or with number=1, the default, a RandomResizedCrop."""

    output_size: tuple[int, int] = (224, 224)
    """(height, width), px."""
    scale: float | tuple[float, float] = 0.08
    number: int | Sequence[int] = 1
    operation: Operation | Literal[0, 1] = "mixup"
    mix_ratio: float = 0.4
    inter_aug: bool = False
    flip_probability: float = 0.0
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """These, as `CropMixRGBImageDecoder` has them."""

    def __post_init__(self) -> None:
        check_size("output_size", self.output_size)
        self.sampling_options(seed=0)

    def sampling_options(self, seed: int) -> sampling.SamplingOptions:
        """Checked, for compiled code; ValueError that names the option and the value."""
        options = asdict(self)
        del options["output_size"]
        return sampling_options(**options, seed=seed)


class MultiViewRGBImageDecoder(_LayersRGBImageDecoder):
    """Decodes an image once and makes several images of it, each with crops, mix and mirroring of its own.

    Of one size, they are one batch: uint8 (batch, views, height, width, 3), in memory view after view, so that
    `batch[:, view]` has no gaps. Of several sizes, they are a tuple of one batch for each view: uint8
    (batch, height, width, 3). `ToTorchViews` makes tensors of either; `SelectView` takes one view out.

    What a view looks like depends on `seed`, the epoch, the row in the .beton and the number of the view alone;
    `sample_plan(..., view=number)` samples the same plan, and view 0 is what `CropMixRGBImageDecoder` makes.

    Args:
        views: at least one. `number`, `flip_probability` and all else may differ.
        seed: 0 to 2**64 - 1.
        interpolation, on_error, decode: as `CropMixRGBImageDecoder` has them, for all views; a damaged sample is zeros
            in all.

    Raises:
        ValueError: an option is out of range; names it and the value.
        DecodeError: while iterating, see `on_error`.
    """

    _sample_layers = staticmethod(_sample_cropmix)

    def __init__(
        self,
        views: Sequence[ViewSpec],
        seed: int = 0,
        interpolation: Interpolation = "bilinear",
        on_error: OnError = "raise",
        decode: Decode = "rgb",
    ) -> None:
        self.views = tuple(views)
        if not self.views or not all(isinstance(view, ViewSpec) for view in self.views):
            raise ValueError(f"views is a list of at least one ViewSpec, got {views!r}")
        sizes = [check_size("output_size", view.output_size) for view in self.views]
        self._together = len(set(sizes)) == 1
        super().__init__(sizes, interpolation, on_error, decode)
        self._options = _records([view.sampling_options(seed) for view in self.views])
        if self._together:
            self._places, self._result = _images_together, _by_views
        else:
            self._result = _all

    @property
    def output_size(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of each view, px. Set it to one size for all views, or to a list of one for each.

        A new value holds from the next pass on; nothing is compiled anew. Views that began with one size, and so are
        one batch, keep one size.
        """
        sizes = tuple((height, width) for *_, height, width, _ in self._shapes)
        return sizes * len(self.views) if self._together else sizes

    @output_size.setter
    def output_size(self, size: Any) -> None:
        each = isinstance(size, Sequence) and any(isinstance(part, Sequence) for part in size)
        sizes = [check_size("output_size", part) for part in (size if each else [size] * len(self.views))]
        if len(sizes) != len(self.views):
            raise ValueError(f"output_size is one (height, width), or {len(self.views)}, one a view, got {size!r}")
        if not self._together:
            self._shapes = tuple((*part, 3) for part in sizes)
        elif len(set(sizes)) == 1:
            self._shapes = ((len(sizes), *sizes[0], 3),)
        else:
            raise ValueError(f"output_size: these views are one batch, and of one size, got {size!r}")


def _view_shapes(operation: FFCVOperation, shape: Any) -> tuple[tuple[int, int, int], ...]:
    """(height, width, 3) of each view, from the shape that `MultiViewRGBImageDecoder` declares."""
    if isinstance(shape[0], tuple):
        return shape
    if len(shape) == 4:
        return (shape[1:],) * shape[0]
    raise ValueError(f"{type(operation).__name__} follows MultiViewRGBImageDecoder, not images of shape {shape}")


def _check_view(operation: FFCVOperation, view: int, count: int) -> None:
    if view not in range(count):
        raise ValueError(f"{type(operation).__name__}: the views are 0 to {count - 1}, got {view!r}")


class SelectView(FFCVOperation):
    """One view of a `MultiViewRGBImageDecoder`, as FFCV's operations take images: uint8 (batch, height, width, 3).

    Not a copy. For several outputs of one decode: `PipelineSpec(decoder, transforms=[SelectView(1), ...])`.

    Args:
        view: its number, from 0.

    Raises:
        ValueError: when a loader is made; there is no such view.
    """

    def __init__(self, view: int) -> None:
        super().__init__()
        self.view = view

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, None]:
        shapes = _view_shapes(self, previous_state.shape)
        _check_view(self, self.view, len(shapes))
        self._apart = previous_state.shape == shapes
        # As if compiled: FFCV compiles nothing after what is not, and hangs.
        return replace(previous_state, jit_mode=True, shape=shapes[self.view]), None

    def generate_code(self) -> Callable[..., Any]:
        view = self.view

        def select_apart(batches, memory):
            return batches[view]

        def select(batch, memory):
            return batch[:, view]

        return _as_it_is(select_apart if self._apart else select)


class ToTorchViews(FFCVOperation):
    """The views of a `MultiViewRGBImageDecoder` on a device: a tuple of uint8 tensors (batch, 3, height, width).

    Each is contiguous in `torch.channels_last`. On the CPU they are the decoder's memory, not copied.

    Args:
        device: where to.
        views: numbers of those that are wanted, from 0; by default all.
        non_blocking: of the copy, as `ffcv.transforms.ToDevice` has it.

    Raises:
        ValueError: when a loader is made; there is no such view.
    """

    def __init__(
        self, device: torch.device | str = "cpu", views: Sequence[int] | None = None, non_blocking: bool = True
    ) -> None:
        super().__init__()
        self.device, self.views, self.non_blocking = torch.device(device), views, non_blocking

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, tuple[AllocationQuery, ...] | None]:
        shapes = _view_shapes(self, previous_state.shape)
        self._apart = previous_state.shape == shapes
        self._wanted = tuple(range(len(shapes)) if self.views is None else self.views)
        for view in self._wanted:
            _check_view(self, view, len(shapes))
        wanted = [shapes[view] for view in self._wanted]
        state = replace(
            previous_state,
            jit_mode=False,
            device=self.device,
            dtype=torch.uint8,
            shape=tuple((3, height, width) for height, width, _ in wanted),
        )
        if self.device.type == "cpu":
            return state, None
        return state, tuple(AllocationQuery(shape, torch.uint8, self.device) for shape in wanted)

    def generate_code(self) -> Callable[..., Any]:
        wanted, apart, non_blocking = self._wanted, self._apart, self.non_blocking

        def to_torch_views(batch, memory):
            views = [torch.as_tensor(batch[view] if apart else batch[:, view]) for view in wanted]
            if memory is not None:
                views = [target.copy_(view, non_blocking=non_blocking) for target, view in zip(memory, views)]
            return tuple(view.permute(0, 3, 1, 2) for view in views)

        return to_torch_views
