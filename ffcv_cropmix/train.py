"""Train an image classifier on .beton files, with CropMix or RandomResizedCrop, on GPUs or on the CPU.

The training loop is `train` in ffcv_cropmix/training/classifier.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from .errors import run_program
from .training.config import parse_config


def main(arguments: Sequence[str] | None = None, prog: str = "python -m ffcv_cropmix.train") -> None:
    """Run the command line (default: `sys.argv[1:]`)."""
    config = parse_config(arguments, prog=prog)
    from .training import classifier  # imports torch and FFCV: takes seconds, so options are checked first

    if config.training.eval_only:
        classifier.evaluate_only(config)
    else:
        classifier.train(config)


if __name__ == "__main__":
    run_program(main)
