"""Samples: encoded as FFCV does, or JPEG files as they are."""

from __future__ import annotations

import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ffcv.fields import RGBImageField
from PIL import Image

from ffcv_cropmix import libturbojpeg
from ffcv_cropmix.data import encode as module
from ffcv_cropmix.data.convert import convert
from ffcv_cropmix.data.encode import Encoded, EncodeOptions, encode, encode_file
from ffcv_cropmix.data.images import Source, decode_rgb
from tests.betons import payload, photo, stored_image
from tests.jpegs import DAMAGES, sampled


@pytest.mark.parametrize("write_mode", ["raw", "jpg"])
@pytest.mark.parametrize("max_resolution", [0, 60, 500])
@pytest.mark.parametrize("index", [0, 5, 20])
def test_encodes_as_ffcv_does(write_mode: str, max_resolution: int, index: int) -> None:
    field = RGBImageField(write_mode, max_resolution or None, jpeg_quality=80)
    destination, stored = np.zeros(1, field.metadata_type), []

    def malloc(size: int) -> tuple[int, np.ndarray]:
        stored.append(np.empty(size, np.uint8))
        return 0, stored[0]

    field.encode(destination, photo(index), malloc)
    options = EncodeOptions(write_mode=write_mode, max_resolution=max_resolution, jpeg_quality=80)
    encoded = encode(0, photo(index), options)
    assert encoded[:3] == tuple(destination[["mode", "height", "width"]][0])
    assert encoded.data == stored[0].tobytes()


def test_extreme_shapes_keep_a_pixel() -> None:
    assert encode(0, np.zeros((1, 900, 3), np.uint8), EncodeOptions(max_resolution=30))[1:3] == (1, 30)
    for side, write_mode in ((65_501, "jpg"), (65_536, "raw")):
        with pytest.raises(ValueError, match=f"1 x {side} px, but a side can have at most {side - 1}"):
            encode(0, np.zeros((1, side, 3), np.uint8), EncodeOptions(max_resolution=0, write_mode=write_mode))
        encode(0, np.zeros((1, side - 1, 3), np.uint8), EncodeOptions(max_resolution=0, write_mode=write_mode))


def test_smart_and_proportion() -> None:
    photos = [photo(index) for index in range(40)]

    def modes(**options) -> list[int]:
        return [
            encode(index, image, EncodeOptions(max_resolution=0, **options)).mode for index, image in enumerate(photos)
        ]

    threshold = photos[5].nbytes
    expected = [0 if image.nbytes > threshold else 1 for image in photos]
    assert modes(write_mode="smart", smart_threshold=threshold) == expected
    some = modes(write_mode="proportion", compress_probability=0.3, seed=1)
    assert 4 <= some.count(0) <= 20
    assert modes(write_mode="proportion", compress_probability=0.3, seed=1) == some
    assert modes(write_mode="proportion", compress_probability=0.3, seed=2) != some
    assert modes(write_mode="proportion", compress_probability=1.0) == [0] * 40


PHOTO = photo(8)


def _jpeg(image: np.ndarray, mode: str = "RGB", **options: Any) -> bytes:
    file = BytesIO()
    Image.fromarray(image).convert(mode).save(file, options.pop("format", "JPEG"), **options)
    return file.getvalue()


