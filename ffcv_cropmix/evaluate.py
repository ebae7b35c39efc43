"""Evaluate checkpoints: accuracy, calibration and robustness, beside the paper's numbers.

Accuracy on clean, attacked and corrupted images and on other sets, and calibration: a table with the columns of the
paper's, and its figures for ResNet-50 on ImageNet. docs/evaluation.md says how each is measured.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import run_program, wrong_options
from .evaluation.settings import METRICS, VARIANTS, Settings
from .options import inline, option, parse_options

COLUMNS = METRICS | VARIANTS

_PAPERS = ("clean", "rms", "fgsm", "replace", "noise", "imagenet_a", "imagenet_r", "imagenet_sketch")
PUBLISHED: dict[str, dict[str, float]] = {
    f"paper, {recipe}": dict(zip(_PAPERS, numbers))
    for recipe, numbers in {
        "R1, RandomResizedCrop": (76.59, 8.81, 21.01, 58.77, 72.92, 4.29, 35.30, 23.08),
        "R1, CropMix": (77.60, 7.73, 23.94, 59.29, 73.82, 6.53, 39.12, 25.56),
        "R2, RandomResizedCrop": (78.41, 30.62, 37.12, 60.12, 76.68, 9.67, 41.11, 28.22),
        "R2, CropMix": (78.71, 19.62, 37.47, 61.87, 77.19, 12.43, 44.25, 32.39),
        "R3, RandomResizedCrop": (78.67, 26.23, 34.97, 55.42, 76.95, 8.10, 40.80, 28.82),
        "R3, CropMix": (78.82, 26.00, 36.02, 55.62, 77.07, 9.68, 41.96, 29.36),
    }.items()
}
"""Table 2 of arXiv 2205.15955: ResNet-50 on ImageNet, trained by three recipes. R1: 300 epochs, lr 0.1, times 0.1 every
75 epochs, no label smoothing"""


def table(results: list[dict[str, Any]]) -> str:
    """Format an aligned table of the paper's numbers and of results.

    Args:
        results: Results of `suite.measure`. A metric that one lacks is shown as a dash.

    Example:
        >>> lines = table([{"checkpoint": "mine.pt", "clean": 77.123}]).splitlines()
        >>> print(" ".join(lines[-1].split()))
        mine.pt 77.12 - - - - - - -
    """
    rows = [*PUBLISHED.items(), *((result["checkpoint"], result) for result in results)]
    width = max(len(name) for name, _ in rows)
    lines = ["".join([f"{'top-1, %':{width}}", *(f"{title:>9}" for title in COLUMNS.values())])]
    for name, numbers in rows:
        cells = (f"{numbers[key]:9.2f}" if key in numbers else f"{'-':>9}" for key in COLUMNS)
        lines.append("".join([f"{name:{width}}", *cells]))
    return "\n".join(lines)


@dataclass(kw_only=True)
class Options:
    """The command line of `ffcv-cropmix evaluate`."""

    checkpoint: list[Path] = option(metavar="FILE")
    """Weights: final_weights.pt, checkpoint.pt, or a file of torchvision, timm or the authors"""
    data: Path = option(metavar="VAL.beton")
    """The validation set, with its .json beside it"""
    settings: Settings = inline()
    """What is measured"""
    json: bool = False
    """Print the results as JSON"""


def main(arguments: Sequence[str] | None = None, prog: str = "python -m ffcv_cropmix.evaluate") -> None:
    """Run the command line (default: `sys.argv[1:]`)."""
    options = parse_options(Options, arguments, prog=prog, description=__doc__ or "")
    from .evaluation.suite import ValidationSet, measure  # takes seconds

    data = ValidationSet(options.data)
    with wrong_options():
        results = [measure(checkpoint, data, options.settings) for checkpoint in options.checkpoint]
    if options.json:
        print(json.dumps({"data": str(options.data), "images": len(data), "results": results, "published": PUBLISHED}))
    else:
        print(f"{options.data}: {len(data):,} images of {len(data.classes):,} classes")
        for result in results:
            print(
                "{checkpoint}: {arch}, {resolution} px, central {crop_ratio:.4g}, {interpolation}, ".format(**result)
                + ("with mirror images" if result["flip_tta"] else "one view")
            )
        print(f"\n{table(results)}")


if __name__ == "__main__":
    run_program(main)
