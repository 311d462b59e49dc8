"""Frozen dataclasses as JSON and back: nested objects, unions by their `kind`, errors that name the key."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Any, Literal

from .errors import ConfigError, check_int, listed, short

__all__ = ["LATER", "MAX_SIZE", "check_keys", "hints", "plain", "read", "sizes"]

LATER = {"later": True}  # config.json leaves out such a field where it has its default, so that earlier versions of fastinfer read it
MAX_SIZE = 1 << 24  # the largest size that a file may name; sizes are bounded before anything is computed from them


def plain(value: Any) -> Any:
    """A value as JSON values: dataclasses become objects, tuples lists. A LATER field that has its default is left out."""
    if dataclasses.is_dataclass(value):
        items = {f: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {f.name: plain(v) for f, v in items.items() if not ("later" in f.metadata and v == f.default)}
    if isinstance(value, tuple):
        return [plain(v) for v in value]
    return value


@functools.cache
def hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def check_keys(kind: type, value: dict[str, Any], at: str) -> None:
    """Raise ConfigError unless `value` has every key that the dataclass `kind` needs and no unknown key."""
    known, dot = hints(kind), at + "." if at else ""
    unknown = [short(k) for k in value if k not in known]
    if unknown:
        raise ConfigError(f"unknown key {listed(unknown)} in {at or 'the whole'}; known here: {', '.join(sorted(known))}")
    needed = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    missing = [dot + k for k in needed if k not in value]
    if missing:
        raise ConfigError(f"missing key {', '.join(missing)}")


def read(kind: Any, value: Any, at: str) -> Any:
    """A JSON value, or a value converted before, as the annotated type `kind`; `at` is its dotted key. Raises ConfigError."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return read(chosen([a for a in args if a is not type(None)], value, at), value, at)
    if origin is Literal:
        if not isinstance(value, str) or value not in args:
            raise wrong(at, value, "one of " + ", ".join(args))
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise wrong(at, value, "a list")
        return tuple(read(args[0], v, f"{at}[{i}]") for i, v in enumerate(value))
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return read_object(kind, value, at)
    if kind is float and type(value) is int and abs(value) < MAX_SIZE:
        return float(value)
    if kind is int:
        return check_int(at, value, error=ConfigError)
    if type(value) is not kind:
        raise wrong(at, value, {float: "a number", bool: "true or false", str: "a string"}[kind])
    return value


def read_object(kind: type, value: Any, at: str) -> Any:
    """A JSON object, or an instance, as the dataclass `kind`."""
    if isinstance(value, kind):  # an instance of a subclass keeps its class
        kind, value = type(value), vars(value)
    if not isinstance(value, dict):
        raise wrong(at, value, "an object")
    check_keys(kind, value, at)
    return kind(**{k: read(hints(kind)[k], v, f"{at}.{k}") for k, v in value.items()})


def chosen(options: list[Any], value: Any, at: str) -> Any:
    """The type in `options` that fits a value: the tuple for a list, else the dataclass of its "kind". Raises ConfigError if none does."""
    lists = [o for o in options if typing.get_origin(o) is tuple]
    options = lists if lists and isinstance(value, (list, tuple)) else [o for o in options if o not in lists]
    if len(options) == 1:
        return options[0]
    if isinstance(value, tuple(options)):  # it may be a subclass with its own kind
        return next(o for o in options if isinstance(value, o))
    by_kind = {typing.get_args(hints(o)["kind"])[0]: o for o in options}
    got = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    if not isinstance(got, str) or got not in by_kind:
        raise wrong(at, value, f"an object whose kind is one of {', '.join(by_kind)}")
    return by_kind[got]


def wrong(at: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"{at} is {short(value)}, expected {expected}")


def sizes(high: int = MAX_SIZE, /, **named: int) -> typing.Iterator[str]:
    """Yield a message for each named size that is not from 1 (token_types and dense: 0) to `high`."""
    for name, value in named.items():
        low = 0 if name.endswith(("token_types", "dense")) else 1
        if not low <= value <= high:
            yield f"{name} is {short(value)}, expected an integer from {low} to {high}"
