"""The decoders deliver, from any loader, what `cropmix` and `sample_plan` say."""

from __future__ import annotations

import copy
import pickle
from itertools import combinations
from pathlib import Path

import ffcv.loader
import numpy as np
import pytest
import torch
from ffcv.loader import OrderOption
from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToDevice, ToTensor, ToTorchImage
from numba.core import event
from PIL import Image

import ffcv_cropmix.loader
from ffcv_cropmix import (
    CenterCropRGBImageDecoder,
    CropMixRGBImageDecoder,
    Loader,
    MultiViewRGBImageDecoder,
    ToTorchViews,
    ViewSpec,
    cropmix,
    sample_plan,
)
from ffcv_cropmix.data.reader import Beton
from ffcv_cropmix.decoders import DecodeError
from tests.betons import COUNT, damaged, stored_image
from tests.reading import OPTIONS, SIZE, check, expected, pipelines, read


@pytest.mark.parametrize("mode", ["raw", "jpg"])
@pytest.mark.parametrize("name", OPTIONS)
def test_equals_cropmix_of_the_sampled_plan(betons, mode: str, name: str) -> None:
    decoder = CropMixRGBImageDecoder(SIZE, **OPTIONS[name])
    loader = Loader(betons[mode], 8, num_workers=2, pipelines=pipelines(decoder), drop_last=False)
    for epoch in range(2):
        images = read(loader)
        assert sorted(images) == list(range(COUNT))
        check(images, betons[mode], name, epoch)


@pytest.mark.parametrize(
    ("num_workers", "batch_size", "order", "os_cache"),
    [
        (1, 7, OrderOption.SEQUENTIAL, True),
        (2, 32, OrderOption.RANDOM, True),
        (2, 1, OrderOption.QUASI_RANDOM, True),
        (2, 32, OrderOption.SEQUENTIAL, False),
        (1, 1, OrderOption.RANDOM, False),
        (2, 7, OrderOption.QUASI_RANDOM, False),
    ],
)
@pytest.mark.parametrize("kind", [Loader, ffcv.loader.Loader])
def test_same_bytes_however_it_is_read(betons, kind, num_workers: int, batch_size: int, order, os_cache: bool) -> None:
    loader = kind(
        str(betons["raw"]),
        batch_size,
        num_workers=num_workers,
        os_cache=os_cache,
        order=order,
        seed=batch_size,
        drop_last=False,
        pipelines=pipelines(CropMixRGBImageDecoder(SIZE, **OPTIONS["mixup"])),
    )
    first = read(loader)
    assert sorted(first) == list(range(COUNT))
    check(first, betons["raw"], "mixup", epoch=0)
    for _ in loader:  # a pass broken off counts
        break
    check(read(loader), betons["raw"], "mixup", epoch=2)


def test_another_seed_or_epoch_differs(betons) -> None:
    seen = []
    for seed in (0, 1):
        decoder = CropMixRGBImageDecoder(SIZE, seed=seed)
        loader = Loader(betons["raw"], 8, num_workers=1, pipelines=pipelines(decoder), drop_last=False)
        seen += [read(loader), read(loader)]
    for first, second in combinations(seen, 2):
        equal = [index for index in range(COUNT) if np.array_equal(first[index], second[index])]
        assert len(equal) <= 3  # of one pixel, and where an image's shape leaves no choice


def test_set_epoch(betons) -> None:
    decoder = CropMixRGBImageDecoder(SIZE, **OPTIONS["mixup"])
    loader = Loader(betons["raw"], 8, num_workers=1, pipelines=pipelines(decoder), drop_last=False)
    loader.set_epoch(2**32 - 2)
    for epoch in (2**32 - 2, 2**32 - 1):
        check(read(loader), betons["raw"], "mixup", epoch)
    for epoch in (-1, 2**32, 1.5, True):
        with pytest.raises(ValueError, match="epoch is an integer"):
            decoder.set_epoch(epoch)


def test_one_decoder_in_two_loaders_and_recompile(betons) -> None:
    decoder = CropMixRGBImageDecoder(SIZE, **OPTIONS["mixup"])
    options = {"num_workers": 1, "pipelines": pipelines(decoder), "drop_last": False}
    first, second = Loader(betons["raw"], 8, **options), Loader(betons["raw"], 5, recompile=True, **options)
    for epoch in range(2):
        for loader in (first, second):
            check(read(loader), betons["raw"], "mixup", epoch)


