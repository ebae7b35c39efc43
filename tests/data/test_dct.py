"""Images as DCT coefficients: from JPEG files without loss, and back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from backports import zstd
from PIL import Image

from ffcv_cropmix.data import encode as module
from ffcv_cropmix.data import jpeg as jpeg_module
from ffcv_cropmix.data.dct import decode_dct, encode_dct, to_jpeg, unpack
from ffcv_cropmix.data.encode import DCT, EncodeOptions, encode_file
from ffcv_cropmix.data.jpeg import Component, Header, write_jpeg
from ffcv_cropmix.kernels import huffman
from tests import naive
from tests.betons import photo
from tests.jpegs import sampled

_CV2_SAMPLINGS = {
    "4:1:1": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
    "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "4:4:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
    "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
}


def jpeg(image: np.ndarray, sampling: str = "4:2:0", **options: int) -> bytes:
    """By OpenCV; options: PROGRESSIVE, RST_INTERVAL, QUALITY, OPTIMIZE."""
    flags = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, _CV2_SAMPLINGS[sampling]]
    for name, value in options.items():
        flags += [getattr(cv2, f"IMWRITE_JPEG_{name}"), value]
    return cv2.imencode(".jpg", image[..., ::-1] if image.ndim == 3 else image, flags)[1].tobytes()


def pixels(data: bytes) -> np.ndarray:
    """Libjpeg-turbo's accurate decoding, by Pillow."""
    return np.asarray(Image.open(BytesIO(data)).convert("RGB"))


def stored(data: bytes, **options) -> tuple[str, bytes]:
    """Origin and sample of a JPEG file in mode dct."""
    encoded = encode_file(0, data, EncodeOptions(write_mode="dct", max_resolution=0, **options), 2**23)
    assert encoded.mode == DCT
    return encoded.origin, encoded.data


@pytest.mark.parametrize("sampling", _CV2_SAMPLINGS)
@pytest.mark.parametrize("options", [{}, {"PROGRESSIVE": 1}, {"RST_INTERVAL": 3}, {"QUALITY": 100}, {"OPTIMIZE": 1}])
def test_without_loss(sampling: str, options: dict[str, int]) -> None:
    for index, part in ((0, np.s_[:]), (4, np.s_[:]), (5, np.s_[:9, :17]), (25, np.s_[:61, :86])):
        data = jpeg(photo(index)[part], sampling, **options)
        origin, sample = stored(data)
        assert origin == "file"
        image = pixels(data)
        assert (decode_dct(sample, *image.shape[:2]) == image).all()
        back = to_jpeg(sample, *image.shape[:2])
        assert (pixels(back) == image).all()
        assert stored(back) == ("file", sample)


def test_gray_noise_and_large_numbers() -> None:
    random = np.random.default_rng(0)
    noise = random.choice(np.array([0, 255], np.uint8), (40, 70, 3))  # coefficients of up to 1,023
    for data in (jpeg(photo(5)[..., 0], "4:4:4"), jpeg(noise, "4:4:4", QUALITY=100), jpeg(noise[..., 0], QUALITY=1)):
        origin, sample = stored(data)
        assert origin == "file"
        image = pixels(data)
        assert (pixels(to_jpeg(sample, *image.shape[:2])) == image).all()


