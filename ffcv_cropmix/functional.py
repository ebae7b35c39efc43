"""cropmix: apply a plan to an image. Nothing here is random."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numba
import numpy as np
from numba import types

from .kernels.arrays import BYTES
from .kernels.coefficients import AREA, BICUBIC, BILINEAR, NEGATIVE_LOBES
from .kernels.jit import compiled_once, entry
from .kernels.layers import collapse, new_layers
from .kernels.render import new_scratch, prepare_rgb, renderer, resample_rgb
from .kernels.two_pass import new_two_pass_scratch, prepare_two_pass, resample_two_pass
from .kernels.vectors import Target
from .plan import OPERATIONS, MixPlan, check_size

INTERPOLATIONS = {"bilinear": BILINEAR, "bicubic": BICUBIC, "area": AREA}
Interpolation = Literal["bilinear", "bicubic", "area"]


def interpolation_number(interpolation: str) -> int:
    """Return the kernels' number of an interpolation.

    Raises:
        ValueError: there is none of this name.
    """
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation is one of {', '.join(INTERPOLATIONS)}, got {interpolation!r}")
    return INTERPOLATIONS[interpolation]


IMAGE = types.Array(types.uint8, 3, "C")
LAYERS = numba.typeof(new_layers())


def compile_render(prepare: Any, resample: Any, layout: Any, scratch: Any) -> Any:
    """Compile `renderer(prepare, resample)` once for all callers.

    Args:
        prepare, resample: see `renderer`.
        layout, scratch: types of their arguments.
    """
    leading, int64 = (BYTES, layout, LAYERS), types.int64
    target = numba.typeof(Target(0, 0, 0, 0, 0, 0, 0))
    resample = compiled_once(resample, types.none, *leading, int64, int64, IMAGE, target, scratch)
    render = renderer(prepare, resample)
    return compiled_once(render, types.none, *leading, int64, types.boolean, int64, IMAGE, scratch)


@cache
def compile_rgb_renderer(two_pass: bool) -> tuple[Any, Any]:
    """Return (new_scratch, render) for images of RGB rows. Their arguments are the same for all filters.

    Args:
        two_pass: for filters with negative lobes, `NEGATIVE_LOBES`.
    """
    if two_pass:
        new, prepare, resample = new_two_pass_scratch, prepare_two_pass, resample_two_pass
    else:
        new, prepare, resample = new_scratch, prepare_rgb, resample_rgb
    return new, compile_render(prepare, resample, types.int64, numba.typeof(new(0, 1, 1, 1, 1)))


@cache
def _compile(two_pass: bool) -> Any:
    new_scratch, render = compile_rgb_renderer(two_pass)

    @entry
    def compiled(pixels, height, width, plan, number, operation, flip, interpolation, out):
        output_height, output_width, _ = out.shape
        layers = new_layers()
        count = collapse(plan, number, operation, output_height, output_width, layers)
        scratch = new_scratch(interpolation, height, width, output_height, output_width)
        render(pixels, width, layers, count, flip, interpolation, out, scratch)

    return compiled


def cropmix(
    image: np.ndarray,
    plan: MixPlan,
    output_size: tuple[int, int] = (224, 224),
    interpolation: Interpolation = "bilinear",
) -> np.ndarray:
    """Crop, resize and mix an image as a plan says: CropMix (arXiv 2205.15955, section 3).

    Args:
        image: uint8 (height, width, 3), at least 1 x 1 px.
        plan: from `sample_plan`, or made by hand.
        output_size: (height, width) of the result, px.
        interpolation: "bilinear" or "bicubic" (Pillow's, antialiased), or "area" (OpenCV's INTER_AREA; bilinear along
            an axis that is enlarged). Pixels outside a crop do not contribute to it.

    Returns:
        uint8 (output height, output width, 3). Values are rounded once, after mixing; with "bicubic" each crop is
        rounded after each pass, too, as Pillow does it.

    Raises:
        ValueError: the image is not uint8 (height, width, 3), a crop is not inside it, or a size is below 1.

    Example:
        >>> from ffcv_cropmix.plan import sample_plan
        >>> image = np.full((375, 500, 3), 7, np.uint8)
        >>> mixed = cropmix(image, sample_plan(375, 500, output_size=(4, 4)), (4, 4))
        >>> mixed.shape, mixed.dtype, int(mixed.min()), int(mixed.max())
        ((4, 4, 3), dtype('uint8'), 7, 7)
    """
    image = np.ascontiguousarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"image is uint8 (height, width, 3), got {image.dtype} {image.shape}")
    number = interpolation_number(interpolation)
    height, width = check_size("output_size", output_size)
    plan.check_fits(*image.shape[:2])
    pixels = image.reshape(-1)
    pixels.setflags(write=False)  # one type, one compilation: see kernels.jit.as_readonly
    out = np.empty((height, width, 3), np.uint8)
    arguments = (plan.pack((height, width)), len(plan.crops), OPERATIONS[plan.operation], plan.flip, number)
    _compile(NEGATIVE_LOBES[number])(pixels, *image.shape[:2], *arguments, out)
    return out