def test_two_passes_at_once(betons) -> None:
    decoder = CropMixRGBImageDecoder(SIZE, **OPTIONS["mixup"])
    loader = Loader(betons["jpg"], 4, num_workers=2, pipelines=pipelines(decoder))
    for epoch, passes in enumerate(zip(loader, loader, strict=True)):
        for number, (images, labels) in enumerate(passes):
            check(dict(zip(labels[:, 0].tolist(), images.numpy())), betons["jpg"], "mixup", number)
        assert epoch < COUNT // 4


@pytest.mark.parametrize("kind", [Loader, ffcv.loader.Loader])
def test_output_size_between_epochs_compiles_nothing(betons, kind, monkeypatch) -> None:
    decoder = CropMixRGBImageDecoder(SIZE, **OPTIONS["mixup"])
    loader = kind(str(betons["jpg"]), 8, num_workers=2, pipelines=pipelines(decoder), drop_last=False)
    read(loader)
    monkeypatch.setattr("ffcv_cropmix.kernels.cache._folder", lambda: None)  # nothing is loaded either
    for epoch, size in enumerate([(40, 16), (1, 1), (33, 70)], start=1):
        decoder.output_size = size
        with event.install_recorder("numba:compile") as compiled:
            images = read(loader)
        assert not compiled.buffer
        check(images, betons["jpg"], "mixup", epoch, size)


def test_stock_transforms_where_each_belongs(betons) -> None:
    mean, std = np.array([120.0, 110.0, 100.0]), np.array([60.0, 50.0, 70.0])
    for kind in (Loader, ffcv.loader.Loader):
        decoder = CropMixRGBImageDecoder(SIZE, **OPTIONS["mixup"])
        normalized = [RandomHorizontalFlip(1.0), NormalizeImage(mean, std, np.float32), ToTensor()]
        stages = pipelines(decoder, *normalized, ToDevice(torch.device("cpu")), ToTorchImage())
        images = read(kind(str(betons["jpg"]), 8, num_workers=2, pipelines=stages))
        assert len(images) == COUNT // 8 * 8
        for index, image in images.items():
            assert image.dtype == np.float32
            mirrored = expected(betons["jpg"], "mixup", 0, index)[:, ::-1]
            np.testing.assert_allclose(image, ((mirrored - mean) / std).transpose(2, 0, 1), atol=1e-5)


@pytest.mark.parametrize("mode", ["raw", "jpg"])
@pytest.mark.parametrize("ratio", [224 / 256, 1.0])
def test_center_crop_is_pillows(betons, mode: str, ratio: float) -> None:
    decoder = CenterCropRGBImageDecoder((20, 20), ratio)
    images = read(Loader(betons[mode], 8, num_workers=1, pipelines=pipelines(decoder), drop_last=False))
    for index, image in images.items():
        source = stored_image(betons[mode], index)
        height, width, _ = source.shape
        side = max(int(ratio * min(height, width)), 1)
        top, left = (height - side) // 2, (width - side) // 2
        crop = Image.fromarray(source[top : top + side, left : left + side])
        difference = np.asarray(crop.resize((20, 20), Image.Resampling.BILINEAR)).astype(int) - image
        assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda decoder: pickle.loads(pickle.dumps(decoder))])
@pytest.mark.parametrize(
    ("create", "transform"),
    [
        (lambda: CropMixRGBImageDecoder(SIZE, **OPTIONS["mixup"]), ToTensor),
        (lambda: CenterCropRGBImageDecoder(SIZE), ToTensor),
        (lambda: MultiViewRGBImageDecoder([ViewSpec(SIZE)] * 2), ToTorchViews),
    ],
)
def test_copies_decode_the_same(betons, create, transform, duplicate, used: bool) -> None:
    def first_batch(decoder) -> list[bytes]:
        pipelines = {"image": [decoder, transform()], "label": None}
        images = next(iter(Loader(betons["raw"], 4, num_workers=1, pipelines=pipelines)))[0]
        return [view.numpy().tobytes() for view in (images if isinstance(images, tuple) else [images])]

    decoder = create()
    expected = first_batch(decoder) if used else first_batch(create())
    copied = duplicate(decoder)
    assert copied.metadata is None  # of the loader that used it
    assert first_batch(copied) == expected == first_batch(decoder)


