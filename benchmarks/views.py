"""Two views from one decode against FFCV's two pipelines: python benchmarks/views.py FILE.beton [--json OUT]

One image of each sample, two of one decode (`MultiViewRGBImageDecoder`), and two by FFCV's own means, a pipeline for
each, which decodes twice. Interleaved in one process, passes over the same file; a first pass, which compiles, is left
out.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ffcv.loader
from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
from ffcv.pipeline import PipelineSpec
from ffcv.transforms import ToTensor

from ffcv_cropmix import CropMixRGBImageDecoder, Loader, MultiViewRGBImageDecoder, ToTorchViews, ViewSpec
from ffcv_cropmix.data.replacing import replacing
from ffcv_cropmix.errors import Parser, run_program

SIDE = (224, 224)  # px
BATCH = 32


def one(path: str, workers: int) -> Any:
    decoder = CropMixRGBImageDecoder(SIDE, scale=0.08, number=1)
    return Loader(path, BATCH, workers, pipelines={"image": [decoder, ToTensor()], "label": None})


def two(path: str, workers: int) -> Any:
    decoder = MultiViewRGBImageDecoder([ViewSpec(SIDE), ViewSpec(SIDE)])
    return Loader(path, BATCH, workers, pipelines={"image": [decoder, ToTorchViews()], "label": None})


def stock(path: str, workers: int) -> Any:
    first, second = (RandomResizedCropRGBImageDecoder(SIDE) for _ in range(2))
    pipelines = {
        "image": PipelineSpec("image", first, [ToTensor()]),
        "second": PipelineSpec("image", second, [ToTensor()]),
        "label": None,
    }
    return ffcv.loader.Loader(path, BATCH, workers, os_cache=True, pipelines=pipelines)


PEERS: dict[str, Callable[[str, int], Any]] = {
    "one view": one,
    "two views of one decode": two,
    "two views, FFCV's two pipelines": stock,
}


def main() -> None:
    parser = Parser(prog="benchmarks/views.py", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("beton", help="JPEG, with the fields image and label")
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--num_workers", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="write the medians there")
    options = parser.parse_args()

    loaders = {name: make(options.beton, options.num_workers) for name, make in PEERS.items()}
    times: dict[str, list[float]] = {name: [] for name in PEERS}
    for round_ in range(options.rounds + 1):
        for name, loader in loaders.items():
            started = time.perf_counter()
            images = sum(len(batch[0][0] if isinstance(batch[0], tuple) else batch[0]) for batch in loader)
            if round_:
                times[name].append((time.perf_counter() - started) / images)
    base = times["one view"]
    results = {}
    for name, of in times.items():
        cost = statistics.median(a / b for a, b in zip(of, base))
        results[name] = {"samples_per_second": 1 / statistics.median(of), "cost": cost}
        print(f"{name:32} {1 / statistics.median(of):7,.0f} samples/s, {cost:.2f} times the time of one view")
    if options.json:
        with replacing(options.json) as (file,):
            file.write((json.dumps(results, indent=2) + "\n").encode())


if __name__ == "__main__":
    run_program(main)
