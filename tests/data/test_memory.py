"""Pages that are read ahead: the right ones, not too many, and their errors."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from ffcv.loader import OrderOption
from ffcv.transforms import ToTensor

from ffcv_cropmix import CenterCropRGBImageDecoder, Loader
from ffcv_cropmix.data.memory import PageCache
from ffcv_cropmix.data.reader import Beton, read_sample
from ffcv_cropmix.errors import DataError
from tests.betons import COUNT


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("most", [1, 2, 100])
def test_samples_are_read_from_few_pages(betons, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    beton = Beton(betons["raw"])
    assert beton.data_end > 2 * beton.page_size
    batches = [np.array([row]) for row in np.random.default_rng(0).integers(0, COUNT, 200)]
    read = []
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *given: read.append(given) or preadv(*given))
    before = descriptors()
    pages = PageCache(beton, most * beton.page_size).schedule_epoch(batches)
    assert len(pages.state.memory) <= most * beton.page_size
    with pages:
        for number, (row,) in enumerate(batches):
            pages.start_batch(number)
            image = read_sample(beton.column("image")["data_ptr"][row], pages.state)
            np.testing.assert_array_equal(image, beton.read("image", row))
    assert descriptors() == before
    count = len(np.unique(beton.alloc_table["ptr"] // beton.page_size))
    assert len(read) == count if most == 100 else len(read) > count


def test_what_a_batch_needs_does_not_fit(betons) -> None:
    beton = Beton(betons["raw"])
    with pytest.raises(MemoryError, match=r"raw.beton: a batch needs \d pages of 2 MiB, more than the 2 that fit"):
        PageCache(beton, 2 * beton.page_size).schedule_epoch([np.arange(COUNT)])


def _loader(path: Path) -> Loader:
    pipelines = {"image": [CenterCropRGBImageDecoder((4, 4)), ToTensor()], "label": None}
    return Loader(path, 4, num_workers=1, os_cache=False, order=OrderOption.SEQUENTIAL, pipelines=pipelines)


def test_an_error_of_a_reading_thread_is_raised_in_the_loop(betons, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    loader = _loader(betons["raw"])
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(OSError, match="Input/output error"):
        next(iter(loader))


def test_a_file_that_was_replaced_or_cut_off_is_named(betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = _loader(Path(shutil.copy(betons["raw"], tmp_path / "x.beton")))
    with monkeypatch.context() as patched, pytest.raises(DataError, match=r"x.beton was cut off while it was read"):
        patched.setattr(os, "preadv", lambda *_: 0)
        next(iter(loader))
    Path(shutil.copy(betons["raw"], tmp_path / "y.beton")).replace(tmp_path / "x.beton")
    with pytest.raises(DataError, match=r"x.beton was replaced after the loader had opened it: make a new loader"):
        next(iter(loader))
