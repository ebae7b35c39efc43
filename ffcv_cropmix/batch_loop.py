"""The compiled loop over a batch: read each sample once and render its images. All decoders use it."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, NamedTuple

import numba
import numpy as np
from numba import types

from . import dct_pixels, turbojpeg
from .data.images import DCT, JPG, RAW
from .dct import BAD_DCT, OTHER_SIZE
from .functional import LAYERS, compile_render, compile_rgb_renderer
from .kernels import sampling
from .kernels.arrays import BYTES, array_at, empty
from .kernels.checksum import xxh64
from .kernels.jit import as_readonly, compiled_once, entry, jit
from .kernels.layers import new_layers
from .kernels.parallel import compile_parallel_for, parallel_for, task
from .kernels.planes import new_planes_scratch, prepare_planes, resample_planes
from .kernels.render import new_scratch, pixels_needed

Decode = Literal["rgb", "rows", "ycbcr"]

CHECKSUM = "checksum"
"""A uint64 column of the metadata. If a file has it, each sample's bytes are checked against it."""


# Error codes of a sample, besides those of turbojpeg and dct.
BAD_MODE, BAD_RAW_SIZE, BAD_CHECKSUM = 10, 11, 12
CAUSES = {
    turbojpeg.BAD_HEADER: "not a JPEG",
    turbojpeg.OTHER_SIZE: "the JPEG's size differs from the metadata",
    turbojpeg.BAD_DATA: "the JPEG is damaged, or neither RGB nor gray",
    BAD_DCT: "the DCT coefficients are damaged",
    OTHER_SIZE: "the size of the DCT image differs from the metadata",
    BAD_MODE: "the mode is none of jpg, raw, and dct (in a DCTImageField)",
    BAD_RAW_SIZE: "the size of the raw data differs from the metadata",
    BAD_CHECKSUM: "the checksum differs: the data are not those that were written",
}


class Workspace(NamedTuple):
    """Working memory of one thread to decode and render the samples of one batch."""

    layers: Any
    plan: Any
    scratch: Any
    planes: Any
    box: Any  # int64 (4,): see `pixels_needed`
    image: Any  # buffers of `turbojpeg` or `dct_pixels`


@jit
def _new_nothing(scratch, interpolation, height, width, output_height, output_width):
    """Replace `new_planes_scratch` where no planes are rendered, to save its compilation."""
    return ()


# The images of a batch are in one array, or in one array per view. Compiled code gets their addresses: a tuple of
# arrays would have another type for each number of views, and the code would be compiled again for each.


def images_apart(images: tuple[np.ndarray, ...]) -> np.ndarray:
    """Return the addresses of images in one array per view.

    Args:
        images: for each view, uint8 (batch, height, width, 3).

    Returns:
        int64 (views, 3): address of a view's first image, height, width. The view's other images follow the first.
    """
    return np.array([(batch.ctypes.data, *batch.shape[1:3]) for batch in images], np.int64)


@jit
def _image_at(places, view, position):
    """Return one image of a batch, uint8 (height, width, 3)."""
    height, width = places[view, 1], places[view, 2]
    return array_at(places[view, 0] + position * height * width * 3, (height, width, 3), np.uint8)


class Specialization(NamedTuple):
    """The properties that compiled code is specialised for."""

    sample_layers: Any
    """A decoder's `_sample_layers`."""
    options: Any
    """The type of its options."""
    dct: bool
    """Whether the field is a DCTImageField. Otherwise it holds JPEG and raw images."""
    two_pass: bool
    """Whether the filter has negative lobes. All filters with them share one compilation, and so do all without."""
    decode: Decode


# Functions that several loops share are compiled once. Each returns one integer: a second, Boolean result is its lowest
# bit.

_INT64 = types.int64
_BOX, _LAYOUT = types.Array(_INT64, 1, "C"), types.Array(_INT64, 2, "C")


