"""Tar files as users have them: damaged, joined, with links and holes, and with names of many kinds."""

from __future__ import annotations

import bz2
import gzip
import lzma
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from ffcv_cropmix.data.images import Source, decode_rgb, read
from ffcv_cropmix.data.sources import open_source
from ffcv_cropmix.errors import DataError

LEVELS = range(0, 120, 20)


def _image(level: int, kind: str = "png") -> bytes:
    file = BytesIO()
    Image.new("RGB", (40, 30), (level,) * 3).save(file, kind, **{"lossless": True} if kind == "webp" else {})
    return file.getvalue()


def _levels(source: Source) -> list[int]:
    return [round(float(decode_rgb(read(image)).mean()) / 10) * 10 for image in source.images]


def _tar(members: Iterable[tuple[str, bytes]], **options: object) -> bytes:
    file = BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as archive:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, BytesIO(content))
    return file.getvalue()


def _samples(levels: Iterable[int], begin: str = "") -> bytes:
    """A shard of samples of these levels, which are the labels too."""
    return _tar((f"{begin}{k}.{end}", data) for k in levels for end, data in (("png", _image(k)), ("cls", b"%d" % k)))


def _offset(whole: bytes, name: str) -> int:
    return next(member.offset for member in tarfile.open(fileobj=BytesIO(whole)) if member.name == name)


def _open(folder: Path, content: bytes, on_error: str = "raise") -> Source:
    (folder / "0.tar").write_bytes(content)
    return open_source("webdataset", folder, "train", on_error=on_error)  # type: ignore[arg-type]


WHOLE = _samples(LEVELS)
LONG = _samples(LEVELS, "x" * 150 + "/")  # each member has a further header, with its long name


def _flipped(whole: bytes, place: int) -> bytes:
    return whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]


def _zeroed(whole: bytes, begin: int, end: int) -> bytes:
    return whole[:begin] + bytes(end - begin) + whole[end:]


AT = _offset(WHOLE, "40.png")
AT_LONG = _offset(LONG, "x" * 150 + "/40.png")
AT_LABEL = _offset(WHOLE, "40.cls")
AT_NEXT = _offset(WHOLE, "60.png")


@pytest.mark.parametrize(
    ("content", "offset", "kept"),
    [
        (_flipped(WHOLE, 1), 0, [20, 40, 60, 80, 100]),  # name
        (_flipped(WHOLE, AT + 3), AT, [0, 20, 60, 80, 100]),
        (_flipped(WHOLE, AT + 130), AT, [0, 20, 60, 80, 100]),  # size
        (_flipped(WHOLE, AT + 150), AT, [0, 20, 60, 80, 100]),  # checksum
        (_flipped(WHOLE, AT + 156), AT, [0, 20, 60, 80, 100]),  # type
        (_flipped(WHOLE, AT_LABEL + 1), AT_LABEL, [0, 20, 60, 80, 100]),
        (WHOLE[:AT], AT, [0, 20]),
        (WHOLE[: AT + 100], AT, [0, 20]),
        (WHOLE[: AT + 520], AT, [0, 20]),  # in the image
        (WHOLE[: AT_LABEL + 512], AT_LABEL, [0, 20]),  # after the label's header
        (_zeroed(WHOLE, AT, AT + 512), AT, [0, 20, 60, 80, 100]),
        (_zeroed(WHOLE, AT, AT_NEXT), AT, [0, 20, 60, 80, 100]),
        (_zeroed(WHOLE, AT, len(WHOLE)) + bytes(20480), AT, [0, 20]),
        (WHOLE[:AT] + b"\xff" * 1024 + WHOLE[AT_LABEL:], AT, [0, 20, 60, 80, 100]),
        # The cut sample was written again after it: the header of y0.png lies in 40.png.
        (WHOLE[: AT + 512] + _samples(LEVELS, "y"), AT + 1024, [0, 20, 20, 40, 60, 80, 100]),
        (
            _flipped(LONG, AT_LONG + 9),
            AT_LONG,
            [0, 20, 60, 80, 100],
        ),
        (LONG[: AT_LONG + 512], AT_LONG, [0, 20]),
    ],
)
def test_damage_is_named_and_with_skip_no_more_is_lost(
    tmp_path: Path, content: bytes, offset: int, kept: list[int]
) -> None:
    """webdataset#142: what follows the first damaged header was lost, and nothing said."""
    with pytest.raises(DataError, match=rf"0\.tar is not a whole, uncompressed tar file: at byte {offset}, "):
        _open(tmp_path, content)
    source = _open(tmp_path, content, "skip")
    assert source.skipped[0][0] == f"{tmp_path}/0.tar"
    assert f"at byte {offset}, " in source.skipped[0][1]
    assert (_levels(source), source.labels.tolist()) == (kept, kept)


