"""JPEGs of all kinds decoded whole, in part and as planes; what is wrong with them is noticed."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import pytest
from ffcv.libffcv import imdecode
from PIL import Image

from ffcv_cropmix import turbojpeg
from ffcv_cropmix.kernels.jit import entry
from ffcv_cropmix.turbojpeg import BAD_DATA, BAD_HEADER, NOT_420, OK, OTHER_SIZE
from tests.betons import photo
from tests.jpegs import sampled

IMAGE = photo(20)
HEIGHT, WIDTH, _ = IMAGE.shape
KINDS = {
    "4:2:0": {"subsampling": "4:2:0"},
    "4:2:2": {"subsampling": "4:2:2"},
    "4:4:4": {"subsampling": "4:4:4"},
    "gray": {},
    "restart markers": {"restart_marker_rows": 1, "subsampling": "4:2:0"},
    "optimized": {"optimize": True, "subsampling": "4:2:0"},
    "progressive": {"progressive": True, "subsampling": "4:2:0"},
    "3x1": {"factors": [(3, 1), (1, 1), (1, 1)]},
    "4x2": {"factors": [(4, 2), (1, 1), (1, 1)]},
    "a sampling for each": {"factors": [(2, 2), (2, 1), (1, 2)]},
    "with a profile": {"icc_profile": b"\xff\xc0" * 100, "subsampling": "4:2:0"},
}


@cache
def jpeg(kind: str) -> np.ndarray:
    if "factors" in KINDS[kind]:
        return np.frombuffer(sampled(**KINDS[kind], height=HEIGHT, width=WIDTH), np.uint8)
    file = io.BytesIO()
    image = Image.fromarray(IMAGE)
    (image.convert("L") if kind == "gray" else image).save(file, "JPEG", quality=90, **KINDS[kind])
    return np.frombuffer(file.getvalue(), np.uint8)


@entry
def _decode(data, height, width, buffers):
    return turbojpeg.decode_jpeg_rows(data, height, width, height, buffers)


@entry
def _decode_rows(data, height, width, rows, buffers):
    return turbojpeg.decode_jpeg_rows(data, height, width, rows, buffers)


@entry
def _decode_planes(data, height, width, rows, buffers):
    return turbojpeg.decode_jpeg_planes(data, height, width, rows, buffers)


def decode(function, data: np.ndarray, *arguments: int) -> tuple[int, np.ndarray]:
    """What a function returns, and its pixels: 255 where it left them alone."""
    buffers = turbojpeg.new_buffers((HEIGHT + 1) * (WIDTH + 1), data.size)
    buffers.pixels[:] = 255
    code = function(data, *arguments, buffers)
    return code, buffers.pixels


def rgb(data: np.ndarray) -> np.ndarray:
    code, pixels = decode(_decode, data, HEIGHT, WIDTH)
    assert code == OK
    return pixels[: IMAGE.size].reshape(IMAGE.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_whole_as_ffcv_decodes_it(kind: str) -> None:
    expected = np.empty_like(IMAGE)
    imdecode(jpeg(kind), expected, HEIGHT, WIDTH, HEIGHT, WIDTH, 0, 0, 1, 1, False, False)
    np.testing.assert_array_equal(rgb(jpeg(kind)), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_same_to_the_bit(kind: str) -> None:
    data = jpeg(kind)
    whole = rgb(data)
    for rows in (1, 7, 8, 15, 16, 17, HEIGHT // 2, HEIGHT - 17, HEIGHT - 3, HEIGHT - 1, HEIGHT):
        before = data.copy()
        code, pixels = decode(_decode_rows, data, HEIGHT, WIDTH, rows)
        assert code == OK
        np.testing.assert_array_equal(pixels[: 3 * rows * WIDTH].reshape(rows, WIDTH, 3), whole[:rows])
        np.testing.assert_array_equal(data, before)
        if rows + 2 < HEIGHT:  # decoding stopped, where it may
            assert (pixels[3 * (rows + 2) * WIDTH :] == 255).all() == (kind != "progressive")


def test_planes() -> None:
    data = jpeg("4:2:0")
    whole = Image.open(io.BytesIO(data.tobytes()))
    whole.draft("YCbCr", None)
    luma = np.asarray(whole)[:, :, 0].astype(int)
    half_height, half_width = (HEIGHT + 1) // 2, (WIDTH + 1) // 2
    for rows in (10, HEIGHT - 1, HEIGHT):
        code, pixels = decode(_decode_planes, data, HEIGHT, WIDTH, rows)
        assert code == OK
        plane = pixels[: 4 * half_height * half_width].reshape(2 * half_height, 2 * half_width)
        assert np.abs(plane[:rows, :WIDTH] - luma[:rows]).max() <= 3  # another DCT
        blue, red = pixels[4 * half_height * half_width :][: 2 * half_height * half_width].reshape(2, half_height, -1)
        for colour, channel, factor in ((blue, 2, 1.772), (red, 0, 1.402)):  # their means are those of RGB
            difference = (rgb(data)[:rows, :, channel].astype(int) - luma[:rows]).mean()
            assert colour[: (rows + 1) // 2].mean() == pytest.approx(128 + difference / factor, abs=2)


@pytest.mark.parametrize("kind", [kind for kind, options in KINDS.items() if options.get("subsampling") != "4:2:0"])
def test_no_such_planes(kind: str) -> None:
    code, pixels = decode(_decode_planes, jpeg(kind), HEIGHT, WIDTH, HEIGHT)
    assert code == NOT_420
    assert (pixels == 255).all()


@pytest.mark.parametrize("function", [_decode, _decode_rows, _decode_planes])
def test_what_is_wrong_is_noticed(function) -> None:
    data = jpeg("4:2:0")
    rows = () if function is _decode else (HEIGHT,)
    assert decode(function, data, HEIGHT, WIDTH, *rows)[0] == OK
    assert decode(function, data, HEIGHT - 1, WIDTH, *rows)[0] == OTHER_SIZE
    assert decode(function, data, HEIGHT, WIDTH + 1, *rows)[0] == OTHER_SIZE
    assert decode(function, data[1:], HEIGHT, WIDTH, *rows)[0] == BAD_HEADER
    assert decode(function, data[:0], HEIGHT, WIDTH, *rows)[0] == BAD_HEADER
    assert decode(function, data[: data.size // 2], HEIGHT, WIDTH, *rows)[0] == BAD_DATA
    (table,) = (at for at in range(data.size - 1) if data[at] == 0xFF and data[at + 1] == 0xDB and at < 30)
    without = data.copy()
    without[table + 1] = 0xEF  # the quantization table: an application's marker
    assert decode(function, without, HEIGHT, WIDTH, *(20 for _ in rows))[0] == BAD_DATA
    tables, scan = (data.tobytes().index(marker) for marker in (b"\xff\xc4", b"\xff\xda"))
    bogus = data.copy()
    bogus[scan + 11] = 1  # a scan that is not sequential: a warning, which does not hide that nothing is decoded
    bogus[[tables + 5, tables + 7]] = data[[tables + 7, tables + 5]]  # more codes of one bit than there are
    assert decode(function, bogus, HEIGHT, WIDTH, *(20 for _ in rows))[0] == BAD_DATA
    early = data.copy()
    early[scan + 40 : scan + 42] = 0xFF, 0xD0  # a marker that ends the first row
    assert decode(function, early, HEIGHT, WIDTH, *(40 for _ in rows))[0] == BAD_DATA
    cmyk = io.BytesIO()
    Image.fromarray(IMAGE).convert("CMYK").save(cmyk, "JPEG")
    code, _ = decode(function, np.frombuffer(cmyk.getvalue(), np.uint8), HEIGHT, WIDTH, *rows)
    assert code == (NOT_420 if function is _decode_planes else BAD_DATA)


def test_rows_of_damaged_headers_do_no_harm() -> None:
    random = np.random.default_rng(0)
    for kind in KINDS:
        for _ in range(150):
            data = jpeg(kind).copy()
            data[random.integers(0, 700, 3) % data.size] = random.integers(0, 256, 3)
            data = data[: random.integers(1, data.size + 1)]
            for function in (_decode_rows, _decode_planes):
                code, _ = decode(function, data, HEIGHT, WIDTH, int(random.integers(1, HEIGHT)))
                assert code in (OK, BAD_HEADER, OTHER_SIZE, BAD_DATA, NOT_420)
