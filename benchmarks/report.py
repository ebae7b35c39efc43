"""Write the tables of README.md and benchmarks/README.md, and their plots in docs/, from what throughput.py measured.

    python benchmarks/report.py benchmarks/results/throughput.json

Two more files in the same folder are optional: files.json, from `throughput.py --data_dir PHOTOS`, compares ways to
write a file where throughput.json has only two; start.json is from `start.py`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ffcv_cropmix.errors import DataError, run_program, usage_error
from peers import AUTHORS, CROPMIX, CUTMIX, PEERS, STOCK

REPOSITORY = Path(__file__).parents[1]
BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"
OPTIONAL = ("files.json", "start.json")
IMAGENET = 1_281_167  # images of its training set


def name_of(mode: str) -> str:
    """Describe a kind of file (`throughput.kind_of`) in words."""
    kind, *rest = mode.split()
    level = f", level {rest.pop(0)}" if kind == "dct" else ""
    return f"{'JPEG' if kind == 'jpg' else kind}{level}{', re-encoded' if rest else ''}"


def replaced(text: str, content: str, name: str) -> str:
    """Return the text with `content` between its two markers.

    Raises:
        DataError: the text does not have each marker once, in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise DataError(f"{name}: has to have the lines {BEGIN} and {END} once each, in this order")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{content.strip()}\n{END}{rest.partition(END)[2]}"


class Results:
    """The results of one size and number of workers.

    Args:
        report: the JSON.
        output_size: px; num_workers: by default what the README's table shows, the largest and the fewest.
    """

    def __init__(self, report: dict[str, Any], output_size: int | None = None, num_workers: int | None = None) -> None:
        self.report = report
        self.output_size = output_size or max(result["output_size"] for result in report["results"])
        self.num_workers = num_workers or min(result["num_workers"] for result in report["results"])
        self.kinds = list(report["data"])
        firsts = (next((mode for mode in self.kinds if mode.startswith(kind)), None) for kind in ("jpg", "raw"))
        self.modes = [mode for mode in firsts if mode] or self.kinds[:1]
        chosen = (self.output_size, self.num_workers)
        self.results = [r for r in report["results"] if (r["output_size"], r["num_workers"]) == chosen]

    @property
    def setting(self) -> str:
        """The size and the number of workers, for the head of a table."""
        return f"{self.output_size} px, {self.num_workers} worker{'s'[: self.num_workers > 1]}"

    def find(self, mode: str, **options: Any) -> list[dict[str, Any]]:
        """Return this package's results with these options of the decoder."""
        return [
            result
            for result in self.results
            if result["mode"] == mode
            and result["options"]
            and all(result["options"].get(name, "rgb") == value for name, value in options.items())
        ]

    def of_peer(self, peer: str, mode: str) -> dict[str, Any] | None:
        found = [result for result in self.results if (result["peer"], result["mode"]) == (peer, mode)]
        return found[0] if found else None


def _table(head: list[str], rows: list[list[str]], labels: tuple[str, ...] = ("---",)) -> str:
    """Return a table. `labels` aligns the first columns; the others are numbers."""
    align = [*labels, *["---:"] * (len(head) - len(labels))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, align, *rows))


def _ratio(result: dict[str, Any]) -> str:
    ratio = result["ratio"]
    digits = 0 if ratio["median"] >= 10 else 2
    low, high = (f"{quartile:.{digits}f}" for quartile in ratio["quartiles"])
    return f"{ratio['median']:.{digits}f} ({low} to {high})"


def conditions(results: Results) -> str:
    """Describe the images, the machine, the versions and the measurement."""
    report = results.report
    data, machine, versions = report["data"][results.modes[0]], report["machine"], report["versions"]
    taken = [sum(time is not None for time in result["seconds"]) for result in results.results]
    rounds = f"{max(taken)} rounds" + f" ({min(taken)} of slow peers)" * (min(taken) < max(taken))
    simd = ", ".join(machine["simd"])
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    size = f"{data['mean_width']:.0f} x {data['mean_height']:.0f} px on average"
    hardware = f"{machine['cpu']}, {machine['cores']} cores ({simd}), {machine['memory_gib']:.0f} GiB"
    return (
        f"{data['images']} {data['description'] or 'photos'} ({size}); {report['date']}, {hardware}; "
        f"medians of {rounds}. {packages}."
    )


