"""The figures: what they show is what is mixed, and every crop can be told from the others."""

from __future__ import annotations

import sys
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from ffcv_cropmix import MixPlan, cropmix, sample_plan, visualize
from ffcv_cropmix.errors import run_program
from ffcv_cropmix.visualize import Sheet, contact_sheet, crop_images, crop_shares, open_images, strips
from tests.betons import COUNT, photo, stored_image


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def run(*arguments: object) -> tuple[int, str, str]:
        """Exit status, stdout, stderr."""
        monkeypatch.setattr(sys, "argv", ["visualize", *map(str, arguments)])
        status: object = 0
        try:
            run_program(visualize.main)
        except SystemExit as end:
            status = end.code
        out, error = capsys.readouterr()
        return (status, out, error) if isinstance(status, int) else (1, out, f"{status}\n")

    return run


@pytest.mark.parametrize("operation", ["mixup", "cutmix"])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_the_crops_and_their_shares_make_the_mix(operation: str, number: int) -> None:
    image, size = photo(20), (33, 41)
    options: dict[str, Any] = {"operation": operation, "number": number, "mix_ratio": 3, "inter_aug": True}
    flips = 0
    for index in range(12):
        plan = sample_plan(*image.shape[:2], output_size=size, index=index, flip_probability=0.5, **options)
        shares = crop_shares(plan, size)
        np.testing.assert_allclose(shares.sum(2), 1)
        crops = np.stack(crop_images(image, plan, size), 2)  # height, width, crops, channels
        expected = (shares[:, :, :, None] * crops).sum(2)
        assert np.abs(expected - cropmix(image, plan, size)).max() <= 1.01  # crops are rounded, and so is the mix
        flips += plan.flip
    assert 0 < flips < 12


def test_shares_by_hand() -> None:
    crops = [(0, 0, 2, 2)] * 3
    mixup = MixPlan(crops=crops, operation="mixup", lams=[0.25, 0.5])
    np.testing.assert_allclose(crop_shares(mixup, (1, 1)), [[[0.125, 0.375, 0.5]]])
    cutmix = MixPlan(crops=crops, operation="cutmix", boxes=[(0, 0, 1, 2), (0, 1, 2, 2)], paste_next=[True, False])
    # Of 2 x 2 pixels, the second crop takes the upper row, then the third all but the right column.
    assert crop_shares(cutmix, (2, 2)).argmax(2).tolist() == [[2, 1], [2, 0]]


def test_strips_are_epochs_of_the_decoder() -> None:
    plans = strips(photo(20), range(3, 5), options={"number": 2, "inter_aug": True}, index=7, seed=9)
    of: dict[str, Any] = {"seed": 9, "index": 7}
    size = photo(20).shape[:2]
    assert plans == {
        "RandomResizedCrop": [sample_plan(*size, epoch=epoch, number=1, scale=0.08, **of) for epoch in (3, 4)],
        "CropMix": [sample_plan(*size, epoch=epoch, number=2, inter_aug=True, **of) for epoch in (3, 4)],
    }


