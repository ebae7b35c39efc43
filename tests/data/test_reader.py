"""The reader finds what is stored, in any file that FFCV may write."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ffcv.fields.basics import IntDecoder
from ffcv.reader import Reader
from ffcv.transforms import ToTensor

from ffcv_cropmix import Loader, check_beton
from ffcv_cropmix.data.reader import Beton
from tests.betons import COUNT, photo


def shuffled(path: Path, copy: Path) -> Path:
    """A copy of a file with its allocation table in another order, as FFCV writes it with several workers."""
    beton = Beton(path)
    content = path.read_bytes()
    table = np.random.default_rng(0).permutation(beton.alloc_table)
    copy.write_bytes(content[: beton.data_end] + table.tobytes())
    return copy


def test_reads_what_is_stored_whatever_the_order_of_the_table(betons, tmp_path: Path) -> None:
    for path in (betons["raw"], shuffled(betons["raw"], tmp_path / "shuffled.beton")):
        beton = check_beton(path)
        assert len(beton.order) == (0 if path == betons["raw"] else COUNT)
        for row in range(COUNT):
            image = beton.read("image", row)
            assert not image.flags.writeable
            np.testing.assert_array_equal(image, photo(row).ravel())
        with pytest.raises(TypeError, match=r"label is stored in the metadata: use column\('label'\)"):
            beton.read("label", 0)


def test_has_the_attributes_of_ffcvs_reader(betons) -> None:
    ours, reader = Beton(betons["jpg"]), Reader(str(betons["jpg"]))
    for name in ("file_name", "num_samples", "page_size", "num_fields", "field_names"):
        assert getattr(ours, name) == getattr(reader, name)
    for name in ("header", "field_descriptors", "metadata", "alloc_table"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(reader, name))
        assert not getattr(ours, name).flags.writeable
    assert {name: type(field) for name, field in ours.handlers.items()} == {
        name: type(field) for name, field in reader.handlers.items()
    }


def test_tables_are_mapped_from_the_file(betons) -> None:
    loader = Loader(betons["raw"], 4, num_workers=1, pipelines={"image": None})
    beton = loader.reader
    for table in (beton.metadata, beton.alloc_table, beton.read("image", 3)):
        assert np.shares_memory(table, beton.storage().memory)


EMPTY_VALUES = """
import sys
import numpy as np
import ffcv_cropmix.ffcv_compat
from ffcv.fields import BytesField, IntField, RGBImageField
from ffcv.writer import DatasetWriter

class Samples:
    def __len__(self):
        return 12
    def __getitem__(self, k):
        return np.full(k % 3, k, np.uint8), np.full((2, 3, 3), k, np.uint8), k, np.full(k % 2, k, np.uint8)

fields = {"first": BytesField(), "image": RGBImageField(write_mode="raw"), "label": IntField(), "last": BytesField()}
DatasetWriter(sys.argv[1], fields, page_size=2**21, num_workers=1).from_indexed_dataset(Samples())
"""


@pytest.mark.parametrize("os_cache", [True, False])
def test_empty_values(tmp_path: Path, os_cache: bool) -> None:
    path = tmp_path / "empty.beton"
    subprocess.run([sys.executable, "-c", EMPTY_VALUES, str(path)], check=True, capture_output=True, timeout=120)
    for file in (path, shuffled(path, tmp_path / "shuffled.beton")):
        beton = check_beton(file)
        for row in range(12):
            assert beton.read("first", row).tolist() == [row] * (row % 3)
            assert beton.read("last", row).tolist() == [row] * (row % 2)
            assert beton.read("image", row).tolist() == [row] * 18
    pipelines = {"label": [IntDecoder(), ToTensor()]}
    seen = []
    for first, images, labels, last in Loader(file, 4, num_workers=1, os_cache=os_cache, pipelines=pipelines):
        for row, one, image, other in zip(labels[:, 0].tolist(), first, images, last):
            seen.append(row)
            assert one[: row % 3].tolist() == [row] * (row % 3)
            assert other[: row % 2].tolist() == [row] * (row % 2)
            assert (image == row).all()
    assert seen == list(range(12))
