"""FFCV operations: decoders that read an image once and draw any number of its crops, mixed, in compiled code."""

from __future__ import annotations

from . import patches  # noqa: F401

# isort: split
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Literal, NamedTuple, get_args

import numba
import numpy as np
from ffcv.fields.rgb_image import IMAGE_MODES, SimpleRGBImageDecoder
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.state import State
from numba import prange, types

from . import turbojpeg
from .errors import DataError
from .functional import Interpolation, interpolation_number, kernels_of
from .kernels import sampling
from .kernels.checksum import xxh64
from .kernels.coefficients import BICUBIC
from .kernels.jit import as_readonly, compiled_once, jit, parallel_jit
from .kernels.layers import collapse, new_layers, set_layer
from .kernels.planes import new_planes_scratch, render_planes
from .kernels.render import rows_needed
from .plan import Operation, check_size, sampling_options

Decode = Literal["rgb", "rows", "ycbcr"]
OnError = Literal["raise", "zero"]

CHECKSUM = "checksum"
"""A column of the metadata, uint64: where there is one, a sample's bytes are compared with it (kernels.checksum)."""

_JPG, _RAW = int(IMAGE_MODES["jpg"]), int(IMAGE_MODES["raw"])

# What can be wrong with a sample: those of turbojpeg, then
_BAD_MODE, _BAD_RAW_SIZE, _BAD_CHECKSUM = 10, 11, 12
_CAUSES = {
    turbojpeg.BAD_HEADER: "its data are no JPEG",
    turbojpeg.OTHER_SIZE: "its JPEG has another size than the metadata say",
    turbojpeg.BAD_DATA: "its JPEG is damaged, or neither RGB nor gray",
    _BAD_MODE: "its mode is neither jpg nor raw",
    _BAD_RAW_SIZE: "its raw data have another size than the metadata say",
    _BAD_CHECKSUM: "its data are not those that were written: their checksum differs",
}


class DecodeError(DataError):
    """A sample of a .beton file cannot be decoded."""

    file_name: str | None = None
    """The .beton, where the loader is this package's."""
    label: str | None = None
    """The class, as far as the file and its sidecar tell: "3 (n01491361)"."""

    def __init__(self, index: int, code: int) -> None:  # numbers: raised in compiled code
        super().__init__(index, code)
        self.index = int(index)
        """Row in the .beton."""
        self.cause = _CAUSES[int(code)]

    def __str__(self) -> str:
        label = "" if self.label is None else f", of class {self.label}"
        return f"{self.file_name or 'the .beton file'}: sample {self.index}{label}: {self.cause}"


class _Workspace(NamedTuple):
    """What one thread needs to decode and draw the samples of one batch."""

    layers: Any
    plan: Any
    scratch: Any
    planes: Any
    jpeg: Any


@jit
def _int(number):
    """A number of the metadata as int64: numba takes an unsigned number times a signed one for a float."""
    return int(np.int64(number))


@jit
def _new_nothing(interpolation, height, width, output_height, output_width):
    """In the place of `new_planes_scratch` where no planes are drawn: spares its compilation."""
    return ()


@cache
def _compile(draw: Any, options_type: Any, bicubic: bool, decode: Decode) -> tuple[Any, Any]:
    """Compile for a `_draw`, once in a process. Bilinear and area are of one compilation.

    Returns:
        new_workspace: (batch_indices, metadata, largest file in bytes, interpolation, output height, output width) to
            a _Workspace.
        render_sample: decodes one sample, draws the layers that `draw` fills in; returns 0, or a key of _CAUSES.
    """
    new_scratch, render = kernels_of(bicubic)
    all_rows, planar = decode == "rgb", decode == "ycbcr" and not bicubic
    new_planes = new_planes_scratch if planar else _new_nothing

    @jit
    def new_workspace(batch_indices, metadata, largest_file, interpolation, output_height, output_width):
        height = width = area = 0
        for index in batch_indices:
            field = metadata[index]
            height = max(height, _int(field["height"]))
            width = max(width, _int(field["width"]))
            if field["mode"] == _JPG:
                area = max(area, (_int(field["height"]) + 1) * (_int(field["width"]) + 1))
        return _Workspace(
            new_layers(),
            sampling.new_plan_arrays(),
            new_scratch(interpolation, height, width, output_height, output_width),
            new_planes(interpolation, height, width, output_height, output_width),
            turbojpeg.new_buffers(area, largest_file),
        )

    def render_sample(data, mode, height, width, options, interpolation, index, epoch, handle, workspace, out):
        layers, jpeg = workspace.layers, workspace.jpeg
        output_height, output_width, _ = out.shape
        count, operation, flip = draw(
            options, index, epoch, height, width, output_height, output_width, workspace.plan, layers
        )
        if mode == _RAW:
            if data.size != 3 * height * width:
                return _BAD_RAW_SIZE
            pixels = data
        elif mode == _JPG:
            rows = height if all_rows else rows_needed(layers, count, interpolation, output_height)
            if planar:
                code = turbojpeg.decode_jpeg_planes(handle, data, height, width, rows, jpeg)
                if code == turbojpeg.OK:
                    scratches = (workspace.scratch, workspace.planes)
                    render_planes(
                        jpeg.pixels, height, width, layers, count, operation, flip, interpolation, out, *scratches
                    )
                if code != turbojpeg.NOT_420:
                    return code
            if all_rows:
                code = turbojpeg.decode_jpeg(handle, data, height, width, jpeg)
            else:
                code = turbojpeg.decode_jpeg_rows(handle, data, height, width, rows, jpeg)
            if code != turbojpeg.OK:
                return code
            pixels = as_readonly(jpeg.pixels)
        else:
            return _BAD_MODE
        render(pixels, width, layers, count, operation, flip, interpolation, out, workspace.scratch)
        return 0

    sample = np.empty(0, [("height", "u2"), ("width", "u2"), ("mode", "u1")])
    workspace = numba.typeof(new_workspace(np.empty(0, np.int64), sample, 0, 0, 1, 1))
    data, out = types.Array(types.uint8, 1, "C", readonly=True), types.Array(types.uint8, 3, "C")
    whole = types.int64
    arguments = (data, whole, whole, whole, options_type, whole, whole, whole, whole, workspace, out)
    return new_workspace, compiled_once(render_sample, whole, *arguments)


