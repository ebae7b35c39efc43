"""Command line options, declared as dataclasses and read by jsonargparse. Every program of the project uses this.

A field is an option: its type is checked, its default is the option's default, the docstring under it is the help, and
`__post_init__` checks ranges with `require`. The dataclass that comes back is the one the program works with.

Fields that are dataclasses are sections: their options have dotted names (`--training.epochs=1`) and may come from YAML
files. Fields made with `inline()` lend their options to the command line without a prefix.

This module imports neither NumPy, torch nor FFCV, so that a wrong option is reported at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
from argparse import SUPPRESS, Action, BooleanOptionalAction
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import docstring_parser
import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, set_parsing_settings

from .errors import require as require
from .errors import usage_error, wrong_options

T = TypeVar("T")

Switch = bool | Literal[0, 1]
"""On or off; ffcv-imagenet's files write true and 1 alike."""


def option(
    default: Any = MISSING,
    *,
    positional: bool = False,
    choices: Iterable[str] = (),
    empty: bool = False,
    count: int | None = None,
    metavar: str | tuple[str, ...] | None = None,
) -> Any:
    """Declare an option whose type and default alone do not say enough.

    Args:
        default: the default; without one the option is required. A list is copied.
        positional: the argument is given by its place, without a name.
        choices: the allowed strings, where they are not known to a `Literal`.
        empty: a list may be given without values.
        count: a list has so many values.
        metavar: what the help shows for the value; a tuple for a tuple of values.

    In the docstring that is the help, `{choices}` stands for the choices.
    """
    metadata = {"positional": positional, "choices": tuple(choices), "empty": empty, "count": count, "metavar": metavar}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def inline() -> Any:
    """Declare a field, a dataclass, whose options are given without the field's name."""
    return dataclasses.field(metadata={"inline": True})


class _Help(DefaultHelpFormatter):
    """Help without Python's type names, and with the defaults that are worth knowing."""

    def _get_help_string(self, action: Action) -> str:
        if not action.option_strings or any(action.default is value for value in (None, False, SUPPRESS)):
            return action.help or ""
        default = action.default
        shown = " ".join(map(_short, default)) if isinstance(default, (list, tuple)) else _short(default)
        return f"{action.help} (default: {shown})"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class _Parser(ArgumentParser):
    """Reports an error in one line, with the options that may have been meant."""

    types: dict[str, Any]
    """The type of each option, by its full name"""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        usage_error(_shorten(message, self.types))


def _choices(field: Field[Any], hint: Any) -> Any:
    """The type of an option, or of the elements of a list, with its choices."""
    choices = field.metadata.get("choices")
    if not choices:
        return hint
    literal: Any = Literal.__getitem__(choices)
    return list[literal] if _nargs(field, hint) else literal


