"""Measure the stages of making one CropMix image, in microseconds: `python benchmarks/stages.py --beton FILE...`

One thread runs compiled loops over all images of a .beton, with number 234, mixup, inter_aug, and half of the images
mirrored. Each loop runs one stage more than the loop before, on the same plans, and a stage's time is the difference.
If a stage evicts data from the caches, the next stage pays for it. FFCV's loader, threads and writing into a batch are
not included.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

from ffcv_cropmix import turbojpeg
from ffcv_cropmix.data.reader import Beton
from ffcv_cropmix.errors import run_program
from ffcv_cropmix.kernels import render as rendering
from ffcv_cropmix.kernels.coefficients import BILINEAR
from ffcv_cropmix.kernels.jit import as_readonly, entry, jit
from ffcv_cropmix.kernels.layers import collapse, new_layers
from ffcv_cropmix.kernels.sampling import MIXUP, new_plan_arrays, sample
from ffcv_cropmix.libturbojpeg import destroy_handle, new_handle
from ffcv_cropmix.options import option, parse_options
from ffcv_cropmix.plan import sampling_options

HEADER, DECODE, PLAN, RENDER = range(4)
LOOPS = ("vertical", "transpose", "horizontal", "finish")
STAGES = ("JPEG header", "JPEG decode", "plan: sample, collapse", "coefficients", *LOOPS)
_new_scratch, _new_buffers = entry(rendering.new_scratch), entry(turbojpeg.new_buffers)


@jit
def _nothing(*arguments):
    pass


def render_of(loops: tuple[str, ...]) -> Any:
    """Return `render` with only the given loops over pixels."""
    globals_ = {**vars(rendering), **dict.fromkeys(set(LOOPS) - set(loops), _nothing)}

    def without(function: Any) -> Any:
        return FunctionType(function.__code__, globals_)

    return without(rendering.renderer)(rendering.prepare_rgb, jit(without(rendering.resample_rgb)))


def compiled_loop(is_jpg: bool, loops: tuple[str, ...]) -> Callable[..., None]:
    """Return a loop over all images that runs the stages up to `last`, and the given loops of `render`."""
    render = render_of(loops)

    @entry
    def loop(last, data, addresses, sizes, heights, widths, options, layers, plan, scratch, buffers, out):
        for k in range(len(addresses)):
            stored = data[addresses[k] : addresses[k] + sizes[k]]
            height, width = heights[k], widths[k]
            pixels = as_readonly(stored)
            if is_jpg:
                if last == HEADER:
                    handle = new_handle()
                    turbojpeg._check_header(handle, stored, height, width, buffers.header)
                    destroy_handle(handle)
                    continue
                turbojpeg.decode_jpeg_rows(stored, height, width, height, buffers)
                pixels = as_readonly(buffers.pixels)
            if last >= PLAN:
                number, flip = sample(options, k, 0, 0, height, width, out.shape[0], out.shape[1], plan)
                count = collapse(plan, number, MIXUP, out.shape[0], out.shape[1], layers)
                if last >= RENDER:
                    render(pixels, width, layers, count, flip, BILINEAR, out, scratch)

    return loop


def stage_times(beton: Path, side: int, rounds: int) -> dict[str, float]:
    """Return microseconds per image of each stage, from each loop's fastest round: other load only adds time."""
    reader = Beton(beton)
    metadata = reader.column("image")
    is_jpg = bool((metadata["mode"] == 0).all())
    addresses, heights, widths = (metadata[name].astype(np.int64) for name in ("data_ptr", "height", "width"))
    sizes = np.array([reader.read("image", row).size for row in range(reader.num_samples)])
    fixed = (
        np.memmap(beton, np.uint8, mode="r"),
        addresses,
        sizes,
        heights,
        widths,
        sampling_options(number=234, inter_aug=True, flip_probability=0.5),
        new_layers(),
        new_plan_arrays(),
        _new_scratch(BILINEAR, heights.max(), widths.max(), side, side),
        _new_buffers(int(((heights + 1) * (widths + 1)).max()), 0),
        np.empty((side, side, 3), np.uint8),
    )
    variants = [compiled_loop(is_jpg, LOOPS[:number]) for number in range(len(LOOPS) + 1)]
    steps = [(variants[0], last) for last in (HEADER, DECODE, PLAN)] + [(variant, RENDER) for variant in variants]
    seconds = np.empty((rounds + 1, len(steps)))
    for times in seconds:  # the first round compiles
        for step, (loop, last) in enumerate(steps):
            started = time.perf_counter()
            loop(last, *fixed)
            times[step] = time.perf_counter() - started
    spent = np.diff(seconds[1:].min(axis=0), prepend=0) / len(addresses) * 1e6
    return dict(zip(STAGES, spent.tolist()))


@dataclass(kw_only=True)
class Options:
    """The command line."""

    beton: list[Path] = option(metavar="FILE")
    """Files of mode jpg or raw"""
    output_size: int = option(224, metavar="PX")
    """Side of the outputs"""
    rounds: int = 9
    """Rounds of measurements"""


def main() -> None:
    options = parse_options(Options, prog="benchmarks/stages.py", description=(__doc__ or "").split(":")[0])
    for beton in options.beton:
        times = stage_times(beton, options.output_size, options.rounds)
        total = sum(times.values())
        print(f"{beton.name}, {options.output_size} px: {total:.0f} us an image")
        for stage, spent in times.items():
            print(f"  {stage:22}{spent:8.1f} us {spent / total:6.1%}")


if __name__ == "__main__":
    run_program(main)
