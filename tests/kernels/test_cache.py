"""What one process compiles the next one loads: but no other code, none of older sources, and nothing damaged."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import config
from numba.core import event

from ffcv_cropmix import batch_loop, dct_pixels, decoders, functional, turbojpeg
from ffcv_cropmix.data import dct
from ffcv_cropmix.data.encode import EncodeOptions, encode
from ffcv_cropmix.kernels import cache
from ffcv_cropmix.kernels.jit import entry, jit
from ffcv_cropmix.kernels.render import padded
from tests import race

pytestmark = pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cache, "_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def run(kernel=padded, argument=25) -> bool:
    """Call a kernel in a dispatcher of its own; return whether it was loaded."""
    compiled = entry(kernel)
    assert compiled(argument) == kernel(argument)
    hits, misses = (sum(counts.values()) for counts in (compiled.stats.cache_hits, compiled.stats.cache_misses))
    assert hits + misses == 1
    return hits == 1


def test_loaded_the_second_time(folder: Path) -> None:
    assert [run(), run(), run(argument=25.0), run(argument=25.0), run()] == [False, True, False, True, True]
    assert len(list(folder.iterdir())) == 2


def test_damaged_files_are_compiled_anew(folder: Path) -> None:
    run()
    (file,) = folder.iterdir()
    content = file.read_bytes()
    positions = [0, 31, 32, len(content) // 2, len(content) - 1]
    flipped = [content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] for at in positions]
    for damaged in [b"", content[:20], content[:32], content[:-1], content + b"\0", bytes(len(content)), *flipped]:
        file.write_bytes(damaged)
        assert not run()
        assert run()


def test_a_file_under_another_name_is_not_used(folder: Path) -> None:
    run()
    (integer,) = folder.iterdir()
    run(argument=25.0)
    (number,) = set(folder.iterdir()) - {integer}
    number.write_bytes(integer.read_bytes())
    assert not run(argument=25.0)


def test_other_sources_and_settings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    stamps = {cache._stamp()}
    for name, value in (("NUMBA_BOUNDSCHECK", "1"), ("NUMBA_OPT", "0"), ("NUMBA_NUM_THREADS", "1")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            stamps.add(cache._stamp())
    assert len(stamps) == 3  # any number of threads runs the same code
    monkeypatch.setattr(cache, "_sources", "edited before the import")
    assert cache._stamp() not in stamps
    assert not run()
    assert not run()  # the sources now are not those that were imported: nothing is kept
    assert len(list(folder.iterdir())) == 1


def test_all_sources_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {name: tmp_path / name for name in cache._FOLDERS}
    monkeypatch.setattr(cache, "_FOLDERS", folders)
    digests = {cache._digest_of_sources()}
    for folder in folders.values():
        folder.mkdir()
        for content in ("A = 1", "A = 2"):
            (folder / "a.py").write_text(content)
            digests.add(cache._digest_of_sources())
    assert len(digests) == 1 + 2 * len(folders)


def test_closures_are_told_apart() -> None:
    kind = batch_loop.Specialization(decoders.sample_cropmix, OPTIONS, dct=False, two_pass=False, decode="rgb")
    compiled = [batch_loop.compile_sample(kind._replace(decode=decode)) for decode in ("rgb", "ycbcr")]
    names = {cache.identity(functions[k]) for functions in compiled for k in (0, 2)}
    names |= {cache.identity(functional._compile(bicubic)) for bicubic in (False, True)}
    names |= {cache.identity(value) for value in (turbojpeg.new_handle, turbojpeg.destroy_handle)}
    assert len(names) == 8


OPTIONS = decoders.numba.typeof(decoders.CropMixRGBImageDecoder()._options)


@jit
def foreign(number):
    return number + 1


def test_functions_of_others_are_not_kept(folder: Path) -> None:
    copy = type(padded)(padded.__code__, {**padded.__globals__, "FULL": 1}, "padded")
    for kernel in (foreign, copy):
        with pytest.raises(TypeError, match="has no name of its own"):
            cache.identity(kernel)
        assert not run(kernel)
        assert not run(kernel)
    assert not folder.exists()


def test_a_folder_that_cannot_be_written(folder: Path) -> None:
    folder.write_text("a file")
    assert not run()
    assert not run()
    assert folder.read_text() == "a file"


def test_a_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write)
    assert not run()
    assert list(folder.iterdir()) == []


def test_the_oldest_files_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_MOST_FILES", 2)
    for argument in (25, 25.0, True):
        run(argument=argument)
        for file in folder.iterdir():
            os.utime(file, (0, file.stat().st_mtime - 10))
    assert [run(argument=argument) for argument in (25.0, True, 25)] == [True, True, False]


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({"HOME": "{}"}, ".cache/ffcv_cropmix"),
        ({"HOME": "{}", "XDG_CACHE_HOME": "{}/xdg"}, "xdg/ffcv_cropmix"),
        ({"HOME": "{}", "NUMBA_CACHE_DIR": "{}/numba"}, "numba/ffcv_cropmix"),
        ({"HOME": "{}", "FFCV_CROPMIX_CACHE": "0"}, None),
        ({"HOME": "{}", "XDG_CACHE_HOME": "relative"}, None),
        ({"HOME": "{}", "NUMBA_CACHE_DIR": "relative"}, "relative/ffcv_cropmix"),
    ],
)
def test_where_files_lie(tmp_path: Path, monkeypatch, environment: dict[str, str], place: str | None) -> None:
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "FFCV_CROPMIX_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "CACHE_DIR", "")
    assert cache._folder.__wrapped__() == (tmp_path / place if place else None)


def test_processes_that_start_together(tmp_path: Path) -> None:
    assert race.round_of(8, tmp_path, full=False) == 1


def test_the_second_process_compiles_nothing(betons) -> None:
    expected = f"{race.digests(betons['jpg'])}\n"
    code = f"""
from numba.core import event
from tests.race import digests
with event.install_recorder("numba:compile") as compiled:
    print(digests({str(betons["jpg"])!r}))
assert not compiled.buffer
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=race.ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == expected


def test_the_decoder_that_a_conversion_compiles_is_loaded_to_read_the_file(folder: Path) -> None:
    for compiled in (dct_pixels.compile_decode_dct, dct._decoder):
        compiled.cache_clear()
    encode(0, np.zeros((8, 8, 3), np.uint8), EncodeOptions(write_mode="dct"))
    for compiled in (dct_pixels.compile_decode_dct, batch_loop._compile_reader):
        compiled.cache_clear()
    with event.install_recorder("numba:compile") as recorded:
        batch_loop._compile_reader(True)
    assert not recorded.buffer
