"""What is wrong with a .beton file is found when it is opened, and said in a line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ffcv.reader import Reader
from ffcv.types import ALLOC_TABLE_TYPE, FieldDescType, HeaderType

from ffcv_cropmix import Loader, check_beton
from ffcv_cropmix.errors import DataError
from tests.betons import COUNT, metadata_of

INDEX = 11


class Content:
    """A file's bytes, with views of its tables to be changed."""

    def __init__(self, path: Path) -> None:
        self.data = bytearray(path.read_bytes())
        self.header = np.frombuffer(self.data, HeaderType, 1)
        self.fields = np.frombuffer(self.data, FieldDescType, int(self.header["num_fields"][0]), HeaderType.itemsize)
        self.metadata = metadata_of(self.data, path)
        self.image = self.metadata["f0"]
        self.table = np.frombuffer(self.data, ALLOC_TABLE_TYPE, -1, int(self.header["alloc_table_ptr"][0]))
        self.row = int(np.flatnonzero(self.table["sample_id"] == INDEX)[0])


def _set(table: str, name: str, value: int, row: int | None = None) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        getattr(content, table)[name][{"header": 0, "fields": 0, "image": INDEX, "table": content.row}[table]] = value

    return change


def _end(cut: Callable[[int, int], int]) -> Callable[[Content], bytes]:
    """Cut the file at `cut(size of the file, start of its allocation table)`."""
    return lambda content: bytes(content.data[: cut(len(content.data), int(content.header["alloc_table_ptr"][0]))])


def _same_name(content: Content) -> None:
    content.fields["name"][1] = content.fields["name"][0]


def _swap_pointers(content: Content) -> None:
    pointers = content.image["data_ptr"]
    pointers[INDEX], pointers[INDEX + 1] = int(pointers[INDEX + 1]), int(pointers[INDEX])


def _swap_owners(content: Content) -> None:
    owners = content.table["sample_id"]
    other = int(np.flatnonzero(owners == INDEX + 1)[0])
    owners[content.row], owners[other] = INDEX + 1, INDEX


def _grow(content: Content) -> None:
    content.table["size"][content.row] += 1


def _shift(content: Content) -> None:
    content.image["data_ptr"][INDEX] += 1


