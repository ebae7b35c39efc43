"""Processes that start together on an empty cache of compiled code: python -m tests.race --rounds 20

Each compiles or loads one kernel, or with --full what a loader needs. All must have the same result, and end well.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def numbers() -> list[int]:
    """What a kernel computes."""
    from ffcv_cropmix.kernels.jit import entry
    from ffcv_cropmix.kernels.render import padded

    return [entry(padded)(number) for number in (1, 24, 25)]


def digests(path: str | Path) -> list[str]:
    """Of the batches of a pass over a .beton."""
    from ffcv_cropmix import CropMixRGBImageDecoder, Loader

    # isort: split
    from ffcv.transforms import ToTensor

    pipelines = {"image": [CropMixRGBImageDecoder((17, 5)), ToTensor()], "label": None}
    loader = Loader(path, 8, num_workers=2, pipelines=pipelines)
    return [hashlib.sha256(images.numpy().tobytes()).hexdigest() for (images,) in loader]


def round_of(processes: int, folder: Path, full: bool) -> int:
    """Start so many processes at once, and then one more; return how many files of compiled code there are.

    Args:
        folder: empty; the compiled code lies there, and with `full` a .beton.
    """
    call = "numbers()"
    if full:
        from tests.betons import write

        call = f"digests({str(write(folder)['jpg'])!r})"
    place = folder / "compiled"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(place)}
    command = [sys.executable, "-c", f"from tests import race; print(race.{call})"]
    outputs = []
    for count in (processes, 1):
        running = [
            subprocess.Popen(
                command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            for _ in range(count)
        ]
        for process in running:
            out, error = process.communicate()
            assert (process.returncode, error) == (0, "")
            outputs.append(out)
    assert len(set(outputs)) == 1, outputs
    assert outputs[0].startswith("[")
    return len(list((place / "ffcv_cropmix").iterdir()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--full", action="store_true", help="a loader instead of one kernel")
    options = parser.parse_args()
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as temporary:
            files = round_of(options.processes, Path(temporary), options.full)
        print(f"round {number + 1}: {options.processes} processes and one more, {files} files", flush=True)