def _oriented(number: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = number
    return _jpeg(photo(9), exif=exif)


def _stored(data: bytes, largest: int = 2**20, **options: Any) -> Encoded:
    return encode_file(0, data, EncodeOptions(**options), largest)


KEPT: dict[str, Callable[[], bytes]] = {
    "4:2:0": lambda: _jpeg(PHOTO),
    "4:4:4": lambda: _jpeg(PHOTO, subsampling=0),
    "gray": lambda: _jpeg(PHOTO, "L"),
    "RGB, not YCbCr": lambda: _jpeg(PHOTO, keep_rgb=True),
    "progressive": lambda: _jpeg(PHOTO, progressive=True),
    "restart markers": lambda: _jpeg(PHOTO, restart_marker_blocks=3),
    "turned by a tag": lambda: _oriented(6),
    "with something behind it": lambda: _jpeg(PHOTO) + b"\xff\xd8something",
    "two images": lambda: _jpeg(PHOTO, format="MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))]),
    **{
        " ".join(f"{h}x{v}" for h, v in factors): lambda factors=factors: sampled(factors, *PHOTO.shape[:2])
        for factors in (
            [(3, 1), (1, 1), (1, 1)],
            [(1, 3), (1, 1), (1, 1)],
            [(4, 2), (1, 1), (1, 1)],
            [(2, 2), (2, 1), (1, 2)],
            [(1, 1), (2, 2), (2, 2)],
            [(2, 2)],
        )
    },
    "one pixel": lambda: _jpeg(photo(0)),
}


def test_jpeg_files_are_stored_as_they_are_and_stock_ffcv_reads_them(tmp_path: Path) -> None:
    files = [make() for make in KEPT.values()]
    source = Source(["x"], np.zeros(len(files), np.int64), files)
    done = convert(source, tmp_path / "x.beton", EncodeOptions(), num_workers=1)
    assert (done.kept, done.damaged) == (len(files), 0)
    for row, data in enumerate(files):
        address, size = payload(tmp_path / "x.beton", row)
        assert (tmp_path / "x.beton").read_bytes()[address : address + size] == data
        difference = stored_image(tmp_path / "x.beton", row).astype(int) - decode_rgb(data)
        assert np.abs(difference).mean() < 2  # FFCV's fast DCT


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (_jpeg(PHOTO, format="PNG"), {}),
        (_jpeg(PHOTO, "CMYK"), {}),
        (KEPT["4:2:0"](), {"reencode": True}),
        (KEPT["4:2:0"](), {"max_resolution": max(PHOTO.shape) - 1}),
        (KEPT["4:2:0"](), {"largest": len(KEPT["4:2:0"]()) - 1, "jpeg_quality": 50}),
        (KEPT["4:2:0"](), {"write_mode": "raw"}),
        (KEPT["4:2:0"](), {"write_mode": "smart", "smart_threshold": PHOTO.nbytes}),
        (KEPT["4:2:0"](), {"write_mode": "proportion", "compress_probability": 0.0}),
    ],
)
def test_what_is_not_stored_as_it_is(data: bytes, options: dict[str, Any]) -> None:
    encoded = _stored(data, **options)
    largest = options.pop("largest", None)
    assert encoded == encode(0, decode_rgb(data), EncodeOptions(**options))
    assert encoded.data != data
    assert largest is None or len(encoded.data) <= largest


def test_the_limits_are_inclusive() -> None:
    data = KEPT["4:2:0"]()
    for options in (
        {"max_resolution": max(PHOTO.shape)},
        {"max_resolution": 0},
        {"largest": len(data)},
        {"write_mode": "smart", "smart_threshold": PHOTO.nbytes - 1},
        {"write_mode": "proportion", "compress_probability": 1.0},
    ):
        assert _stored(data, **options) == (0, *PHOTO.shape[:2], data, "file")


@pytest.mark.parametrize("orientation", range(10))
def test_exif_transpose(orientation: int) -> None:
    data = _oriented(orientation)
    encoded = _stored(data, exif_transpose=True)
    pixels = decode_rgb(data)
    turned = {
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: np.rot90(pixels, 2).transpose(1, 0, 2),
        8: np.rot90(pixels),
    }.get(orientation)
    if turned is None:
        assert encoded.data == data
    else:
        assert encoded == encode(0, np.ascontiguousarray(turned), EncodeOptions())
    assert _stored(data).data == data


