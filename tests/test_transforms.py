"""The torchvision drop-in, as its users use it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets, transforms

from ffcv_cropmix import cropmix, sample_plan
from ffcv_cropmix.transforms import CropMix
from tests.betons import photo

IMAGE = Image.fromarray(photo(20))


def test_equals_cropmix_with_torchs_seed() -> None:
    transform = CropMix(0.01, 0.4, 234, 0, True, None, size=(40, 33))
    torch.manual_seed(4)
    seeds = [int(torch.randint(2**62, ())) for _ in range(3)]
    torch.manual_seed(4)
    for seed in seeds:
        options = {"scale": 0.01, "mix_ratio": 0.4, "number": (2, 3, 4), "operation": "mixup", "inter_aug": True}
        plan = sample_plan(IMAGE.height, IMAGE.width, output_size=(40, 33), seed=seed, **options)
        expected = cropmix(np.asarray(IMAGE), plan, (40, 33))
        tensor = transform(IMAGE)
        assert (tensor.dtype, tensor.shape) == (torch.float32, (3, 40, 33))
        np.testing.assert_array_equal(tensor.numpy(), expected.transpose(2, 0, 1) / np.float32(255))


def _passes_of_a_data_loader(folder: Path, operation: int) -> list[np.ndarray]:
    post_aug = transforms.Compose([transforms.RandomHorizontalFlip(), transforms.Normalize([0.5] * 3, [0.25] * 3)])
    dataset = datasets.ImageFolder(folder, CropMix(0.01, 0.4, 234, operation, True, post_aug))
    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, num_workers=2, multiprocessing_context="fork")
    return [np.concatenate([images.numpy() for images, _ in loader]) for _ in range(2)]


def test_the_authors_demo_in_data_loader_workers(tmp_path: Path) -> None:
    for index in range(12):
        folder = tmp_path / f"class{index % 3}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(photo(20 + index)).save(folder / f"{index}.jpg")
    # In a process of its own: workers are forked, which the threads that other tests started here do not survive.
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        for operation in (0, 1):
            runs = [process.submit(_passes_of_a_data_loader, tmp_path, operation) for _ in range(2)]
            (first, second), again = (run.result() for run in runs)
            assert first.shape == (12, 3, 224, 224)
            assert -2 <= first.min() < -0.5 < 0.5 < first.max() <= 2
            assert len({image.tobytes() for image in (*first, *second)}) == 24  # no two images are equal
            assert all(np.array_equal(a, b) for a, b in zip((first, second), again))


def test_pickles_and_prints() -> None:
    transform = CropMix((0.2, 0.6), 1.0, 2, "cutmix", False, transforms.Normalize([0.5] * 3, [0.5] * 3), 16)
    copy = pickle.loads(pickle.dumps(transform))
    torch.manual_seed(1)
    expected = transform(IMAGE)
    torch.manual_seed(1)
    assert torch.equal(copy(IMAGE), expected)
    assert "scale=(0.2, 0.6)" in repr(copy)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_any_mode(mode: str) -> None:
    assert CropMix(0.5, 0.4, 2, 0, False, None, 8)(IMAGE.convert(mode)).shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 2}, "scale .* got"),
        ({"mix_ratio": 0}, "mix_ratio .* got 0"),
        ({"number": 9}, "number .* got 9"),
        ({"operation": 2}, "operation .* got 2"),
        ({"size": 0}, r"size .* got \(0, 0\)"),
    ],
)
def test_wrong_arguments_are_named(change: dict, message: str) -> None:
    arguments = {"scale": 0.01, "mix_ratio": 0.4, "number": 2, "operation": 0, "inter_aug": False} | change
    with pytest.raises(ValueError, match=message):
        CropMix(**arguments)


def test_works_without_ffcv() -> None:
    code = """
import sys
sys.modules["ffcv"] = None  # importing it fails
from PIL import Image
from ffcv_cropmix.transforms import CropMix
CropMix(0.5, 0.4, 2, 0, False, None, 8)(Image.new("RGB", (9, 9)))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F", "1", "P", "LA", "RGBA", "CMYK"])
def test_other_modes_as_the_writer_converts_them(mode: str, recwarn) -> None:
    gray = Image.fromarray(photo(20)).convert("L")
    if mode in ("I;16", "I;16B", "I"):
        levels = np.asarray(gray).astype(int) * 256 + 7
        image = Image.frombytes(
            mode, gray.size, levels.astype({"I": "<i4", "I;16": "<u2", "I;16B": ">u2"}[mode]).tobytes()
        )
    else:
        image = gray.convert(mode)
    if mode == "P":
        image.info["transparency"] = bytes(range(256))
    transform = CropMix(0.01, 0.4, 2, 0, False, None, size=24)
    torch.manual_seed(0)
    mixed = transform(image)
    torch.manual_seed(0)
    expected = transform(gray.convert("1") if mode == "1" else gray)
    assert torch.equal(mixed, expected)
    assert not recwarn.list


def test_what_is_no_image() -> None:
    with pytest.raises(TypeError, match="takes a PIL image, got Tensor"):
        CropMix(0.01, 0.4, 2, 0, False)(torch.zeros(3, 9, 9))
