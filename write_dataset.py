"""Convert images to a .beton file: the same as `ffcv-cropmix convert`, from a clone of the repository.

python write_dataset.py --dataset imagefolder --data_dir imagenet --split train --write_path train.beton
python write_dataset.py --dataset digits --split val --write_path digits_val.beton
"""

from __future__ import annotations

from functools import partial

from ffcv_cropmix.convert import main
from ffcv_cropmix.errors import run_program

if __name__ == "__main__":
    run_program(partial(main, prog="write_dataset.py"))
