"""Train a linear classifier on the features of a frozen backbone.

python -m examples.contrastive.linear --weights=runs/moco/final_weights.pt \
    --data.train_dataset=train.beton --data.val_dataset=val.beton --logging.folder=runs/moco_linear

All options: --help, or examples/contrastive/config.py. The training loop is in linear_evaluation.py.
"""

from __future__ import annotations

from ffcv_cropmix.errors import run_program

from .config import parse_linear


def main() -> None:
    """Parse the command line and run."""
    config = parse_linear()
    from .linear_evaluation import train  # imports torch and FFCV: takes seconds, so options are checked first

    train(config)


if __name__ == "__main__":
    run_program(main)
