"""How good is a model? python -m ffcv_cropmix.evaluate --checkpoint FILE --data VAL.beton

Accuracy on clean, attacked and corrupted images and on other sets, and calibration: a table with the columns of the
paper's, and its figures for ResNet-50 on ImageNet. docs/evaluation.md says how each is measured.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from .errors import Parser, run_program, usage_error, wrong_options

METRICS = ("clean", "rms", "fgsm", "noise", "replace")
VARIANTS = ("imagenet_a", "imagenet_r", "imagenet_sketch")
COLUMNS = {
    "clean": "Clean",
    "rms": "RMS cal.",
    "fgsm": "FGSM",
    "replace": "Replace",
    "noise": "Noise",
    "imagenet_a": "IN-A",
    "imagenet_r": "IN-R",
    "imagenet_sketch": "IN-S",
}

# Table 2 of arXiv 2205.15955: ResNet-50 on ImageNet, trained by three recipes. R1: 300 epochs, lr 0.1, times 0.1 every
# 75 epochs, no label smoothing.
PUBLISHED: dict[str, tuple[float, ...]] = {
    "paper, R1, RandomResizedCrop": (76.59, 8.81, 21.01, 58.77, 72.92, 4.29, 35.30, 23.08),
    "paper, R1, CropMix": (77.60, 7.73, 23.94, 59.29, 73.82, 6.53, 39.12, 25.56),
    "paper, R2, RandomResizedCrop": (78.41, 30.62, 37.12, 60.12, 76.68, 9.67, 41.11, 28.22),
    "paper, R2, CropMix": (78.71, 19.62, 37.47, 61.87, 77.19, 12.43, 44.25, 32.39),
    "paper, R3, RandomResizedCrop": (78.67, 26.23, 34.97, 55.42, 76.95, 8.10, 40.80, 28.82),
    "paper, R3, CropMix": (78.82, 26.00, 36.02, 55.62, 77.07, 9.68, 41.96, 29.36),
}


def table(results: list[dict[str, Any]]) -> str:
    """The paper's rows and those of `suite.measure`, aligned; a dash where nothing was measured."""
    rows = [(name, dict(zip(COLUMNS, figures, strict=True))) for name, figures in PUBLISHED.items()]
    rows += [(result["checkpoint"], result) for result in results]
    width = max(len(name) for name, _ in rows)
    lines = ["".join([f"{'top-1, %':{width}}", *(f"{title:>9}" for title in COLUMNS.values())])]
    for name, figures in rows:
        cells = (f"{figures[key]:9.2f}" if key in figures else f"{'-':>9}" for key in COLUMNS)
        lines.append("".join([f"{name:{width}}", *cells]))
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    """The command line; a wrong option ends the program with one line and status 2."""
    parser = Parser(prog="python -m ffcv_cropmix.evaluate", description=(__doc__ or "").partition("\n\n")[2])
    add = parser.add_argument
    files = "weights: final_weights.pt, checkpoint.pt, torchvision's, timm's, the authors', ..."
    add("--checkpoint", type=Path, nargs="+", required=True, metavar="FILE", help=files)
    add("--data", type=Path, required=True, metavar="VAL.beton", help="the validation set, with its .json beside it")
    add("--arch", metavar="NAME", help="torchvision's, or timm/NAME; default: as the weights say")
    add("--entry", metavar="NAME", help="of a checkpoint with several networks, such as state_dict_ema")
    add("--classes_of", type=Path, metavar="TRAIN.beton", help="names the outputs of weights that do not name them")
    add("--metrics", nargs="*", choices=METRICS, default=METRICS, help="to measure on --data; default: all")
    for name in VARIANTS:
        add(f"--{name}", type=Path, metavar="DIR", help="a folder of images for each WordNet id")
    as_said = "default: as the weights say, else"
    add("--resolution", type=int, metavar="PX", help=f"side of the images; {as_said} 224")
    add("--crop_ratio", type=float, metavar="R", help=f"of the centre's side to the shorter side; {as_said} 0.875")
    add("--interpolation", choices=("bilinear", "bicubic"), help=f"{as_said} bilinear")
    flip = f"average the outputs for each image and its mirror image; {as_said} --no-flip_tta"
    add("--flip_tta", action=argparse.BooleanOptionalAction, help=flip)
    for name in ("mean", "std"):
        add(
            f"--{name}", type=float, nargs=3, metavar=("R", "G", "B"), help=f"of pixels in [0, 1]; {as_said} ImageNet's"
        )
    add("--eps", type=float, default=0.007, help="step of FGSM, in units of [0, 1]; default: %(default)s")
    add("--noise_std", type=float, default=0.1, metavar="STD", help="in units of [0, 1]; default: %(default)s")
    add("--seed", type=int, default=0, metavar="N", help="of the noise; default: %(default)s")
    boxes = "ILSVRC2012_val_*.xml, for noise and replace: what is foreground; default: the central half"
    add("--boxes", type=Path, metavar="DIR", help=boxes)
    last_bin = "leave the most confident bin out of RMS cal., as the code behind published figures does"
    add("--skip_last_bin", action="store_true", help=last_bin)
    add("--batch_size", type=int, default=64, metavar="N", help="images at a time; default: %(default)s")
    cores = len(os.sched_getaffinity(0))
    add("--num_workers", type=int, default=cores, metavar="N", help="threads; default: all cores")
    add("--json", action="store_true", help="print the results as JSON")
    given = parser.parse_args()

    def require(valid: bool, option: str, rule: str) -> None:
        if not valid:
            usage_error(f"--{option} {rule}, got {getattr(given, option)}")

    require(0 <= given.eps <= 1, "eps", "is in [0, 1]")
    require(0 <= given.noise_std <= 1, "noise_std", "is in [0, 1]")
    require(0 <= given.seed < 2**64, "seed", "is in [0, 2**64)")
    require(given.resolution is None or given.resolution >= 1, "resolution", "is at least 1")
    require(given.crop_ratio is None or 0 < given.crop_ratio <= 1, "crop_ratio", "is in (0, 1]")
    require(min(given.std or [1]) > 0, "std", "is above 0")
    require((given.mean is None) == (given.std is None), "mean", "and --std are given together")
    require(given.batch_size >= 1, "batch_size", "is at least 1")
    require(1 <= given.num_workers <= cores, "num_workers", f"is in 1 to {cores}, the cores")
    return given