@cache
def _compile_loop(read: Any, checked: bool, draw: Any, options_type: Any, bicubic: bool, decode: Decode) -> Any:
    """The loop over a batch, compiled once in a process: loaders of one kind of file share it.

    Args:
        read: the loader's function from address and storage state to bytes.
        checked: whether checksums are compared.
        draw, options_type, bicubic, decode: as `_compile` has them.
    """
    new_workspace, render_sample = _compile(draw, options_type, bicubic, decode)
    whole_files = decode == "rgb"

    @parallel_jit
    def loop(batch_indices, memory, metadata, storage_state, options, interpolation, raises, chunks):
        destination, codes, epoch_shape = memory
        epoch = epoch_shape.shape[1]
        count = len(batch_indices)
        largest_file = 0  # of those that are copied, to be changed
        if not whole_files:
            for index in batch_indices:
                largest_file = max(largest_file, read(metadata[index]["data_ptr"], storage_state).size)
        for chunk in prange(chunks):
            # Working memory belongs to this call: after a `break`, two passes may run one decoder for a moment.
            output_height, output_width = destination.shape[1], destination.shape[2]
            workspace = new_workspace(batch_indices, metadata, largest_file, interpolation, output_height, output_width)
            handle = turbojpeg.new_handle()
            for position in range(chunk, count, chunks):
                index = batch_indices[position]
                field = metadata[index]
                data = read(field["data_ptr"], storage_state)
                code = 0
                if checked and xxh64(data) != field["checksum"]:
                    code = _BAD_CHECKSUM
                if code == 0:
                    code = render_sample(
                        as_readonly(data),
                        _int(field["mode"]),
                        _int(field["height"]),
                        _int(field["width"]),
                        options,
                        interpolation,
                        _int(index),
                        epoch,
                        handle,
                        workspace,
                        destination[position],
                    )
                if code != 0:  # what lies there is another sample's, or half of this one
                    destination[position] = 0
                codes[position] = code
            turbojpeg.destroy_handle(handle)
        if raises:  # here: inside the loop it would, silently, no longer run in parallel
            for position in range(count):
                if codes[position] != 0:
                    raise DecodeError(batch_indices[position], codes[position])
        return destination[:count]

    return loop


