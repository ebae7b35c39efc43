"""Corrupted backgrounds: does the model look at the object?

The paper takes these sets from Co-Mixup (arXiv 2102.03065), which published the images but not the code that made them.
There, the background is what lies outside the bounding boxes of ImageNet's annotators. So it is here if these are given
(`read_boxes`); otherwise it is what lies outside the central half of the image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..kernels.sampling import center_crop

CENTRAL = 0.5
"""Share of the image area that counts as foreground without boxes"""


def add_noise(images: Tensor, foreground: Tensor, first: int, *, std: float = 0.1, seed: int = 0) -> Tensor:
    """Add Gaussian noise to the background, and clamp to [0, 1].

    The noise depends on `seed` and the row only, not on batch size, order or device.

    Args:
        images: float (N, 3, H, W) in [0, 1], of the rows `first`, `first` + 1, ...
        foreground: bool (N, 1, H, W), pixels to keep.
        first: Row of the first image.
        std: Standard deviation of the noise, in units of [0, 1].
        seed: Seed, in [0, 2**64).

    Returns:
        float (N, 3, H, W) in [0, 1], like `images`.

    Example:
        >>> images = torch.full((2, 3, 4, 4), 0.5)
        >>> noisy = add_noise(images, torch.zeros(2, 1, 4, 4, dtype=torch.bool), first=0)
        >>> bool((noisy != images).all())
        True
    """
    rows = range(first, first + len(images))
    generators = [np.random.Generator(np.random.Philox(key=[seed, row])) for row in rows]
    noise = np.stack([generator.standard_normal(images.shape[1:], np.float32) for generator in generators])
    noisy = (images + std * torch.from_numpy(noise).to(images)).clamp(0, 1)
    return torch.where(foreground, images, noisy)


def replace_background(images: Tensor, others: Tensor, foreground: Tensor) -> Tensor:
    """Put the foreground, bool (N, 1, H, W), of images (N, 3, H, W) on others of the same shape."""
    return torch.where(foreground, images, others)


def other_rows(rows: np.ndarray, count: int) -> np.ndarray:
    """Return the rows that supply new backgrounds: half the file away, and so of another class if it is sorted."""
    return (rows + count // 2) % count


class Foreground:
    """Foreground masks of images that are resized centre crops.

    Args:
        boxes: Boxes of each row, float (k, 4): top, left, bottom, right as shares of height and width. None: the
            central half of the image.
        heights: Heights of the stored images, (n,), px.
        widths: Widths of the stored images, (n,), px.
        side: Side of the resized images, px.
        ratio: Side of the centre crop as a share of the shorter side; see `CenterCropRGBImageDecoder`.

    Example:
        >>> foreground = Foreground(None, np.array([48]), np.array([64]), side=32, ratio=0.875)
        >>> int(foreground.masks(0, 1).sum())  # of 1024 pixels
        484
    """

    def __init__(
        self, boxes: Sequence[np.ndarray] | None, heights: np.ndarray, widths: np.ndarray, side: int, ratio: float
    ) -> None:
        self._boxes, self._heights, self._widths = boxes, heights, widths
        self._side, self._ratio = side, ratio

    def masks(self, first: int, count: int) -> Tensor:
        """Return the masks of the rows `first` to `first` + `count` - 1: bool (count, 1, side, side)."""
        masks = torch.zeros(count, 1, self._side, self._side, dtype=torch.bool)
        for mask, row in zip(masks, range(first, first + count)):
            for top, left, bottom, right in self._pixels(row):
                mask[0, top:bottom, left:right] = True
        return masks

    def _pixels(self, row: int) -> list[list[int]]:
        """Return the boxes of a row in the resized image: top, left, bottom, right, px, clipped."""
        if self._boxes is None:
            border = round(self._side * (1 - CENTRAL**0.5) / 2)
            return [[border, border, self._side - border, self._side - border]]
        height, width = int(self._heights[row]), int(self._widths[row])
        crop = np.zeros(4, np.int64)
        center_crop(height, width, self._ratio, crop)
        corner, side = np.tile(crop[:2], 2), crop[2]
        inside = (self._boxes[row] * np.array([height, width, height, width]) - corner) / side
        return (inside.clip(0, 1) * self._side).round().astype(int).tolist()


def read_boxes(folder: Path, classes: Sequence[str], labels: np.ndarray) -> list[np.ndarray]:
    """Read the bounding boxes of ImageNet's annotators for the validation set of a .beton file.

    Args:
        folder: Folder of ILSVRC2012_val_00000001.xml and so on, from ILSVRC2012_bbox_val_v3.tgz.
        classes: WordNet ids by label, from the sidecar of the file.
        labels: Labels of the file, (n,). Its rows are sorted by image number, or by class and then number.

    Returns:
        For each row float64 (k, 4): top, left, bottom, right as shares of height and width.

    Raises:
        DataError: The annotations cannot be read, or do not belong to the images of the file.
    """
    files = [path for path in sorted(folder.glob("*.xml")) if re.fullmatch(r"ILSVRC2012_val_\d{8}", path.stem)]
    if len(files) != len(labels):
        raise DataError(f"{folder} has {len(files)} files ILSVRC2012_val_*.xml for {len(labels)} samples of the file")
    number = {name: label for label, name in enumerate(classes)}
    boxes, found = [], []
    for path in files:
        try:
            annotation = ElementTree.parse(path).getroot()
            height, width = (float(annotation.findtext(f"size/{name}") or "") for name in ("height", "width"))
            sides = [
                [float(box.findtext(f"bndbox/{name}") or "") for name in ("ymin", "xmin", "ymax", "xmax")]
                for box in annotation.iter("object")
            ]
            boxes.append(np.array(sides) / [height, width, height, width])
            found.append(number[annotation.findtext("object/name") or ""])
        except (OSError, ElementTree.ParseError, ValueError, KeyError, ZeroDivisionError) as error:
            raise DataError(f"{path} is not an annotation of an image of the .beton file: {error!r}") from None
    for order in (np.arange(len(found)), np.argsort(found, kind="stable")):
        if np.array_equal(np.array(found)[order], labels):
            return [boxes[place] for place in order]
    raise DataError(f"{folder}: its classes, by image number or sorted, are not those of the .beton file")
