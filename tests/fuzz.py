"""Randomly damaged .beton files: python -m tests.fuzz FOLDER --files 2000

FOLDER has raw.beton, jpg.beton and dct.beton with sidecars: tests/conftest.py, `sealed_dct`. A number stands for one
damage. What may not happen ends the process: with an assertion, or by a signal. A line for each file has its number and
what came of it.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ffcv_cropmix import CenterCropRGBImageDecoder, Loader, check_beton
from ffcv_cropmix.data.reader import Beton
from ffcv_cropmix.errors import DataError
from ffcv_cropmix.ffcv_compat import IntDecoder, ToTensor

MODES = ("raw", "jpg", "dct")


def damage(content: bytearray, beton: Beton, random: np.random.Generator) -> tuple[str, bytes]:
    """What was done to a file, and its bytes."""
    header, payload, table = beton.header.nbytes, beton.data_start, beton.data_end
    metadata = payload - beton.metadata.nbytes
    regions = {
        "header": (0, header),
        "fields": (header, metadata),
        "metadata": (metadata, payload),
        "payload": (int(beton.column("image")["data_ptr"].min()), table),
        "table": (table, len(content)),
    }
    region = str(random.choice(list(regions)))
    begin, end = regions[region]
    kind = str(random.choice(["bits", "zeros", "swap", "cut"], p=[0.5, 0.2, 0.2, 0.1]))
    if kind == "bits":
        for _ in range(random.integers(1, 9)):
            content[random.integers(begin, end)] ^= 1 << int(random.integers(8))
    elif kind == "cut":
        content = content[: random.integers(begin, end)]
    else:
        size = int(min(2 ** random.integers(0, 13), (end - begin) // 2))
        first, second = (int(at) for at in random.integers(begin, end - size, 2))
        a, b = bytes(content[first : first + size]), bytes(content[second : second + size])
        content[first : first + size] = bytes(size) if kind == "zeros" else b
        if kind == "swap":
            content[second : second + size] = a
    return f"{kind} in {region}", bytes(content)


class Files:
    """Reads files of one kind with one compiled pipeline: to compile it for each takes seconds."""

    def __init__(self, path: Path, checksums: bool) -> None:
        pipelines = {
            "image": [CenterCropRGBImageDecoder((12, 12), 1.0, on_error="zero"), ToTensor()],
            "label": [IntDecoder(), ToTensor()],
        }
        self.checksums = checksums
        self.loader = Loader(path, 8, num_workers=2, drop_last=False, checksums=checksums, pipelines=pipelines)
        self.expected = self.read(path)

    def read(self, path: Path) -> list[tuple[bytes, int]]:
        """Pixels and label of each sample, after the checks of a loader that opens the file."""
        loader = self.loader
        loader.fname, loader.failures = str(path), {}
        loader._open(check_beton(path), self.checksums, os_cache=True)
        for name in ("indices", "traversal_order"):
            loader.__dict__.pop(name, None)
        return [(image.numpy().tobytes(), int(label)) for pair in loader for image, label in zip(*pair)]


def run(folder: Path, numbers: range, modes: Sequence[str] = MODES) -> Iterator[tuple[int, str, str]]:
    """Number, damage and outcome of each file."""
    files = {
        (mode, checksums): Files(folder / f"{mode}.beton", checksums) for mode in modes for checksums in (True, False)
    }
    damaged = folder / "damaged.beton"
    for number in numbers:
        random = np.random.default_rng(number)
        mode, checksums = str(random.choice(modes)), bool(random.integers(2))
        source, kind = folder / f"{mode}.beton", files[mode, checksums]
        what, content = damage(bytearray(source.read_bytes()), Beton(source), random)
        damaged.write_bytes(content)
        sidecar = Path(f"{damaged}.json")
        sidecar.unlink(missing_ok=True)
        if checksums:
            shutil.copy(f"{source}.json", sidecar)
        try:
            samples = kind.read(damaged)
        except DataError as error:
            assert "\n" not in str(error) and str(damaged) in str(error)
            yield number, f"{mode}, {what}", "refused"
            continue
        reported = {failure.index for failure in kind.loader.report()}
        images = [image for image, _ in kind.expected]
        for index, (image, label) in enumerate(samples):
            if index in reported:
                assert not any(image)
            elif checksums:
                assert (image, label) == kind.expected[index], f"file {number}: sample {index} is not as it was"
            elif image != images[index]:
                assert image not in images, f"file {number}: sample {index} has another sample's pixels"
        yield number, f"{mode}, {what}", f"{len(reported)} reported" if reported else "read"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    given = parser.parse_args()
    for number, what, outcome in run(given.folder, range(given.first, given.first + given.files), given.modes):
        print(f"{number}: {what}: {outcome}", flush=True)