class _LayersRGBImageDecoder(SimpleRGBImageDecoder):
    """Reads an image once and draws layers of it: what the decoders of this module share.

    A subclass says which layers, through `_draw` and `_options`.
    """

    _draw: Any
    """Compiled: (options, index, epoch, height, width, output height, output width, plan, layers) ->
    (number of layers, sampling.MIXUP or CUTMIX, flip); fills `layers`, may use `plan`."""
    _options: Any
    """What `_draw` gets as its options: a tuple of numbers."""

    def __init__(
        self, output_size: tuple[int, int], interpolation: Interpolation, on_error: OnError, decode: Decode = "rgb"
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

    @property
    def output_size(self) -> tuple[int, int]:
        """(height, width) of the images, px. A new value holds from the next pass on; nothing is compiled anew."""
        return self._output_size

    @output_size.setter
    def output_size(self, size: tuple[int, int]) -> None:
        self._output_size = check_size("output_size", size)

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
        shape, dtype = (*self.output_size, 3), np.dtype("u1")
        state = replace(previous_state, jit_mode=True, shape=shape, dtype=dtype)
        return state, (
            AllocationQuery(shape, dtype),
            AllocationQuery((), np.dtype("i8")),  # what is wrong with each sample
            AllocationQuery((epoch, 0), dtype),
        )

    def failures(self, indices: np.ndarray, memory: tuple[Any, ...]) -> list[DecodeError]:
        """The samples of a batch that were replaced by zeros.

        Args:
            indices: of the samples of the batch.
            memory: the memory of the batch, as `declare_state_and_memory` asked for it.
        """
        codes = np.asarray(memory[1])
        return [DecodeError(indices[position], codes[position]) for position in np.flatnonzero(codes)]

    def generate_code(self) -> Callable[..., Any]:
        # Called at each pass: cheap. Only `decode` is compiled for each loader.
        options, interpolation, raises = self._options, self._interpolation, self._on_error == "raise"
        kind = (self._draw, numba.typeof(options), interpolation == BICUBIC, self._decode)
        loop = _compile_loop(self.memory_read, CHECKSUM in self.metadata.dtype.names, *kind)
        threads = Compiler.num_threads  # of the loader; to ask numba for them takes 0.3 s to compile

        def decode(batch_indices, memory, metadata, storage_state):
            return loop(batch_indices, memory, metadata, storage_state, options, interpolation, raises, threads)

        return decode


@jit
def _draw_cropmix(options, index, epoch, height, width, output_height, output_width, plan, layers):
    number, flip = sampling.sample(options, index, epoch, height, width, output_height, output_width, plan)
    count = collapse(plan, number, options.operation, output_height, output_width, layers)
    return count, options.operation, flip


class CropMixRGBImageDecoder(_LayersRGBImageDecoder):
    """Decodes an image once, takes crops of distinct scales and mixes them into one image: CropMix.

    A drop-in for `ffcv.fields.rgb_image.RandomResizedCropRGBImageDecoder`, for JPEG and raw images. What a sample
    looks like depends on `seed`, the epoch (`set_epoch`) and its row in the .beton alone: not on the number of
    workers, the batch size or the order. `sample_plan` draws the same.

    Source: arXiv 2205.15955, section 3.

    Args:
        output_size: (height, width) of the images, px; may be set between epochs.
        scale: smallest crop area as a share of the image's, s for (s, 1), or (low, high). The range is cut into as
            many equal bands as there are crops, one crop from each.
        number: how many crops, 1 to 8, or several to draw from for each image: (2, 3, 4), or 234. 1 is a plain
            RandomResizedCrop: with scale=0.08, torchvision's and FFCV's.
        operation: "mixup" or "cutmix".
        mix_ratio: mixup draws the weights from Beta(mix_ratio / n, mix_ratio / n) for n crops.
        inter_aug: permute the colour channels of one operand of each mixing step.
        ratio: (low, high) aspect ratio, width / height, of the crops.
        interpolation: "bilinear", "bicubic" (Pillow's, antialiased; slower: each view is resampled and rounded as
            Pillow does it) or "area" (OpenCV's INTER_AREA, bilinear along an axis that is enlarged).
        flip_probability: chance that the image is mirrored left to right; spares `RandomHorizontalFlip`.
        seed: 0 to 2**64 - 1.
        on_error: at a damaged sample. "raise": a DecodeError, which `ffcv_cropmix.Loader` raises from the loop that
            reads it; under `ffcv.Loader` the pass hangs, as that does at any error. "zero": the image is all zeros,
            and `ffcv_cropmix.Loader.report` lists it.
        decode: what of a JPEG is decoded.
            "rgb": all, every error noticed.
            "rows": up to the last row that is needed; the same pixels. Damage that leaves the rest of the file
            undecodable is not noticed: for files whose checksums are compared, or that are trusted otherwise.
            "ycbcr": the same, and colours stay at half the resolution until the crops are resampled. Where libjpeg
            clips them, at saturated edges, values differ: of ImageNet's photos 0.7 % by more than 1 level. For JPEGs
            with 4:2:0 subsampling, FFCV's own, and not for bicubic; "rows" for the others.

    The decoder's output is uint8 (batch, height, width, 3), as FFCV's.

    Raises:
        ValueError: an option is out of range; names it and the value.
        DecodeError: while iterating, see `on_error`.
    """

    _draw = staticmethod(_draw_cropmix)

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
        self._options = sampling_options(
            scale=scale,
            number=number,
            operation=operation,
            mix_ratio=mix_ratio,
            inter_aug=inter_aug,
            ratio=ratio,
            flip_probability=flip_probability,
            seed=seed,
        )


@jit
def _draw_center_crop(options, index, epoch, height, width, output_height, output_width, plan, layers):
    sampling.center_crop(height, width, options[0], plan.crops[0])
    set_layer(layers, 0, plan.crops[0], output_height, output_width)
    return 1, sampling.MIXUP, False


class CenterCropRGBImageDecoder(_LayersRGBImageDecoder):
    """Decodes an image and resizes its centred square: what models are evaluated on, from CropMix's kernels.

    Args:
        output_size: (height, width) of the images, px.
        ratio: side of the square as a share of the image's shorter side, in (0, 1].
        interpolation, on_error: as `CropMixRGBImageDecoder` has them.

    Raises:
        ValueError, DecodeError: as `CropMixRGBImageDecoder` does.
    """

    _draw = staticmethod(_draw_center_crop)

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
        self._options = (float(ratio),)
