"""Whatever is decoded of an image, wherever: the same pixels, or close ones where that is documented."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ffcv_cropmix import (
    CenterCropRGBImageDecoder,
    CropMixRGBImageDecoder,
    Loader,
    MixPlan,
    MultiViewRGBImageDecoder,
    ViewSpec,
    cropmix,
    sample_plan,
)
from tests.betons import COUNT, payload, write_dct
from tests.reading import OPTIONS, SIZE, pipelines, read


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
import ffcv_cropmix.ffcv_compat
from ffcv.transforms import ToTensor
from ffcv_cropmix import CropMixRGBImageDecoder, Loader, batch_loop, cropmix, sample_plan
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
    render = batch_loop._compile_render_planes().__wrapped__
    (resample,) = (cell.cell_contents for cell in render._pyfunc.__closure__ if hasattr(cell.cell_contents, "symbol"))
    code = render._library.get_asm_str() + resample.__wrapped__._library.get_asm_str()
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
import ffcv_cropmix.ffcv_compat
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