def test_images_of_every_source(betons: dict[str, Path], sealed: dict[str, Path], tmp_path: Path) -> None:
    for mode in ("raw", "jpg"):
        found = open_images(betons[mode], [30, 4], 9)
        assert [(row, name) for row, name, _ in found] == [(row, f"{mode}.beton, row {row}") for row in (30, 4)]
        for row, _, image in found:
            # Pillow's inverse DCT is the exact one, FFCV's the fast one.
            np.testing.assert_allclose(1.0 * image, stored_image(betons[mode], row), rtol=0, atol=4 * (mode == "jpg"))
    assert [name for _, name, _ in open_images(sealed["raw"], [3], 1)] == ["raw.beton, row 3, class class 3"]
    assert [row for row, *_ in open_images(betons["raw"], None, 4)] == [0, 12, 24, 36]
    assert len(open_images(betons["raw"], None, 99)) == COUNT
    (tmp_path / "b").mkdir()
    for name in ("b/1.png", "a.PNG", "c.png"):
        Image.fromarray(photo(len(name))).save(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    found = open_images(tmp_path, None, 9)
    assert [(row, name) for row, name, _ in found] == [(0, "a.PNG"), (1, "1.png"), (2, "c.png")]
    np.testing.assert_array_equal(found[1][2], photo(7))
    assert [name for _, name, _ in open_images(tmp_path / "c.png", None, 9)] == ["c.png"]


@pytest.mark.parametrize("name", ["caf\udce9", "$x_$", "a\nb"])
def test_any_name_can_be_a_title(name: str) -> None:
    """Those of classes come from folders: not all are UTF-8, or free of what matplotlib takes for mathematics."""
    plan = sample_plan(*photo(20).shape[:2], number=1, output_size=(32, 32))
    figure = contact_sheet([Sheet(photo(20), [plan], title=name)], (32, 32))
    FigureCanvasAgg(figure).draw()
    assert figure.subfigs[0]._suptitle.get_text() == name.replace("\udce9", r"\udce9")


def test_crops_are_where_the_plan_has_them() -> None:
    image = photo(20)
    plan = sample_plan(*image.shape[:2], number=3, output_size=(32, 32))
    figure = contact_sheet([Sheet(image, [plan])], (32, 32))
    patches = [patch for patch in figure.subfigs[0].axes[0].patches if isinstance(patch, Rectangle)]
    boxes = [(patch.get_y(), patch.get_x(), patch.get_height() + 1, patch.get_width() + 1) for patch in patches]
    assert boxes == list(plan.crops)
    crops = figure.subfigs[0].axes[1:4]
    assert [axes.spines["left"].get_edgecolor() for axes in crops] == [patch.get_edgecolor() for patch in patches]
    assert [axes.texts[0].get_text() for axes in crops] == ["1", "2", "3"]
    shares = 100 * crop_shares(plan, (32, 32)).mean((0, 1))
    assert [axes.get_title() for axes in crops] == [f"{share:.0f} %" for share in shares]


def test_crops_can_be_told_apart_in_gray_and_text_can_be_read() -> None:
    brightness = [np.dot(to_rgb(color), (0.299, 0.587, 0.114)) for color in visualize._COLORS]
    first = sorted(brightness[:4])
    assert min(b - a for a, b in pairwise(first)) > 0.15  # of 4 crops, the most that the paper has
    assert len(set(map(str, visualize._LINES))) == 4  # and their lines differ
    image = photo(20)
    plan = sample_plan(*image.shape[:2], number=8)
    figure = contact_sheet([Sheet(image, [plan], {"CropMix": [plan]}, "title")], title="epoch 0")
    assert figure.get_figwidth() * figure.dpi == pytest.approx(860)  # px: as wide as GitHub shows a README
    texts = [text for text in figure.findobj(Text) if text.get_text().strip()]
    assert len(texts) > 16
    assert min(text.get_fontsize() * figure.dpi / 72 for text in texts) >= 12  # px


def test_a_contact_sheet(run, betons: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[Any] = []

    def recorded(sheets: list[Sheet], *arguments: Any) -> Any:
        received.append((sheets, *arguments))
        return contact_sheet(sheets, *arguments)

    monkeypatch.setattr(visualize, "contact_sheet", recorded)
    path = tmp_path / "figure.png"
    options = ["--rows", 20, "--epochs", 2, "--scale", 0.2, 0.9, "--number", 3, "--seed", 5, "--epoch", 4, "--size", 64]
    status, out, error = run(betons["raw"], "--output", path, *options, "--flip_probability", 1, "--inter_aug")
    assert (status, error) == (0, "")
    assert out == f"{path}: crops, their share of the mix, the mix\n"
    with Image.open(path) as figure:
        assert (figure.format, figure.width) == ("PNG", 860)
        assert np.asarray(figure).std() > 20
    assert [file.name for file in tmp_path.iterdir()] == ["figure.png"]
    (((sheet,), size, interpolation, title, room),) = received
    assert (size, interpolation, title, room) == ((64, 64), "bilinear", "", 3)
    of: dict[str, Any] = {"output_size": size, "seed": 5, "index": 20, "inter_aug": True, "flip_probability": 1}
    of |= {"scale": (0.2, 0.9), "number": 3}
    height, width = photo(20).shape[:2]
    assert sheet.plans == [sample_plan(height, width, epoch=4, operation=kind, **of) for kind in ("mixup", "cutmix")]
    assert list(sheet.strips) == ["RandomResizedCrop", "CropMix, mixup", "CropMix, cutmix"]
    expected = [sample_plan(height, width, epoch=epoch, operation="cutmix", **of) for epoch in (4, 5)]
    assert sheet.strips["CropMix, cutmix"] == expected


def test_large_images_are_plotted_where_their_crops_are(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.zeros((60, 9000, 3), np.uint8)
    image[:, 6000:] = 200
    Image.fromarray(image).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow refuses twice as many
    assert run(tmp_path / "large.png", "--output", tmp_path / "figure.png", "--epochs=0", "--size=16")[0] == 0
    figure = contact_sheet([Sheet(image, [MixPlan(crops=[(0, 6000, 60, 3000)])])], (16, 16))
    shown_image = figure.subfigs[0].axes[0].images[0]
    left, right, bottom, top = shown_image.get_extent()
    assert (left, right, bottom, top) == (-0.5, 8999.5, 59.5, -0.5)  # the axes' numbers are pixels of the image
    shown = np.asarray(shown_image.get_array())
    assert shown.shape[1] < 2048
    assert (shown[:, : shown.shape[1] * 2 // 3 - 1] == 0).all()
    assert (shown[:, shown.shape[1] * 2 // 3 + 1 :] == 200).all()


def test_an_animation(run, betons: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "figure.gif"
    options = ["--animate", "--epochs", 3, "--rows", 9, "--size", 32, "--operation", "mixup"]
    status, _, error = run(betons["jpg"], "--output", path, *options)
    assert (status, error) == (0, "")
    with Image.open(path) as animation:
        assert (animation.format, animation.n_frames, animation.width) == ("GIF", 3, 860)
        assert animation.info["loop"] == 0


def _png() -> bytes:
    file = BytesIO()
    Image.new("L", (64, 64)).save(file, "PNG")
    return file.getvalue()


BROKEN = {  # Pillow's exceptions: SyntaxError, ...
    "a checksum of PNG": _png().replace(b"IDAT", b"IDAU"),
    "a header of TIFF": b"II*\0\x08\0\0\0\x05\0" + bytes(40),
    "a length of PNG": _png().replace(b"\0\0\0\rIHDR", b"\0\0\0\x02IHDR"),
}


def test_mistakes_are_one_line_and_leave_what_was_there(run, betons: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    path.write_text("a figure")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "empty").mkdir()

    def refused(source: Path, *arguments: object) -> tuple[int, str]:
        status, out, error = run(source, "--output", path, *arguments)
        assert (out, error.count("\n")) == ("", 1)
        assert path.read_text() == "a figure"
        return status, error

    assert refused(tmp_path / "missing.png")[1] == f"error: {tmp_path}/missing.png: no such file or directory\n"
    assert refused(tmp_path / "broken.jpg")[1].startswith(f"error: {tmp_path}/broken.jpg cannot be read: ")
    for name, content in BROKEN.items():
        (tmp_path / "broken.jpg").write_bytes(content)
        assert refused(tmp_path / "broken.jpg")[1].startswith(f"error: {tmp_path}/broken.jpg cannot be read: "), name
    assert refused(tmp_path / "empty")[1] == f"error: {tmp_path}/empty has no images\n"
    assert refused(betons["raw"], "--rows", 37) == (1, f"error: {betons['raw']} has no row 37: there are 37, from 0\n")
    for option in (["--scale", "2"], ["--scale", "1", "1", "1"], ["--number=9"], ["--images=0"], ["--size=0"]):
        status, error = refused(betons["raw"], *option)
        assert (status, option[0].strip("-").split("=")[0] in error) == (2, True)
    message = "error: output must be a file *.gif in a folder that exists"
    assert refused(betons["raw"], "--animate")[1].startswith(message)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["broken.jpg", "empty", "figure.png"]
