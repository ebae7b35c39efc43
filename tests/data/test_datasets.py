"""The classes of training and validation sets, which are matched by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ffcv_cropmix.data.convert import convert
from ffcv_cropmix.data.datasets import check_datasets
from ffcv_cropmix.data.encode import EncodeOptions
from ffcv_cropmix.data.images import Source
from ffcv_cropmix.data.sidecar import sidecar_path
from ffcv_cropmix.errors import DataError

FRUIT = ["apple", "banana", "cherry", "date"]


def _write(path: Path, classes: list[str], labels: list[int]) -> str:
    images = np.zeros((len(labels), 4, 4, 3), np.uint8)
    convert(Source(classes, np.array(labels), images), path, EncodeOptions(write_mode="raw"), num_workers=1)
    return str(path)


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _write(tmp_path_factory.mktemp("train") / "train.beton", FRUIT, [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("classes", "labels", "numbers"),
    [
        (FRUIT, [3, 1], None),
        (FRUIT[:2], [0, 1], None),
        (["apple", "cherry", "date"], [0, 1, 2], [0, 2, 3]),
        (FRUIT[::-1], [0, 1, 2, 3], [3, 2, 1, 0]),
        (["Zucchini", "date"], [1, 1], [-1, 3]),  # no images of what the model does not know
        (["date", "kiwi", "kiwi"], [0], [3, -1, -1]),
    ],
)
def test_labels_are_matched_by_name(
    train: str, tmp_path: Path, capsys, classes: list[str], labels: list[int], numbers: list[int] | None
) -> None:
    val = _write(tmp_path / "val.beton", classes, labels)
    data = check_datasets(train, val)
    assert data == (4, FRUIT, 4, len(labels), numbers)
    printed = capsys.readouterr().out
    assert printed == ("" if numbers is None else printed)
    assert printed.count("labels are matched by name\n") == (numbers is not None)


@pytest.mark.parametrize(
    ("classes", "labels", "message"),
    [
        (
            ["apple", "kiwi"],
            [0, 1],
            r"val\.beton has images of 'kiwi', which is none of the 4 classes of .*train\.beton",
        ),
        (
            ["a", "b", "c", "d"],
            [0, 1, 3],
            r"has images of 'a' and of 2 more classes, .*\('apple', 'banana', 'cherry', \.\.\.\)",
        ),
        (["0", "1", "2", "3"], [0, 1, 2, 3], "has images of '0' and of 3 more classes"),
        ([*FRUIT, "kiwi"], [4], "has images of 'kiwi'"),
        (["date", "apple", "date"], [0, 2], "number their classes differently, and 'date' names more than one"),
    ],
)
def test_other_classes_are_an_error(
    train: str, tmp_path: Path, classes: list[str], labels: list[int], message: str
) -> None:
    val = _write(tmp_path / "val.beton", classes, labels)
    with pytest.raises(DataError, match=message):
        check_datasets(train, val)


def test_the_same_names_twice_need_no_matching(tmp_path: Path) -> None:
    """ImageNet's "crane" is two classes."""
    paths = [_write(tmp_path / name, ["crane", "tern", "crane"], [0, 1, 2]) for name in ("train.beton", "val.beton")]
    assert check_datasets(*paths).val_numbers is None


@pytest.mark.parametrize("nameless", ["train", "val"])
def test_what_cannot_be_compared_is_said(train: str, tmp_path: Path, capsys, nameless: str) -> None:
    paths = {name: _write(tmp_path / f"{name}.beton", FRUIT[::-1], [0, 1]) for name in ("train", "val")}
    sidecar_path(paths[nameless]).unlink()
    data = check_datasets(paths["train"], paths["val"])
    assert (data.num_classes, data.val_numbers) == (1000 if nameless == "train" else 4, None)
    assert "classes are not compared; label k is assumed to be output k" in capsys.readouterr().out


def test_labels_that_a_sidecar_does_not_name(train: str, tmp_path: Path) -> None:
    val = _write(tmp_path / "val.beton", FRUIT[::-1], [3, 2])
    content = json.loads(sidecar_path(val).read_text())
    sidecar_path(val).write_text(json.dumps(content | {"classes": ["date", "apple"]}))
    with pytest.raises(DataError, match=r"val\.beton: sample 0 has the label 3, .*do not belong together"):
        check_datasets(train, val)
