"""write_dataset.py as its users start it."""

from __future__ import annotations

import csv
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ffcv.reader import Reader
from PIL import Image

from ffcv_cropmix.data.sidecar import read_sidecar, sample_checksum
from tests.betons import photo

REPOSITORY = Path(__file__).parents[2]


def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "write_dataset.py", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


def test_digits(tmp_path: Path) -> None:
    path = tmp_path / "val.beton"
    result = _run("--dataset=digits", "--split=val", "--write_path", path, "--subset=50", "--num_workers=1")
    assert result.returncode == 0, result.stderr
    assert "50 images of 10 classes" in result.stdout
    assert "val.beton: 50/50 in " in result.stderr
    assert " images/s, 00:00 left" in result.stderr
    reader = Reader(str(path))
    assert reader.num_samples == 50
    assert set(reader.metadata["f0"]["mode"]) == {0}
    sidecar = read_sidecar(path)
    assert sidecar.classes == list("0123456789")
    assert sidecar.counts == np.bincount(reader.metadata["f1"]).tolist()
    assert sidecar.options["jpeg_quality"] == 90
    assert {"ffcv", "ffcv_cropmix"} <= sidecar.versions.keys()


def test_classes_are_numbered_as_in_another_file(tmp_path: Path, monkeypatch, capsys) -> None:
    def write(split: str, *options: object) -> list[int]:
        write = ["--data_dir", tmp_path, "--split", split, "--write_path", tmp_path / f"{split}.beton", *options]
        monkeypatch.setattr(sys, "argv", ["write_dataset.py", "--num_workers=1", *map(str, write)])
        runpy.run_path(str(REPOSITORY / "write_dataset.py"), run_name="__main__")
        return Reader(str(tmp_path / f"{split}.beton")).metadata["f1"].tolist()

    for name in ("train/apple", "train/banana", "train/cherry", "val/banana", "val/cherry", "test/kiwi"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    assert write("train") == [0, 1, 2]
    train = tmp_path / "train.beton"
    assert write("val", "--classes_of", train) == [1, 2]
    sidecar = read_sidecar(tmp_path / "val.beton")
    assert (sidecar.classes, sidecar.counts) == (["apple", "banana", "cherry"], [0, 1, 1])
    others = ["--data_dir", tmp_path, "--split=test", "--write_path", tmp_path / "test.beton", "--classes_of"]
    status, message = _refused(monkeypatch, capsys, *others, train)
    assert (status, f"has images of 'kiwi', which is none of the 3 classes of {train}" in message) == (1, True)
    missing = tmp_path / "no.beton"
    status, message = _refused(monkeypatch, capsys, *others, missing)
    assert (status, message) == (1, f"error: {missing}.json, which names the classes, is missing")
    assert not (tmp_path / "test.beton").exists()


def _refused(monkeypatch, capsys, *arguments: object) -> tuple[int, str]:
    """Exit status and message."""
    monkeypatch.setattr(sys, "argv", ["write_dataset.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPOSITORY / "write_dataset.py"), run_name="__main__")
    code = ended.value.code
    return (code, capsys.readouterr().err.rstrip("\n")) if isinstance(code, int) else (1, str(code))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--dataset=imagenet", "dataset: expected imagenet_val or imagefolder or "),
        ("--max_resolution=big", "max_resolution: expected int, got 'big'"),
        ("--max_resolution=-1", "max_resolution must be >= 0 px, got -1"),
        ("--write_mode=smart", "smart_threshold must be given for write_mode smart, bytes, got None"),
        ("--smart_threshold=-1", "smart_threshold must be >= 0 bytes, got -1"),
        ("--compress_probability=1.5", "compress_probability must be in [0, 1], got 1.5"),
        ("--jpeg_quality=101", "jpeg_quality must be in 0 to 100, got 101"),
        ("--dct_level=99", "dct_level must be in -131072 to 22, got 99"),
        ("--num_workers=0", "num_workers must be >= 1, got 0"),
        ("--chunk_size=0", "chunk_size must be >= 1, got 0"),
        ("--subset=0", "subset must be >= 1, or -1, got 0"),
        ("--dataset=cifar10", "data_dir must be given for cifar10, got None"),
        ("--dataset=imagenet_val --data_dir=/tmp", "labels must be given for imagenet_val, got None"),
        ("--labels=x.txt", "labels must be left out except for imagenet_val, got 'x.txt'"),
        ("--on_error=ignore", "on_error: expected raise or skip, got 'ignore'"),
        ("--write_path=/nowhere/x.beton", "write_path must be a file in a folder that exists, got '/nowhere/x.beton'"),
        ("--write_path=/tmp", "write_path must be a file, as must be the .json beside it, got '/tmp'"),
        ("--epochs=3", "there is no option epochs"),
        ("--write-mode=raw", "there is no option write-mode; did you mean write_mode?"),
        ("--reencode=yes", "reencode: a flag, which takes no value, got 'yes'"),
    ],
)
def test_wrong_options_are_answered_in_one_line(monkeypatch, capsys, tmp_path, change: str, message: str) -> None:
    good = ["--dataset=digits", f"--write_path={tmp_path / 'x.beton'}"]
    status, printed = _refused(monkeypatch, capsys, *good, *change.split())
    assert status == 2
    assert message in printed
    assert "\n" not in printed
    assert not list(tmp_path.iterdir())


def test_a_bad_image_and_a_missing_folder_end_with_one_line(monkeypatch, capsys, tmp_path: Path) -> None:
    (tmp_path / "images/a").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "images/a/good.png")
    (tmp_path / "images/a/bad.jpg").write_text("no image")
    out = tmp_path / "x.beton"
    Path(f"{out}.json").write_text("of an earlier file")
    result = _run("--data_dir", tmp_path / "images", "--write_path", out)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"error: {tmp_path}/images/a/bad.jpg cannot be converted: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "x.beton.json"]
    assert Path(f"{out}.json").read_text() == "of an earlier file"
    expected = (1, f"error: {tmp_path}/none: no such folder")
    assert _refused(monkeypatch, capsys, "--data_dir", tmp_path / "none", "--write_path", out) == expected


