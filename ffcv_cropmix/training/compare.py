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
# 8 colours (Okabe and Ito's, which the colour-blind tell apart), 3 dashes, 7 markers: 168 runs until a style comes
# again, and neighbours differ in grey too.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
_DASHES = ("-", "--", ":")
_MARKERS = "osD^vPX"
_MARKS = 8  # on a line, about


@dataclass(kw_only=True)
class Run:
    """What a run's folder tells."""

    name: str
    """The folder's"""
    model: str
    augmentation: str
    epochs: int
    """As configured: it may have done fewer so far"""
    records: list[dict[str, float]]
    """Of each epoch so far, at least one: what its line in the log holds, see `logs.RunLog`"""

    def column(self, key: str) -> np.ndarray:
        """(records,) float64: one value an epoch, NaN where it has none."""
        return np.array([record.get(key, np.nan) for record in self.records], float)


def read_run(folder: str | Path) -> Run:
    """Read `params.json` and `log` of a run's folder.

    Raises:
        DataError: there is no run, it has not finished an epoch, or a file is broken.
    """
    folder = Path(folder)
    params, log = folder / "params.json", folder / "log"
    if not params.is_file():
        raise DataError(f"{folder} is not a run's folder: it has no params.json")
    try:
        config = json.loads(params.read_bytes())
        lines = log.read_bytes().splitlines() if log.exists() else []
        run = Run(
            name=folder.resolve().name,
            model=config["model"]["arch"],
            augmentation=augmentation(config),
            epochs=config["training"]["epochs"],
            records=[_record(line) for line in lines],
        )
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from None
    except (LookupError, TypeError, ValueError) as error:
        raise DataError(f"{params} is not what the trainer writes: {error!r}") from None
    if not lines:
        raise DataError(f"{folder}: the run has not finished an epoch yet")
    if {} in run.records:
        number = run.records.index({}) + 1
        raise DataError(f"{log}, line {number} is not what the trainer writes: remove it, or leave the run out")
    return run


def _record(line: bytes) -> dict[str, float]:
    """A line of the log; empty if it is none."""
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    whole = isinstance(record, dict) and all(key in record for key in _REQUIRED)
    return record if whole and all(isinstance(value, int | float) for value in record.values()) else {}


def read_runs(folders: Iterable[str | Path]) -> list[Run]:
    """Read several runs; those whose folders are called the same go by their paths.

    Raises:
        DataError: see `read_run`.
    """
    paths = [Path(folder) for folder in folders]
    runs = [read_run(path) for path in paths]
    names = [run.name for run in runs]
    for run, path in zip(runs, paths):
        if names.count(run.name) > 1:
            run.name = str(path)
    return runs


def draw(runs: Sequence[Run]) -> Figure:
    """Top-1 against epochs, top-1 against training time, and the training loss against epochs, 8.3 inches wide."""
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
    """Write a figure, in the format that the name ends in; the file is there whole or not at all.

    Raises:
        ValueError: there is no such format.
        DataError: it cannot be written.
    """
    path = Path(path)
    formats = figure.canvas.get_supported_filetypes()
    if path.suffix[1:] not in formats:
        raise ValueError(f"{path} has to end in .png, or another of {', '.join(sorted(formats))}")
    with replacing(path) as (file,):
        figure.savefig(file, format=path.suffix[1:])


def save_curves(folder: Path) -> None:
    """Draw one run as `curves.png` in its folder."""
    save(draw([read_run(folder)]), folder / "curves.png")


def table(runs: Sequence[Run]) -> str:
    """A line for each run, aligned: accuracy, speed, training time, and the share of it that the loop waited.

    Top-5 and the RMS calibration error are the last evaluation's; speed and waiting are medians over the epochs.
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


def _percent(run: Run, key: str, pick: Callable[[list[float]], float] = lambda values: values[-1]) -> str:
    """One of the values that there are, by default the last."""
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
    """Run the command line (default: that of the process)."""
    options = parse_options(Options, arguments, prog=prog, description=__doc__ or "")
    runs = read_runs(options.runs)
    try:
        save(draw(runs), options.output)
    except ValueError as error:
        usage_error(f"--output {error}")
    print(table(runs))


if __name__ == "__main__":
    run_program(main)
