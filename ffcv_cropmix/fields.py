"""Fields of .beton files that FFCV does not have."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from .data.encode import DCT_ARGUMENTS, EncodeOptions, encode
from .ffcv_compat import ARG_TYPE, Field, Operation, RGBImageField, SimpleRGBImageDecoder


class DCTImageField(Field):
    """Images as the quantised DCT coefficients of a JPEG: smaller than that, and decoded in half the time.

    `write_dataset.py --write_mode dct` writes them, without loss where it is given JPEG files; docs/dct.md has the
    layout. `ffcv_cropmix.Loader` knows the field; other readers take it as a custom field, and the decoders of
    `ffcv_cropmix`. FFCV's own raise a TypeError when a loader is made.

    >>> from ffcv.loader import Loader
    >>> Loader("train.beton", 64, custom_fields={"image": DCTImageField},
    ...        pipelines={"image": [CropMixRGBImageDecoder((224, 224)), ToTensor()], "label": None})  # doctest: +SKIP

    Args:
        max_resolution: the longer side of images that are written is reduced to it, px; 0: as it is.
        jpeg_quality: of images that are written, 0 to 100.
        dct_level: zstd's compression level; negative ones are larger and faster.

    Raises:
        ValueError: an image that is written is not uint8 (height, width, 3), or has more than 65,500 px along a side; a
            file's field is of another version.
    """

    def __init__(self, max_resolution: int = 0, jpeg_quality: int = 90, dct_level: int = 1) -> None:
        self._options = EncodeOptions(
            write_mode="dct", max_resolution=max_resolution, jpeg_quality=jpeg_quality, dct_level=dct_level
        )

    @property
    def metadata_type(self) -> np.dtype:
        """(mode, width, height, data_ptr), as `ffcv.fields.RGBImageField` has it; mode is 2."""
        return RGBImageField().metadata_type

    @staticmethod
    def from_binary(binary: Any) -> DCTImageField:
        """The field of a file, from its arguments."""
        found = np.asarray(binary).tobytes().rstrip(b"\0")
        if found != DCT_ARGUMENTS:
            raise ValueError(
                f"a DCTImageField of this version has the arguments {DCT_ARGUMENTS!r}, the file has {found[:40]!r}: "
                "is it of a newer version, or another field?"
            )
        return DCTImageField()

    def to_binary(self) -> Any:
        """The arguments of the field, to be written to a file."""
        binary = np.zeros(1, ARG_TYPE)
        binary.view(np.uint8)[: len(DCT_ARGUMENTS)] = np.frombuffer(DCT_ARGUMENTS, np.uint8)
        return binary[0]

    def encode(self, destination: Any, image: Any, malloc: Any) -> None:
        """Store an image, uint8 (height, width, 3) or a PIL.Image in RGB."""
        pixels = np.asarray(image) if isinstance(image, Image.Image) else image
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            kind = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(image).__name__
            raise ValueError(f"an image is uint8 (height, width, 3), got {kind}")
        sample = encode(0, pixels, self._options)
        destination["mode"], destination["height"], destination["width"] = sample.mode, sample.height, sample.width
        destination["data_ptr"], storage = malloc(len(sample.data))
        storage[:] = np.frombuffer(sample.data, np.uint8)

    def get_decoder_class(self) -> type[Operation]:
        """What decoders of the field are subclasses of."""
        return SimpleRGBImageDecoder


def is_dct_field(arguments: bytes) -> bool:
    """Whether the arguments of a custom field are of a DCTImageField, of any version."""
    return arguments.startswith(DCT_ARGUMENTS.rstrip(b"0123456789"))


def _accept_field(decoder: SimpleRGBImageDecoder, field: Field) -> None:
    if isinstance(field, DCTImageField):
        raise TypeError(
            f"{type(decoder).__name__} cannot read a DCTImageField: use a decoder of ffcv_cropmix, such as "
            "CropMixRGBImageDecoder or CenterCropRGBImageDecoder"
        )
    Operation.accept_field(decoder, field)


# FFCV's decoders would take the samples for raw pixels. Those of this package accept the field.
SimpleRGBImageDecoder.accept_field = _accept_field
