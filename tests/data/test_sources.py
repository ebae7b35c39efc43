"""Image sets: what is listed, and any image as RGB."""

from __future__ import annotations

import gzip
import pickle
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from ffcv_cropmix.data.images import Source, decode_rgb, read, to_rgb
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


def _image(level: int, kind: str = "png") -> bytes:
    file = BytesIO()
    Image.new("RGB", (4, 3), (level, 0, 0)).save(file, kind)
    return file.getvalue()


def _levels(source: Source) -> list[int]:
    """What tells the images of `_image` apart."""
    return [int(decode_rgb(read(source.images[index]))[0, 0, 0]) for index in range(len(source))]


def _tar(path: Path, **members: bytes) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, BytesIO(content))


def test_webdataset(tmp_path: Path) -> None:
    first = {"a/x.1.cls": b"9", "a/x.png": _image(1), "a/x.cls": b"2\n", "a/x.txt": b"7", "b/x.json": b'{"label": 1}'}
    _tar(tmp_path / "set-train-0.tar", **first, **{"b/x.PNG": _image(2), "b/x.mask.png": _image(0)})
    _tar(tmp_path / "set-train-1.tar", **{"x.png": _image(3), "x.cls": b"0"})
    _tar(tmp_path / "set-val-0.tar", **{"y.png": _image(4), "y.cls": b"1"})
    source = open_source("webdataset", tmp_path / "set-train-*.tar", "train")
    assert (_levels(source), source.labels.tolist()) == ([1, 2, 3], [2, 1, 0])
    assert source.classes == ["0", "1", "2"]
    assert source.name(1) == f"{tmp_path}/set-train-0.tar/b/x.PNG"
    assert _levels(open_source("webdataset", tmp_path, "train")) == [1, 2, 3]
    (tmp_path / "val").mkdir()
    (tmp_path / "set-val-0.tar").rename(tmp_path / "val/0.tar")
    assert _levels(open_source("webdataset", tmp_path, "val")) == [4]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"x.png": b"", "y.cls": b"1"}, "0.tar/x.png has no label"),
        ({"x.png": b"", "x.cls": b"cat"}, "0.tar/x.png has no label"),
        ({"x.png": b"", "x.json": b"[1]"}, "0.tar/x.png has no label"),
        ({"x.png": b"", "x.jpg": b"", "x.cls": b"1"}, "0.tar/x.jpg is not the only image"),
        ({"x.png": b"", "x.cls": b"-1"}, "has labels from -1 to -1"),
        ({"x.cls": b"1"}, "0.tar has no images"),
    ],
)
def test_webdataset_faults(members: dict[str, bytes], message: str, tmp_path: Path) -> None:
    _tar(tmp_path / "0.tar", **members)
    with pytest.raises(DataError, match=message):
        open_source("webdataset", tmp_path, "train")


def test_tar_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\*.tar has no .tar files"):
        open_source("webdataset", tmp_path / "none*.tar", "train")
    _tar(tmp_path / "0.tar", **{"x.png": bytes(9999), "x.cls": b"1"})
    whole = (tmp_path / "0.tar").read_bytes()
    for content in (b"no tar", gzip.compress(whole), whole[:2000]):
        (tmp_path / "0.tar").write_bytes(content)
        with pytest.raises(DataError, match=r"0.tar is not a whole, uncompressed tar file"):
            open_source("webdataset", tmp_path, "train")


