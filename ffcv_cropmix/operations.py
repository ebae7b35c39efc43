"""FFCV operations: decoders that read an image once and draw any number of its crops, mixed, in compiled code."""

from __future__ import annotations

from . import patches  # noqa: F401

# isort: split
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Literal, NamedTuple

import numba
import numpy as np
from ffcv.fields.rgb_image import IMAGE_MODES, SimpleRGBImageDecoder
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.state import State
from numba import get_num_threads, types

from . import turbojpeg
from .errors import DataError
from .functional import check_interpolation
from .kernels import sampling
from .kernels.jit import as_readonly, compiled_once, jit
from .kernels.layers import collapse, new_layers, set_layer
from .kernels.render import new_scratch, render
from .plan import Operation, check_size, sampling_options

_JPG, _RAW = int(IMAGE_MODES["jpg"]), int(IMAGE_MODES["raw"])

# What can be wrong with a sample: those of turbojpeg, then
_BAD_MODE, _BAD_RAW_SIZE = 10, 11
_CAUSES = {
    turbojpeg.BAD_HEADER: "its data are no JPEG",
    turbojpeg.OTHER_SIZE: "its JPEG has another size than the metadata say",
    turbojpeg.BAD_DATA: "its JPEG is damaged, or neither RGB nor gray",
    _BAD_MODE: "its mode is neither jpg nor raw",
    _BAD_RAW_SIZE: "its raw data have another size than the metadata say",
}


class DecodeError(DataError):
    """A sample of a .beton file cannot be decoded."""

    file_name: str | None = None
    """The .beton, where the loader is this package's."""

    def __init__(self, index: int, code: int) -> None:  # numbers: raised in compiled code
        super().__init__(index, code)
        self.index = int(index)
        """Row in the .beton."""
        self.cause = _CAUSES[int(code)]

    def __str__(self) -> str:
        return f"{self.file_name or 'the .beton file'}: sample {self.index}: {self.cause}"


class _Workspace(NamedTuple):
    """What one thread needs to decode and draw the samples of one batch."""

    layers: Any
    plan: Any
    scratch: Any
    header: Any  # int32 (4,), for turbojpeg.decode_jpeg
    pixels: Any  # uint8 (n,), the largest JPEG of the batch, decoded


@jit
def _int(number):
    """A number of the metadata as int64: numba takes an unsigned number times a signed one for a float."""
    return int(np.int64(number))


@jit
def _new_workspace(batch_indices, metadata, output_height, output_width):
    height = width = pixels = 0
    for index in batch_indices:
        field = metadata[index]
        height = max(height, _int(field["height"]))
        width = max(width, _int(field["width"]))
        if field["mode"] == _JPG:
            pixels = max(pixels, _int(field["height"]) * _int(field["width"]))
    return _Workspace(
        new_layers(),
        sampling.new_plan_arrays(),
        new_scratch(height, width, output_height, output_width),
        np.empty(4, np.int32),
        np.empty(3 * pixels, np.uint8),
    )


@jit
def _render_sample(data, mode, height, width, draw, options, index, epoch, handle, workspace, out):
    """Decode one sample, and draw the layers that `draw` fills in; return 0, or a key of _CAUSES."""
    size = 3 * height * width
    if mode == _JPG:
        code = turbojpeg.decode_jpeg(handle, data, height, width, workspace.header, workspace.pixels)
        if code != turbojpeg.OK:
            return code
        image = as_readonly(workspace.pixels[:size])
    elif mode == _RAW:
        if data.size != size:
            return _BAD_RAW_SIZE
        image = data
    else:
        return _BAD_MODE
    output_height, output_width, _ = out.shape
    count, operation, flip = draw(
        options, index, epoch, height, width, output_height, output_width, workspace.plan, workspace.layers
    )
    render(image.reshape((height, width, 3)), workspace.layers, count, operation, flip, out, workspace.scratch)
    return 0


