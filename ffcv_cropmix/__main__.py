"""python -m ffcv_cropmix: what there is to run."""

from __future__ import annotations

COMMANDS = """\
ffcv_cropmix: CropMix for FFCV, several crops of an image mixed in one compiled decoder

In a clone of the repository:
  python write_dataset.py                  images to a .beton file
  python train_imagenet.py                 train a classifier on two .beton files
  python examples/quickstart.py            from a folder of images to batches
  examples/contrastive/, examples/mae/     MoCo v2, and a masked autoencoder: README.md there
  make demo, make test                     two small trainings; all tests
  make examples, make bench                contrastive and MAE at toy size; how fast, against others

Anywhere:
  python -m ffcv_cropmix.verify            is a .beton file whole?
  python -m ffcv_cropmix.extract           a .beton file back to images
  python -m ffcv_cropmix.visualize         crops, their share of the mix, the mix, plotted
  python -m ffcv_cropmix.evaluate          accuracy, calibration and robustness, beside the paper's
  python -m ffcv_cropmix.training.compare  runs in one figure and one table

--help after any of the programs lists its options. README.md, docs/ and examples/ have the rest."""

if __name__ == "__main__":
    print(COMMANDS)
