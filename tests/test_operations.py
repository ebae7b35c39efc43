"""The decoders deliver, from any loader, what `cropmix` and `sample_plan` say."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
from functools import cache
from itertools import combinations
from pathlib import Path

import ffcv.loader
import numpy as np
import pytest
import torch
from ffcv.fields.basics import IntDecoder
from ffcv.loader import OrderOption
from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToDevice, ToTensor, ToTorchImage
from numba.core import event
from PIL import Image

import ffcv_cropmix.loader
from ffcv_cropmix import (
    CenterCropRGBImageDecoder,
    CropMixRGBImageDecoder,
    Loader,
    MixPlan,
    MultiViewRGBImageDecoder,
    ToTorchViews,
    ViewSpec,
    cropmix,
    sample_plan,
)
from ffcv_cropmix.data.reader import Beton
from ffcv_cropmix.operations import DecodeError
from tests.betons import COUNT, damaged, payload, stored_image, write_dct

SIZE = (24, 31)
OPTIONS = {
    "mixup": {"inter_aug": True, "flip_probability": 0.5, "seed": 2**63 + 5},
    "cutmix": {"operation": "cutmix", "number": 23, "scale": (0.1, 0.9), "inter_aug": True, "seed": 1},
    "crop": {"number": 1, "scale": 0.08, "ratio": (0.5, 2.0)},
}
LABEL = [IntDecoder(), ToTensor()]


def pipelines(decoder, *transforms) -> dict:
    return {"image": [decoder, *(transforms or (ToTensor(),))], "label": [*LABEL]}


@cache
def expected(path: Path, name: str, epoch: int, index: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    image = stored_image(path, index)
    plan = sample_plan(*image.shape[:2], output_size=size, epoch=epoch, index=index, **OPTIONS[name])
    return cropmix(image, plan, size)


def read(loader) -> dict[int, np.ndarray]:
    """Index to image of one pass."""
    return {int(label): image.numpy().copy() for images, labels in loader for image, label in zip(images, labels)}


def check(images: dict[int, np.ndarray], path: Path, name: str, epoch: int, size: tuple[int, int] = SIZE) -> None:
    for index, image in images.items():
        np.testing.assert_array_equal(image, expected(path, name, epoch, index, size), err_msg=f"sample {index}")


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
    ("jpg", "no JPEG", "its data are no JPEG"),
    ("jpg", "truncated", "its JPEG is damaged"),
    ("jpg", "another JPEG", "its JPEG has another size than the metadata say"),
    ("jpg", "f0.height=5", "its JPEG has another size"),
    ("jpg", "f0.mode=7", "its mode is neither"),
    ("raw", "f0.width=5", "its raw data have another size"),
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


@pytest.mark.parametrize("mode", ["raw", "jpg"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("operation", ["mixup", "cutmix"])
def test_decoding_rows_gives_the_same_pixels(betons, mode: str, interpolation: str, operation: str) -> None:
    images = []
    for decode in ("rgb", "rows"):
        decoder = CropMixRGBImageDecoder(
            SIZE, scale=(0.01, 0.5), operation=operation, interpolation=interpolation, decode=decode
        )
        images.append(read(Loader(betons[mode], 8, num_workers=2, pipelines=pipelines(decoder), drop_last=False)))
    np.testing.assert_array_equal(list(images[0].values()), list(images[1].values()))


@pytest.mark.parametrize("options", [{}, {"operation": "cutmix"}, {"interpolation": "area"}, {"number": 1}])
def test_decoding_planes_is_close(photos: Path, options: dict) -> None:
    """Of photos whose colours are not clipped. Those of ImageNet: 0.7 % of values differ by more than 1 level."""
    images = []
    for decode in ("rgb", "ycbcr"):
        decoder = CropMixRGBImageDecoder(
            (112, 96), inter_aug=True, flip_probability=0.5, scale=0.1, decode=decode, **options
        )
        images.append(np.stack(list(read(Loader(photos, 2, num_workers=1, pipelines=pipelines(decoder))).values())))
    difference = images[1].astype(int) - images[0]
    assert abs(difference.mean()) < 0.02
    difference = np.abs(difference)
    assert (difference > 1).mean() < 0.0007
    assert difference.max() <= 3
    assert difference.any()  # it is another way


def test_decoding_planes_leaves_other_images_alone(betons) -> None:
    images = []
    for decode in ("rgb", "ycbcr"):
        decoder = CropMixRGBImageDecoder(SIZE, decode=decode)
        images.append(read(Loader(betons["raw"], 8, num_workers=2, pipelines=pipelines(decoder), drop_last=False)))
    np.testing.assert_array_equal(list(images[0].values()), list(images[1].values()))


DIGEST = """
import hashlib, sys
import numpy as np
from ffcv.transforms import ToTensor
from ffcv_cropmix import CropMixRGBImageDecoder, Loader, cropmix, operations, sample_plan
folder, registers = sys.argv[1:]
sampled = {"inter_aug": True, "flip_probability": 0.5}
for mode, options in ("raw", {"interpolation": "area"}), ("jpg", {"operation": "cutmix", "decode": "ycbcr"}):
    options |= {"decode": "ycbcr"}  # compiled once
    decoder = CropMixRGBImageDecoder((17, 5), **sampled, **options)
    pipelines = {"image": [decoder, ToTensor()]}
    loader = Loader(f"{folder}/{mode}.beton", 4, num_workers=2, indices=range(8), pipelines=pipelines)
    for images, _ in loader:
        print(hashlib.sha256(images.numpy().tobytes()).hexdigest())