def main_table(results: Results, peers: Iterable[str] = tuple(PEERS)) -> str:
    """Return a row for each peer: images per second, ratio and memory."""
    modes = results.modes
    head = [results.setting]
    for mode in modes:
        head += [f"{name_of(mode)}: images/s", "ratio (quartiles)", "memory"]
    rows = []
    memory = {(entry["peer"], entry["mode"]): entry for entry in results.report["memory"]}
    for name in peers:
        peer, found = PEERS[name], {mode: results.of_peer(name, mode) for mode in modes}
        if not any(found.values()):
            continue
        cells = [f"**{peer.label}**" if name == CROPMIX else peer.label]
        for mode, result in found.items():
            entry = memory.get((name, mode))
            cells += [f"{result['images_per_second']:,.0f}", _ratio(result)] if result else ["", ""]
            cells.append(f"{entry['mib']:,.0f} MiB" if entry else "")
        rows.append(cells)
    return _table(head, rows)


def files_table(results: Results) -> str:
    """Return a row for each kind of file: its size, and the speed with which it is read."""
    head = ["how the file was written", "bytes an image", "ImageNet", "FFCV, one crop: images/s", "CropMix: images/s"]
    head += ["ratio", 'CropMix, "ycbcr": images/s', "ratio"]
    rows = []
    for mode in results.kinds:
        data = results.report["data"][mode]
        size = data["bytes"] / data["images"]
        cells = [name_of(mode), f"{size:,.0f}", f"{size * IMAGENET / 1e9:,.0f} GB"]
        stock = results.of_peer(STOCK, mode)
        cells.append(f"{stock['images_per_second']:,.0f}" if stock else "")
        for peer in (CROPMIX, "cropmix-ycbcr"):
            found = results.of_peer(peer, mode)
            cells += [f"{found['images_per_second']:,.0f}", f"{found['ratio']['median']:.2f}"] if found else ["", ""]
        rows.append(cells)
    return _table(head, rows)


def settings(report: dict[str, Any]) -> Iterator[Results]:
    """Yield the results of each size and number of workers, the largest size and the fewest workers first."""
    sizes, workers = ({result[key] for result in report["results"]} for key in ("output_size", "num_workers"))
    for size, number in product(sorted(sizes, reverse=True), sorted(workers)):
        yield Results(report, size, number)


def files_section(files: dict[str, Any]) -> str:
    """Return tables of the ratios of each kind of file."""
    head = ["mixup", 'mixup, "ycbcr"', "cutmix", 'cutmix, "ycbcr"', "one crop"]
    peers = [CROPMIX, "cropmix-ycbcr", *CUTMIX, "cropmix-one"]
    parts = [
        "For each way to write a file, speed relative to FFCV's one crop from JPEG or raw images written in the same "
        f"way: CropMix with a sampled number of crops, and this package's one crop. {conditions(Results(files))}"
    ]
    for results in settings(files):
        rows = []
        for mode in results.kinds:
            found = [results.of_peer(peer, mode) for peer in peers]
            rows.append([name_of(mode), *(f"{each['ratio']['median']:.2f}" if each else "" for each in found)])
        parts.append(_table([results.setting, *head], rows))
    return "\n\n".join(parts)


