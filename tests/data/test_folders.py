"""Folders as users have them: splits of many names, all that Pillow reads, links, hidden files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from ffcv_cropmix.data.folders import image_endings, numbered_images, split_of
from ffcv_cropmix.data.images import Source
from ffcv_cropmix.data.sources import open_source
from ffcv_cropmix.errors import DataError
from tests.data.test_shards import WHOLE


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("TRAIN2017", "train"),
        ("imagenet1k-train-0000.tar", "train"),
        ("ILSVRC2012_img_val", "val"),
        ("imagenet-1k-validation-00000-of-00014.arrow", "val"),
        ("x.valid.parquet", "val"),
        ("dev", "val"),
        ("val_256", "val"),
        ("testing 1", "test"),
        ("eval", "test"),
        ("trained", None),
        ("interval", None),
        ("trainval", None),
        ("évaltest", None),
        ("train_val_0.tar", "train/val"),
        ("Extra-0.tar", "extra"),
        ("train-extra-0.tar", "extra"),
        ("extras", None),
    ],
)
def test_a_split_is_a_word_of_a_name(name: str, split: str | None) -> None:
    assert split_of(name, "extra") == split


def _make(folder: Path, *names: str) -> Path:
    """Images of a pixel, each of another level, or other files."""
    for level, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".png", ".jpg"):
            Image.new("RGB", (1, 1), (level, 0, 0)).save(path)
        else:
            path.touch()
    return folder


def _taken(source: Source, folder: Path) -> list[str]:
    return [str(Path(str(path)).relative_to(folder)) for path in source.images]


@pytest.mark.parametrize(
    ("names", "split", "taken"),
    [
        ("training/a/1.png validation/a/2.png", "train", "training/a/1.png"),
        ("training/a/1.png validation/a/2.png", "val", "validation/a/2.png"),
        ("Train/a/1.png Val/a/2.png", "train", "Train/a/1.png"),
        ("train_256/a/1.png val_256/a/2.png", "val", "val_256/a/2.png"),
        ("ILSVRC2012_img_train/a/1.png ILSVRC2012_img_val/a/2.png", "val", "ILSVRC2012_img_val/a/2.png"),
        ("train/a/1.png train_256/a/2.png val/a/3.png", "train", "train/a/1.png"),
        ("train/a/1.png train_256/a/2.png val/a/3.png", "train_256", "train_256/a/2.png"),
        ("train/a/1.png annotations/xml/1.xml", "train", "train/a/1.png"),
        ("set/train/a/1.png set/val/a/2.png", "val", "set/val/a/2.png"),
        ("Set/Data/Training/a/1.png Set/Data/Validation/a/2.png", "train", "Set/Data/Training/a/1.png"),
        ("a/train/1.png a/val/2.png b/train/3.png b/val/4.png", "val", "a/val/2.png b/val/4.png"),
        ("a/train/1.png a/2.png", "train", "a/2.png a/train/1.png"),
        ("bullet_train/1.png car/2.png test_tube/3.png", "train", "bullet_train/1.png car/2.png test_tube/3.png"),
        ("bullet_train/old/1.png car/2.png", "train", "bullet_train/old/1.png car/2.png"),
        ("a/train_1.png a/test_2.png b/val.png", "train", "a/test_2.png a/train_1.png b/val.png"),  # datasets#5021
        ("train/1.png test/2.png other/3.png", "train", "other/3.png test/2.png train/1.png"),
    ],
)
def test_the_folder_of_a_split(tmp_path: Path, names: str, split: str, taken: str) -> None:
    folder = _make(tmp_path / "x", *names.split())
    source = open_source("imagefolder", folder, split)
    assert _taken(source, folder) == taken.split()
    assert ("folders that name no split" in source.left_out) == ("annotations" in names)


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        ("training/a/1.png validation/a/2.png", "test", "has no folder test, it has training and validation"),
        (
            "train_1/a/1.png train_2/a/2.png",
            "train",
            "several folders of split train, it has train_1 and train_2",
        ),
        ("train_val/a/1.png test/a/2.png", "train", "has no folder train, it has test and train_val"),
        # datasets#7880
        ("train/1.png test/2.png", "train", "has test and train, and these have no folders for the classes"),
        ("my_train/a/1.png my_extra/a/2.png", "train", "has my_extra and my_train: is my_train a split, or a class"),
        ("a/train/1.png b/val/2.png", "test", "has no images of split test, it has train and val"),
        ("a/1.png b/2.xyz", "train", r"has no images of the classes b \(left out: 1 files ending in .xyz\)"),
    ],
)
def test_a_split_that_cannot_be_told_is_an_error(tmp_path: Path, names: str, split: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source("imagefolder", _make(tmp_path / "x", *names.split()), split)


@pytest.mark.parametrize(
    ("names", "split", "taken"),
    [
        ("i1k-train-0.tar i1k-train-1.tar i1k-validation-0.tar", "train", "i1k-train-0.tar i1k-train-1.tar"),
        ("i1k-train-0.tar i1k-validation-0.tar", "val", "i1k-validation-0.tar"),
        ("TRAIN/0.tar Valid/0.tar", "train", "TRAIN/0.tar"),
        ("x/train/0.tar x/test/0.tar", "test", "x/test/0.tar"),
        ("0.tar 1.tar", "val", "0.tar 1.tar"),
        ("train-0.tar extra-0.tar", "train", "train-0.tar"),
        ("train-0.tar extra-0.tar", "extra", "extra-0.tar"),
    ],
)
@pytest.mark.parametrize("pattern", [False, True])
def test_the_shards_of_a_split(tmp_path: Path, names: str, split: str, taken: str, pattern: bool) -> None:
    for name in names.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(WHOLE)
    source = open_source("webdataset", tmp_path / "**/*.tar" if pattern else tmp_path, split)
    assert list(dict.fromkeys(image.archive for image in source.images)) == [tmp_path / name for name in taken.split()]


def test_a_split_may_be_a_link(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.tar").write_bytes(WHOLE)
    (tmp_path / "train").symlink_to("a")
    (tmp_path / "val").symlink_to("b")
    source = open_source("webdataset", tmp_path, "val")
    assert {image.archive for image in source.images} == {tmp_path / "val/0.tar"}


def test_shards_of_other_splits_only(tmp_path: Path) -> None:
    for name in ("x-val.tar", "x-test.tar", "x.tar"):
        (tmp_path / name).write_bytes(WHOLE)
    message = r"has no shards of split train, it has test and val \(1 shards name none\): give a --split"
    for data_dir in (tmp_path, tmp_path / "x*.tar"):
        with pytest.raises(DataError, match=message):
            open_source("webdataset", data_dir, "train")


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_shard_is_named(tmp_path: Path, missing: int) -> None:
    for number in {0, 1, 2} - {missing}:
        (tmp_path / f"x-train-{number:05}-of-00003.tar").write_bytes(WHOLE)
    with pytest.raises(DataError, match=f"x-train-0000{missing}-of-00003.tar is missing"):
        open_source("webdataset", tmp_path, "train")
    assert len(open_source("webdataset", tmp_path, "train", on_error="skip").skipped) == 1
    (tmp_path / f"x-train-{missing:05}-of-00003.tar").write_bytes(WHOLE)
    (tmp_path / "x-train-00000-of-00003.tar").rename(tmp_path / "x-train-00003-of-00003.tar")  # some count from 1
    assert len(open_source("webdataset", tmp_path, "train")) == 18


def test_images_are_in_the_order_of_torchvision(tmp_path: Path) -> None:
    names = "a/z.png a/b/1.png a-b/1.png a/b-c/2.PNG a/B/3.jpg B/1.png é/1.png a/b/c/4.png a/x.jpg/5.jpg"
    folder = _make(tmp_path, *names.split())
    source, expected = open_source("imagefolder", folder, "train"), ImageFolder(str(folder))
    assert [(str(path), label) for path, label in zip(source.images, source.labels)] == expected.samples
    assert source.classes == expected.classes
    assert numbered_images(folder) == source.images  # the rows of visualize


def test_all_that_pillow_reads_is_taken_and_the_rest_counted(tmp_path: Path) -> None:
    assert {".jpg", ".jpe", ".jfif", ".gif", ".avif", ".jp2", ".mpo", ".webp", ".tga", ".apng"} <= image_endings()
    assert not {".pdf", ".h5", ".mpg", ".txt", ".tar", ".grib"} & image_endings()
    names = [f"a/{k}{end.upper()}" for k, end in enumerate(sorted(image_endings()))]
    others = ["b/1.txt", "b/2.TXT", "b/README", "b/3.heic", "b/._1.png", "b/.x/1.png", ".ipynb_checkpoints/1.png"]
    folder = _make(tmp_path, *names, *others, "b/0.png", "2.png", "c.txt")
    source = open_source("imagefolder", folder, "train")
    assert sorted(_taken(source, folder)) == sorted([*names, "b/0.png"])
    assert source.classes == ["a", "b"]  # vision#2831: .ipynb_checkpoints is none
    assert source.left_out == {
        "files ending in .txt": 3,
        "files without an ending": 1,
        "files ending in .heic": 1,
        "hidden files or folders": 3,
        "images outside the class folders": 1,
    }


@pytest.mark.parametrize("links", [{"a/l": "."}, {"a/l": ".."}, {"a/l": "../b", "b/l": "../a"}, {"a/l": "../.."}])
def test_each_file_is_listed_once_whatever_the_links(tmp_path: Path, links: dict[str, str]) -> None:
    folder = _make(tmp_path / "x", "a/1.png", "b/2.png")
    for link, target in links.items():
        (folder / link).symlink_to(target)
    source = open_source("imagefolder", folder, "train")
    assert (_taken(source, folder), source.labels.tolist()) == (["a/1.png", "b/2.png"], [0, 1])
    assert source.left_out == {"links to folders that are listed anyway": len(links)}


def test_links_to_other_places_are_followed(tmp_path: Path) -> None:
    folder = _make(tmp_path / "x", "train/a/1.png", "val/a/2.png")
    other = _make(tmp_path / "other", "3.png", "sub/4.png")
    (folder / "train/b").symlink_to(other)
    (folder / "train/a/more").symlink_to(other)
    (other / "up").symlink_to("..")  # from which both are seen again
    (folder / "train/a/loop.png").symlink_to("loop.png")
    source = open_source("imagefolder", folder, "train")
    expected = ["a/1.png", "a/loop.png", "a/more/3.png", "a/more/sub/4.png", "b/3.png", "b/sub/4.png"]
    assert [name for name in _taken(source, folder / "train") if "up" not in name] == expected
    (folder / "val").rename(tmp_path / "v")
    (folder / "val").symlink_to(tmp_path / "v")
    assert _taken(open_source("imagefolder", folder, "val"), folder) == ["val/a/2.png"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _make(tmp_path / "x", "a/1.png", "a/sub/2.png", "b/3.png")
    scandir = os.scandir

    def refusing(place: Any) -> Any:
        if str(place).endswith("sub"):
            raise PermissionError(13, "Permission denied")
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match=r"x/a/sub cannot be read: Permission denied"):
        open_source("imagefolder", folder, "train")
    source = open_source("imagefolder", folder, "train", on_error="skip")
    assert (_taken(source, folder), source.skipped) == (
        ["a/1.png", "b/3.png"],
        [(f"{folder}/a/sub", "cannot be read: Permission denied")],
    )
