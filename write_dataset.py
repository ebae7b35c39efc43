"""Convert images to a .beton file.

python write_dataset.py --dataset imagefolder --data_dir imagenet --split train --write_path train.beton
python write_dataset.py --dataset digits --split val --write_path digits_val.beton
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
from backports.zstd import CompressionParameter
from PIL import Image

from ffcv_cropmix.data.convert import convert, estimate, skipped_path
from ffcv_cropmix.data.encode import EncodeOptions
from ffcv_cropmix.data.folders import listed
from ffcv_cropmix.data.images import Source
from ffcv_cropmix.data.replacing import followed
from ffcv_cropmix.data.sidecar import number_as, sidecar_path
from ffcv_cropmix.data.sources import DATASETS, open_source
from ffcv_cropmix.errors import Parser, run_program, usage_error

_SHOWN = 10  # classes without images


def parse_arguments() -> argparse.Namespace:
    """The command line; a wrong option ends the program with one line and status 2."""
    parser = Parser(
        description="Convert images to a .beton file with the fields image and label; class names go to FILE.json.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add, show = parser.add_argument, argparse.SUPPRESS  # SUPPRESS: no default to show
    add("--dataset", choices=DATASETS, default="imagefolder", help="what --data_dir holds; digits needs none")
    add("--split", default="train", help="train or val; or another, if files and folders are named after it")
    where = "imagefolder: a folder for each class; webdataset: .tar files, or 'PATTERN'; csv, beton: a file"
    add("--data_dir", type=Path, help=where, default=show)
    add("--labels", type=Path, help="imagenet_val: WordNet ids, or the devkit's numbers beside meta.mat", default=show)
    add("--classes_of", type=Path, help="FILE.beton: number the classes as in that file, by name", default=show)
    add("--write_path", type=Path, required=True, help="the .beton file", default=show)
    add("--max_resolution", type=int, default=500, help="reduce the longer side to it, px; 0: leave it")
    modes = ("raw", "jpg", "dct", "smart", "proportion")
    meaning = "dct: what jpg stores, as coefficients; smart: jpg above the threshold; proportion: jpg at random"
    add("--write_mode", choices=modes, default="jpg", help=meaning)
    add("--dct_level", type=int, default=1, help="dct: zstd's level; negative: larger, and faster to read")
    add(
        "--smart_threshold", type=int, help="smart: bytes of pixels above which an image is stored as jpg", default=show
    )
    add("--compress_probability", type=float, default=0.5, help="proportion: share of jpg")
    add("--jpeg_quality", type=int, default=90, help="0 to 100")
    add(
        "--reencode",
        action="store_true",
        help="encode all anew, also JPEG files that could be stored as they are",
        default=show,
    )
    add("--exif_transpose", action="store_true", help="turn images as their EXIF orientation says", default=show)
    add(
        "--on_error",
        choices=("raise", "skip"),
        default="raise",
        help="when an image cannot be converted; skip: FILE.skipped.csv names it",
    )
    add("--num_workers", type=int, help="processes; by default as many as there are cores", default=show)
    add("--chunk_size", type=int, default=100, help="images that a process takes at a time, at most")
    add("--subset", type=int, default=-1, help="the first so many images only; -1: all")
    add("--seed", type=int, default=0, help="of --write_mode proportion")
    add("--dry_run", action="store_true", help="write nothing: say how much it would be", default=show)
    flags = dict.fromkeys(("reencode", "exif_transpose", "dry_run"), False)
    others = dict.fromkeys(("data_dir", "labels", "classes_of", "smart_threshold", "num_workers"))
    given = parser.parse_args(namespace=argparse.Namespace(**flags, **others))

    def require(valid: bool, option: str, rule: str) -> None:
        if not valid:
            usage_error(f"--{option} {rule}, got {getattr(given, option)}")

    require(given.dataset == "digits" or given.data_dir is not None, "data_dir", f"is needed for {given.dataset}")
    flat = given.dataset == "imagenet_val"
    require(not flat or given.labels is not None, "labels", "FILE is needed for imagenet_val")
    require(flat or given.labels is None, "labels", "is for imagenet_val only")
    require(given.max_resolution >= 0, "max_resolution", "is at least 0")
    smart = given.write_mode == "smart"
    require(not smart or given.smart_threshold is not None, "smart_threshold", "BYTES is needed for --write_mode smart")
    require((given.smart_threshold or 0) >= 0, "smart_threshold", "is at least 0")
    require(0 <= given.compress_probability <= 1, "compress_probability", "is in [0, 1]")
    least, most = CompressionParameter.compression_level.bounds()
    require(least <= given.dct_level <= most, "dct_level", f"is in {least} to {most}")
    require(0 <= given.jpeg_quality <= 100, "jpeg_quality", "is in 0 to 100")
    require(given.num_workers is None or given.num_workers >= 1, "num_workers", "is at least 1")
    require(given.chunk_size >= 1, "chunk_size", "is at least 1")
    require(given.subset == -1 or given.subset >= 1, "subset", "is at least 1, or -1")
    require(given.write_path.parent.is_dir(), "write_path", "is a file in a folder that exists")
    given.write_path = followed(given.write_path)
    beside = (given.write_path, sidecar_path(given.write_path), skipped_path(given.write_path))
    require(not any(map(os.path.isdir, beside)), "write_path", "is a file, and so is the .json beside it")
    return given


def main() -> None:
    given = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that nothing is left behind
    Image.MAX_IMAGE_PIXELS = None  # large images are welcome
    started = time.perf_counter()
    source = open_source(given.dataset, given.data_dir, given.split, given.labels, given.on_error)
    if given.subset > 0:
        source = replace(source, labels=source.labels[: given.subset], images=source.images[: given.subset])
    if given.classes_of:
        source = number_as(source, given.classes_of)
    options = EncodeOptions(
        write_mode=given.write_mode,
        max_resolution=given.max_resolution,
        smart_threshold=given.smart_threshold or 0,
        compress_probability=given.compress_probability,
        jpeg_quality=given.jpeg_quality,
        dct_level=given.dct_level,
        seed=given.seed,
        exif_transpose=given.exif_transpose,
        reencode=given.reencode,
    )
    workers = given.num_workers or len(os.sched_getaffinity(0))
    if given.dry_run:
        say_what_would_be_written(given.write_path, source, options, workers)
        return
    done = convert(
        source, given.write_path, options, on_error=given.on_error, num_workers=workers, chunk_size=given.chunk_size
    )
    print(
        f"{given.write_path}: {len(done.rows):,} images of {len(source.classes):,} classes, {done.size / 1e6:,.1f} MB, "
        f"{time.perf_counter() - started:.0f} s"
    )
    if done.kept:
        how = "without loss, as their coefficients" if given.write_mode == "dct" else "as they are"
        print(f"{done.kept:,} JPEG files are stored {how}")
    if done.damaged:
        print(f"{done.damaged:,} JPEG files are encoded anew: they are damaged, but could be decoded")
    if done.other:
        print(f"{done.other:,} JPEG files are encoded anew: dct is for gray and YCbCr of 8 bits")
    if done.skipped:
        print(f"{len(done.skipped):,} images were skipped: {skipped_path(given.write_path)} names them")
    say_what_is_not_taken(source, done.rows)


def say_what_is_not_taken(source: Source, rows: Sequence[int]) -> None:
    """What was found and is not taken, and the classes that so have no images."""
    if source.left_out:
        print(f"left out: {listed(source.left_out)}")
    empty = np.flatnonzero(np.bincount(source.labels[rows], minlength=len(source.classes)) == 0)
    if len(empty):
        names = ", ".join(" ".join(source.classes[label].split()) for label in empty[:_SHOWN])
        print(f"{len(empty):,} classes have no images: {names}{', ...' * (len(empty) > _SHOWN)}")


def say_what_would_be_written(path: Path, source: Source, options: EncodeOptions, workers: int) -> None:
    guess = estimate(source, options)
    for name, reason in (*source.skipped, *guess.failed):
        print(f"{name} cannot be converted: {reason}", file=sys.stderr)
    print(
        f"{path} would have {len(source):,} images of {len(source.classes):,} classes and about "
        f"{guess.size / 1e6:,.1f} MB ({shutil.disk_usage(path.parent).free / 1e6:,.1f} MB are free), and take about "
        f"{timedelta(seconds=round(guess.seconds / workers))} with {workers} processes: of {guess.tried} images tried, "
        f"{len(guess.failed)} cannot be converted"
    )
    if source.skipped:
        print(f"{len(source.skipped):,} more would be skipped")
    say_what_is_not_taken(source, range(len(source)))


if __name__ == "__main__":
    run_program(main)
