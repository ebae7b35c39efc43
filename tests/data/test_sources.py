"""Image sets: what is listed, and any image as RGB."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ffcv_cropmix.data.images import decode_rgb, read, to_rgb
from ffcv_cropmix.data.sources import open_source
from ffcv_cropmix.errors import DataError

GRAY = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOR = np.stack([GRAY, GRAY.T, 255 - GRAY], 2)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "YCbCr", "HSV"])
def test_color_modes(mode: str) -> None:
    image = Image.fromarray(COLOR)
    rgb = np.asarray(to_rgb(image.convert(mode))).astype(int)
    assert rgb.shape == (16, 16, 3)
    assert np.abs(rgb - COLOR).mean() < {"P": 40, "HSV": 4, "YCbCr": 2}.get(mode, 0.01)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I", "F"])
def test_gray_modes(mode: str) -> None:
    rgb = np.asarray(to_rgb(Image.fromarray(GRAY).convert(mode)))
    assert rgb.shape == (16, 16, 3)
    assert (rgb == rgb[:, :, :1]).all()
    if mode != "1":
        np.testing.assert_array_equal(rgb[:, :, 0], GRAY)


@pytest.mark.parametrize("name", ["gray16.png", "gray16.tif"])
def test_sixteen_bits_are_scaled_not_clipped(name: str, tmp_path: Path) -> None:
    Image.fromarray(GRAY.astype(np.uint16) * 257).save(tmp_path / name)
    np.testing.assert_array_equal(decode_rgb((tmp_path / name).read_bytes())[:, :, 1], GRAY)


@pytest.mark.parametrize("name", ["dark.png", "dark.tif", "dark.pgm"])
def test_sixteen_bits_are_scaled_however_dark(name: str, tmp_path: Path) -> None:
    dark = Image.fromarray(np.full((4, 4), 255, np.uint16))
    dark.save(tmp_path / name)
    assert not decode_rgb((tmp_path / name).read_bytes()).any()
    as_older_pillow_reads_it = Image.fromarray(np.full((4, 4), 255, np.int32))
    as_older_pillow_reads_it.format = "PNG"
    assert not np.asarray(to_rgb(as_older_pillow_reads_it)).any()


def test_transparent_palette_and_exif_rotation(tmp_path: Path, recwarn) -> None:
    palette = Image.fromarray(COLOR).convert("P")
    palette.save(tmp_path / "p.png", transparency=bytes(range(256)))
    assert decode_rgb((tmp_path / "p.png").read_bytes()).shape == (16, 16, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(COLOR[:8]).save(tmp_path / "turned.jpg", exif=exif)
    assert decode_rgb((tmp_path / "turned.jpg").read_bytes()).shape == (8, 16, 3)
    assert not recwarn.list


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, classes in (("train", "ab"), ("val", "b")):
        for name in classes:
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(2):
                Image.fromarray(COLOR).save(tmp_path / split / name / f"{number}.png")
    return tmp_path


def test_imagefolder(folder: Path) -> None:
    for data_dir in (folder, folder / "train"):
        source = open_source("imagefolder", data_dir, "train")
        assert source.classes == ["a", "b"]
        assert source.labels.tolist() == [0, 0, 1, 1]
        assert source.name(2) == str(folder / "train/b/0.png")
        np.testing.assert_array_equal(decode_rgb(read(source.images[3])), COLOR)
    assert open_source("imagefolder", folder, "val").classes == ["b"]
    with pytest.raises(DataError, match="has no folder test, it has train and val"):
        open_source("imagefolder", folder, "test")  # not a set of the classes train and val


def test_a_class_may_be_called_train(folder: Path) -> None:
    (folder / "train/b").rename(folder / "train/train")
    for data_dir in (folder, folder / "train"):
        assert open_source("imagefolder", data_dir, "train").classes == ["a", "train"]


def test_a_class_without_images_is_named(folder: Path) -> None:
    (folder / "train/empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        open_source("imagefolder", folder, "train")


@pytest.mark.parametrize(
    ("name", "train_files"), [("cifar10", [f"data_batch_{k}" for k in range(1, 6)]), ("cifar100", ["train"])]
)
def test_cifar(name: str, train_files: list[str], tmp_path: Path, monkeypatch) -> None:
    import torchvision.datasets

    kind = getattr(torchvision.datasets, name.upper())
    monkeypatch.setattr(kind, "_check_integrity", lambda _: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    root = tmp_path / kind.base_folder
    root.mkdir()
    key = "labels" if name == "cifar10" else "fine_labels"
    pixels = np.arange(3 * 1024, dtype=np.uint16).astype(np.uint8)
    for number, file in enumerate([*train_files, "test_batch" if name == "cifar10" else "test"]):
        (root / file).write_bytes(pickle.dumps({"data": np.stack([pixels + number] * 2), key: [number, 3]}))
    meta = {"label_names" if name == "cifar10" else "fine_label_names": ["x", "y", "z", "w", "v", "u"]}
    (root / kind.meta["filename"]).write_bytes(pickle.dumps(meta))
    source = open_source(name, tmp_path, "train")
    assert len(source) == 2 * len(train_files)
    assert source.classes[0] == "x"
    image = source.images[0]
    assert image.shape == (32, 32, 3)
    assert image[0, 1].tolist() == [1, 1025 % 256, 2049 % 256]
    assert open_source(name, tmp_path, "val").labels.tolist() == [len(train_files), 3]


def test_digits_are_split_once_and_for_all() -> None:
    train, val = open_source("digits", None, "train"), open_source("digits", None, "val")
    assert (len(train), len(val)) == (1437, 360)
    assert train.images.shape == (1437, 64, 64, 3)
    assert train.images.dtype == np.uint8
    assert train.classes == list("0123456789")
    seen = {image.tobytes() for image in train.images}
    assert not seen & {image.tobytes() for image in val.images}
    assert set(np.unique(val.labels)) == set(range(10))
    np.testing.assert_array_equal(open_source("digits", None, "val").images, val.images)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "digits"])
def test_an_unknown_split_is_named(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{dataset} has no split trian"):
        open_source(dataset, tmp_path, "trian")


@pytest.mark.parametrize("dataset", ["imagefolder", "cifar10", "cifar100"])
def test_what_is_missing_is_named(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        open_source(dataset, tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match=str(tmp_path)) as caught:
        open_source(dataset, tmp_path, "train")
    assert "\n" not in str(caught.value)
