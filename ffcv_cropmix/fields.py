"""Fields of .beton files beside FFCV's own."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from .data.encode import DCT_ARGUMENTS, EncodeOptions, encode
from .ffcv_compat import ARG_TYPE, Field, Operation, RGBImageField, SimpleRGBImageDecoder


class DCTImageField(Field):
    """Images stored as the quantised DCT coefficients of a JPEG: smaller than the JPEG, decoded in half the time.

    `ffcv-cropmix convert --write_mode dct` writes this field, without loss if the images are JPEG files; docs/dct.md
    describes the layout. `ffcv_cropmix.Loader` knows the field. Give it to other readers as a custom field, with the
    decoders of this package: `ffcv.loader.Loader(..., custom_fields={"image": DCTImageField})`. FFCV's own decoders
    raise a TypeError when a loader is made.

    Args:
        max_resolution: shrink images whose longer side exceeds this when writing, px; 0: never.
        jpeg_quality: quality when writing, 0 to 100.
        dct_level: zstd's compression level; negative levels give larger files that are faster to read.

    Raises:
        ValueError: an argument is out of range; an image to be written is not uint8 (height, width, 3) or has a side of
            more than 65,500 px; the field of a file has another version.

    Example:
        >>> field = DCTImageField(max_resolution=500, jpeg_quality=95)
        >>> DCTImageField.from_binary(field.to_binary()).metadata_type.names
        ('mode', 'width', 'height', 'data_ptr')
    """

    def __init__(self, max_resolution: int = 0, jpeg_quality: int = 90, dct_level: int = 1) -> None:
        self._options = EncodeOptions(
            write_mode="dct", max_resolution=max_resolution, jpeg_quality=jpeg_quality, dct_level=dct_level
        )

    @property
    def metadata_type(self) -> np.dtype:
        """The dtype (mode, width, height, data_ptr) of `ffcv.fields.RGBImageField`; the mode is 2."""
        return RGBImageField().metadata_type

    @staticmethod
    def from_binary(binary: Any) -> DCTImageField:
        """Make the field from the arguments stored in a file."""
        found = np.asarray(binary).tobytes().rstrip(b"\0")
        if found != DCT_ARGUMENTS:
            raise ValueError(
                f"a DCTImageField of this version has the arguments {DCT_ARGUMENTS!r}, the file has {found[:40]!r}: "
                "is it of a newer version, or another field?"
            )
        return DCTImageField()

    def to_binary(self) -> Any:
        """Return the field's arguments, to be stored in a file."""
        binary = np.zeros(1, ARG_TYPE)
        binary.view(np.uint8)[: len(DCT_ARGUMENTS)] = np.frombuffer(DCT_ARGUMENTS, np.uint8)
        return binary[0]

    def encode(self, destination: Any, image: Any, malloc: Any) -> None:
        """Store an image, uint8 (height, width, 3) or a PIL.Image in RGB."""
        pixels = np.asarray(image) if isinstance(image, Image.Image) else image
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            kind = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(image).__name__
            raise ValueError(f"an image must be uint8 (height, width, 3), got {kind}")
        sample = encode(0, pixels, self._options)
        destination["mode"], destination["height"], destination["width"] = sample.mode, sample.height, sample.width
        destination["data_ptr"], storage = malloc(len(sample.data))
        storage[:] = np.frombuffer(sample.data, np.uint8)

    def get_decoder_class(self) -> type[Operation]:
        """Return the base class of this field's decoders."""
        return SimpleRGBImageDecoder


def is_dct_field(arguments: bytes) -> bool:
    """Return whether the arguments of a custom field are those of a DCTImageField of any version."""
    return arguments.startswith(DCT_ARGUMENTS.rstrip(b"0123456789"))


def _accept_field(decoder: SimpleRGBImageDecoder, field: Field) -> None:
    if isinstance(field, DCTImageField):
        raise TypeError(
            f"{type(decoder).__name__} cannot read a DCTImageField: use a decoder of ffcv_cropmix, such as "
            "CropMixRGBImageDecoder or CenterCropRGBImageDecoder"
        )
    Operation.accept_field(decoder, field)


# FFCV's decoders would take the samples for raw pixels. This package's decoders accept the field.
SimpleRGBImageDecoder.accept_field = _accept_field
