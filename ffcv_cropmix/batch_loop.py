"""The compiled loop over a batch: read each sample once and render its images. All decoders use it."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, NamedTuple

import numba
import numpy as np
from numba import carray, prange, types

from . import dct_pixels, turbojpeg
from .data.images import DCT, JPG, RAW
from .dct import BAD_DCT, OTHER_SIZE
from .functional import kernels_of
from .kernels import sampling
from .kernels.checksum import xxh64
from .kernels.jit import as_pointer, as_readonly, compiled_once, entry, jit
from .kernels.layers import new_layers
from .kernels.planes import new_planes_scratch, render_planes
from .kernels.render import pixels_needed

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
def _int(number):
    """Convert a number of the metadata to int64: in numba, the product of uint64 and int64 is a float."""
    return int(np.int64(number))


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
    return carray(as_pointer(places[view, 0] + position * height * width * 3), (height, width, 3), np.uint8)


_BYTES = types.Array(types.uint8, 1, "C", readonly=True)


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


def _decode_dct(data, height, width, box, planar, buffers):
    """Call `dct_pixels.decode_dct` and return both of its results in one number: code << 1 | planes."""
    code, planes = dct_pixels.decode_dct(data, height, width, box, planar, buffers)
    return code << 1 | planes


@cache
def _compile_decode_dct() -> Any:
    """Compile `_decode_dct`, once for all decoders."""
    buffers = dct_pixels.new_buffers(8, 8)
    kinds = types.int64, types.int64, numba.typeof(np.empty(4, np.int64)), types.boolean, numba.typeof(buffers)
    dct_pixels.destroy_context(buffers.context)
    return compiled_once(_decode_dct, types.int64, _BYTES, *kinds)


def _readers(kind: Specialization) -> tuple[Any, Any, Any]:
    """Return the compiled functions that read the images of a field.

    Returns:
        new_buffers: (largest height, largest width, largest (height + 1) * (width + 1) of a JPEG, size of the largest
            file to be copied) -> the buffers of one thread.
        destroy_buffers: frees the memory that numba does not manage.
        read_image: (data, height, width, box, buffers) -> (0 or an error code, whether buffers.pixels holds planes).
            buffers.layout describes planes; otherwise buffers.pixels holds RGB rows. Only the pixels in `box` are
            needed.
    """
    planar = kind.decode == "ycbcr" and not kind.two_pass
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
def compile_sample(kind: Specialization) -> tuple[Any, Any, Any]:
    """Compile the functions that decode and render one sample, once per process.

    Returns:
        new_workspace: (batch_indices, metadata, largest file in bytes, interpolation, largest output height, largest
            output width) -> Workspace.
        destroy_workspace: frees the memory that numba does not manage.
        render_sample: decodes one sample and renders, for each of its images, the layers that `sample_layers` fills
            in; returns 0 or a key of CAUSES.
    """
    sample_layers, dct = kind.sample_layers, kind.dct
    new_scratch, render = kernels_of(kind.two_pass)
    new_buffers, destroy_buffers, read_image = _readers(kind)
    planar, boxed = kind.decode == "ycbcr" and not kind.two_pass, dct or kind.decode != "rgb"
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
        scratch = new_scratch(interpolation, height, width, output_height, output_width)
        return Workspace(
            new_layers(),
            sampling.new_plan_arrays(),
            scratch,
            new_planes(scratch, interpolation, height, width, output_height, output_width),
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
                    count, _ = sample_layers(options[view], index, epoch, view, height, width, *size, plan, layers)
                    pixels_needed(layers, count, interpolation, *size, box)
            code, planes = read_image(data, height, width, box, image)
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
            count, flip = sample_layers(
                options[view], index, epoch, view, height, width, output_height, output_width, plan, layers
            )
            if planar and planes:
                render_planes(pixels, image.layout, layers, count, flip, interpolation, out, workspace.planes)
            else:
                render(pixels, width, layers, count, flip, interpolation, out, workspace.scratch)
        return code

    sample = np.empty(0, [("height", "u2"), ("width", "u2"), ("mode", "u1")])
    places = np.ones((1, 3), np.int64)
    empty = new_workspace(np.empty(0, np.int64), sample, 0, 0, 1, 1)
    workspace, whole = numba.typeof(empty), types.int64
    destroy_workspace(empty)
    arguments = (whole, _BYTES, *[whole] * 3, kind.options, *[whole] * 3, workspace, numba.typeof(places), whole)
    return new_workspace, destroy_workspace, compiled_once(render_sample, whole, *arguments)


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

    def loop(batch_indices, places, codes, numbers, metadata, storage_state, options, interpolation, chunks):
        _, epoch, largest_height, largest_width, _ = numbers.shape
        count = len(batch_indices)
        largest_file = 0  # bytes, of the files that `turbojpeg` copies to decode their first rows
        if not whole_files:
            for index in batch_indices:
                largest_file = max(largest_file, read(metadata[index]["data_ptr"], storage_state).size)
        for chunk in prange(chunks):
            # Each call has its own working memory: after a `break`, two passes may briefly run the same decoder.
            workspace = new_workspace(
                batch_indices, metadata, largest_file, interpolation, largest_height, largest_width
            )
            for position in range(chunk, count, chunks):
                index = batch_indices[position]
                field = metadata[index]
                data = read(field["data_ptr"], storage_state)
                code = 0
                if checked and xxh64(data) != field["checksum"]:
                    code = BAD_CHECKSUM
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
