"""Pre-train a masked autoencoder on .beton files, with CropMix or RandomResizedCrop, on GPUs or on the CPU.

python -m examples.mae.pretrain --config-file examples/mae/paper.yaml \
    --data.train_dataset=train.beton --data.val_dataset=val.beton --logging.folder=runs/mae

On several GPUs: torchrun --nproc-per-node=8 -m examples.mae.pretrain ...
All options: --help, or examples/mae/config.py. The training loop is in pretraining.py.
"""

from __future__ import annotations

from ffcv_cropmix.errors import run_program

from .config import parse_pretrain


def main() -> None:
    """Parse the command line and run."""
    config = parse_pretrain()
    from .pretraining import pretrain  # imports torch and FFCV: takes seconds, so options are checked first

    pretrain(config)


if __name__ == "__main__":
    run_program(main)