@cache
def _compile_sampler(sample_layers: Any, options: Any) -> Any:
    """Compile a decoder's `_sample_layers` for one view with options of this type."""

    def sampler(options, index, epoch, view, height, width, output_height, output_width, plan, layers):
        count, flip = sample_layers(
            options, index, epoch, view, height, width, output_height, output_width, plan, layers
        )
        return count << 1 | flip

    return compiled_once(sampler, _INT64, options, *[_INT64] * 7, numba.typeof(sampling.new_plan_arrays()), LAYERS)


@cache
def _compile_pixels_needed() -> Any:
    return compiled_once(pixels_needed, types.none, LAYERS, *[_INT64] * 4, _BOX)


@cache
def _compile_render_planes() -> Any:
    scratch = numba.typeof(new_planes_scratch(new_scratch(0, 1, 1, 1, 1), 0, 1, 1, 1, 1))
    return compile_render(prepare_planes, resample_planes, _LAYOUT, scratch)


def _read_jpeg(data, height, width, box, planar, buffers):
    if planar:
        code = turbojpeg.decode_jpeg_planes(data, height, width, box[2], buffers)
        if code != turbojpeg.NOT_420:
            return code << 1 | 1
    return turbojpeg.decode_jpeg_rows(data, height, width, box[2], buffers) << 1


@cache
def _compile_reader(dct: bool) -> tuple[Any, Any, Any]:
    """Return the compiled functions that read the images of a field.

    Returns:
        new_buffers: (largest height, largest width, largest (height + 1) * (width + 1) of a JPEG, size of the largest
            file to be copied) -> the buffers of one thread.
        destroy_buffers: frees the memory that numba does not manage.
        read_image: (data, height, width, box, planar, buffers) -> code << 1 | planes: 0 or an error code, and whether
            buffers.pixels holds planes. buffers.layout describes planes; otherwise buffers.pixels holds RGB rows. Only
            the pixels in `box` are needed.
    """
    if dct:

        @jit
        def new_buffers(height, width, area, largest_file):
            return dct_pixels.new_buffers(height, width)

        @jit
        def destroy_buffers(buffers):
            dct_pixels.destroy_context(buffers.context)

        read_image = dct_pixels.compile_decode_dct()
    else:

        @jit
        def new_buffers(height, width, area, largest_file):
            return turbojpeg.new_buffers(area, largest_file)

        @jit
        def destroy_buffers(buffers):
            pass

        buffers = numba.typeof(new_buffers(8, 8, 81, 0))
        read_image = compiled_once(_read_jpeg, _INT64, BYTES, _INT64, _INT64, _BOX, types.boolean, buffers)

    return new_buffers, destroy_buffers, read_image


