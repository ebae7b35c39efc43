"""Compare training runs in one figure and one table.

Plots top-1 accuracy against epochs and against time, and the training loss, and prints a table. A RUN is the folder of
a run, finished or not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..data.replacing import replacing
from ..errors import DataError, run_program, usage_error
from ..options import option, parse_options
from .config import augmentation

_REQUIRED = ("epoch", "train_loss", "images_per_second", "seconds")
_NUMBERS = ("epochs", "best top-1", "last top-1", "top-5", "RMS calibration error", "images/s", "time", "waiting")
# 8 colours (Okabe and Ito's, safe for colour-blind readers), 3 dash patterns and 7 markers give 168 distinct styles;
# neighbouring runs also differ in greyscale.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
_DASHES = ("-", "--", ":")
_MARKERS = "osD^vPX"
_MARKS = 8  # approximate number of markers per line


@dataclass(kw_only=True)
class RunRecord:
    """A run as its folder describes it.

    Example:
        >>> run = RunRecord(name="run", model="resnet18", augmentation="CropMix 234 mixup", epochs=2, records=[
        ...     {"epoch": 0, "train_loss": 2.5, "images_per_second": 900.0, "seconds": 60.0, "top_1": 40.0},
        ...     {"epoch": 1, "train_loss": 2.0, "images_per_second": 950.0, "seconds": 58.0},
        ... ])
        >>> run.column("top_1")
        array([40., nan])
    """

    name: str
    """Name of the folder"""
    model: str
    """Name of the model"""
    augmentation: str
    """Short description of the augmentation"""
    epochs: int
    """Configured number of epochs; fewer may be done so far"""
    records: list[dict[str, float]]
    """Log entries of each epoch so far, at least one; see `logs.RunLog`"""

    def column(self, key: str) -> np.ndarray:
        """Return a log entry of all epochs: float64 (epochs so far,), NaN where it is missing."""
        return np.array([record.get(key, np.nan) for record in self.records], float)


def read_run(folder: str | Path) -> RunRecord:
    """Read `params.json` and `log` from the folder of a run.

    Raises:
        DataError: The folder holds no run, no epoch is finished yet, or a file is broken.
    """
    folder = Path(folder)
    params, log = folder / "params.json", folder / "log"
    if not params.is_file():
        raise DataError(f"{folder} is not a run's folder: it has no params.json")
    try:
        config = json.loads(params.read_bytes())
        lines = log.read_bytes().splitlines() if log.exists() else []
        if "label" in config:
            label = config["label"]
        else:  # a run of 0.1.0
            label = {"model": config["model"]["arch"], "augmentation": augmentation(config)}
        run = RunRecord(
            name=folder.resolve().name,
            model=label["model"],
            augmentation=label["augmentation"],
            epochs=config["training"]["epochs"],
            records=[_record(line) for line in lines],
        )
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from None
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataError(f"{params} was not written by this package: {error!r}") from None
    if not lines:
        raise DataError(f"{folder}: the run has not finished an epoch yet")
    if {} in run.records:
        number = run.records.index({}) + 1
        raise DataError(f"{log}, line {number} was not written by this package: remove it, or leave the run out")
    return run


def _record(line: bytes) -> dict[str, float]:
    """Parse a line of the log; return an empty dictionary if it is broken."""
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    whole = isinstance(record, dict) and all(key in record for key in _REQUIRED)
    return record if whole and all(isinstance(value, int | float) for value in record.values()) else {}


def read_runs(folders: Iterable[str | Path]) -> list[RunRecord]:
    """Read several runs. Runs whose folders have the same name are named by their paths.

    Raises:
        DataError: See `read_run`.
    """
    paths = [Path(folder) for folder in folders]
    runs = [read_run(path) for path in paths]
    names = [run.name for run in runs]
    for run, path in zip(runs, paths):
        if names.count(run.name) > 1:
            run.name = str(path)
    return runs


def plot(runs: Sequence[RunRecord]) -> Figure:
    """Plot top-1 against epochs and against training time, and the training loss against epochs.

    Returns:
        A figure, 8.3 inches wide, with a legend below.
    """
    figure = Figure(figsize=(8.3, 3.0 + 0.2 * len(runs)), dpi=150, layout="constrained")
    by_epoch, by_time, loss = figure.subplots(1, 3)
    longest = max(run.column("seconds").sum() for run in runs)
    unit, seconds = ("hours", 3600) if longest > 3 * 3600 else ("minutes", 60)
    for k, (run, color, dash, marker) in enumerate(zip(runs, cycle(_COLORS), cycle(_DASHES), cycle(_MARKERS))):
        style: dict[str, Any] = {"color": color, "linestyle": dash, "marker": marker, "markersize": 4}
        style["label"] = f"{run.name}: {run.model}, {run.augmentation}"
        epochs, time, top_1 = run.column("epoch") + 1, run.column("seconds").cumsum() / seconds, run.column("top_1")
        evaluated = np.isfinite(top_1)
        for axes, x, y in (
            (by_epoch, epochs[evaluated], top_1[evaluated]),
            (by_time, time[evaluated], top_1[evaluated]),
            (loss, epochs, run.column("train_loss")),
        ):
            between = max(1, len(x) // _MARKS)
            axes.plot(x, y, markevery=(k % between, between), **style)
    for axes, x_label, y_label in (
        (by_epoch, "epochs", "top-1, %"),
        (by_time, f"training time, {unit}", "top-1, %"),
        (loss, "epochs", "training loss, nats"),
    ):
        axes.set_xlabel(x_label)
        axes.set_title(y_label, loc="left", fontsize="medium")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (by_epoch, loss):
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*loss.get_legend_handles_labels(), loc="outside lower left", frameon=False, fontsize="small")
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure in the format of the file's extension, whole or not at all.

    Raises:
        ValueError: Matplotlib does not know the format.
        DataError: The file cannot be written.
    """
    path = Path(path)
    formats = figure.canvas.get_supported_filetypes()
    if path.suffix[1:] not in formats:
        raise ValueError(f"{path} must end in .png or another of {', '.join(sorted(formats))}")
    with replacing(path) as (file,):
        figure.savefig(file, format=path.suffix[1:])


