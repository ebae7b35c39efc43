"""python -m ffcv_cropmix: what there is to run."""

from __future__ import annotations

COMMANDS = """\
ffcv_cropmix: CropMix for FFCV, several crops of an image mixed in one compiled decoder

In a clone of the repository:
  python write_dataset.py          images to a .beton file
  python train_imagenet.py         train a classifier on .beton files
  python examples/quickstart.py    from a folder of images to batches, in 25 lines
  python examples/demo.py          a figure and two small trainings; make demo installs and runs it
  python benchmarks/throughput.py  how fast, against others; make bench

Anywhere:
  python -m ffcv_cropmix.verify    is a .beton file whole?
  python -m ffcv_cropmix.evaluate  accuracy, calibration and robustness, beside the paper's
  python -m ffcv_cropmix.visualize  crops, their share of the mix, the mix, drawn

--help after any of them lists its options. README.md and docs/ have the rest."""

if __name__ == "__main__":
    print(COMMANDS)
