"""Small .beton files written by FFCV, and what its own decoder reads from them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

COUNT = 37
MODES = ("raw", "jpg")


def photo(index: int) -> np.ndarray:
    """A smooth image with edges, uint8 (height, width, 3), of a size of its own; the first is of one pixel.

    The first eight are small (tests without compilation read them); with the others, raw, the file has several pages.
    """
    random = np.random.default_rng(index)
    height, width = (1, 1) if index == 0 else random.integers(9, 40, 2) if index < 8 else random.integers(90, 400, 2)
    row, column = np.mgrid[:height, :width][:, :, :, None] / 16
    waves = np.sin(row * random.uniform(0.2, 2, 3) + random.uniform(0, 6, 3)) * np.cos(
        column * random.uniform(0.2, 2, 3)
    )
    image = 127.5 + 100 * waves
    image[height // 3 : height // 2, width // 4 :] *= random.uniform(0.2, 1.2, 3)
    return np.clip(image + random.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


class Photos:
    """The label of a sample is its index."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return photo(index), index


def write(folder: Path) -> dict[str, Path]:
    """Write raw.beton and jpg.beton, in a process of its own: FFCV forks, which numba's threads do not survive."""
    subprocess.run([sys.executable, __file__, str(folder)], check=True, capture_output=True)
    return {mode: folder / f"{mode}.beton" for mode in MODES}


class SoftPhotos:
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        from sklearn.datasets import load_sample_images

        return 64 + load_sample_images().images[index] // 2, index


def write_photos(path: Path) -> Path:
    """Write scikit-learn's photos, levels in 64 to 191, as JPEG."""
    subprocess.run([sys.executable, __file__, str(path)], check=True, capture_output=True)
    return path


def payload(path: Path, index: int) -> tuple[int, int]:
    """Where in the file the data of a sample's image are: address, size."""
    from ffcv_cropmix.data.reader import Beton

    beton = Beton(path)
    return int(beton.column("image")["data_ptr"][index]), beton.read("image", index).size


def damaged(path: Path, copy: Path, index: int, damage: str) -> Path:
    """A copy of the file with one sample damaged: its data, one of jpegs.DAMAGES, or "column[.field]=value"."""
    from tests.jpegs import DAMAGES  # not for the process that writes

    address, size = payload(path, index)
    content = bytearray(path.read_bytes())
    if damage in DAMAGES:
        changed = DAMAGES[damage](bytes(content[address : address + size]))
        content[address : address + size] = changed[:size].ljust(size, b"\0")
    elif damage == "another JPEG":
        other_address, other_size = payload(path, index + 1)
        taken = content[other_address : other_address + other_size][:size]
        content[address : address + len(taken)] = taken
    elif damage == "a bit":
        content[address + size // 2] ^= 4
    else:
        name, value = damage.split("=")
        column, _, part = name.partition(".")
        metadata = metadata_of(content, path)[column]
        (metadata[part] if part else metadata)[index] = int(value)
    copy.write_bytes(content)
    return copy


def write_dct(jpg: Path, path: Path) -> Path:
    """Write the samples of a jpg file as coefficients, without loss; labels are rows."""
    from ffcv_cropmix.data.convert import _write
    from ffcv_cropmix.data.encode import EncodeOptions, encode_file
    from ffcv_cropmix.data.stored import beton_source

    source, options = beton_source(jpg, "train"), EncodeOptions(write_mode="dct", max_resolution=0)
    with path.open("w+b") as file:
        samples = (encode_file(index, image, options, 2**21) for index, image in enumerate(source.images))
        _write(file, source, samples, 2**21, dct=True)
    return path


def metadata_of(content: bytearray, path: Path) -> np.ndarray:
    """The metadata in the content of a file, to be changed there."""
    from ffcv_cropmix.data.reader import Beton

    beton = Beton(path)
    return np.frombuffer(content, beton.metadata_type, beton.num_samples, beton.data_start - beton.metadata.nbytes)


def seal(path: Path) -> Path:
    """Write the sidecar of a file with labels that are rows, with checksums; return its path."""
    from ffcv_cropmix.data.reader import Beton
    from ffcv_cropmix.data.sidecar import (
        Sidecar,
        encode_digests,
        sample_checksum,
        sidecar_path,
        tables_checksum,
        write_sidecar,
    )

    beton = Beton(path)
    digests = np.array([sample_checksum(beton.read("image", row)) for row in range(beton.num_samples)], np.uint64)
    sidecar = Sidecar(
        dataset="photos",
        split="train",
        classes=[f"class {index}" for index in range(len(digests))],
        counts=[1] * len(digests),
        checksums=encode_digests(digests),
        tables_checksum=tables_checksum(beton.tables()),
    )
    with sidecar_path(path).open("wb") as file:
        write_sidecar(file, sidecar)
    return sidecar_path(path)


def stored_image(path: Path, index: int) -> np.ndarray:
    """The image as FFCV's own functions decode it: uint8 (height, width, 3)."""
    from ffcv.libffcv import imdecode

    from ffcv_cropmix.data.reader import Beton

    beton = Beton(path)
    field, data = beton.column("image")[index], beton.read("image", index)
    height, width = int(field["height"]), int(field["width"])
    if field["mode"] == 1:
        return data.reshape(height, width, 3)
    image = np.empty((height, width, 3), np.uint8)
    imdecode(data, image, height, width, height, width, 0, 0, 1, 1, False, False)
    return image


if __name__ == "__main__":
    import ffcv_cropmix.ffcv_compat  # noqa: F401  before FFCV: 5 s less

    # isort: split
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    target = Path(sys.argv[1])
    sets = [(target, "jpg", SoftPhotos())] if target.suffix else [(target / f"{m}.beton", m, Photos()) for m in MODES]
    for path, mode, samples in sets:
        fields = {"image": RGBImageField(write_mode=mode), "label": IntField()}
        DatasetWriter(str(path), fields, page_size=2**21, num_workers=1).from_indexed_dataset(samples)