def notes(results: Results) -> list[str]:
    """Return the lines below the main table: other measurements, and what was not measured."""
    report, lines = results.report, []
    for mode in results.modes:
        ours = results.of_peer(CROPMIX, mode)
        if ours and ours["times_authors"]:
            lines.append(
                f"{name_of(mode)}: {ours['times_authors']:.1f} times the authors' algorithm on the JPEG files."
            )
    first = {(entry["peer"], entry["mode"]): entry["seconds"] for entry in report["first_batch"]}
    if first:
        times = [
            f"{name_of(mode)} {seconds:.1f} s"
            + (f" (FFCV {first[STOCK, mode]:.1f} s)" if (STOCK, mode) in first else "")
            for (peer, mode), seconds in first.items()
            if peer == CROPMIX
        ]
        lines.append(f"First batch in a fresh process, compilation included: {', '.join(times)}.")
    for entry in report["memory"]:
        if entry["peer"] == CROPMIX and entry["mode"] in results.modes and entry["decode_buffers_mib"]:
            stock = next(e for e in report["memory"] if (e["peer"], e["mode"]) == (STOCK, entry["mode"]))
            lines.append(
                f"Memory: peak resident, batches of {entry['batch_size']}. Of it, buffers of decoded JPEGs: "
                f"{entry['decode_buffers_mib']:.1f} MiB, FFCV's {stock['decode_buffers_mib']:,.0f} MiB at most."
            )
    lines += [
        f"Not measured: {PEERS[name].label}: {why}." for name, why in report["unavailable"].items() if name in PEERS
    ]
    return lines


def start_table(start: dict[str, Any]) -> str:
    """Return the table of the results of start.py: a loader's start time and memory by the number of samples."""
    head = ["samples", "loader", "import", "construction", "first batch, first process", "second"]
    head += ["memory after import", "added by a loader", "added by two"]
    rows = []
    labels = {"ffcv_cropmix": "**this package**", "ffcv": "FFCV"}
    for result in start["results"]:
        times = [result["import_seconds"], result["construction_seconds"], *result["first_batch_seconds"].values()]
        sizes = [result["import_megabytes"], result["megabytes"], result["megabytes_of_two"]]
        cells = [f"{result['rows']:,}", labels[result["package"]], *(f"{seconds:.2f} s" for seconds in times)]
        rows.append([*cells, *(f"{size:,.0f} MB" for size in sizes)])
    return _table(head, rows, labels=("---:", "---"))


SHORT = (CROPMIX, "cropmix-one", STOCK, AUTHORS, "torchvision", "dali")
"""Peers on the front page if only two files were measured"""


def readme_section(report: dict[str, Any]) -> str:
    """Return the table on the front page: kinds of files if there are more than two, else some peers."""
    results = Results(report)
    table = files_table(results) if len(results.kinds) > 2 else main_table(results, SHORT)
    return f"{table}\n\n{conditions(results)}"


def start_section(start: dict[str, Any]) -> str:
    """Return the table of start.py, and what its columns mean."""
    return (
        "To start, one worker, files of raw images of 8 x 8 px. All but the first process find compiled code on disk; "
        "import and construction are theirs. Memory is a process's share (PSS): after the import, what making a loader "
        f"adds, and what making one in each of two processes adds; {start['date']}, `{start['command']}`:\n\n"
        f"{start_table(start)}"
    )


def benchmarks_section(
    report: dict[str, Any], files: dict[str, Any] | None = None, start: dict[str, Any] | None = None
) -> str:
    """Return the generated part of benchmarks/README.md: peers, start, kinds of files, and CropMix in its settings."""
    results = Results(report)
    parts = [conditions(results), main_table(results), *notes(results)]
    if start:
        parts.append(start_section(start))
    if files:
        parts.append(files_section(files))
    parts.append(
        "Ratios of CropMix, by number of crops; the lower of with and without `inter_aug`, where both were measured:"
    )
    mixes: list[tuple[str, dict[str, Any]]] = [
        (f"{operation}, {number[0] if len(number) == 1 else 'sampled'}", {"operation": operation, "number": number})
        for operation, number in product(("mixup", "cutmix"), ([2], [3], [4], [2, 3, 4]))
    ]
    mixes.append(("one crop", {"number": 1}))
    for results in settings(report):
        ways = {"raw": ("rgb",), "jpg": ("rgb", "rows", "ycbcr"), "dct": ("rgb", "ycbcr")}
        columns = [(mode, decode) for mode in results.kinds for decode in ways[mode.split()[0]]]
        head = [results.setting]
        head += [name_of(mode) + (f', decode="{decode}"' if mode != "raw" else "") for mode, decode in columns]
        rows = []
        for label, options in mixes:
            cells = [label]
            for mode, decode in columns:
                found = results.find(mode, decode=decode, **options)
                cells.append(f"{min(result['ratio']['median'] for result in found):.2f}" if found else "")
            rows.append(cells)
        parts.append(_table(head, rows))
    return "\n\n".join(parts)


