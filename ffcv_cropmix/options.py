"""Options from YAML files and the command line, for a dataclass, and errors of one line."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from .errors import usage_error

T = TypeVar("T")

Switch = bool | Literal[0, 1]
"""On or off; ffcv-imagenet's files write true and 1 alike."""


def require(valid: bool, key: str, rule: str, value: object) -> None:
    """Raise ValueError that says the rule for an option, unless its value is valid."""
    if not valid:
        raise ValueError(f"{key} must be {rule}, got {value!r}")


class _Parser(ArgumentParser):
    """Says what is wrong in one line, and what may have been meant."""

    kind: Any
    """The dataclass of the options"""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        usage_error(_shorten(message, dict(_types(self.kind))))


def _types(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The options of a dataclass, and of those within it, by their dotted names."""
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            yield from _types(hint, f"{prefix}{name}.")
        else:
            yield prefix + name, hint


def _shorten(message: str, types: dict[str, Any]) -> str:
    """jsonargparse's message without its vocabulary: `training.epochs: expected int, got 'many'`."""
    mistyped = re.search(r'^Parser key "([\w.]+)":(?:.|\n)*(?:Got value|Given value): (.*)', message)
    if mistyped and mistyped[1] in types:
        return f"{mistyped[1]}: expected {_type_name(types[mistyped[1]])}, got {mistyped[2]!r}"
    unknown = re.match(r"unrecognized arguments: --([^=\s]+)|Group '(\w+)' does not accept option '([^']+)'", message)
    name = unknown and (unknown[1] or f"{unknown[2]}.{unknown[3]}")
    if name and name not in types:
        same = [of for of in types if of.endswith(f".{name}")]  # without its section, as other trainers have it
        close = same or difflib.get_close_matches(name, types, n=3, cutoff=0.8)
        return f"there is no option {name}" + (f"; close to it: {', '.join(close)}" if close else "")
    section = re.search(r"""^Parser key "(\w+)":\s+Unable to load config '(.*?)'""", message)
    if section and any(name.startswith(f"{section[1]}.") for name in types):
        return f"{section[1]} is a section, and {section[2]!r} is no YAML file of it: --{section[1]}.NAME=VALUE"
    return message


def _type_name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(str(value) for value in get_args(hint))
    if get_args(hint):
        return " or ".join(_type_name(part) for part in get_args(hint))
    return "null" if hint is type(None) else hint.__name__


def _check_files(arguments: Sequence[str], sections: Sequence[str]) -> None:
    """End the program with one line if a file of options is not UTF-8, or has a key twice: YAML keeps the last."""
    options = {"--config-file", "--config", *(f"--{section}" for section in sections)}
    for argument, following in zip(arguments, [*arguments[1:], ""]):
        name, given, path = argument.partition("=")
        path = path if given else following
        if name not in options or not Path(path).is_file():
            continue
        try:
            text = Path(path).read_text(encoding="utf-8")
            for key, line, first in _repeated(yaml.compose(text)):
                usage_error(f"{path}: {key} is in line {line} and, before it, in line {first}: keep one of them")
        except UnicodeDecodeError as error:
            usage_error(f"{path} is not UTF-8, in which YAML is written: {error.reason} at byte {error.start}")
        except (OSError, yaml.YAMLError):
            pass  # jsonargparse says so


def _repeated(node: yaml.Node | None) -> Iterator[tuple[str, int, int]]:
    """The keys that a YAML document has twice, a section's "section.key" too, and the lines of both, from 1."""
    lines: dict[str, int] = {}

    def walk(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, int, int]]:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            name, line = f"{prefix}{key.value}", key.start_mark.line + 1
            if name in lines:
                yield name, line, lines[name]
            lines[name] = line
            yield from walk(value, f"{name}.")

    yield from walk(node, "")


def _file_first(arguments: Sequence[str] | None) -> list[str]:
    """The arguments (default: the command line's), if no file comes after an option that it would silently undo."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    override = ""
    for argument in arguments:
        name = argument.partition("=")[0]
        if name in ("--config-file", "--config"):
            if override:
                usage_error(f"{name} comes after {override}, which it would override: put the file first")
        elif name.startswith("--") and name != "--print_config":
            override = argument
    return arguments


def parse_options(kind: type[T], arguments: Sequence[str] | None = None, *, prog: str, description: str) -> T:
    """Read `--config-file FILE` and then dotted overrides such as `--training.epochs=1` (default: the command line's).

    What is wrong (key, type, range) ends the program with status 2 and one line on stderr. A path may start with ~, for
    the home directory.

    Args:
        kind: a dataclass; its fields may be dataclasses. Docstrings under fields are the help.
        prog: the program's name.
        description: what it does.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser: Any = _Parser(prog=prog, description=description, allow_abbrev=False)
    parser.kind = kind
    parser.add_argument("--config-file", "--config", action="config", help="YAML file; options after it override it")
    parser.add_class_arguments(kind)
    arguments = _file_first(arguments)
    sections = [name for name, hint in get_type_hints(kind).items() if is_dataclass(hint)]
    _check_files(arguments, sections)
    options = parser.parse_args(arguments)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for name in sections:
        if not isinstance(options[name], Namespace):
            usage_error(f"{name}: expected a section of options, got {options[name]!r}")
    for name, value in list(options.items()):
        if isinstance(value, str) and value.startswith("~"):  # the shell expands it only at the start of an argument
            try:
                options[name] = str(Path(value).expanduser())
            except RuntimeError:
                usage_error(f"{name}: there is no home directory {value.partition('/')[0]}")
    try:
        options = parser.instantiate(options)
        return kind(**{name: options[name] for name in names})
    except ValueError as error:
        usage_error(str(error))