DAMAGES = [
    ("jpg", "no JPEG", "not a JPEG"),
    ("jpg", "truncated", "the JPEG is damaged"),
    ("jpg", "another JPEG", "the JPEG's size differs from the metadata"),
    ("jpg", "f0.height=5", "the JPEG's size differs"),
    ("jpg", "f0.mode=7", "the mode is none of"),
    ("raw", "f0.width=5", "the size of the raw data differs"),
]


@pytest.fixture
def unchecked(betons, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is damaged after it was opened: what `check_beton` sees, decoders see as well."""
    monkeypatch.setattr(ffcv_cropmix.loader, "check_beton", Beton)


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize(("mode", "damage", "cause"), DAMAGES)
def test_damage_is_an_error_that_names_the_sample(
    betons, unchecked, tmp_path: Path, mode: str, damage: str, cause: str, num_workers: int
) -> None:
    path = damaged(betons[mode], tmp_path / "damaged.beton", 11, damage)
    decoder = CropMixRGBImageDecoder(SIZE, **OPTIONS["mixup"])
    loader = Loader(path, 4, num_workers=num_workers, pipelines=pipelines(decoder))
    batches = iter(loader)
    for _ in range(2):  # those before it are delivered
        images, labels = next(batches)
        check(dict(zip(labels[:, 0].tolist(), images.numpy())), betons[mode], "mixup", 0)
    with pytest.raises(DecodeError, match=f"damaged.beton: sample 11, of class 11: {cause}") as caught:
        next(batches)
    assert caught.value.index == 11


@pytest.mark.parametrize(("mode", "damage", "cause"), DAMAGES)
def test_damage_to_zeros(betons, unchecked, tmp_path: Path, mode: str, damage: str, cause: str) -> None:
    path = damaged(betons[mode], tmp_path / "damaged.beton", 11, damage)
    decoder = CropMixRGBImageDecoder(SIZE, on_error="zero", **OPTIONS["mixup"])
    loader = Loader(path, 4, num_workers=2, pipelines=pipelines(decoder), drop_last=False)
    for epoch in range(2):
        images = read(loader)
        assert len(images) == COUNT
        assert not images.pop(11).any()
        check(images, betons[mode], "mixup", epoch)
    (failure,) = loader.report()
    assert (failure.index, failure.label) == (11, "11")
    assert failure.cause.startswith(cause)


def test_centre_crops_to_zeros(betons, tmp_path: Path) -> None:
    path = damaged(betons["jpg"], tmp_path / "damaged.beton", 11, "truncated")
    decoder = CenterCropRGBImageDecoder(SIZE, on_error="zero")
    loader = Loader(path, 8, num_workers=1, pipelines=pipelines(decoder), drop_last=False)
    assert [index for index, image in read(loader).items() if not image.any()] == [11]
    assert [failure.index for failure in loader.report()] == [11]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_size": (0, 3)}, r"output_size .* got \(0, 3\)"),
        ({"output_size": 224}, "output_size .* got 224"),
        ({"interpolation": "nearest"}, "interpolation .* got 'nearest'"),
        ({"on_error": "skip"}, "on_error is one of raise, zero, got 'skip'"),
        ({"decode": "fast"}, "decode is one of rgb, rows, ycbcr, got 'fast'"),
        ({"number": 9}, "number .* got 9"),
        ({"scale": 0}, "scale .* got"),
        ({"seed": -1}, "seed .* got -1"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CropMixRGBImageDecoder(**options)


@pytest.mark.parametrize("ratio", [0, 1.01, -1])
def test_center_crop_wrong_ratio(ratio: float) -> None:
    with pytest.raises(ValueError, match=f"ratio .* got {ratio}"):
        CenterCropRGBImageDecoder((8, 8), ratio)


@pytest.mark.parametrize("interpolation", ["bicubic", "area"])
@pytest.mark.parametrize("mode", ["raw", "jpg"])
def test_interpolation(betons, mode: str, interpolation: str) -> None:
    decoder = CropMixRGBImageDecoder(SIZE, interpolation=interpolation)
    images = read(Loader(betons[mode], 8, num_workers=2, pipelines=pipelines(decoder)))
    for index, image in images.items():
        source = stored_image(betons[mode], index)
        plan = sample_plan(*source.shape[:2], output_size=SIZE, index=index)
        np.testing.assert_array_equal(image, cropmix(source, plan, SIZE, interpolation))
