"""Conversion: FFCV reads what was meant, and failures leave nothing behind."""

from __future__ import annotations

import errno
import multiprocessing
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from ffcv.fields import RGBImageField
from ffcv.reader import Reader
from PIL import Image

from ffcv_cropmix.data import convert as module
from ffcv_cropmix.data.convert import EncodeOptions, convert, encode
from ffcv_cropmix.data.sources import Source
from ffcv_cropmix.errors import DataError
from tests.betons import photo, stored_image


def _source(count: int, folder: Path | None = None) -> Source:
    """Samples of the class count - index; files in a folder, if given one."""
    labels = np.arange(count, 0, -1)
    if folder is None:
        return Source([""] * (count + 1), labels, np.stack([photo(20) + np.uint8(k % 256) for k in range(count)]))
    paths = [folder / f"{index}.png" for index in range(count)]
    for index, path in enumerate(paths):
        Image.fromarray(photo(index)).save(path)
    return Source([""] * (count + 1), labels, paths)


@pytest.mark.parametrize("write_mode", ["raw", "jpg"])
@pytest.mark.parametrize("max_resolution", [0, 60, 500])
@pytest.mark.parametrize("index", [0, 5, 20])
def test_encodes_as_ffcv_does(write_mode: str, max_resolution: int, index: int) -> None:
    field = RGBImageField(write_mode, max_resolution or None, jpeg_quality=80)
    destination, stored = np.zeros(1, field.metadata_type), []

    def malloc(size: int) -> tuple[int, np.ndarray]:
        stored.append(np.empty(size, np.uint8))
        return 0, stored[0]

    field.encode(destination, photo(index), malloc)
    options = EncodeOptions(write_mode=write_mode, max_resolution=max_resolution, jpeg_quality=80)
    encoded = encode(0, photo(index), options)
    assert encoded[:3] == tuple(destination[["mode", "height", "width"]][0])
    assert encoded.data == stored[0].tobytes()


def test_extreme_shapes_keep_a_pixel() -> None:
    assert encode(0, np.zeros((1, 900, 3), np.uint8), EncodeOptions(max_resolution=30))[1:3] == (1, 30)
    with pytest.raises(ValueError, match="1 x 70000 px"):
        encode(0, np.zeros((1, 70000, 3), np.uint8), EncodeOptions(max_resolution=0))


def test_smart_and_proportion() -> None:
    def modes(**options) -> list[int]:
        return [encode(index, photo(index), EncodeOptions(max_resolution=0, **options)).mode for index in range(40)]

    threshold = photo(5).nbytes
    expected = [0 if photo(index).nbytes > threshold else 1 for index in range(40)]
    assert modes(write_mode="smart", smart_threshold=threshold) == expected
    some = modes(write_mode="proportion", compress_probability=0.3, seed=1)
    assert 4 <= some.count(0) <= 20
    assert modes(write_mode="proportion", compress_probability=0.3, seed=1) == some
    assert modes(write_mode="proportion", compress_probability=0.3, seed=2) != some
    assert modes(write_mode="proportion", compress_probability=1.0) == [0] * 40


def test_rows_in_order_and_the_same_bytes_for_any_worker_count(tmp_path: Path) -> None:
    source = _source(23, tmp_path)
    options = EncodeOptions(write_mode="proportion", max_resolution=0)
    one, two = tmp_path / "one.beton", tmp_path / "two.beton"
    assert convert(source, one, options, num_workers=1, chunk_size=100) == one.stat().st_size
    convert(source, two, options, num_workers=2, chunk_size=3)
    assert one.read_bytes() == two.read_bytes()
    reader = Reader(str(one))
    assert reader.field_names == ["image", "label"]
    assert reader.field_descriptors["type_id"].tolist() == [2, 1]
    np.testing.assert_array_equal(reader.metadata["f1"], source.labels)
    for index in range(23):
        difference = stored_image(one, index).astype(int) - photo(index)
        assert np.abs(difference).mean() < (0.1 if reader.metadata["f0"]["mode"][index] else 12)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".png") == ["one.beton", "two.beton"]


