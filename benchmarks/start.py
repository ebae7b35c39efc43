"""Measure the start time and the memory of this package's and FFCV's loader, for small and large files.

    python benchmarks/start.py --json benchmarks/results/start.json

Files of tiny raw images (8 x 8 px) are written into --folder: 14 million take 3.4 GB. Each measurement runs in its own
process; the two packages take turns, and the table has medians over the rounds. Compiled code is kept on disk: "first
process" starts without it, "second process" with the code that the first one has compiled.

Importing FFCV runs numba's compiler; importing this package does not. The benchmark starts the compiler before
construction and counts that as import, so that construction means the same for both.

The JSON: date, command, machine, versions, results: a list of
    package (ffcv_cropmix, ffcv), rows, import_seconds, import_megabytes (PSS of the process after the import),
    construction_seconds, first_batch_seconds {first, second process}, megabytes (PSS that construction adds),
    peak_megabytes (resident, above what was resident before), and megabytes_of_two (the PSS that two processes add
    together)
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

SIDE, CLASSES, PAGE = 8, 1000, 2**23
PACKAGES = ("ffcv_cropmix", "ffcv")
ROWS = (10_000, 1_281_167, 14_000_000)


def write_beton(path: Path, rows: int) -> Path:
    """Write a .beton of raw images, in blocks of a page; images differ only in their level."""
    import numpy as np
    from ffcv.fields import IntField, RGBImageField
    from ffcv.types import ALLOC_TABLE_TYPE, CURRENT_VERSION, FieldDescType, HeaderType, get_metadata_type

    fields = {"image": RGBImageField(write_mode="raw"), "label": IntField()}
    descriptors = np.zeros(len(fields), FieldDescType)
    for descriptor, (name, field), kind in zip(descriptors, fields.items(), (2, 1)):
        descriptor["type_id"], descriptor["arguments"] = kind, field.to_binary()[0]
        descriptor["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
    metadata = np.zeros(rows, get_metadata_type(list(fields.values())))
    size = 3 * SIDE * SIDE
    front = HeaderType.itemsize + descriptors.nbytes + metadata.nbytes
    page, place = np.divmod(np.arange(rows), PAGE // size)
    addresses = (front // PAGE + 1 + page) * PAGE + place * size
    end = int(addresses[-1]) + size
    metadata["f0"]["mode"], metadata["f0"]["width"], metadata["f0"]["height"] = 1, SIDE, SIDE
    metadata["f0"]["data_ptr"], metadata["f1"] = addresses, np.arange(rows) % CLASSES
    table = np.zeros(rows, ALLOC_TABLE_TYPE)
    table["sample_id"], table["ptr"], table["size"] = np.arange(rows), addresses, size
    with path.open("wb") as file:
        file.write(np.array([(CURRENT_VERSION, len(fields), PAGE, rows, end)], HeaderType).tobytes())
        file.write(descriptors.tobytes())
        metadata.tofile(file)
        for start in range(0, rows, PAGE // size):
            file.seek(int(addresses[start]))
            levels = np.arange(start, min(start + PAGE // size, rows)) % 251
            np.repeat(levels.astype(np.uint8), size).tofile(file)
        table.tofile(file)
    return path


def _memory(name: str) -> float:
    """Read a line about the process's memory, MB: Pss from smaps_rollup, VmRSS or VmHWM from status."""
    text = Path("/proc/self", "smaps_rollup" if name == "Pss" else "status").read_text()
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    assert found
    return int(found[1]) * 1024 / 1e6