@cache
def _compile_render_sample(draw, options_type):
    """`_render_sample` for a `draw`, compiled once in a process."""

    def render_sample(data, mode, height, width, options, index, epoch, handle, workspace, out):
        return _render_sample(data, mode, height, width, draw, options, index, epoch, handle, workspace, out)

    sample = np.empty(0, [("height", "u2"), ("width", "u2"), ("mode", "u1")])
    workspace = numba.typeof(_new_workspace(np.empty(0, np.int64), sample, 1, 1))
    data, out = types.Array(types.uint8, 1, "C", readonly=True), types.Array(types.uint8, 3, "C")
    whole = types.int64
    arguments = (data, whole, whole, whole, options_type, whole, whole, whole, workspace, out)
    return compiled_once(render_sample, whole, *arguments)


class _LayersRGBImageDecoder(SimpleRGBImageDecoder):
    """Reads an image once and draws layers of it: what the decoders of this module share.

    A subclass says which layers, through `_draw` and `_options`.
    """

    _draw: Any
    """Compiled: (options, index, epoch, height, width, output height, output width, plan, layers) ->
    (number of layers, sampling.MIXUP or CUTMIX, flip); fills `layers`, may use `plan`."""
    _options: Any
    """What `_draw` gets as its options: a tuple of numbers."""

    def __init__(self, output_size: tuple[int, int], interpolation: str) -> None:
        super().__init__()
        self.output_size = output_size
        check_interpolation(interpolation)
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

    def generate_code(self) -> Callable[..., Any]:
        # Called at each pass: cheap. Only `decode` is compiled for each loader; the rest once in a process.
        read, iterate = self.memory_read, Compiler.get_iterator()
        options = self._options
        render_sample = _compile_render_sample(self._draw, numba.typeof(options))

        def decode(batch_indices, memory, metadata, storage_state):
            destination, codes, epoch_shape = memory
            epoch = epoch_shape.shape[1]
            count = len(batch_indices)
            chunks = get_num_threads()
            for chunk in iterate(chunks):
                # Working memory belongs to this call: after a `break`, two passes may run one decoder for a moment.
                workspace = _new_workspace(batch_indices, metadata, destination.shape[1], destination.shape[2])
                handle = turbojpeg.new_handle()
                for position in range(chunk, count, chunks):
                    index = batch_indices[position]
                    field = metadata[index]
                    data = read(field["data_ptr"], storage_state)
                    codes[position] = render_sample(
                        as_readonly(data),
                        _int(field["mode"]),
                        _int(field["height"]),
                        _int(field["width"]),
                        options,
                        _int(index),
                        epoch,
                        handle,
                        workspace,
                        destination[position],
                    )
                turbojpeg.destroy_handle(handle)
            # Raised here: inside the loop it would, silently, no longer run in parallel.
            for position in range(count):
                if codes[position] != 0:
                    raise DecodeError(batch_indices[position], codes[position])
            return destination[:count]

        decode.is_parallel = True  # type: ignore[attr-defined]
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
        interpolation: "bilinear", antialiased, as Pillow's.
        flip_probability: chance that the image is mirrored left to right; spares `RandomHorizontalFlip`.
        seed: 0 to 2**64 - 1.

    The decoder's output is uint8 (batch, height, width, 3), as FFCV's.

    Raises:
        ValueError: an option is out of range; names it and the value.
        DecodeError: while iterating, at a damaged sample. `ffcv_cropmix.Loader` passes it on; under `ffcv.Loader` the
            pass hangs, as that does at any error.
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
        interpolation: Literal["bilinear"] = "bilinear",
        flip_probability: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(output_size, interpolation)
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
        interpolation: "bilinear", antialiased, as Pillow's.

    Raises:
        ValueError, DecodeError: as `CropMixRGBImageDecoder` does.
    """

    _draw = staticmethod(_draw_center_crop)

    def __init__(
        self,
        output_size: tuple[int, int],
        ratio: float = 224 / 256,
        interpolation: Literal["bilinear"] = "bilinear",
    ) -> None:
        super().__init__(output_size, interpolation)
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio is in (0, 1], got {ratio!r}")
        self._options = (float(ratio),)