def test_a_damaged_jpeg_is_encoded_anew_if_pillow_can_decode_it() -> None:
    data = KEPT["4:2:0"]()
    for superfluous in (data[:-2] + bytes(99) + data[-2:], data[:2] + b"\xff\0" + data[2:]):  # warnings, no more
        encoded = _stored(superfluous)
        assert encoded.origin == "damaged file"
        assert encoded.data == encode(0, decode_rgb(data), EncodeOptions()).data
        assert _stored(superfluous, write_mode="raw").origin == "pixels"
        assert _stored(superfluous, reencode=True).origin == "pixels"
    broken = bytearray(data)
    broken[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    assert _stored(bytes(broken)).origin == "damaged file"
    with pytest.raises(OSError, match="truncated"):
        _stored(data[: len(data) // 2])
    with pytest.raises(ValueError, match="not an image that Pillow can read"):
        _stored(data[:20])
    with pytest.raises(OSError, match="broken"):
        _stored(sampled([(3, 1), (2, 1), (1, 1)], *PHOTO.shape[:2]))  # libjpeg enlarges by whole numbers


def _outcome(data: bytes) -> Encoded | str:
    try:
        return _stored(data)
    except Exception as error:  # whatever Pillow trips over
        return str(error)


def test_what_was_read_before_makes_no_difference() -> None:
    sound, progressive, optimized = (
        _jpeg(PHOTO, **options) for options in ({}, {"progressive": True}, {"optimize": True, "quality": 30})
    )
    damages = {**DAMAGES, "standard Huffman tables": lambda data: data.replace(b"\xff\xc4", b"\xff\xef")}
    first = {}
    for name, damage in damages.items():
        first[name] = _outcome(damage(sound))
        assert _stored(progressive).origin == "file", name
    for name, damage in reversed(damages.items()):
        assert _stored(optimized).origin == "file", name  # its tables are not those of the others
        assert _outcome(damage(sound)) == first[name], name
    taken = {name: outcome.origin for name, outcome in first.items() if not isinstance(outcome, str)}
    assert taken == {
        "arithmetic": "damaged file",
        "a marker in the data": "damaged file",
        "standard Huffman tables": "file",  # Motion JPEG lacks them
    }


def test_one_damaged_jpeg_is_one_damaged_sample(tmp_path: Path) -> None:
    files = [damage(_jpeg(PHOTO)) for damage in DAMAGES.values() for _ in range(2)]
    files[1::2] = [_jpeg(PHOTO, quality=50 + k) for k in range(len(DAMAGES))]
    source = Source(["x"], np.zeros(len(files), np.int64), files)
    betons = [tmp_path / "one.beton", tmp_path / "two.beton"]
    for workers, (beton, chunk_size) in enumerate(zip(betons, (100, 3)), 1):
        done = convert(source, beton, EncodeOptions(), on_error="skip", num_workers=workers, chunk_size=chunk_size)
        assert (done.kept, done.damaged, len(done.skipped)) == (len(DAMAGES), 2, len(DAMAGES) - 2)
    assert betons[0].read_bytes() == betons[1].read_bytes()


@pytest.mark.parametrize("options", [{}, {"max_resolution": 0}, {"write_mode": "raw"}, {"reencode": True}])
def test_few_bytes_do_not_take_all_memory(options: dict[str, Any]) -> None:
    """libjpeg-turbo#328: 62994 x 65284 px are promised."""
    data = KEPT["4:2:0"]()
    at = data.index(b"\xff\xc0") + 5
    with pytest.raises(ValueError, match=r"it is cut off: [\d,]+ bytes are too few for 65284 x 62994 px"):
        _stored(data[:at] + struct.pack(">HH", 65284, 62994) + data[at + 4 :], **options)


def test_a_sample_that_no_page_has_room_for_is_refused() -> None:
    with pytest.raises(ValueError, match=r"it takes .* bytes, but a page has 999"):
        _stored(KEPT["4:2:0"](), largest=999)


@pytest.mark.parametrize("kind", ["4:2:0", "4:4:4", "gray", "RGB, not YCbCr", "progressive", "3x1 1x1 1x1"])
def test_what_is_shrunk_is_decoded_as_pillow_does(kind: str) -> None:
    data = KEPT[kind]()
    pixels = module._decode(data, *PHOTO.shape[:2])
    assert pixels is not None
    np.testing.assert_array_equal(pixels, decode_rgb(data))
    assert module._decode(data[: len(data) // 2], *PHOTO.shape[:2]) is None


@pytest.mark.parametrize("kind", ["4:2:0", "gray", "RGB, not YCbCr", "progressive", "restart markers"])
def test_an_eighth_of_the_size_tells_what_all_of_it_would(kind: str) -> None:
    """Damage is found whatever the size that a JPEG is decoded to, and there is no false alarm."""
    data = KEPT[kind]()
    handle, pixels = libturbojpeg.new_handle(), np.empty(PHOTO.shape, np.uint8)
    random = np.random.default_rng(0)
    sound = []
    for _ in range(200):
        changed = np.frombuffer(data, np.uint8).copy()
        changed[random.integers(len(data) // 4, len(data))] ^= 1 << random.integers(8)
        changed = changed.tobytes()
        header = module._read_header(changed)
        if header is None or header[:2] != PHOTO.shape[:2]:
            continue
        stored = np.frombuffer(changed, np.uint8)
        height, width, _ = PHOTO.shape
        code = libturbojpeg.decompress(
            handle, stored.ctypes.data, stored.size, pixels.ctypes.data, width, 0, height, 0, libturbojpeg.FLAGS
        )
        assert module._is_sound(changed, height, width, header[3]) == (code == 0)
        sound.append(code == 0)
    libturbojpeg.destroy_handle(handle)
    assert 9 < sum(sound) < len(sound) - 9
