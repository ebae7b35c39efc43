"""Conversion: FFCV reads what was meant, and failures leave nothing behind."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from ffcv import types
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.reader import Reader
from PIL import Image

from ffcv_cropmix.data import convert as module
from ffcv_cropmix.data.convert import convert
from ffcv_cropmix.data.encode import EncodeOptions, encode
from ffcv_cropmix.data.images import Source
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


def test_the_format_is_ffcvs() -> None:
    assert module._VERSION == types.CURRENT_VERSION
    assert types.TYPE_ID_HANDLER[module._IMAGE_TYPE] is RGBImageField
    assert types.TYPE_ID_HANDLER[module._INT_TYPE] is IntField
    assert types.get_metadata_type([RGBImageField(), IntField()]) == module._METADATA
    assert types.ALLOC_TABLE_TYPE == module._ALLOCATION
    for theirs, ours in ((types.HeaderType, module._HEADER), (types.FieldDescType, module._FIELD)):
        offsets = [[(name, dtype.fields[name][1]) for name in dtype.names] for dtype in (theirs, ours)]
        assert offsets[0] == offsets[1]
        assert theirs.itemsize == ours.itemsize


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
    for side, write_mode in ((65_501, "jpg"), (65_536, "raw")):
        with pytest.raises(ValueError, match=f"1 x {side} px, a side can have {side - 1}"):
            encode(0, np.zeros((1, side, 3), np.uint8), EncodeOptions(max_resolution=0, write_mode=write_mode))
        encode(0, np.zeros((1, side - 1, 3), np.uint8), EncodeOptions(max_resolution=0, write_mode=write_mode))


def test_smart_and_proportion() -> None:
    photos = [photo(index) for index in range(40)]

    def modes(**options) -> list[int]:
        return [
            encode(index, image, EncodeOptions(max_resolution=0, **options)).mode for index, image in enumerate(photos)
        ]

    threshold = photos[5].nbytes
    expected = [0 if image.nbytes > threshold else 1 for image in photos]
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
    done = convert(source, one, options, num_workers=1, chunk_size=100)
    assert (done.size, done.rows) == (one.stat().st_size, list(range(23)))
    convert(source, two, options, num_workers=2, chunk_size=3)
    assert one.read_bytes() == two.read_bytes()
    reader = Reader(str(one))
    assert reader.field_names == ["image", "label"]
    assert reader.field_descriptors["type_id"].tolist() == [2, 1]
    np.testing.assert_array_equal(reader.metadata["f1"], source.labels)
    for index in range(23):
        difference = stored_image(one, index).astype(int) - photo(index)
        assert np.abs(difference).mean() < (0.1 if reader.metadata["f0"]["mode"][index] else 12)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".png") == [
        f"{name}.beton{end}" for name in ("one", "two") for end in ("", ".json")
    ]


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
    for os_cache in (True, False):  # stock FFCV: all of the file, or page by page
        loader = Loader(
            str(tmp_path / "x.beton"),
            batch_size=7,
            num_workers=1,
            os_cache=os_cache,
            order=OrderOption.SEQUENTIAL,
            drop_last=False,
            pipelines={"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]},
        )
        read = [
            (image[0, 0, 0], (image == image[0, 0, 0]).all(), label) for batch in loader for image, label in zip(*batch)
        ]
        assert read == [(k, True, 0) for k in range(40)]


def test_pages_and_chunks_suit_the_largest_image(tmp_path: Path, monkeypatch) -> None:
    given: list[tuple] = []
    encode_all = module.encode_all
    monkeypatch.setattr(
        module, "encode_all", lambda *arguments, **more: given.append(arguments) or encode_all(*arguments, **more)
    )
    Image.new("RGB", (2200, 2100)).save(tmp_path / "large.png")
    source = Source(["x"], np.zeros(2, np.int64), [tmp_path / "large.png"] * 2)
    convert(source, tmp_path / "x.beton", EncodeOptions(write_mode="raw", max_resolution=0), num_workers=1)
    assert Reader(str(tmp_path / "x.beton")).page_size == 2**24
    assert given[0][1][2:] == [range(0, 1), range(1, 2)]  # of 14 MB of pixels each


def _expect_failure(source: Source, path: Path, message: str, **options) -> None:
    path.write_text("what was there before")
    before = set(multiprocessing.active_children())
    with pytest.raises(DataError, match=message) as caught:
        convert(source, path, EncodeOptions(write_mode="raw"), **options)
    assert "\n" not in str(caught.value)
    assert path.read_text() == "what was there before"
    assert not list(path.parent.glob(".*"))
    assert set(multiprocessing.active_children()) == before


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


def test_a_bad_image_does_not_wait_for_other_workers(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")  # opening it takes for ever
    (tmp_path / "bad.png").write_bytes(b"no image")
    source = Source(["x"], np.zeros(2, np.int64), [tmp_path / "pipe.png", tmp_path / "bad.png"])
    started = time.monotonic()
    _expect_failure(source, tmp_path / "x.beton", "bad.png cannot be converted", num_workers=2, chunk_size=1)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("busy", ["reading a file", "taking a chunk"])
def test_a_killed_worker_ends_the_run(tmp_path: Path, busy: str) -> None:
    killed: list[float] = []
    others = set(multiprocessing.active_children())

    def kill() -> None:
        while not (workers := set(multiprocessing.active_children()) - others):
            time.sleep(0.01)
        worker = workers.pop()
        if busy == "taking a chunk":  # its parent is stuck with the rest of it
            os.kill(worker.pid, signal.SIGSTOP)
        time.sleep(1.5)
        killed.append(time.monotonic())
        worker.kill()

    if busy == "reading a file":
        os.mkfifo(tmp_path / "pipe.png")
        source = Source(["x"], np.zeros(400, np.int64), [tmp_path / "pipe.png"] * 400)
        message = r"worker process \d+ died with exit status -9 between .*pipe.png"
    else:
        source = Source(["x"], np.zeros(400, np.int64), np.zeros((400, 99, 99, 3), np.uint8))
        message = r"worker process \d+ died with exit status -9 between sample"
    threading.Thread(target=kill, daemon=True).start()
    _expect_failure(source, tmp_path / "x.beton", message, num_workers=1 if busy == "taking a chunk" else 2)
    assert time.monotonic() - killed[0] < 5


def test_a_file_that_cannot_grow_is_an_error(tmp_path: Path) -> None:
    """As on a full disk, half way; the workers, which have more to do, are not waited for."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    images = np.random.default_rng(0).integers(0, 256, (400, 99, 99, 3), np.uint8)
    source = Source(["x"], np.zeros(400, np.int64), images)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**23 + 2**20, limits[1]))
    try:
        _expect_failure(source, tmp_path / "x.beton", "x.beton cannot be written: File too large", num_workers=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_the_workers_end_with_their_parent(tmp_path: Path) -> None:
    Image.fromarray(photo(20)).save(tmp_path / "photo.png")
    source = Source(["x"], np.zeros(10**5, np.int64), [tmp_path / "photo.png"] * 10**5)
    parent = multiprocessing.get_context("spawn").Process(
        target=convert, args=(source, tmp_path / "x.beton", EncodeOptions())
    )
    parent.start()
    workers: list[Path] = []
    while len(workers) < 2 and parent.is_alive():  # multiprocessing's resource tracker, and a worker
        time.sleep(0.1)
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        workers = [Path(f"/proc/{child}/stat") for child in children]
    assert len(workers) >= 2
    time.sleep(1)  # of work
    parent.kill()
    parent.join()

    def running(stat: Path) -> bool:
        return stat.exists() and stat.read_text().split()[2] != "Z"  # nobody may have asked how it ended

    deadline = time.monotonic() + 5
    while any(map(running, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(running, workers))
    assert not (tmp_path / "x.beton").exists()
