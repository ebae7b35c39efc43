"""DCTImageField under FFCV's loader and writer."""

from __future__ import annotations

import re
from pathlib import Path

import ffcv.fields.rgb_image as rgb_image
import ffcv.loader
import numpy as np
import pytest
from ffcv.pipeline import PipelineSpec
from ffcv.reader import Reader
from PIL import Image

from ffcv_cropmix import DCTImageField, check_beton
from ffcv_cropmix.data.dct import decode_dct
from ffcv_cropmix.data.encode import DCT_ARGUMENTS
from ffcv_cropmix.errors import DataError
from tests.betons import COUNT, metadata_of, photo

CUSTOM = {"image": DCTImageField}


def test_ffcvs_reader_takes_it_as_a_custom_field_only(sealed_dct: Path) -> None:
    assert Reader(str(sealed_dct), CUSTOM).metadata["f0"]["mode"].tolist() == [2] * COUNT
    with pytest.raises(ValueError, match="custom_field"):
        Reader(str(sealed_dct))


@pytest.mark.parametrize(
    "decoder",
    [
        lambda: [rgb_image.SimpleRGBImageDecoder()],
        lambda: [rgb_image.RandomResizedCropRGBImageDecoder((8, 8))],
        lambda: PipelineSpec("image", decoder=rgb_image.CenterCropRGBImageDecoder((8, 8), 1)),
    ],
)
def test_ffcvs_decoders_refuse_it(sealed_dct: Path, decoder) -> None:
    with pytest.raises(TypeError, match=r"RGBImageDecoder cannot read a DCTImageField: use a decoder of ffcv_cropmix"):
        ffcv.loader.Loader(str(sealed_dct), 4, 1, pipelines={"image": decoder(), "label": None}, custom_fields=CUSTOM)


def test_encodes_for_ffcvs_writer() -> None:
    field = DCTImageField(max_resolution=60, jpeg_quality=100)
    destination, memory = np.zeros(1, field.metadata_type), []

    def malloc(size: int) -> tuple[int, np.ndarray]:
        memory.append(np.empty(size, np.uint8))
        return 4096, memory[0]

    field.encode(destination, Image.fromarray(photo(25)), malloc)
    mode, width, height, pointer = destination[0].item()
    assert (mode, max(width, height), pointer) == (2, 60, 4096)
    image = np.asarray(Image.fromarray(photo(25)).resize((width, height), Image.Resampling.BOX))
    assert np.abs(decode_dct(memory[0].tobytes(), height, width) - image.astype(int)).mean() < 6
    for wrong in (np.zeros((3, 4), np.uint8), np.zeros((3, 4, 3), np.float32), "x"):
        with pytest.raises(ValueError, match=r"an image must be uint8 \(height, width, 3\), got"):
            field.encode(destination, wrong, malloc)


def test_its_arguments_have_a_version() -> None:
    field = DCTImageField.from_binary(DCTImageField().to_binary())
    assert isinstance(field, DCTImageField)
    newer = np.frombuffer(DCT_ARGUMENTS[:-1] + b"2".ljust(1025 - len(DCT_ARGUMENTS), b"\0"), np.uint8)
    with pytest.raises(ValueError, match="is it of a newer version"):
        DCTImageField.from_binary(newer)


def test_files_that_are_not_as_they_say(sealed_dct: Path, tmp_path: Path) -> None:
    content, copy = bytearray(sealed_dct.read_bytes()), tmp_path / "x.beton"
    at = content.index(DCT_ARGUMENTS)

    def refused(message: str) -> None:
        copy.write_bytes(content)
        with pytest.raises(DataError, match=re.escape(message)):
            check_beton(copy)

    metadata_of(content, sealed_dct)["f0"]["mode"][3] = 0
    refused("the image of sample 3 is of mode 0, not dct")
    content[at + len(DCT_ARGUMENTS) - 1] = ord("2")
    refused("is it of a newer version")
    content[at] = ord("x")
    refused("its field 'image' is of a custom type: pass custom_fields")