@pytest.fixture
def table(tmp_path: Path, monkeypatch) -> datasets.Dataset:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"label": datasets.ClassLabel(names=["cat", "dog", "eel"]), "image": datasets.Image()})
    rows = {"label": [1, 0, 1], "image": [{"bytes": _image(level), "path": None} for level in (1, 2, 3)]}
    return datasets.Dataset.from_dict(rows, features)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_huggingface(kind: str, table: datasets.Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    if kind == "parquet":
        (folder / "data").mkdir(parents=True)
        table.select([0, 1]).to_parquet(folder / "data/train-00000-of-00002.parquet")
        table.select([2]).to_parquet(folder / "data/train-00001-of-00002.parquet")
        table.select([1]).to_parquet(folder / "data/validation-00000-of-00001.parquet")
    else:
        datasets.DatasetDict(train=table, validation=table.select([1])).save_to_disk(folder)
    source = open_source("huggingface", folder, "train")
    assert (_levels(source), source.labels.tolist()) == ([1, 2, 3], [1, 0, 1])
    assert source.classes == ["cat", "dog", "eel"]
    assert source.name(1) == "sample 1"
    assert [bytes(image) for image in source.images[:2]] == [_image(1), _image(2)]
    assert _levels(open_source("huggingface", folder, "val")) == [2]
    with pytest.raises(DataError, match="has no files of split test, it has train and val"):
        open_source("huggingface", folder, "test")


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_splits_of_huggingface_in_other_names(kind: str, table: datasets.Dataset, tmp_path: Path) -> None:
    """As `datasets` names the files of its cache, NAME-train.arrow."""
    folder = tmp_path / "set"
    folder.mkdir()
    for split, rows in (("train", [0, 1, 2]), ("validation", [1])):
        part = table.select(rows)
        if kind == "parquet":
            part.to_parquet(folder / f"my_set-{split}.parquet")
        else:
            part.save_to_disk(tmp_path / split)
            (tmp_path / split / "data-00000-of-00001.arrow").rename(folder / f"my_set-{split}.arrow")
    assert _levels(open_source("huggingface", folder, "train")) == [1, 2, 3]
    source = open_source("huggingface", folder, "val")
    assert (_levels(source), source.left_out) == ([2], {"files of other splits": 1})
    with pytest.raises(DataError, match="has no files of split test, it has train and val"):
        open_source("huggingface", folder, "test")


def test_huggingface_without_its_features(table: datasets.Dataset, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    plain = table.to_pandas().rename(columns={"image": "picture"})
    plain.to_parquet(tmp_path / "x/0.parquet")
    source = open_source("huggingface", tmp_path / "x", "train")
    assert (_levels(source), source.classes) == ([1, 2, 3], ["0", "1"])
    for change, message in (
        ({"label": "kind"}, "cannot tell the labels among the columns kind, picture"),
        ({"picture": "label", "label": "x"}, "label is not a number"),
    ):
        plain.rename(columns=change).to_parquet(tmp_path / "x/0.parquet")
        with pytest.raises(DataError, match=message):
            open_source("huggingface", tmp_path / "x", "train")
    plain.assign(label=[0, -1, 1]).to_parquet(tmp_path / "x/0.parquet")
    with pytest.raises(DataError, match="column label has labels from -1 to 1"):
        open_source("huggingface", tmp_path / "x", "train")
    (tmp_path / "x/0.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="x cannot be read by datasets"):
        open_source("huggingface", tmp_path / "x", "train")
    (tmp_path / "x/0.parquet").unlink()
    with pytest.raises(DataError, match=r"no .parquet or .arrow files"):
        open_source("huggingface", tmp_path / "x", "train")


def test_huggingface_is_optional(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'ffcv-cropmix\[huggingface\]'"):
        open_source("huggingface", tmp_path, "train")


def test_csv(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for level in (1, 2, 3):
        (tmp_path / f"images/{level}.png").write_bytes(_image(level))
    table = tmp_path / "set.csv"
    rows = f'label,path,note\nb,images/3.png,"a, b"\n"ä, ö",{tmp_path}/images/1.png,\nb,images/2.png,\n'
    table.write_text(rows, encoding="utf-8-sig")
    source = open_source("csv", table, "train")
    assert (_levels(source), source.labels.tolist(), source.classes) == ([3, 1, 2], [0, 1, 0], ["b", "ä, ö"])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["10", "2"], [10, 2]),
        ([" 10", "2 ", "\t0"], [10, 2, 0]),
        (["10.0", "2.0", "0."], [10, 2, 0]),  # as pandas writes a column in which one was missing
        (["007", "+3", "0"], [7, 3, 0]),
        (["10", "2.00", " 0"], [10, 2, 0]),
    ],
)
def test_labels_of_a_csv_that_are_numbers(tmp_path: Path, labels: list[str], expected: list[int]) -> None:
    table = tmp_path / "set.csv"
    table.write_text("path, label\n" + "".join(f"{k}.png,{label}\n\n" for k, label in enumerate(labels)))
    source = open_source("csv", table, "train")
    assert source.labels.tolist() == expected
    assert source.classes == [str(label) for label in range(max(expected) + 1)]


def test_rows_of_a_csv_that_are_none(tmp_path: Path) -> None:
    """With on_error="skip" they are counted; labels stay numbers."""
    table = tmp_path / "set.csv"
    table.write_text("path,label\n0.png,10\npath,label\n1.png,\n2.png,nan\na,b.png,3\n4.png,2,\n")
    with pytest.raises(DataError, match=r"set\.csv, line 3: the first line is repeated"):
        open_source("csv", table, "train")
    source = open_source("csv", table, "train", on_error="skip")
    assert (source.labels.tolist(), source.images) == ([10, 2], [tmp_path / "0.png", tmp_path / "4.png"])
    assert [name for name, _ in source.skipped] == [f"{table}, line {line}" for line in (3, 4, 5, 6)]


def test_a_csv_with_a_column_of_splits(tmp_path: Path) -> None:
    table = tmp_path / "set.csv"
    table.write_text("path,label,split\n0.png,b,train\n1.png,a,Validation\n2.png,c,train\n3.png,c,\n")
    source = open_source("csv", table, "val")
    assert ([path.name for path in source.images], source.classes) == (["1.png"], ["a"])
    assert source.left_out == {"rows of other splits": 2, "rows that name no split": 1}
    with pytest.raises(DataError, match=r"set\.csv has no rows of split test, it has train and val"):
        open_source("csv", table, "test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path\nx.png\n", "has no columns path and label"),
        ("", "has no columns path and label"),
        ("path,label\n", "set.csv has no rows"),
        ("path,label\nx.png,1\ny.png\n", "set.csv, line 3: a path or a label is missing"),
        ("path,label\nx.png,-1\n", "has labels from -1 to -1"),
        ("path,label\nx.png,99999999999\n", "has labels from 99999999999"),
        ("path,label\n\xff", "cannot be read"),
        ("path,label\nx.png,3\ny.png,cat\n", "set.csv, line 3: the label 'cat' is not a whole number.* '3' in line 2"),
        ("path,label\nx.png,cat\ny.png,3\n", "set.csv, line 2: the label 'cat' is not a whole number.* '3' in line 3"),
        ("path,label\nx.png,3\ny.png,1e3\n", "set.csv, line 3: the label '1e3' is not a whole number"),
        ("path,label\nx.png,3\ny.png,1.5\n", "set.csv, line 3: the label '1.5' is not a whole number"),
        ("path,label\nx.png,3\ny.png,NaN\n", "set.csv, line 3: a path or a label is missing"),
        ("path,label\na,b.png,3\n", "set.csv, line 2: 3 cells, the first line has 2"),
        ("path,label,label\nx.png,0,1\n", "has several columns path and label"),
        ("path,label\nx.png," + "9" * 30 + "\n", "has labels from 9"),
    ],
)
def test_csv_faults(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=message) as caught:
        open_source("csv", tmp_path / "set.csv", "train")
    assert "\n" not in str(caught.value)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    (tmp_path / "val").mkdir()
    for number in (1, 2, 4):
        (tmp_path / f"val/ILSVRC2012_val_{number:08}.JPEG").write_bytes(_image(50 * number, "jpeg"))
    (tmp_path / "val/readme.txt").touch()
    return tmp_path / "val"