def save_curves(folder: Path) -> None:
    """Plot one run to `curves.png` in its folder."""
    save(plot([read_run(folder)]), folder / "curves.png")


def table(runs: Sequence[RunRecord]) -> str:
    """Format an aligned table with one row per run: accuracy, speed, training time and waiting time.

    Top-5 and the RMS calibration error are those of the last evaluation; speed and waiting are medians over the epochs.

    Example:
        >>> run = RunRecord(name="run", model="resnet18", augmentation="CropMix 234 mixup", epochs=2, records=[
        ...     {"epoch": 0, "train_loss": 2.5, "images_per_second": 900.0, "seconds": 60.0, "top_1": 40.0}
        ... ])
        >>> print(table([run]).splitlines()[1][:61])
        run  resnet18  CropMix 234 mixup  1 of 2     40.00 %     40.0
    """
    rows = [("run", "model", "augmentation", *_NUMBERS)]
    for run in runs:
        done, seconds = len(run.records), round(run.column("seconds").sum())
        numbers = (
            f"{done}" if done == run.epochs else f"{done} of {run.epochs}",
            _percent(run, "top_1", max),
            _percent(run, "top_1"),
            _percent(run, "top_5"),
            _percent(run, "rms_calibration_error"),
            f"{median(run.column('images_per_second')):,.0f}",
            f"{seconds // 60} min {seconds % 60} s",
            _percent(run, "waiting", median),
        )
        rows.append((run.name, run.model, run.augmentation, *numbers))
    widths = [max(map(len, column)) for column in zip(*rows)]
    texts = len(rows[0]) - len(_NUMBERS)
    return "\n".join(
        "  ".join(
            [cell.ljust(width) for cell, width in zip(row[:texts], widths)]
            + [cell.rjust(width) for cell, width in zip(row[texts:], widths[texts:])]
        )
        for row in rows
    )


def _percent(run: RunRecord, key: str, pick: Callable[[list[float]], float] = lambda values: values[-1]) -> str:
    """Format one of the values of a log entry, by default the last; a dash if there is none."""
    values = [record[key] for record in run.records if key in record]
    return f"{pick(values):.2f} %" if values else "-"


@dataclass(kw_only=True)
class Options:
    """The command line of `ffcv-cropmix compare`."""

    runs: list[str] = option(positional=True, metavar="RUN")
    """Folders of runs"""
    output: str = option("compare.png", metavar="FILE")
    """The figure, a file that Matplotlib can write"""


def main(arguments: Sequence[str] | None = None, prog: str = "python -m ffcv_cropmix.training.compare") -> None:
    """Run the command line (default: `sys.argv[1:]`)."""
    options = parse_options(Options, arguments, prog=prog, description=__doc__ or "")
    runs = read_runs(options.runs)
    try:
        save(plot(runs), options.output)
    except ValueError as error:
        usage_error(f"--output {error}")
    print(table(runs))


if __name__ == "__main__":
    run_program(main)
