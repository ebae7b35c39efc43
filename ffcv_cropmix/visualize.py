"""Plot what CropMix does to images.

Each image and operation has a row: the crops on the image, each crop resized, with its share of the mix, and the mix.
Below them are the outputs of RandomResizedCrop and CropMix in several epochs. The images of a .beton file are mixed as
the decoder mixes them with the same options, seed and epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .data.folders import numbered_images
from .data.images import decode_rgb, read
from .data.replacing import replacing
from .errors import DataError, printable, run_program, wrong_options
from .functional import Interpolation, cropmix
from .kernels.layers import Layers, new_layers, stack
from .kernels.vectors import ADD
from .options import inline, option, parse_options, require
from .plan import OPERATIONS, MixPlan, Operation, sample_plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A crop is told by its number, and by colour, brightness and line alike: in grey too, and by the colour-blind.
_COLORS = ("#ffd500", "#d81b60", "#00c8ff", "#1a237e", "#ff8f00", "#2e7d32", "#eeeeee", "#6a1b9a")
_LINES: tuple[Any, ...] = ("-", (0, (4, 1.2)), (0, (1.2, 0.8)), (0, (4, 1, 1.2, 1)))
_WIDTH, _TITLE, _DPI = 8.6, 0.26, 100  # inches, and dots an inch
_FRAME_MS = 900
_SHOWN_SIDE = 1024  # px, of images: more than the figure shows
_RANDOM_RESIZED_CROP: dict[str, Any] = {"number": 1, "scale": 0.08, "inter_aug": False}


@dataclass(frozen=True)
class Sheet:
    """The contents of the plot of one image."""

    image: np.ndarray
    """uint8 (height, width, 3)"""
    plans: Sequence[MixPlan]
    """A row each: the crops on the image, each crop resized, the mix"""
    strips: Mapping[str, Sequence[MixPlan]] = field(default_factory=dict)
    """A row each, with its name: mixes alone, of several epochs"""
    title: str = ""


def visible_layers(plan: MixPlan, output_size: tuple[int, int]) -> Layers:
    """Return the layers of a mixed image, the lowest first: what is visible of each crop, however faint.

    Their `crops` begin with the number of the crop; the rest of a row has no meaning. Crops that cutmix covers at once
    have no layer.
    """
    numbered = replace(plan, crops=[(number, 0, 1, 1) for number in range(len(plan.crops))])
    layers = new_layers()
    count = stack(numbered.pack(output_size), len(plan.crops), OPERATIONS[plan.operation], *output_size, layers)
    return Layers(*(array[:count] for array in layers))


def crop_shares(plan: MixPlan, output_size: tuple[int, int]) -> np.ndarray:
    """Return the share of each crop in each pixel of the mixed image, float64 (height, width, crops), sum 1."""
    layers = visible_layers(plan, output_size)
    shares = np.zeros((*output_size, len(plan.crops)))
    for (crop, *_), weight, _, (row0, col0, row1, col1), blend in zip(*layers, strict=True):
        region = shares[row0:row1, col0:col1]
        region *= blend == ADD
        region[:, :, crop] += weight
    return shares[:, ::-1] if plan.flip else shares


def crop_images(
    image: np.ndarray, plan: MixPlan, output_size: tuple[int, int], interpolation: Interpolation = "bilinear"
) -> list[np.ndarray]:
    """Resize each crop alone, mirrored and with its channels in the order that they have in the mixed image.

    Returns:
        uint8 (height, width, 3) for each crop. A crop of which nothing is visible keeps its order of channels.
    """
    layers = visible_layers(plan, output_size)
    orders = dict(zip(layers.crops[:, 0].tolist(), layers.permutations.tolist(), strict=True))
    alone = (MixPlan(crops=[crop], flip=plan.flip) for crop in plan.crops)
    rendered = (cropmix(image, one, output_size, interpolation) for one in alone)
    return [crop[:, :, orders.get(k, [0, 1, 2])] for k, crop in enumerate(rendered)]


def strips(
    image: np.ndarray, epochs: Sequence[int], *, options: Mapping[str, Any], index: int = 0, seed: int = 0
) -> dict[str, list[MixPlan]]:
    """Sample the plans of RandomResizedCrop and of CropMix for an image in several epochs.

    Args:
        options: of CropMix, as `sample_plan` has them.
        index: the sample's row.
    """
    kinds = {"RandomResizedCrop": {**options, **_RANDOM_RESIZED_CROP}, "CropMix": options}
    return {
        name: [sample_plan(*image.shape[:2], index=index, seed=seed, epoch=epoch, **of) for epoch in epochs]
        for name, of in kinds.items()
    }


def contact_sheet(
    sheets: Sequence[Sheet],
    output_size: tuple[int, int] = (224, 224),
    interpolation: Interpolation = "bilinear",
    title: str = "",
    room: int = 0,
) -> Figure:
    """Plot how plans mix images.

    Args:
        sheets: one below the other.
        output_size: (height, width) of crops and mixes, px, as the plans were sampled for.
        interpolation: of crops and mixes.
        title: of the figure.
        room: for so many crops at least; figures with the same room, images and rows are of the same size.
    """
    from matplotlib.figure import Figure

    room = max(room, *(len(plan.crops) for sheet in sheets for plan in sheet.plans))
    heights = [_row_heights(sheet, room) for sheet in sheets]
    totals = [sum(rows) + 0.3 * bool(sheet.title) for rows, sheet in zip(heights, sheets, strict=True)]
    figure = Figure((_WIDTH, sum(totals) + 0.4 * bool(title)), dpi=_DPI, layout="constrained")
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold")
    parts = figure.subfigures(len(sheets), 1, height_ratios=totals, squeeze=False)[:, 0]
    for part, sheet, rows in zip(parts, sheets, heights, strict=True):
        if sheet.title:
            part.suptitle(printable(sheet.title), fontsize=11, parse_math=False)
        grid = iter(part.add_gridspec(len(rows), 1, height_ratios=rows))
        for plan, cell in zip(sheet.plans, grid):
            widths = [sheet.image.shape[1] / sheet.image.shape[0], *[1] * (room + 1)]
            places = [part.add_subplot(place) for place in cell.subgridspec(1, len(widths), width_ratios=widths)]
            _plot_plan(places, sheet.image, plan, output_size, interpolation)
        for (name, plans), cell in zip(sheet.strips.items(), grid):
            for k, (plan, place) in enumerate(zip(plans, cell.subgridspec(1, len(plans)))):
                axes = part.add_subplot(place)
                _show(axes, cropmix(sheet.image, plan, output_size, interpolation))
                if k == 0:
                    _long_title(axes, f"{name}: {len(plans)} epochs")
    return figure


def _row_heights(sheet: Sheet, room: int) -> list[float]:
    """Return heights in inches: a plan's image, `room` crops and the mix have one height and share the width."""
    height, width, _ = sheet.image.shape
    of_plans = [_WIDTH / (width / height + room + 1) + _TITLE] * len(sheet.plans)
    return of_plans + [_WIDTH / len(plans) + _TITLE for plans in sheet.strips.values()]