def test_imagenet_val(flat: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("n00000030\nn00000010\nn00000020\nn00000010\n")
    source = open_source("imagenet_val", flat, "val", labels)
    assert source.left_out == {"files ending in .txt": 1, "lines of labels without an image": 1}
    assert source.classes == ["n00000010", "n00000020", "n00000030"]
    assert source.labels.tolist() == [2, 0, 0]
    assert [int(Path(source.name(index)).stem[-8:]) for index in range(3)] == [1, 2, 4]


def test_imagenet_val_by_the_devkits_numbers(flat: Path, tmp_path: Path) -> None:
    """Its numbers are not in the order of the WordNet ids, and its table has inner nodes of WordNet as well."""
    kind = [(name, "O") for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")]
    synsets = [
        (1, "n00000020", "b", "", 0),
        (2, "n00000030", "c", "", 0),
        (3, "n00000010", "a", "", 0),
        (4, "n00000001", "animal", "", 3),
    ]
    savemat(tmp_path / "meta.mat", {"synsets": np.array(synsets, kind)[:, None]})
    labels = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    labels.write_text("2\n3\n3\n3\n")
    source = open_source("imagenet_val", flat, "val", labels)
    assert source.classes == ["n00000010", "n00000020", "n00000030"]
    assert source.labels.tolist() == [2, 0, 0]
    labels.write_text("2\n3\n3\n4\n")
    with pytest.raises(DataError, match=r"numbers of classes that meta.mat does not have"):
        open_source("imagenet_val", flat, "val", labels)
    (tmp_path / "meta.mat").unlink()
    with pytest.raises(DataError, match=r"meta.mat cannot be read"):
        open_source("imagenet_val", flat, "val", labels)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("n00000030\ncat\n", "labels.txt, line 2: neither a WordNet id"),
        ("", "labels.txt, line 1: neither"),
        ("n00000030\n" * 3, "val_00000004.JPEG has no line in .*labels.txt, which has 3"),
    ],
)
def test_imagenet_val_faults(flat: Path, content: str, message: str) -> None:
    labels = flat / "labels.txt"
    labels.write_text(content)
    with pytest.raises(DataError, match=message):
        open_source("imagenet_val", flat, "val", labels)
    with pytest.raises(DataError, match=r"nolabels.txt cannot be read"):
        open_source("imagenet_val", flat, "val", flat / "nolabels.txt")


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "digits"])
def test_an_unknown_split_is_named(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{dataset} has no split trian"):
        open_source(dataset, tmp_path, "trian")


@pytest.mark.parametrize("dataset", ["imagefolder", "cifar10", "cifar100", "huggingface"])
def test_what_is_missing_is_named(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        open_source(dataset, tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match=str(tmp_path)) as caught:
        open_source(dataset, tmp_path, "train")
    assert "\n" not in str(caught.value)