def measure(package: str, beton: str, hold: bool) -> None:
    """Make a loader and its first batch, in a separate process; print a JSON line."""
    started = time.perf_counter()
    if package == "ffcv":
        from ffcv.fields.rgb_image import CenterCropRGBImageDecoder as Decoder
        from ffcv.loader import Loader
    else:
        from ffcv_cropmix import CropMixRGBImageDecoder as Decoder
        from ffcv_cropmix import Loader
    import numba
    import numpy as np
    from ffcv.fields.basics import IntDecoder
    from ffcv.transforms import ToTensor

    numba.njit(lambda values: values.sum())(np.ones(1))
    imported = time.perf_counter()
    pss, resident = _memory("Pss"), _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    if package == "ffcv":
        decoder = Decoder((SIDE, SIDE), ratio=1.0)
    else:
        decoder = Decoder((SIDE, SIDE))
    pipelines = {"image": [decoder, ToTensor()], "label": [IntDecoder(), ToTensor()]}
    begun = time.perf_counter()
    loader = Loader(beton, 256, num_workers=1, pipelines=pipelines)
    made = time.perf_counter()
    result = {
        "import_seconds": imported - started,
        "import_megabytes": pss,
        "construction_seconds": made - begun,
        "megabytes": _memory("Pss") - pss,
        "peak_megabytes": _memory("VmHWM") - resident,
    }
    if hold:
        print("ready", flush=True)
        sys.stdin.readline()
        result["megabytes"] = _memory("Pss") - pss
    else:
        for _ in loader:
            break
        result["first_batch_seconds"] = time.perf_counter() - made
    print(json.dumps(result), flush=True)
    if hold:
        sys.stdin.readline()


def _process(package: str, beton: Path, cache: str, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--measure", package, str(beton), *options]
    environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
    return subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _one(package: str, beton: Path, cache: str) -> dict[str, float]:
    process = _process(package, beton, cache)
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the measurement of {package} with {beton} failed")
    return json.loads(out.splitlines()[-1])


def _two(package: str, beton: Path, cache: str) -> float:
    """Return the PSS that loaders in two processes add, MB."""
    both = [_process(package, beton, cache, "--hold") for _ in range(2)]
    total = 0.0
    for command in ("", "\n", "\n"):  # both are ready, both measure, both end
        for process in both:
            assert process.stdin and process.stdout
            process.stdin.write(command)
            process.stdin.flush()
        for process in both:
            assert process.stdout
            line = process.stdout.readline()
            total += json.loads(line)["megabytes"] if line.startswith("{") else 0
    return total


def run(folder: Path, rows: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """Measure both packages for a file with the given number of rows."""
    from ffcv_cropmix.progress import progress

    results = []
    for count in rows:
        beton = write_beton(folder / f"{count}.beton", count)
        found: dict[str, list[dict[str, float]]] = {package: [] for package in PACKAGES}
        for _ in progress(range(rounds), rounds, f"{count:,} rows", "rounds"):
            for package, measured in found.items():
                with tempfile.TemporaryDirectory() as cache:
                    first = _one(package, beton, cache)
                    second = _one(package, beton, cache)
                    two = _two(package, beton, cache)
                second["first_process"] = first["first_batch_seconds"]
                measured.append({**second, "megabytes_of_two": two})
        for package, measured in found.items():
            medians = {name: statistics.median(one[name] for one in measured) for name in measured[0]}
            batches = {"first": medians.pop("first_process"), "second": medians.pop("first_batch_seconds")}
            results.append({"package": package, "rows": count, **medians, "first_batch_seconds": batches})
        beton.unlink()
    return results


@dataclasses.dataclass(kw_only=True)
class Options:
    """The command line."""

    rows: list[int] = dataclasses.field(default_factory=lambda: list(ROWS))
    """Numbers of samples of the files"""
    rounds: int = 3
    """Rounds of measurements"""
    folder: Path | None = None
    """Where the files are written; default: a temporary folder"""
    json: Path | None = None
    """File for the results"""


def main() -> None:
    from ffcv_cropmix.options import parse_options  # not while `measure` counts imports

    options = parse_options(Options, prog="benchmarks/start.py", description=(__doc__ or "").partition("\n\n")[0])
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        results = run(Path(folder), tuple(options.rows), options.rounds)
    print("package               rows   import    made  batch 1st    2nd      MB    peak  of two")
    for result in results:
        first, second = result["first_batch_seconds"].values()
        print(
            f"{result['package']:<14}{result['rows']:>12,}{result['import_seconds']:>8.2f}s"
            f"{result['construction_seconds']:>7.2f}s{first:>10.2f}s{second:>6.2f}s{result['megabytes']:>8.1f}"
            f"{result['peak_megabytes']:>8.1f}{result['megabytes_of_two']:>8.1f}"
        )
    if options.json:
        from throughput import machine, versions

        report = {
            "date": date.today().isoformat(),
            "command": shlex.join(sys.argv),
            "machine": machine(),
            "versions": versions(),
            "results": results,
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], sys.argv[3], hold="--hold" in sys.argv)
    else:
        main()
