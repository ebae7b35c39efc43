"""Pre-train a ResNet without labels: MoCo v2, with CropMix for the query.

python -m examples.contrastive.pretrain --config-file examples/contrastive/imagenet.yaml \
    --data.train_dataset=train.beton --data.val_dataset=val.beton --logging.folder=runs/moco

All options: --help, or examples/contrastive/config.py. The training loop is in moco.py; README.md describes the method.
"""

from __future__ import annotations

from ffcv_cropmix.errors import run_program

from .config import parse_pretrain


def main() -> None:
    """Parse the command line and run."""
    config = parse_pretrain()
    from .moco import pretrain  # imports torch and FFCV: takes seconds, so options are checked first

    pretrain(config)


if __name__ == "__main__":
    run_program(main)
