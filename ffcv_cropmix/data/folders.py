"""List image files in folders, in order, and tell splits by the words in their names."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeVar

from PIL import Image, ImageFile

from ..errors import DataError
from .images import OnError

T = TypeVar("T")

# The words by which Hugging Face's datasets tells splits.
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}


@dataclass
class Omissions:
    """What a source found and did not take."""

    on_error: OnError = "raise"
    left_out: Counter[str] = field(default_factory=Counter)
    """Number of files by kind that are not samples, or not of this split"""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason) of what should be a sample but cannot be read"""

    def fail(self, name: object, reason: str, between: str = " ") -> None:
        """Skip an item or raise a DataError, as `on_error` says."""
        if self.on_error == "raise":
            raise DataError(f"{name}{between}{reason}; --on_error skip continues without it")
        self.skipped.append((str(name), reason))

    def leave_out(self, what: str, count: int = 1) -> None:
        """Count items that are left out."""
        if count:
            self.left_out[what] += count

    def remark(self) -> str:
        """Describe what was left out, for an error about something missing."""
        return f" (left out: {listed(self.left_out)})" if self.left_out else ""


def listed(left_out: Mapping[str, int]) -> str:
    """Describe what was left out, the most frequent kind first.

    Example:
        >>> listed({"hidden files or folders": 1, "files ending in .txt": 1200})
        '1,200 files ending in .txt, 1 hidden files or folders'
    """
    return ", ".join(f"{count:,} {what}" for what, count in Counter(left_out).most_common())


@cache
def image_endings() -> frozenset[str]:
    """Return the file name endings of the formats that Pillow decodes, such as ".jpg", in lower case."""
    endings = Image.registered_extensions()
    decoded = {"MPO"}  # opened as JPEG
    for name, (factory, _) in Image.OPEN.items():
        stub = isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)  # recognised, but not decoded
        decoded |= set() if stub or name == "MPEG" else {name}
    return frozenset(end for end, name in endings.items() if name in decoded)


def ending(name: str) -> str:
    """Return a file name's ending with its dot, in lower case; empty if there is none."""
    return Path(name).suffix.lower()


def kind_of(name: str) -> str:
    """Return the kind under which a file that is not an image is counted."""
    if name.startswith("."):
        return "hidden files or folders"
    return f"files ending in {ending(name)}" if ending(name) else "files without an ending"


def subfolders(folder: Path, omissions: Omissions | None = None) -> list[str]:
    """Return the names of a folder's visible subfolders, sorted, and count the files as left out.

    Raises:
        OSError: the folder cannot be read.
    """
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_folder(entry) and not entry.name.startswith("."):
                names.append(entry.name)
            elif omissions:
                loose = _is_image(entry.name)
                omissions.leave_out("images outside the class folders" if loose else kind_of(entry.name))
    return sorted(names)


def has_folders(folder: Path) -> bool:
    """Return whether a folder has a visible subfolder; False if it cannot be read."""
    with suppress(OSError):
        return bool(subfolders(folder))
    return False


def _is_image(name: str) -> bool:
    return ending(name) in image_endings() and not name.startswith(".")


def has_images(folder: Path) -> bool:
    """Return whether a folder itself contains an image."""
    with os.scandir(folder) as entries:
        return any(_is_image(entry.name) and not _is_folder(entry) for entry in entries)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to a place without permission
        return False


def files_below(folder: Path, root: Path, endings: Collection[str], omissions: Omissions) -> list[Path]:
    """List the files with one of these endings in a folder and below, in the order of torchvision's ImageFolder.

    Links to folders are followed unless their contents are listed anyway, so each file is listed once even if links
    form a loop. Hidden files and folders are left out.

    Args:
        folder: the folder to list.
        root: a folder that contains this one and the others that are listed.
        endings: the endings to take, in lower case.
        omissions: counts what is left out.
    """
    inside = [os.path.realpath(place) + os.sep for place in (root, folder)]
    pending = [(str(folder), os.path.realpath(folder))]
    seen = {pending[0][1]}
    found: list[tuple[str, list[str]]] = []
    while pending:
        place, real = pending.pop()
        names = []
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if _is_folder(entry) and not entry.name.startswith("."):
                        target = f"{real}{os.sep}{entry.name}"
                        listed_anyway = False
                        if entry.is_symlink():
                            target = os.path.realpath(entry.path)
                            ends = target + os.sep
                            listed_anyway = any(ends.startswith(top) or top.startswith(ends) for top in inside)
                        if listed_anyway or target in seen:
                            omissions.leave_out("links to folders that are listed anyway")
                        else:
                            seen.add(target)
                            pending.append((entry.path, target))
                    elif not entry.name.startswith(".") and ending(entry.name) in endings:
                        names.append(entry.name)
                    else:
                        omissions.leave_out(kind_of(entry.name))
        except OSError as error:
            omissions.fail(place, f"cannot be read: {error.strerror or error}")
        found.append((place, names))
    return [Path(place, name) for place, names in sorted(found) for name in sorted(names)]


