"""Images whose background is replaced or noisy: does the model look at the object?

The paper takes these sets from Co-Mixup (arXiv 2102.03065), whose files come without the code that made them. What is
background there, is what lies outside the boxes that ImageNet's annotators drew. Here too, where those are given
(`read_boxes`), else it is what lies outside the central half of the image.
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
"""Share of the image's area that counts as foreground where there are no boxes"""


def add_noise(images: Tensor, foreground: Tensor, first: int, *, std: float = 0.1, seed: int = 0) -> Tensor:
    """Add Gaussian noise to the background, and clamp.

    The noise depends on seed and row alone: not on batch size, order or device.

    Args:
        images: float (N, 3, H, W) in [0, 1], of the rows `first`, `first` + 1, ...
        foreground: bool (N, 1, H, W), what is left as it is.
        first: row of the first image.
        std: of the noise, in units of [0, 1].
        seed: 0 to 2**64 - 1.

    Returns:
        float in [0, 1], like `images`.
    """
    rows = range(first, first + len(images))
    draws = [np.random.Generator(np.random.Philox(key=[seed, row])) for row in rows]
    noise = np.stack([draw.standard_normal(images.shape[1:], np.float32) for draw in draws])
    noisy = (images + std * torch.from_numpy(noise).to(images)).clamp(0, 1)
    return torch.where(foreground, images, noisy)


def replace_background(images: Tensor, others: Tensor, foreground: Tensor) -> Tensor:
    """Put the foreground of images on other images: (N, 3, H, W) twice, bool (N, 1, H, W)."""
    return torch.where(foreground, images, others)


def other_rows(rows: np.ndarray, count: int) -> np.ndarray:
    """Whose image is the new background: half of the file away, which in a file sorted by class is another class."""
    return (rows + count // 2) % count


class Foreground:
    """What is foreground in images that are the resized centre of stored ones.

    Args:
        boxes: of each row, (k, 4) top, left, bottom, right as shares of height and width; None: the central half.
        heights, widths: (n,) of the stored images, px.
        side: of the resized images, px.
        ratio: of the centre's side to the shorter side, as `CenterCropRGBImageDecoder` takes it.
    """

    def __init__(
        self, boxes: Sequence[np.ndarray] | None, heights: np.ndarray, widths: np.ndarray, side: int, ratio: float
    ) -> None:
        self._boxes, self._heights, self._widths = boxes, heights, widths
        self._side, self._ratio = side, ratio

    def masks(self, first: int, count: int) -> Tensor:
        """Of the rows `first` to `first` + `count` - 1: bool (count, 1, side, side)."""
        masks = torch.zeros(count, 1, self._side, self._side, dtype=torch.bool)
        for mask, row in zip(masks, range(first, first + count)):
            for top, left, bottom, right in self._pixels(row):
                mask[0, top:bottom, left:right] = True
        return masks

    def _pixels(self, row: int) -> list[list[int]]:
        """The boxes of a row in the resized image: top, left, bottom, right, px, clipped."""
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
    """The boxes that ImageNet's annotators drew, for the validation set of a .beton file.

    Args:
        folder: of ILSVRC2012_val_00000001.xml and so on, from ILSVRC2012_bbox_val_v3.tgz.
        classes: WordNet ids by label, of the file's sidecar.
        labels: (n,) of the file. Its rows are in the order of the images' numbers, or by class and then by number.

    Returns:
        Of each row, float64 (k, 4): top, left, bottom, right as shares of height and width.

    Raises:
        DataError: annotations cannot be read, or are not those of the file's images.
    """
    files = [path for path in sorted(folder.glob("*.xml")) if re.fullmatch(r"ILSVRC2012_val_\d{8}", path.stem)]
    if len(files) != len(labels):
        raise DataError(f"{folder} has {len(files)} files ILSVRC2012_val_*.xml, the .beton file {len(labels)} samples")
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
            raise DataError(f"{path} is no annotation of an image of the .beton file: {error!r}") from None
    for order in (np.arange(len(found)), np.argsort(found, kind="stable")):
        if np.array_equal(np.array(found)[order], labels):
            return [boxes[place] for place in order]
    raise DataError(f"{folder}: its classes, in the order of the numbers or by class, are not those of the .beton file")