def test_a_sample_lies_in_one_page(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "_PAGE_SIZE", 2**21)
    source = Source(["x"], np.zeros(40, np.int64), np.stack([np.full((300, 400, 3), k, np.uint8) for k in range(40)]))
    convert(source, tmp_path / "x.beton", EncodeOptions(write_mode="raw", max_resolution=500), num_workers=1)
    reader = Reader(str(tmp_path / "x.beton"))
    first, last = reader.alloc_table["ptr"], reader.alloc_table["ptr"] + reader.alloc_table["size"] - 1
    assert (first // reader.page_size == last // reader.page_size).all()
    assert len(np.unique(first // reader.page_size)) == 8
    for index in (0, 5, 6, 39):
        assert (stored_image(tmp_path / "x.beton", index) == index).all()


def test_pages_hold_the_largest_image(tmp_path: Path) -> None:
    Image.new("RGB", (2200, 2100)).save(tmp_path / "large.png")
    source = Source(["x"], np.zeros(1, np.int64), [tmp_path / "large.png"])
    convert(source, tmp_path / "x.beton", EncodeOptions(write_mode="raw", max_resolution=0), num_workers=1)
    assert Reader(str(tmp_path / "x.beton")).page_size == 2**24


def _expect_failure(source: Source, path: Path, message: str, **options) -> None:
    path.write_text("what was there before")
    with pytest.raises(DataError, match=message) as caught:
        convert(source, path, EncodeOptions(write_mode="raw"), **options)
    assert "\n" not in str(caught.value)
    assert path.read_text() == "what was there before"
    assert not list(path.parent.glob(".*"))


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_an_unreadable_image_is_named(tmp_path: Path, content: bytes) -> None:
    source = _source(7, tmp_path)
    (tmp_path / "4.png").write_bytes(content)
    _expect_failure(source, tmp_path / "x.beton", "4.png cannot be converted: ", num_workers=2, chunk_size=2)


def test_a_cut_image_is_named(tmp_path: Path) -> None:
    source = _source(22, tmp_path)
    whole = (tmp_path / "21.png").read_bytes()
    (tmp_path / "21.png").write_bytes(whole[: len(whole) // 2])
    _expect_failure(source, tmp_path / "x.beton", "21.png cannot be converted: ", num_workers=2)


def test_a_killed_worker_ends_the_run(tmp_path: Path) -> None:
    killed: list[float] = []
    others = set(multiprocessing.active_children())

    def kill() -> None:
        while not (workers := set(multiprocessing.active_children()) - others):
            time.sleep(0.05)
        time.sleep(2.5)  # they start
        killed.append(time.monotonic())
        workers.pop().kill()

    os.mkfifo(tmp_path / "pipe.png")  # opening it waits: the workers are busy when one of them is killed
    source = Source(["x"], np.zeros(400, np.int64), [tmp_path / "pipe.png"] * 400)
    threading.Thread(target=kill, daemon=True).start()
    _expect_failure(source, tmp_path / "x.beton", r"worker process \d+ died with exit status -9 near .*pipe.png")
    assert time.monotonic() - killed[0] < 5


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "fsync", fsync)
    _expect_failure(_source(2), tmp_path / "x.beton", "x.beton cannot be written: No space left", num_workers=1)


def test_the_workers_end_with_their_parent(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    source = Source(["x"], np.zeros(9, np.int64), [tmp_path / "pipe.png"] * 9)
    parent = multiprocessing.get_context("spawn").Process(
        target=convert, args=(source, tmp_path / "x.beton", EncodeOptions())
    )
    parent.start()
    children: list[str] = []
    while not children and parent.is_alive():
        time.sleep(0.1)
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    time.sleep(4)  # the worker starts
    parent.kill()
    parent.join()
    time.sleep(1)
    for child in children:
        status = Path(f"/proc/{child}/stat")
        assert not status.exists() or status.read_text().split()[2] == "Z"  # nobody may have asked how it ended
    assert children
    assert not (tmp_path / "x.beton").exists()
