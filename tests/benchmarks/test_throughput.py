"""Peers do the job, times are taken as the benchmark says, and tables come from its JSON."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from ffcv.transforms import ToTensor
from numba import config
from PIL import Image

import file_peers
import peers
import report
import stages
import throughput
from ffcv_cropmix import Loader, MixPlan, cropmix
from ffcv_cropmix.data.sidecar import read_sidecar, sidecar_path, write_sidecar
from ffcv_cropmix.errors import DataError
from file_peers import ArrayMixup, PillowMixup, TensorMixup
from peers import ALL, AUTHORS, CROPMIX, PEERS, STOCK, Job
from tests.betons import COUNT, payload, stored_image
from throughput import Case

ROOT = Path(__file__).parents[2]
SIDE = 32
FILES_FIRST = sorted(PEERS, key=lambda name: PEERS[name].reads != ("files",))  # these fork


@pytest.fixture(scope="module")
def job(betons: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Job:
    files = throughput.extract_jpegs(betons["jpg"], tmp_path_factory.mktemp("files") / "jpeg")
    return Job(betons["jpg"], range(COUNT), files, SIDE, 1, 8)


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    """One of its own, without threads, from which peers may fork."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield pool


def _two_passes(name: str, job: Job) -> list[list[np.ndarray]]:
    passes = ALL[name].make(job)
    return [[np.array(batch) for batch in passes] for _ in range(2)]


def test_files_hold_the_stored_jpegs(job: Job) -> None:
    assert len(job.files) == COUNT
    for index in (0, 5, COUNT - 1):
        address, size = payload(job.beton, index)
        assert job.files[index].read_bytes() == job.beton.read_bytes()[address : address + size]


@pytest.mark.parametrize("name", FILES_FIRST)
def test_peers_deliver_all_images(name: str, job: Job, betons: dict[str, Path], process: ProcessPoolExecutor) -> None:
    if reason := PEERS[name].unavailable():
        pytest.skip(reason)
    for mode in PEERS[name].reads:
        own_job = replace(job, beton=betons.get(mode, job.beton))
        first, second = process.submit(_two_passes, name, own_job).result()
        for batches in (first, second):
            assert [len(batch) for batch in batches] == [8, 8, 8, 8, 5]
        images, again = np.concatenate(first), np.concatenate(second)
        if images.ndim == 5:  # views
            assert (images[:, 0] != images[:, 1]).any(axis=(1, 2, 3)).mean() > 0.9
            images, again = images[:, 0], again[:, 0]
        floats = name in (AUTHORS, "transform")
        assert images.dtype == (np.float32 if floats else np.uint8)
        planes_first = floats or name == "torchvision"
        assert images.shape == (COUNT, *((3, SIDE, SIDE) if planes_first else (SIDE, SIDE, 3)))
        if PEERS[name].label.startswith("limit"):
            continue
        levels = (images.transpose(0, 2, 3, 1) if planes_first else images) * (255.0 if floats else 1)
        assert 0 <= levels.min() < 40 and 215 < levels.max() <= 255
        means = [stored_image(betons["jpg"], index).mean() for index in range(COUNT)]
        assert np.corrcoef(means, levels.mean(axis=(1, 2, 3)))[0, 1] > 0.5  # the images, in their order
        sampled_again = (images != again)[1:].any(axis=(1, 2, 3))
        assert sampled_again.mean() > 0.9  # of a long image the crop may be the central one, twice


