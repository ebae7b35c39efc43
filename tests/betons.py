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
    from ffcv.reader import Reader

    reader = Reader(str(path))
    address = int(reader.metadata["f0"]["data_ptr"][index])
    table = reader.alloc_table
    return address, int(table["size"][table["ptr"] == address][0])


def stored_image(path: Path, index: int) -> np.ndarray:
    """The image as FFCV's own functions decode it: uint8 (height, width, 3)."""
    from ffcv.libffcv import imdecode
    from ffcv.reader import Reader

    field = Reader(str(path)).metadata["f0"][index]
    height, width = int(field["height"]), int(field["width"])
    address, size = payload(path, index)
    data = np.fromfile(path, np.uint8, size, offset=address)
    if field["mode"] == 1:
        return data.reshape(height, width, 3)
    image = np.empty((height, width, 3), np.uint8)
    imdecode(data, image, height, width, height, width, 0, 0, 1, 1, False, False)
    return image


if __name__ == "__main__":
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    target = Path(sys.argv[1])
    sets = [(target, "jpg", SoftPhotos())] if target.suffix else [(target / f"{m}.beton", m, Photos()) for m in MODES]
    for path, mode, samples in sets:
        fields = {"image": RGBImageField(write_mode=mode), "label": IntField()}
        DatasetWriter(str(path), fields, page_size=2**21, num_workers=1).from_indexed_dataset(samples)
