"""Recipes: the settings of a run, as a frozen dataclass that is filled from a TOML file and from flags, which override the file.

A field is declared with option(default, help). Its name is the key in the file and, with dashes, the flag. Its type is int, float, str,
bool or tuple[str, ...], or one of these or None.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import typing
from pathlib import Path
from typing import Any, TypeVar

from fastinfer.errors import InputError, near, short

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Recipe = TypeVar("Recipe")
NAMES = {int: "an integer", float: "a number", str: "a text", bool: "true or false", tuple: "a list of texts"}


def option(default: Any = dataclasses.MISSING, help: str = "") -> Any:
    """A field of a recipe. A field without a default has to be given."""
    return dataclasses.field(default=default, metadata={"help": help})


def _kinds(recipe: type) -> dict[str, type]:
    """{field: its type without None: int, float, str, bool or tuple}."""
    kinds = {}
    for name, hint in typing.get_type_hints(recipe).items():
        plain = [a for a in typing.get_args(hint) if a is not type(None)] if type(None) in typing.get_args(hint) else [hint]
        kinds[name] = typing.get_origin(plain[0]) or plain[0]
    return kinds


def add_flags(parser: argparse.ArgumentParser, recipe: type) -> None:
    """Add to the parser the recipe's file as an optional argument, and a flag for each of its fields."""
    parser.add_argument("recipe", nargs="?", type=Path, metavar="RECIPE.toml", help="TOML file of settings, which flags override")
    kinds = _kinds(recipe)
    for field in dataclasses.fields(recipe):
        kind = kinds[field.name]
        how = {"action": argparse.BooleanOptionalAction} if kind is bool else {"nargs": "+"} if kind is tuple else {"type": kind}
        if kind is not bool:
            how["metavar"] = {int: "N", float: "X", str: "TEXT", tuple: "TEXT"}[kind]
        shown = "" if field.default in (dataclasses.MISSING, None, ()) else f" (default: {field.default})"
        text = (field.metadata["help"] + shown).replace("%", "%%")
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=argparse.SUPPRESS, help=text, **how)


def from_options(recipe: type[Recipe], options: argparse.Namespace, kept: dict[str, Any] | None = None) -> Recipe:
    """The recipe of the parsed flags and the file that they name, over the settings `kept` of a run that goes on.

    Raises InputError for an unknown key, a wrong type, a missing key.
    """
    return make(recipe, options.recipe, (kept or {}) | {k: v for k, v in vars(options).items() if k in _kinds(recipe)})


def make(recipe: type[Recipe], file: Path | None, given: dict[str, Any]) -> Recipe:
    """A recipe from a TOML file (None: no file) and `given` values, which override the file. Raises InputError as from_options does."""
    values: dict[str, Any] = {}
    if file is not None and not file.is_file():
        raise InputError(f"{file} does not exist: name a recipe, a TOML file of settings, such as those in tools/configs")
    if file is not None:
        try:
            values = tomllib.loads(file.read_text("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{file} is no TOML: {error}") from None
    kinds, where = _kinds(recipe), file or "the flags"
    values |= given
    unknown = sorted(values.keys() - kinds.keys())
    if unknown:
        raise InputError(f"{where}: unknown key {', '.join(unknown)}{near(unknown[0], kinds)}; known here: {', '.join(kinds)}")
    for name, value in values.items():
        kind = kinds[name]
        if kind is tuple and isinstance(value, list) and all(isinstance(v, str) for v in value):
            value = tuple(value)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise InputError(f"{where}: {name} is {short(value)}, expected {NAMES[kind]}")
        values[name] = value
    missing = [f.name for f in dataclasses.fields(recipe) if f.default is dataclasses.MISSING and f.name not in values]
    if missing:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise InputError(f"{where}: missing {', '.join(missing)}: set it in the recipe, or give {flags}")
    return recipe(**values)
