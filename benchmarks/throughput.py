"""Measure the speed and the memory of making CropMix's images: this package, FFCV's one crop, and other peers.

    python benchmarks/throughput.py --beton jpg.beton raw.beton --json benchmarks/results/throughput.json

--data_dir FOLDER writes the photos of a folder in all ways of FILES; --beton takes existing files. Without either, jpg
and raw files are made from the photos that come with scikit-learn. JPEGs for the peers that read files are extracted
from the first jpg .beton, so all peers have the same images. A file of coefficients is compared with FFCV's one crop
from the jpg .beton of the same JPEGs.

For each size and number of workers, one process holds all loaders and measures them in turns, round by round, so that
other load affects all of them alike. A ratio compares two speeds of the same round; the table has its median and
quartiles over the rounds. A pass is timed from its sixth batch on. By then every buffer has been used once, and the
cost of starting is excluded: an epoch spreads it over a million images, but in a pass of 320 raw images it is half of
CropMix's time. A peer more than four times as slow as FFCV's one crop takes part only in every third round.

The JSON:
    date, command, machine {cpu, cores, simd, memory_gib}, versions {package: version}
    data: {mode: {file, images, mean_height, mean_width, bytes, description}}, mode as `kind_of` has it
    unavailable: {peer: reason}
    results: a list of
        peer (key of peers.PEERS or VARIANTS), label, options {of the decoder}, mode (of the .beton, or compared with),
        reads (a mode, or files), output_size px, num_workers,
        images_per_second (median), ratio {median, quartiles} to FFCV's one crop from the same .beton in the same round,
        times_authors (median; null if that did not run), seconds [a round: per image; null where it did not take part]
    first_batch: a list of {peer, mode, seconds}: from making the loader to its first batch, in a fresh process, two
        workers at most, imports not counted, compilation included
    memory: a list of {peer, mode, batch_size, mib, decode_buffers_mib}: peak resident memory of passes in batches of
        this size above what the same process has after a pass in batches of one image; and the size of the buffers
        that hold decoded JPEGs, computed. What is mapped of a raw .beton counts as resident
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ffcv_cropmix.data.images import DCT, JPG, RAW
from ffcv_cropmix.data.reader import Beton
from ffcv_cropmix.data.replacing import replacing
from ffcv_cropmix.data.sidecar import read_sidecar
from ffcv_cropmix.errors import DataError, run_program
from ffcv_cropmix.options import option, parse_options, require
from ffcv_cropmix.progress import progress
from peers import ALL, AUTHORS, CROPMIX, CUTMIX, PEERS, STOCK, VARIANTS, Job, Peer

REPOSITORY = Path(__file__).parents[1]
WARM_BATCHES, TIMED_BATCHES = 5, 10
SLOW, SLOW_ROUNDS = 4, 3
MEMORY_BATCH = 512
BUFFERS = 5  # that FFCV fills in turn: batches_ahead + 2
PACKAGES = ("ffcv", "numba", "numpy", "torch", "torchvision", "pillow", "opencv-python", "spdl", "nvidia-dali-cuda130")
MODES = {JPG: "jpg", RAW: "raw", DCT: "dct"}
FILES = {  # --data_dir: name and options of write_dataset.py
    "jpg": "--write_mode jpg",
    "dct_1": "--write_mode dct",
    "dct_-1": "--write_mode dct --dct_level -1",
    "jpg_reencoded": "--write_mode jpg --reencode",
    "dct_1_reencoded": "--write_mode dct --reencode",
    "dct_-1_reencoded": "--write_mode dct --dct_level -1 --reencode",
    "raw": "--write_mode raw",
}


class Case(NamedTuple):
    """A peer, and the .beton that its images come from."""

    name: str
    mode: str


def build_betons(folder: Path, count: int = 320) -> list[Path]:
    """Write jpg.beton and raw.beton of photos at 500 px, cut out of the two that come with scikit-learn."""
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    random = np.random.default_rng(0)
    for k in range(count):
        photo = photos[k % 2]
        share, ratio = random.uniform(0.6, 1), (4 / 3, 3 / 4)[k % 4 // 3]
        height = int(min(photo.height, photo.width / ratio) * share)
        width = int(height * ratio)
        left, top = (int(random.integers(whole - part + 1)) for whole, part in zip(photo.size, (width, height)))
        size = (500, 375) if ratio > 1 else (375, 500)
        target = folder / "photos" / ("china", "flower")[k % 2] / f"{k:03}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        photo.crop((left, top, left + width, top + height)).resize(size, Image.Resampling.BICUBIC).save(target)
    return write_betons(folder / "photos", folder, ("jpg", "raw"))


def write_betons(photos: Path, folder: Path, names: Iterable[str] = FILES) -> list[Path]:
    """Write photos into the files with these names in FILES."""
    betons = []
    for name in names:
        betons.append(folder / f"{name}.beton")
        options = ["--data_dir", str(photos.resolve()), *FILES[name].split(), "--write_path", str(betons[-1])]
        subprocess.run([sys.executable, REPOSITORY / "write_dataset.py", *options], check=True, cwd=REPOSITORY)
    return betons


def kind_of(beton: Path) -> str:
    """Return how a .beton was written: jpg, "dct 1", "dct -1", raw, or, if its sidecar says so, "jpg reencoded"."""
    sidecar, mode = read_sidecar(beton), mode_of(beton)
    options = sidecar.options if sidecar else {}
    level = f" {options.get('dct_level', 1)}" if mode == "dct" else ""
    return f"{mode}{level}{' reencoded' if mode != 'raw' and options.get('reencode') else ''}"


def stock_mode(kind: str) -> str:
    """Return the kind of file of FFCV's one crop that a kind is compared with: JPEGs for coefficients."""
    return re.sub(r"^dct -?\d+", "jpg", kind)


