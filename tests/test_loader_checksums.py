"""The loader compares samples with the checksums of the sidecar."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
from ffcv.transforms import ToTensor

from ffcv_cropmix import CropMixRGBImageDecoder, Loader
from ffcv_cropmix.errors import DataError
from tests.betons import damaged


def test_checksums_see_what_decodes(sealed, tmp_path: Path) -> None:
    for mode in ("raw", "jpg"):
        path = damaged(sealed[mode], tmp_path / f"{mode}.beton", 30, "a bit")
        shutil.copy(f"{sealed[mode]}.json", f"{path}.json")
        reports = []
        for checksums in (True, False):
            pipelines = {"image": [CropMixRGBImageDecoder((8, 8), on_error="zero"), ToTensor()], "label": None}
            options = {"num_workers": 2, "drop_last": False, "checksums": checksums}
            loader = Loader(path, 8, pipelines=pipelines, **options)
            images = np.concatenate([batch.numpy().copy() for (batch,) in loader])
            assert images[29].any()
            reports.append([str(failure) for failure in loader.report()])
            assert images[30].any() == (not checksums)
        because = "the checksum differs: the data are not those that were written"
        assert reports == [[f"{path}: sample 30, of class 30 (class 30): {because}"], []]


def test_checksums_that_cannot_be_compared(betons, sealed) -> None:
    with pytest.raises(DataError, match=r"raw.beton: there are no checksums in .*raw.beton.json to compare with"):
        Loader(betons["raw"], 4, checksums=True)
    for pipelines in ({"image": None}, {"image": [RandomResizedCropRGBImageDecoder((8, 8))]}):
        with pytest.raises(ValueError, match="no decoder of this package reads an image"):
            Loader(sealed["raw"], 4, pipelines=pipelines, checksums=True)
