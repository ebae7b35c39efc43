"""Files that are there whole, or not at all."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from ffcv_cropmix.data.replacing import replacing
from ffcv_cropmix.errors import DataError


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_nothing_has_its_name_before_all_are_whole(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    second.write_text("old")
    with replacing(first, second) as files:
        files[0].write(b"1")
        files[1].write(b"2")
        assert not first.exists()
        assert second.read_text() == "old"
    assert (first.read_text(), second.read_text()) == ("1", "2")
    assert _names(tmp_path) == ["first", "second"]


def test_failures_leave_what_was_there(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    second.write_text("old")
    with pytest.raises(KeyError), replacing(first, second) as files:
        files[0].write(b"1")
        raise KeyError
    with pytest.raises(DataError, match="first cannot be written: No space left"), replacing(first, second):
        raise OSError(28, "No space left on device")
    assert _names(tmp_path) == ["second"]
    assert second.read_text() == "old"


def test_what_belonged_to_the_file_before_goes(tmp_path: Path) -> None:
    """Also if a run ends between the renames: a file may lack the other, but never have another's."""
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    second.write_text("old")
    third.mkdir()  # cannot be replaced
    with pytest.raises(DataError), replacing(first, second, third) as files:
        files[0].write(b"1")
    assert _names(tmp_path) == ["third"]
    third.rmdir()
    second.write_text("old")
    with replacing(first, second, third) as files:
        files[0].write(b"1")
    assert _names(tmp_path) == ["first"]


def test_what_killed_runs_left_is_removed(tmp_path: Path) -> None:
    for name in (".x.beton.1.tmp", ".x.beton.2.tmp", ".y.beton.1.tmp"):
        (tmp_path / name).touch()
    with (tmp_path / ".x.beton.2.tmp").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with replacing(tmp_path / "x.beton") as (mine,):
            assert _names(tmp_path) == sorted([".x.beton.2.tmp", ".y.beton.1.tmp", Path(mine.name).name])
            with replacing(tmp_path / "x.beton"):  # at the same time
                pass
            mine.write(b"whole")
    assert (tmp_path / "x.beton").read_text() == "whole"


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_followed(tmp_path: Path, there: bool) -> None:
    (tmp_path / "disk").mkdir()
    file, link, other = tmp_path / "disk" / "file", tmp_path / "link", tmp_path / "other"
    if there:
        file.write_text("old")
    link.symlink_to("disk/file")
    with replacing(other, link) as files:
        for each in files:
            each.write(b"new")
    assert link.is_symlink()
    assert (file.read_text(), other.read_text()) == ("new", "new")
    assert _names(tmp_path / "disk") == ["file"]


@pytest.mark.parametrize("linked", [True, False])
def test_what_is_no_regular_file_stays(tmp_path: Path, linked: bool) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to("pipe")
    named = link if linked else pipe
    for paths in ((named,), (tmp_path / "file", named)):
        with pytest.raises(DataError, match=f"{named.name} is a named pipe, a device or a socket"), replacing(*paths):
            pass
    assert pipe.is_fifo()
    assert _names(tmp_path) == ["link", "pipe"]