@cache
def compile_sample(kind: Specialization) -> tuple[Any, Any, Any]:
    """Return the kernels that decode and render one sample.

    Returns:
        new_workspace: (batch_indices, metadata, largest file in bytes, interpolation, largest output height, largest
            output width) -> Workspace.
        destroy_workspace: frees the memory that numba does not manage.
        render_sample: decodes one sample and renders, for each of its images, the layers that `sample_layers` fills
            in; returns 0 or a key of CAUSES.
    """
    dct = kind.dct
    sample_layers = _compile_sampler(kind.sample_layers, kind.options.dtype)
    new_scratch, render = compile_rgb_renderer(kind.two_pass)
    new_buffers, destroy_buffers, read_image = _compile_reader(dct)
    planar, boxed = kind.decode == "ycbcr" and not kind.two_pass, dct or kind.decode != "rgb"
    needed = _compile_pixels_needed() if boxed else pixels_needed
    new_planes = new_planes_scratch if planar else _new_nothing
    render_planar = _compile_render_planes() if planar else render
    coded = DCT if dct else JPG

    @jit
    def new_workspace(batch_indices, metadata, largest_file, interpolation, output_height, output_width):
        height = width = area = np.int64(0)  # int64 throughout: in numba, uint64 times int64 is a float
        for index in batch_indices:
            field = metadata[index]
            height = max(height, np.int64(field["height"]))
            width = max(width, np.int64(field["width"]))
            if field["mode"] == JPG:
                area = max(area, (np.int64(field["height"]) + 1) * (np.int64(field["width"]) + 1))
        scratch = new_scratch(interpolation, height, width, output_height, output_width)
        return Workspace(
            new_layers(),
            sampling.new_plan_arrays(),
            scratch,
            new_planes(scratch, interpolation, height, width, output_height, output_width),
            empty(4, np.int64),
            new_buffers(height, width, area, largest_file),
        )

    @jit
    def destroy_workspace(workspace):
        destroy_buffers(workspace.image)

    @jit
    def render_sample(
        code, data, mode, height, width, options, interpolation, index, epoch, workspace, places, position
    ):
        plan, layers, box, image = workspace.plan, workspace.layers, workspace.box, workspace.image
        pixels, planes = data, False
        if code != 0:
            pass
        elif mode == coded:
            pixels = as_readonly(image.pixels)
            box[0], box[1], box[2], box[3] = (height, width, 0, 0) if boxed else (0, 0, height, width)
            if boxed:
                for view in range(len(options)):
                    size = places[view, 1], places[view, 2]
                    packed = sample_layers(options[view], index, epoch, view, height, width, *size, plan, layers)
                    needed(layers, packed >> 1, interpolation, *size, box)
            packed = read_image(data, height, width, box, planar, image)
            code, planes = packed >> 1, (packed & 1) == 1
        elif mode == RAW and not dct:
            if data.size != 3 * height * width:
                code = BAD_RAW_SIZE
        else:
            code = BAD_MODE
        for view in range(len(options)):
            out = _image_at(places, view, position)
            if code != 0:  # the memory still holds another sample's image
                out[:] = 0
                continue
            output_height, output_width, _ = out.shape
            packed = sample_layers(
                options[view], index, epoch, view, height, width, output_height, output_width, plan, layers
            )
            count, flip = packed >> 1, (packed & 1) == 1
            if planar and planes:
                render_planar(pixels, image.layout, layers, count, flip, interpolation, out, workspace.planes)
            else:
                render(pixels, width, layers, count, flip, interpolation, out, workspace.scratch)
        return code

    return new_workspace, destroy_workspace, render_sample


@cache
def compile_loop(read: Any, checked: bool, kind: Specialization) -> Any:
    """Compile the loop over a batch, once per process: loaders of one kind of file share it.

    Args:
        read: the loader's compiled function (address, storage state) -> uint8 (n,).
        checked: whether checksums are compared.
        kind: what the loop is specialised for.
    """
    new_workspace, destroy_workspace, render_sample = compile_sample(kind)
    whole_files = kind.dct or kind.decode == "rgb"
    compile_parallel_for()

    @task
    def render_some(arguments, chunk):
        batch_indices, places, codes, numbers, metadata, storage_state, options, interpolation, chunks = arguments
        _, epoch, largest_height, largest_width, _ = numbers.shape
        largest_file = 0  # bytes, of the files that `turbojpeg` copies to decode their first rows
        if not whole_files:
            for position in range(chunk, len(batch_indices), chunks):
                field = metadata[batch_indices[position]]
                largest_file = max(largest_file, read(field["data_ptr"], storage_state).size)
        # Each call has its own working memory: after a `break`, two passes may briefly run the same decoder.
        workspace = new_workspace(batch_indices, metadata, largest_file, interpolation, largest_height, largest_width)
        for position in range(chunk, len(batch_indices), chunks):
            index = batch_indices[position]
            field = metadata[index]
            data = read(field["data_ptr"], storage_state)
            code = 0
            if checked and xxh64(data) != field["checksum"]:
                code = BAD_CHECKSUM
            codes[position] = render_sample(
                code,
                as_readonly(data),
                np.int64(field["mode"]),
                np.int64(field["height"]),
                np.int64(field["width"]),
                options,
                interpolation,
                np.int64(index),
                epoch,
                workspace,
                places,
                position,
            )
        destroy_workspace(workspace)

    def loop(batch_indices, places, codes, numbers, metadata, storage_state, options, interpolation, chunks):
        arguments = batch_indices, places, codes, numbers, metadata, storage_state, options, interpolation, chunks
        return parallel_for(render_some, arguments, chunks)

    return entry(loop)