def main() -> None:
    """The command line."""
    given = parse_arguments()
    from .evaluation.suite import Settings, ValidationSet, measure  # takes seconds

    settings = Settings(
        metrics=list(given.metrics),
        variants={name: getattr(given, name) for name in VARIANTS if getattr(given, name)},
        arch=given.arch,
        entry=given.entry,
        classes_of=given.classes_of,
        mean=given.mean,
        std=given.std,
        resolution=given.resolution,
        crop_ratio=given.crop_ratio,
        interpolation=given.interpolation,
        flip_tta=given.flip_tta,
        eps=given.eps,
        noise_std=given.noise_std,
        seed=given.seed,
        boxes=given.boxes,
        skip_last_bin=given.skip_last_bin,
        batch_size=given.batch_size,
        num_workers=given.num_workers,
    )
    data = ValidationSet(given.data)
    with wrong_options():
        results = [measure(checkpoint, data, settings) for checkpoint in given.checkpoint]
    if given.json:
        published = {name: dict(zip(COLUMNS, figures, strict=True)) for name, figures in PUBLISHED.items()}
        print(json.dumps({"data": str(given.data), "images": len(data), "results": results, "published": published}))
    else:
        print(f"{given.data}: {len(data):,} images of {len(data.classes):,} classes")
        for result in results:
            print(
                "{checkpoint}: {arch}, {resolution} px, central {crop_ratio:.4g}, {interpolation}, ".format(**result)
                + ("with mirror images" if result["flip_tta"] else "one view")
            )
        print(f"\n{table(results)}")


if __name__ == "__main__":
    run_program(main)
