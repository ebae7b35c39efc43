"""Levels of any depth, and EXIF orientations, as a viewer shows them."""

from __future__ import annotations

import struct
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from ffcv_cropmix.data.encode import EncodeOptions, encode_file
from ffcv_cropmix.data.images import decode_rgb, to_rgb

GRAY = np.arange(256, dtype=np.uint8).reshape(16, 16)
WIDE = GRAY.astype(np.uint16) * 256 + 7


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def tiff(data: bytes, bits: int, *, photometric: int = 1, sample_format: int = 1, order: str = "<") -> bytes:
    """An uncompressed gray image of 16 x 16 levels; photometric 0: 0 is white; sample_format 2: signed, 3: float."""
    tags = {256: 16, 257: 16, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 16, 279: len(data)}
    entries = [(tag, 4, 1, value) for tag, value in {**tags, 339: sample_format}.items()]
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(struct.pack(f"{order}HHII", *e) for e in entries)
    mark = b"II" if order == "<" else b"MM"
    return mark + struct.pack(f"{order}HI", 42, 8 + len(data)) + data + directory + bytes(4)


def twelve_bits() -> bytes:
    levels = (GRAY.astype(int) * 16).reshape(-1, 2)
    return b"".join(bytes((a >> 4, (a & 15) << 4 | b >> 8, b & 255)) for a, b in levels.tolist())


FILES = {
    "PNG": saved(Image.fromarray(WIDE), "PNG"),
    "JPEG 2000": saved(Image.fromarray(WIDE), "JPEG2000"),
    "PGM": b"P5 16 16 65535\n" + WIDE.astype(">u2").tobytes(),
    "PGM, 10 bits": b"P5 16 16 1023\n" + (WIDE // 64).astype(">u2").tobytes(),
    "TIFF": tiff(WIDE.tobytes(), 16),
    "TIFF, big endian": tiff(WIDE.astype(">u2").tobytes(), 16, order=">"),
    "TIFF, 0 is white": tiff((65535 - WIDE).tobytes(), 16, photometric=0),
    "TIFF, 12 bits": tiff(twelve_bits(), 12),
    "TIFF, float": tiff(GRAY.astype("<f4").tobytes(), 32, sample_format=3),
    "TIFF, float, 0 is white": tiff((255 - GRAY.astype("<f4")).tobytes(), 32, photometric=0, sample_format=3),
    "TIFF, 32 bits": tiff(WIDE.astype("<i4").tobytes(), 32, sample_format=2),
}


@pytest.mark.parametrize("exif_transpose", [False, True])
@pytest.mark.parametrize("kind", FILES)
def test_more_than_8_bits_are_scaled(kind: str, exif_transpose: bool) -> None:
    np.testing.assert_allclose(decode_rgb(FILES[kind], exif_transpose)[:, :, 1], GRAY, atol=int("10 bits" in kind))


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I"])
def test_and_in_memory(mode: str) -> None:
    levels = WIDE.astype({"I": "<i4", "I;16B": ">u2"}.get(mode, "<u2"))
    np.testing.assert_array_equal(np.asarray(to_rgb(Image.frombytes(mode, (16, 16), levels.tobytes())))[:, :, 1], GRAY)


@pytest.mark.parametrize("form", ["PNG", "PPM", "TIFF"])
def test_dark_images_stay_dark_when_turned(form: str) -> None:
    assert not decode_rgb(saved(Image.fromarray(np.full((4, 4), 255, np.uint16)), form), exif_transpose=True).any()


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (GRAY.astype("<f4") / 255, "floating-point levels are in 0 to 1"),
        (GRAY.astype("<f4") / 2550, "floating-point levels are in 0 to 1"),
        (GRAY.astype("<f4") * 16, "in 0 to 4080, not in 0 to 255"),
        (GRAY.astype("<f4") - 9, "in -9 to 246, not in 0 to 255"),
        (np.full((16, 16), np.nan, "<f4"), "in nan to nan, not in 0 to 255"),
        (GRAY.astype("<i4") * 2**20, "in 0 to 267386880, not in 0 to 65535"),
        (GRAY.astype("<i4") - 300, "in -300 to -45, not in 0 to 65535"),
    ],
)
def test_levels_that_may_mean_anything_are_refused(levels: np.ndarray, message: str) -> None:
    data = tiff(levels.tobytes(), 32, sample_format=3 if levels.dtype.kind == "f" else 2)
    with pytest.raises(ValueError, match=message):
        decode_rgb(data)
    assert not decode_rgb(tiff(bytes(1024), 32, sample_format=3)).any()  # black is black


def exif(*entries: tuple[int, int, int, bytes], data: bytes = b"", count: int | None = None) -> bytes:
    directory = struct.pack("<H", len(entries) if count is None else count)
    directory += b"".join(struct.pack("<HHI4s", *entry) for entry in entries) + bytes(4)
    return b"Exif\0\0II*\0\x08\0\0\0" + directory + data


TURNED = (0x112, 3, 1, b"\6\0\0\0")
AT = struct.pack("<I", 8 + 2 + 2 * 12 + 4)
EXIF = {
    "a negative rational": exif(TURNED, (0x11A, 10, 1, AT), data=struct.pack("<ii", -1, 0)),  # Pillow#8965
    "an unsigned rational of -1": exif(TURNED, (0x11A, 5, 1, AT), data=struct.pack("<ii", -1, 0)),
    "two rationals for one": exif(TURNED, (0x11A, 5, 2, AT), data=struct.pack("<4I", 72, 1, 72, 1)),
    "a signed short": exif(TURNED, (0x111, 8, 1, struct.pack("<hh", -5, 0))),
    "a byte too large": exif(TURNED, (0x10F, 2, 4, b"\xff\xfe\xfd\0")),
    "beyond the end": exif(TURNED, (0x10F, 2, 500, struct.pack("<I", 60000))),
    "too many entries": exif(TURNED, count=5000),
    "an unknown type": exif(TURNED, (0x9999, 99, 1, b"abcd")),
    "twice the mark": b"Exif\0\0" + exif(TURNED),
}


@pytest.mark.parametrize("kind", EXIF)
@pytest.mark.parametrize("write_mode", ["raw", "jpg"])
def test_odd_exif_data_do_not_keep_an_image_from_being_turned(kind: str, write_mode: str) -> None:
    upright = saved(Image.fromarray(np.dstack([GRAY[:9]] * 3)), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(EXIF[kind]) + 2) + EXIF[kind]
    data = upright[:2] + segment + upright[2:]
    encoded = encode_file(0, data, EncodeOptions(write_mode=write_mode, exif_transpose=True), 2**20)
    assert (encoded.height, encoded.width) == (16, 9)
    np.testing.assert_array_equal(decode_rgb(data, exif_transpose=True), np.rot90(decode_rgb(upright), -1))


@pytest.mark.parametrize("kind", ["none", "garbage", "0", "9", "text"])
def test_no_orientation_is_upright(kind: str) -> None:
    values = {
        "none": b"Exif\0\0",
        "garbage": b"Exif\0\0garbage!",
        "0": exif((0x112, 3, 1, bytes(4))),
        "9": exif((0x112, 3, 1, b"\x09\0\0\0")),
        "text": exif((0x112, 2, 2, b"6\0\0\0")),
    }
    upright = saved(Image.fromarray(GRAY[:9]), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(values[kind]) + 2) + values[kind]
    data = upright[:2] + segment + upright[2:]
    assert encode_file(0, data, EncodeOptions(exif_transpose=True), 2**20).data == data
