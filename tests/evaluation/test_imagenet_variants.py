"""Folders of WordNet ids: which outputs of a model count, and what it is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from ffcv_cropmix.errors import DataError
from ffcv_cropmix.evaluation.accuracy import evaluate
from ffcv_cropmix.evaluation.imagenet_variants import Sliced, open_variant

CLASSES = [f"n{number:08}" for number in (1, 3, 5, 7, 9)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images each of the classes 1 and 3; one is a palette image, all are of different sizes."""
    for number, name in enumerate((CLASSES[3], CLASSES[1])):
        (tmp_path / name).mkdir()
        for k in range(2):
            pixels = np.random.default_rng(2 * number + k).integers(0, 256, (40 + 9 * k, 70 - 20 * number, 3), np.uint8)
            image = Image.fromarray(pixels)
            (image.quantize() if k else image).save(tmp_path / name / f"{k}.png")
    (tmp_path / "README.txt").touch()  # ImageNet-R has one
    return tmp_path


@pytest.mark.parametrize(("outputs", "labels"), [([1, 3], [0, 0, 1, 1]), (list(range(5)), [1, 1, 3, 3])])
def test_images_and_labels(folder: Path, outputs: list[int], labels: list[int]) -> None:
    variant = open_variant(folder, CLASSES)
    assert variant.classes == [1, 3]
    batches = list(variant.batches(outputs, 28, 0.875, "bilinear", batch_size=3, workers=2))
    assert [len(images) for images, _ in batches] == [3, 1]
    assert torch.cat([of for _, of in batches]).tolist() == labels
    reference = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(28), transforms.PILToTensor()])
    expected = [reference(Image.open(path).convert("RGB")) for path in variant.files]
    assert torch.equal(torch.cat([images for images, _ in batches]), torch.stack(expected))


def test_outputs_of_other_classes_do_not_count() -> None:
    outputs = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20) % 2  # of the classes 1 and 3
    expected = 100 * (outputs.numpy()[:, [1, 3]].argmax(1) == labels.numpy()).mean()
    batches: list[tuple[Tensor, Tensor]] = [(outputs[:, None, None, :].expand(-1, 3, 1, 5), labels)]
    first_row = nn.Sequential(nn.Flatten(), nn.Linear(15, 5, bias=False))
    with torch.no_grad():
        first_row[1].weight.copy_(torch.eye(15)[:5])
    result = evaluate(Sliced(first_row, [1, 3]), batches, num_classes=2, flip_tta=False)
    assert result.top_1 == pytest.approx(expected)
    assert 0 < expected < 100


def test_folders_that_cannot_be_evaluated(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"^{folder / CLASSES[3]}: {CLASSES[3]} is none of the 3 classes of --data"):
        open_variant(folder, CLASSES[:3])
    with pytest.raises(DataError, match="no such folder"):
        open_variant(folder / "missing", CLASSES)
    (folder / CLASSES[1] / "0.png").write_bytes(b"no image")
    batches = open_variant(folder, CLASSES).batches([1, 3], 28, 0.875, "bilinear", 3, 1)
    with pytest.raises(DataError, match=rf"^{folder / CLASSES[1] / '0.png'} cannot be read"):
        next(batches)
    for path in (folder / CLASSES[1]).iterdir():
        path.unlink()
    (folder / CLASSES[1]).rmdir()
    with pytest.raises(DataError, match="one class only"):
        open_variant(folder, CLASSES)