def numbered_images(folder: Path) -> list[Path]:
    """List the images in a folder and below. For a folder of classes the order is that of the rows of a .beton file.

    If the folder itself contains images, all are listed in the order of their paths.
    """
    omissions = Omissions()
    try:
        classes = [] if has_images(folder) else subfolders(folder)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror or error}") from None
    if not classes:
        return sorted(files_below(folder, folder, image_endings(), omissions))
    return [path for name in classes for path in files_below(folder / name, folder, image_endings(), omissions)]


def find_files(data_dir: Path, split: str, endings: Collection[str], omissions: Omissions) -> tuple[Path, list[Path]]:
    """Find files: those with some endings in a folder and below, or all that match a pattern.

    If the folder has a subfolder or link `split`, the files in that.

    Returns:
        the folder that contains the files, and the files, sorted.
    """
    if (data_dir / split).is_dir():
        data_dir /= split
    if data_dir.is_dir():
        others_are_not_counted = Omissions(omissions.on_error, skipped=omissions.skipped)
        return data_dir, sorted(files_below(data_dir, data_dir, endings, others_are_not_counted))
    files = [data_dir] if data_dir.is_file() else sorted(map(Path, glob.glob(str(data_dir), recursive=True)))  # noqa: PTH207
    return Path(os.path.commonpath([file.parent for file in files])) if files else data_dir, files


def asked_split(split: str) -> str:
    """Return the split as `split_of` names it: "validation" is "val"."""
    return _SPLITS.get(split.lower(), split)


def split_of(name: str, split: str) -> str | None:
    """Return the split whose word is in a name: train, val, test or `split`; "train/val" if there are several.

    Case does not matter. A word ends where the letters end.

    Example:
        >>> split_of("imagenet_Train2012.tar", "train"), split_of("validation", "train"), split_of("trained", "train")
        ('train', 'val', None)
    """
    if split.lower() not in _SPLITS and re.search(rf"(?<![^\W\d_]){re.escape(split)}(?![^\W\d_])", name, re.IGNORECASE):
        return split
    words = re.findall(r"[^\W\d_]+", name.lower())
    return "/".join(sorted({_SPLITS[word] for word in words if word in _SPLITS})) or None


def names_only_splits(name: str) -> bool:
    """Return whether a name consists of words of splits alone: train_256, but not imagenet_train."""
    return all(word in _SPLITS for word in re.findall(r"[^\W\d_]+", name.lower()))


def of_split(
    files: Iterable[T], split: str, omissions: Omissions, where: object, parts: Callable[[T], Sequence[str]], kind: str
) -> list[T]:
    """Return the files of a split, or all of them if no name tells a split.

    Args:
        files: the files.
        split: the split to take.
        omissions: counts the files of other splits.
        where: the place they are in, for messages.
        parts: returns the names that lead to a file, the outermost first; the last one that tells a split decides.
        kind: what the files are, for messages.

    Raises:
        DataError: all files that tell a split are of other splits.
    """
    splits: dict[str | None, list[T]] = {}
    for file in files:
        told = (split_of(part, split) for part in reversed(parts(file)))
        splits.setdefault(next(filter(None, told), None), []).append(file)
    unnamed = splits.pop(None, [])
    if not splits:
        return unnamed
    chosen = splits.pop(asked_split(split), None)
    if chosen is None:
        there = " and ".join(sorted(map(str, splits)))
        others = f" ({len(unnamed)} {kind} name none)" if unnamed else ""
        raise DataError(f"{where} has no {kind} of split {split}, it has {there}{others}: give a --split")
    omissions.leave_out(f"{kind} of other splits", sum(map(len, splits.values())))
    omissions.leave_out(f"{kind} that name no split", len(unnamed))
    return chosen


def check_shards(files: Iterable[Path], omissions: Omissions) -> None:
    """Report a missing file among files named ...-00001-of-00257."""
    sets: dict[tuple[str, str, str], list[str]] = {}
    for file in files:
        if match := re.fullmatch(r"(.*?)(\d{3,})-of-(\d{3,})(.*)", str(file)):
            sets.setdefault((match[1], match[3], match[4]), []).append(match[2])
    for (begin, total, end), numbers in sets.items():
        first = int(max(map(int, numbers)) == int(total))  # some count from 1
        expected = [f"{first + number:0{len(numbers[0])}}" for number in range(int(total))]
        missing = sorted(set(expected) - set(numbers))
        if missing:
            further = f", and so are {len(missing) - 1} more of {total}" if missing[1:] else ""
            omissions.fail(f"{begin}{missing[0]}-of-{total}{end}", f"is missing{further}")
