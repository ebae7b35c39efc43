"""Options of the examples: a dataclass, from YAML and the command line, as train_imagenet.py reads its own.

Imports neither torch nor FFCV: a wrong option is answered at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NoReturn, TypeVar

from jsonargparse import ArgumentParser, set_parsing_settings

from ffcv_cropmix.errors import usage_error
from ffcv_cropmix.training.config import _file_first

T = TypeVar("T")


class _Parser(ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        usage_error(message)


def parse(kind: type[T], program: str, description: str, arguments: Sequence[str] | None = None) -> T:
    """Read `--config-file FILE` and dotted overrides such as `--training.epochs=1` (default: the command line's).

    What is wrong (key, type, range) ends the program with status 2 and one line on stderr.

    Args:
        kind: a dataclass, of sections that are dataclasses themselves; each field has a docstring.
        program: as it is started, for --help.
        description: likewise.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser: Any = _Parser(prog=program, description=description, allow_abbrev=False)
    parser.add_argument("--config-file", "--config", action="config", help="YAML file; options after it override it")
    parser.add_class_arguments(kind)
    options = parser.parse_args(_file_first(arguments))
    try:
        options = parser.instantiate(options)
        return kind(**{key.name: options[key.name] for key in fields(kind)})  # type: ignore[arg-type]
    except ValueError as error:
        usage_error(str(error))
