"""Train an image classifier on .beton files, with CropMix or RandomResizedCrop, on GPUs or on the CPU.

python train_imagenet.py --config-file rn50_configs/rn50_16_epochs.yaml \
    --data.train_dataset=train.beton --data.val_dataset=val.beton --logging.folder=runs/rn50

On several GPUs: torchrun --nproc-per-node=8 train_imagenet.py ... All options: --help, or
ffcv_cropmix/training/config.py. The training loop is `train` in ffcv_cropmix/training/classifier.py.
"""

from __future__ import annotations

from ffcv_cropmix.errors import run_program
from ffcv_cropmix.training.config import parse_config


def main() -> None:
    """Parse the command line, then train or evaluate."""
    config = parse_config()
    from ffcv_cropmix.training import classifier  # imports torch and FFCV: takes seconds, so options are checked first

    if config.training.eval_only:
        classifier.evaluate_only(config)
    else:
        classifier.train(config)


if __name__ == "__main__":
    run_program(main)
