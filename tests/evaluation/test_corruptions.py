"""Noise and other backgrounds: what is changed, what is not, and that rows alone determine it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ffcv_cropmix.errors import DataError
from ffcv_cropmix.evaluation.corruptions import Foreground, add_noise, other_rows, read_boxes, replace_background

ANNOTATION = """<annotation><filename>{name}</filename><size><width>{width}</width><height>{height}</height></size>
{objects}</annotation>"""
OBJECT = """<object><name>{wordnet}</name>
<bndbox><xmin>{1}</xmin><ymin>{0}</ymin><xmax>{3}</xmax><ymax>{2}</ymax></bndbox></object>"""


def _annotate(folder: Path, number: int, wordnet: str, *boxes: tuple[int, ...], size: tuple[int, int]) -> None:
    objects = "".join(OBJECT.format(*box, wordnet=wordnet) for box in boxes)
    path = folder / f"ILSVRC2012_val_{number:08}.xml"
    path.write_text(ANNOTATION.format(name=path.stem, height=size[0], width=size[1], objects=objects))


def test_noise_is_gaussian_in_the_background_alone() -> None:
    images = torch.full((4, 3, 64, 64), 0.5)
    foreground = torch.zeros(4, 1, 64, 64, dtype=torch.bool)
    foreground[:, :, 10:20, 30:40] = True
    noisy = add_noise(images, foreground, 7, std=0.1)
    assert torch.equal(noisy[:, :, 10:20, 30:40], images[:, :, 10:20, 30:40])
    noise = (noisy - images)[~foreground.expand_as(images)].numpy() / 0.1
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert noise.std() == pytest.approx(1, abs=0.02)
    assert (noise**4).mean() == pytest.approx(3, abs=0.2)  # kurtosis of a Gaussian
    extreme = add_noise(images, foreground, 7, std=1)
    assert (extreme.min(), extreme.max()) == (0, 1)


def test_noise_depends_on_seed_and_row_alone() -> None:
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros(6, 1, 8, 8, dtype=torch.bool)
    whole = add_noise(images, nothing, 10)
    parts = [add_noise(images[k:][:2], nothing[k:][:2], 10 + k) for k in (0, 2, 4)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(add_noise(images, nothing, 11), whole)
    assert not torch.equal(add_noise(images, nothing, 10, seed=1), whole)


def test_replacing() -> None:
    images, others = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    foreground = torch.tensor([[[[True, False], [False, True]]]])
    replaced = replace_background(images, others, foreground)
    assert replaced[0].tolist() == [[[0, 1], [1, 0]]] * 3
    assert other_rows(np.arange(5), 5).tolist() == [2, 3, 4, 0, 1]


def test_the_central_half_is_foreground_without_boxes() -> None:
    masks = Foreground(None, np.array([50]), np.array([90]), 224, 0.875).masks(0, 1)
    assert masks.shape == (1, 1, 224, 224)
    assert masks.float().mean() == pytest.approx(0.5, abs=0.005)
    assert torch.equal(masks, masks.flip(2, 3))
    assert torch.equal(masks, masks.transpose(2, 3))
    assert masks[0, 0, 112, 112]


def test_boxes_are_taken_to_the_resized_centre() -> None:
    # Of 100 x 200 px, the centre is of 80 px: rows 10 to 89, columns 60 to 139. At 40 px, two pixels become one.
    shares = np.array([[0.2, 0.35, 0.3, 0.4], [0.0, 0.0, 0.2, 0.32]])
    masks = Foreground([np.zeros((0, 4)), shares], np.array([9, 100]), np.array([9, 200]), 40, 0.8).masks(0, 2)
    expected = torch.zeros(40, 40, dtype=torch.bool)
    expected[5:10, 5:10] = True  # rows 20 to 30, columns 70 to 80
    expected[0:5, 0:2] = True  # rows 0 to 20, columns 0 to 64
    assert not masks[0].any()
    assert torch.equal(masks[1, 0], expected)


@pytest.mark.parametrize("by_class", [False, True])
def test_boxes_in_the_order_of_the_files_rows(tmp_path: Path, by_class: bool) -> None:
    classes = ["n00000001", "n00000002"]
    _annotate(tmp_path, 1, classes[1], (10, 20, 30, 40), (0, 0, 5, 5), size=(50, 100))
    _annotate(tmp_path, 2, classes[0], (1, 2, 3, 4), size=(4, 4))
    _annotate(tmp_path, 3, classes[1], (2, 2, 4, 4), size=(8, 8))
    expected = [[[0.2, 0.2, 0.6, 0.4], [0, 0, 0.1, 0.05]], [[0.25, 0.5, 0.75, 1]], [[0.25, 0.25, 0.5, 0.5]]]
    order = [1, 0, 2] if by_class else [0, 1, 2]
    boxes = read_boxes(tmp_path, classes, np.array([1, 0, 1])[order])
    for found, number in zip(boxes, order, strict=True):
        np.testing.assert_allclose(found, expected[number])


def test_annotations_of_other_images(tmp_path: Path) -> None:
    classes = ["n00000001", "n00000002"]
    _annotate(tmp_path, 1, classes[1], (0, 0, 1, 1), size=(9, 9))
    with pytest.raises(DataError, match=r"has 1 files ILSVRC2012_val_.* for 2 samples"):
        read_boxes(tmp_path, classes, np.array([0, 1]))
    with pytest.raises(DataError, match=f"^{tmp_path}: its classes"):
        read_boxes(tmp_path, classes, np.array([0]))
    for content in ("<annotation>", "<annotation/>", (tmp_path / "ILSVRC2012_val_00000001.xml").read_text()):
        (tmp_path / "ILSVRC2012_val_00000001.xml").write_text(content.replace(classes[1], "n00000003"))
        with pytest.raises(DataError, match=r"00000001\.xml is not an annotation of an image"):
            read_boxes(tmp_path, classes, np.array([1]))
