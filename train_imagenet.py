"""Train an image classifier on .beton files, with CropMix or RandomResizedCrop, on GPUs or on the CPU.

python train_imagenet.py --config-file rn50_configs/rn50_16_epochs.yaml \
    --data.train_dataset=train.beton --data.val_dataset=val.beton --logging.folder=runs/rn50

On several GPUs: torchrun --nproc-per-node=8 train_imagenet.py ... All options: --help, or
ffcv_cropmix/training/config.py.
"""

from __future__ import annotations

from functools import partial

from ffcv_cropmix.errors import run_program
from ffcv_cropmix.train import main  # calls ffcv_cropmix.training.classifier.train, which holds the training loop

if __name__ == "__main__":
    run_program(partial(main, prog="train_imagenet.py"))