def _types(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the options of a dataclass, and of the dataclasses within it, with their types."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        hint = hints[field.name]
        if is_dataclass(hint):
            yield from _types(hint, prefix if field.metadata.get("inline") else f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, _choices(field, hint)


def _without_none(hint: Any) -> Any:
    """The type X of X | None; other types as they are."""
    some = [part for part in get_args(hint) if part is not type(None)]
    return some[0] if len(some) == 1 and len(get_args(hint)) == 2 and type(None) in get_args(hint) else hint


def _nargs(field: Field[Any], hint: Any) -> str | int | None:
    """How many values an option takes; None: it is no list."""
    hint = _without_none(hint)
    if get_origin(hint) is tuple:
        return len(get_args(hint))
    several = field.metadata.get("count") or ("*" if field.metadata.get("empty") else "+")
    return several if get_origin(hint) is list else None


def _path(text: str) -> Path:
    return Path(text)


def _text(text: str) -> str:
    return text


_TAKEN_AS_IS = {Path: _path, str: _text}  # by jsonargparse, which loads values as YAML: file names need not be UTF-8
_METAVARS = {int: "N", float: "X", str: "NAME", Path: "PATH"}


def _add_options(parser: Any, kind: Any) -> Iterator[str]:
    """Add the fields of a dataclass without sections: flags for bool, several values for lists and tuples.

    Yields what the usage has to show: what is required.
    """
    hints = get_type_hints(kind)
    helps = {entry.args[1]: entry.description or "" for entry in docstring_parser.parse_from_object(kind).params}
    for field in fields(kind):
        hint = hints[field.name]
        if is_dataclass(hint):
            yield from _add_options(parser, hint)
            continue
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        choices = ", ".join(field.metadata.get("choices", ()))
        settings: dict[str, Any] = {"help": " ".join(helps.get(field.name, "").split()).replace("{choices}", choices)}
        plain = _without_none(hint)
        if plain is bool:
            settings |= {"action": "store_true" if hint is bool else BooleanOptionalAction, "default": default}
        else:
            hint, nargs = _choices(field, hint), _nargs(field, hint)
            settings |= {"type": get_args(_without_none(hint))[0] if nargs else hint, "nargs": nargs}
            metavar = field.metadata.get("metavar") or _METAVARS.get(settings["type"]) or _METAVARS.get(plain)
            if get_origin(plain) is Literal:
                metavar = "{" + ",".join(map(str, get_args(plain))) + "}"
            settings |= {"metavar": metavar} if metavar else {}
            settings["type"] = _TAKEN_AS_IS.get(_without_none(settings["type"]), settings["type"])
            if default is not MISSING:
                settings["default"] = list(default) if isinstance(default, tuple) else default
        shown = f"{settings.get('metavar')}{' ...' * isinstance(settings.get('nargs'), str)}"
        if field.metadata.get("positional"):
            parser.add_argument(field.name, **settings)
            yield shown
        else:
            parser.add_argument(f"--{field.name}", required=default is MISSING, **settings)
            if default is MISSING:
                yield f"--{field.name} {shown}"


def _shorten(message: str, types: dict[str, Any]) -> str:
    """Put a message of jsonargparse into plain words: `training.epochs: expected int, got 'many'`."""
    mistyped = re.search(r'^Parser key "([\w.]+)"(?: element \d+)?:(?:.|\n)*(?:Got value|Given value): (.*)', message)
    if mistyped and mistyped[1] in types:
        return f"{mistyped[1]}: expected {_type_name(types[mistyped[1]])}, got {mistyped[2]!r}"
    unknown = re.match(r"Group '(\w+)' does not accept option '([^']+)'", message)
    if unknown:
        return _no_option(f"{unknown[1]}.{unknown[2]}", types)
    section = re.search(r"""^Parser key "(\w+)":\s+Unable to load config '(.*?)'""", message)
    if section and any(name.startswith(f"{section[1]}.") for name in types):
        return f"{section[1]} is a section, and {section[2]!r} is not a YAML file for it: --{section[1]}.NAME=VALUE"
    message = re.sub(r"ignored explicit argument (.*)", r"a flag, which takes no value, got \1", message)
    return re.sub(r"^argument (?:--)?([\w./-]+)", r"\1", message)


def closest(name: str, names: Iterable[str]) -> str:
    """Name the closest of some names for an error message: "; did you mean X?", or nothing if none is close."""
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.7)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _no_option(name: str, types: dict[str, Any]) -> str:
    same = [of for of in types if of.endswith(f".{name}")]  # without its section, as other trainers have it
    return f"there is no option {name}" + (f"; did you mean {' or '.join(same)}?" if same else closest(name, types))


def _type_name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(str(value) for value in get_args(hint))
    if get_origin(_without_none(hint)) in (list, tuple):
        return _type_name(get_args(_without_none(hint))[0])
    if get_args(hint):
        return " or ".join(_type_name(part) for part in get_args(hint))
    return "null" if hint is type(None) else hint.__name__


def _check_names(arguments: Sequence[str], parser: Any) -> None:
    """End the program with one line if there is an unknown option: argparse would report missing ones first."""
    for argument in arguments:
        if argument == "--":
            return
        name = argument.partition("=")[0]
        is_option = re.match(r"--?[A-Za-z_]", name) and name.rstrip("+") not in parser._option_string_actions
        if is_option and (name.startswith("--") or name[:2] not in parser._option_string_actions):
            parser.error(_no_option(name.lstrip("-").strip(), parser.types))


def _check_files(arguments: Sequence[str], sections: Sequence[str]) -> None:
    """End the program with one line if a YAML file is not UTF-8, or has a key twice: YAML keeps the last."""
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
            usage_error(f"{path} is not UTF-8, as YAML must be: {error.reason} at byte {error.start}")
        except (OSError, yaml.YAMLError):
            pass  # jsonargparse reports it


def _repeated(node: yaml.Node | None) -> Iterator[tuple[str, int, int]]:
    """Yield each key that a YAML document has twice, in a section as "section.key", and both lines, from 1."""
    lines: dict[str, int] = {}

    def walk(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, int, int]]:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            name, line = f"{prefix}{key.value}", key.start_mark.line + 1
            if name in lines:
                yield name, line, lines[name]
            lines[name] = line
            yield from walk(value, f"{name}.")

    yield from walk(node, "")


