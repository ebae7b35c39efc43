"""Convert images to a .beton file with the fields image and label. Class names go to FILE.beton.json.

Example: ffcv-cropmix convert --dataset imagefolder --data_dir imagenet --split train --write_path train.beton
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from .data.convert import Converted, convert, estimate, skipped_path
from .data.encode import EncodeOptions
from .data.folders import listed
from .data.images import Source
from .data.replacing import followed
from .data.sidecar import number_as, sidecar_path
from .data.sources import DATASETS, open_source
from .errors import run_program
from .options import inline, option, parse_options, require

_SHOWN = 10  # classes without images


@dataclass(kw_only=True)
class Options:
    """The command line of `ffcv-cropmix convert`."""

    dataset: str = option("imagefolder", choices=DATASETS, metavar="NAME")
    """Layout of --data_dir: {choices}; digits needs no --data_dir"""
    split: str = "train"
    """train or val; another name works where files and folders are named after the split"""
    data_dir: Path | None = None
    """imagefolder: the folder with a folder per class; webdataset: .tar files, or 'PATTERN'; csv, beton: a file"""
    labels: Path | None = None
    """imagenet_val: file of the labels, WordNet ids or the devkit's numbers beside meta.mat"""
    classes_of: Path | None = None
    """FILE.beton: number the classes as in that file, by name"""
    write_path: Path = option(metavar="FILE.beton")
    """The .beton file to write"""
    encode: EncodeOptions = inline()
    """How images are stored"""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do if an image cannot be converted; skip: list it in FILE.beton.skipped.csv and go on"""
    num_workers: int | None = None
    """Worker processes; default: one per core"""
    chunk_size: int = 100
    """Images that a worker takes at a time, at most"""
    subset: int = -1
    """Convert the first so many images only; -1: all"""
    dry_run: bool = False
    """Write nothing; estimate the size and the time"""

    def __post_init__(self) -> None:
        needs_folder = self.dataset != "digits"
        require(not needs_folder or self.data_dir is not None, "data_dir", f"given for {self.dataset}", self.data_dir)
        flat = self.dataset == "imagenet_val"
        require(not flat or self.labels is not None, "labels", "given for imagenet_val", self.labels)
        require(flat or self.labels is None, "labels", "left out except for imagenet_val", str(self.labels))
        require(self.num_workers is None or self.num_workers >= 1, "num_workers", ">= 1", self.num_workers)
        require(self.chunk_size >= 1, "chunk_size", ">= 1", self.chunk_size)
        require(self.subset == -1 or self.subset >= 1, "subset", ">= 1, or -1", self.subset)
        given = str(self.write_path)
        require(self.write_path.parent.is_dir(), "write_path", "a file in a folder that exists", given)
        self.write_path = followed(self.write_path)
        files = (self.write_path, sidecar_path(self.write_path), skipped_path(self.write_path))
        require(not any(map(os.path.isdir, files)), "write_path", "a file, as must be the .json beside it", given)


def main(arguments: Sequence[str] | None = None, prog: str = "python -m ffcv_cropmix.convert") -> None:
    """Run the command line (default: `sys.argv[1:]`)."""
    options = parse_options(Options, arguments, prog=prog, description=(__doc__ or "").partition("\n\n")[0])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that nothing is left behind
    Image.MAX_IMAGE_PIXELS = None  # large images are welcome
    started = time.perf_counter()
    source = open_source(options.dataset, options.data_dir, options.split, options.labels, options.on_error)
    if options.subset > 0:
        source = replace(source, labels=source.labels[: options.subset], images=source.images[: options.subset])
    if options.classes_of:
        source = number_as(source, options.classes_of)
    workers = options.num_workers or len(os.sched_getaffinity(0))
    if options.dry_run:
        _report_estimate(options, source, workers)
        return
    done = convert(
        source,
        options.write_path,
        options.encode,
        on_error=options.on_error,
        num_workers=workers,
        chunk_size=options.chunk_size,
    )
    _report(options, source, done, time.perf_counter() - started)


def _report(options: Options, source: Source, done: Converted, seconds: float) -> None:
    """Print what was written, and what was not."""
    path = options.write_path
    print(
        f"{path}: {len(done.rows):,} images of {len(source.classes):,} classes, {done.size / 1e6:,.1f} MB, "
        f"{seconds:.0f} s"
    )
    if done.kept:
        how = "without loss, as their coefficients" if options.encode.write_mode == "dct" else "unchanged"
        print(f"{done.kept:,} JPEG files are stored {how}")
    if done.damaged:
        print(f"{done.damaged:,} JPEG files are encoded again: they are damaged, but could be decoded")
    if done.other:
        print(f"{done.other:,} JPEG files are encoded again: mode dct cannot reproduce their pixels")
    if done.skipped:
        print(f"{len(done.skipped):,} images were skipped: {skipped_path(path)} lists them")
    _report_left_out(source, done.rows)


def _report_left_out(source: Source, rows: Sequence[int]) -> None:
    """Print what the source contains beside these rows, and the classes without images."""
    if source.left_out:
        print(f"left out: {listed(source.left_out)}")
    empty = np.flatnonzero(np.bincount(source.labels[rows], minlength=len(source.classes)) == 0)
    if len(empty):
        names = ", ".join(" ".join(source.classes[label].split()) for label in empty[:_SHOWN])
        print(f"{len(empty):,} classes have no images: {names}{', ...' * (len(empty) > _SHOWN)}")


def _report_estimate(options: Options, source: Source, workers: int) -> None:
    """Print what a conversion would write, from a sample of the images."""
    path = options.write_path
    guess = estimate(source, options.encode)
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
    _report_left_out(source, range(len(source)))


if __name__ == "__main__":
    run_program(main)