def test_a_file_that_cannot_be_written_is_named(monkeypatch, capsys, tmp_path: Path) -> None:
    for path, reason in (("/proc/x.beton", "No such file"), (tmp_path / ("x" * 250), "File name too long")):
        status, printed = _refused(monkeypatch, capsys, "--dataset=digits", "--write_path", path)
        assert status == 1
        assert printed.startswith(f"error: {path} cannot be written: {reason}")
        assert "\n" not in printed
    assert not list(tmp_path.iterdir())


def _table(folder: Path, count: int, height: int = 150, width: int = 200) -> Path:
    """A set of so many images that differ: FILE.csv."""
    (folder / "images").mkdir()
    for index in range(count):
        Image.fromarray(np.full((height, width, 3), index, np.uint8)).save(folder / f"images/{index}.png")
    table = folder / "set.csv"
    table.write_text("path,label\n" + "".join(f"images/{index}.png,{index % 3}\n" for index in range(count)))
    return table


def test_skipped_kept_and_damaged_images_are_counted(tmp_path: Path) -> None:
    table = _table(tmp_path, 6)
    folder, path = tmp_path / "images", tmp_path / "x.beton"
    for index in (1, 2, 3):
        Image.fromarray(photo(20)).save(folder / f"{index}.png", "JPEG")  # whatever it is called
    jpeg = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(jpeg[:-2] + bytes(99) + jpeg[-2:])
    (folder / "4.png").write_text("no image")
    command = ("--dataset=csv", "--data_dir", table, "--write_path", path, "--num_workers=1")
    dry = _run(*command, "--dry_run")
    assert dry.returncode == 0
    assert re.search(
        r"x.beton would have 6 images of 3 classes and about 0.0 MB \([\d.,]+ MB are free\), and take about "
        r"0:00:00 with 1 processes: of 6 images tried, 1 cannot be converted\n$",
        dry.stdout,
    )
    assert dry.stderr == f"{folder}/4.png cannot be converted: not an image that Pillow can read\n"
    assert not list(tmp_path.glob("*beton*"))
    result = _run(*command, "--on_error=skip")
    assert result.returncode == 0
    first, *rest = result.stdout.splitlines()
    assert first.startswith(f"{path}: 5 images of 3 classes, ")
    assert rest == [
        "2 JPEG files are stored unchanged",
        "1 JPEG files are encoded again: they are damaged, but could be decoded",
        f"1 images were skipped: {path}.skipped.csv lists them",
    ]
    assert read_sidecar(path).counts == [2, 1, 2]
    result = _run(*command, "--on_error=skip", "--reencode")
    assert [line[:8] for line in result.stdout.splitlines()[1:]] == ["1 images"]