def _show(axes: Axes, picture: np.ndarray, title: str = " ") -> None:
    height, width, _ = picture.shape
    if max(height, width) >= 2 * _SHOWN_SIDE:  # matplotlib takes 100 bytes a pixel
        picture = np.asarray(Image.fromarray(picture).reduce(max(height, width) // _SHOWN_SIDE))
    axes.imshow(picture, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    axes.set_title(title, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _long_title(axes: Axes, title: str) -> None:
    """Write a title that starts at the left and, unlike matplotlib's, does not move images that are narrower."""
    text = axes.annotate(title, (0, 1), (0, 6), xycoords="axes fraction", textcoords="offset points", fontsize=10)
    text.set_in_layout(False)


def _plot_plan(
    places: Sequence[Axes],
    image: np.ndarray,
    plan: MixPlan,
    output_size: tuple[int, int],
    interpolation: Interpolation,
) -> None:
    """Plot a row: the crops on the image, each crop resized, the mix."""
    _plot_crops(places[0], image, plan)
    shares = crop_shares(plan, output_size)
    crops = crop_images(image, plan, output_size, interpolation)
    for k, picture in enumerate(crops):
        _plot_crop(places[1 + k], k, picture, shares[:, :, k])
    used = 1 + len(crops)
    if len(crops) > 1:
        mix = cropmix(image, plan, output_size, interpolation)
        _plot_mix(places[used], mix, None if ADD in visible_layers(plan, output_size).blends else shares)
        used += 1
    for unused in places[used:]:
        unused.set_axis_off()


def _plot_crops(axes: Axes, image: np.ndarray, plan: MixPlan) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    one = len(plan.crops) == 1
    _show(axes, image)
    _long_title(axes, "one crop" if one else f"{plan.operation} of {len(plan.crops)} crops")
    for k, (top, left, height, width) in enumerate(plan.crops):
        rim = withStroke(linewidth=4, foreground=_contrast(k))  # to be seen on any image
        axes.add_patch(
            Rectangle(
                (left, top),
                width - 1,
                height - 1,
                fill=False,
                edgecolor=_COLORS[k],
                linewidth=2.4,
                linestyle=_LINES[k % len(_LINES)],
                path_effects=[rim],
            )
        )
    for k, (top, left, height, width) in enumerate(plan.crops):  # each in another corner: crops share corners
        right, bottom = k % 2, k // 2 % 2
        _label(axes, k, left + width * right, top + height * bottom, right, bottom)


def _plot_crop(axes: Axes, k: int, picture: np.ndarray, shares: np.ndarray) -> None:
    """Plot a resized crop in a frame of the crop's colour; parts that cutmix covers are pale."""
    covered = (shares == 0)[:, :, None]
    _show(axes, np.where(covered, 255 - (255 - picture) // 4, picture), f"{100 * shares.mean():.0f} %")
    axes.spines[:].set(visible=True, edgecolor=_COLORS[k], linewidth=2.4, linestyle=_LINES[k % len(_LINES)])
    _label(axes, k, 0, 0)


def _plot_mix(axes: Axes, picture: np.ndarray, shares: np.ndarray | None) -> None:
    """Plot the mix; for cutmix, with the borders and numbers of the crops."""
    from matplotlib.colors import to_rgb

    if shares is not None:
        picture = picture.copy()
        seen = np.pad(shares > 0.5, ((2, 2), (2, 2), (0, 0)), mode="edge")
        inside = seen[:-4, 2:-2] & seen[4:, 2:-2] & seen[2:-2, :-4] & seen[2:-2, 4:]
        for k in range(shares.shape[2]):
            border = (shares[:, :, k] > 0.5) & ~inside[:, :, k]
            picture[border] = 255 * np.array(to_rgb(_COLORS[k]))
    _show(axes, picture, "the mix")
    for k in range(shares.shape[2] if shares is not None else 0):
        rows, columns = np.nonzero(shares[:, :, k])  # type: ignore[index]
        if len(rows):
            _label(axes, k, columns[0], rows[0])


def _label(axes: Axes, k: int, column: float, row: float, right: int = 0, bottom: int = 0) -> None:
    """Write a crop's number at (column, row), to the right of and below that place, or to the left or above."""
    axes.annotate(
        str(k + 1),
        (column, row),
        (-5 if right else 5, 5 if bottom else -5),
        textcoords="offset points",
        ha="right" if right else "left",
        va="bottom" if bottom else "top",
        fontsize=9,
        fontweight="bold",
        color=_contrast(k),
        bbox={"facecolor": _COLORS[k], "edgecolor": "black", "linewidth": 0.6, "pad": 1.6},
    )


def _contrast(k: int) -> str:
    """Return the colour of text on a crop's colour: black on bright ones, white on dark ones."""
    from matplotlib.colors import to_rgb

    return "black" if np.dot(to_rgb(_COLORS[k]), (0.299, 0.587, 0.114)) > 0.5 else "white"


def open_images(path: Path, rows: Sequence[int] | None, count: int) -> list[tuple[int, str, np.ndarray]]:
    """Read the images to plot, with their rows and names.

    Args:
        path: a .beton file, an image, or a folder: the images of a folder of classes have the rows that
            write_dataset.py gives them; if images lie right in the folder, rows are in the order of the paths.
        rows: which; None: `count` of them, evenly spaced.

    Raises:
        DataError: there is no image, or none of that row; or it cannot be read.
    """
    if path.suffix == ".beton":
        return _open_beton(path, rows, count)
    if path.is_dir():
        files = numbered_images(path)
    elif path.is_file():
        files = [path]
    else:
        raise DataError(f"{path}: no such file or directory")
    found = []
    for row in _chosen(path, len(files), rows, count):
        try:
            found.append((row, files[row].name, decode_rgb(files[row].read_bytes())))
        except Exception as error:  # whatever Pillow trips over in the bytes
            raise DataError(f"{files[row]} cannot be read: {error}") from None
    return found


def _chosen(path: Path, available: int, rows: Sequence[int] | None, count: int) -> list[int]:
    if not available:
        raise DataError(f"{path} has no images")
    wrong = next((row for row in rows or () if not 0 <= row < available), None)
    if wrong is not None:
        raise DataError(f"{path} has no row {wrong}: there are {available}, from 0")
    return list(rows) if rows else np.linspace(0, available - 1, min(count, available)).round().astype(int).tolist()


def _open_beton(path: Path, rows: Sequence[int] | None, count: int) -> list[tuple[int, str, np.ndarray]]:
    from .data.check import check_beton
    from .data.stored import stored_samples

    beton = check_beton(path)
    if "image" not in beton.fields:
        raise DataError(f"{path} has no field image")
    samples = stored_samples(beton, "image")
    found = []
    for row in _chosen(path, len(beton.metadata), rows, count):
        name = f"{path.name}, row {row}"
        if beton.sidecar and "label" in beton.fields:
            label = int(beton.column("label")[row])
            name += f", class {beton.sidecar.classes[label]}" if 0 <= label < len(beton.sidecar.classes) else ""
        try:
            data = read(samples[row])
            pixels = data if isinstance(data, np.ndarray) else decode_rgb(data)
        except Exception as error:  # whatever Pillow trips over in the bytes
            raise DataError(f"{name} cannot be read: {error}") from None
        found.append((row, name, pixels))
    return found


def write_figures(figures: Sequence[Figure], path: Path) -> None:
    """Write a figure as PNG, or several of one size as an animated GIF, by the file's suffix; whole, or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvases = [FigureCanvasAgg(figure) for figure in figures]
    for canvas in canvases:
        canvas.draw()
    frames = [Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB") for canvas in canvases]
    several = {"save_all": True, "append_images": frames[1:], "duration": _FRAME_MS, "loop": 0}
    with replacing(path) as (file,):
        if path.suffix.lower() == ".gif":
            frames[0].save(file, "GIF", **several)
        else:
            frames[0].save(file, "PNG", optimize=True)


@dataclass(kw_only=True)
class CropMixOptions:
    """The options of `sample_plan` that the command line has."""

    scale: list[float] = option([0.01], metavar="S")
    """Smallest crop area as a share of the image's, or smallest and largest"""
    number: int = 234
    """Number of crops, 1 to 8; several digits: one of them is sampled for each image"""
    mix_ratio: float = 0.4
    """mixup: the weight is sampled from Beta(mix_ratio / n, mix_ratio / n) for n crops"""
    inter_aug: bool = False
    """Permute the colour channels of one operand of each mix"""
    ratio: tuple[float, float] = option((3 / 4, 4 / 3), metavar=("LOW", "HIGH"))
    """Range of the crops' aspect ratio, width / height"""
    flip_probability: float = 0.0
    """Chance that the output is mirrored"""

    def __post_init__(self) -> None:
        require(len(self.scale) <= 2, "scale", "one number or two", self.scale)

    def arguments(self) -> dict[str, Any]:
        """The arguments of `sample_plan`."""
        return {**asdict(self), "scale": self.scale[0] if len(self.scale) == 1 else tuple(self.scale)}


@dataclass(kw_only=True)
class Options:
    """The command line of `ffcv-cropmix visualize`."""

    source: Path = option(positional=True, metavar="FILE.beton|FOLDER|IMAGE")
    """Where the images come from"""
    output: Path = option(metavar="FIG")
    """The figure, FIG.png; with --animate, FIG.gif"""
    rows: list[int] | None = option(None, metavar="ROW")
    """Rows of the images; default: --images of them, evenly spaced"""
    images: int = 2
    """Number of images"""
    epochs: int = 8
    """Number of epochs of RandomResizedCrop and CropMix"""
    animate: bool = False
    """Write a GIF with one frame per epoch"""
    operation: list[Operation] = option(list(OPERATIONS))
    """How crops are mixed, one row each"""
    cropmix: CropMixOptions = inline()
    """How crops are sampled"""
    interpolation: Interpolation = "bilinear"
    """How crops are resized"""
    size: int = option(224, metavar="PX")
    """Side of the outputs"""
    seed: int = 0
    """Seed of the decoder"""
    epoch: int = 0
    """The first epoch"""

    def __post_init__(self) -> None:
        for name, least in (("images", 1), ("epochs", int(self.animate)), ("size", 1), ("epoch", 0)):
            require(getattr(self, name) >= least, name, f">= {least}", getattr(self, name))
        suffix = ".gif" if self.animate else ".png"
        sound = self.output.suffix.lower() == suffix and self.output.parent.is_dir()
        require(sound, "output", f"a file *{suffix} in a folder that exists", str(self.output))


def plot(options: Options) -> list[Figure]:
    """Plot the figures of the command line: one, or with --animate one for each epoch."""
    size = (options.size, options.size)
    common: dict[str, Any] = {"output_size": size, **options.cropmix.arguments()}
    images = open_images(options.source, options.rows, options.images)
    kinds = [{**common, "operation": operation} for operation in options.operation]

    def sheet(row: int, name: str, image: np.ndarray, epoch: int) -> Sheet:
        shown = [{**common, **_RANDOM_RESIZED_CROP}, *kinds] if options.animate else kinds
        plans = [sample_plan(*image.shape[:2], seed=options.seed, epoch=epoch, index=row, **kind) for kind in shown]
        compared: dict[str, list[MixPlan]] = {}
        epochs = range(epoch, epoch + options.epochs * (not options.animate))
        for kind in kinds if epochs else []:
            several = strips(image, epochs, options=kind, index=row, seed=options.seed)
            compared["RandomResizedCrop"] = several["RandomResizedCrop"]
            compared[f"CropMix, {kind['operation']}"] = several["CropMix"]
        return Sheet(image, plans, compared, name)

    epochs = range(options.epoch, options.epoch + (options.epochs if options.animate else 1))
    frames = {epoch: [sheet(*image, epoch) for image in images] for epoch in epochs}
    room = max(len(plan.crops) for sheets in frames.values() for sheet in sheets for plan in sheet.plans)
    return [
        contact_sheet(sheets, size, options.interpolation, f"epoch {epoch}" * options.animate, room)
        for epoch, sheets in frames.items()
    ]


def main(arguments: Sequence[str] | None = None, prog: str = "python -m ffcv_cropmix.visualize") -> None:
    """Run the command line (default: `sys.argv[1:]`)."""
    options = parse_options(Options, arguments, prog=prog, description=__doc__ or "")
    Image.MAX_IMAGE_PIXELS = None  # large images are welcome
    with wrong_options():
        figures = plot(options)
    write_figures(figures, options.output)
    shown = "a frame for each epoch" if options.animate else "crops, their share of the mix, the mix"
    print(f"{options.output}: {shown}")


if __name__ == "__main__":
    run_program(main)