FAULTS: dict[str, tuple[Callable[[Content], bytes | None], str]] = {
    "empty": (lambda content: b"", "it is empty"),
    "a text": (lambda content: b"image,label\n" * 99, "it starts with 28009, files of FFCV 1.0 with 2"),
    "short": (lambda content: bytes(content.data[:20]), "it has 20 bytes, too few for a header"),
    "version": (_set("header", "version", 1), "it starts with 1, files of FFCV 1.0 with 2"),
    "page size 0": (_set("header", "page_size", 0), "its pages have 0 bytes, not a power of two"),
    "page size": (_set("header", "page_size", 2**21 + 1), "its pages have 2097153 bytes, not a power of two"),
    "small pages": (_set("header", "page_size", 2**10), "does not lie in one page: the page size, 1024, is damaged"),
    "interrupted": (_set("header", "alloc_table_ptr", 0), "its writer was interrupted before it was complete"),
    "no fields": (_set("header", "num_fields", 0), "0 fields do not fit into its"),
    "many fields": (_set("header", "num_fields", 2**16 - 1), "65535 fields do not fit into its"),
    "a field less": (_set("header", "num_fields", 1), "sample 0 has no image in its allocation table"),
    "a field more": (_set("header", "num_fields", 3), "."),
    "type": (_set("fields", "type_id", 77), "its field 'image' is of the unknown type 77"),
    "custom type": (_set("fields", "type_id", 255), "its field 'image' is of a custom type: pass custom_fields"),
    "names": (_same_name, "it has two fields 'image'"),
    "no samples": (_set("header", "num_samples", 0), "0 samples do not fit into its"),
    "many samples": (_set("header", "num_samples", 2**63), "9223372036854775808 samples do not fit into its"),
    "a sample more": (_set("header", "num_samples", COUNT + 1), "has no image in its allocation table"),
    "a sample less": (_set("header", "num_samples", COUNT - 1), "has a sample 36, beyond the 36"),
    "table beyond": (_set("header", "alloc_table_ptr", 2**60), "its allocation table is at 1152921504606846976 of"),
    "table in metadata": (_set("header", "alloc_table_ptr", 2200), "its allocation table is at 2200 of"),
    "half": (_end(lambda size, table: size // 2), "it was cut off, or is damaged"),
    "in its table": (_end(lambda size, table: size - 10), "it ends within its allocation table: it was cut off"),
    "a row less": (_end(lambda size, table: size - 24), "has no image in its allocation table"),
    "no table": (_end(lambda size, table: table), "sample 0 has no image in its allocation table"),
    "mode": (_set("image", "mode", 7), "the image of sample 11 is of mode 7, neither jpg nor raw"),
    "height": (_set("image", "height", 0), "the image of sample 11 is of 0 x"),
    "width": (_set("image", "width", 0), "the image of sample 11 is of"),
    "pointer": (_shift, "sample 11 has no image in its allocation table"),
    "pointers": (_swap_pointers, "sample 11 has no image in its allocation table"),
    "owners": (_swap_owners, "sample 11 has no image in its allocation table"),
    "owner": (_set("table", "sample_id", 999), "its allocation table has a sample 999, beyond the 37"),
    "address": (_set("table", "ptr", 2**63), "sample 11 lies outside the file"),
    "in the header": (_set("table", "ptr", 8), "sample 11 lies outside the file"),
    "size": (_set("table", "size", 2**64 - 1), "sample 11 lies outside the file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(betons, tmp_path: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    content = Content(betons["jpg"])
    changed = change(content)
    path = tmp_path / "faulty.beton"
    path.write_bytes(content.data if changed is None else changed)
    for opened in (check_beton, lambda path: Loader(path, 4, pipelines={"image": None})):
        with pytest.raises(DataError) as caught:
            opened(path)
        line = str(caught.value)
        assert line.startswith(f"{path} is not a sound .beton file: ")
        assert message in line
        assert "\n" not in line


def test_faults_of_raw_images(betons, tmp_path: Path) -> None:
    path = tmp_path / "faulty.beton"
    for change, message in (
        (_set("image", "width", 5), "the image of sample 11 is of"),
        (_set("image", "height", 65535), "the image of sample 11 is of 65535 x"),
        (_grow, "samples 11 and 12 overlap"),
    ):
        content = Content(betons["raw"])
        change(content)
        path.write_bytes(content.data)
        with pytest.raises(DataError, match=message):
            check_beton(path)


def test_sound_files(betons, sealed) -> None:
    for path in betons.values():
        beton = check_beton(str(path))
        assert (list(beton.fields), beton.images(), beton.sidecar) == (["image", "label"], ["image"], None)
        np.testing.assert_array_equal(beton.column("label"), np.arange(COUNT))
        np.testing.assert_array_equal(beton.metadata, Reader(str(path)).metadata)
    for path in sealed.values():
        beton = check_beton(path)
        assert beton.sidecar
        assert beton.sidecar.counts == [1] * COUNT


def test_other_files_than_the_sidecars(betons, sealed, tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    content = Content(sealed["jpg"])
    content.metadata["f1"][INDEX] = 3  # a label: sound, and wrong
    path.write_bytes(content.data)
    check_beton(path)
    shutil.copy(f"{sealed['jpg']}.json", f"{path}.json")
    with pytest.raises(DataError, match=r"x.beton is not the file that its sidecar .*x.beton.json describes"):
        check_beton(path)
    Path(f"{path}.json").write_text(
        '{"dataset": "d", "split": "s", "classes": ["a"], "counts": [1], "checksums": "AA=="}'
    )
    with pytest.raises(DataError, match=r"x.beton.json is not a sidecar"):
        check_beton(path)


FIELDS = """
import sys
import numpy as np
import ffcv_cropmix.ffcv_compat
from ffcv.fields import BytesField, FloatField, JSONField, NDArrayField, RGBImageField
from ffcv.writer import DatasetWriter

class Samples:
    def __len__(self):
        return 9
    def __getitem__(self, k):
        image = np.full((k + 1, 5, 3), k, np.uint8)
        return image, np.arange(k + 1, dtype=np.uint8), k / 2, {"k": int(k)}, np.full(4, k, np.int64)

fields = {"image": RGBImageField(write_mode="raw"), "bytes": BytesField(), "float": FloatField(), "json": JSONField(),
          "array": NDArrayField(np.dtype("int64"), (4,))}
DatasetWriter(sys.argv[1], fields, page_size=2**21, num_workers=1).from_indexed_dataset(Samples())
"""


def test_all_kinds_of_fields(tmp_path: Path) -> None:
    path = tmp_path / "fields.beton"
    subprocess.run([sys.executable, "-c", FIELDS, str(path)], check=True, capture_output=True, timeout=120)
    beton = check_beton(path)
    assert list(beton.fields) == ["image", "bytes", "float", "json", "array"]
    assert beton.images() == ["image"]
    for name, (column, part) in {"bytes": ("f1", "ptr"), "json": ("f3", "ptr"), "array": ("f4", None)}.items():
        content = bytearray(path.read_bytes())
        pointers = metadata_of(content, path)[column]
        (pointers[part] if part else pointers)[3] += 1
        faulty = tmp_path / f"{name}.beton"
        faulty.write_bytes(content)
        with pytest.raises(DataError, match=f"sample 3 has no {name} in its allocation table"):
            check_beton(faulty)
    content = bytearray(path.read_bytes())
    metadata_of(content, path)["f1"]["size"][3] += 1
    faulty.write_bytes(content)
    with pytest.raises(DataError, match="the bytes of sample 3 has another size than its allocation table says"):
        check_beton(faulty)
