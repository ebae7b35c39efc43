"""make demo: plot what CropMix does, and train twice on a small set, with RandomResizedCrop and with CropMix.

The data come with scikit-learn: a photo, and 1,797 scans of handwritten digits. It takes three minutes on two cores. So
small a set and so short a training show that everything runs, and how fast, but not which augmentation is better.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from ffcv_cropmix import CropMixRGBImageDecoder, Loader, sample_plan  # before FFCV, which then is imported faster
from ffcv_cropmix.visualize import Sheet, contact_sheet, strips, write_figures

# isort: split
from ffcv.transforms import ToTensor
from sklearn.datasets import load_sample_image

REPOSITORY = Path(__file__).parents[1]
FOLDER = Path("demo")
SIDE = 48  # px
RUNS = {
    "RandomResizedCrop": ["--cropmix.enabled=0"],
    "CropMix": ["--cropmix.enabled=1", "--cropmix.scale=0.25", "--cropmix.number=2", "--cropmix.inter_aug=0"],
}


def run(*command: str) -> None:
    """Run a program of this repository, and exit with its status if it fails."""
    print("\n$ python " + " ".join(command), flush=True)
    result = subprocess.run([sys.executable, REPOSITORY / command[0], *command[1:]])
    if result.returncode:
        sys.exit(result.returncode)


def images_per_second() -> dict[str, float]:
    """Measure each loader alone: the median of alternating passes, without the first, which compiles."""
    crops: dict[str, dict[str, Any]] = {
        "RandomResizedCrop": {"number": 1, "scale": 0.08},
        "CropMix": {"number": 2, "scale": 0.25},
    }
    loaders = {}
    for name, options in crops.items():
        pipeline = [CropMixRGBImageDecoder((SIDE, SIDE), **options), ToTensor()]
        loaders[name] = Loader(FOLDER / "train.beton", 128, pipelines={"image": pipeline, "label": None})
    speeds: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(21):
        for name, loader in loaders.items():
            started = time.perf_counter()
            images = sum(len(batch) for (batch,) in loader)
            speeds[name].append(images / (time.perf_counter() - started))
    return {name: median(of[1:]) for name, of in speeds.items()}


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    photo = load_sample_image("china.jpg")
    plans = [
        sample_plan(*photo.shape[:2], number=3, operation=operation, mix_ratio=4, seed=seed)
        for operation, seed in (("mixup", 1), ("cutmix", 4))
    ]
    sheet = Sheet(photo, plans, strips(photo, range(8), options={"inter_aug": True}))
    write_figures([contact_sheet([sheet])], FOLDER / "crops.png")
    print(f"{FOLDER / 'crops.png'}: crops, their share of the mix, the mix")

    for split in ("train", "val"):
        run("write_dataset.py", "--dataset=digits", f"--split={split}", f"--write_path={FOLDER / split}.beton")
    table = []
    for name, options in RUNS.items():
        folder = FOLDER / name.lower()
        run(
            "train_imagenet.py",
            f"--config-file={REPOSITORY / 'examples/demo.yaml'}",
            f"--data.train_dataset={FOLDER / 'train.beton'}",
            f"--data.val_dataset={FOLDER / 'val.beton'}",
            f"--logging.folder={folder}",
            *options,
        )
        last = json.loads((folder / "log").read_text().splitlines()[-1])
        table.append((name, last["top_1"], last["rms_calibration_error"]))
    speeds = images_per_second()
    print(f"\n{'':18} {'top-1':>8} {'RMS calibration error':>22} {'loader':>16}")
    for name, top_1, error in table:
        print(f"{name:18} {top_1:6.2f} % {error:20.2f} % {speeds[name]:9,.0f} images/s")


if __name__ == "__main__":
    main()