image = np.random.default_rng(0).integers(0, 256, (23, 40, 3), np.uint8)
for index in range(8):
    plan = sample_plan(23, 40, output_size=(17, 5), index=index, **sampled)
    print(hashlib.sha256(cropmix(image, plan, (17, 5), "bicubic").tobytes()).hexdigest())
if registers:
    options_type = operations.numba.typeof(decoder._options)
    kind = operations._Kind(decoder._sample_layers, options_type, False, False, "ycbcr")
    code = operations._compile(kind)[2].__wrapped__._library.get_asm_str()
    assert f"%{registers[0]}mm" in code
    assert not any(f"%{wider}mm" in code for wider in registers[1:])
"""
CPUS = {  # those that have less than this one: their code, and the registers in it, with those that are wider
    "SSE": ({"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse2"}, "xyz", "avx2"),
    "AVX2": ({"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": "+avx2"}, "yz", "avx512bw"),
}


def digests(betons, environment: dict[str, str], registers: str = "") -> list[str]:
    environment = {**os.environ, **environment, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", DIGEST, str(betons["raw"].parent), registers]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


@pytest.fixture(scope="module")
def compiled(betons) -> list[str]:
    lines = digests(betons, {})
    assert len(set(lines)) == 12
    return lines


def test_interpreted_as_compiled(betons, compiled: list[str]) -> None:
    assert digests(betons, {"NUMBA_DISABLE_JIT": "1"}) == compiled


@pytest.mark.parametrize("name", CPUS)
def test_same_bytes_on_lesser_cpus(betons, compiled: list[str], name: str) -> None:
    environment, registers, more = CPUS[name]
    environment = {**environment, "FFCV_CROPMIX_CACHE": "0"}  # what is loaded has no assembly to look at
    if more not in Path("/proc/cpuinfo").read_text().split():
        pytest.skip(f"this CPU has no more than {name}")
    assert digests(betons, environment, registers) == compiled


THREADS = """
import hashlib, sys
from ffcv.transforms import ToTensor
from ffcv_cropmix import CropMixRGBImageDecoder, Loader
for num_workers in (1, 2, 4, 8):
    pipelines = {"image": [CropMixRGBImageDecoder((40, 30), inter_aug=True), ToTensor()]}
    loader = Loader(sys.argv[1], 37, num_workers=num_workers, pipelines=pipelines)
    digest = hashlib.sha256()
    for _ in range(3):
        loader.set_epoch(0)
        for images, _ in loader:
            digest.update(images.numpy().tobytes())
    print(digest.hexdigest())