@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}])
def test_any_name_can_be_said(tmp_path: Path, locale: dict[str, str]) -> None:
    """File systems take bytes: a name that is not UTF-8 must not end the run after the work."""
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.makedirs(folder + b"/cl\xe4ss")  # noqa: PTH103
    os.mkdir(folder + b"/\xe9\ncole")  # noqa: PTH102
    for name in (b"cl\xe4ss/1.png", b"\xe9\ncole/2.png"):
        Image.new("RGB", (4, 4)).save(os.fsdecode(folder + b"/" + name))
    Path(os.fsdecode(folder + b"/cl\xe4ss/b\xe4d.png")).write_text("no image")
    Path(os.fsdecode(folder + b"/cl\xe4ss/x.\xfcxx")).touch()
    path = folder + b"/\xfc.beton"
    command = [sys.executable, "write_dataset.py", "--data_dir", folder, "--write_path", path, "--num_workers=1"]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"} | locale
    for options in (["--on_error=skip"], ["--on_error=skip", "--dry_run"], ["--subset=1"]):
        result = subprocess.run([*command, *options], cwd=REPOSITORY, capture_output=True, env=environment)
        assert result.returncode == 0, result.stderr
        assert b"Traceback" not in result.stderr
        printed = result.stdout.decode()  # it is UTF-8
        assert r"caf\udce9/\udcfc.beton" in printed
        assert r"1 files ending in .\udcfcxx" in printed
        if options == ["--on_error=skip"]:
            with Path(os.fsdecode(path + b".skipped.csv")).open(newline="", encoding="utf-8") as report:
                (row,) = csv.DictReader(report)
            assert row["path"].endswith(r"/caf\udce9/cl\udce4ss/b\udce4d.png")
    assert r"1 classes have no images: \udce9 cole" in printed
    sidecar = json.loads(Path(os.fsdecode(path + b".json")).read_bytes())
    assert [name.encode("utf-8", "surrogateescape") for name in sidecar["classes"]] == [b"cl\xe4ss", b"\xe9\ncole"]
    assert sidecar["counts"] == [1, 0]


def test_what_is_skipped_of_a_source_is_reported(tmp_path: Path) -> None:
    """And what is left out is counted, by --dry_run too."""
    table = tmp_path / "set.csv"
    for k in range(2):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{k}.png")
    table.write_text("path,label,split\n0.png,3,train\n1.png,,train\n1.png,1,val\n")
    command = ("--dataset=csv", "--data_dir", table, "--write_path", tmp_path / "x.beton", "--num_workers=1")
    result = _run(*command)
    line = f"error: {table}, line 3: a path or a label is missing; --on_error skip continues without it\n"
    assert (result.returncode, result.stderr) == (1, line)
    said = ["left out: 1 rows of other splits", "3 classes have no images: 0, 1, 2"]
    dry = _run(*command, "--on_error=skip", "--dry_run")
    assert dry.stderr == f"{table}, line 3 cannot be converted: a path or a label is missing\n"
    assert dry.stdout.splitlines()[1:] == ["1 more would be skipped", *said]
    result = _run(*command, "--on_error=skip")
    assert result.stdout.splitlines()[1:] == [
        f"1 images were skipped: {tmp_path}/x.beton.skipped.csv lists them",
        *said,
    ]
    report = (tmp_path / "x.beton.skipped.csv").read_text()
    assert report == f'path,reason\n"{table}, line 3",a path or a label is missing\n'


