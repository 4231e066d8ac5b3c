"""Plain mappings <-> frozen dataclasses: what turns YAML into specs, and the errors that name the key.

A wrong key names the nearest right one and a wrong value names what is allowed. Knows no spec by name.
"""

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from hpe_core.errors import SpecError, check, nearest, one_of

T = TypeVar("T")


def to_dict(spec: Any) -> Any:
    """A spec as plain dicts and lists, in field order (what `build` takes back)."""
    if is_dataclass(spec) and not isinstance(spec, type):
        return {f.name: to_dict(getattr(spec, f.name)) for f in fields(spec)}
    if isinstance(spec, Mapping):
        return {key: to_dict(value) for key, value in spec.items()}
    if isinstance(spec, list | tuple):
        return [to_dict(value) for value in spec]
    return spec


def build(kind: type[T], values: Any, key: str = "") -> T:
    """A mapping of plain values -> the spec. Raises SpecError that names the full key."""
    if not isinstance(values, Mapping):
        raise SpecError(f"{key or 'the configuration'} must be a mapping of keys, got {values!r}")
    hints = get_type_hints(kind)
    names = [f.name for f in fields(typing.cast(Any, kind))]
    prefix = f"{key}." if key else ""
    for name in values:
        if name not in names:
            raise SpecError(f"unknown key {prefix}{name}{nearest(str(name), names)}")
    made = {}
    for f in fields(typing.cast(Any, kind)):
        if f.name in values:
            made[f.name] = _convert(hints[f.name], values[f.name], prefix + f.name)
        elif f.default is MISSING and f.default_factory is MISSING:
            raise SpecError(f"key {prefix}{f.name} is missing")
    try:
        return kind(**made)
    except SpecError as error:
        message = str(error)
        raise SpecError(message if not key or message.startswith(key) else f"{key}: {message}") from None


def _convert(hint: Any, value: Any, key: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        inner = [a for a in args if a is not type(None)]
        return None if value is None else _convert(inner[0], value, key)
    if value is None and origin is dict:
        return {}  # `search.space=null` drops every entry
    if value is None:
        raise SpecError(f"{key} has no value")
    if origin is Literal:
        if value not in args:
            raise SpecError(f"{key} is {one_of(value, args)}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            value = [value]
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else args
        return tuple(
            _convert(kind, item, f"{key}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if origin is dict:
        if not isinstance(value, Mapping):
            raise SpecError(f"{key} must be a mapping of names, got {value!r}")
        return {str(name): _convert(args[1], item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(value)
    if is_dataclass(hint):
        return build(typing.cast(type[Any], hint), value, key)
    if hint is bool:
        if not isinstance(value, bool):
            raise SpecError(f"{key} is {value!r}; allowed: true, false")
        return value
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, int | float) or value % 1 != 0:
            raise SpecError(f"{key} is {value!r}; a whole number is needed")
        return int(value)
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SpecError(f"{key} is {value!r}; a number is needed")
        check(math.isfinite(value), f"{key} is {value!r}; a finite number is needed")
        return float(value)
    assert hint is str, f"spec field {key} has a type that build does not know: {hint}"
    if isinstance(value, Mapping | list | tuple):
        raise SpecError(f"{key} is {value!r}; one word is needed")
    return str(value)