"""


def test_same_bytes_with_any_number_of_threads(betons) -> None:
    environment = {**os.environ, "NUMBA_NUM_THREADS": "8", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", THREADS, str(betons["jpg"])]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.split()
    assert len(lines) == 4
    assert len(set(lines)) == 1


def accurate_image(jpg: Path, index: int) -> np.ndarray:
    """The image as libjpeg-turbo decodes it accurately: Pillow."""
    address, size = payload(jpg, index)
    return np.asarray(Image.open(io.BytesIO(jpg.read_bytes()[address : address + size])).convert("RGB"))


@pytest.mark.parametrize(
    ("name", "interpolation", "decode"),
    [*((name, "bilinear", "rgb") for name in OPTIONS), ("cutmix", "area", "rows"), ("mixup", "bicubic", "ycbcr")],
)
def test_coefficients_are_rendered_as_the_jpegs_accurate_pixels(
    sealed: dict[str, Path], sealed_dct: Path, name: str, interpolation: str, decode: str
) -> None:
    decoder = CropMixRGBImageDecoder(SIZE, interpolation=interpolation, decode=decode, **OPTIONS[name])
    loader = Loader(sealed_dct, 8, num_workers=2, pipelines=pipelines(decoder), drop_last=False)
    images = read(loader)
    assert sorted(images) == list(range(COUNT))
    for index, image in images.items():
        source = accurate_image(sealed["jpg"], index)
        plan = sample_plan(*source.shape[:2], output_size=SIZE, index=index, **OPTIONS[name])
        np.testing.assert_array_equal(image, cropmix(source, plan, SIZE, interpolation))


def test_coefficients_in_other_decoders(sealed: dict[str, Path], sealed_dct: Path) -> None:
    centre = read(Loader(sealed_dct, 8, num_workers=2, pipelines=pipelines(CenterCropRGBImageDecoder(SIZE))))
    specs = [ViewSpec(SIZE, scale=(0.01, 0.1)), ViewSpec(SIZE, number=3)]
    both = read(Loader(sealed_dct, 8, num_workers=2, pipelines=pipelines(MultiViewRGBImageDecoder(specs, seed=4))))
    for index, image in centre.items():
        source = accurate_image(sealed["jpg"], index)
        height, width, _ = source.shape
        side = max(int(224 / 256 * min(height, width)), 1)
        crop = ((height - side) // 2, (width - side) // 2, side, side)
        expected = cropmix(source, MixPlan(crops=[crop]), SIZE)
        np.testing.assert_array_equal(image, expected, err_msg=f"{index}")
        for view, spec in enumerate(specs):
            sampled = {"scale": spec.scale, "number": spec.number, "seed": 4}
            plan = sample_plan(height, width, output_size=SIZE, index=index, view=view, **sampled)
            np.testing.assert_array_equal(both[index][view], cropmix(source, plan, SIZE))


def test_planes_of_coefficients_are_close(photos: Path, tmp_path: Path) -> None:
    path, images = write_dct(photos, tmp_path / "dct.beton"), []
    for decode in ("rgb", "ycbcr"):
        decoder = CropMixRGBImageDecoder((112, 96), inter_aug=True, scale=0.1, decode=decode)
        images.append(np.stack(list(read(Loader(path, 2, num_workers=1, pipelines=pipelines(decoder))).values())))
    difference = np.abs(images[1].astype(int) - images[0])
    assert (difference > 0).mean() > 0 and (difference > 1).mean() < 0.0007 and difference.max() <= 3