def test_a_run_that_is_killed_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    path, table = tmp_path / "x.beton", _table(tmp_path, 100, 500, 500)
    command = [sys.executable, "write_dataset.py", "--dataset=csv", "--data_dir", str(table)]
    command += ["--write_path", str(path), "--max_resolution=40", "--num_workers=2", "--chunk_size=5"]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def is_whole() -> bool:
        written, sidecar = np.memmap(path, np.uint8), read_sidecar(path)
        places = Reader(str(path)).alloc_table[["ptr", "size"]].tolist()
        digests = [sample_checksum(written[address : address + size]) for address, size in places]
        if sidecar is None:  # killed just before it got its name
            return len(digests) == 100
        return len(digests) == 100 and digests == sidecar.digests().tolist()

    def is_at_work() -> bool:
        try:
            return any(file.stat().st_size for file in tmp_path.glob(".x.beton.*.tmp"))
        except FileNotFoundError:  # just renamed
            return False

    started = time.monotonic()
    assert start().wait() == 0
    duration = time.monotonic() - started
    assert is_whole()
    path.unlink()
    random = np.random.default_rng()
    killed = 0
    while killed < 20:
        run = start()
        seconds = random.uniform(0, duration)
        if killed % 2:  # in the midst of the images
            seconds = random.uniform(0, 0.2)
            while run.poll() is None and not is_at_work():
                time.sleep(0.01)
        try:
            run.wait(seconds)
            assert is_whole()  # it was done before
            path.unlink()
        except subprocess.TimeoutExpired:
            killed += 1
            run.kill()
            run.wait()
            assert not path.exists() or is_whole()
            path.unlink(missing_ok=True)
    assert start().wait() == 0
    assert is_whole()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["images", "set.csv", "x.beton", "x.beton.json"]


def _on_a_small_disk(folder: Path, megabytes: int, commands: str) -> subprocess.CompletedProcess[str]:
    """Run a shell's commands where `folder` is a disk of its own."""
    unshare = ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    mount = f"mount -t tmpfs -o size={megabytes}m tmpfs {folder}"
    if not shutil.which("unshare") or subprocess.run([*unshare, "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    command = [*unshare, "sh", "-c", f"{mount}; {commands}"]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


@pytest.mark.parametrize("checked", [True, False])
def test_a_full_disk_ends_the_run_and_the_next_one_succeeds(tmp_path: Path, checked: bool) -> None:
    """The space is checked first; that it suffices then is not certain, others write as well."""
    (tmp_path / "disk").mkdir()
    path = tmp_path / "disk/x.beton"
    options = ["--dataset=csv", f"--data_dir={_table(tmp_path, 100)}", f"--write_path={path}", "--write_mode=raw"]
    start = f"{sys.executable} write_dataset.py {' '.join(options)}"
    unchecked = (
        "import runpy, sys; from ffcv_cropmix.data import convert; convert._check_space = lambda *_: None; "
        f"sys.argv[1:] = {options}; runpy.run_path('write_dataset.py', run_name='__main__')"
    )
    first = start if checked else f'{sys.executable} -c "{unchecked}"'
    commands = f"{first}; echo status $?; ls -A {tmp_path}/disk; {start} --max_resolution=100; ls -A {tmp_path}/disk"
    result = _on_a_small_disk(tmp_path / "disk", 7, commands)
    status, written, *names = result.stdout.splitlines()
    assert (status, names) == ("status 1", ["x.beton", "x.beton.json"])
    assert written.startswith(f"{path}: 100 images of 3 classes, ")
    errors = [line for line in result.stderr.splitlines() if "images/s" not in line]
    expected = (
        "would take about 9.0 MB, but 7.3 MB are free" if checked else "cannot be written: No space left on device"
    )
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {path} {expected}")


@pytest.mark.parametrize(
    ("number", "status", "message"), [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "")]
)
def test_a_signal_ends_the_run(tmp_path: Path, number: signal.Signals, status: int, message: str) -> None:
    (tmp_path / "images/a").mkdir(parents=True)
    os.mkfifo(tmp_path / "images/a/0.png")  # a worker that opens it is stuck
    command = [
        sys.executable,
        "write_dataset.py",
        f"--data_dir={tmp_path / 'images'}",
        f"--write_path={tmp_path / 'x'}",
    ]
    run = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    while run.poll() is None and len(children.read_text().split()) < 2:  # resource tracker and worker
        time.sleep(0.01)
    time.sleep(0.1)
    worker = Path(f"/proc/{children.read_text().split()[-1]}/status").read_text()
    blocked = int(worker.split("SigBlk:")[1].split()[0], 16)
    assert blocked == 1 << signal.SIGINT - 1  # from its first moment on: it would print a traceback
    sent = time.monotonic()
    if number == signal.SIGINT:
        os.killpg(run.pid, number)  # as Ctrl-C does: to the worker, which just starts, as well
    else:
        run.send_signal(number)
    assert run.communicate(timeout=20) == (None, message)
    assert run.returncode == status
    assert time.monotonic() - sent < 5
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