def mode_of(beton: Path) -> str:
    """Return the mode of all images of a .beton: jpg, dct or raw."""
    modes = np.unique(Beton(beton).column("image")["mode"])
    if len(modes) != 1:
        raise DataError(f"{beton}: its images are some jpg, some raw: write it with --write_mode jpg, dct or raw")
    return MODES[int(modes[0])]


def describe(beton: Path, description: str | None) -> dict[str, Any]:
    """Return the JSON's entry about a .beton."""
    reader = Beton(beton)
    metadata = reader.column("image")
    return {
        "file": beton.name,
        "images": len(metadata),
        "mean_height": float(metadata["height"].mean()),
        "mean_width": float(metadata["width"].mean()),
        "bytes": int(reader.alloc_table["size"].sum()),  # not the file's: that is a multiple of its page, 8 MiB
        "description": description,
    }


def extract_jpegs(beton: Path, folder: Path) -> list[Path]:
    """Write each sample's JPEG into a file, in the order of the rows."""
    reader = Beton(beton)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{row:06}.jpg" for row in range(reader.num_samples)]
    for row, file in enumerate(files):
        file.write_bytes(reader.read("image", row).data)
    return files


def repeated(count: int, least: int) -> list[int]:
    """Return the rows 0 to count - 1, repeated until there are at least `least`."""
    return list(range(count)) * -(-least // count)


def seconds_per_image(passes: Iterable[Any]) -> float:
    """Measure one pass from its sixth batch on; return seconds per image."""
    images = 0
    started = 0.0
    for number, batch in enumerate(passes, 1):
        if number > WARM_BATCHES:
            images += len(batch)
        elif number == WARM_BATCHES:
            started = time.perf_counter()
    return (time.perf_counter() - started) / images


def measure(jobs: dict[Case, Job], rounds: int, title: str) -> dict[Case, list[float | None]]:
    """Measure seconds per image of each case in each round, None if it did not take part, after a pass to compile."""
    loaders = {case: ALL[case.name].make(job) for case, job in jobs.items()}
    first: dict[Case, float] = {}
    # Peers with processes come first: they fork, which they should do before FFCV starts threads.
    order = sorted(loaders, key=lambda case: ALL[case.name].reads != ("files",))
    for case in progress(order, len(order), f"{title}: first pass", "peers"):
        first[case] = seconds_per_image(loaders[case])
    seconds: dict[Case, list[float | None]] = {case: [] for case in loaders}
    for number in progress(range(rounds), rounds, title, "rounds"):
        for case, passes in loaders.items():
            slow = first[case] > SLOW * first[Case(STOCK, stock_mode(case.mode))]
            taken = not slow or number % SLOW_ROUNDS == 0
            seconds[case].append(seconds_per_image(passes) if taken else None)
    return seconds


def speedups(of: Sequence[float | None], to: Sequence[float | None]) -> list[float]:
    """Return the ratio of speeds in each round that has both."""
    return [b / a for a, b in zip(of, to) if a is not None and b is not None]


def results(seconds: dict[Case, list[float | None]], side: int, num_workers: int) -> list[dict[str, Any]]:
    """Return the JSON's entries about the cases of one size and number of workers."""
    entries = []
    for case, times in seconds.items():
        peer = ALL[case.name]
        ratio = speedups(times, seconds[Case(STOCK, stock_mode(case.mode))])
        times_authors = speedups(times, next((t for c, t in seconds.items() if c.name == AUTHORS), []))
        entries.append(
            {
                "peer": case.name,
                "label": peer.label,
                "options": peer.options,
                "mode": case.mode,
                "reads": "files" if peer.reads == ("files",) else case.mode,
                "output_size": side,
                "num_workers": num_workers,
                "images_per_second": float(np.median([1 / t for t in times if t is not None])),
                "ratio": {"median": float(np.median(ratio)), "quartiles": np.percentile(ratio, [25, 75]).tolist()},
                "times_authors": float(np.median(times_authors)) if times_authors else None,
                "seconds": times,
            }
        )
    return entries


def first_batch_seconds(name: str, job: Job) -> float:
    """Measure the seconds from making a loader to its first batch, in this process, which should be a fresh one."""
    started = time.perf_counter()
    for _ in ALL[name].make(replace(job, indices=job.indices[: job.batch_size])):
        pass
    return time.perf_counter() - started


def _resident(field: str) -> float:
    """Read VmRSS or VmHWM of this process, MiB."""
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return int(match[1]) / 1024


def peak_mib(name: str, job: Job) -> float:
    """Measure the peak resident memory of a pass above that after a pass in batches of one, MiB."""
    for _ in ALL[name].make(replace(job, batch_size=1, indices=sorted(set(job.indices)))):
        pass
    gc.collect()
    before = _resident("VmRSS")
    passes = ALL[name].make(job)
    for _ in passes:  # compiles, which takes memory too
        pass
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    for _ in passes:
        pass
    return _resident("VmHWM") - before


def decode_buffers_mib(name: str, job: Job, mode: str) -> float:
    """Compute the size of the buffers of decoded JPEGs, MiB.

    FFCV has a buffer of the largest size for each image of each batch, this package has one for each thread.
    """
    if mode == "raw":
        return 0.0
    metadata = Beton(job.beton).column("image")
    height, width = int(metadata["height"].max()), int(metadata["width"].max())
    if name == STOCK:
        return BUFFERS * job.batch_size * 3 * height * width / 2**20
    planes = 2 if mode.startswith("dct") else 1  # and the pixels made of them
    return job.num_workers * 3 * planes * (height + 1) * (width + 1) / 2**20


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def machine() -> dict[str, Any]:
    """Return the JSON's entry about this machine."""
    information = Path("/proc/cpuinfo").read_text()
    found = re.search(r"^model name\s*: (.*)$", information, re.M)
    flags = set((re.search(r"^flags\s*: (.*)$", information, re.M) or [""])[0].split())
    return {
        "cpu": found[1] if found else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "simd": sorted(flags & {"sse4_2", "avx", "avx2", "avx512f", "avx512bw", "avx512vbmi"}),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the compared packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def print_table(report: dict[str, Any]) -> None:
    """Print a line for each result."""
    print(f"{'':34} {'from':6}{'px':>4}{'workers':>8}{'images/s':>10}{'ratio':>8} {'quartiles':14}{'authors x':>9}")
    for result in report["results"]:
        low, high = result["ratio"]["quartiles"]
        authors = f"{result['times_authors']:9.1f}" if result["times_authors"] else ""
        print(
            f"{result['peer']:34} {result['reads']:6}{result['output_size']:4}{result['num_workers']:8}"
            f"{result['images_per_second']:10,.0f}{result['ratio']['median']:8.2f} [{low:.2f}, {high:.2f}]  {authors}"
        )
    for entry in report["first_batch"]:
        print(f"{entry['peer']:34} {entry['mode']:6} first batch after {entry['seconds']:.1f} s")
    for entry in report["memory"]:
        print(
            f"{entry['peer']:34} {entry['mode']:6} batches of {entry['batch_size']}: {entry['mib']:,.0f} MiB; "
            f"buffers of decoded JPEGs {entry['decode_buffers_mib']:,.1f} MiB"
        )
    for name, reason in report["unavailable"].items():
        print(f"{name:34} {reason}")


@dataclass(kw_only=True)
class Options:
    """The command line."""

    beton: list[Path] | None = option(None, metavar="FILE")
    """Files with the same images, each written in another way"""
    data_dir: Path | None = option(None, metavar="FOLDER")
    """Photos in a folder per class; they are written in all ways"""
    description: str | None = option(None, metavar="TEXT")
    """What the images are, for the tables"""
    peers: list[str] | None = option(None, choices=[*PEERS, *CUTMIX, "variants"], metavar="PEER")
    """What to measure, of {choices}; default: all"""
    output_size: list[int] = option([224, 160], metavar="PX")
    """Sides of the outputs"""
    num_workers: list[int] = option([1, 2])
    """Numbers of threads or processes"""
    batch_size: int = 64
    """Images per batch"""
    rounds: int = 9
    """Rounds of measurements"""
    json: Path | None = option(None, metavar="OUT")
    """File for the results"""

    def __post_init__(self) -> None:
        for name in ("output_size", "num_workers", "batch_size", "rounds"):
            require(np.min(getattr(self, name)) >= 1, name, ">= 1", getattr(self, name))
        cores = len(os.sched_getaffinity(0))
        require(max(self.num_workers) <= cores, "num_workers", f"<= {cores}, the cores", self.num_workers)
        for beton in self.beton or ():
            require(beton.is_file(), "beton", "a file", str(beton))
        require(not (self.data_dir and self.beton), "data_dir", "given without beton", str(self.data_dir))
        require(self.data_dir is None or self.data_dir.is_dir(), "data_dir", "a folder", str(self.data_dir))


def chosen_peers(names: Sequence[str] | None) -> dict[str, Peer]:
    """Return the peers of the command line, and the peers that they are compared with."""
    if names is None:
        return ALL
    return {
        name: peer
        for name, peer in ALL.items()
        if name in (*names, STOCK) or (name in VARIANTS and "variants" in names)
    }


def run(options: Options, folder: Path) -> dict[str, Any]:
    """Measure; write the JSON after each setting."""
    betons: dict[str, Path] = {}
    made = write_betons(options.data_dir, folder) if options.data_dir else options.beton or build_betons(folder)
    for beton in made:
        if betons.setdefault(kind_of(beton), beton) != beton:
            raise DataError(f"{beton}: a second file of {kind_of(beton)} images: give one of each kind")
    for kind, beton in betons.items():
        if stock_mode(kind) not in betons:
            raise DataError(f"{beton}: is compared with a file of {stock_mode(kind)} images: give that, too")
    jpegs = next((kind for kind in betons if kind.startswith("jpg")), None)
    files = extract_jpegs(betons[jpegs], folder / "jpeg") if jpegs else []
    peers = chosen_peers(options.peers)
    unavailable = {name: reason for name, peer in peers.items() if (reason := peer.unavailable())}
    if not files:
        unavailable |= {name: "needs a jpg .beton" for name, peer in peers.items() if peer.reads == ("files",)}
    cases = [
        Case(name, mode)
        for mode in betons
        for name, peer in peers.items()
        if name not in unavailable and (mode.split()[0] in peer.reads or (peer.reads == ("files",) and mode == jpegs))
    ]
    report: dict[str, Any] = {
        "date": date.today().isoformat(),
        "command": shlex.join(["python", "benchmarks/throughput.py", *(Path(word).name for word in sys.argv[1:])]),
        "machine": machine(),
        "versions": versions(),
        "data": {mode: describe(beton, options.description) for mode, beton in betons.items()},
        "unavailable": unavailable,
        "results": [],
        "first_batch": [],
        "memory": [],
    }

    def job_of(mode: str, side: int, num_workers: int, batch_size: int) -> Job:
        batches = WARM_BATCHES + TIMED_BATCHES
        indices = repeated(report["data"][mode]["images"], batches * batch_size)
        return Job(betons[mode], indices, files, side, num_workers, batch_size)

    for mode, name in product(betons, (CROPMIX, STOCK)):
        if name in peers and mode.split()[0] in peers[name].reads:
            job = job_of(mode, max(options.output_size), max(options.num_workers), options.batch_size)
            entry: dict[str, Any] = {"peer": name, "mode": mode}
            report["first_batch"].append({**entry, "seconds": in_fresh_process(first_batch_seconds, name, job)})
            job = replace(
                job, batch_size=MEMORY_BATCH, indices=repeated(report["data"][mode]["images"], BUFFERS * MEMORY_BATCH)
            )
            entry |= {"batch_size": MEMORY_BATCH, "decode_buffers_mib": decode_buffers_mib(name, job, mode)}
            report["memory"].append({**entry, "mib": in_fresh_process(peak_mib, name, job)})
    for side, num_workers in product(options.output_size, options.num_workers):
        jobs = {case: job_of(case.mode, side, num_workers, options.batch_size) for case in cases}
        title = f"{side} px, {num_workers} worker{'s'[: num_workers > 1]}"
        seconds = in_fresh_process(measure, jobs, options.rounds, title)
        report["results"] += results(seconds, side, num_workers)
        if options.json:
            with replacing(options.json) as (file,):
                file.write((json.dumps(report, indent=1) + "\n").encode())
    return report


def main() -> None:
    options = parse_options(Options, prog="benchmarks/throughput.py", description=(__doc__ or "").split("\n")[0])
    with tempfile.TemporaryDirectory() as folder:
        print_table(run(options, Path(folder)))


if __name__ == "__main__":
    run_program(main)