def test_bytes_are_those_of_the_definition() -> None:
    data = jpeg(photo(5), "4:2:0", QUALITY=97)
    height, width = pixels(data).shape[:2]
    sample = stored(data)[1]
    header, blocks = unpack(sample, height, width)
    rows = [(-(-height // 8), -(-width // 8))] + 2 * [(-(-height // 16), -(-width // 16))]
    borders = np.cumsum([r * c for r, c in rows])[:-1]
    planes = [part.reshape(*size, 64) for part, size in zip(np.split(blocks, borders), rows)]
    factors, tables = (
        [(part.h, part.v) for part in header.components],
        [part.quantisation for part in header.components],
    )
    expected = naive.dct_sample(height, width, factors, tables, planes)

    assert sample[:36] == expected[:36]
    assert zstd.decompress(sample[36:]) == zstd.decompress(expected[36:])


def test_levels() -> None:
    data = jpeg(photo(25))
    sizes = [len(stored(data, dct_level=level)[1]) for level in (9, 1, -1)]
    assert sizes[0] < 1.05 * sizes[1] and sizes[1] < sizes[2]
    height, width, _ = photo(25).shape
    assert (decode_dct(stored(data, dct_level=-7)[1], height, width) == pixels(data)).all()


def saved(image: Image.Image, **options) -> bytes:
    file = BytesIO()
    image.save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def incomplete() -> bytes:
    """A progressive file without its last scans: libjpeg smooths its blocks (zenjpeg#63)."""
    whole = saved(Image.fromarray(photo(25)), progressive=True)
    scans = [at for at in range(len(whole) - 1) if whole[at : at + 2] == b"\xff\xda"]
    return whole[: scans[4]] + b"\xff\xd9"


def random_blocks(quantisation: int, largest: int, count: int = 64) -> bytes:
    """A gray JPEG of 37 x 61 px, the first coefficients of each block random."""
    component = Component(1, 1, np.full(64, quantisation, np.uint16))
    coefficients = np.random.default_rng(0).integers(-largest, largest, (5 * 8, 64)).astype(np.int16)
    coefficients[:, count:] = 0
    return write_jpeg(Header(37, 61, [component]), coefficients)


def zeros_without_end() -> bytes:
    """A file of 8 x 8 px whose bits are all 0, which means 16 zeros. Libjpeg stops at the end of the block."""
    plain = saved(Image.new("L", (8, 8)))
    tables, scan = plain.index(b"\xff\xc4"), plain.index(b"\xff\xda")
    coefficients = bytes([0xFF, 0xC4, 0, 21, 0x10, 1, 1, *[0] * 14, 0xF0, 0])
    first = plain[tables : tables + 2 + int.from_bytes(plain[tables + 2 : tables + 4], "big")]
    return plain[:tables] + first + coefficients + plain[scan : scan + 10] + b"\0\xff\xd9"


@pytest.mark.parametrize(
    "file",
    [
        lambda: saved(Image.fromarray(photo(5)).convert("CMYK")),
        lambda: saved(Image.fromarray(photo(5)), keep_rgb=True),
        incomplete,
        lambda: random_blocks(255, 1000),  # sums overflow: libjpeg-turbo#207
        zeros_without_end,
    ],
    ids=["CMYK", "RGB", "incomplete", "overflow", "zeros without end"],
)
def test_what_cannot_be_reproduced_is_encoded_again(file: Callable[[], bytes]) -> None:
    data = file()
    origin, sample = stored(data, jpeg_quality=100)
    assert origin == "other file"
    image = pixels(data).astype(int)
    assert np.abs(decode_dct(sample, *image.shape[:2]) - image).mean() < 5


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read JPEGs by kernels as Python, which checks each index."""
    for name in ("prepare_table", "prepare_fast_table", "unstuff", "read_scan"):
        monkeypatch.setattr(jpeg_module, f"_{name}", getattr(huffman, name))


@pytest.mark.parametrize("rest", [63 * "001", 20 * "001" + "1010"], ids=["full", "20 coefficients"])
@pytest.mark.parametrize("factors", [[(2, 2), (1, 1), (1, 1)], [(1, 1), (1, 1), (2, 4)]], ids=["420", "large red"])
def test_coefficients_in_padding_blocks(checked: None, factors: list[tuple[int, int]], rest: str) -> None:
    data = sampled(factors, 32, 24, rest)
    origin, sample = stored(data)
    assert origin == "file"
    assert (decode_dct(sample, 32, 24) == module._decode(data, 32, 24)).all()


@pytest.mark.parametrize("factors", [[(2, 2), (1, 1), (1, 1)], [(1, 1), (1, 1), (2, 4)], [(1, 1)]])
def test_full_blocks(checked: None, factors: list[tuple[int, int]]) -> None:
    random = np.random.default_rng(0)
    header = Header(32, 24, [Component(h, v, np.ones(64, np.uint16)) for h, v in factors])
    grid = jpeg_module.grid_of(header).frame
    blocks = int((grid[:, huffman.ROWS] * grid[:, huffman.COLUMNS]).sum())
    coefficients = random.choice([-5, -2, -1, 1, 2, 5], (blocks, 64)).astype(np.int16)
    sample = encode_dct(write_jpeg(header, coefficients), 32, 24, 1)
    assert (unpack(sample, 32, 24)[1] == coefficients).all()


def test_a_table_that_is_not_used(checked: None) -> None:
    """Libjpeg does not check it: it has more codes of one bit than there are."""
    plain = jpeg(photo(5))
    scan = plain.index(b"\xff\xda")
    table = bytes([0xFF, 0xC4, 0, 219, 0x13, 200, *[0] * 15, *[1] * 200])
    assert stored(plain[:scan] + table + plain[scan:]) == stored(plain)


def test_nothing_beyond_the_data_is_read(checked: None) -> None:
    assert jpeg_module.read_jpeg(zeros_without_end(), 8, 8) is None


def test_a_damaged_file_is_encoded_again() -> None:
    data = jpeg(photo(5))
    damaged = data[: len(data) // 2] + b"\xff\xd3" + data[len(data) // 2 :]
    assert stored(damaged)[0] == "damaged file"
    assert stored(data, reencode=True)[0] == "pixels"


@pytest.mark.parametrize(
    "factors", [[(3, 1), (1, 1), (1, 1)], [(2, 2), (1, 2), (1, 2)], [(2, 2)], [(4, 2), (1, 1), (1, 1)]]
)
def test_unusual_samplings(factors: list[tuple[int, int]]) -> None:
    data = sampled(factors, 37, 61)
    origin, sample = stored(data)
    assert origin == "file"
    assert (decode_dct(sample, 37, 61) == module._decode(data, 37, 61)).all()


def test_unusual_tables() -> None:
    """Steps above 255 in a file of 8 bits (mozjpeg#212), tables twice (libjxl#346), fill bytes, data after the end."""
    plain = jpeg(photo(5))
    at = plain.index(b"\xff\xdb")
    end = at + 2 + int.from_bytes(plain[at + 2 : at + 4], "big")
    repeated = plain[:at] + 3 * plain[at:end] + plain[end:]
    for data in (
        random_blocks(700, 2, count=3),
        repeated,
        plain[:at] + 7 * b"\xff" + plain[at:],
        plain + b"rest",
        2 * plain,
    ):
        origin, sample = stored(data)
        image = pixels(data)
        assert origin == "file"
        assert (decode_dct(sample, *image.shape[:2]) == image).all()


def test_a_sample_that_decodes_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from ffcv_cropmix.data import dct

    monkeypatch.setattr(dct, "decode_dct", lambda sample, height, width: np.zeros((height, width, 3), np.uint8))
    with pytest.raises(ValueError, match="do not decode to the same pixels: use --write_mode jpg"):
        stored(jpeg(photo(5)))


def test_damaged_samples() -> None:
    data = jpeg(photo(25))
    height, width, _ = photo(25).shape
    sample = bytearray(stored(data)[1])
    sample[len(sample) // 2] ^= 4
    assert decode_dct(bytes(sample), height, width) is None  # zstd's checksum
    with pytest.raises(ValueError, match="its coefficients are damaged"):
        to_jpeg(bytes(sample), height, width)
    assert encode_dct(data[:200] + b"\xff\xd9", height, width, 1) is None
    assert module._decode(data[:200] + b"\xff\xd9", height, width) is None


DECODE = """
import sys
from pathlib import Path
from ffcv_cropmix.data.dct import decode_dct
for path in sorted(Path(sys.argv[1]).iterdir()):
    height, width = map(int, path.name.split("-")[1:])
    sys.stdout.buffer.write(decode_dct(path.read_bytes(), height, width).tobytes())
"""


@pytest.mark.parametrize(
    "environment",
    [{"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse2"}, {"NUMBA_DISABLE_JIT": "1"}],
    ids=["SSE", "interpreted"],
)
def test_same_pixels_on_lesser_cpus_and_interpreted(tmp_path: Path, environment: dict[str, str]) -> None:
    expected = b""
    for k, sampling in enumerate(("4:1:1", "4:2:0", "4:4:0", "4:4:4")):
        data = jpeg(photo(5)[:21, :27], sampling)
        image = pixels(data)
        (tmp_path / "{}-{}-{}".format(k, *image.shape)).write_bytes(stored(data)[1])
        expected += image.tobytes()
    environment = {**os.environ, **environment, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-W", "ignore", "-c", DECODE, str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == expected
