"""python -m ffcv_cropmix: the same as the command `ffcv-cropmix`."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    main()