def plot_files(results: Results) -> Figure:
    """Plot speed against size: a point for each kind of file, of CropMix and of FFCV's one crop."""
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    points = {CROPMIX: ("CropMix", "o", "#1f4e79"), "cropmix-ycbcr": ('CropMix, decode="ycbcr"', "^", "#2e9e6b")}
    points[STOCK] = ("FFCV, one crop", "s", "#7f7f7f")
    for peer, (label, marker, color) in points.items():
        found = [(mode, result) for mode in results.kinds if (result := results.of_peer(peer, mode))]
        sizes = [results.report["data"][mode]["bytes"] / results.report["data"][mode]["images"] for mode, _ in found]
        speeds = [result["images_per_second"] for _, result in found]
        axes.scatter([size / 1e3 for size in sizes], speeds, label=label, marker=marker, color=color)
        for (mode, _), size, speed in zip(found, sizes, speeds):
            if peer == CROPMIX:
                axes.annotate(name_of(mode), (size / 1e3, speed), (6, -3), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:,.0f}")
    axes.minorticks_off()
    axes.set_xlabel("KB an image")
    axes.set_ylabel(f"images/s ({results.output_size} px, {results.num_workers} worker)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def plot_peers(results: Results) -> Figure:
    """Plot each peer's ratio to FFCV's one crop, on JPEG and on raw images."""
    modes = results.modes
    names = [name for name in PEERS if name != "copy" and any(results.of_peer(name, mode) for mode in modes)]
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(names) + 1.1), layout="constrained")
    dark, light = {"color": "#1f4e79"}, {"color": "#f4b183", "hatch": "///", "edgecolor": "#7f4f24"}
    styles = {mode: light if mode == "raw" else dark for mode in modes}
    places, ticks, labels, used = 0.0, [], [], set()
    for name in names:
        found = [(mode, result) for mode in modes if (result := results.of_peer(name, mode))]
        for k, (mode, result) in enumerate(found):
            ratio = result["ratio"]["median"]
            style: dict[str, Any] = styles[mode]
            label = None if mode in used else f"{name_of(mode)} .beton"
            axes.barh(places + k, ratio, height=0.92, label=label, **style)
            axes.text(ratio, places + k, f" {ratio:.2f}", va="center", fontsize=9)
            used.add(mode)
        ticks.append(places + (len(found) - 1) / 2)
        labels.append(PEERS[name].label)
        places += len(found) + 0.6
    axes.axvline(1, color="black", linewidth=1, linestyle="--")
    axes.set_yticks(ticks, labels, fontsize=9)
    axes.get_yticklabels()[0].set_fontweight("bold")
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.set_xlabel(f"speed, FFCV's one crop = 1 ({results.output_size} px, {results.num_workers} worker)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    return figure


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a file of results: {error}") from None


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        usage_error("give one file: python benchmarks/report.py benchmarks/results/throughput.json")
    path = Path(sys.argv[1])
    report = _read(path)
    files, start = (_read(other) if (other := path.with_name(name)).exists() else None for name in OPTIONAL)
    if len(report["data"]) > 2:
        files = report
    matplotlib.use("Agg")
    sections = {
        "README.md": readme_section(files or report),
        "benchmarks/README.md": benchmarks_section(report, files, start),
    }
    for readme, section in sections.items():
        target = REPOSITORY / readme
        target.write_text(replaced(target.read_text(), section, readme))
        print(target.relative_to(REPOSITORY))
    figures = {"throughput": plot_peers(Results(report))}
    if files:
        figures["sizes"] = plot_files(Results(files))
    for name, figure in figures.items():
        figure.savefig(REPOSITORY / f"docs/{name}.png", dpi=110)
        print(f"docs/{name}.png")


if __name__ == "__main__":
    run_program(main)