@pytest.mark.parametrize(("content", "message"), [(b"", "it is empty"), (b"no tar", "truncated header")])
def test_a_shard_that_is_none_is_skipped_alone(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "1.tar").write_bytes(WHOLE)
    with pytest.raises(DataError, match=rf"0\.tar .* at byte 0, {message}"):
        _open(tmp_path, content)
    assert _levels(_open(tmp_path, content, "skip")) == [*LEVELS]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_shard_is_named(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    with pytest.raises(DataError, match=r"0\.tar .* it is compressed with (gzip|bzip2|xz): decompress it"):
        _open(tmp_path, pack(WHOLE))
    (tmp_path / "0.tar").rename(tmp_path / "0.tar.gz")
    with pytest.raises(DataError, match=r"has no \.tar files \(left out: 1 compressed \.tar files\)"):
        open_source("webdataset", tmp_path, "train")


def test_joined_archives_are_read_on(tmp_path: Path) -> None:
    """As webdataset does, and GNU tar with --ignore-zeros; the names may be the same in each."""
    short = _samples([40, 60]).rstrip(b"\0")
    short += bytes(-len(short) % 512 + 1024)  # an end without padding, as Go's archive/tar writes it
    listed = _tar([("20.png", _image(20)), ("20.cls", b"20")], pax_headers={"comment": "for all members"})
    for parts in ([WHOLE, WHOLE], [short, WHOLE, short], [listed, short, listed]):
        expected = [level for part in parts for level in _levels(_open(tmp_path, part))]
        source = _open(tmp_path, b"".join(parts))
        assert (_levels(source), source.labels.tolist()) == (expected, expected)


@pytest.mark.parametrize("make", ["link", "symlink"])
def test_links_are_the_files_that_they_name(tmp_path: Path, make: str) -> None:
    folder = tmp_path / "src/a"
    folder.mkdir(parents=True)
    for level in (10, 20):
        (folder / f"{level}.png").write_bytes(_image(level))
        (folder / f"{level}.cls").write_text(str(level))
    for new, old in (("30.png", "20.png"), ("30.cls", "10.cls"), ("00.png", "30.png"), ("00.cls", "20.cls")):
        if make == "link":
            (folder / new).hardlink_to(folder / old)
        else:  # also to what comes later, through another folder, and to a link
            (folder / new).symlink_to(f"../a/./{old}")
    subprocess.run(["tar", "--sort=name", "-cf", tmp_path / "0.tar", "-C", tmp_path / "src", "."], check=True)
    source = open_source("webdataset", tmp_path / "0.tar", "train")
    assert [Path(source.name(k)).name for k in range(4)] == ["00.png", "10.png", "20.png", "30.png"]
    assert (_levels(source), source.labels.tolist()) == ([20, 10, 20, 20], [20, 10, 20, 10])


@pytest.mark.parametrize("target", ["nowhere.png", "../20.png", "/20.png", "x.png", "loop.png"])
def test_a_link_to_nothing_is_named(tmp_path: Path, target: str) -> None:
    file = BytesIO(WHOLE)
    with tarfile.open(fileobj=file, mode="a") as archive:
        for name, to in (("x.png", target), ("loop.png", "x.png")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, to
            archive.addfile(info)
    with pytest.raises(DataError, match=rf"0\.tar/x\.png is a link to {target}, which is not a file of this shard"):
        _open(tmp_path, file.getvalue())
    source = _open(tmp_path, file.getvalue(), "skip")
    assert (_levels(source), source.skipped[0][0]) == ([*LEVELS], f"{tmp_path}/0.tar/x.png")


@pytest.mark.parametrize("kind", [["gnu"], *(["posix", f"--sparse-version={k}"] for k in ("0.0", "0.1", "1.0"))])
def test_holes_are_zeros(tmp_path: Path, kind: list[str]) -> None:
    folder = tmp_path / "src"
    folder.mkdir()
    with (folder / "0.bmp").open("wb") as file:  # a dark image with a bright row here and there
        for level, size in ((None, 54), (0, 30_000), (200, 3000), (0, 600_000), (100, 3000), (0, 263_946)):
            if level is None:
                black = BytesIO()
                Image.new("RGB", (1000, 300)).save(black, "BMP")
                file.write(black.getvalue()[:size])
            elif level:
                file.write(bytes([level]) * size)
            else:
                file.seek(size, 1)
        file.truncate(900_054)
    (folder / "0.cls").write_text("3")
    command = ["tar", "--sparse", f"--format={kind[0]}", *kind[1:], "-cf", tmp_path / "0.tar", "-C", folder, "0.bmp"]
    subprocess.run([*command, "0.cls"], check=True)
    with tarfile.open(tmp_path / "0.tar") as archive:
        if not archive.getmember("0.bmp").issparse():
            pytest.skip("files have no holes here")
    source = open_source("webdataset", tmp_path / "0.tar", "train")
    assert source.labels.tolist() == [3]
    assert read(source.images[0]) == (folder / "0.bmp").read_bytes()
    whole = (tmp_path / "0.tar").read_bytes()
    with pytest.raises(DataError, match=r"at byte 0, 0\.bmp is cut off"):
        _open(tmp_path, whole[:4096])


def test_all_formats_of_pillow_are_taken(tmp_path: Path) -> None:
    ends = {"jpg": "JPEG", "JPE": "JPEG", "jfif": "JPEG", "mpo": "JPEG", "input.jpg": "JPEG", "apng": "PNG"}
    ends |= {"a.b.Png": "PNG", "avif": "AVIF", "jp2": "JPEG2000", "webp": "WEBP", "tga": "TGA", "pcx": "PCX"}
    members = []
    for k, (end, kind) in enumerate(ends.items()):
        level = 10 * (k + 1)
        members += [(f"s/{k}.{end}", _image(level, kind)), (f"s/{k}.cls", b"%d" % level)]
    source = _open(tmp_path, _tar(members))
    assert (_levels(source), source.labels.tolist()) == ([10 * (k + 1) for k in range(len(ends))],) * 2
    assert source.left_out == {}


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        ("x.png x.mask.png x.cls", {"x.png": 0}),
        ("x.mask.png x.png x.1.cls x.cls", {"x.png": 0}),
        ("x.input.png x.target.cls", {"x.input.png": 0}),
        ("22.05.png 22.05.cls 22.10.png 22.10.cls", {"22.05.png": 0, "22.10.png": 1}),  # datasets#7144, webdataset#237
        ("y.cls x.png y.png x.cls", {"x.png": 1, "y.png": 0}),  # ray#44068: not side by side
    ],
)
def test_which_image_and_which_label_a_sample_has(tmp_path: Path, names: str, taken: dict[str, int]) -> None:
    label = 0
    members = []
    for name in names.split():
        content = _image(0)
        if name.endswith("cls"):
            content = b"9" if name == "x.1.cls" else b"%d" % label
            label += name != "x.1.cls"
        members.append((name, content))
    source = _open(tmp_path, _tar(members))
    found = {Path(source.name(k)).name: int(source.labels[k]) for k in range(len(source))}
    assert found == taken
    assert source.left_out == ({"further images of samples": 1} if "mask" in names else {})


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"x.left.png": b"", "x.right.png": b"", "x.cls": b"1"}, "x.right.png is not the only image of its sample"),
        ({"x.png": b"", "x.PNG": b"", "x.cls": b"1"}, "x.PNG is not the only image of its sample"),
        ({"x.png": b"", "x.cls": b"1", "x.json": b'{"label": 2}'}, "x.png has the labels 1 and 2"),
        ({"x.png": b"", "x.cls": b"1.5"}, "x.png has no label"),
        ({"x.png": b"", "x.a.cls": b"1", "x.b.cls": b"2"}, "x.png has no label"),
    ],
)
def test_what_is_ambiguous_is_an_error_or_skipped(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    content = _tar([*members.items(), ("y.png", _image(20)), ("y.cls", b"2")])
    with pytest.raises(DataError, match=rf"0\.tar/{message}"):
        _open(tmp_path, content)
    source = _open(tmp_path, content, "skip")
    assert (_levels(source), len(source.skipped)) == ([20], 1)


@pytest.mark.parametrize(("text", "label"), [("0003", 3), (" 3\n", 3), ("3.0", 3), ("+3", 3), ("0", 0)])
def test_numbers_in_cls_files(tmp_path: Path, text: str, label: int) -> None:
    assert _open(tmp_path, _tar([("x.png", b""), ("x.cls", text.encode())])).labels.tolist() == [label]


def test_what_is_no_sample_is_counted(tmp_path: Path) -> None:
    names = ("./._0.png", "./.DS_Store", "0.txt", "1.txt", "README", "2.heic", "9.cls", "9.json")
    content = _samples(LEVELS).rstrip(b"\0")
    content += bytes(-len(content) % 512) + _tar((name, b"1") for name in names)
    assert _open(tmp_path, content).left_out == {
        "hidden files or folders": 2,
        "files ending in .txt": 2,
        "files without an ending": 1,
        "files ending in .heic": 1,
        "samples without an image": 1,
    }