def _levels(mixup: file_peers.Mixup, image: np.ndarray) -> np.ndarray:
    """What a peer makes of an image, as float levels (side, side, 3)."""
    if isinstance(mixup, ArrayMixup):
        return mixup(image).astype(float)
    if isinstance(mixup, TensorMixup):
        return mixup(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy().astype(float)
    return mixup(Image.fromarray(image)).permute(1, 2, 0).numpy() * 255.0


@pytest.mark.parametrize("kind", [PillowMixup, TensorMixup, ArrayMixup])
def test_python_peers_resize_and_mix(kind: type[file_peers.Mixup]) -> None:
    row, column = np.mgrid[:96, :96]
    gradient = np.stack([2 * row, 2 * column, 190 - row - column + 40], axis=2).astype(np.uint8)
    expected = cv2.resize(gradient, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(float)
    mirrored = 0
    for _ in range(20):  # one crop of the whole image
        got = _levels(kind(SIDE, scale=1.0, numbers=(1,)), gradient)
        straight, flipped = (np.abs(got - image).max() for image in (expected, expected[:, ::-1]))
        assert min(straight, flipped) <= 2
        mirrored += flipped < straight
    assert 0 < mirrored < 20
    # Of one colour: mixes of its permutations, so that the channels add up to the same.
    random.seed(0)
    mixes = np.array([_levels(kind(SIDE), np.full((50, 60, 3), (10, 90, 230), np.uint8))[0, 0] for _ in range(60)])
    assert np.abs(mixes.sum(axis=1) - 330).max() <= 4
    assert mixes.min() >= 9 and mixes.max() <= 231
    assert (np.abs(mixes - (10, 90, 230)).max(axis=1) > 20).sum() > 10
    assert len(np.unique(mixes.round(), axis=0)) > 6  # more than permutations


def test_naive_mixes_in_place() -> None:
    random = np.random.default_rng(0)
    first, second = random.integers(0, 256, (2, 4, 5, 3)).astype(np.uint8)
    for lam, a, b in ((0.75, first, second[:, :, [2, 0, 1]]), (0.25, first[:, :, [2, 0, 1]], second)):
        mixed = first.copy()
        peers._mix(mixed, second, lam, 2, 0, 1)
        assert np.array_equal(mixed, (lam * a + (1 - lam) * b).astype(np.uint8))


@pytest.mark.skipif(config.DISABLE_JIT, reason="FFCV needs compilation")
def test_naive_with_one_whole_crop_is_a_resize(betons: dict[str, Path]) -> None:
    decoder = peers.NaiveCropMix((SIDE, SIDE), 1.0, (1,))
    loader = Loader(betons["jpg"], 8, 1, pipelines={"image": [decoder, ToTensor()], "label": None}, drop_last=False)
    images = np.concatenate([batch.numpy().copy() for (batch,) in loader])
    compared = 0
    for index, image in enumerate(images):
        stored = stored_image(betons["jpg"], index)
        height, width = stored.shape[:2]
        if min(height, width) > SIDE and 3 / 4 < width / height < 4 / 3:
            plan = MixPlan(crops=[(0, 0, height, width)])
            expected = cropmix(stored, plan, (SIDE, SIDE), "area")
            difference = np.abs(image.astype(int) - expected)
            compared += difference.max() <= 2
    assert compared >= 3


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class _Passes:
    """Batches of two images; each takes a time on the clock, the first ones a longer one."""

    def __init__(self, clock: _Clock, seconds: float) -> None:
        self.clock, self.seconds = clock, seconds

    def __iter__(self) -> Iterator[list[int]]:
        for number in range(throughput.WARM_BATCHES + throughput.TIMED_BATCHES):
            self.clock.now += 100 if number < throughput.WARM_BATCHES else 2 * self.seconds
            yield [0, 0]


def test_times_are_of_warm_batches_and_slow_peers_skip_rounds(monkeypatch: pytest.MonkeyPatch, job: Job) -> None:
    clock = _Clock()
    monkeypatch.setattr(throughput.time, "perf_counter", clock)
    made: dict[str, Callable[[Job], Any]] = {
        name: (lambda job, seconds=seconds: _Passes(clock, seconds))
        for name, seconds in ((STOCK, 1.0), (CROPMIX, 0.5), (AUTHORS, 5.0))
    }
    monkeypatch.setattr(throughput, "ALL", {name: replace(PEERS[name], make=make) for name, make in made.items()})
    seconds = throughput.measure({Case(name, "jpg"): job for name in made}, 5, "test")
    assert seconds[Case(STOCK, "jpg")] == pytest.approx([1.0] * 5)
    assert [time is None for time in seconds[Case(AUTHORS, "jpg")]] == [False, True, True, False, True]
    entry = {entry["peer"]: entry for entry in throughput.results(seconds, 224, 1)}
    assert entry[CROPMIX]["images_per_second"] == pytest.approx(2)
    ratio = entry[CROPMIX]["ratio"]
    assert [ratio["median"], *ratio["quartiles"]] == pytest.approx([2, 2, 2])
    assert entry[CROPMIX]["times_authors"] == pytest.approx(10)
    assert entry[AUTHORS]["ratio"]["median"] == pytest.approx(0.2)


def _benchmark(*options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "benchmarks/throughput.py", *options]
    environment = {**throughput.os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def measured(betons: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The JSON of a small run."""
    path = tmp_path_factory.mktemp("run") / "out.json"
    sizes = ["--output_size", str(SIDE), "--num_workers", "1", "--batch_size", "4", "--rounds", "2"]
    run = _benchmark("--beton", betons["jpg"], "--peers", CROPMIX, AUTHORS, *sizes, "--json", path)
    assert run.returncode == 0, run.stderr
    return json.loads(path.read_text())


@pytest.mark.timeout(900)  # five processes, each of which compiles
def test_the_json_has_what_it_says(measured: dict[str, Any], betons: dict[str, Path]) -> None:
    assert measured["data"]["jpg"]["images"] == COUNT
    assert str(betons["jpg"].parent) not in json.dumps(measured)
    assert measured["machine"]["cores"] >= 1 and measured["versions"]["ffcv"] == "1.0.2"
    assert [result["peer"] for result in measured["results"]] == [CROPMIX, STOCK, AUTHORS]
    for result in measured["results"]:
        assert len(result["seconds"]) == 2 and result["images_per_second"] > 0
    stock, authors = measured["results"][1], measured["results"][2]
    assert stock["ratio"] == {"median": 1, "quartiles": [1, 1]} and authors["times_authors"] == 1
    assert [entry["peer"] for entry in measured["first_batch"]] == [CROPMIX, STOCK]
    ours, ffcv = measured["memory"]
    assert 0 < ours["decode_buffers_mib"] < ffcv["decode_buffers_mib"] / 10
    assert 0 < ours["mib"] < ffcv["mib"]


@pytest.mark.timeout(900)  # five processes, each of which compiles
def test_tables_and_plot_come_from_the_json(
    measured: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured["results"][0] |= {"images_per_second": 12345.6, "ratio": {"median": 1.2345, "quartiles": [1.1, 1.3]}}
    measured["unavailable"] = {"dali": "nvidia.dali is not installed"}
    for folder in ("docs", "benchmarks"):
        (tmp_path / folder).mkdir()
    for readme in ("README.md", "benchmarks/README.md"):
        (tmp_path / readme).write_text(f"before\n\n{report.BEGIN}\nold\n{report.END}\n\nafter\n")
    (tmp_path / "results.json").write_text(json.dumps(measured))
    monkeypatch.setattr(report, "REPOSITORY", tmp_path)
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path / "results.json")])
    report.main()
    text = (tmp_path / "README.md").read_text()
    assert text.startswith(f"before\n\n{report.BEGIN}\n| {SIDE} px, 1 worker |")
    assert text.endswith(f"\n{report.END}\n\nafter\n") and "old" not in text
    assert "| **CropMix, this package** | 12,346 | 1.23 (1.10 to 1.30) |" in text
    variants = (tmp_path / "benchmarks/README.md").read_text()
    assert f"{PEERS['dali'].label}: nvidia.dali is not installed." in variants
    assert "| mixup, sampled | 1.23 |" in variants and "| mixup, 2 |  |" in variants
    assert (tmp_path / "docs/throughput.png").read_bytes().startswith(b"\x89PNG")
    report.main()
    assert (tmp_path / "README.md").read_text() == text
    assert (tmp_path / "benchmarks/README.md").read_text() == variants
    started = {"package": "ffcv", "rows": 1000, "import_seconds": 1.24, "construction_seconds": 2}
    started |= {"first_batch_seconds": {"first": 3, "second": 4}}
    started |= {"import_megabytes": 300, "megabytes": 5.4, "megabytes_of_two": 10.6}
    start = {"date": "2026-01-02", "command": "start.py", "results": [started]}
    (tmp_path / "start.json").write_text(json.dumps(start))
    report.main()
    row = "| 1,000 | FFCV | 1.24 s | 2.00 s | 3.00 s | 4.00 s | 300 MB | 5 MB | 11 MB |"
    assert row in (tmp_path / "benchmarks/README.md").read_text()
    kinds = {"jpg": {"bytes": 1_000, "images": 10}, "dct 1": {"bytes": 980, "images": 10}}
    files = {**measured, "data": {mode: measured["data"]["jpg"] | sizes for mode, sizes in kinds.items()}}
    files["data"]["raw"] = files["data"]["jpg"] | {"bytes": 5_000}
    (tmp_path / "files.json").write_text(json.dumps(files))
    report.main()
    assert "| dct, level 1 | 98 |" in (tmp_path / "README.md").read_text()
    assert f"| {SIDE} px, 1 worker | mixup |" in (tmp_path / "benchmarks/README.md").read_text()
    assert "| JPEG | 1.23 |" in (tmp_path / "benchmarks/README.md").read_text()
    assert (tmp_path / "docs/sizes.png").read_bytes().startswith(b"\x89PNG")


def test_coefficients_are_compared_with_their_jpegs(sealed: dict[str, Path], sealed_dct: Path, tmp_path: Path) -> None:
    assert [throughput.kind_of(path) for path in (*sealed.values(), sealed_dct)] == ["raw", "jpg", "dct 1"]
    copy = Path(shutil.copy(sealed_dct, tmp_path))
    sidecar = read_sidecar(sealed_dct)
    assert sidecar
    sidecar.options.update(write_mode="dct", dct_level=-2, reencode=True)
    with sidecar_path(copy).open("wb") as file:
        write_sidecar(file, sidecar)
    assert throughput.kind_of(copy) == "dct -2 reencoded"
    kinds = ("dct -2 reencoded", "dct 1", "jpg", "raw")
    assert [throughput.stock_mode(kind) for kind in kinds] == ["jpg reencoded", "jpg", "jpg", "raw"]
    seconds = {Case(STOCK, "jpg"): [2.0], Case(CROPMIX, "dct 1"): [0.5]}
    entry = throughput.results(seconds, 224, 1)[1]
    assert (entry["mode"], entry["ratio"]["median"]) == ("dct 1", 4)


def test_each_kind_of_file_has_a_row_and_a_point() -> None:
    kinds = {"jpg": 100_000, "dct 1": 98_000, "dct -1": 140_000, "jpg reencoded": 50_000, "raw": 500_000}
    data = {kind: {"bytes": 10 * size, "images": 10} for kind, size in kinds.items()}
    seconds = {Case(CROPMIX, kind): [0.001] for kind in kinds}
    seconds |= {Case(STOCK, kind): [0.0025] for kind in ("jpg", "jpg reencoded", "raw")}
    seconds |= {Case("cropmix-ycbcr", "dct 1"): [0.0005]}
    made = {"data": data, "results": throughput.results(seconds, 224, 1)}
    rows = report.files_table(report.Results(made)).splitlines()[2:]
    assert len(rows) == len(kinds)
    assert rows[0] == "| JPEG | 100,000 | 128 GB | 400 | 1,000 | 2.50 |  |  |"
    assert rows[1] == "| dct, level 1 | 98,000 | 126 GB |  | 1,000 | 2.50 | 2,000 | 5.00 |"
    assert rows[3].startswith("| JPEG, re-encoded | 50,000 | 64 GB |")
    [axes] = report.plot_files(report.Results(made)).axes
    assert {text.get_text() for text in axes.texts} == {report.name_of(kind) for kind in kinds}
    assert [len(points.get_offsets()) for points in axes.collections] == [5, 1, 3]


@pytest.mark.parametrize("markers", ["", "E", "B", "EB", "BBE", "BEE"])
def test_markers_have_to_be_there_once(markers: str) -> None:
    text = "\n".join({"B": report.BEGIN, "E": report.END}[marker] for marker in markers)
    with pytest.raises(DataError, match=r"README\.md: has to have the lines"):
        report.replaced(text, "content", "README.md")


def test_files_and_options_that_do_not_fit(
    betons: dict[str, Path], sealed_dct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    other = tmp_path / "other.beton"
    other.write_bytes(betons["raw"].read_bytes())
    for options, status, message in (
        (["--beton", betons["raw"], other], 1, "other.beton: a second file of raw images"),
        (["--beton", sealed_dct], 1, "dct.beton: is compared with a file of jpg images"),
        (["--data_dir", tmp_path, "--beton", other], 2, "data_dir must be given without beton"),
        (["--beton", tmp_path / "none.beton"], 2, "beton must be a file, got "),
        (["--num_workers", "1000"], 2, "num_workers must be "),
    ):
        monkeypatch.setattr(sys, "argv", ["throughput.py", *map(str, options)])
        with pytest.raises(SystemExit) as ended:
            throughput.run_program(throughput.main)
        code = ended.value.code
        error = code if isinstance(code, str) else capsys.readouterr().err.rstrip("\n")
        assert (1 if isinstance(code, str) else code) == status
        assert error.startswith("error: ") and message in error and "\n" not in error


def test_peers_that_do_not_load_say_so() -> None:
    assert replace(PEERS["spdl"], needs="no_such_module").unavailable() == "no_such_module is not installed"
    assert PEERS[STOCK].unavailable() is None


def test_photos_of_scikit_learn_make_both_files(tmp_path: Path) -> None:
    files = throughput.build_betons(tmp_path, count=6)
    assert [throughput.mode_of(path) for path in files] == ["jpg", "raw"]
    for path in files:
        images = [stored_image(path, index) for index in range(6)]
        assert {image.shape for image in images} == {(375, 500, 3), (500, 375, 3)}
        assert len({image.tobytes() for image in images}) == 6


def test_a_stage_left_out_is_not_done() -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (40, 50, 3)).astype(np.uint8)
    plan = MixPlan(crops=[(3, 4, 30, 40)])

    def rendered(loops: tuple[str, ...]) -> np.ndarray:
        layers = stages.new_layers()
        count = stages.collapse(plan.pack((SIDE, SIDE)), 1, stages.MIXUP, SIDE, SIDE, layers)
        assert stages.BILINEAR == 0
        scratch = stages.rendering.new_scratch(stages.BILINEAR, 40, 50, SIDE, SIDE)
        out = np.zeros((SIDE, SIDE, 3), np.uint8)
        render = stages.render_of(loops)
        compiled = stages.entry(
            lambda pixels, layers, count, out, scratch: render(pixels, 50, layers, count, 0, 0, out, scratch)
        )
        compiled(image.reshape(-1), layers, count, out, scratch)
        return out

    assert np.array_equal(rendered(stages.LOOPS), cropmix(image, plan, (SIDE, SIDE)))
    assert not rendered(stages.LOOPS[:3]).any()


@pytest.mark.skipif(config.DISABLE_JIT, reason="would time the interpreter")
def test_stages_have_times(betons: dict[str, Path]) -> None:
    times = stages.stage_times(betons["jpg"], SIDE, 3)
    assert tuple(times) == stages.STAGES
    assert sum(times.values()) > 0
