"""Fine-tune a pre-trained encoder, or train a linear classifier on the frozen encoder (--linear_probe=1).

python -m examples.mae.finetune --config-file examples/mae/finetune.yaml --weights=runs/mae/final_weights.pt \
    --data.train_dataset=train.beton --data.val_dataset=val.beton --logging.folder=runs/finetune

On several GPUs: torchrun --nproc-per-node=8 -m examples.mae.finetune ...
All options: --help, or examples/mae/config.py. The training loop is in finetuning.py.
"""

from __future__ import annotations

from ffcv_cropmix.errors import run_program

from .config import parse_finetune


def main() -> None:
    """Parse the command line and run."""
    config = parse_finetune()
    from .finetuning import finetune  # imports torch and FFCV: takes seconds, so options are checked first

    finetune(config)


if __name__ == "__main__":
    run_program(main)