def _check_order(arguments: Sequence[str]) -> None:
    """End the program with one line if a file comes after an option, which it would silently override."""
    override = ""
    for argument in arguments:
        name = argument.partition("=")[0]
        if name in ("--config-file", "--config"):
            if override:
                usage_error(f"{name} comes after {override}, which it would override: put the file first")
        elif name.startswith("--") and name != "--print_config":
            override = argument


def _expand_home(name: str, value: Any) -> Any:
    """Replace a leading ~ in a path: the shell does so only at the start of an argument."""
    if isinstance(value, list):
        return [_expand_home(name, part) for part in value]
    if not isinstance(value, (str, Path)) or not str(value).startswith("~"):
        return value
    try:
        return type(value)(Path(value).expanduser())
    except RuntimeError:
        usage_error(f"{name}: there is no home directory {str(value).partition('/')[0]}")


def _build(kind: Any, options: Namespace) -> Any:
    """Make the dataclass from parsed options."""
    hints = get_type_hints(kind)
    values = {}
    for name in (field.name for field in fields(kind)):
        if is_dataclass(hints[name]):  # a section is built already
            values[name] = options[name] if name in options else _build(hints[name], options)
        else:
            is_tuple = get_origin(_without_none(hints[name])) is tuple and options[name] is not None
            values[name] = tuple(options[name]) if is_tuple else options[name]
    return kind(**values)


def parse_options(kind: type[T], arguments: Sequence[str] | None = None, *, prog: str, description: str) -> T:
    """Read the options of a program.

    If the dataclass has sections, the program takes `--config-file FILE` and then dotted overrides such as
    `--training.epochs=1`. Otherwise bool fields are flags (`--json`; `bool | None`: also `--no-NAME`), and lists and
    tuples are values separated by spaces (`--rows 3 5`). A path may start with ~ for the home directory.

    A wrong name, type or range ends the program with status 2 and one line on stderr.

    Args:
        kind: a dataclass.
        arguments: the command line; default: `sys.argv[1:]`.
        prog: the program's name.
        description: what the program does.

    Example:
        >>> @dataclasses.dataclass(kw_only=True)
        ... class Options:
        ...     file: Path = option(positional=True)
        ...     rows: list[int] = option([0, 1])
        ...     full: bool = False
        >>> parse_options(Options, ["a.beton", "--rows", "3", "5"], prog="check", description="Check a file.")
        Options(file=PosixPath('a.beton'), rows=[3, 5], full=False)
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    hints = get_type_hints(kind)
    names = {field.name for field in fields(kind) if not field.metadata.get("inline")}  # type: ignore[arg-type]
    sections = [name for name, hint in hints.items() if is_dataclass(hint) and name in names]
    parser: Any = _Parser(prog=prog, description=description, allow_abbrev=False)
    parser.types = dict(_types(kind))
    if sections:
        help_of_file = "YAML file; options after it override it"
        parser.add_argument("--config-file", "--config", action="config", help=help_of_file)
        parser.add_class_arguments(kind)
        _check_order(arguments)
        _check_files(arguments, sections)
    else:
        parser.formatter_class = _Help
        parser.usage = " ".join([prog, *_add_options(parser, kind), "[options]"])
    _check_names(arguments, parser)
    options = parser.parse_args(arguments)
    for name in sections:
        if not isinstance(options[name], Namespace):
            usage_error(f"{name}: expected a section of options, got {options[name]!r}")
    for name, value in list(options.items()):
        options[name] = _expand_home(name, value)
    with wrong_options():
        built: T = _build(kind, parser.instantiate(options))
    return built
