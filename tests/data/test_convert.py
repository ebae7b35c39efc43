"""Conversion: FFCV reads what was meant, and failures leave nothing behind."""

from __future__ import annotations

import csv
import multiprocessing
import os
import resource
import shutil
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from itertools import chain
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from ffcv import types
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.reader import Reader
from PIL import Image
from xxhash import xxh64_hexdigest, xxh64_intdigest

from ffcv_cropmix.data import convert as module
from ffcv_cropmix.data import workers as worker_module
from ffcv_cropmix.data.convert import convert, estimate, skipped_path
from ffcv_cropmix.data.encode import EncodeOptions, _uniform
from ffcv_cropmix.data.images import Source
from ffcv_cropmix.data.sidecar import read_sidecar
from ffcv_cropmix.errors import DataError
from tests.betons import payload, photo, stored_image


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


def _chunks_given(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """What `convert` gives to workers, from now on."""
    given: list[list[int]] = []
    encode_all = module.encode_all

    def spy(source: Source, chunks: list[list[int]], *arguments: Any, **options: Any) -> Any:
        given.extend(chunks)
        return encode_all(source, chunks, *arguments, **options)

    monkeypatch.setattr(module, "encode_all", spy)
    return given


def test_pages_and_chunks_suit_the_largest_image(tmp_path: Path, monkeypatch) -> None:
    given = _chunks_given(monkeypatch)
    monkeypatch.setattr(module, "_TURNS", 1)
    Image.new("RGB", (2200, 2100)).save(tmp_path / "large.png")
    source = Source(["x"], np.zeros(10, np.int64), [tmp_path / "large.png"] * 10)
    convert(source, tmp_path / "x.beton", EncodeOptions(write_mode="raw", max_resolution=0), num_workers=1)
    assert Reader(str(tmp_path / "x.beton")).page_size == 2**24
    assert sorted(given) == [[index] for index in range(10)]  # of 14 MB of pixels each


def test_a_page_is_not_sized_by_the_pixels_of_a_jpeg(tmp_path: Path) -> None:
    large, raw = BytesIO(), tmp_path / "raw.png"
    Image.new("RGB", (4000, 3000), (9, 99, 200)).save(large, "JPEG")
    Image.new("RGB", (2000, 1500)).save(raw)
    for images, options, page in (
        ([large.getvalue()], EncodeOptions(max_resolution=0), 2**23),
        ([large.getvalue()], EncodeOptions(max_resolution=4000), 2**23),
        ([large.getvalue()], EncodeOptions(max_resolution=0, reencode=True), 2**26),
        ([large.getvalue()], EncodeOptions(max_resolution=0, write_mode="raw"), 2**26),
        ([large.getvalue()], EncodeOptions(max_resolution=2000), 2**24),
        ([large.getvalue() + bytes(2**23)], EncodeOptions(max_resolution=0), 2**25),
        ([raw], EncodeOptions(max_resolution=0), 2**24),
        ([raw], EncodeOptions(max_resolution=1999), 2**24),
    ):
        assert module._page_size(module._largest_sample(Source(["x"], np.zeros(1), images), options)) == page


def test_too_few_open_files_or_too_long_a_temporary_folder(tmp_path: Path, monkeypatch) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 12, limits[1]))
    try:
        _expect_failure(_source(9), tmp_path / "x.beton", r"2 worker processes need \d+ open files", num_workers=2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    monkeypatch.setitem(multiprocessing.current_process()._config, "tempdir", str(tmp_path / ("x" * 99)))
    monkeypatch.setattr(forkserver, "connect_to_new_process", forkserver.ForkServer().connect_to_new_process)
    (tmp_path / ("x" * 99)).mkdir()
    _expect_failure(_source(9), tmp_path / "x.beton", "AF_UNIX path too long; TMPDIR=.*: set it to /tmp", num_workers=2)


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link, file = tmp_path / "link.beton", tmp_path / "disk" / "file.beton"
    link.symlink_to(file)
    Path(f"{link}.json").write_text("{}")  # of the file before
    convert(_source(9), link, EncodeOptions(write_mode="raw"), num_workers=1)
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["file.beton", "file.beton.json"]
    assert [path.name for path in tmp_path.glob("link*")] == ["link.beton"]
    assert link.is_symlink()
    sidecar = read_sidecar(link)
    assert sidecar is not None
    assert sidecar == read_sidecar(file)


def test_workers_take_turns_and_no_image_twice(tmp_path: Path, monkeypatch) -> None:
    given = _chunks_given(monkeypatch)
    convert(_source(200), tmp_path / "x.beton", EncodeOptions(write_mode="raw"), num_workers=2)
    assert max(map(len, given)) == 6  # a sixteenth of a worker's share
    assert sorted(chain.from_iterable(given)) == list(range(200))


def test_every_sample_and_the_tables_have_checksums(tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    convert(replace(_source(9), dataset="a", split="b"), path, EncodeOptions(write_mode="raw"), num_workers=1)
    sidecar, content = read_sidecar(path), path.read_bytes()
    assert (sidecar.dataset, sidecar.split, sidecar.classes) == ("a", "b", [""] * 10)
    assert sidecar.counts == [0] + [1] * 9
    assert sidecar.options["write_mode"] == "raw"
    assert {"ffcv", "ffcv_cropmix", "pillow", "opencv"} <= sidecar.versions.keys()
    stored = [content[address : address + size] for address, size in (payload(path, row) for row in range(9))]
    assert sidecar.digests().tolist() == [xxh64_intdigest(data) for data in stored]
    reader = Reader(str(path))
    end = module._HEADER.itemsize + reader.field_descriptors.nbytes + reader.metadata.nbytes
    tables = content[:end] + content[int(reader.header["alloc_table_ptr"]) :]
    assert sidecar.tables_checksum == xxh64_hexdigest(tables)


def test_what_cannot_be_converted_is_skipped_and_named(tmp_path: Path) -> None:
    source = _source(23, tmp_path)
    for index in (0, 5, 22):
        (tmp_path / f"{index}.png").write_bytes(b"no image")
    path, report = tmp_path / "x.beton", skipped_path(tmp_path / "x.beton")
    options = EncodeOptions(write_mode="proportion")
    done = convert(source, path, options, on_error="skip", num_workers=2, chunk_size=4)
    kept = [index for index in range(23) if index not in (0, 5, 22)]
    assert done.rows == kept
    reader = Reader(str(path))
    assert reader.metadata["f1"].tolist() == source.labels[kept].tolist()
    assert reader.alloc_table["sample_id"].tolist() == list(range(20))
    assert (reader.metadata["f0"]["mode"] == 1).tolist() == [_uniform(0, index) >= 0.5 for index in kept]
    for row, index in enumerate(kept):
        assert stored_image(path, row).shape == photo(index).shape
    assert read_sidecar(path).counts == np.bincount(source.labels[kept], minlength=24).tolist()
    assert len(read_sidecar(path).digests()) == 20
    rows = list(csv.DictReader(report.open(newline="")))
    assert [row["path"] for row in rows] == [str(tmp_path / f"{index}.png") for index in (0, 5, 22)]
    assert {row["reason"] for row in rows} == {"not an image that Pillow can read"}
    convert(_source(3), path, EncodeOptions(), on_error="skip", num_workers=1)
    assert not report.exists()  # it was about the file before


def test_what_is_written_last_is_tried_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a class name that JSON cannot say, nor a package without metadata, may end a run after its work."""
    monkeypatch.setattr(module, "encode_all", lambda *_, **__: pytest.fail("begun"))
    with pytest.raises(TypeError, match="bytes is not JSON serializable"):
        convert(replace(_source(3), classes=[b"x"] * 4), tmp_path / "x.beton", EncodeOptions(), num_workers=1)
    monkeypatch.setattr(module, "version", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert(_source(3), tmp_path / "x.beton", EncodeOptions(), num_workers=1)
    assert not list(tmp_path.iterdir())


def test_a_set_without_any_image_is_an_error(tmp_path: Path) -> None:
    source = Source(["x"], np.zeros(3, np.int64), [b"", b"x", b"y"])
    message = "none of the images can be converted; sample 0: not an image"
    _expect_failure(source, tmp_path / "x.beton", message, on_error="skip", num_workers=1)


@pytest.mark.parametrize("place", ["first row", "last row", "label", "allocation table", "end"])
def test_what_is_not_on_the_disk_as_it_was_written_is_noticed(tmp_path: Path, monkeypatch, place: str) -> None:
    write = module._write

    def write_wrong(file: BinaryIO, *arguments: Any) -> Any:
        done, tables = write(file, *arguments)
        allocations = tables.allocations
        at = {
            "first row": allocations["ptr"][0] + 5,
            "last row": allocations["ptr"][-1] + allocations["size"][-1] - 1,
            "label": len(tables.front) - 8,
            "allocation table": done.size - 3,
            "end": done.size,
        }[place]
        file.seek(int(at))
        byte = file.read(1)
        file.seek(int(at))
        file.write(bytes([byte[0] ^ 1]) if byte else b"x")
        return done, tables

    monkeypatch.setattr(module, "_write", write_wrong)
    message = "x.beton has .* bytes on its disk" if place == "end" else "differs on disk from what was written"
    _expect_failure(_source(60), tmp_path / "x.beton", message, num_workers=1)


def test_a_file_that_will_not_fit_is_not_begun(tmp_path: Path, monkeypatch) -> None:
    free = shutil.disk_usage(tmp_path)
    size = convert(_source(60), tmp_path / "x.beton", EncodeOptions(write_mode="raw"), num_workers=1).size
    needed = 60 * (photo(20).nbytes + 48)
    monkeypatch.setattr(module, "_write", lambda *_: pytest.fail("begun"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free._replace(free=needed - 10**6))
    message = rf"x.beton would take about {needed / 1e6:,.1f} MB, but {needed / 1e6 - 1:,.1f} MB are free on its disk"
    _expect_failure(_source(60), tmp_path / "x.beton", message, num_workers=1)
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free._replace(free=size))
    convert(_source(60), tmp_path / "x.beton", EncodeOptions(write_mode="raw"), num_workers=1)


def test_samples_of_many_sizes_tell_little_of_the_space(tmp_path: Path, monkeypatch) -> None:
    source, options = _source(37, tmp_path), EncodeOptions(write_mode="raw", max_resolution=0)
    free = shutil.disk_usage(tmp_path)._replace(free=int(estimate(source, options).size / 2))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    assert convert(source, tmp_path / "x.beton", options, num_workers=1).size > free.free


def test_estimate(tmp_path: Path) -> None:
    source = _source(37, tmp_path)
    (tmp_path / "3.png").write_bytes(b"no image")
    guess = estimate(source, EncodeOptions(write_mode="raw", max_resolution=0))
    sizes = [photo(index).nbytes for index in range(37) if index != 3]
    assert guess.size == pytest.approx(37 * (np.mean(sizes) + 48))
    assert guess.failed == [(str(tmp_path / "3.png"), "not an image that Pillow can read")]
    assert guess.tried == 37
    assert 0 < guess.seconds < 60


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


@pytest.mark.parametrize("change", [lambda path: path.write_bytes(path.read_bytes()[:-9]), Path.unlink])
def test_a_file_that_changes_meanwhile_is_an_error(tmp_path: Path, monkeypatch, change: Any) -> None:
    """Between the worker, which finds it sound, and the parent, which stores it."""
    for index in range(3):
        Image.fromarray(photo(index)).save(tmp_path / f"{index}.jpg")
    files = [tmp_path / f"{index}.jpg" for index in range(3)]
    read = worker_module.read
    monkeypatch.setattr(worker_module, "read", lambda image: (image == files[1] and change(image), read(image))[1])
    with pytest.raises(DataError, match=r"1\.jpg was changed, or could not be read again"):
        convert(Source(["x"], np.zeros(3, np.int64), files), tmp_path / "x.beton", EncodeOptions(), num_workers=1)
    assert not list(tmp_path.glob("*beton*"))


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

    def below(pid: int) -> list[int]:
        with suppress(OSError):  # it has ended
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            return [process for child in children for process in (int(child), *below(int(child)))]
        return []

    workers: list[Path] = []
    while len(workers) < 3 and parent.is_alive():  # multiprocessing's resource tracker, its fork server, and a worker
        time.sleep(0.1)
        workers = [Path(f"/proc/{process}/stat") for process in below(parent.pid or 0)]
    assert len(workers) >= 3
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
